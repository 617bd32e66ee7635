//! Tells the controller which pods of this node are truly served, so that only those are announced as HBONE.
//!
//! Started by ztunnel's app beside the xDS client. Sends the whole set: on every change after the node agent's first
//! snapshot, and again every 30 s, so that a controller that lost it has it back. Knows nothing of how pods are served.

use std::sync::Arc;
use std::time::Duration;

use ambit_core::names::{NamespacedName, PodUid, Text};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::grpc::{Dialer, LinkError, explain};
use crate::proto::node::node_service_client::NodeServiceClient;
use crate::proto::node::{ReportPodsRequest, ServedPod as PodMessage};
use crate::tasks::Stop;

/// Time after which an unchanged set is told again.
const REPEAT: Duration = Duration::from_secs(30);
/// Longest wait for the controller's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// First wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// A pod whose connections this node's ztunnel carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedPod {
    /// The pod's name.
    pub name: NamespacedName,
    /// Tells it from its successor of the same name.
    pub uid: PodUid,
}

/// The set of served pods; none until the node agent has sent its first snapshot.
pub type ServedPods = Option<Vec<ServedPod>>;

/// Why a report did not arrive.
#[derive(Debug, Error)]
enum ReportError {
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("{}", explain(.0))]
    Refused(#[from] Status),
    #[error("the controller did not answer within {ANSWER_TIMEOUT:?}")]
    Deadline,
}

/// Reports the served pods of `node` until `stop`, or until nobody can change the set any more.
///
/// # Cancel safety
/// Dropping it is the same as `stop`; the last report stands.
pub async fn run(dialer: Arc<Dialer>, node: Text, pods: watch::Receiver<ServedPods>, stop: Stop) {
    let send = |pods| report(Arc::clone(&dialer), node.to_string(), pods);
    tokio::select! {
        () = keep_reporting(pods, send) => {}
        () = stop.stopped() => {}
    }
}

async fn keep_reporting<Sent>(
    mut pods: watch::Receiver<ServedPods>,
    send: impl Fn(Vec<ServedPod>) -> Sent,
) where
    Sent: Future<Output = Result<(), ReportError>>,
{
    if pods.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT, || fastrand::u64(..));
    loop {
        let served = pods.borrow_and_update().clone().unwrap_or_default();
        let count = served.len();
        match send(served).await {
            Ok(()) => {
                debug!(pods = count, "served pods reported");
                backoff.reset();
                // Either is a cause to report; only the owner's end is one to stop.
                if let Ok(Err(_owner_gone)) = timeout(REPEAT, pods.changed()).await {
                    return;
                }
            }
            Err(error) => {
                let wait = backoff.next_wait();
                warn!(
                    pods = count,
                    %error,
                    wait_ms = wait.as_millis(),
                    "served pods not reported; new pods are not announced until it succeeds"
                );
                sleep(wait).await;
            }
        }
    }
}

async fn report(
    dialer: Arc<Dialer>,
    node: String,
    pods: Vec<ServedPod>,
) -> Result<(), ReportError> {
    let message = |pod: &ServedPod| PodMessage {
        namespace: pod.name.namespace.to_string(),
        name: pod.name.name.to_string(),
        uid: pod.uid.to_string(),
    };
    let pods = pods.iter().map(message).collect();
    let mut service = NodeServiceClient::new(dialer.link().await?);
    timeout(
        ANSWER_TIMEOUT,
        service.report_pods(ReportPodsRequest { node, pods }),
    )
    .await
    .map_err(|_late| ReportError::Deadline)??;
    Ok(())
}

#[cfg(test)]
mod tests;
