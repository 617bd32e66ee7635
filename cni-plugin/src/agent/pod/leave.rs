//! How a pod leaves the mesh: in peace, or at once when a CNI request for it has failed. The conductor `remove_pod`.
//!
//! Called by the pod's task (`pod.rs`). Others stop to expect the pod in the mesh before it stops to be there.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::wish::Attempt;
use super::{Ended, GONE, PodTask, retry_waits};
use crate::agent::netns::Held;
use crate::agent::orders::Outcome;
use crate::agent::pods::Spec;
use crate::agent::report::Stand;
use crate::agent::tools::StepError;
use crate::redirect::ruleset::Phase;
use crate::with_causes;

/// How long a leaving pod is served at least: so long other nodes may take to learn that it does not speak HBONE any more.
const FAREWELL: Duration = Duration::from_secs(3);
/// How often the captured connections of a leaving pod are counted.
const COUNT_INTERVAL: Duration = Duration::from_millis(500);
/// How long ztunnel may take to end what it carried for a pod that it was told to let go.
const LAST_CONNECTIONS: Duration = Duration::from_secs(5);

impl PodTask {
    /// Lets the pod leave, and waits for another wish.
    pub(super) async fn leave(&mut self) {
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
                // A pod that has run to its end is still known, as one of the past.
                self.tools.revoke(&spec.pod).await?;
                self.announced = false;
                self.let_go(&spec.pod, GONE).await;
                return Ok(Ended::Again);
            }
            other => other?,
        };
        // Others stop to expect it in the mesh before it stops to be there.
        self.tools.revoke(&spec.pod).await?;
        self.announced = false;
        if !self.tools.is_clear(&held).await? {
            self.remember(spec, true).await;
            // Until the end a ztunnel that connects anew is to serve what is captured.
            drop(self.tools.announce(spec, &held));
            self.tools.apply(&held, spec, Phase::Leaving).await?;
            self.note(&spec.pod, Stand::Leaving);
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

    /// Undoes in reverse what was done for a CNI request that has failed. No app runs in the pod, so nothing waits for its
    /// connections.
    pub(super) async fn undo(&mut self, attempt: Attempt) {
        if let Some(record) = self.remembered.clone() {
            let spec = record.spec;
            if let Err(error) = self.tools.revoke(&spec.pod).await {
                let error = with_causes(&error);
                warn!(pod = %spec.pod.name, error, "the pod still says that it is captured");
            }
            self.announced = false;
            self.tools.handoff.withdraw(&self.uid).await;
            let cleared = match self.open(&spec).await {
                Ok(held) => self.tools.clear(&held).await,
                Err(error) if error.is_absence() => Ok(()),
                Err(error) => Err(error),
            };
            match cleared {
                Ok(()) => self.forget().await,
                Err(error) => {
                    let error = with_causes(&error);
                    warn!(pod = %spec.pod.name, error, "the rules in the pod's network namespace could not be removed");
                    self.held = None;
                }
            }
        }
        self.settle(attempt, Outcome::Undone);
        self.tools.report.strike(&self.uid);
        let _told = self.finished.send(self.uid.clone()).await;
        let _next_wish = self.wish.changed().await;
    }
}
