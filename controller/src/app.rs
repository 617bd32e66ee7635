//! The program put together: what is started in which order, and stopped in the reverse one.
//!
//! Called by `main`. Everything runs on the caller's thread; files are read on others.

use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::names::Text;
use ambit_net::admin::{self, Readiness};
use ambit_net::documents::{Directory, Limits};
use ambit_net::grpc::server::{self, ServerTls, ServerTlsError};
use ambit_net::meters::Meters;
use ambit_net::proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use ambit_net::proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use ambit_net::proto::node::node_service_server::NodeServiceServer;
use ambit_net::sockopt::{self, ListenerOptions, SocketError};
use ambit_net::tasks::Tasks;
use ambit_net::telemetry::VERSION;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tonic::service::interceptor::InterceptedService;
use tonic::service::{Routes, RoutesBuilder};
use tracing::{error, info, warn};

use crate::ca::CertificateAuthority;
use crate::ca::authenticate::Authenticator;
use crate::ca::issued::Issued;
use crate::ca::root::{Root, RootError};
use crate::ca::signer::{SERVER_LIFETIME, SignError, Signer};
use crate::config::Config;
use crate::overview::{Overview, OverviewError, StatusSocket};
use crate::private_file::{self, PrivateFileError};
use crate::publisher::{Outputs, Publisher};
use crate::reports::{NodeReports, ReportsError};
use crate::watch::{Event, QUEUE, ServedPods, files};
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

/// Why the program cannot run. All are for the operator to correct.
#[derive(Debug, Error)]
pub enum AppError {
    /// A directory that is read is not there.
    #[error("{variable}={} cannot be read: {source}", path.display())]
    Source {
        /// The setting.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// State or the root file cannot be written.
    #[error("AMBIT_STATE_DIR or AMBIT_ROOT_CERT_OUT: {0}")]
    State(#[from] PrivateFileError),
    /// The tokens are not safe where they are.
    #[error("AMBIT_NODE_TOKENS: {0}")]
    Tokens(#[source] PrivateFileError),
    /// There is no root of the CA.
    #[error("AMBIT_STATE_DIR: {0}")]
    Root(#[from] RootError),
    /// The reports cannot be read.
    #[error("AMBIT_STATE_DIR: {0}")]
    Reports(#[from] ReportsError),
    /// The server's own certificate cannot be made.
    #[error("AMBIT_SERVER_NAMES: {0}")]
    ServerName(#[from] SignError),
    /// The server's own certificate cannot be used.
    #[error(transparent)]
    ServerTls(#[from] ServerTlsError),
    /// A port cannot be listened on.
    #[error("{variable}={addr}: cannot listen: {source}")]
    Listen {
        /// The setting.
        variable: &'static str,
        /// Its value.
        addr: SocketAddr,
        /// The cause, with the next step.
        #[source]
        source: SocketError,
    },
    /// The status cannot be served.
    #[error("AMBIT_STATUS_SOCKET: {0}")]
    Status(#[from] OverviewError),
    /// The system gives no runtime, or no signals.
    #[error(
        "cannot watch sockets and signals: {0}; look at the limits of processes and open files"
    )]
    Runtime(#[from] io::Error),
}

/// Runs the controller until SIGTERM or SIGINT, then lets proxies leave.
///
/// # Errors
/// When it cannot start.
pub fn run(config: &Config) -> Result<(), AppError> {
    info!(version = VERSION, trust_domain = %config.mesh.trust_domain, "starting");
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let running = App::new(config)?.start(config);
        running.until_told(config.termination).await;
        Ok(())
    })
}

/// What was read and bound before anything is served.
struct App {
    signals: Signals,
    grpc: TcpListener,
    operations: TcpListener,
    status: StatusSocket,
    signer: Arc<Signer>,
    tls: ServerTls,
    overview: Overview,
    outputs: Outputs,
    reports: NodeReports,
    reported: Vec<ServedPods>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    meters: Arc<Meters>,
}

impl App {
    /// Reads state and takes ports; nothing is served yet.
    fn new(config: &Config) -> Result<Self, AppError> {
        let signals = Signals::listen()?;
        for (variable, path) in config.sources() {
            fs::read_dir(path).map_err(|source| unreadable(variable, path, source))?;
        }
        private_file::make_dir(&config.state)?;
        private_file::check_dir(&config.state)?;
        private_file::check_dir(&config.tokens).map_err(AppError::Tokens)?;
        let now = SystemTime::now();
        let root = Root::load_or_create(&config.root_file(), &config.mesh.trust_domain, now)?;
        private_file::replace_public(&config.root_out, root.pem().as_bytes())?;
        let (_never_changes, root) = watch::channel(Arc::new(root));
        let signer = Arc::new(Signer::new(root.clone(), config.longest_cert));
        let (chain, key) = signer.server(&config.server_names, now)?;
        let meters = Meters::new("controller", NO_TRAFFIC);
        let authenticator = Authenticator::open(&config.tokens, Arc::clone(&meters))
            .map_err(|source| unreadable("AMBIT_NODE_TOKENS", &config.tokens, source))?;
        let events = mpsc::channel(QUEUE);
        let (reports, reported) =
            NodeReports::open(&config.reports_dir(), events.0.clone(), Arc::clone(&meters))?;
        let (snapshots, published) = watch::channel(None);
        let (roster, read_roster) = watch::channel(None);
        Ok(Self {
            signals,
            grpc: listen("AMBIT_LISTEN_ADDR", config.listen)?,
            operations: listen("AMBIT_METRICS_ADDR", config.operations)?,
            status: StatusSocket::bind(&config.status_socket)?,
            signer,
            tls: ServerTls::new(&chain, &key)?,
            overview: Overview {
                trust_domain: Text::clone(&config.mesh.trust_domain),
                root,
                roster: read_roster,
                published,
                authenticator,
                issued: Issued::default(),
                proxies: Proxies::default(),
            },
            outputs: Outputs { snapshots, roster },
            reports,
            reported,
            events,
            meters,
        })
    }

    /// Starts everything.
    fn start(self, config: &Config) -> Running {
        let running = Running {
            signals: self.signals,
            control: Tasks::new("control"),
            serving: Tasks::new("proxies"),
            readiness: Readiness::new(),
        };
        let (overview, meters, tls) = (self.overview, self.meters, self.tls);
        running.readiness.block(SOURCES);
        running.keep(keep_ready(
            running.readiness.clone(),
            overview.published.clone(),
        ));
        let pages = admin::readiness(running.readiness.clone()).and(admin::metrics(&meters));
        let spawner = || running.control.spawner();
        let pages = admin::serve_routes(self.operations, Arc::new(pages), spawner());
        running.control.spawn(pages);
        running
            .control
            .spawn(self.status.serve(overview.clone(), spawner()));
        running.keep(renew(
            tls.clone(),
            Arc::clone(&self.signer),
            config.server_names.clone(),
        ));
        running.keep(overview.authenticator.clone().follow());
        let (to_publisher, events) = self.events;
        let publisher = Publisher::new(config.mesh.clone(), self.outputs, Arc::clone(&meters));
        running.keep(publisher.run(events));
        running.keep(feed(config.clone(), self.reported, to_publisher));
        let discovery = Discovery::new(
            overview.published.clone(),
            overview.proxies.clone(),
            (
                running.serving.spawner(),
                STREAMS_PER_CONNECTION.saturating_mul(config.connections),
            ),
            Arc::clone(&meters),
        );
        let authority = CertificateAuthority::new(
            self.signer,
            Text::clone(&config.mesh.trust_domain),
            overview.roster.clone(),
            (overview.issued.clone(), meters),
        );
        let routes = routes(discovery, authority, self.reports, &overview.authenticator);
        server::start(self.grpc, tls, routes, config.connections, &running.serving);
        info!(addr = %config.listen, "serving");
        running
    }
}

/// The program while it serves.
struct Running {
    signals: Signals,
    /// What lasts until the end.
    control: Tasks,
    /// Proxies' connections and streams.
    serving: Tasks,
    readiness: Readiness,
}

impl Running {
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

    /// Waits for a signal, then stops in the reverse order.
    async fn until_told(mut self, termination: Duration) {
        self.signals.next().await;
        self.readiness.block(STOPPING);
        info!(deadline_ms = termination.as_millis(), "stopping");
        tokio::select! {
            drained = self.serving.drain(termination) => info!(cut = drained.cut, "proxies have left"),
            () = self.signals.next() => warn!("stopped at once, as told twice"),
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
    routes.add_service(InterceptedService::new(discovery, authenticator.clone()));
    routes.add_service(InterceptedService::new(authority, authenticator.clone()));
    routes.add_service(InterceptedService::new(reports, authenticator.clone()));
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

fn unreadable(variable: &'static str, path: &Path, source: io::Error) -> AppError {
    AppError::Source {
        variable,
        path: path.to_owned(),
        source,
    }
}

/// Says what nodes reported before the start, then what the manifests say.
async fn feed(config: Config, reported: Vec<ServedPods>, events: mpsc::Sender<Event>) {
    for report in reported {
        if events.send(Event::Served(report)).await.is_err() {
            return;
        }
    }
    let directory = Directory::new(config.manifests, Limits::default());
    files::run(directory, config.mesh.root_namespace, events).await;
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
