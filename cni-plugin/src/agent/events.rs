//! Kubernetes events on pods, for their owners: what an agent's log alone would hide from them.
//!
//! [`Events::tell`] never waits; one task publishes. An event that cannot be published is logged and dropped: it is a courtesy.
//! Knows nothing of why something is told.

use std::time::Duration;

use ambit_core::names::{NamespacedName, PodUid};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use super::api::explain;

/// Events that may wait to be published; a node has some hundred pods. Those beyond are dropped.
const MOST_WAITING: usize = 256;
/// How long publishing one may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Who tells, as events name it.
const REPORTER: &str = "ambit.mesh/cni-agent";

/// Something to be told about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The pod's uid.
    pub uid: PodUid,
    /// The pod's name.
    pub name: NamespacedName,
    /// One word in capitals inside, such as `NotCaptured`.
    pub reason: &'static str,
    /// The sentence.
    pub note: String,
}

/// Takes notices. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    notices: mpsc::Sender<Notice>,
}

/// Publishes them. Run it as a task.
#[derive(Debug)]
pub struct Publisher {
    notices: mpsc::Receiver<Notice>,
}

/// A way for notices, and the one who publishes what comes in.
pub fn channel() -> (Events, Publisher) {
    let (sender, notices) = mpsc::channel(MOST_WAITING);
    (Events { notices: sender }, Publisher { notices })
}

impl Events {
    /// Tells something about a pod.
    pub fn tell(&self, notice: Notice) {
        if let Err(dropped) = self.notices.try_send(notice) {
            let notice = dropped.into_inner();
            warn!(pod = %notice.name, reason = notice.reason, note = notice.note, "an event is not published: too many wait");
        }
    }
}

impl Publisher {
    /// Publishes in the name of the agent of `node` until nobody can tell any more.
    pub async fn run(mut self, client: Client, node: String) {
        let reporter = Reporter {
            controller: REPORTER.to_owned(),
            instance: Some(node),
        };
        let recorder = Recorder::new(client, reporter);
        while let Some(notice) = self.notices.recv().await {
            let event = Event {
                type_: EventType::Warning,
                reason: notice.reason.to_owned(),
                note: Some(notice.note),
                action: "Capturing".to_owned(),
                secondary: None,
            };
            let pod = reference(&notice.uid, &notice.name);
            let error = match timeout(DEADLINE, recorder.publish(&event, &pod)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => explain("publish an event", &error),
                Err(_elapsed) => "the API server has not answered in time".to_owned(),
            };
            warn!(pod = %notice.name, error, "an event is lost");
        }
    }
}

fn reference(uid: &PodUid, name: &NamespacedName) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        uid: Some(uid.to_string()),
        ..ObjectReference::default()
    }
}
