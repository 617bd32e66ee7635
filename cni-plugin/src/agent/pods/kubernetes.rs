//! The Kubernetes source of pods: watches of this node's Pods and of all Namespaces.
//!
//! Only this node's pods are sent to us (field selector), of namespaces only their metadata, in pages; what is kept of them is
//! in `cluster.rs`. While the API server is away or refuses, everything stays as it was said last, and the log says so once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::enrollment::Enrollment;
use ambit_core::names::{NamespacedName, PodUid, Text};
use ambit_net::backoff::Backoff;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::{info, warn};

use super::NodePods;
use super::cluster::{Cluster, KnownPod, Settings};
use super::shelf::{Said, Version};
use crate::agent::api;
use crate::agent::events::{Events, Notice};
use crate::with_causes;

/// Objects in one answer of the API server: what bounds the memory that a first list takes.
const PAGE: u32 = 100;
/// First and longest wait before a watch that failed is begun anew.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// A stream of what a watch says.
type Watch<T> = BoxStream<'static, Result<Event<T>, watcher::Error>>;

/// What the source needs.
pub struct Means {
    /// Speaks to the API server.
    pub client: Client,
    /// This node.
    pub node: Text,
    /// Namespaces that never join.
    pub excluded: Arc<BTreeSet<Text>>,
    /// True while the agent of another ambient mesh is at work on this node.
    pub beside: watch::Receiver<bool>,
    /// Takes what owners of pods should know.
    pub events: Events,
}

impl fmt::Debug for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Means")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// The watches and what they have said.
pub struct Kubernetes {
    cluster: Cluster,
    pods: Watch<Pod>,
    namespaces: Watch<PartialObjectMeta<Namespace>>,
    beside: watch::Receiver<bool>,
    events: Events,
    /// Something is known that has not been returned.
    news: bool,
    told: BTreeMap<PodUid, (NamespacedName, Enrollment)>,
    troubles: [Option<String>; 2],
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubernetes")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// The two watches, for what is said about their failures.
#[derive(Clone, Copy)]
enum Kind {
    Pods,
    Namespaces,
}

impl Kubernetes {
    /// Watches nothing yet: the first [`next`](Self::next) begins.
    pub fn new(means: Means) -> Self {
        let config = || watcher::Config::default().page_size(PAGE);
        let ours = config().fields(&format!("spec.nodeName={}", means.node));
        let pods = watcher(Api::<Pod>::all(means.client.clone()), ours);
        let namespaces = watcher(
            Api::<PartialObjectMeta<Namespace>>::all(means.client),
            config(),
        );
        Self {
            cluster: Cluster::new(means.excluded),
            pods: pods.backoff(Waits::new()).boxed(),
            namespaces: namespaces.backoff(Waits::new()).boxed(),
            beside: means.beside,
            events: means.events,
            news: false,
            told: BTreeMap::new(),
            troubles: [None, None],
        }
    }

    /// Waits for the next state.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> NodePods {
        loop {
            if self.cluster.is_heard() && mem::take(&mut self.news) {
                return self.state();
            }
            tokio::select! {
                Some(event) = self.pods.next() => self.hear_of_pods(event),
                Some(event) = self.namespaces.next() => self.hear_of_namespaces(event),
                Ok(()) = self.beside.changed() => {
                    let beside = *self.beside.borrow();
                    info!(beside, "another ambient mesh's agent on this node: pods that ask by Istio's label are its own");
                    self.news = true;
                }
            }
        }
    }

    /// The state now, if all has been heard once.
    pub fn now(&mut self) -> Option<NodePods> {
        self.cluster.is_heard().then(|| self.state())
    }

    /// Takes a pod and its namespace as they were read just now; tells whether the pod belongs to the mesh, as far as anybody
    /// knows. Nothing if it was deleted since.
    pub fn learn(&mut self, read: &Read) -> Option<(KnownPod, Enrollment)> {
        self.cluster.learn(&read.pod, &read.namespace);
        self.news = true;
        let known = self.cluster.pod(&read.pod.1.pod.uid)?;
        let enrollment = self.cluster.enrollment(known, *self.beside.borrow())?;
        Some((known.clone(), enrollment))
    }

    fn state(&mut self) -> NodePods {
        let beside = *self.beside.borrow_and_update();
        let alone = self.cluster.left_alone(beside);
        for (uid, (name, why)) in &alone {
            if self.told.get(uid).is_none_or(|(_, before)| before != why) {
                self.tell(uid, name, *why);
            }
        }
        self.told = alone;
        self.cluster.node_pods(beside)
    }

    fn tell(&self, uid: &PodUid, name: &NamespacedName, why: Enrollment) {
        info!(pod = %name, why = why.why(), "the pod asks for the mesh and is left alone");
        self.events.tell(Notice {
            uid: uid.clone(),
            name: name.clone(),
            reason: "NotCaptured",
            note: format!("The mesh leaves this pod alone: {why}."),
        });
    }

    fn hear_of_pods(&mut self, event: Result<Event<Pod>, watcher::Error>) {
        let Some(event) = self.checked(Kind::Pods, event) else {
            return;
        };
        let said = said(event, |pod| {
            let known = KnownPod::of(pod)?;
            Some((known.pod.uid.clone(), known))
        });
        if let Some(said) = said {
            self.news |= self.cluster.hear_of_pods(said);
        }
    }

    fn hear_of_namespaces(
        &mut self,
        event: Result<Event<PartialObjectMeta<Namespace>>, watcher::Error>,
    ) {
        let Some(event) = self.checked(Kind::Namespaces, event) else {
            return;
        };
        let said = said(event, |namespace| {
            let name = namespace.metadata.name.as_deref()?;
            Some((name.into(), Settings::of(&namespace.metadata)))
        });
        if let Some(said) = said {
            self.news |= self.cluster.hear_of_namespaces(said);
        }
    }

    /// The event, or nothing and a line in the log if the watch has failed in a way that it had not before.
    fn checked<T>(
        &mut self,
        kind: Kind,
        event: Result<Event<T>, watcher::Error>,
    ) -> Option<Event<T>> {
        let [pods, namespaces] = &mut self.troubles;
        let (trouble, what) = match kind {
            Kind::Pods => (pods, "watch the pods of this node"),
            Kind::Namespaces => (namespaces, "watch namespaces"),
        };
        match event {
            Ok(event) => {
                if trouble.take().is_some() {
                    info!(what, "the API server answers again");
                }
                Some(event)
            }
            Err(error) => {
                let why = explain(what, &error)?;
                if trouble.as_ref() != Some(&why) {
                    warn!(
                        error = why,
                        "captured pods stay captured, no others join or leave"
                    );
                    *trouble = Some(why);
                }
                None
            }
        }
    }
}

/// A pod and its namespace, as they were read.
#[derive(Clone, Debug)]
pub struct Read {
    /// The pod.
    pub pod: (Version, KnownPod),
    /// Its namespace.
    pub namespace: (Version, Settings),
}

/// An object's version.
pub fn version<T: kube::ResourceExt>(object: &T) -> Version {
    object.resource_version()?.parse().ok()
}

/// What an event says, in few words; nothing where the object is none that we know.
fn said<T: kube::ResourceExt, K, V>(
    event: Event<T>,
    taken: impl Fn(&T) -> Option<(K, V)>,
) -> Option<Said<K, V>> {
    Some(match event {
        Event::Init => Said::Begin,
        Event::InitDone => Said::Complete,
        Event::InitApply(object) => {
            let (key, value) = taken(&object)?;
            Said::Listed(key, version(&object), value)
        }
        Event::Apply(object) => {
            let (key, value) = taken(&object)?;
            Said::Is(key, version(&object), value)
        }
        Event::Delete(object) => Said::Gone(taken(&object)?.0, version(&object)),
    })
}

/// Why a watch failed and what is to be done; nothing for what is part of a watch's life.
fn explain(what: &str, error: &watcher::Error) -> Option<String> {
    use watcher::Error::{
        InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed,
    };
    match error {
        InitialListFailed(error) | WatchStartFailed(error) => Some(api::explain(what, error)),
        // The version from which we watched is too old: everything is listed anew.
        WatchError(status) if status.code == 410 => None,
        WatchError(status) => Some(api::refusal(what, status.code, &status.message)),
        // The stream ended; if the API server is away, beginning anew says so.
        WatchFailed(_) => None,
        NoResourceVersion => Some(with_causes(error)),
    }
}

/// Waits between attempts; so many nodes begin anew after an outage of the API server that they should not do so at once.
struct Waits(Backoff);

impl Waits {
    fn new() -> Self {
        Self(Backoff::new(RETRY_WAITS.0, RETRY_WAITS.1, random))
    }
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next()
    }
}

impl kube::runtime::utils::Backoff for Waits {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// An evenly spread number from the standard library's own seeds.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(())
}
