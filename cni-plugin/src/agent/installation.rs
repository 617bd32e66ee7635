//! Whether this agent is only stopped, or the mesh is taken off the cluster: its own DaemonSet says so.
//!
//! Asked by `app.rs`. A pod that is replaced leaves everything as it is, one whose DaemonSet is deleted cleans up after itself.
//! When in doubt nothing is undone: a captured pod without a mesh refuses connections, one that was released by mistake
//! would speak plain text. Knows nothing of what cleaning up is.

use std::fmt::{self, Debug};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ambit_net::backoff::Backoff;
use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::api::{explain, status_code};

/// How long the API server may take when the agent is to stop.
const DEADLINE: Duration = Duration::from_secs(2);
/// First and longest wait before a watch that failed is begun anew. No jitter: few watches fail at once for one object.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Finalizer of an object whose dependants are to stay when it goes (`kubectl delete --cascade=orphan`).
const ORPHAN: &str = "orphan";

/// The DaemonSet that this agent is part of.
#[derive(Clone)]
pub struct Installation {
    client: Client,
    namespace: String,
    name: String,
    /// It has been there since the agent was started: another name in the settings must not undo everything.
    seen: Arc<AtomicBool>,
}

impl fmt::Debug for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Installation({}/{})", self.namespace, self.name)
    }
}

/// What is known of the DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It has not been seen yet.
    Nothing,
    /// It is there.
    There,
    /// It goes, and its pods stay.
    Orphaning,
    /// It goes, or has gone, and its pods with it.
    Removed,
}

impl Installation {
    /// The DaemonSet of this name.
    pub fn new(client: Client, namespace: String, name: String) -> Self {
        Self {
            client,
            namespace,
            name,
            seen: Arc::default(),
        }
    }

    /// Waits until the DaemonSet is deleted, or its namespace, which is told first. A watch that is open goes on when the agent's
    /// rights are deleted as well, which is why it is not enough to ask when the agent is told to stop.
    ///
    /// # Cancel safety
    /// Cancel safe: a later call begins anew.
    pub async fn removed(&self) {
        let client = || self.client.clone();
        let namespace = Api::<PartialObjectMeta<Namespace>>::all(client());
        let daemon_set = Api::<PartialObjectMeta<DaemonSet>>::namespaced(client(), &self.namespace);
        tokio::select! {
            () = until_deleted(namespace, &self.namespace, || ()) => {}
            () = until_deleted(daemon_set, &self.name, || self.seen.store(true, Ordering::Relaxed)) => {}
        }
        info!(daemonset = ?self, "the mesh is taken off this cluster");
    }

    /// Whether the DaemonSet or its namespace is gone or going, now that the agent is to stop; nothing if nobody can tell.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn is_removed(&self) -> Option<bool> {
        let client = || self.client.clone();
        let daemon_sets = Api::<DaemonSet>::namespaced(client(), &self.namespace);
        let namespaces = Api::<Namespace>::all(client());
        // Its namespace ends a pod as well, maybe before its DaemonSet.
        let both = async {
            tokio::join!(
                daemon_sets.get_metadata(&self.name),
                namespaces.get_metadata(&self.namespace)
            )
        };
        let Ok((daemon_set, namespace)) = timeout(DEADLINE, both).await else {
            warn!(daemonset = ?self, "the API server does not say in time whether the mesh is uninstalled");
            return None;
        };
        let goes = |metadata: &ObjectMeta| seen(Known::There, metadata) == Known::Removed;
        if namespace.is_ok_and(|found| goes(&found.metadata)) {
            return Some(true);
        }
        match daemon_set {
            Ok(found) => Some(goes(&found.metadata)),
            Err(error) if status_code(&error) == Some(404) => {
                Some(self.seen.load(Ordering::Relaxed))
            }
            // Also a refusal is doubt: rights and tokens are lost in other ways as well.
            Err(error) => {
                let error = explain("read the agent's own DaemonSet", &error);
                warn!(daemonset = ?self, error, "cannot tell whether the mesh is uninstalled");
                None
            }
        }
    }
}

/// Waits until an object that has been there is deleted, with all that depends on it; `there` is called whenever it is seen.
async fn until_deleted<K>(api: Api<PartialObjectMeta<K>>, name: &str, there: impl Fn())
where
    PartialObjectMeta<K>:
        Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut said = watcher(api, only).boxed();
    let mut waits = Backoff::new(RETRY_WAITS.0, RETRY_WAITS.1, || 0);
    let (mut known, mut listed) = (Known::Nothing, false);
    while known != Known::Removed {
        match said.next().await {
            Some(Ok(event)) => {
                waits.reset();
                known = next(known, &mut listed, &event);
                if known == Known::There {
                    there();
                }
            }
            // Without the right to watch, asking at the end is what remains.
            Some(Err(_)) => sleep(waits.next_wait()).await,
            None => pending().await,
        }
    }
}

/// What is known after an event. `listed` is whether a list that is under way has named the DaemonSet.
fn next<K>(known: Known, listed: &mut bool, event: &Event<PartialObjectMeta<K>>) -> Known {
    match event {
        Event::Init => {
            *listed = false;
            known
        }
        Event::InitApply(found) => {
            *listed = true;
            seen(known, &found.metadata)
        }
        Event::Apply(found) => seen(known, &found.metadata),
        // It went while nobody watched.
        Event::InitDone if !*listed => gone(known),
        Event::InitDone => known,
        Event::Delete(_) => gone(known),
    }
}

fn seen(known: Known, metadata: &ObjectMeta) -> Known {
    let mut finalizers = metadata.finalizers.iter().flatten();
    match metadata.deletion_timestamp {
        None => Known::There,
        // The finalizer is taken off before the object goes.
        Some(_) if known == Known::Orphaning || finalizers.any(|name| name == ORPHAN) => {
            Known::Orphaning
        }
        Some(_) => Known::Removed,
    }
}

fn gone(known: Known) -> Known {
    match known {
        Known::There | Known::Removed => Known::Removed,
        // An agent that was never part of the DaemonSet does not end with it.
        Known::Nothing => Known::Nothing,
        Known::Orphaning => Known::Orphaning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn object(metadata: Value) -> PartialObjectMeta<DaemonSet> {
        serde_json::from_value(json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata,
        }))
        .unwrap()
    }

    fn there() -> PartialObjectMeta<DaemonSet> {
        object(json!({ "name": "agent" }))
    }

    fn going(finalizers: &[&str]) -> PartialObjectMeta<DaemonSet> {
        object(json!({
            "name": "agent", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers,
        }))
    }

    fn after(events: Vec<Event<PartialObjectMeta<DaemonSet>>>) -> Known {
        let mut listed = false;
        events.iter().fold(Known::Nothing, |known, event| {
            next(known, &mut listed, event)
        })
    }

    fn listed(
        found: Option<PartialObjectMeta<DaemonSet>>,
    ) -> Vec<Event<PartialObjectMeta<DaemonSet>>> {
        let found = found.map(Event::InitApply);
        std::iter::once(Event::Init)
            .chain(found)
            .chain([Event::InitDone])
            .collect()
    }

    #[test]
    fn a_daemon_set_that_is_deleted_is_removed() {
        let with = |event| after([listed(Some(there())), vec![event]].concat());
        assert_eq!(with(Event::Delete(there())), Known::Removed);
        assert_eq!(
            with(Event::Apply(going(&["foregroundDeletion"]))),
            Known::Removed
        );
        assert_eq!(with(Event::Apply(there())), Known::There);
        // It went between two watches.
        assert_eq!(
            after([listed(Some(there())), listed(None)].concat()),
            Known::Removed
        );
        assert_eq!(after(listed(Some(going(&[])))), Known::Removed);
    }

    #[test]
    fn pods_that_stay_when_their_daemon_set_goes_stay_captured() {
        let events = [
            Event::Apply(going(&["orphan"])),
            Event::Apply(going(&[])),
            Event::Delete(going(&[])),
        ];
        assert_eq!(
            after([listed(Some(there())), events.to_vec()].concat()),
            Known::Orphaning
        );
        // Adopted by a new one.
        let adopted = [events.to_vec(), vec![Event::Apply(there())]].concat();
        assert_eq!(after(adopted), Known::There);
    }

    #[test]
    fn an_agent_outside_of_a_daemon_set_never_ends_with_it() {
        assert_eq!(after([listed(None), listed(None)].concat()), Known::Nothing);
        assert_eq!(after(vec![Event::Delete(there())]), Known::Nothing);
    }
}
