//! The program put together: what is started in which order, and stopped in the reverse one.
//!
//! Called by `main`. What differs with where objects come from is opened by [`files`] or [`kubernetes`]; everything else is
//! here. Everything runs on the caller's thread; files are read on others.

mod error;
mod files;
mod kubernetes;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::names::Text;
use ambit_net::admin::{self, Readiness};
use ambit_net::grpc::server::{self, ServerTls};
use ambit_net::meters::Meters;
use ambit_net::proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use ambit_net::proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use ambit_net::proto::node::node_service_server::NodeServiceServer;
use ambit_net::sockopt::{self, ListenerOptions};
use ambit_net::tasks::Tasks;
use ambit_net::telemetry::VERSION;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tonic::service::{Routes, RoutesBuilder};
use tracing::{error, info, warn};

pub use self::error::AppError;
use crate::ca::CertificateAuthority;
use crate::ca::authenticate::{Authenticator, Guard};
use crate::ca::issued::Issued;
use crate::ca::root::Root;
use crate::ca::signer::{SERVER_LIFETIME, Signer};
use crate::config::{Config, Source};
use crate::index::served::CaptureSource;
use crate::overview::{Overview, StatusSocket, serve_tcp};
use crate::publisher::{Outputs, Publisher};
use crate::reports::NodeReports;
use crate::verdict::Verdicts;
use crate::watch::{Event, QUEUE};
use crate::xds::proxies::Proxies;
use crate::xds::server::{Discovery, Published};

/// Bytes of one request to the CA: a signing request and a name.
const MAX_CA_REQUEST: usize = 64 * 1024;
/// Bytes of one report: 4096 pods with long names.
const MAX_REPORT: usize = 4 << 20;
/// Bytes of one xDS request: a resuming proxy names all that it holds, 100 000 resources with their versions.
const MAX_XDS_REQUEST: usize = 32 << 20;
/// Streams of one connection that are counted together: a proxy has one, two while it is replaced.
const STREAMS_PER_CONNECTION: usize = 2;
/// Series of traffic in the metrics; the controller carries none.
const NO_TRAFFIC: usize = 1;
/// How long the tasks that wait for nobody may take to end.
const CONTROL_DEADLINE: Duration = Duration::from_secs(1);

/// What readiness calls the first reading of the sources.
const SOURCES: &str = "sources";
/// What readiness calls a program that stops.
const STOPPING: &str = "stopping";

/// Runs the controller until SIGTERM or SIGINT, then lets proxies leave.
///
/// # Errors
/// When it cannot start.
pub fn run(config: &Config) -> Result<(), AppError> {
    info!(version = VERSION, trust_domain = %config.mesh.trust_domain, "starting");
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let running = Running::new(config)?;
        // Opening may wait for the API server; only readiness and metrics are served meanwhile.
        let app = tokio::select! {
            app = App::open(config, &running) => Some(app?),
            () = signals.next() => None,
        };
        if let Some(app) = app {
            app.start(config, &running);
            signals.next().await;
        }
        running.stop(signals, config.termination).await;
        Ok(())
    })
}

/// What differs with where objects come from.
struct Ground {
    root: watch::Receiver<Arc<Root>>,
    authenticator: Authenticator,
    capture: CaptureSource,
    reports: NodeReports,
    status: StatusPort,
    /// What runs until the end: the source, and what follows files or the API server.
    tasks: Vec<BoxFuture<'static, ()>>,
}

/// Where the status is served.
enum StatusPort {
    Socket(StatusSocket),
    Loopback(TcpListener),
}

/// What others than the publisher write or read of its channels.
struct Wires {
    events: mpsc::Sender<Event>,
    verdicts: watch::Receiver<Arc<Verdicts>>,
}

/// What was read and bound before anything is served.
struct App {
    grpc: TcpListener,
    signer: Arc<Signer>,
    tls: ServerTls,
    overview: Overview,
    capture: CaptureSource,
    outputs: Outputs,
    reports: NodeReports,
    status: StatusPort,
    events: mpsc::Receiver<Event>,
    tasks: Vec<BoxFuture<'static, ()>>,
}

impl App {
    /// Takes the port, then opens the source; nothing is served yet.
    async fn open(config: &Config, running: &Running) -> Result<Self, AppError> {
        let grpc = listen("AMBIT_LISTEN_ADDR", config.listen)?;
        let (to_publisher, events) = mpsc::channel(QUEUE);
        let (verdicts, read_verdicts) = watch::channel(Arc::default());
        let wires = Wires {
            events: to_publisher,
            verdicts: read_verdicts,
        };
        let ground = match &config.source {
            Source::Files(files) => files::open(files, config, wires, running)?,
            Source::Kubernetes(cluster) => {
                kubernetes::open(cluster, config, wires, running).await?
            }
        };
        let signer = Arc::new(Signer::new(ground.root.clone(), config.longest_cert));
        let (chain, key) = signer.server(&config.server_names, SystemTime::now())?;
        let (snapshots, published) = watch::channel(None);
        let (roster, read_roster) = watch::channel(None);
        Ok(Self {
            grpc,
            signer,
            tls: ServerTls::new(&chain, &key)?,
            overview: Overview {
                trust_domain: Text::clone(&config.mesh.trust_domain),
                root: ground.root,
                roster: read_roster,
                published,
                authenticator: ground.authenticator,
                issued: Issued::default(),
                proxies: Proxies::default(),
            },
            capture: ground.capture,
            outputs: Outputs {
                snapshots,
                roster,
                verdicts,
            },
            reports: ground.reports,
            status: ground.status,
            events,
            tasks: ground.tasks,
        })
    }

    /// Starts everything.
    fn start(self, config: &Config, running: &Running) {
        let (overview, meters, tls) = (self.overview, &running.meters, self.tls);
        running.keep(keep_ready(
            running.readiness.clone(),
            overview.published.clone(),
        ));
        let (status, spawner) = (overview.clone(), running.control.spawner());
        match self.status {
            StatusPort::Socket(socket) => running.control.spawn(socket.serve(status, spawner)),
            StatusPort::Loopback(port) => {
                running.control.spawn(serve_tcp(port, status, spawner));
            }
        }
        running.keep(renew(
            tls.clone(),
            Arc::clone(&self.signer),
            config.server_names.clone(),
        ));
        running.keep(overview.authenticator.clone().follow());
        let publisher = Publisher::new(
            config.mesh.clone(),
            self.capture,
            self.outputs,
            Arc::clone(meters),
        );
        running.keep(publisher.run(self.events));
        for task in self.tasks {
            running.keep(task);
        }
        let discovery = Discovery::new(
            overview.published.clone(),
            overview.proxies.clone(),
            (
                running.serving.spawner(),
                STREAMS_PER_CONNECTION.saturating_mul(config.connections),
            ),
            Arc::clone(meters),
        );
        let authority = CertificateAuthority::new(
            self.signer,
            Text::clone(&config.mesh.trust_domain),
            overview.roster.clone(),
            (overview.issued.clone(), Arc::clone(meters)),
        );
        let routes = routes(discovery, authority, self.reports, &overview.authenticator);
        server::start(self.grpc, tls, routes, config.connections, &running.serving);
        info!(addr = %config.listen, "serving");
    }
}

/// The program while it runs.
struct Running {
    /// What lasts until the end.
    control: Tasks,
    /// Proxies' connections and streams.
    serving: Tasks,
    readiness: Readiness,
    meters: Arc<Meters>,
}

impl Running {
    /// Serves readiness, which waits for the sources, and metrics.
    fn new(config: &Config) -> Result<Self, AppError> {
        let running = Self {
            control: Tasks::new("control"),
            serving: Tasks::new("proxies"),
            readiness: Readiness::new(),
            meters: Meters::new("controller", NO_TRAFFIC),
        };
        running.readiness.block(SOURCES);
        let operations = listen("AMBIT_METRICS_ADDR", config.operations)?;
        let pages = admin::readiness(running.readiness.clone());
        let pages = pages.and(admin::metrics(&running.meters));
        let spawner = running.control.spawner();
        let pages = admin::serve_routes(operations, Arc::new(pages), spawner);
        running.control.spawn(pages);
        Ok(running)
    }

    /// Spawns a task that never ends by itself.
    fn keep(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.control.stop_signal();
        self.control.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.stopped() => {}
            }
        });
    }

    /// Stops in the reverse order.
    async fn stop(self, mut signals: Signals, termination: Duration) {
        self.readiness.block(STOPPING);
        info!(deadline_ms = termination.as_millis(), "stopping");
        tokio::select! {
            drained = self.serving.drain(termination) => info!(cut = drained.cut, "proxies have left"),
            () = signals.next() => warn!("stopped at once, as told twice"),
        }
        self.control.drain(CONTROL_DEADLINE).await;
    }
}

/// All services, each behind the authenticator and with a bound on its requests.
fn routes(
    discovery: Discovery,
    authority: CertificateAuthority,
    reports: NodeReports,
    authenticator: &Authenticator,
) -> Routes {
    let discovery = AggregatedDiscoveryServiceServer::new(discovery)
        .max_decoding_message_size(MAX_XDS_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let authority =
        IstioCertificateServiceServer::new(authority).max_decoding_message_size(MAX_CA_REQUEST);
    let reports = NodeServiceServer::new(reports).max_decoding_message_size(MAX_REPORT);
    let mut routes = RoutesBuilder::default();
    routes.add_service(Guard::new(discovery, authenticator.clone()));
    routes.add_service(Guard::new(authority, authenticator.clone()));
    routes.add_service(Guard::new(reports, authenticator.clone()));
    routes.routes()
}

fn listen(variable: &'static str, addr: SocketAddr) -> Result<TcpListener, AppError> {
    let listener = sockopt::listener(addr, &ListenerOptions::default());
    let listener = listener.map_err(|source| AppError::Listen {
        variable,
        addr,
        source,
    })?;
    Ok(TcpListener::from_std(listener)?)
}

async fn keep_ready(readiness: Readiness, mut published: Published) {
    if published.wait_for(Option::is_some).await.is_ok() {
        readiness.clear(SOURCES);
    }
}

/// Keeps the server's own certificate young, and one of the root in force.
async fn renew(tls: ServerTls, signer: Arc<Signer>, names: Vec<String>) {
    let mut root = signer.root().clone();
    loop {
        tokio::select! {
            () = sleep(SERVER_LIFETIME / 2) => {}
            Ok(()) = root.changed() => {}
        }
        let renewed = signer.server(&names, SystemTime::now());
        match renewed.map(|(chain, key)| tls.replace(&chain, &key)) {
            Ok(Ok(())) => info!("the server's certificate is renewed"),
            Ok(Err(error)) => error!(%error, "the server's new certificate cannot be used"),
            Err(error) => error!(%error, "the server's certificate cannot be renewed"),
        }
    }
}

/// The signals that stop the program.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests;
