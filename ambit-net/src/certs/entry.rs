//! Entry: what the store holds for one identity, and when that is to be renewed.
//!
//! Used by the store alone: the identity's keeper writes, everybody else reads or waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ambit_core::identity::SpiffeId;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::CertError;
use crate::meters::Hold;
use crate::tls::Credential;

/// What the store holds for one identity, for status and metrics.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// The identity.
    pub identity: SpiffeId,
    /// Serial number in hexadecimal; none while there is no certificate.
    pub serial: Option<String>,
    /// First second of validity, in seconds since the epoch.
    pub not_before: Option<u64>,
    /// Last second of validity, in seconds since the epoch.
    pub not_after: Option<u64>,
    /// Certificates received for this identity so far.
    pub received: u64,
    /// Why the last try failed; none after a success.
    pub error: Option<String>,
}

/// One identity. Its keeper writes the state, everybody else reads it.
pub(super) struct Entry {
    pub(super) state: watch::Sender<State>,
    counted: Mutex<Hold>,
    /// Told when nobody wants the identity any more.
    pub(super) forgotten: Notify,
}

#[derive(Default)]
pub(super) struct State {
    credential: Option<Arc<Credential>>,
    received: u64,
    pub(super) failure: Option<Failure>,
}

/// Why there is nothing newer.
pub(super) struct Failure {
    pub(super) error: CertError,
    pub(super) next_try: Instant,
}

impl State {
    /// The credential, if it may be shown at this time.
    pub(super) fn valid_at(&self, now: u64) -> Option<&Arc<Credential>> {
        self.credential
            .as_ref()
            .filter(|held| held.is_valid_at(now))
    }
}

impl Entry {
    pub(super) fn new(counted: Hold) -> Self {
        Self {
            state: watch::Sender::new(State::default()),
            counted: Mutex::new(counted),
            forgotten: Notify::new(),
        }
    }

    /// Puts a credential in the place of the former one; `counted` counts the entry from now on.
    pub(super) fn received(&self, credential: Credential, counted: Hold) {
        *locked(&self.counted) = counted;
        self.state.send_modify(|state| {
            state.credential = Some(Arc::new(credential));
            state.received += 1;
            state.failure = None;
        });
    }

    /// Notes a failure beside the former credential; `counted` counts the entry from now on.
    pub(super) fn failed(&self, error: CertError, next_try: Instant, counted: Hold) {
        *locked(&self.counted) = counted;
        self.state
            .send_modify(|state| state.failure = Some(Failure { error, next_try }));
    }

    /// True when there is a credential that may be shown at this time.
    pub(super) fn has_valid(&self, now: u64) -> bool {
        self.state.borrow().valid_at(now).is_some()
    }

    pub(super) fn last_error(&self) -> CertError {
        let state = self.state.borrow();
        let failure = state.failure.as_ref();
        failure.map_or(CertError::Deadline, |failure| failure.error.clone())
    }

    pub(super) fn held(&self, identity: &SpiffeId) -> Held {
        let state = self.state.borrow();
        let credential = state.credential.as_deref();
        Held {
            identity: identity.clone(),
            serial: credential.map(|held| held.serial().to_owned()),
            not_before: credential.map(Credential::not_before),
            not_after: credential.map(Credential::not_after),
            received: state.received,
            error: state.failure.as_ref().map(|f| f.error.to_string()),
        }
    }
}

/// When to renew: between 40 and 50 % of the lifetime, so that a node's certificates spread. For one that is handed out
/// later than that, in the middle of what is left.
pub(super) fn renewal(credential: &Credential, now: u64, roll: u64) -> u64 {
    let lifetime = credential
        .not_after()
        .saturating_sub(credential.not_before());
    let jitter = roll % (lifetime / 10 + 1);
    let planned = credential.not_before() + (lifetime / 2).saturating_sub(jitter);
    let middle = now + (credential.not_after().saturating_sub(now) / 2).max(1);
    if planned > now { planned } else { middle }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is one assignment, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Leaf, TestAuthority};

    #[test]
    fn renewal_is_planned_ahead_of_half_life_and_never_in_the_past() {
        let id = "spiffe://cluster.local/ns/shop/sa/web";
        let mut leaf = Leaf::new([id]);
        (leaf.not_before, leaf.not_after) = (1000, 2000);
        let credential = TestAuthority::new().credential_with(id, &leaf);
        assert_eq!(renewal(&credential, 1000, 0), 1500);
        assert_eq!(renewal(&credential, 1000, 100), 1400);
        assert_eq!(renewal(&credential, 1000, 101), 1500);
        assert_eq!(renewal(&credential, 1600, 0), 1800);
        assert_eq!(renewal(&credential, 1999, 0), 2000);
        assert_eq!(renewal(&credential, 3000, 0), 3001);
    }
}
