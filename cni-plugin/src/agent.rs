//! The node agent: keeps every pod of this node captured, or not, as its source of pods says.
//!
//! Started by `app.rs`. It has a task for each pod (`agent/pod.rs`) and tells it what is wanted; it never waits for one.
//! What was captured before a restart is taken up again before anything is decided. Knows no rules and no files.

pub mod api;
pub mod events;
pub mod pods;
pub mod memory;
pub mod netns;
pub mod report;
pub mod annotate;
pub mod probed;
pub mod installation;
mod tools;
pub mod orders;
pub mod requests;
mod pod;
pub mod release;

use std::collections::BTreeMap;
use std::future::pending;
use std::time::Duration;

use ambit_core::names::PodUid;
use ambit_net::admin::Readiness;
use ambit_net::meters::Counter;
use ambit_net::netns::NetnsError;
use ambit_net::tasks::{Stop, Tasks};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::handoff::{Announcement, Handoff};
use memory::{Memory, Record};
use netns::Namespaces;
use orders::{Admission, Admitted, Order, Settled};
use pod::{PodTask, Wires, Wish};
use pods::{NodePods, Place, Source, Wanted};
use report::Report;
use tools::Tools;

pub use tools::{Kubernetes, Settings};

/// How long after the start the source must have been heard before pods that it does not name are let go. A file may be
/// half written at the first look; it is read again within half a second.
const RELEASE_GRACE: Duration = Duration::from_secs(2);
/// What readiness calls the source of pods.
const SOURCE: &str = "pods of this node";
/// Pods that may have left and not been struck off yet: their tasks wait, nothing else does.
const MOST_FINISHED: usize = 64;

/// All pods that the agent deals with.
#[derive(Debug)]
pub struct Agent {
    tools: Tools,
    readiness: Readiness,
    pods: BTreeMap<PodUid, Pod>,
    tasks: Tasks,
    finished: (mpsc::Sender<PodUid>, mpsc::Receiver<PodUid>),
    orders: mpsc::Receiver<Order>,
    /// CNI requests so far.
    attempts: u64,
    said: Option<NodePods>,
    release_from: Instant,
}

/// A pod and its task.
#[derive(Debug)]
struct Pod {
    wish: watch::Sender<Wish>,
    settled: watch::Receiver<Settled>,
    /// The source has named it since the start. Before that its absence may only mean that it could not be read.
    confirmed: bool,
}

/// What the agent works with.
#[derive(Debug)]
pub struct Means {
    /// The way to ztunnel.
    pub handoff: Handoff,
    /// What outlives a restart.
    pub memory: Memory,
    /// How pods join and leave.
    pub settings: Settings,
    /// Counts the times that rules are written.
    pub rules_written: Counter,
    /// Blocked until the source has been heard.
    pub readiness: Readiness,
    /// What CNI requests want.
    pub orders: mpsc::Receiver<Order>,
    /// What there is on Kubernetes only.
    pub kubernetes: Option<Kubernetes>,
}

impl Agent {
    /// Takes up what was captured before: the next ztunnel that connects will be told to keep it.
    ///
    /// # Errors
    /// When the own network namespace cannot be read.
    pub fn new(means: Means, remembered: BTreeMap<PodUid, Record>) -> Result<Self, NetnsError> {
        means.readiness.block(SOURCE);
        let tools = Tools {
            handoff: means.handoff,
            memory: means.memory,
            namespaces: Namespaces::new()?,
            report: Report::default(),
            settings: means.settings,
            rules_written: means.rules_written,
            kubernetes: means.kubernetes,
        };
        let mut agent = Self {
            tools,
            readiness: means.readiness,
            pods: BTreeMap::new(),
            tasks: Tasks::new("pods"),
            finished: mpsc::channel(MOST_FINISHED),
            orders: means.orders,
            attempts: 0,
            said: None,
            release_from: Instant::now() + RELEASE_GRACE,
        };
        for record in remembered.into_values() {
            agent.take_up(record);
        }
        Ok(agent)
    }

    /// Where each pod stands.
    pub fn report(&self) -> Report {
        self.tools.report.clone()
    }

    /// Follows the source until stopped. Rules stay as they are then: what is captured stays captured.
    pub async fn run(mut self, mut source: Source, stop: Stop) {
        loop {
            let release_due = (!self.all_confirmed()).then_some(self.release_from);
            let release = async {
                match release_due.filter(|at| *at > Instant::now()) {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = stop.stopped() => return,
                said = source.next() => {
                    if said.heard {
                        self.readiness.clear(SOURCE);
                    }
                    self.said = Some(said);
                }
                finished = self.finished.1.recv() => if let Some(uid) = finished {
                    self.strike(&uid);
                },
                Some(order) = self.orders.recv() => self.carry_out(order, &mut source),
                () = release => {}
            }
            self.reconcile();
        }
    }

    /// Tells every pod's task what the source wants of it.
    fn reconcile(&mut self) {
        let Some(said) = self.said.take() else {
            return;
        };
        for (uid, wanted) in &said.enrolled {
            self.want(uid, wanted);
        }
        let heard = Instant::now() >= self.release_from;
        for (uid, pod) in &self.pods {
            let wanted = said.enrolled.contains_key(uid) || said.unclear.contains_key(uid);
            // A pod that is not named may be in a file that cannot be read.
            let certain = heard && (said.whole || said.others.contains_key(uid));
            if !wanted && (pod.confirmed || certain) {
                pod.wish.send_if_modified(|wish| wish.become_left());
            }
        }
        self.said = Some(said);
    }

    /// Does what a CNI request wants.
    fn carry_out(&mut self, order: Order, source: &mut Source) {
        match order {
            Order::Admit(admission, answer) => {
                let admitted = self.admit(*admission, source);
                // What was known before may not name the pod.
                self.said = source.now().or(self.said.take());
                // Who asked may have stopped waiting; the pod is captured all the same.
                drop(answer.send(admitted));
            }
            Order::Undo(uid, attempt) => {
                if let Some(pod) = self.pods.get(&uid) {
                    pod.wish
                        .send_if_modified(|wish| wish.become_undone(attempt));
                }
            }
        }
    }

    /// Has a pod captured in the network namespace that it has just got, if it belongs to the mesh.
    fn admit(&mut self, admission: Admission, source: &mut Source) -> Admitted {
        let Some((known, enrollment)) = source.learn(&admission.read) else {
            return Admitted::Deleted;
        };
        if !enrollment.is_enrolled() {
            return Admitted::Outside(enrollment);
        }
        let options = match known.options {
            Ok(options) => options,
            Err(cause) => return Admitted::Unclear(cause),
        };
        self.attempts += 1;
        let uid = known.pod.uid.clone();
        let wanted = Wanted {
            pod: known.pod,
            options,
            place: Place {
                netns: Some(admission.netns),
                addresses: admission.addresses,
                static_uid: known.static_uid,
            },
        };
        let wish = Wish::Captured(wanted, self.attempts);
        match self.pods.get_mut(&uid) {
            Some(pod) => {
                pod.confirmed = true;
                pod.wish.send_replace(wish);
            }
            None => self.start(uid.clone(), wish, None, true),
        }
        match self.pods.get(&uid) {
            Some(pod) => Admitted::Underway(self.attempts, pod.settled.clone()),
            None => Admitted::Deleted,
        }
    }

    /// The pod is to be captured.
    fn want(&mut self, uid: &PodUid, wanted: &Wanted) {
        match self.pods.get_mut(uid) {
            Some(pod) => {
                pod.confirmed = true;
                pod.wish
                    .send_if_modified(|wish| wish.become_captured(wanted));
            }
            None => self.start(uid.clone(), Wish::Captured(wanted.clone(), 0), None, true),
        }
    }

    /// A pod that was captured, or leaving, before the agent was restarted.
    fn take_up(&mut self, record: Record) {
        info!(pod = %record.spec.pod.name, leaving = record.leaving, "a pod is taken up from before the restart");
        // Whoever connects before its namespace is open is told to keep it.
        drop(self.tools.handoff.announce(Announcement {
            pod: record.spec.pod.clone(),
            netns: None,
        }));
        let wish = match record.leaving {
            false => Wish::Captured(record.spec.clone().into(), 0),
            true => Wish::Left,
        };
        self.start(record.spec.pod.uid.clone(), wish, Some(record), false);
    }

    fn start(&mut self, uid: PodUid, wish: Wish, remembered: Option<Record>, confirmed: bool) {
        let (wish, listener) = watch::channel(wish);
        let (settled, outcome) = watch::channel(Settled::default());
        let wires = Wires {
            wish: listener,
            settled,
            finished: self.finished.0.clone(),
        };
        let task = PodTask::new(uid.clone(), self.tools.clone(), wires, remembered);
        self.tasks.spawn(task.run());
        let pod = Pod {
            wish,
            settled: outcome,
            confirmed,
        };
        self.pods.insert(uid, pod);
    }

    /// A pod has left; its task ends, unless it is wanted again meanwhile.
    fn strike(&mut self, uid: &PodUid) {
        if let Some(pod) = self.pods.get(uid)
            && !pod.wish.borrow().is_captured()
        {
            self.pods.remove(uid);
        }
    }

    fn all_confirmed(&self) -> bool {
        self.pods.values().all(|pod| pod.confirmed)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.tasks.panicked() > 0 {
            warn!(tasks = self.tasks.panicked(), "tasks of pods have panicked");
        }
    }
}

#[cfg(test)]
mod tests;
