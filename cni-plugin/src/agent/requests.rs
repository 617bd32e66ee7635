//! Answers the CNI plugin: a sandbox starts only after its pod is captured, or is known not to belong to the mesh.
//!
//! Called for each request that comes over the plugin's socket (`socket.rs`), in a task of its own. Reads pod and namespace
//! anew each time; capturing is done by the pod's task, to which `agent.rs` brings it. Whatever fails fails the request: kubelet
//! makes another sandbox and asks again.

use std::fmt::Display;
use std::time::Duration;

use ambit_core::names::PodUid;
use ambit_core::names::Text;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, Client};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::api::{explain, status_code};
use super::orders::{Admission, Admitted, Order, Outcome, Settled};
use super::pods::cluster::{KnownPod, Settings};
use super::pods::kubernetes::{Read, version};
use super::report::{Report, Stand};
use crate::socket::{Answer, Command, Request};
use crate::spec::{Code, Failure};

/// How old what is known of a pod may be: reading it takes no longer.
const READ_DEADLINE: Duration = Duration::from_secs(2);
/// How long capturing may take: five seconds for ztunnel, two for the announcement.
const CAPTURE_DEADLINE: Duration = Duration::from_secs(8);
/// How long undoing may take before the plugin is answered; it goes on afterwards.
const UNDO_DEADLINE: Duration = Duration::from_secs(2);

/// Answers requests. Cheap to clone.
#[derive(Clone)]
pub struct Requests {
    client: Client,
    node: Text,
    orders: mpsc::Sender<Order>,
    report: Report,
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// The pod that a request is about, for messages.
struct Asked<'a> {
    request: &'a Request,
}

impl Display for Asked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}/{}",
            self.request.pod_namespace, self.request.pod_name
        )
    }
}

impl Requests {
    /// Answers for the agent of `node`, which takes `orders` and reports there.
    pub fn new(client: Client, node: Text, orders: mpsc::Sender<Order>, report: Report) -> Self {
        Self {
            client,
            node,
            orders,
            report,
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// What the runtime is to be told: the pod does not start, and another sandbox will be made.
    pub async fn answer(self, request: Request) -> Answer {
        let answer = match request.command {
            Command::Add => self.add(&request).await,
            Command::Check => self.check(&request).await,
            // The pod's task sees its namespace go, and what goes with it needs no leave.
            Command::Del => Ok(()),
        };
        if let Err(failure) = &answer {
            let pod = Asked { request: &request };
            warn!(%pod, command = ?request.command, sandbox = request.container_id, error = %failure, "a CNI request fails");
        }
        answer
    }

    /// Conductor: read pod and namespace, have the pod captured, wait for it; undo it when it fails.
    async fn add(&self, request: &Request) -> Answer {
        let Some(netns) = request.netns.clone() else {
            return Err(invalid("ADD comes without a network namespace (CNI_NETNS)"));
        };
        let read = self.read(request).await?;
        let uid = read.pod.1.pod.uid.clone();
        let admission = Admission {
            read,
            netns,
            addresses: request.addresses.clone(),
        };
        let (attempt, mut settled) = match self.admit(admission).await? {
            Admitted::Outside(why) => {
                debug!(pod = %Asked { request }, why = why.why(), "a pod outside the mesh starts");
                return Ok(());
            }
            Admitted::Unclear(cause) => return Err(not_captured(cause)),
            Admitted::Deleted => return Err(later("the pod has been deleted meanwhile")),
            Admitted::Underway(attempt, settled) => (attempt, settled),
        };
        let failed = match timeout(CAPTURE_DEADLINE, conclusion(&mut settled, attempt)).await {
            Ok(Outcome::Captured) => return Ok(()),
            Ok(Outcome::Failed(why)) => why,
            Ok(Outcome::Underway | Outcome::Undone) => "the agent stops".to_owned(),
            Err(_elapsed) => format!("it took more than {} s", CAPTURE_DEADLINE.as_secs()),
        };
        self.undo(&uid, attempt, &mut settled).await;
        Err(not_captured(failed))
    }

    /// Whether the pod is as ADD has left it.
    async fn check(&self, request: &Request) -> Answer {
        let read = self.read(request).await?;
        let uid = &read.pod.1.pod.uid;
        let stand = self
            .report
            .watch()
            .borrow()
            .get(uid)
            .map(|pod| pod.stand.clone());
        match stand {
            // Not in the mesh, as far as the agent knows.
            None | Some(Stand::Captured | Stand::Leaving) => Ok(()),
            Some(other) => Err(not_captured(other.to_string())),
        }
    }

    async fn read(&self, request: &Request) -> Result<Read, Failure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &request.pod_namespace);
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let both = async {
            tokio::join!(
                pods.get(&request.pod_name),
                namespaces.get_metadata(&request.pod_namespace)
            )
        };
        let Ok((pod, namespace)) = timeout(READ_DEADLINE, both).await else {
            return Err(later(format!(
                "the API server has not told within {} s whether the pod belongs to the mesh; \
                 no pod starts unmeshed by accident, so this one waits until it answers",
                READ_DEADLINE.as_secs()
            )));
        };
        let pod = pod.map_err(|error| unread("read the pod", &error))?;
        let namespace = namespace.map_err(|error| unread("read the pod's namespace", &error))?;
        let known = KnownPod::of(&pod).ok_or_else(|| invalid("the API server's pod has no uid"))?;
        self.is_the_one(request, &known)?;
        Ok(Read {
            pod: (version(&pod), known),
            namespace: (version(&namespace), Settings::of(&namespace.metadata)),
        })
    }

    /// Refuses a pod of the right name that is another one, or another node's.
    fn is_the_one(&self, request: &Request, pod: &KnownPod) -> Result<(), Failure> {
        let said = request.pod_uid.as_deref().filter(|uid| !uid.is_empty());
        let same =
            |uid: &str| uid == pod.pod.uid.as_str() || Some(uid) == pod.static_uid.as_deref();
        if said.is_some_and(|uid| !same(uid)) {
            return Err(later(
                "the pod has been replaced by another one of its name; this sandbox is not needed any more",
            ));
        }
        match pod.node.as_deref() {
            Some(node) if node != &*self.node => Err(not_captured(format!(
                "the pod is on node {node} and this agent thinks that it is on {}; set AMBIT_NODE_NAME to the node's name",
                self.node
            ))),
            _ => Ok(()),
        }
    }

    async fn admit(&self, admission: Admission) -> Result<Admitted, Failure> {
        let stops = || later("the node agent stops");
        let (answer, admitted) = oneshot::channel();
        let order = Order::Admit(Box::new(admission), answer);
        self.orders.send(order).await.map_err(|_stopped| stops())?;
        admitted.await.map_err(|_stopped| stops())
    }

    async fn undo(&self, uid: &PodUid, attempt: u64, settled: &mut watch::Receiver<Settled>) {
        let order = Order::Undo(uid.clone(), attempt);
        if self.orders.send(order).await.is_err() {
            return;
        }
        let undone =
            settled.wait_for(|now| now.attempt != attempt || now.outcome == Outcome::Undone);
        match timeout(UNDO_DEADLINE, undone).await {
            Ok(_undone) => info!(pod = %uid, "what was begun for a CNI request is undone"),
            Err(_elapsed) => warn!(pod = %uid, "undoing a CNI request takes long; it goes on"),
        }
    }
}

/// Waits for what becomes of a request.
async fn conclusion(settled: &mut watch::Receiver<Settled>, attempt: u64) -> Outcome {
    let over = |now: &Settled| now.attempt == attempt && now.outcome != Outcome::Underway;
    match settled.wait_for(over).await {
        Ok(now) => now.outcome.clone(),
        Err(_task_ended) => Outcome::Underway,
    }
}

/// Pod or namespace could not be read.
fn unread(what: &str, error: &kube::Error) -> Failure {
    match status_code(error) {
        Some(404) => later(format!(
            "cannot {what}: there is none of this name any more; this sandbox is not needed any more"
        )),
        _ => later(explain(what, error)),
    }
}

fn later(why: impl Into<String>) -> Failure {
    Failure::new(Code::TryAgainLater, "the pod cannot start yet", why)
}

fn not_captured(why: impl Display) -> Failure {
    Failure::new(
        Code::NotCaptured,
        "the pod belongs to the mesh and cannot be captured",
        why.to_string(),
    )
}

fn invalid(why: &str) -> Failure {
    Failure::new(Code::Environment, "the request cannot be understood", why)
}
