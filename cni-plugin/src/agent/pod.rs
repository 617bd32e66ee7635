//! One pod's life in the mesh: joins, is watched over, leaves. The conductor `add_pod`; leaving is in `pod/leave.rs`.
//!
//! A task for each pod, started by `agent.rs`, so that no pod waits for another. It follows a wish that may change at any
//! moment and always carries out the newest one. Everything is repeatable: after a failure or a restart the same steps
//! find what is there and go on. Knows nothing of where wishes come from.

mod wish;
mod leave;

use std::future::pending;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::names::PodUid;
use ambit_net::backoff::Backoff;
use ambit_net::wire::handoff::HandoffPod;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::memory::Record;
use super::netns::Held;
use super::orders::{Outcome, Settled};
use super::pods::{Spec, Wanted};
use super::report::Stand;
use super::tools::{StepError, Tools};
use crate::handoff::{ANSWER_DEADLINE, Serving};
use crate::redirect::Applied;
use crate::redirect::ruleset::Phase;
use crate::with_causes;
pub(super) use wish::{Attempt, Wish};

/// First and longest wait before a step that failed is tried again. The parties are on this node and few, so that the
/// waits need no jitter.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// How often it is checked that the pod's namespace is still the one at its path.
const PRESENCE_CHECK: Duration = Duration::from_secs(1);

/// Why a pod is let go that has no namespace.
const GONE: &str = "its network namespace has gone";

/// The task of one pod.
#[derive(Debug)]
pub(super) struct PodTask {
    uid: PodUid,
    tools: Tools,
    wish: watch::Receiver<Wish>,
    /// What the memory has of the pod: where our rules are.
    remembered: Option<Record>,
    /// Its namespace, as long as nobody else is to use it.
    held: Option<Arc<Held>>,
    /// The pod says that it is captured.
    announced: bool,
    /// What has become of the newest CNI request.
    settled: watch::Sender<Settled>,
    /// Told when the pod has left.
    finished: mpsc::Sender<PodUid>,
}

/// The ends of what a pod's task is connected to.
pub(super) struct Wires {
    pub(super) wish: watch::Receiver<Wish>,
    pub(super) settled: watch::Sender<Settled>,
    pub(super) finished: mpsc::Sender<PodUid>,
}

/// A pod whose rules are in place and that ztunnel has been told of.
struct Capture {
    spec: Spec,
    held: Arc<Held>,
    serving: watch::Receiver<Serving>,
}

/// Why a stretch of a pod's life is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The next step is due.
    Again,
    /// Another wish has come.
    Overtaken,
}

impl PodTask {
    pub(super) fn new(uid: PodUid, tools: Tools, wires: Wires, remembered: Option<Record>) -> Self {
        Self {
            uid,
            tools,
            wish: wires.wish,
            remembered,
            held: None,
            announced: false,
            settled: wires.settled,
            finished: wires.finished,
        }
    }

    /// Follows the wish until nobody can wish any more.
    ///
    /// # Cancel safety
    /// The agent may drop it at any await when it stops: rules stay as they are, and the memory knows them.
    pub(super) async fn run(mut self) {
        loop {
            let wish = self.wish.borrow_and_update().clone();
            match wish {
                Wish::Captured(wanted, attempt) => self.keep_captured(&wanted, attempt).await,
                Wish::Left => self.leave().await,
                Wish::Undone(attempt) => self.undo(attempt).await,
            }
            if self.wish.has_changed().is_err() {
                return;
            }
        }
    }

    /// Joins the pod and keeps it joined until the wish changes.
    async fn keep_captured(&mut self, wanted: &Wanted, attempt: Attempt) {
        let mut waits = retry_waits();
        // A request asks for what is true now, not for what was once said.
        self.announced &= attempt == 0;
        loop {
            let ended = match self.add_pod(wanted, attempt).await {
                Ok(capture) => {
                    waits = retry_waits();
                    self.watch_over(capture, attempt).await
                }
                Err(error) => {
                    let why = with_causes(&error);
                    self.note(&wanted.pod, Stand::Waiting(why.as_str().into()));
                    self.settle(attempt, Outcome::Failed(why));
                    self.pause(waits.next_wait()).await
                }
            };
            if ended == Ended::Overtaken {
                return;
            }
        }
    }

    /// Conductor: namespace, memory, rules, handoff. The rules come before ztunnel, so that nothing is announced that is
    /// not captured; until ztunnel listens, they let new connections wait, so that a running pod sees none refused. A step
    /// that fails undoes what it made itself; what the steps before it made stays and is found again.
    async fn add_pod(&mut self, wanted: &Wanted, attempt: Attempt) -> Result<Capture, StepError> {
        let spec = match self.locate(wanted).await {
            Ok(spec) => spec,
            Err(error) => return Err(self.check_absence(error).await),
        };
        self.clear_former_namespace(&spec).await;
        let held = match self.open(&spec).await {
            Ok(held) => held,
            Err(error) => return Err(self.check_absence(error).await),
        };
        self.remember(&spec, false).await;
        let fresh = self.tools.is_clear(&held).await?;
        if fresh {
            self.tools.apply(&held, &spec, Phase::Joining).await?;
        }
        let mut serving = self.tools.announce(&spec, &held);
        if fresh || attempt > 0 {
            self.first_answer(&mut serving).await;
        }
        self.tools.open_probes(&spec).await?;
        let applied = self.tools.apply(&held, &spec, Phase::Captured).await?;
        if applied == Applied::Written && !fresh {
            warn!(pod = %spec.pod.name, "the redirection was not as it should be and has been put right");
        }
        Ok(Capture {
            spec,
            held,
            serving,
        })
    }

    /// The pod with the path of its namespace.
    async fn locate(&self, wanted: &Wanted) -> Result<Spec, StepError> {
        let former = self.remembered.as_ref().map(|record| &record.spec.netns);
        self.tools.locate(wanted, former).await
    }

    /// Lets the pod go if the error means that there is nothing of it any more.
    async fn check_absence(&mut self, error: StepError) -> StepError {
        if let Some(record) = &self.remembered
            && error.is_absence()
        {
            let pod = record.spec.pod.clone();
            self.let_go(&pod, GONE).await;
        }
        error
    }

    /// Waits until ztunnel has said whether it serves the pod, as long as an answer may take.
    async fn first_answer(&mut self, serving: &mut watch::Receiver<Serving>) {
        let answer = serving.wait_for(|serving| *serving != Serving::Waiting);
        tokio::select! {
            _changed = self.wish.changed() => self.wish.mark_changed(),
            _answered = answer => {}
            () = sleep(ANSWER_DEADLINE) => {}
        }
    }

    /// Reports what becomes of a joined pod. Returns when the wish changes, and when the steps of joining have to be done
    /// again: from time to time, to take back what others changed in the rules, and when the namespace is another one.
    async fn watch_over(&mut self, capture: Capture, attempt: Attempt) -> Ended {
        let Capture {
            spec,
            held,
            mut serving,
        } = capture;
        let verify = sleep(self.tools.settings.verify_interval);
        let mut verify = pin!(verify);
        let mut waits = retry_waits();
        let mut news = true;
        let mut retry_at = None;
        loop {
            if mem::take(&mut news) {
                let now = serving.borrow_and_update().clone();
                let refused = matches!(now, Serving::Refused(_));
                let Some(stand) = self.proclaim(&spec.pod, now).await else {
                    return Ended::Overtaken;
                };
                let again = refused || matches!(stand, Stand::Unannounced(_));
                retry_at = again.then(|| Instant::now() + waits.next_wait());
                self.settle(attempt, outcome(&stand));
                self.note(&spec.pod, stand);
            }
            tokio::select! {
                _changed = self.wish.changed() => return Ended::Overtaken,
                () = &mut verify => return Ended::Again,
                answered = serving.changed() => match answered {
                    Ok(()) => news = true,
                    Err(_withdrawn) => return Ended::Again,
                },
                () = until(retry_at) => {
                    // The answer comes to the same receiver; what is served and not announced is tried again here.
                    drop(self.tools.announce(&spec, &held));
                    news = *serving.borrow() == Serving::Served;
                    retry_at = None;
                }
                () = sleep(PRESENCE_CHECK) => if !held.is_at(&spec.netns).await {
                    return Ended::Again;
                },
            }
        }
    }

    /// Announces on the pod that it is captured, once ztunnel serves it; nothing when the wish changes meanwhile.
    async fn proclaim(&mut self, pod: &HandoffPod, serving: Serving) -> Option<Stand> {
        if serving != Serving::Served || self.announced {
            return Some(stand(serving));
        }
        let said = self.tools.proclaim(pod);
        let said = tokio::select! {
            _changed = self.wish.changed() => None,
            said = said => Some(said),
        };
        match said {
            None => {
                self.wish.mark_changed();
                None
            }
            Some(Ok(())) => {
                self.announced = true;
                Some(stand(serving))
            }
            Some(Err(error)) => Some(Stand::Unannounced(with_causes(&error).into())),
        }
    }

    /// Takes the rules out of the namespace that the pod had before, if it has another one now.
    async fn clear_former_namespace(&mut self, spec: &Spec) {
        let former = match &self.remembered {
            Some(record) if record.spec.netns != spec.netns => record.spec.clone(),
            _ => return,
        };
        self.held = None;
        let cleared = match self.tools.open(&former).await {
            Ok(held) => self.tools.clear(&held).await,
            Err(error) => Err(error),
        };
        if let Err(error) = cleared {
            let error = with_causes(&error);
            info!(pod = %spec.pod.name, error, "the pod's former network namespace is left as it is");
        }
    }

    /// There are no rules of the pod any more: ztunnel and the memory are told.
    async fn let_go(&mut self, pod: &HandoffPod, why: &'static str) {
        info!(pod = %pod.name, why, "the pod is let go");
        self.tools.handoff.withdraw(&self.uid).await;
        self.forget().await;
    }

    /// The pod's namespace: the one that is held while it is still at its path, so that nobody gets in between.
    async fn open(&mut self, spec: &Spec) -> Result<Arc<Held>, StepError> {
        if let Some(held) = &self.held
            && held.is_at(&spec.netns).await
        {
            return Ok(Arc::clone(held));
        }
        self.held = None;
        let held = Arc::new(self.tools.open(spec).await?);
        self.held = Some(Arc::clone(&held));
        Ok(held)
    }

    /// Notes in the memory that rules are about to be in the namespace. Capture does not wait for a working disk: rules
    /// that nobody remembers refuse traffic, rules that are not there let it through.
    async fn remember(&mut self, spec: &Spec, leaving: bool) {
        let record = Record {
            spec: spec.clone(),
            leaving,
        };
        if self.remembered.as_ref() == Some(&record) {
            return;
        }
        self.remembered = Some(record.clone());
        if let Err(error) = self.tools.memory.remember(record).await {
            let error = with_causes(&*error);
            warn!(pod = %spec.pod.name, error, "a restart of the agent would not know of this pod");
        }
    }

    async fn forget(&mut self) {
        self.remembered = None;
        self.held = None;
        if let Err(error) = self.tools.close_probes(&self.uid).await {
            let error = with_causes(&error);
            warn!(pod = %self.uid, error, "kubelet's probes of the pod are still let in");
        }
        if let Err(error) = self.tools.memory.forget(&self.uid).await {
            let error = with_causes(&*error);
            warn!(pod = %self.uid, error, "a restart of the agent would still know of this pod");
        }
    }

    /// Waits, but not longer than the wish stands.
    async fn pause(&mut self, span: Duration) -> Ended {
        tokio::select! {
            _changed = self.wish.changed() => Ended::Overtaken,
            () = sleep(span) => Ended::Again,
        }
    }

    fn note(&self, pod: &HandoffPod, stand: Stand) {
        self.tools.report.note(&self.uid, &pod.name, stand);
    }

    /// Tells whoever waits for a CNI request what has become of it.
    fn settle(&self, attempt: Attempt, outcome: Outcome) {
        self.settled.send_replace(Settled { attempt, outcome });
    }
}

/// What a state means for the CNI request that waits.
fn outcome(stand: &Stand) -> Outcome {
    match stand.why() {
        None => Outcome::Captured,
        Some(why) => Outcome::Failed(why.to_owned()),
    }
}

/// What ztunnel's answer means for the pod.
fn stand(serving: Serving) -> Stand {
    match serving {
        Serving::Served => Stand::Captured,
        Serving::Waiting => Stand::Held(
            "no ztunnel has taken it yet; is one running and ready on this node?".into(),
        ),
        Serving::Refused(why) => Stand::Held(format!("ztunnel cannot serve it: {why}").into()),
    }
}

fn retry_waits() -> Backoff {
    Backoff::new(RETRY_WAITS.0, RETRY_WAITS.1, || 0)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
