//! Settings of the node agent, each with its default and its meaning.
//!
//! Called by `app.rs` at start, and by the test that prints docs/config.md. Knows nothing of what they do.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ambit_core::enrollment::SYSTEM_NAMESPACES;
use ambit_core::names::Text;
use ambit_net::env::EnvReader;
use ambit_net::telemetry::LogSettings;

use crate::agent::Settings;
use crate::endpoints::Addresses;
use crate::install;
use crate::redirect::ruleset::Probes;
use crate::socket::DEFAULT_PATH;

/// Ports of the agent in the node's namespace: behind those of ztunnel (15020, 15021) and used by nothing of Istio's.
const ADMIN: u16 = 15022;
const METRICS: u16 = 15023;
/// What the table of settings shows for probe addresses that are not set.
const UNSET: &str = "none with files";
const MINUTE: Duration = Duration::from_secs(60);

/// All settings of the agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name, as pods name it.
    pub node: Text,
    /// Where pods come from.
    pub origin: Origin,
    /// Where ztunnel connects.
    pub handoff_socket: PathBuf,
    /// Where the agent remembers what it has captured.
    pub state_dir: PathBuf,
    /// How pods join and leave.
    pub pods: Settings,
    /// Where operators ask.
    pub endpoints: Addresses,
    /// How the agent logs.
    pub log: LogSettings,
}

/// Where pods come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A directory of Kubernetes YAML.
    Files(PathBuf),
    /// The Kubernetes API.
    Kubernetes(Box<OnKubernetes>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(manifests) => write!(f, "{}", manifests.display()),
            Self::Kubernetes(_) => f.write_str("Kubernetes"),
        }
    }
}

/// What matters on Kubernetes only.
#[derive(Clone, Debug)]
pub struct OnKubernetes {
    /// Namespaces that never join, beside those that nobody can let join.
    pub excluded: Vec<String>,
    /// Where the CNI plugin is installed, and where it asks.
    pub plugin: install::Settings,
    /// The node's /proc, as the agent sees it.
    pub proc: PathBuf,
    /// What the runtime's CNI library notes.
    pub cni_cache: PathBuf,
    /// Namespace of the agent's own pod, if it runs in one.
    pub namespace: Option<String>,
    /// The DaemonSet that it is part of.
    pub daemon_set: String,
}

impl Config {
    /// Reads the settings; mistakes are collected in `env`.
    pub fn read(env: &mut EnvReader) -> Self {
        let node = env
            .setting(
                "AMBIT_NODE_NAME",
                "Name of this node: its pods have it as spec.nodeName.",
            )
            .or("NODE_NAME")
            .required_text();
        let manifests = env
            .setting(
                "AMBIT_MANIFESTS",
                "Directory of Kubernetes YAML with the Pods and Namespaces; read again when it changes. Without it they come \
                 from the Kubernetes API (KUBECONFIG, or the pod's service account).",
            )
            .optional_path();
        let kubernetes = on_kubernetes(env);
        let handoff_socket = env
            .setting(
                "AMBIT_HANDOFF_SOCKET",
                "Unix socket on which the agent hands pods over to ztunnel; made with mode 0600.",
            )
            .or("INPOD_UDS")
            .or("ZTUNNEL_UDS_ADDRESS")
            .path("/var/run/ambit/ztunnel.sock");
        let state_dir = env
            .setting(
                "AMBIT_STATE_DIR",
                "Directory in which the agent remembers captured pods over a restart; on disk, one for each agent.",
            )
            .path("/var/lib/ambit");
        let leave_timeout = env
            .setting(
                "AMBIT_LEAVE_TIMEOUT",
                "How long connections that ztunnel carries may go on after their pod has left the mesh; then they are cut.",
            )
            .duration(10 * MINUTE, Duration::ZERO..=24 * 60 * MINUTE);
        let verify_interval = env
            .setting(
                "AMBIT_VERIFY_INTERVAL",
                "How often the rules in a captured pod are compared with what they should be, and put right.",
            )
            .duration(MINUTE / 2, Duration::from_secs(1)..=60 * MINUTE);
        let default_probes = match manifests {
            Some(_) => Probes::default(),
            None => Probes::ISTIO,
        };
        Self {
            node: node.into(),
            origin: manifests
                .map_or_else(|| Origin::Kubernetes(Box::new(kubernetes)), Origin::Files),
            handoff_socket,
            state_dir,
            pods: Settings {
                probes: probes(env, default_probes),
                leave_timeout,
                verify_interval,
            },
            endpoints: endpoints(env),
            log: LogSettings::read(env),
        }
    }
}

/// The settings as a Markdown table, for docs/config.md.
pub fn table() -> String {
    let mut env = EnvReader::default();
    // Without any variable the required ones are missing; the table is complete all the same.
    drop(Config::read(&mut env));
    env.table()
}

fn endpoints(env: &mut EnvReader) -> Addresses {
    let admin = env
        .setting(
            "AMBIT_ADMIN_ADDR",
            "The pods and their states (/pods), what was found on this node (/checks), and the log's filter (/logging); it asks for no password, so keep it local.",
        )
        .socket_addr((Ipv4Addr::LOCALHOST, ADMIN).into());
    let metrics = env
        .setting(
            "AMBIT_METRICS_ADDR",
            "Prometheus metrics (/metrics) and readiness (/healthz/ready).",
        )
        .socket_addr((Ipv6Addr::UNSPECIFIED, METRICS).into());
    Addresses { admin, metrics }
}

fn on_kubernetes(env: &mut EnvReader) -> OnKubernetes {
    let excluded = env
        .setting(
            "AMBIT_EXCLUDED_NAMESPACES",
            "Namespaces whose pods never join, separated by commas, beside kube-system and ambit-system. Kubernetes only.",
        )
        .list();
    let cni_socket = env
        .setting(
            "AMBIT_CNI_SOCKET",
            "Unix socket on which the agent answers the CNI plugin; made with mode 0600. Kubernetes only.",
        )
        .path(DEFAULT_PATH);
    let proc = env
        .setting(
            "AMBIT_PROC",
            "The node's /proc, to find the network namespaces of running pods by. Kubernetes only.",
        )
        .path("/proc");
    let cni_cache = env
        .setting(
            "AMBIT_CNI_CACHE",
            "Where the runtime's CNI library notes which pod has which network namespace. Kubernetes only.",
        )
        .path("/var/lib/cni");
    let namespace = env
        .setting(
            "AMBIT_NAMESPACE",
            "Namespace of the agent's own pod. When its DaemonSet is deleted, the agent leaves the node as it was before.",
        )
        .or("POD_NAMESPACE")
        .optional_text();
    let daemon_set = env
        .setting(
            "AMBIT_DAEMONSET",
            "Name of the DaemonSet that the agent is part of. Kubernetes only.",
        )
        .text("ambit-cni-agent");
    OnKubernetes {
        plugin: plugin(env, cni_socket, &excluded),
        excluded,
        proc,
        cni_cache,
        namespace,
        daemon_set,
    }
}

fn plugin(env: &mut EnvReader, socket: PathBuf, excluded: &[String]) -> install::Settings {
    let net_dir = env
        .setting(
            "AMBIT_CNI_NET_DIR",
            "Where container runtimes read network configurations; the plugin is added to the first. Kubernetes only.",
        )
        .path("/etc/cni/net.d");
    let bin_dir = env
        .setting(
            "AMBIT_CNI_BIN_DIR",
            "Where container runtimes find CNI plugins; ambit-cni is installed there. Kubernetes only.",
        )
        .path("/opt/cni/bin");
    let program = env
        .setting(
            "AMBIT_CNI_PROGRAM",
            "The program ambit-cni to install; it must be linked statically. Kubernetes only.",
        )
        .path("/opt/ambit/bin/ambit-cni");
    let system = SYSTEM_NAMESPACES.iter().map(|name| (*name).to_owned());
    let all: BTreeSet<String> = system.chain(excluded.iter().cloned()).collect();
    install::Settings {
        net_dir,
        bin_dir,
        program,
        socket,
        excluded: all.into_iter().collect(),
    }
}

/// Without Kubernetes nobody probes pods from an address of its own, and an address that nothing uses should open no way
/// around the mesh: none is exempt there unless it is asked for.
fn probes(env: &mut EnvReader, default: Probes) -> Probes {
    let kind = "address, or `none`";
    let v4 = env
        .setting(
            "AMBIT_PROBE_IPV4",
            "Source of the node's health probes over IPv4; TCP from and to it is not captured. On Kubernetes it is \
             169.254.7.127, as Istio's, unless it is set.",
        )
        .or("HOST_PROBE_SNAT_IP")
        .parsed(kind, UNSET, address::<Ipv4Addr>);
    let v6 = env
        .setting(
            "AMBIT_PROBE_IPV6",
            "Source of the node's health probes over IPv6. On Kubernetes it is \
             fd16:9254:7127:1337:ffff:ffff:ffff:ffff, as Istio's, unless it is set.",
        )
        .or("HOST_PROBE_SNAT_IPV6")
        .parsed(kind, UNSET, address::<Ipv6Addr>);
    Probes {
        v4: v4.unwrap_or(default.v4),
        v6: v6.unwrap_or(default.v6),
    }
}

/// An address that packets can come from, or none.
fn address<T: std::str::FromStr + Into<IpAddr> + Copy>(text: &str) -> Option<Option<T>> {
    if text == "none" {
        return Some(None);
    }
    let address: T = text.parse().ok()?;
    let ip: IpAddr = address.into();
    let usable = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
    usable.then_some(Some(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (Config, Vec<String>) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut env = EnvReader::new(variables.iter().map(owned));
        let config = Config::read(&mut env);
        let mistakes = env.finish().err().map(|error| error.mistakes);
        let mistakes = mistakes.unwrap_or_default();
        (config, mistakes.iter().map(ToString::to_string).collect())
    }

    const NEEDED: [(&str, &str); 2] = [("NODE_NAME", "node1"), ("AMBIT_MANIFESTS", "/m")];

    #[test]
    fn the_node_is_needed_and_files_are_asked_for() {
        let (config, mistakes) = read(&NEEDED);
        assert_eq!(mistakes, [""; 0]);
        assert_eq!(&*config.node, "node1");
        assert!(matches!(config.origin, Origin::Files(_)));
        assert_eq!(config.pods.probes, Probes::default());
        let (config, mistakes) = read(&NEEDED[..1]);
        assert_eq!(mistakes, [""; 0]);
        assert!(matches!(config.origin, Origin::Kubernetes(_)));
        assert_eq!(config.pods.probes, Probes::ISTIO);
        let (_, mistakes) = read(&[]);
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    }

    #[test]
    fn probe_addresses_are_addresses_of_hosts() {
        let with = |name, value| {
            let (config, mistakes) = read(&[NEEDED[0], NEEDED[1], (name, value)]);
            (config.pods.probes, mistakes.len())
        };
        let v4 = Probes::ISTIO.v4;
        assert_eq!(
            with("HOST_PROBE_SNAT_IP", "169.254.7.127"),
            (Probes { v4, v6: None }, 0)
        );
        assert_eq!(with("AMBIT_PROBE_IPV4", "none"), (Probes::default(), 0));
        let bad = [
            ("AMBIT_PROBE_IPV4", "0.0.0.0"),
            ("AMBIT_PROBE_IPV4", "::2"),
            ("AMBIT_PROBE_IPV6", "::1"),
        ];
        for (name, value) in bad {
            assert_eq!(with(name, value), (Probes::default(), 1), "{value}");
        }
    }
}
