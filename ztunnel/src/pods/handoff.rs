//! The conversation with the node agent: connect, take the snapshot, then changes; acknowledge what has been done.
//!
//! Run by `app` for the life of the process. While the agent is gone the pods are served on, and it connects again with
//! growing waits. ZDS of istio/ztunnel, except that after a breach of the protocol it hangs up and tries again instead of
//! ending: the pods that are served have done nothing wrong.

use std::collections::HashSet;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use ambit_core::names::PodUid;
use ambit_net::backoff::Backoff;
use ambit_net::handoff::{Connection, HandoffError, Packet};
use ambit_net::netns::{Netns, NetnsError};
use ambit_net::telemetry::with_causes;
use ambit_net::wire::handoff::{self, Request, ZdsError};
use thiserror::Error;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep, timeout};
use tracing::{info, warn};

use super::PodSet;
/// First and longest wait before connecting again (ZDS of istio/ztunnel).
const RECONNECT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(15));

/// How often pods that could not be served are tried again (istio/ztunnel).
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// How long the agent may take to make room for an answer.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// Why a conversation ended.
#[derive(Debug, Error)]
enum SessionError {
    /// The agent is gone.
    #[error("the node agent closed the connection")]
    Closed,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] HandoffError),
    /// The agent does not read its answers.
    #[error("the node agent does not take an answer")]
    Stuck,
    /// The agent sent what the protocol does not allow here.
    #[error("breach of the handoff protocol: {0}")]
    Breach(#[from] Breach),
}

/// What the protocol does not allow.
#[derive(Debug, Error)]
enum Breach {
    /// The packet is not a request.
    #[error(transparent)]
    Packet(#[from] ZdsError),
    /// The descriptor is not of a network namespace.
    #[error(transparent)]
    Descriptor(#[from] NetnsError),
    /// A request of the snapshot after it was complete.
    #[error("{0} after the snapshot was complete")]
    Late(&'static str),
}

/// Follows the agent at `path` until the future is dropped.
///
/// # Cancel safety
/// A request is carried out as a whole or not at all; its acknowledgement may be lost, after which the agent asks again.
pub(crate) async fn run(pods: &mut PodSet, path: &Path) {
    let (first, cap) = RECONNECT;
    let mut waits = Backoff::new(first, cap, || fastrand::u64(..));
    let mut retry = interval_at(Instant::now() + RETRY_EVERY, RETRY_EVERY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = false;
    loop {
        match Connection::connect(path) {
            Ok(agent) => {
                info!(socket = %path.display(), "connected to the node agent");
                let connected = pods.hold_agent();
                let mut session = Session::new(agent);
                let error = session.run(pods, &mut retry).await;
                drop(connected);
                pods.lost_agent();
                warn!(
                    error = with_causes(&error),
                    "lost the node agent; its pods are served on"
                );
                if session.is_complete() {
                    waits.reset();
                }
                told = false;
            }
            Err(error) if !told => {
                warn!(
                    error = with_causes(&error),
                    "cannot reach the node agent; trying again"
                );
                told = true;
            }
            Err(_same) => {}
        }
        meanwhile(pods, &mut retry, sleep(waits.next_wait())).await;
    }
}

/// One connection to the agent.
struct Session {
    agent: Connection,
    /// The pods of the snapshot so far; none once it is complete.
    snapshot: Option<HashSet<PodUid>>,
}

impl Session {
    fn new(agent: Connection) -> Self {
        Self {
            agent,
            snapshot: Some(HashSet::new()),
        }
    }

    fn is_complete(&self) -> bool {
        self.snapshot.is_none()
    }

    async fn run(&mut self, pods: &mut PodSet, retry: &mut Interval) -> SessionError {
        match self.converse(pods, retry).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn converse(
        &mut self,
        pods: &mut PodSet,
        retry: &mut Interval,
    ) -> Result<std::convert::Infallible, SessionError> {
        self.send(&handoff::hello()).await?;
        loop {
            let received = meanwhile(pods, retry, self.agent.recv()).await?;
            let packet = received.ok_or(SessionError::Closed)?;
            let outcome = self.carry_out(pods, packet);
            let answer = match &outcome {
                Ok(Ok(())) => handoff::ack(Ok(())),
                Ok(Err(text)) => handoff::ack(Err(text)),
                Err(breach) => handoff::ack(Err(&breach.to_string())),
            };
            self.send(&answer).await?;
            outcome?.ok();
        }
    }

    /// Does what a packet asks for; the inner result is what the agent is told.
    fn carry_out(
        &mut self,
        pods: &mut PodSet,
        packet: Packet,
    ) -> Result<Result<(), String>, Breach> {
        let (request, netns) = Request::decode(packet)?;
        let word = request.word();
        let done = match (request, netns) {
            (Request::Add(pod), Some(netns)) => {
                let netns = Netns::from_fd(netns)?;
                self.note(&pod.uid);
                let uid = pod.uid.clone();
                let added = pods.add(pod, netns);
                added.map_err(|error| {
                    let text = with_causes(&error);
                    warn!(pod.uid = %uid, error = %text, "pod cannot be served; trying again");
                    text
                })
            }
            (Request::Keep(uid), _) => {
                let snapshot = self.snapshot.as_mut().ok_or(Breach::Late(word))?;
                let kept = pods.keep(&uid);
                snapshot.insert(uid);
                kept.map_err(|error| error.to_string())
            }
            (Request::Remove(uid), _) => {
                if let Some(snapshot) = &mut self.snapshot {
                    snapshot.remove(&uid);
                }
                pods.remove(&uid);
                Ok(())
            }
            (Request::SnapshotSent, _) => {
                let snapshot = self.snapshot.take().ok_or(Breach::Late(word))?;
                pods.complete(&snapshot);
                Ok(())
            }
            // Decoding gives every Add its descriptor.
            (Request::Add(_), None) => Err("no descriptor".to_owned()),
        };
        Ok(done)
    }

    fn note(&mut self, uid: &PodUid) {
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.insert(uid.clone());
        }
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), SessionError> {
        match timeout(SEND_DEADLINE, self.agent.send(bytes, None)).await {
            Ok(sent) => Ok(sent?),
            Err(_elapsed) => Err(SessionError::Stuck),
        }
    }
}

/// Waits for something and keeps trying the pods that are not served.
async fn meanwhile<F: Future>(pods: &mut PodSet, retry: &mut Interval, event: F) -> F::Output {
    let mut event = pin!(event);
    loop {
        tokio::select! {
            output = &mut event => return output,
            _ = retry.tick() => pods.retry(),
        }
    }
}

#[cfg(test)]
mod tests;
