//! The agent's end of the handoff: every connected ztunnel is told which pods to serve, and in which namespaces.
//!
//! Called by the agent's pod tasks, which announce and withdraw pods, and run as one task that accepts ztunnels. Who
//! connects is first sent everything (the snapshot), then what changes. More than one may be connected during an
//! upgrade: pods are added to the newest and removed from all. Knows no rules and no files. ZDS of istio/ztunnel; the
//! messages are in `ambit_net::wire::handoff`.

mod link;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambit_core::names::{PodUid, Text};
use ambit_net::handoff::{Connection, Listener};
use ambit_net::netns::Netns;
use ambit_net::tasks::Spawner;
use ambit_net::wire::handoff::HandoffPod;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::with_causes;

/// How long ztunnel may take for its greeting and for each answer. Convention of istio-cni.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after each accepted connection: at most 5 a second, so that a ztunnel in a crash loop costs little.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a connection could not be accepted: something has run out, and nobody tells when it is back.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);
/// Most connections at once: a ztunnel, its successor, and room for connections that are about to be found dead.
const MOST_LINKS: usize = 4;
/// Orders that may wait for one ztunnel: each pod has at most one of each kind under way, and a node runs some hundred
/// pods. A ztunnel further behind is cut off and begins anew.
const MOST_ORDERS: usize = 1024;
/// How long a removal waits for all ztunnels: the one under way and one more.
const WITHDRAW_DEADLINE: Duration = Duration::from_secs(10);

/// A pod as ztunnel is to know it.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Who it is.
    pub pod: HandoffPod,
    /// Its network namespace; none while it is only remembered from before a restart. A ztunnel that serves it keeps it.
    pub netns: Option<Netns>,
}

impl Announcement {
    fn says_the_same(&self, other: &Self) -> bool {
        let netns = |a: &Self| a.netns.as_ref().map(Netns::id);
        self.pod == other.pod && netns(self) == netns(other)
    }
}

/// Whether the newest ztunnel serves a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Serving {
    /// It has not answered yet, or there is none.
    #[default]
    Waiting,
    /// It does.
    Served,
    /// It cannot; in its words.
    Refused(Text),
}

/// The announced pods and the connected ztunnels. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Handoff {
    book: Arc<Mutex<Book>>,
    connected: Arc<watch::Sender<usize>>,
}

#[derive(Debug, Default)]
struct Book {
    pods: BTreeMap<PodUid, Entry>,
    /// Oldest first.
    links: Vec<Link>,
    links_so_far: u64,
}

#[derive(Debug)]
struct Entry {
    announcement: Announcement,
    serving: watch::Sender<Serving>,
}

/// The way to the task that speaks to one ztunnel.
#[derive(Debug)]
struct Link {
    id: u64,
    orders: mpsc::Sender<Order>,
}

/// What a connected ztunnel has to be told.
#[derive(Debug)]
enum Order {
    /// The pod as it is announced when the order's turn comes.
    Add(PodUid),
    /// The pod has left; answered when ztunnel has acknowledged.
    Remove(PodUid, oneshot::Sender<()>),
}

impl Handoff {
    /// Announces a pod, now and to every ztunnel that connects later. What is announced already and is served is not sent
    /// again, what was refused is.
    pub fn announce(&self, announcement: Announcement) -> watch::Receiver<Serving> {
        let uid = announcement.pod.uid.clone();
        let mut book = self.book();
        let entry = book.pods.entry(uid.clone()).or_insert_with(|| Entry {
            announcement: announcement.clone(),
            serving: watch::Sender::default(),
        });
        if !entry.announcement.says_the_same(&announcement) {
            entry.announcement = announcement;
            entry.serving.send_replace(Serving::Waiting);
        }
        let serving = entry.serving.subscribe();
        if *serving.borrow() != Serving::Served {
            book.order_add(&[uid]);
        }
        serving
    }

    /// Withdraws a pod from every ztunnel; waits until they have let go of it, ten seconds at most. One that does not
    /// answer is cut off, and the pod will not be in its next snapshot.
    pub async fn withdraw(&self, uid: &PodUid) {
        let mut answers = Vec::new();
        {
            let mut book = self.book();
            book.pods.remove(uid);
            book.links.retain(|link| {
                let (done, answer) = oneshot::channel();
                let sent = link.orders.try_send(Order::Remove(uid.clone(), done));
                answers.push(answer);
                // One that is too far behind begins anew, without the pod.
                sent.is_ok()
            });
        }
        let all = async {
            for answer in answers {
                // An answer that was dropped is the end of that ztunnel.
                let _let_go = answer.await;
            }
        };
        if timeout(WITHDRAW_DEADLINE, all).await.is_err() {
            warn!(pod = %uid, "ztunnel has not let go of a pod in time");
        }
    }

    /// Number of connected ztunnels, and every change of it.
    pub fn connected(&self) -> watch::Receiver<usize> {
        self.connected.subscribe()
    }

    /// Accepts ztunnels until `links` is stopped; each is served by a task there.
    pub async fn run(self, listener: Listener, links: Spawner) {
        let stop = links.stop_signal();
        loop {
            tokio::select! {
                () = stop.stopped() => return,
                accepted = listener.accept() => match accepted {
                    Ok(connection) => self.welcome(connection, &links),
                    Err(error) => {
                        warn!(%error, "cannot accept a ztunnel");
                        sleep(SHORTAGE_PAUSE).await;
                    }
                },
            }
            tokio::select! {
                () = stop.stopped() => return,
                () = sleep(ACCEPT_PAUSE) => {}
            }
        }
    }

    /// Speaks to a ztunnel that has connected, in a task of `links`.
    pub fn welcome(&self, connection: Connection, links: &Spawner) {
        let Some((id, pods, orders)) = self.register() else {
            warn!(
                connections = MOST_LINKS,
                "too many ztunnels are connected; one is turned away"
            );
            return;
        };
        info!(link = id, pods = pods.len(), "a ztunnel has connected");
        let stop = links.stop_signal();
        let handoff = self.clone();
        links.spawn(async move {
            let talk = link::talk(&connection, &handoff, id, pods, orders);
            let ended = tokio::select! {
                () = stop.stopped() => None,
                ended = talk => Some(ended),
            };
            drop(connection);
            handoff.forget(id);
            match ended {
                None => {}
                Some(link::LinkError::Closed) => info!(link = id, "a ztunnel has disconnected"),
                Some(error) => warn!(
                    link = id,
                    error = with_causes(&error),
                    "the connection to a ztunnel is cut"
                ),
            }
        });
    }

    /// Makes room for one more ztunnel: its number, what is to be in its snapshot, and the orders that come after that.
    fn register(&self) -> Option<(u64, Vec<PodUid>, mpsc::Receiver<Order>)> {
        let mut book = self.book();
        if book.links.len() >= MOST_LINKS {
            return None;
        }
        book.links_so_far += 1;
        let id = book.links_so_far;
        let (orders, due) = mpsc::channel(MOST_ORDERS);
        book.links.push(Link { id, orders });
        self.connected.send_replace(book.links.len());
        Some((id, book.pods.keys().cloned().collect(), due))
    }

    /// The end of a ztunnel. If it was the newest, the one before it is told of all pods: it may have missed some.
    fn forget(&self, id: u64) {
        let mut book = self.book();
        let was_newest = book.links.iter().all(|link| link.id <= id);
        book.links.retain(|link| link.id != id);
        self.connected.send_replace(book.links.len());
        if was_newest {
            for entry in book.pods.values() {
                entry.serving.send_replace(Serving::Waiting);
            }
            let all: Vec<_> = book.pods.keys().cloned().collect();
            book.order_add(&all);
        }
    }

    /// The pod as it is announced now.
    fn announcement(&self, uid: &PodUid) -> Option<Announcement> {
        let book = self.book();
        book.pods.get(uid).map(|entry| entry.announcement.clone())
    }

    /// Notes what a ztunnel said about a pod as it was announced to it; only the newest one counts.
    fn settle(&self, id: u64, told: &Announcement, serving: Serving) {
        let book = self.book();
        let newest = book.links.last().is_some_and(|link| link.id == id);
        let entry = book.pods.get(&told.pod.uid);
        // Announced anew meanwhile: that answer is still to come.
        let current = entry.filter(|entry| newest && entry.announcement.says_the_same(told));
        if let Some(entry) = current {
            entry.serving.send_replace(serving);
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Has the newest ztunnel told of pods. One that is too far behind to take the orders is taken off; its task ends when
    /// it has carried out those that it took.
    fn order_add(&mut self, pods: &[PodUid]) {
        let Some(newest) = self.links.last() else {
            return;
        };
        let mut pods = pods.iter();
        if !pods.all(|uid| newest.orders.try_send(Order::Add(uid.clone())).is_ok()) {
            self.links.pop();
        }
    }
}

#[cfg(test)]
mod tests;
