//! PodSet: the pods that this node's agent has handed over, and the only owner of their proxies.
//!
//! Driven by `handoff`, which speaks to the agent. What it does has taken effect when it returns, so that an
//! acknowledgement is true. Others read the [`Roster`]. Knows neither the socket nor the messages.

pub(crate) mod handoff;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ambit_core::names::PodUid;
use ambit_core::reason::Reason;
use ambit_net::meters::{self, Counter, Gauge, Hold, Meters};
use ambit_net::netns::{Netns, NetnsId};
use ambit_net::node_report::ServedPods;
use ambit_net::tasks::Tasks;
use ambit_net::telemetry::with_causes;
use ambit_net::wire::handoff::HandoffPod;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::proxy::admission::Admission;
use crate::proxy::{Mesh, Pod, PodProxy, StartError};
use crate::workers::Worker;

/// The pods of the node.
#[derive(Debug)]
pub(crate) struct PodSet {
    mesh: Arc<Mesh>,
    workers: Vec<Worker>,
    own_netns: NetnsId,
    entries: BTreeMap<PodUid, Entry>,
    /// Proxies of pods that left, while their connections end.
    leaving: Tasks,
    roster: watch::Sender<Roster>,
    served: watch::Sender<ServedPods>,
    figures: Figures,
}

/// The metrics of pods.
#[derive(Debug)]
struct Figures {
    active: Gauge,
    pending: Gauge,
    started: Counter,
    stopped: Counter,
    agent: Gauge,
}

/// What others may know of the pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roster {
    /// True while the agent is connected and has told all that it has.
    pub(crate) in_step: bool,
    /// True once a first snapshot was complete; before that the pods are not all there.
    pub(crate) complete: bool,
    /// The pods, by uid.
    pub(crate) pods: Vec<RosterPod>,
}

/// One pod of the [`Roster`].
#[derive(Clone, Debug)]
pub(crate) struct RosterPod {
    /// Who it is.
    pub(crate) pod: Pod,
    /// Why it is not served; none when it is.
    pub(crate) pending: Option<Arc<str>>,
    /// Its open inbound connections, one book a worker.
    pub(crate) admissions: Vec<Arc<Admission>>,
}

/// Why a pod that was handed over is not served.
#[derive(Debug, Error)]
pub(crate) enum AddError {
    /// The namespace is the one in which this proxy runs; capturing it would capture the node.
    #[error("{0} is the proxy's own network namespace, not a pod's")]
    OwnNetns(NetnsId),
    /// Two pods in one namespace would answer for each other.
    #[error("{netns} is already served for pod {other}")]
    NetnsTaken {
        /// The namespace.
        netns: NetnsId,
        /// The pod that has it.
        other: PodUid,
    },
    /// Its proxy could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A pod that was to be kept and is not there.
#[derive(Debug, Error)]
#[error("pod {0} is not known here; send it again with its network namespace")]
pub(crate) struct NotHere(PodUid);

#[derive(Debug)]
struct Entry {
    pod: Pod,
    netns: Netns,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Its listeners are up on every worker.
    Up(PodProxy),
    /// Its proxy could not be started; tried again until it can.
    Pending(Arc<str>),
}

impl PodSet {
    /// No pods yet; their proxies will run on `workers`. `own_netns` is refused as a pod's.
    pub(crate) fn new(mesh: Arc<Mesh>, workers: Vec<Worker>, own_netns: NetnsId) -> Self {
        Self {
            figures: Figures::new(&mesh.meters),
            mesh,
            workers,
            own_netns,
            entries: BTreeMap::new(),
            leaving: Tasks::new("leaving pods"),
            roster: watch::Sender::default(),
            served: watch::Sender::default(),
        }
    }

    /// What others may know of the pods, now and later.
    pub(crate) fn roster(&self) -> watch::Receiver<Roster> {
        self.roster.subscribe()
    }

    /// The pods that are truly served, for the controller; none until the agent has told all that it has.
    pub(crate) fn served(&self) -> watch::Receiver<ServedPods> {
        self.served.subscribe()
    }

    /// Counts the agent as connected until the value is dropped.
    pub(crate) fn hold_agent(&self) -> Hold {
        self.figures.agent.hold()
    }

    /// Serves a pod. One that is served already stays as it is, unless it has got another network namespace.
    ///
    /// # Errors
    /// Why it is not served now; it is kept and [`retry`](Self::retry) tries again.
    pub(crate) fn add(&mut self, pod: HandoffPod, netns: Netns) -> Result<(), AddError> {
        let pod = Pod::new(pod, &self.mesh.trust_domain);
        self.serve(pod, netns)
    }

    fn serve(&mut self, pod: Pod, netns: Netns) -> Result<(), AddError> {
        let uid = pod.uid.clone();
        match self.entries.remove(&uid) {
            Some(known) if known.is_up() && known.netns.id() == netns.id() => {
                self.entries.insert(uid, known);
                return Ok(());
            }
            Some(stale) => self.part_with(stale),
            None => {}
        }
        let started = self.start(&pod, &netns);
        let (state, result) = match started {
            Ok(proxy) => (State::Up(proxy), Ok(())),
            Err(error) => (State::Pending(with_causes(&error).into()), Err(error)),
        };
        self.entries.insert(uid, Entry { pod, netns, state });
        self.publish();
        result
    }

    /// Confirms that a pod stays.
    ///
    /// # Errors
    /// When it is not there: the agent has to add it.
    pub(crate) fn keep(&self, uid: &PodUid) -> Result<(), NotHere> {
        match self.entries.contains_key(uid) {
            true => Ok(()),
            false => Err(NotHere(uid.clone())),
        }
    }

    /// Lets a pod go: its listeners close, its connections may end within the termination deadline.
    pub(crate) fn remove(&mut self, uid: &PodUid) {
        if let Some(entry) = self.entries.remove(uid) {
            self.part_with(entry);
            self.publish();
        }
    }

    /// Ends a snapshot: lets every pod go that was not in it.
    pub(crate) fn complete(&mut self, snapshot: &HashSet<PodUid>) {
        let gone = |uid: &PodUid| !snapshot.contains(uid);
        let gone: Vec<PodUid> = self
            .entries
            .keys()
            .filter(|uid| gone(uid))
            .cloned()
            .collect();
        for uid in &gone {
            self.remove(uid);
        }
        self.roster.send_modify(|roster| {
            roster.in_step = true;
            roster.complete = true;
        });
        self.publish();
        info!(
            pods = self.entries.len(),
            gone = gone.len(),
            "pods are in step with the node agent"
        );
    }

    /// Notes that the agent is gone: the pods are served on, but what it does is not known.
    pub(crate) fn lost_agent(&mut self) {
        self.roster
            .send_if_modified(|roster| std::mem::take(&mut roster.in_step));
    }

    /// Tries again to serve the pods that could not be served.
    pub(crate) fn retry(&mut self) {
        let pending: Vec<PodUid> = self
            .entries
            .iter()
            .filter(|(_, e)| !e.is_up())
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in pending {
            let Some(Entry { pod, netns, .. }) = self.entries.remove(&uid) else {
                continue;
            };
            if let Err(error) = self.serve(pod, netns) {
                warn!(pod.uid = %uid, error = with_causes(&error), "pod is still not served");
            }
        }
    }

    /// Stops all proxies: listeners close at once, connections have until `deadline`.
    pub(crate) async fn drain(self, deadline: Duration) {
        let end = Instant::now() + deadline;
        let up = self.entries.into_values().filter_map(Entry::into_proxy);
        let proxies: Vec<PodProxy> = up.collect();
        for proxy in &proxies {
            proxy.stop(Reason::Drained);
        }
        for proxy in proxies {
            proxy.drain(end).await;
        }
        self.leaving
            .drain(end.saturating_duration_since(Instant::now()))
            .await;
    }

    fn start(&self, pod: &Pod, netns: &Netns) -> Result<PodProxy, AddError> {
        let id = netns.id();
        if id == self.own_netns {
            return Err(AddError::OwnNetns(id));
        }
        let mut others = self.entries.values().filter(|other| other.is_up());
        if let Some(other) = others.find(|other| other.netns.id() == id) {
            let other = other.pod.uid.clone();
            return Err(AddError::NetnsTaken { netns: id, other });
        }
        let proxy = PodProxy::start(pod, netns, &self.mesh, &self.workers)?;
        self.figures.started.increment();
        // Ahead of the first connection, which asks again if this fails.
        if let Err(error) = self.mesh.certs.want(&pod.identity) {
            warn!(pod = %pod.name, %error, "no certificate is fetched ahead");
        }
        info!(pod = %pod.name, pod.uid = %pod.uid, netns = %id, "pod is served");
        Ok(proxy)
    }

    fn part_with(&self, entry: Entry) {
        let pod = entry.pod.clone();
        let Some(proxy) = entry.into_proxy() else {
            return;
        };
        info!(pod = %pod.name, pod.uid = %pod.uid, "pod is no longer served");
        self.figures.stopped.increment();
        proxy.stop(Reason::PodRemoved);
        let end = Instant::now() + self.mesh.limits.termination;
        let certs = self.mesh.certs.clone();
        self.leaving.spawn(async move {
            proxy.drain(end).await;
            certs.forget(&pod.identity);
        });
    }

    fn publish(&self) {
        let pods = self.entries.values().map(Entry::describe).collect();
        self.roster.send_modify(|roster| roster.pods = pods);
        let up = self.entries.values().filter(|entry| entry.is_up()).count();
        self.figures.active.set(count(up));
        self.figures.pending.set(count(self.entries.len() - up));
        if self.roster.borrow().complete {
            let up = self.entries.values().filter(|entry| entry.is_up());
            let served = Some(up.map(|entry| entry.pod.as_served()).collect());
            self.served.send_if_modified(|old| {
                let changed = *old != served;
                *old = served;
                changed
            });
        }
    }
}

impl Figures {
    fn new(meters: &Meters) -> Self {
        Self {
            active: meters.gauge(&meters::ACTIVE_PROXIES, []),
            pending: meters.gauge(&meters::PENDING_PROXIES, []),
            started: meters.counter(&meters::PROXIES_STARTED, []),
            stopped: meters.counter(&meters::PROXIES_STOPPED, []),
            agent: meters.gauge(&meters::HANDOFF_CONNECTED, []),
        }
    }
}

fn count(pods: usize) -> i64 {
    i64::try_from(pods).unwrap_or(i64::MAX)
}

impl Entry {
    fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    fn into_proxy(self) -> Option<PodProxy> {
        match self.state {
            State::Up(proxy) => Some(proxy),
            State::Pending(_) => None,
        }
    }

    fn describe(&self) -> RosterPod {
        let (pending, admissions) = match &self.state {
            State::Up(proxy) => (None, proxy.admissions()),
            State::Pending(why) => (Some(Arc::clone(why)), Vec::new()),
        };
        RosterPod {
            pod: self.pod.clone(),
            pending,
            admissions,
        }
    }
}
