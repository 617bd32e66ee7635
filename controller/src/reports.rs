//! What nodes say about their pods: which of them their proxies serve. Without Kubernetes this is what is believed about
//! capture, so it is kept on disk: a restart of this program never turns a captured pod's tunnel into plain text.
//!
//! Called over gRPC by the nodes' proxies. A node can speak about its own pods only: the index believes a report about a
//! pod only from the pod's own node.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ambit_core::names::{NamespacedName, Text};
use ambit_net::meters::{CALLS_REFUSED, Meters};
use ambit_net::proto::node::node_service_server::NodeService;
use ambit_net::proto::node::{ReportPodsRequest, ReportPodsResponse};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use tracing::{debug, error};

use crate::ca::authenticate::Caller;
use crate::private_file::{self, PrivateFileError};
use crate::watch::object::{is_label, is_subdomain};
use crate::watch::{Event, ServedPod, ServedPods};

/// Pods of one node; Kubernetes recommends 110.
const MAX_PODS: usize = 4096;
/// Longest uid, in bytes: `namespace/name` where nobody gives one.
const MAX_UID: usize = 512;

/// Why the reports on disk cannot be read.
#[derive(Debug, Error)]
pub enum ReportsError {
    /// A file or the directory cannot be read or written.
    #[error("node reports: {0}")]
    File(#[from] PrivateFileError),
    /// A file is not what was written.
    #[error(
        "{path} is damaged: {source}. Remove it; the node says the same again within 30 s, and until then its pods are announced as plain TCP"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A report as it is on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    node: String,
    at: u64,
    pods: Vec<StoredPod>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredPod {
    namespace: String,
    name: String,
    uid: String,
}

/// The service.
#[derive(Debug)]
pub struct NodeReports {
    kept: Arc<Kept>,
    /// Nodes of which a report is being kept. One each, so that no node takes the threads on which files are read.
    busy: Arc<Mutex<BTreeSet<Text>>>,
    meters: Arc<Meters>,
}

/// A node's turn to have a report kept; it goes along with the work, also when the caller has given up.
#[derive(Debug)]
struct Turn {
    busy: Arc<Mutex<BTreeSet<Text>>>,
    node: Text,
}

/// What is on disk, and who is told when it changes.
#[derive(Debug)]
struct Kept {
    /// None keeps reports in memory only.
    dir: Option<PathBuf>,
    events: mpsc::Sender<Event>,
    /// By node. Held while a report is written and passed on, so that the order is the same in both.
    pods: Mutex<BTreeMap<Text, Vec<ServedPod>>>,
}

/// Why a report has no effect.
#[derive(Debug, Error)]
enum KeepError {
    #[error("{0}")]
    File(#[from] PrivateFileError),
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("the publisher is busy or gone")]
    Busy,
}

impl NodeReports {
    /// Reads what was kept in `dir` and gives it with the service. Blocks on files.
    ///
    /// # Errors
    /// When a file cannot be read or is damaged.
    pub fn open(
        dir: &Path,
        events: mpsc::Sender<Event>,
        meters: Arc<Meters>,
    ) -> Result<(Self, Vec<ServedPods>), ReportsError> {
        private_file::make_dir(dir)?;
        let mut reports = Vec::new();
        let listed = std::fs::read_dir(dir).map_err(|source| PrivateFileError::Io {
            path: dir.to_owned(),
            source,
        })?;
        for entry in listed {
            // One that is passed over would turn a node's pods into plain text.
            let entry = entry.map_err(|source| PrivateFileError::Io {
                path: dir.to_owned(),
                source,
            })?;
            let path = entry.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                reports.push(read(&path)?);
            }
        }
        reports.sort_by(|a, b| a.node.cmp(&b.node));
        let pods = reports
            .iter()
            .map(|r| (Text::clone(&r.node), r.pods.clone()));
        let service = Self::with(Some(dir.to_owned()), pods.collect(), events, meters);
        Ok((service, reports))
    }

    /// Keeps reports in memory only: for where something else says what is captured.
    pub fn in_memory(events: mpsc::Sender<Event>, meters: Arc<Meters>) -> Self {
        Self::with(None, BTreeMap::new(), events, meters)
    }

    fn with(
        dir: Option<PathBuf>,
        pods: BTreeMap<Text, Vec<ServedPod>>,
        events: mpsc::Sender<Event>,
        meters: Arc<Meters>,
    ) -> Self {
        let pods = Mutex::new(pods);
        let kept = Arc::new(Kept { dir, events, pods });
        let busy = Arc::default();
        Self { kept, busy, meters }
    }

    async fn take(&self, request: Request<ReportPodsRequest>) -> Result<(), Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        if request.node != caller.node() {
            return Err(Status::permission_denied("the token names another node"));
        }
        let report = ServedPods {
            node: Text::clone(caller.node_name()),
            at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            pods: pods(request).map_err(Status::invalid_argument)?,
        };
        let busy = || Status::unavailable("a report of this node is being kept");
        let turn = Turn::take(&self.busy, &report.node).ok_or_else(busy)?;
        let kept = Arc::clone(&self.kept);
        let keeping = tokio::task::spawn_blocking(move || {
            let _until_it_is_kept = turn;
            kept.take(report)
        })
        .await;
        let kept = keeping.map_err(|_stopping| Status::unavailable("the controller stops"))?;
        kept.map_err(|error| match error {
            KeepError::Busy => Status::unavailable(error.to_string()),
            error => {
                error!(node = caller.node(), %error, "a node's report cannot be kept, so it is refused");
                Status::internal("the report cannot be kept")
            }
        })
    }
}

impl Turn {
    fn take(busy: &Arc<Mutex<BTreeSet<Text>>>, node: &Text) -> Option<Self> {
        let mut nodes = busy.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(Text::clone(node)).then(|| Self {
            busy: Arc::clone(busy),
            node: Text::clone(node),
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut nodes = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.remove(&self.node);
    }
}

impl Kept {
    /// Keeps a report, then lets it take effect. Blocks on files.
    fn take(&self, report: ServedPods) -> Result<(), KeepError> {
        let mut kept = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.get(&report.node) != Some(&report.pods) {
            debug!(node = %report.node, pods = report.pods.len(), "a node serves other pods");
            if let Some(dir) = &self.dir {
                let stored = serde_json::to_vec(&Stored::of(&report))?;
                private_file::replace(&dir.join(format!("{}.json", report.node)), &stored)?;
            }
            kept.insert(Text::clone(&report.node), report.pods.clone());
        }
        // The node says it again; until then the publisher may have caught up.
        self.events
            .try_send(Event::Served(report))
            .map_err(|_full| KeepError::Busy)
    }
}

#[tonic::async_trait]
impl NodeService for NodeReports {
    async fn report_pods(
        &self,
        request: Request<ReportPodsRequest>,
    ) -> Result<Response<ReportPodsResponse>, Status> {
        let answer = self.take(request).await;
        if let Err(status) = &answer {
            let labels = ["reports", &format!("{:?}", status.code())];
            self.meters.counter(&CALLS_REFUSED, labels).increment();
        }
        answer.map(|()| Response::new(ReportPodsResponse {}))
    }
}

impl Stored {
    fn of(report: &ServedPods) -> Self {
        Self {
            node: report.node.to_string(),
            at: report.at,
            pods: report.pods.iter().map(StoredPod::of).collect(),
        }
    }
}

impl StoredPod {
    fn of(pod: &ServedPod) -> Self {
        Self {
            namespace: pod.name.namespace.to_string(),
            name: pod.name.name.to_string(),
            uid: pod.uid.to_string(),
        }
    }
}

fn pods(request: ReportPodsRequest) -> Result<Vec<ServedPod>, &'static str> {
    if request.pods.len() > MAX_PODS {
        return Err("too many pods for one node");
    }
    let mut pods = Vec::with_capacity(request.pods.len());
    for pod in request.pods {
        if !is_label(&pod.namespace) || !is_subdomain(&pod.name) || pod.uid.len() > MAX_UID {
            return Err("a pod's namespace, name or uid is none");
        }
        pods.push(ServedPod {
            name: NamespacedName::new(pod.namespace, pod.name),
            uid: pod.uid.into(),
        });
    }
    pods.sort();
    Ok(pods)
}

fn read(path: &Path) -> Result<ServedPods, ReportsError> {
    let bytes = private_file::read(path)?;
    let stored: Stored =
        serde_json::from_slice(&bytes).map_err(|source| ReportsError::Damaged {
            path: path.to_owned(),
            source,
        })?;
    let pods = stored.pods.into_iter().map(|pod| ServedPod {
        name: NamespacedName::new(pod.namespace, pod.name),
        uid: pod.uid.into(),
    });
    Ok(ServedPods {
        node: stored.node.into(),
        at: stored.at,
        pods: pods.collect(),
    })
}

#[cfg(test)]
mod tests;
