//! Config: every setting of ztunnel, with its default, its bounds and one sentence on what it does.
//!
//! Read once by `main`. Our names begin with `AMBIT_`; the names of istio/ztunnel are read beside them. Of Istio's settings
//! that mean something we do not do, those that are given are reported as not in force. docs/config.md is printed from here.

mod controller;
mod istio;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use ambit_core::identity::DEFAULT_TRUST_DOMAIN;
use ambit_core::names::{ClusterId, NetworkId, Text};
use ambit_core::ports;
use ambit_net::env::{EnvError, EnvReader};
use ambit_net::grpc::Remote;
use ambit_net::telemetry::LogSettings;

/// Bounds of the data path.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of one pod on one capture port and worker.
    pub connections: usize,
    /// TLS handshakes of clients under way on one worker.
    pub handshakes: usize,
    /// Pairs of workloads that the metrics tell apart.
    pub traffic_series: usize,
    /// How long open connections may go on when the proxy stops or a pod leaves.
    pub termination: Duration,
}

const DAY: Duration = Duration::from_secs(86_400);

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where in the mesh this proxy is.
    pub place: Place,
    /// Who this proxy is when the controller lists proxies.
    pub own: OwnPod,
    /// The controller's xDS.
    pub xds: Remote,
    /// The controller's CA.
    pub ca: Remote,
    /// Lifetime that is asked for in certificates.
    pub cert_lifetime: Duration,
    /// Socket of the node agent.
    pub handoff_socket: PathBuf,
    /// Threads of the data path.
    pub workers: usize,
    /// Captures IPv6 too.
    pub ipv6: bool,
    /// Bounds of the data path.
    pub limits: Limits,
    /// Where operators are answered.
    pub endpoints: Endpoints,
    /// How it logs.
    pub log: LogSettings,
    /// What was given and is not in force, to be logged.
    pub notices: Vec<String>,
}

/// Where in the mesh a proxy is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The node that it serves.
    pub node: Text,
    /// The network of its pods.
    pub network: NetworkId,
    /// The cluster of its pods.
    pub cluster: ClusterId,
    /// The trust domain of all identities.
    pub trust_domain: Text,
    /// Namespace whose policies may select the whole mesh.
    pub root_namespace: Text,
}

/// The pod in which this proxy runs; only shown.
#[derive(Clone, Debug)]
pub struct OwnPod {
    /// Its address.
    pub ip: String,
    /// Its name.
    pub name: Text,
    /// Its namespace.
    pub namespace: Text,
}

/// Where operators are answered, in the proxy's own namespace.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// Admin: settings, state, log levels.
    pub admin: SocketAddr,
    /// Metrics for Prometheus.
    pub metrics: SocketAddr,
    /// Readiness.
    pub readiness: SocketAddr,
}

impl Config {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// All mistakes at once; the operator's to correct.
    pub fn of_process() -> Result<Self, EnvError> {
        Self::read(&mut EnvReader::of_process())
    }

    /// Reads all settings from `env`, which can print them as a table afterwards.
    ///
    /// # Errors
    /// All mistakes at once; the operator's to correct.
    pub fn read(env: &mut EnvReader) -> Result<Self, EnvError> {
        let place = Place::read(env);
        let xds = controller::xds(env, &place.cluster);
        let ca = controller::ca(env, &xds);
        let cert_lifetime = env
            .setting(
                "AMBIT_CERT_LIFETIME",
                "Lifetime to ask for in certificates; the controller may give a shorter one.",
            )
            .or("SECRET_TTL")
            .duration(DAY, Duration::from_secs(60)..=90 * DAY);
        let handoff_socket = env
            .setting(
                "AMBIT_HANDOFF_SOCKET",
                "Unix socket of the node agent, which hands over the pods.",
            )
            .or("INPOD_UDS")
            .path("/var/run/ztunnel/ztunnel.sock");
        let workers = workers(env);
        let ipv6 = env
            .setting("AMBIT_IPV6", "Listens for IPv6 in the pods, besides IPv4.")
            .or("IPV6_ENABLED")
            .flag(true);
        let mut config = Self {
            place,
            own: OwnPod::read(env),
            xds,
            ca,
            cert_lifetime,
            handoff_socket,
            workers,
            ipv6,
            limits: limits(env, workers),
            endpoints: Endpoints::read(env),
            log: LogSettings::read(env),
            notices: Vec::new(),
        };
        istio::accept(env);
        env.finish()?;
        config.notices = env.notices().to_vec();
        Ok(config)
    }
}

/// All settings as a Markdown table, for docs/config.md.
pub fn table() -> String {
    let mut env = EnvReader::default();
    // Nothing is set, so reading fails; what was asked for is known all the same.
    drop(Config::read(&mut env));
    env.table()
}

impl Place {
    fn read(env: &mut EnvReader) -> Self {
        let node = env
            .setting(
                "AMBIT_NODE_NAME",
                "Name of the node; the token has to name the same one.",
            )
            .or("NODE_NAME")
            .required_text();
        let network = env
            .setting("AMBIT_NETWORK", "Network of the node's pods.")
            .or("NETWORK")
            .optional_text();
        let cluster = env
            .setting(
                "AMBIT_CLUSTER_ID",
                "Name of the cluster, told to the controller in each call.",
            )
            .or("CLUSTER_ID")
            .or("ISTIO_META_CLUSTER_ID")
            .text("Kubernetes");
        let trust_domain = env
            .setting(
                "AMBIT_TRUST_DOMAIN",
                "Trust domain of the pods' identities; a pod of another one is not served.",
            )
            .or("TRUST_DOMAIN")
            .text(DEFAULT_TRUST_DOMAIN);
        let root_namespace = env
            .setting(
                "AMBIT_ROOT_NAMESPACE",
                "Namespace whose policies may select the whole mesh.",
            )
            .text("ambit-system");
        Self {
            node: node.into(),
            network: NetworkId::new(network.unwrap_or_default()),
            cluster: ClusterId::new(cluster),
            trust_domain: trust_domain.into(),
            root_namespace: root_namespace.into(),
        }
    }
}

impl OwnPod {
    fn read(env: &mut EnvReader) -> Self {
        let ip = env
            .setting(
                "AMBIT_POD_IP",
                "Address of the proxy's own pod, shown by the controller.",
            )
            .or("INSTANCE_IP")
            .text("1.1.1.1");
        let name = env
            .setting(
                "AMBIT_POD_NAME",
                "Name of the proxy's own pod, shown by the controller.",
            )
            .or("POD_NAME")
            .text("ztunnel");
        let namespace = env
            .setting(
                "AMBIT_POD_NAMESPACE",
                "Namespace of the proxy's own pod, shown by the controller.",
            )
            .or("POD_NAMESPACE")
            .text("ambit-system");
        Self {
            ip,
            name: name.into(),
            namespace: namespace.into(),
        }
    }
}

impl Endpoints {
    fn read(env: &mut EnvReader) -> Self {
        let everywhere = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::ADMIN));
        Self {
            admin: env
                .setting(
                    "AMBIT_ADMIN_ADDR",
                    "Admin endpoint; it asks for no password, so keep it local.",
                )
                .socket_addr(local),
            metrics: env
                .setting("AMBIT_METRICS_ADDR", "Metrics for Prometheus.")
                .socket_addr(everywhere(ports::METRICS)),
            readiness: env
                .setting("AMBIT_READINESS_ADDR", "Readiness.")
                .socket_addr(everywhere(ports::READINESS)),
        }
    }
}

fn workers(env: &mut EnvReader) -> usize {
    let cores = available_parallelism().map_or(1, usize::from);
    env.setting(
        "AMBIT_WORKER_THREADS",
        "Threads of the data path: a number, a share of the cores, or `0` for all cores.",
    )
    .or("ZTUNNEL_WORKER_THREADS")
    .parsed("0 to 1024, or 1% to 100%", "0", |text| {
        worker_threads(text, cores)
    })
    .unwrap_or(cores)
}

/// `0` is all cores, `N%` a share of them but at least one.
fn worker_threads(text: &str, cores: usize) -> Option<usize> {
    if let Some(share) = text.strip_suffix('%') {
        let share = share
            .parse()
            .ok()
            .filter(|share| (1..=100_usize).contains(share))?;
        return Some((cores * share / 100).max(1));
    }
    match text.parse().ok()? {
        0 => Some(cores),
        threads @ 1..=1024 => Some(threads),
        _ => None,
    }
}

fn limits(env: &mut EnvReader, workers: usize) -> Limits {
    let connections = env
        .setting("AMBIT_POD_CONNECTIONS", "Connections that one pod may have open on each capture port; more wait to be accepted.")
        .number("connections", 20_000, 1..=1_000_000);
    let handshakes = env
        .setting(
            "AMBIT_HANDSHAKES",
            "TLS handshakes of clients under way at once on the node; more wait their turn.",
        )
        .number("handshakes", 1024, 1..=100_000);
    let traffic_series = env
        .setting(
            "AMBIT_TRAFFIC_SERIES",
            "Pairs of workloads that the traffic metrics tell apart; more are counted together.",
        )
        .number("pairs", 10_000, 1..=1_000_000);
    // Each worker has its own share, so that nothing is counted across threads.
    let share = |whole: u64| {
        usize::try_from(whole)
            .unwrap_or(usize::MAX)
            .div_ceil(workers)
    };
    Limits {
        connections: share(connections),
        handshakes: share(handshakes),
        traffic_series: usize::try_from(traffic_series).unwrap_or(usize::MAX),
        termination: termination(env),
    }
}

/// How long open connections may take to end: given, or derived from the grace period that Kubernetes gives the pod.
fn termination(env: &mut EnvReader) -> Duration {
    let second = Duration::from_secs(1);
    let grace = env
        .setting("TERMINATION_GRACE_PERIOD_SECONDS", "Grace period of ztunnel's own pod, in seconds; the termination deadline is set 5 s below it (1 s below up to 10 s).")
        .parsed("seconds", "", |text| text.parse().ok().map(Duration::from_secs));
    let default = grace.map_or(5 * second, |grace| {
        let margin = if grace > 10 * second {
            5 * second
        } else {
            second
        };
        grace.saturating_sub(margin).max(second)
    });
    env.setting("AMBIT_TERMINATION_DEADLINE", "How long open connections may go on when the proxy stops or a pod leaves; then they are cut.")
        .or("CONNECTION_TERMINATION_DEADLINE")
        .duration(default, Duration::ZERO..=DAY)
}

#[cfg(test)]
mod tests;
