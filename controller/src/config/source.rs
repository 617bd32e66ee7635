//! Where objects come from, and the settings that only one of the two sources needs.
//!
//! Read by [`super`]. A directory of manifests, when one is named; Kubernetes otherwise.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ambit_core::names::{NamespacedName, Text};
use ambit_net::env::EnvReader;

use crate::watch::object::{is_label, is_subdomain};

/// Port of the status on a pod's loopback, where port forwarding reaches it; ours.
const STATUS: u16 = 15016;

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Plain files.
    Files(Files),
    /// A cluster's API server.
    Kubernetes(Kubernetes),
}

/// What belongs to files.
#[derive(Clone, Debug)]
pub struct Files {
    /// Directory of the manifests.
    pub manifests: PathBuf,
    /// Directory of the node tokens.
    pub tokens: PathBuf,
    /// Directory of what has to outlive a restart.
    pub state: PathBuf,
    /// File for the root certificate that nodes need.
    pub root_out: PathBuf,
    /// Socket of the status.
    pub status_socket: PathBuf,
}

/// What belongs to Kubernetes.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// The namespace of this program and of what it keeps.
    pub namespace: Text,
    /// The pod of this program.
    pub pod_name: Text,
    /// Where the status is served.
    pub status: SocketAddr,
    /// What callers' tokens have to be made for.
    pub token_audience: String,
    /// Service accounts whose pods may call.
    pub trusted_accounts: Vec<NamespacedName>,
}

impl Source {
    pub(super) fn read(env: &mut EnvReader) -> Self {
        let manifests = env
            .setting("AMBIT_MANIFESTS", "Directory of plain Kubernetes YAML; changes apply live. Unless set, objects come from the Kubernetes API server of KUBECONFIG or of this pod.")
            .optional_path();
        let files = Files::read(env, manifests.clone());
        let kubernetes = Kubernetes::read(env);
        match manifests {
            Some(_) => Self::Files(files),
            None => Self::Kubernetes(kubernetes),
        }
    }
}

impl Files {
    fn read(env: &mut EnvReader, manifests: Option<PathBuf>) -> Self {
        let state = env
            .setting("AMBIT_STATE_DIR", "Directory of the CA's root and of the nodes' reports; keep it, and keep it private. With AMBIT_MANIFESTS only.")
            .path("/var/lib/ambit");
        Self {
            tokens: env
                .setting("AMBIT_NODE_TOKENS", "Directory of NODE.token files (mode 0600), each one line EXPIRES.SECRET: seconds since the epoch and 64 hexadecimal digits. With AMBIT_MANIFESTS only.")
                .path_required_if(manifests.is_some(), "required with `AMBIT_MANIFESTS`"),
            root_out: env
                .setting("AMBIT_ROOT_CERT_OUT", "File that the root certificate is written to, for the nodes; AMBIT_STATE_DIR/root-cert.pem unless set. With AMBIT_MANIFESTS only.")
                .optional_path()
                .unwrap_or_else(|| state.join("root-cert.pem")),
            state,
            status_socket: env
                .setting("AMBIT_STATUS_SOCKET", "Unix socket that `ambit status` asks. With AMBIT_MANIFESTS only.")
                .path("/var/run/ambit/status.sock"),
            manifests: manifests.unwrap_or_default(),
        }
    }

    /// File of the CA's root and its key.
    pub fn root_file(&self) -> PathBuf {
        self.state.join("ca-root.pem")
    }

    /// Directory of the nodes' reports.
    pub fn reports_dir(&self) -> PathBuf {
        self.state.join("reports")
    }

    /// The settings that name places which must exist at the start.
    pub fn places(&self) -> [(&'static str, &Path); 2] {
        [
            ("AMBIT_MANIFESTS", &self.manifests),
            ("AMBIT_NODE_TOKENS", &self.tokens),
        ]
    }
}

impl Kubernetes {
    fn read(env: &mut EnvReader) -> Self {
        let namespace = env
            .setting(
                "AMBIT_NAMESPACE",
                "Namespace of this program and of what it keeps. With Kubernetes only.",
            )
            .or("POD_NAMESPACE")
            .parsed("DNS label", "ambit-system", |text| {
                is_label(text).then(|| text.to_owned())
            });
        let pod_name = env
            .setting(
                "AMBIT_POD_NAME",
                "Name of this program's pod, which tells its replicas apart. With Kubernetes only.",
            )
            .or("POD_NAME")
            .or("HOSTNAME")
            .text("ambit-controller");
        let status = env
            .setting("AMBIT_STATUS_ADDR", "Where `ambit status` finds the status by port forwarding; a loopback address. With Kubernetes only.")
            .parsed("loopback address:port", &SocketAddr::from((Ipv4Addr::LOCALHOST, STATUS)).to_string(), loopback);
        let token_audience = env
            .setting(
                "AMBIT_TOKEN_AUDIENCE",
                "Audience that callers' tokens have to be made for. With Kubernetes only.",
            )
            .text("istio-ca");
        let trusted = env
            .setting("AMBIT_TRUSTED_ACCOUNTS", "Service accounts, NAMESPACE/NAME separated by commas, whose pods may get configuration and certificates for their nodes. With Kubernetes only.")
            .or("CA_TRUSTED_NODE_ACCOUNTS")
            .parsed("NAMESPACE/NAME, separated by commas", "ambit-system/ztunnel", accounts);
        Self {
            namespace: namespace.unwrap_or_default().into(),
            pod_name: pod_name.into(),
            status: status.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, STATUS))),
            token_audience,
            trusted_accounts: trusted.unwrap_or_default(),
        }
    }
}

fn loopback(text: &str) -> Option<SocketAddr> {
    let addr: SocketAddr = text.parse().ok()?;
    addr.ip().is_loopback().then_some(addr)
}

fn accounts(text: &str) -> Option<Vec<NamespacedName>> {
    let account = |part: &str| {
        let (namespace, name) = part.trim().split_once('/')?;
        let good = is_label(namespace) && is_subdomain(name);
        good.then(|| NamespacedName::new(namespace, name))
    };
    text.split(',').map(account).collect()
}
