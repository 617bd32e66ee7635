//! The program put together: what is started in which order, and stopped in the reverse one.
//!
//! Called by `main`. The control thread is the caller's: xDS, certificates, handoff and operators' endpoints run on it, so
//! that none of them can hold up a connection. Decides nothing about connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::names::Text;
use ambit_core::ports;
use ambit_core::view::MeshView;
use ambit_net::admin::{self, Readiness, Routes};
use ambit_net::certs::ca::CaClient;
use ambit_net::certs::{CertStore, CertStoreSettings};
use ambit_net::grpc::{Dialer, LinkError};
use ambit_net::meters::Meters;
use ambit_net::netns::{Netns, NetnsError};
use ambit_net::node_report;
use ambit_net::shared_view::SharedView;
use ambit_net::sockopt::{self, ConnectorOptions, ListenerOptions, SocketError};
use ambit_net::tasks::{Stop, Tasks};
use ambit_net::telemetry::{Log, VERSION};
use ambit_net::xds::client::{self as xds_client, XdsConfig};
use ambit_net::xds::{NodeInfo, Synced};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::config::Config;
use crate::dump::Dump;
use crate::pods::{PodSet, Roster, handoff};
use crate::proxy::Mesh;
use crate::workers::Workers;

/// How long control tasks may take to end; none of them waits for another party then.
const CONTROL_DEADLINE: Duration = Duration::from_secs(1);

/// Wait after failed signings: short enough that pods have certificates soon after the controller is back.
const SIGN_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What readiness calls the controller's first answers; blocks from the start.
const CONTROLLER: &str = "controller";

/// Why the program cannot run. All are for the operator to correct.
#[derive(Debug, Error)]
pub enum AppError {
    /// A thread or runtime could not be started.
    #[error("cannot start threads: {0}; look at the limits of processes and open files")]
    Threads(#[source] io::Error),
    /// The controller's address or name cannot work.
    #[error(transparent)]
    Controller(#[from] LinkError),
    /// Network namespaces cannot be made or entered, as pods' connections need it.
    #[error("cannot work in network namespaces: {0}")]
    Netns(#[from] NetnsError),
    /// Sockets cannot be made in the way that pods' connections need.
    #[error("cannot make a pod's sockets: {0}")]
    PodSocket(#[source] SocketError),
    /// An endpoint for operators cannot listen.
    #[error("cannot listen for {what} on {addr}: {source}")]
    Endpoint {
        /// What would be served there.
        what: &'static str,
        /// Its address.
        addr: SocketAddr,
        /// The cause, with the next step.
        source: SocketError,
    },
    /// A socket or a signal could not be watched.
    #[error("cannot watch sockets and signals: {0}")]
    Watch(#[from] io::Error),
}

/// Runs the proxy until SIGTERM or SIGINT, and then until its connections have ended or their time is over.
///
/// # Errors
/// When it cannot start.
pub fn run(config: Config, log: Log) -> Result<(), AppError> {
    info!(version = VERSION, node = %config.place.node, workers = config.workers, "starting");
    for notice in &config.notices {
        warn!("{notice}");
    }
    let control = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AppError::Threads)?;
    check_privileges()?;
    let limits = config.limits;
    let meters = Meters::new("ztunnel", limits.traffic_series);
    let workers = Workers::start(config.workers, limits.handshakes, &meters);
    let workers = workers.map_err(AppError::Threads)?;
    // Outlives the workers, so that what they say last is written.
    let log = Arc::new(log);
    let app = App::new(config, Arc::clone(&log), meters, &workers)?;
    let outcome = control.block_on(app.run());
    workers.end();
    outcome
}

/// Does once, in a namespace of its own, what every connection of a pod needs: better to say now what is missing.
fn check_privileges() -> Result<(), AppError> {
    let options = ConnectorOptions {
        source: Some(Ipv4Addr::LOCALHOST.into()),
        mark: Some(ports::PROXY_MARK),
    };
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::INBOUND_HBONE));
    let made = Netns::fresh()?.run_in_place(|| sockopt::connector(to, &options))?;
    made.map(drop).map_err(AppError::PodSocket)
}

/// What lives as long as the program.
struct App {
    config: Config,
    log: Arc<Log>,
    mesh: Arc<Mesh>,
    xds: Arc<Dialer>,
    pods: PodSet,
    dump: Dump,
    readiness: Readiness,
    /// Told by the admin endpoint.
    quit: Arc<Notify>,
}

impl App {
    fn new(
        config: Config,
        log: Arc<Log>,
        meters: Arc<Meters>,
        workers: &Workers,
    ) -> Result<Self, AppError> {
        let place = &config.place;
        let xds = Arc::new(Dialer::new(config.xds.clone())?);
        let ca = Arc::new(Dialer::new(config.ca.clone())?);
        let view = MeshView::new(place.network.clone(), place.cluster.clone());
        let settings = CertStoreSettings {
            retry: SIGN_RETRY,
            ..CertStoreSettings::default()
        };
        let signer = Arc::new(CaClient::new(ca, config.cert_lifetime));
        let mesh = Arc::new(Mesh {
            view: SharedView::new(view),
            synced: Synced::new(),
            certs: CertStore::new(signer, settings, Arc::new(unix_seconds), &meters),
            meters,
            trust_domain: Text::clone(&place.trust_domain),
            ipv6: config.ipv6,
            limits: config.limits,
        });
        let pods = PodSet::new(Arc::clone(&mesh), workers.all(), Netns::current()?.id());
        let dump = Dump::new(Arc::clone(&mesh), pods.roster(), workers.all());
        let readiness = Readiness::new();
        readiness.block(CONTROLLER);
        Ok(Self {
            config,
            log,
            mesh,
            xds,
            pods,
            dump,
            readiness,
            quit: Arc::default(),
        })
    }

    /// Starts everything, follows the node agent until told to stop, and drains.
    async fn run(mut self) -> Result<(), AppError> {
        let mut signals = Signals::listen(Arc::clone(&self.quit))?;
        let control = Tasks::new("control");
        let reporting = Tasks::new("report to the controller");
        self.start_endpoints(&control)?;
        self.start_control(&control);
        self.start_report(&reporting);
        let socket = self.config.handoff_socket.clone();
        tokio::select! {
            () = handoff::run(&mut self.pods, &socket) => {}
            () = signals.next() => {}
        }
        // A successor may be serving the pods already: it reports from here on.
        reporting.drain(CONTROL_DEADLINE).await;
        self.readiness.block("stopping");
        let deadline = self.config.limits.termination;
        info!(
            deadline_ms = deadline.as_millis(),
            "stopping; open connections may end"
        );
        tokio::select! {
            () = self.pods.drain(deadline) => info!("stopped"),
            () = signals.next() => warn!("stopped at once, as told twice; open connections are cut"),
        }
        control.drain(CONTROL_DEADLINE).await;
        Ok(())
    }

    fn start_control(&self, tasks: &Tasks) {
        let stop = || tasks.stop_signal();
        tasks.spawn(self.mesh.certs.clone().run(stop()));
        let Config { own, place, .. } = &self.config;
        let node = NodeInfo {
            ip: own.ip.clone(),
            pod_name: Text::clone(&own.name),
            pod_namespace: Text::clone(&own.namespace),
            node_name: Text::clone(&place.node),
            cluster: place.cluster.clone(),
            network: place.network.clone(),
            metadata: Default::default(),
        };
        let config = XdsConfig {
            dialer: Arc::clone(&self.xds),
            node,
            root_namespace: Text::clone(&place.root_namespace),
            meters: Arc::clone(&self.mesh.meters),
        };
        let (view, synced) = (self.mesh.view.clone(), self.mesh.synced.clone());
        tasks.spawn(xds_client::run(config, view, synced, stop()));
        let (readiness, synced) = (self.readiness.clone(), self.mesh.synced.clone());
        tasks.spawn(keep_ready(readiness, synced, self.pods.roster(), stop()));
    }

    fn start_report(&self, tasks: &Tasks) {
        let node = Text::clone(&self.config.place.node);
        let report = node_report::run(
            Arc::clone(&self.xds),
            node,
            self.pods.served(),
            tasks.stop_signal(),
        );
        tasks.spawn(report);
    }

    fn start_endpoints(&self, tasks: &Tasks) -> Result<(), AppError> {
        let (dump, quit) = (self.dump.clone(), Arc::clone(&self.quit));
        let admin = Routes::new()
            .get("/config_dump", move |_query| {
                admin::Answer::json(&dump.now())
            })
            .and(admin::logging(Arc::clone(&self.log)))
            .and(admin::quit(move || quit.notify_one()));
        let at = self.config.endpoints;
        let endpoints = [
            ("admin", at.admin, admin),
            ("metrics", at.metrics, admin::metrics(&self.mesh.meters)),
            (
                "readiness",
                at.readiness,
                admin::readiness(self.readiness.clone()),
            ),
        ];
        for (what, addr, routes) in endpoints {
            let listener = sockopt::listener(addr, &ListenerOptions::default())
                .map_err(|source| AppError::Endpoint { what, addr, source })?;
            let listener = TcpListener::from_std(listener)?;
            tasks.spawn(admin::serve_routes(
                listener,
                Arc::new(routes),
                tasks.spawner(),
            ));
        }
        Ok(())
    }
}

/// Signals and the admin endpoint's request to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Arc<Notify>,
}

impl Signals {
    fn listen(quit: Arc<Notify>) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit,
        })
    }

    async fn next(&mut self) {
        let word = tokio::select! {
            _signal = self.terminate.recv() => "SIGTERM",
            _signal = self.interrupt.recv() => "SIGINT",
            () = self.quit.notified() => "admin endpoint",
        };
        info!(by = word, "told to stop");
    }
}

/// Keeps readiness true to what is known of the controller and the node agent, until `stop`.
async fn keep_ready(
    readiness: Readiness,
    synced: Synced,
    mut roster: watch::Receiver<Roster>,
    stop: Stop,
) {
    let mut was_ready = false;
    loop {
        let now = roster.borrow_and_update().clone();
        let pods_pending = !was_ready && now.pods.iter().any(|pod| pod.pending.is_some());
        for (blocker, blocks) in [
            (CONTROLLER, !synced.is_complete()),
            ("node agent", !now.in_step),
            ("pods", pods_pending),
        ] {
            if blocks {
                readiness.block(blocker)
            } else {
                readiness.clear(blocker)
            }
        }
        if !was_ready && readiness.pending().is_empty() {
            was_ready = true;
            info!(pods = now.pods.len(), "ready");
        }
        tokio::select! {
            () = synced.wait(), if !synced.is_complete() => {}
            changed = roster.changed() => if changed.is_err() { return },
            () = stop.stopped() => return,
        }
    }
}

fn unix_seconds() -> u64 {
    // A clock before 1970 makes every certificate invalid, which is refused where it is used.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
