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
    /// It is captured, and the mesh does not know: others speak plain TCP to it. Why.
    Unannounced(Text),
    /// Its rules are there and ztunnel serves it.
    Captured,
    /// It leaves: new connections pass, captured ones go on until they end.
    Leaving,
}

impl Stand {
    /// All words for states.
    pub const WORDS: [&'static str; 5] = ["waiting", "held", "unannounced", "captured", "leaving"];

    /// The word for it in logs and metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Waiting(_) => "waiting",
            Self::Held(_) => "held",
            Self::Unannounced(_) => "unannounced",
            Self::Captured => "captured",
            Self::Leaving => "leaving",
        }
    }

    /// Why, where there is something to say.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Waiting(why) | Self::Held(why) | Self::Unannounced(why) => Some(why),
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

/// All pods that the agent deals with.
pub type Pods = BTreeMap<PodUid, PodReport>;

/// Takes what the pod tasks say. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pods: Arc<watch::Sender<Pods>>,
}

impl Report {
    /// Notes where a pod stands; logs it when that is news.
    pub fn note(&self, uid: &PodUid, name: &NamespacedName, stand: Stand) {
        let fresh = PodReport {
            name: name.clone(),
            stand,
        };
        let news = self.pods.send_if_modified(|pods| {
            let news = pods.get(uid) != Some(&fresh);
            if news {
                pods.insert(uid.clone(), fresh.clone());
            }
            news
        });
        if !news {
            return;
        }
        let (pod, state) = (name.to_string(), fresh.stand.word());
        match fresh.stand {
            Stand::Waiting(why) | Stand::Held(why) => {
                warn!(pod, state, %why, "the pod is not captured");
            }
            Stand::Unannounced(why) => {
                warn!(pod, state, %why, "the pod is captured and the mesh does not know");
            }
            Stand::Captured => info!(pod, state, "the pod is captured"),
            Stand::Leaving => info!(pod, state, "the pod leaves the mesh"),
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
    pub fn watch(&self) -> watch::Receiver<Pods> {
        self.pods.subscribe()
    }
}
