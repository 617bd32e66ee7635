//! Keeps the node's own rules (`host.rs`) in step with the captured pods: which addresses and ports kubelet may probe.
//!
//! Told by the pod tasks, which wait until the kernel has it. One task writes, so that changes that come together are one
//! transaction. The rules stay when the agent stops. Knows nothing of pods but their uids.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::checks::Check;
use ambit_core::names::PodUid;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::checks::Checks;
use crate::host;
use crate::redirect::ruleset::Probes;
use crate::redirect::{Applied, RedirectError};
use crate::with_causes;

/// Changes that may wait for the writer: it takes all that wait at once.
const MOST_CHANGES: usize = 256;
/// What the checks call it.
const CHECK: &str = "probes";

/// Why probes of a pod may fail.
#[derive(Clone, Debug, Error)]
#[error("the node's rules for kubelet's probes are not in place: {0}")]
pub struct ProbedError(Arc<str>);

type Answer = oneshot::Sender<Result<(), ProbedError>>;
type Targets = BTreeMap<PodUid, BTreeSet<SocketAddr>>;

/// Takes changes and has them in the kernel when it answers. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Probed {
    changes: mpsc::Sender<(PodUid, BTreeSet<SocketAddr>, Answer)>,
}

/// The one writer. Run it as a task, in the node's own network namespace.
#[derive(Debug)]
pub struct Writer {
    probes: Probes,
    checks: Checks,
    targets: Targets,
    changes: mpsc::Receiver<(PodUid, BTreeSet<SocketAddr>, Answer)>,
    /// How often the rules are compared with what they should be.
    verify_interval: Duration,
}

impl Probed {
    /// Begins with the targets that are known from before a restart, so that none of them is closed meanwhile.
    pub fn new(
        (probes, verify_interval): (Probes, Duration),
        targets: Targets,
        checks: Checks,
    ) -> (Self, Writer) {
        let (sender, changes) = mpsc::channel(MOST_CHANGES);
        let writer = Writer {
            probes,
            checks,
            targets,
            changes,
            verify_interval,
        };
        (Self { changes: sender }, writer)
    }

    /// Makes these the targets of a pod; none when it leaves.
    ///
    /// # Errors
    /// When the kernel has refused. The writer tries again by itself.
    pub async fn set(
        &self,
        uid: &PodUid,
        targets: BTreeSet<SocketAddr>,
    ) -> Result<(), ProbedError> {
        let (done, answer) = oneshot::channel();
        // Both fail only when the writer is gone, which is when the agent stops.
        if self
            .changes
            .send((uid.clone(), targets, done))
            .await
            .is_err()
        {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }
}

impl Writer {
    /// Writes changes until all [`Probed`] handles are gone.
    ///
    /// # Cancel safety
    /// May be dropped at any await: the kernel has the old rules or the new ones.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        let mut verify = interval(self.verify_interval);
        verify.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                taken = self.changes.recv_many(&mut batch, MOST_CHANGES) => if taken == 0 {
                    return;
                },
                _due = verify.tick() => {}
            }
            let verified = batch.is_empty();
            let mut waiting = Vec::new();
            for (uid, targets, done) in batch.drain(..) {
                match targets.is_empty() {
                    true => self.targets.remove(&uid),
                    false => self.targets.insert(uid, targets),
                };
                waiting.push(done);
            }
            let outcome = self.write().await;
            if verified && matches!(outcome, Ok(Applied::Written)) {
                warn!(
                    "the node's rules for probes were not as they should be and have been put right"
                );
            }
            self.note(&outcome);
            for done in waiting {
                // Who asked may have stopped waiting.
                let _told = done.send(outcome.clone().map(|_applied| ()));
            }
        }
    }

    async fn write(&self) -> Result<Applied, ProbedError> {
        let (probes, all) = (
            self.probes,
            self.targets.values().flatten().copied().collect(),
        );
        let written = spawn_blocking(move || host::apply(&probes, &all));
        let refused = |error: &RedirectError| ProbedError(with_causes(error).into());
        match written.await {
            Ok(outcome) => outcome.map_err(|error| refused(&error)),
            Err(_panic) => Err(ProbedError("a thread of the agent panicked".into())),
        }
    }

    fn note(&self, outcome: &Result<Applied, ProbedError>) {
        let pods = self.targets.len();
        self.checks.note(match outcome {
            Ok(_applied) => Check::good(
                CHECK,
                format!("kubelet reaches the probes of {pods} captured pods"),
            ),
            Err(error) => Check::bad(
                CHECK,
                error.to_string(),
                "see that the agent has NET_ADMIN and the kernel nftables nat (modprobe nft_nat)",
            ),
        });
    }
}
