//! What is true of each pod's capture, for logs, metrics and whoever asks the agent.
//!
//! Written by the pod tasks; a change is logged here, once. Knows nothing of how a state came about.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ambit_core::names::{NamespacedName, PodUid, Text};
use tokio::sync::watch;
use tracing::{info, warn};

/// Where a pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Its TCP does not go through ztunnel yet; why.
    Waiting(Text),
    /// Its rules are there, ztunnel does not serve it yet: new connections are refused. Why.
    Held(Text),
    /// Its rules are there and ztunnel serves it.
    Captured,
    /// It leaves: new connections pass, captured ones go on until they end.
    Leaving,
}

impl Stand {
    /// The word for it in logs and metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Waiting(_) => "waiting",
            Self::Held(_) => "held",
            Self::Captured => "captured",
            Self::Leaving => "leaving",
        }
    }

    /// Why, where there is something to say.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Waiting(why) | Self::Held(why) => Some(why),
            Self::Captured | Self::Leaving => None,
        }
    }
}

impl fmt::Display for Stand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why() {
            Some(why) => write!(f, "{}: {why}", self.word()),
            None => f.write_str(self.word()),
        }
    }
}

/// A pod and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReport {
    /// The pod's name.
    pub name: NamespacedName,
    /// Where it stands.
    pub stand: Stand,
}

/// All pods that the agent deals with. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pods: Arc<watch::Sender<BTreeMap<PodUid, PodReport>>>,
}

impl Report {
    /// Notes where a pod stands.
    pub fn note(&self, uid: &PodUid, name: &NamespacedName, stand: Stand) {
        let (name, now) = (name.clone(), stand.clone());
        let changed = self.pods.send_if_modified(|pods| {
            let fresh = PodReport { name, stand };
            let same = pods.get(uid) == Some(&fresh);
            if !same {
                pods.insert(uid.clone(), fresh);
            }
            !same
        });
        if !changed {
            return;
        }
        let pod = self.pods.borrow().get(uid).map(|pod| pod.name.to_string());
        match &now {
            Stand::Waiting(why) | Stand::Held(why) => {
                warn!(pod, state = now.word(), %why, "the pod is not captured");
            }
            Stand::Captured => info!(pod, state = now.word(), "the pod is captured"),
            Stand::Leaving => info!(pod, state = now.word(), "the pod leaves the mesh"),
        }
    }

    /// Notes that a pod is none of the mesh any more.
    pub fn strike(&self, uid: &PodUid) {
        self.pods.send_if_modified(|pods| match pods.remove(uid) {
            Some(pod) => {
                info!(pod = %pod.name, "the pod has left the mesh");
                true
            }
            None => false,
        });
    }

    /// The pods now, and every change.
    pub fn watch(&self) -> watch::Receiver<BTreeMap<PodUid, PodReport>> {
        self.pods.subscribe()
    }
}
