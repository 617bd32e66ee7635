//! One pod's life in the mesh: joins, is watched over, leaves. The conductors `add_pod` and `remove_pod`.
//!
//! A task for each pod, started by `agent.rs`, so that no pod waits for another. It follows a wish that may change at any
//! moment and always carries out the newest one. Everything is repeatable: after a failure or a restart the same steps
//! find what is there and go on. Knows nothing of where wishes come from.

use std::future::pending;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::names::PodUid;
use ambit_net::backoff::Backoff;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::memory::Record;
use super::netns::Held;
use super::pods::Spec;
use super::report::Stand;
use super::tools::{StepError, Tools};
use crate::handoff::{ANSWER_DEADLINE, Serving};
use crate::redirect::Applied;
use crate::redirect::ruleset::Phase;
use crate::with_causes;

/// First and longest wait before a step that failed is tried again. The parties are on this node and few, so that the
/// waits need no jitter.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// How often it is checked that the pod's namespace is still the one at its path.
const PRESENCE_CHECK: Duration = Duration::from_secs(1);
/// How long a leaving pod is served at least: so long other nodes may take to learn that it does not speak HBONE any more.
const FAREWELL: Duration = Duration::from_secs(3);
/// How often the captured connections of a leaving pod are counted.
const COUNT_INTERVAL: Duration = Duration::from_millis(500);
/// How long ztunnel may take to end what it carried for a pod that it was told to let go.
const LAST_CONNECTIONS: Duration = Duration::from_secs(5);

/// Why a pod is let go that has no namespace.
const GONE: &str = "its network namespace has gone";

/// What is wanted of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It is in the mesh.
    Captured(Spec),
    /// It is not.
    Left,
}

impl Wish {
    /// Changes the wish to leaving; tells whether it was another one.
    pub(super) fn become_left(&mut self) -> bool {
        mem::replace(self, Self::Left) != Self::Left
    }
}

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
    /// Told when the pod has left.
    finished: mpsc::Sender<PodUid>,
}

/// A pod whose rules are in place and that ztunnel has been told of.
struct Capture {
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
    pub(super) fn new(
        uid: PodUid,
        tools: Tools,
        wish: watch::Receiver<Wish>,
        remembered: Option<Record>,
        finished: mpsc::Sender<PodUid>,
    ) -> Self {
        Self {
            uid,
            tools,
            wish,
            remembered,
            held: None,
            finished,
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
                Wish::Captured(spec) => self.keep_captured(&spec).await,
                Wish::Left => self.leave().await,
            }
            if self.wish.has_changed().is_err() {
                return;
            }
        }
    }

    /// Joins the pod and keeps it joined until the wish changes.
    async fn keep_captured(&mut self, spec: &Spec) {
        let mut waits = retry_waits();
        loop {
            let ended = match self.add_pod(spec).await {
                Ok(capture) => {
                    waits = retry_waits();
                    self.watch_over(spec, capture).await
                }
                Err(error) => {
                    self.note(spec, Stand::Waiting(with_causes(&error).into()));
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
    async fn add_pod(&mut self, spec: &Spec) -> Result<Capture, StepError> {
        self.clear_former_namespace(spec).await;
        let held = match self.open(spec).await {
            Err(error) if self.remembered.is_some() && error.is_absence() => {
                self.let_go(spec, GONE).await;
                return Err(error);
            }
            other => other?,
        };
        self.remember(spec, false).await;
        let fresh = self.tools.is_clear(&held).await?;
        if fresh {
            self.tools.apply(&held, spec, Phase::Joining).await?;
        }
        let mut serving = self.tools.announce(spec, &held);
        if fresh {
            self.first_answer(&mut serving).await;
        }
        let applied = self.tools.apply(&held, spec, Phase::Captured).await?;
        if applied == Applied::Written && !fresh {
            warn!(pod = %spec.pod.name, "the redirection was not as it should be and has been put right");
        }
        Ok(Capture { held, serving })
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
    async fn watch_over(&mut self, spec: &Spec, capture: Capture) -> Ended {
        let Capture { held, mut serving } = capture;
        let verify = sleep(self.tools.settings.verify_interval);
        let mut verify = pin!(verify);
        let mut waits = retry_waits();
        let mut news = true;
        let mut retry_at = None;
        loop {
            if mem::take(&mut news) {
                let now = serving.borrow_and_update().clone();
                let refused = matches!(now, Serving::Refused(_));
                retry_at = refused.then(|| Instant::now() + waits.next_wait());
                self.note(spec, stand(now));
            }
            tokio::select! {
                _changed = self.wish.changed() => return Ended::Overtaken,
                () = &mut verify => return Ended::Again,
                answered = serving.changed() => match answered {
                    Ok(()) => news = true,
                    Err(_withdrawn) => return Ended::Again,
                },
                () = until(retry_at) => {
                    // The answer comes to the same receiver.
                    drop(self.tools.announce(spec, &held));
                    retry_at = None;
                }
                () = sleep(PRESENCE_CHECK) => if !held.is_at(&spec.netns).await {
                    return Ended::Again;
                },
            }
        }
    }

    /// Lets the pod leave, and waits for another wish.
    async fn leave(&mut self) {
        let mut waits = retry_waits();
        while let Some(record) = self.remembered.clone() {
            let ended = match self.remove_pod(&record.spec).await {
                Ok(ended) => ended,
                Err(error) => {
                    let error = with_causes(&error);
                    warn!(pod = %record.spec.pod.name, error, "the pod cannot leave yet");
                    self.pause(waits.next_wait()).await
                }
            };
            if ended == Ended::Overtaken {
                return;
            }
        }
        self.tools.report.strike(&self.uid);
        // Nobody listens any more when the agent stops.
        let _told = self.finished.send(self.uid.clone()).await;
        let _next_wish = self.wish.changed().await;
    }

    /// Conductor: no new connections are captured; when the last captured one has ended, or has had its time, ztunnel is
    /// told; then the rules go, and then the memory of them.
    async fn remove_pod(&mut self, spec: &Spec) -> Result<Ended, StepError> {
        let held = match self.open(spec).await {
            Err(error) if error.is_absence() => {
                self.let_go(spec, GONE).await;
                return Ok(Ended::Again);
            }
            other => other?,
        };
        if !self.tools.is_clear(&held).await? {
            self.remember(spec, true).await;
            // Until the end a ztunnel that connects anew is to serve what is captured.
            drop(self.tools.announce(spec, &held));
            self.tools.apply(&held, spec, Phase::Leaving).await?;
            self.note(spec, Stand::Leaving);
            if self.captured_end(spec, &held).await? == Ended::Overtaken {
                return Ok(Ended::Overtaken);
            }
        }
        self.tools.handoff.withdraw(&self.uid).await;
        // Whatever is wished now: ztunnel has let go, so the old rules have to go before new ones come.
        let deadline = Instant::now() + LAST_CONNECTIONS;
        while Instant::now() < deadline && !self.is_over(spec, &held).await? {
            sleep(COUNT_INTERVAL).await;
        }
        self.tools.clear(&held).await?;
        self.forget().await;
        Ok(Ended::Again)
    }

    /// Waits until nothing in the namespace goes through ztunnel any more, or until it has had its time.
    async fn captured_end(&mut self, spec: &Spec, held: &Held) -> Result<Ended, StepError> {
        let longest = self.tools.settings.leave_timeout;
        let earliest = Instant::now() + FAREWELL.min(longest);
        let latest = Instant::now() + longest;
        loop {
            let now = Instant::now();
            if now >= earliest && self.is_over(spec, held).await? {
                return Ok(Ended::Again);
            }
            if now >= latest {
                warn!(pod = %spec.pod.name, "connections of a leaving pod have had their time and are cut");
                return Ok(Ended::Again);
            }
            if self.pause(COUNT_INTERVAL).await == Ended::Overtaken {
                return Ok(Ended::Overtaken);
            }
        }
    }

    /// True when no connection of the pod goes through ztunnel, or there is no pod any more.
    async fn is_over(&self, spec: &Spec, held: &Held) -> Result<bool, StepError> {
        Ok(self.tools.captured(held).await? == Some(0) || !held.is_at(&spec.netns).await)
    }

    /// Takes the rules out of the namespace that the pod had before, if it has another one now.
    async fn clear_former_namespace(&mut self, spec: &Spec) {
        let former = match &self.remembered {
            Some(record) if record.spec.netns != spec.netns => record.spec.clone(),
            _ => return,
        };
        self.held = None;
        let cleared = match self.tools.open(&self.uid, &former.netns).await {
            Ok(held) => self.tools.clear(&held).await,
            Err(error) => Err(error),
        };
        if let Err(error) = cleared {
            let error = with_causes(&error);
            info!(pod = %spec.pod.name, error, "the pod's former network namespace is left as it is");
        }
    }

    /// There are no rules of the pod any more: ztunnel and the memory are told.
    async fn let_go(&mut self, spec: &Spec, why: &'static str) {
        info!(pod = %spec.pod.name, netns = %spec.netns.display(), why, "the pod is let go");
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
        let held = Arc::new(self.tools.open(&self.uid, &spec.netns).await?);
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

    fn note(&self, spec: &Spec, stand: Stand) {
        self.tools.report.note(&self.uid, &spec.pod.name, stand);
    }
}

/// What ztunnel's answer means for the pod.
fn stand(serving: Serving) -> Stand {
    match serving {
        Serving::Served => Stand::Captured,
        Serving::Waiting => Stand::Held("no ztunnel has taken it yet".into()),
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
