//! Speaking to the Kubernetes API server: every call has a deadline, every watch goes on until nobody listens.
//!
//! Called by whoever reads or writes single objects: the root's Secret, the Lease, ConfigMaps and conditions. What feeds
//! the index has a reader of its own ([`crate::watch`]). Knows no kind of object.

use std::fmt::{self, Debug, Formatter};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use ambit_net::backoff::Backoff;
use ambit_net::telemetry::with_causes;
use futures_util::{Stream, StreamExt as _};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

/// Longest wait for one answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the server keeps one watch, in seconds.
const WATCH: u32 = 60;
/// Silence after which a watch is taken to be on a dead connection: the server should have ended it.
const SILENCE: Duration = Duration::from_secs(WATCH as u64 + 10);
/// Objects of one page of a list.
const PAGE: u32 = 200;

/// Why a call has no good answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// There was no answer in time.
    #[error("the API server did not answer within {} s", DEADLINE.as_secs())]
    Late,
    /// It may not be done.
    #[error("the API server does not allow it: {0}; are the roles of the installation in place?")]
    Forbidden(String),
    /// The server answered that it cannot be done.
    #[error("the API server refuses: {0}")]
    Refused(String),
    /// Somebody else has written in between, or was first.
    #[error("somebody else has written it: {0}")]
    Conflict(String),
    /// The object, or what it would be in, is not there.
    #[error("it is not there: {0}")]
    NotFound(String),
    /// The server cannot be reached, or what it says is not understood.
    #[error("the API server cannot be asked: {0}")]
    Unreachable(#[source] Box<kube::Error>),
}

impl From<kube::Error> for AskError {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            return Self::Unreachable(Box::new(error));
        };
        let message = status.message;
        match status.code {
            403 => Self::Forbidden(message),
            404 => Self::NotFound(message),
            409 => Self::Conflict(message),
            code => Self::Refused(format!("{message} ({code})")),
        }
    }
}

/// Awaits one call for at most ten seconds.
///
/// # Errors
/// What the server said, or that it said nothing.
pub async fn ask<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, AskError> {
    let answer = timeout(DEADLINE, call).await;
    Ok(answer.map_err(|_elapsed| AskError::Late)??)
}

/// Waits between attempts of the same call: an API server that comes back is found within seconds.
pub fn waits() -> Backoff {
    let (first, cap) = (Duration::from_millis(200), Duration::from_secs(5));
    Backoff::new(first, cap, || fastrand::u64(..))
}

/// What a watch needs of an object's type.
pub trait Watched: Resource + Clone + DeserializeOwned + Debug + Send + 'static {}

impl<K: Resource + Clone + DeserializeOwned + Debug + Send + 'static> Watched for K {}

type Events<K> = Pin<Box<dyn Stream<Item = watcher::Result<Event<K>>> + Send>>;

/// A watch that goes on after every failure.
pub struct Watch<K: Watched> {
    api: Api<K>,
    /// What is watched, for the log.
    what: &'static str,
    selector: watcher::Config,
    events: Events<K>,
    backoff: Backoff,
    not_before: Instant,
}

impl<K: Watched> Watch<K> {
    /// Watches all objects of `api` that fit the field selector; empty for all.
    pub fn new(api: Api<K>, what: &'static str, fields: &str) -> Self {
        let mut selector = watcher::Config::default().timeout(WATCH).page_size(PAGE);
        if !fields.is_empty() {
            selector = selector.fields(fields);
        }
        Self {
            events: Box::pin(watcher(api.clone(), selector.clone())),
            api,
            what,
            selector,
            backoff: waits(),
            not_before: Instant::now(),
        }
    }

    /// The next event; after a failure and its wait everything that is there may be told again, between
    /// [`Event::Init`] and [`Event::InitDone`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Event<K> {
        loop {
            sleep_until(self.not_before).await;
            match timeout(SILENCE, self.events.next()).await {
                Ok(Some(Ok(event))) => {
                    if !matches!(event, Event::Init) {
                        self.backoff.reset();
                    }
                    return event;
                }
                Ok(Some(Err(error))) => {
                    let cause = with_causes(&error);
                    warn!(what = self.what, cause, "the API server cannot be watched");
                }
                Ok(None) | Err(_) => {
                    debug!(what = self.what, "a watch fell silent");
                    self.events = Box::pin(watcher(self.api.clone(), self.selector.clone()));
                }
            }
            self.not_before = Instant::now() + self.backoff.next_wait();
        }
    }
}

impl<K: Watched> Debug for Watch<K> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("what", &self.what)
            .finish_non_exhaustive()
    }
}
