//! One kind: listed in pages, then watched from there, and both again whenever that is lost.
//!
//! Run by [`super`] and [`super::policies`]. Remembers the names that it has said, so that a new list tells what is gone;
//! of the objects it keeps nothing.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use ambit_core::names::NamespacedName;
use ambit_net::backoff::Backoff;
use ambit_net::telemetry::with_causes;
use futures_util::StreamExt as _;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::watch::object::{ObjectError, checked_name};
use crate::watch::{Applied, Event, Kind, Object, ObjectKey};

/// Objects of one page. A pod is some 10 kB as JSON and less than half of that as an object.
const PAGE: u32 = 200;
/// Wait for one answer: a page, or the beginning of a watch.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// How long the server keeps one watch, in seconds. Watches that it has not ended a little later are on a dead connection.
const WATCH: u32 = 60;
/// Silence after which a watch is taken to be dead.
const SILENCE: Duration = Duration::from_secs(WATCH as u64 + 5);
/// Waits between attempts: an API server that comes back is found within seconds.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));
/// A watch that lasted as long was no failure.
const GOOD_WATCH: Duration = Duration::from_secs(5);

/// What a follower needs of an object's type.
pub(super) trait Listed:
    Resource + Clone + DeserializeOwned + Debug + Send + 'static
{
}

impl<K: Resource + Clone + DeserializeOwned + Debug + Send + 'static> Listed for K {}

/// What followers say.
pub(super) type Steps = mpsc::Sender<(Kind, Step)>;

/// One thing that a follower says.
#[derive(Debug)]
pub(super) enum Step {
    /// An object has changed.
    Changed(Event),
    /// The kind was read whole; said after its last change.
    Read,
    /// The API server answers.
    Well,
    /// It does not, because of this.
    Trouble(String),
}

/// Why a follower ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The API server does not have the kind.
    Absent,
    /// Nobody listens any more.
    Closed,
}

/// Why list and watch have to begin again.
#[derive(Debug)]
enum Lost {
    /// The server no longer knows where we were.
    Expired,
    /// A watch broke; only if the next attempt fails, something is wrong.
    Broken(String),
    /// The server refuses, or does not answer.
    Failed(String),
    Ended(End),
}

/// Follows one kind.
#[derive(Debug)]
pub(super) struct Follower<K> {
    kind: Kind,
    read: fn(K) -> Result<Object, ObjectError>,
    steps: Steps,
    names: BTreeSet<NamespacedName>,
    /// Where to watch from; none makes a new list.
    version: Option<String>,
    backoff: Backoff,
}

impl<K: Listed> Follower<K> {
    pub(super) fn new(
        kind: Kind,
        read: fn(K) -> Result<Object, ObjectError>,
        steps: Steps,
    ) -> Self {
        let (first, cap) = WAITS;
        Self {
            kind,
            read,
            steps,
            names: BTreeSet::new(),
            version: None,
            backoff: Backoff::new(first, cap, || fastrand::u64(..)),
        }
    }

    /// Lists and watches until the kind is not there, or nobody listens.
    pub(super) async fn run(&mut self, api: &Api<K>) -> End {
        loop {
            let lost = match self.turn(api).await {
                // The server ends every watch after a while.
                Ok(()) => continue,
                Err(lost) => lost,
            };
            debug!(
                kind = self.kind.as_str(),
                ?lost,
                "list and watch begin again"
            );
            match lost {
                Lost::Ended(end) => {
                    self.version = None;
                    return end;
                }
                Lost::Expired => self.version = None,
                Lost::Broken(cause) => debug!(kind = self.kind.as_str(), cause, "a watch broke"),
                Lost::Failed(cause) => {
                    if !self.trouble(cause).await {
                        return End::Closed;
                    }
                }
            }
            self.pause().await;
        }
    }

    /// Says that no object of the kind is there, as it is while the kind itself is not.
    pub(super) async fn clear(&mut self) -> bool {
        self.version = None;
        let known = std::mem::take(&mut self.names);
        for name in known {
            if self.gone(name).await.is_err() {
                return false;
            }
        }
        self.tell(Step::Read).await.is_ok()
    }

    /// Says what is wrong; false when nobody listens.
    pub(super) async fn trouble(&self, cause: String) -> bool {
        self.tell(Step::Trouble(cause)).await.is_ok()
    }

    /// Waits before the next attempt.
    pub(super) async fn pause(&mut self) {
        sleep(self.backoff.next_wait()).await;
    }

    /// One list, unless it is known where to go on, and one watch.
    async fn turn(&mut self, api: &Api<K>) -> Result<(), Lost> {
        let version = match self.version.clone() {
            Some(version) => version,
            None => self.list(api).await?,
        };
        let began = Instant::now();
        let outcome = self.watch(api, &version).await;
        if began.elapsed() >= GOOD_WATCH {
            self.backoff.reset();
        } else if outcome.is_ok() {
            return Err(Lost::Broken("the watch ended at once".to_owned()));
        }
        outcome
    }

    /// Reads the whole kind and says what is no longer in it.
    async fn list(&mut self, api: &Api<K>) -> Result<String, Lost> {
        let mut listed = BTreeSet::new();
        let mut params = ListParams::default().limit(PAGE);
        let version = loop {
            let page = timeout(DEADLINE, api.list(&params)).await;
            let page = page.map_err(|_elapsed| self.late("list"))?;
            let page = page.map_err(|error| self.lost("list", error))?;
            for object in page.items {
                listed.extend(self.apply(object).await?);
            }
            let more = page.metadata.continue_.filter(|token| !token.is_empty());
            if more.is_none() {
                break page.metadata.resource_version.unwrap_or_default();
            }
            params.continue_token = more;
        };
        let gone: Vec<_> = self.names.difference(&listed).cloned().collect();
        for name in gone {
            self.gone(name).await?;
        }
        self.names = listed;
        self.version = Some(version.clone());
        self.tell(Step::Read).await?;
        Ok(version)
    }

    /// Says what changes after `version`, until the server ends the watch.
    async fn watch(&mut self, api: &Api<K>, version: &str) -> Result<(), Lost> {
        let params = WatchParams::default().timeout(WATCH);
        let watching = timeout(DEADLINE, api.watch(&params, version)).await;
        let watching = watching.map_err(|_elapsed| self.late("watch"))?;
        let watching = watching.map_err(|error| self.lost("watch", error))?;
        self.tell(Step::Well).await?;
        let mut watching = pin!(watching);
        loop {
            let silent = |_elapsed| Lost::Broken("the watch fell silent".to_owned());
            let Some(event) = timeout(SILENCE, watching.next()).await.map_err(silent)? else {
                return Ok(());
            };
            let event = event.map_err(|error| Lost::Broken(with_causes(&error)))?;
            self.take(event).await?;
            self.backoff.reset();
        }
    }

    async fn take(&mut self, event: WatchEvent<K>) -> Result<(), Lost> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = object.resource_version();
                self.apply(object).await?;
                self.version = version.or_else(|| self.version.take());
            }
            WatchEvent::Deleted(object) => {
                let version = object.resource_version();
                if let Ok(name) = self.name(&object) {
                    self.gone(name).await?;
                }
                self.version = version.or_else(|| self.version.take());
            }
            WatchEvent::Bookmark(mark) => self.version = Some(mark.metadata.resource_version),
            WatchEvent::Error(status) => return Err(self.refused("watch", &status)),
        }
        Ok(())
    }

    /// Says that an object is there; gives its name, if it has a good one.
    async fn apply(&mut self, mut object: K) -> Result<Option<NamespacedName>, Lost> {
        // Often the larger part of an object, and nothing to us.
        object.meta_mut().managed_fields = None;
        let name = match self.name(&object) {
            Ok(name) => name,
            Err(error) => {
                warn!(kind = self.kind.as_str(), name = object.name_any(), %error, "an object is refused");
                return Ok(None);
            }
        };
        let object = match (self.read)(object) {
            Ok(object) => Box::new(object),
            Err(error) => {
                warn!(kind = self.kind.as_str(), %name, %error, "an object is refused");
                self.gone(name).await?;
                return Ok(None);
            }
        };
        self.names.insert(name.clone());
        let key = self.key(name.clone());
        let origin = None;
        let applied = Event::Applied(Applied {
            key,
            origin,
            object,
        });
        self.tell(Step::Changed(applied)).await?;
        Ok(Some(name))
    }

    /// Says that an object is gone, if it was said to be there.
    async fn gone(&mut self, name: NamespacedName) -> Result<(), Lost> {
        self.names.remove(&name);
        let key = self.key(name);
        self.tell(Step::Changed(Event::Deleted(key))).await
    }

    fn key(&self, name: NamespacedName) -> ObjectKey {
        let kind = self.kind;
        ObjectKey { kind, name }
    }

    fn name(&self, object: &K) -> Result<NamespacedName, ObjectError> {
        let meta = object.meta();
        checked_name(self.kind, meta.namespace.as_deref(), meta.name.as_deref())
    }

    async fn tell(&self, step: Step) -> Result<(), Lost> {
        let told = self.steps.send((self.kind, step)).await;
        told.map_err(|_gone| Lost::Ended(End::Closed))
    }

    fn late(&self, verb: &str) -> Lost {
        let seconds = DEADLINE.as_secs();
        Lost::Failed(format!(
            "no answer to {verb} within {seconds} s; is the API server overloaded or cut off?"
        ))
    }

    fn lost(&self, verb: &str, error: kube::Error) -> Lost {
        match error {
            kube::Error::Api(status) => self.refused(verb, &status),
            error => Lost::Failed(with_causes(&error)),
        }
    }

    fn refused(&self, verb: &str, status: &Status) -> Lost {
        let (said, resource) = (&status.message, self.kind.resource());
        match status.code {
            404 => Lost::Ended(End::Absent),
            410 => Lost::Expired,
            401 => Lost::Failed(format!(
                "the API server does not accept our token: {said}; is the ServiceAccount still there?"
            )),
            403 => Lost::Failed(format!(
                "this ServiceAccount may not {verb} {resource}; its ClusterRole needs list and watch of them (deploy/ has it): {said}"
            )),
            code => Lost::Failed(format!("the API server answers {code}: {said}")),
        }
    }
}
