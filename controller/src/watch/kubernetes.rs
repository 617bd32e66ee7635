//! The Kubernetes source: one list and watch per kind becomes the events of [`super`].
//!
//! Run as one task by the app. Says `Synced` only when every kind has been read whole, so that a kind that may not be read
//! never looks like one without objects. Kinds of other projects may be absent; they are noticed when they appear.

mod follow;
mod policies;

use std::collections::{BTreeMap, BTreeSet};

use ambit_core::status::Problem;
use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tracing::{info, warn};

use self::follow::{End, Follower, Listed, Step, Steps};
use super::object::{ObjectError, checked};
use super::{Event, Kind, Object};

/// Steps of all kinds that may wait for the publisher; a page of a list waits in its follower.
const STEPS: usize = 64;
/// Where the problems of reading are, for people.
const PLACE: &str = "the Kubernetes API";

/// All kinds that are read.
const KINDS: [Kind; 8] = [
    Kind::Namespace,
    Kind::Node,
    Kind::ServiceAccount,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Pod,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
];

/// Sends what is in the cluster, then what changes in it, until the publisher is gone.
///
/// # Cancel safety
/// Not resumable: a change may have been sent in part. Dropped only when the controller stops.
pub async fn run(client: Client, events: mpsc::Sender<Event>) {
    let (steps, received) = mpsc::channel(STEPS);
    let followers = KINDS.map(|kind| follower(kind, &client, steps.clone()));
    drop(steps);
    tokio::join!(join_all(followers), Collector::new(events).run(received));
}

/// Follows one kind until nobody listens.
fn follower(kind: Kind, client: &Client, steps: Steps) -> BoxFuture<'static, ()> {
    let client = client.clone();
    match kind {
        // Of these only the metadata counts; the API server sends nothing else.
        Kind::Namespace => typed(kind, client, steps, |o: PartialObjectMeta<Namespace>| {
            let metadata = o.metadata;
            Ok(Object::Namespace(Namespace {
                metadata,
                ..Namespace::default()
            }))
        }),
        Kind::Node => typed(kind, client, steps, |o: PartialObjectMeta<Node>| {
            let metadata = o.metadata;
            Ok(Object::Node(Node {
                metadata,
                ..Node::default()
            }))
        }),
        Kind::ServiceAccount => typed(
            kind,
            client,
            steps,
            |o: PartialObjectMeta<ServiceAccount>| {
                let metadata = o.metadata;
                Ok(Object::ServiceAccount(ServiceAccount {
                    metadata,
                    ..ServiceAccount::default()
                }))
            },
        ),
        Kind::Service => typed(kind, client, steps, |o: Service| Ok(Object::Service(o))),
        Kind::EndpointSlice => {
            let read = |o: EndpointSlice| Ok(Object::EndpointSlice(o));
            typed(kind, client, steps, read)
        }
        Kind::Pod => typed(kind, client, steps, |o: Pod| checked(o).map(Object::Pod)),
        Kind::AuthorizationPolicy | Kind::PeerAuthentication => {
            policies::follow(kind, client, steps).boxed()
        }
    }
}

/// Follows a kind that every cluster has.
fn typed<K>(
    kind: Kind,
    client: Client,
    steps: Steps,
    read: fn(K) -> Result<Object, ObjectError>,
) -> BoxFuture<'static, ()>
where
    K: Listed + kube::Resource<DynamicType = ()>,
{
    async move {
        let api = Api::all(client);
        let mut follower = Follower::new(kind, read, steps);
        while follower.run(&api).await == End::Absent {
            follower
                .trouble(format!("this API server has no {}", kind.resource()))
                .await;
            follower.pause().await;
        }
    }
    .boxed()
}

/// Joins the kinds: passes changes on, says when all have been read and what is wrong with reading them.
struct Collector {
    events: mpsc::Sender<Event>,
    unread: BTreeSet<Kind>,
    troubles: BTreeMap<Kind, String>,
}

impl Collector {
    fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            events,
            unread: KINDS.into(),
            troubles: BTreeMap::new(),
        }
    }

    async fn run(mut self, mut steps: mpsc::Receiver<(Kind, Step)>) {
        while let Some((kind, step)) = steps.recv().await {
            for event in self.take(kind, step) {
                if self.events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }

    fn take(&mut self, kind: Kind, step: Step) -> Vec<Event> {
        match step {
            Step::Changed(event) => vec![event],
            Step::Well => self.well(kind),
            Step::Trouble(cause) => self.trouble(kind, cause),
            Step::Read => {
                let mut events = self.well(kind);
                let last = self.unread.remove(&kind) && self.unread.is_empty();
                if last {
                    // The problems of reading speak of what is not served yet.
                    events.push(Event::Problems(self.problems()));
                    events.push(Event::Synced);
                }
                events
            }
        }
    }

    fn well(&mut self, kind: Kind) -> Vec<Event> {
        if self.troubles.remove(&kind).is_none() {
            return Vec::new();
        }
        info!(kind = kind.as_str(), "objects can be read again");
        vec![Event::Problems(self.problems())]
    }

    fn trouble(&mut self, kind: Kind, cause: String) -> Vec<Event> {
        let before = self.troubles.insert(kind, cause.clone());
        if before.as_ref() == Some(&cause) {
            return Vec::new();
        }
        warn!(kind = kind.as_str(), cause, "objects cannot be read");
        vec![Event::Problems(self.problems())]
    }

    /// What is wrong, one for each cause.
    fn problems(&self) -> Vec<Problem> {
        let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (kind, cause) in &self.troubles {
            kinds.entry(cause).or_default().push(kind.as_str());
        }
        let effect = if self.unread.is_empty() {
            "what was read before stays in force"
        } else {
            "nothing is served until all kinds have been read"
        };
        let problem = |(cause, kinds): (&str, Vec<&str>)| Problem {
            place: PLACE.to_owned(),
            what: format!("{} cannot be read: {cause}; {effect}", kinds.join(", ")),
        };
        kinds.into_iter().map(problem).collect()
    }
}

#[cfg(test)]
mod tests;
