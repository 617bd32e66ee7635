//! Which replica does what only one may do: the holder of the Lease `ambit-controller`.
//!
//! Run as one task beside [`crate::duties`]. A holder that cannot renew stops before another one may take over; times are
//! measured by each replica's own clock from when it saw the Lease change, so that clocks need not agree. Follows the
//! leader election of client-go in what it writes.

use std::time::{Duration, SystemTime};

use ambit_core::names::Text;
use ambit_net::tasks::Stop;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::api_server::{AskError, ask};

/// Name of the Lease, in the controller's namespace.
pub const LEASE: &str = "ambit-controller";
/// Others may take over when the Lease has not changed for as long: client-go's default, as all times here.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that has not renewed for as long stops; less than [`DURATION`] by all that its last call may take.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Wait between two looks.
const TURN: Duration = Duration::from_secs(2);
/// Longest read and write together.
const ATTEMPT: Duration = Duration::from_secs(4);
/// Time to give the Lease back when stopping.
const RELEASE: Duration = Duration::from_millis(500);

/// Says in `leads` whether this replica holds the Lease, until told to stop; then gives it back.
pub async fn run(
    client: Client,
    (namespace, identity): (Text, Text),
    leads: watch::Sender<bool>,
    stop: Stop,
) {
    let mut candidate = Candidate {
        leases: Api::namespaced(client, &namespace),
        identity,
        seen: None,
        renewed: None,
    };
    loop {
        tokio::select! {
            () = candidate.turn(&leads) => {}
            () = stop.stopped() => break,
        }
    }
    if leads.send_replace(false)
        && let Ok(Err(error)) = timeout(RELEASE, candidate.release()).await
    {
        debug!(%error, "the Lease could not be given back; it runs out");
    }
}

/// What to do about a Lease.
#[derive(Debug, PartialEq)]
enum Step {
    /// There is none: make it.
    Create,
    /// It is free, or its holder is silent: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Another one holds it.
    Wait,
}

/// Decides over a Lease that has not changed for some time.
fn step(lease: Option<&Lease>, me: &str, unchanged: Duration) -> Step {
    let Some(lease) = lease else {
        return Step::Create;
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    let lasts = u64::try_from(seconds).map_or(DURATION, Duration::from_secs);
    match holder.as_str() {
        "" => Step::Take,
        holder if holder == me => Step::Renew,
        _ if unchanged >= lasts.max(DURATION) => Step::Take,
        _ => Step::Wait,
    }
}

/// The Lease as its next holder writes it; with the version that was read, so that of several only one succeeds.
fn held(lease: Option<&Lease>, me: &str, now: SystemTime) -> Lease {
    let before = lease.and_then(|lease| lease.spec.clone());
    let stays = before
        .as_ref()
        .is_some_and(|spec| spec.holder_identity.as_deref() == Some(me));
    let before = before.unwrap_or_default();
    let now = Timestamp::try_from(now).ok().map(MicroTime);
    let transitions = before.lease_transitions.unwrap_or_default();
    let mut metadata = lease.map(|lease| lease.metadata.clone());
    let metadata = metadata.get_or_insert_default();
    metadata.name = Some(LEASE.to_owned());
    Lease {
        metadata: ObjectMeta::clone(metadata),
        spec: Some(LeaseSpec {
            holder_identity: Some(me.to_owned()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if stays {
                before.acquire_time
            } else {
                now.clone()
            },
            renew_time: now,
            lease_transitions: Some(transitions.saturating_add(i32::from(!stays))),
            ..LeaseSpec::default()
        }),
    }
}

/// One replica.
struct Candidate {
    leases: Api<Lease>,
    identity: Text,
    /// The version of the Lease that was seen last, and since when.
    seen: Option<(String, Instant)>,
    /// When the last renewal that succeeded was begun; none while another one leads.
    renewed: Option<Instant>,
}

impl Candidate {
    /// One look, what follows from it, and the wait for the next.
    async fn turn(&mut self, leads: &watch::Sender<bool>) {
        let began = Instant::now();
        let limit = self.renewed.map_or(began + ATTEMPT, |renewed| {
            (renewed + GIVE_UP).min(began + ATTEMPT)
        });
        let outcome = tokio::select! {
            outcome = self.attempt() => outcome,
            () = sleep_until(limit) => Err(AskError::Late),
        };
        match outcome {
            Ok(holds) => self.renewed = holds.then_some(began),
            Err(error) => {
                warn!(lease = LEASE, %error, "the Lease cannot be read or written");
                self.renewed = self.renewed.filter(|renewed| renewed.elapsed() < GIVE_UP);
            }
        }
        let now = self.renewed.is_some();
        if leads.send_replace(now) != now {
            let identity = &self.identity;
            match now {
                true => info!(lease = LEASE, %identity, "this replica leads"),
                false => info!(lease = LEASE, %identity, "this replica no longer leads"),
            }
        }
        let turn = sleep(TURN);
        match self.renewed {
            Some(renewed) => tokio::select! {
                () = turn => {}
                () = sleep_until(renewed + GIVE_UP) => {}
            },
            None => turn.await,
        }
    }

    /// True when the Lease is ours afterwards.
    async fn attempt(&mut self) -> Result<bool, AskError> {
        let lease = ask(self.leases.get_opt(LEASE)).await?;
        let unchanged = self.unchanged(lease.as_ref());
        let wanted = || held(lease.as_ref(), &self.identity, SystemTime::now());
        let params = PostParams::default();
        let written = match step(lease.as_ref(), &self.identity, unchanged) {
            Step::Wait => return Ok(false),
            Step::Create => ask(self.leases.create(&params, &wanted())).await,
            Step::Take | Step::Renew => ask(self.leases.replace(LEASE, &params, &wanted())).await,
        };
        match written {
            Ok(_) => Ok(true),
            // Another one was faster; the next look says who.
            Err(AskError::Conflict(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How long a Lease has been as it is.
    fn unchanged(&mut self, lease: Option<&Lease>) -> Duration {
        let version = lease.and_then(|lease| lease.metadata.resource_version.clone());
        let version = version.unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed(),
            _ => {
                self.seen = Some((version, Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// Leaves the Lease to whoever looks first.
    async fn release(&self) -> Result<(), AskError> {
        let Some(mut lease) = ask(self.leases.get_opt(LEASE)).await? else {
            return Ok(());
        };
        let holder = lease
            .spec
            .as_mut()
            .and_then(|spec| spec.holder_identity.as_mut());
        match holder {
            Some(holder) if **holder == *self.identity => holder.clear(),
            _ => return Ok(()),
        }
        ask(self.leases.replace(LEASE, &PostParams::default(), &lease)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
