//! Config: every setting of the controller, with its default, its bounds and one sentence on what it does.
//!
//! Read once by `main`. docs/config.md is printed from here.

mod source;

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use ambit_core::identity::{DEFAULT_TRUST_DOMAIN, SpiffeId};
use ambit_core::names::{ClusterId, NetworkId, Text};
use ambit_core::ports;
use ambit_net::env::{EnvError, EnvReader};
use ambit_net::telemetry::LogSettings;

pub use self::source::{Files, Kubernetes, Source};
use crate::index::MeshNames;
use crate::watch::object::{is_label, is_subdomain};

/// Port of metrics and readiness: istiod's for the same.
const OPERATIONS: u16 = 15014;
/// Longest lifetime of a certificate that can be asked for: istiod's.
const LONGEST_CERT: Duration = Duration::from_secs(90 * 86400);

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from, with what belongs to it.
    pub source: Source,
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where metrics and readiness are served.
    pub operations: SocketAddr,
    /// Names and addresses under which nodes reach this controller.
    pub server_names: Vec<String>,
    /// Names that hold for the whole mesh.
    pub mesh: MeshNames,
    /// Longest lifetime of a workload's certificate.
    pub longest_cert: Duration,
    /// Connections at a time.
    pub connections: usize,
    /// Wait for open streams when stopping.
    pub termination: Duration,
    /// How it logs.
    pub log: LogSettings,
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
        let config = Self {
            source: Source::read(env),
            listen: any(env, "AMBIT_LISTEN_ADDR", "Where proxies connect: xDS, certificates and reports.", ports::CONTROLLER),
            operations: any(env, "AMBIT_METRICS_ADDR", "Prometheus metrics (/metrics) and readiness (/healthz/ready).", OPERATIONS),
            server_names: server_names(env),
            mesh: mesh(env),
            longest_cert: env
                .setting("AMBIT_MAX_CERT_TTL", "Longest lifetime of a workload's certificate.")
                .duration(Duration::from_secs(86400), Duration::from_secs(60)..=LONGEST_CERT),
            connections: connections(env),
            termination: env
                .setting("AMBIT_TERMINATION_DEADLINE", "Wait for proxies to leave when stopping; they reconnect elsewhere and lose nothing.")
                .duration(Duration::from_secs(5), Duration::ZERO..=Duration::from_secs(600)),
            log: LogSettings::read(env),
        };
        env.finish()?;
        Ok(config)
    }
}

/// The settings as a Markdown table, for docs/config.md.
pub fn table() -> String {
    let mut env = EnvReader::default();
    // Without any variable the required ones are missing; the table is complete all the same.
    drop(Config::read(&mut env));
    env.table()
}

fn mesh(env: &mut EnvReader) -> MeshNames {
    let trust_domain = env
        .setting("AMBIT_TRUST_DOMAIN", "Trust domain of all identities.")
        .or("TRUST_DOMAIN")
        .parsed(
            "letters, digits, `.`, `-` and `_`",
            DEFAULT_TRUST_DOMAIN,
            trust_domain,
        );
    let cluster_domain = env
        .setting(
            "AMBIT_CLUSTER_DOMAIN",
            "Suffix of the host names of Services.",
        )
        .or("CLUSTER_DOMAIN")
        .parsed("DNS name", "cluster.local", |text| {
            is_subdomain(text).then(|| text.to_owned())
        });
    let cluster = env
        .setting(
            "AMBIT_CLUSTER_ID",
            "Name of the cluster, in every workload.",
        )
        .or("CLUSTER_ID")
        .text("Kubernetes");
    let network = env
        .setting("AMBIT_NETWORK", "Network of all addresses.")
        .or("NETWORK")
        .optional_text();
    let root_namespace = env
        .setting(
            "AMBIT_ROOT_NAMESPACE",
            "Namespace whose policies hold mesh-wide; it exists without a document.",
        )
        .parsed("DNS label", "ambit-system", |text| {
            is_label(text).then(|| text.to_owned())
        });
    let excluded = env
        .setting(
            "AMBIT_EXCLUDED_NAMESPACES",
            "Namespaces whose pods never join, separated by commas, beside kube-system and ambit-system; as the agents have it.",
        )
        .list();
    MeshNames {
        trust_domain: trust_domain.unwrap_or_default().into(),
        cluster_domain: cluster_domain.unwrap_or_default().into(),
        cluster: ClusterId::new(cluster),
        network: NetworkId::new(network.unwrap_or_default()),
        root_namespace: root_namespace.unwrap_or_default().into(),
        excluded: excluded.into_iter().map(Text::from).collect(),
    }
}

/// A trust domain that identities can have.
fn trust_domain(text: &str) -> Option<String> {
    let identity = SpiffeId::new(text, "a", "a").to_string();
    SpiffeId::parse(&identity).ok().map(|_good| text.to_owned())
}

/// The names that are always served, and those of the setting.
fn server_names(env: &mut EnvReader) -> Vec<String> {
    let mut names: Vec<String> = ["ambit-controller.ambit-system.svc", "localhost"]
        .map(str::to_owned)
        .into();
    let more = env
        .setting("AMBIT_SERVER_NAMES", "More names and IP addresses under which nodes reach this controller, beside ambit-controller.ambit-system.svc and localhost.")
        .list();
    names.extend(more);
    names
}

fn connections(env: &mut EnvReader) -> usize {
    let number = env
        .setting(
            "AMBIT_MAX_CONNECTIONS",
            "Connections of proxies at a time; one proxy has one.",
        )
        .number("connections", 4096, 1..=100_000);
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn any(env: &mut EnvReader, name: &'static str, meaning: &'static str, port: u16) -> SocketAddr {
    let default = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    env.setting(name, meaning).socket_addr(default)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ambit_core::names::NamespacedName;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Config, EnvError> {
        let owned = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::read(&mut EnvReader::new(owned))
    }

    const PLACES: [(&str, &str); 2] = [("AMBIT_MANIFESTS", "/m"), ("AMBIT_NODE_TOKENS", "/t")];

    #[test]
    fn with_manifests_the_tokens_have_to_be_named_too() {
        let config = read(&PLACES).unwrap();
        assert_eq!(config.listen.port(), 15012);
        let Source::Files(files) = config.source else {
            panic!("{:?}", config.source)
        };
        assert_eq!(files.root_out, Path::new("/var/lib/ambit/root-cert.pem"));
        assert_eq!(
            config.server_names,
            ["ambit-controller.ambit-system.svc", "localhost"]
        );
        let missing = read(&PLACES[..1]).unwrap_err().to_string();
        assert!(missing.contains("AMBIT_NODE_TOKENS"), "{missing}");
    }

    #[test]
    fn without_manifests_objects_come_from_kubernetes_and_nothing_has_to_be_named() {
        let Source::Kubernetes(cluster) = read(&[]).unwrap().source else {
            panic!("files without a directory")
        };
        assert_eq!(&*cluster.namespace, "ambit-system");
        assert_eq!(cluster.token_audience, "istio-ca");
        assert_eq!(cluster.status.to_string(), "127.0.0.1:15016");
        let ztunnel = NamespacedName::new("ambit-system", "ztunnel");
        assert_eq!(cluster.trusted_accounts, [ztunnel]);
        let other = read(&[("AMBIT_TRUSTED_ACCOUNTS", "a/b, c/d")]).unwrap();
        let Source::Kubernetes(cluster) = other.source else {
            panic!("files without a directory")
        };
        let named = [("a", "b"), ("c", "d")].map(|(n, a)| NamespacedName::new(n, a));
        assert_eq!(cluster.trusted_accounts, named);
    }

    #[test]
    fn mistakes_are_named_with_their_variable() {
        for (name, value) in [
            ("AMBIT_MAX_CERT_TTL", "1s"),
            ("AMBIT_LISTEN_ADDR", "15012"),
            ("AMBIT_MAX_CONNECTIONS", "0"),
            ("AMBIT_STATE", "/s"),
            ("AMBIT_TRUST_DOMAIN", "a/b"),
            ("AMBIT_CLUSTER_DOMAIN", "a b"),
            ("AMBIT_ROOT_NAMESPACE", "a.b"),
            ("AMBIT_NAMESPACE", "a.b"),
            ("AMBIT_STATUS_ADDR", "0.0.0.0:15016"),
            ("AMBIT_TRUSTED_ACCOUNTS", "ztunnel"),
        ] {
            let mistake = read(&[PLACES[0], PLACES[1], (name, value)])
                .unwrap_err()
                .to_string();
            assert!(mistake.contains(name), "{mistake}");
        }
    }

    #[test]
    fn every_setting_is_in_the_table() {
        let table = table();
        for name in [
            "AMBIT_MANIFESTS",
            "AMBIT_STATE_DIR",
            "AMBIT_SERVER_NAMES",
            "AMBIT_LOG",
        ] {
            assert!(table.contains(name), "{name}");
        }
    }
}
