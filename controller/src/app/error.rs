//! Why the program cannot start, in words for the operator.
//!
//! Made by [`super`] and by what it opens.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use ambit_net::grpc::server::ServerTlsError;
use ambit_net::sockopt::SocketError;
use thiserror::Error;

use crate::ca::root::RootError;
use crate::ca::signer::SignError;
use crate::overview::OverviewError;
use crate::private_file::PrivateFileError;
use crate::reports::ReportsError;

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
    #[error(transparent)]
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
    /// There is no cluster to read from.
    #[error(
        "no Kubernetes cluster is known: {0}. In a pod its ServiceAccount's token has to be mounted, elsewhere KUBECONFIG has to name a file; with AMBIT_MANIFESTS=DIRECTORY plain files are read instead"
    )]
    NoCluster(#[source] kube::config::InferConfigError),
    /// The cluster's API server cannot be called.
    #[error("the configuration for the API server cannot be used: {0}")]
    Client(#[source] kube::Error),
    /// The system gives no runtime, or no signals.
    #[error(
        "cannot watch sockets and signals: {0}; look at the limits of processes and open files"
    )]
    Runtime(#[from] io::Error),
}
