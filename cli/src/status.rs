//! `ambit status`: asks one controller over its socket, or every replica in the cluster, and prints what they say.
//!
//! A conductor: the asking is in `socket.rs` and `cluster.rs`, the merging in `merge.rs`, the printing in `report.rs`.

use std::path::{Path, PathBuf};

use ambit_core::status::MeshStatus;
use bytes::Bytes;
use clap::Args;
use futures_util::future::join_all;
use thiserror::Error;

use crate::cluster::{Cluster, ClusterArgs, ClusterError};
use crate::merge::{Answer, merge};
use crate::mesh::{MeshPod, Program};
use crate::socket::{self, SocketError};
use crate::{out, report};

/// Where a controller on plain Linux answers.
const SOCKET: &str = "/var/run/ambit/status.sock";
/// Where each replica answers in its pod, on localhost only.
pub(crate) const STATUS_PORT: u16 = 15016;

/// Who is asked, and how the answer is printed.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Ask the controller behind this Unix socket, and no cluster. Without it and without --kubeconfig, --context and
    /// $KUBECONFIG, /var/run/ambit/status.sock is asked where it exists.
    #[arg(long, env = "AMBIT_STATUS_SOCKET")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Print the document as JSON.
    #[arg(long)]
    json: bool,
}

/// Why there is no status.
#[derive(Debug, Error)]
pub(crate) enum StatusError {
    /// The socket's controller does not answer.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The cluster cannot be asked.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The mesh is not there.
    #[error(
        "no controller runs in namespace {namespace} of {url}; `ambit check` says whether Ambit can be installed there \
         or what keeps it from starting"
    )]
    NoController { namespace: String, url: String },
    /// The answer is not the expected document.
    #[error(
        "the controller's answer is no status document; do the versions of ambit and controller differ much?"
    )]
    Document(#[source] serde_json::Error),
    /// The answer cannot be written.
    #[error("cannot write the answer")]
    Print(#[source] std::io::Error),
    /// What was printed lacks something.
    #[error(
        "{missing} of {all} replicas of the controller did not answer; what is above is what the others know"
    )]
    Partial { missing: usize, all: usize },
}

/// Prints the status; `now` is in seconds since the epoch.
///
/// # Errors
/// When nobody answers, or not every replica does: then what the others say has been printed.
pub(crate) async fn run(args: &StatusArgs, now: u64) -> Result<(), StatusError> {
    let (status, json) = match args.socket() {
        Some(socket) => {
            let document = socket::fetch(&socket).await?;
            let json = String::from_utf8_lossy(&document).into_owned();
            (read(&document)?, Some(json))
        }
        None => {
            let cluster = Cluster::configured(&args.cluster).await?;
            let pods = cluster.mesh_pods().await?;
            let status = of_cluster(&cluster, &pods).await;
            let nobody = || StatusError::NoController {
                namespace: cluster.namespace().to_owned(),
                url: cluster.url().to_owned(),
            };
            (status.ok_or_else(nobody)?, None)
        }
    };
    let text = match (args.json, json) {
        (false, _) => report::render(&status, now),
        (true, Some(json)) => json,
        (true, None) => serde_json::to_string(&status).map_err(StatusError::Document)?,
    };
    out::print(&text).map_err(StatusError::Print)?;
    let unanswered = status.replicas.iter().filter(|r| r.unanswered.is_some());
    match unanswered.count() {
        0 => Ok(()),
        missing => Err(StatusError::Partial {
            missing,
            all: status.replicas.len(),
        }),
    }
}

/// What all replicas say; none when there is none.
pub(crate) async fn of_cluster(cluster: &Cluster, pods: &[MeshPod]) -> Option<MeshStatus> {
    let replicas = pods
        .iter()
        .filter(|pod| pod.program == Program::Controller && !pod.deleting);
    let answers = join_all(replicas.map(|pod| of_replica(cluster, pod))).await;
    (!answers.is_empty()).then(|| merge(answers))
}

async fn of_replica(cluster: &Cluster, pod: &MeshPod) -> Answer {
    let answer = match cluster.ask(&pod.name, STATUS_PORT, "/status").await {
        Ok(document) => read(&document).map_err(|error| out::with_causes(&error)),
        Err(error) if pod.ready => Err(out::with_causes(&error)),
        // A pod that has not started gives no better reason than this one.
        Err(_unreachable) => Err(pod.why.clone()),
    };
    (pod.name.clone(), answer)
}

fn read(document: &Bytes) -> Result<MeshStatus, StatusError> {
    serde_json::from_slice(document).map_err(StatusError::Document)
}

impl StatusArgs {
    /// The socket to ask; none for the cluster.
    fn socket(&self) -> Option<PathBuf> {
        let told = self.cluster.kubeconfig.is_some() || self.cluster.context.is_some();
        let told = told || std::env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
        let there = || Path::new(SOCKET).exists().then(|| SOCKET.into());
        match &self.socket {
            Some(socket) => Some(socket.clone()),
            None if told => None,
            None => there(),
        }
    }
}
