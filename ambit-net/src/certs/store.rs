//! CertStore: one credential per identity, fetched by one task each, renewed at half life, kept until it ends.
//!
//! Called from every worker thread to get a credential and from the pods' owner to want and forget identities; the
//! fetching runs where [`CertStore::run`] runs. Knows nothing of connections or of how a certificate is signed.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambit_core::identity::SpiffeId;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use super::csr::CertificateRequest;
use super::entry::{Entry, Held, State, locked, renewal};
use super::tally::Tally;
use super::{CertError, Sign};
use crate::backoff::Backoff;
use crate::meters::Meters;
use crate::tasks::{Stop, Tasks};
use crate::tls::Credential;

/// Longest sleep between two looks at the wall clock, which may jump.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Reads the wall clock, in seconds since the epoch.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Bounds of a store.
#[derive(Clone, Copy, Debug)]
pub struct CertStoreSettings {
    /// Signings under way at once; the rest wait in line.
    pub signings: usize,
    /// Identities held at once.
    pub identities: usize,
    /// How long one signing may take.
    pub sign_deadline: Duration,
    /// How long [`CertStore::get`] waits.
    pub wait: Duration,
    /// First and longest wait after a failed signing.
    pub retry: (Duration, Duration),
}

impl Default for CertStoreSettings {
    /// Eight signings and 0.5 to 150 s between tries as in istio/ztunnel; the other bounds are ours.
    fn default() -> Self {
        Self {
            signings: 8,
            identities: 4096,
            sign_deadline: Duration::from_secs(10),
            wait: Duration::from_secs(5),
            retry: (Duration::from_millis(500), Duration::from_secs(150)),
        }
    }
}

/// The credentials of this process. Clones share them.
#[derive(Clone)]
pub struct CertStore {
    shared: Arc<Shared>,
}

struct Shared {
    signer: Arc<dyn Sign>,
    settings: CertStoreSettings,
    clock: Clock,
    tally: Tally,
    slots: Mutex<HashMap<SpiffeId, Slot>>,
    signings: Semaphore,
    /// Told when a slot without a keeper is there.
    new_slot: Notify,
}

struct Slot {
    entry: Arc<Entry>,
    wants: usize,
    has_keeper: bool,
}

impl CertStore {
    /// An empty store. Nothing is fetched until [`run`](Self::run) runs.
    pub fn new(
        signer: Arc<dyn Sign>,
        settings: CertStoreSettings,
        clock: Clock,
        meters: &Meters,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                signer,
                signings: Semaphore::new(settings.signings.clamp(1, Semaphore::MAX_PERMITS)),
                settings,
                clock,
                tally: Tally::new(meters),
                slots: Mutex::default(),
                new_slot: Notify::new(),
            }),
        }
    }

    /// Fetches and renews, on the runtime that polls it, until `stop`.
    pub async fn run(self, stop: Stop) {
        let tasks = Tasks::new("certificates");
        loop {
            self.shared.start_keepers(&tasks);
            tokio::select! {
                () = stop.stopped() => return,
                () = self.shared.new_slot.notified() => {}
            }
        }
    }

    /// The credential of `identity`: at once when a valid one is held, else fetched, with a bounded wait.
    ///
    /// # Errors
    /// When there is none in time: why the last try failed, or that none has ended yet.
    ///
    /// # Cancel safety
    /// Cancel safe; the fetch goes on for the next caller.
    pub async fn get(&self, identity: &SpiffeId) -> Result<Arc<Credential>, CertError> {
        let entry = self.shared.entry(identity, 0)?;
        let until = Instant::now() + self.shared.settings.wait;
        let mut state = entry.state.subscribe();
        let answer = state.wait_for(|state| self.shared.answer(state, until).is_some());
        match timeout_at(until, answer).await {
            Ok(Ok(state)) => {
                (self.shared.answer(&state, until)).unwrap_or(Err(CertError::Deadline))
            }
            Ok(Err(_)) => Err(CertError::Deadline),
            Err(_elapsed) => Err(entry.last_error()),
        }
    }

    /// Fetches ahead of use; each call is undone by one [`forget`](Self::forget).
    ///
    /// # Errors
    /// When the store is full.
    pub fn want(&self, identity: &SpiffeId) -> Result<(), CertError> {
        self.shared.entry(identity, 1).map(drop)
    }

    /// Takes back one [`want`](Self::want); with the last one, the credential and its renewal are gone.
    pub fn forget(&self, identity: &SpiffeId) {
        let mut slots = locked(&self.shared.slots);
        let Some(slot) = slots.get_mut(identity) else {
            return;
        };
        slot.wants = slot.wants.saturating_sub(1);
        if slot.wants == 0 {
            slot.entry.forgotten.notify_one();
            slots.remove(identity);
        }
    }

    /// What is held, in the order of the identities.
    pub fn snapshot(&self) -> Vec<Held> {
        let slots = locked(&self.shared.slots);
        let mut held: Vec<_> = slots.iter().map(|(id, slot)| slot.entry.held(id)).collect();
        held.sort_by(|a, b| a.identity.cmp(&b.identity));
        held
    }
}

impl fmt::Debug for CertStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.snapshot()).finish()
    }
}

impl Shared {
    fn entry(&self, identity: &SpiffeId, wants: usize) -> Result<Arc<Entry>, CertError> {
        let mut slots = locked(&self.slots);
        let limit = self.settings.identities;
        let is_full = slots.len() >= limit;
        let slot = match slots.entry(identity.clone()) {
            Place::Occupied(place) => place.into_mut(),
            Place::Vacant(_) if is_full => return Err(CertError::TooMany(limit)),
            Place::Vacant(place) => {
                self.new_slot.notify_one();
                place.insert(Slot {
                    entry: Arc::new(Entry::new(self.tally.hold(false))),
                    wants: 0,
                    has_keeper: false,
                })
            }
        };
        slot.wants += wants;
        Ok(Arc::clone(&slot.entry))
    }

    fn start_keepers(self: &Arc<Self>, tasks: &Tasks) {
        for (identity, slot) in locked(&self.slots).iter_mut() {
            if slot.has_keeper {
                continue;
            }
            slot.has_keeper = true;
            let (shared, entry) = (Arc::clone(self), Arc::clone(&slot.entry));
            let identity = identity.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = entry.forgotten.notified() => {}
                    () = shared.keep(&identity, &entry) => {}
                }
            });
        }
    }

    /// Removes an identity that was fetched for one use and that nobody wants.
    fn lapses(&self, identity: &SpiffeId, entry: &Arc<Entry>) -> bool {
        let mut slots = locked(&self.slots);
        match slots.get(identity) {
            Some(slot) if !Arc::ptr_eq(&slot.entry, entry) => true,
            Some(slot) if slot.wants > 0 => false,
            _ => {
                slots.remove(identity);
                true
            }
        }
    }

    /// What a caller gets from this state; none while waiting can help.
    fn answer(&self, state: &State, until: Instant) -> Option<Result<Arc<Credential>, CertError>> {
        if let Some(credential) = state.valid_at((self.clock)()) {
            return Some(Ok(Arc::clone(credential)));
        }
        let failure = state.failure.as_ref()?;
        (failure.next_try >= until).then(|| Err(failure.error.clone()))
    }

    /// Fetches, waits until half of the lifetime is over, and again, as long as somebody wants it; after a failure, sooner.
    async fn keep(&self, identity: &SpiffeId, entry: &Arc<Entry>) {
        let (first, cap) = self.settings.retry;
        let mut waits = Backoff::new(first, cap, || fastrand::u64(..));
        loop {
            let fetched = self.fetch(identity).await;
            self.tally.answered(fetched.as_ref().err());
            match fetched {
                Ok(credential) => {
                    waits.reset();
                    let renew_at = renewal(&credential, (self.clock)(), fastrand::u64(..));
                    info!(
                        identity = %identity, serial = credential.serial(),
                        not_after = credential.not_after(), renew_at, "certificate received"
                    );
                    entry.received(credential, self.tally.hold(true));
                    self.wait_until(renew_at).await;
                }
                Err(error) => {
                    let wait = waits.next_wait();
                    warn!(
                        identity = %identity, reason = error.reason().code(), %error,
                        retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                        "no certificate"
                    );
                    let has_valid = entry.has_valid((self.clock)());
                    let next_try = Instant::now() + wait;
                    entry.failed(error, next_try, self.tally.hold(has_valid));
                    sleep(wait).await;
                }
            }
            if self.lapses(identity, entry) {
                return;
            }
        }
    }

    async fn fetch(&self, identity: &SpiffeId) -> Result<Credential, CertError> {
        // The semaphore is never closed; a closed one would mean that nobody counts.
        let _permit = self.signings.acquire().await.ok();
        let asked = CertificateRequest::new(identity)
            .map_err(|error| CertError::Request(Arc::new(error)))?;
        let deadline = self.settings.sign_deadline;
        let signing = self.signer.sign(identity, &asked.request);
        let chain = match timeout(deadline, signing).await {
            Ok(result) => result.map_err(|error| CertError::Sign(Arc::new(error)))?,
            Err(_elapsed) => return Err(CertError::SignDeadline(deadline)),
        };
        let credential = Credential::from_pem(identity, &chain, &asked.key)
            .map_err(|error| CertError::Unusable(Arc::new(error)))?;
        let now = (self.clock)();
        if !credential.is_valid_at(now) {
            return Err(CertError::OutOfTime {
                not_before: credential.not_before(),
                not_after: credential.not_after(),
                now,
            });
        }
        Ok(credential)
    }

    async fn wait_until(&self, time: u64) {
        loop {
            match time.checked_sub((self.clock)()) {
                None | Some(0) => return,
                Some(seconds) => sleep(Duration::from_secs(seconds).min(LOOK_AGAIN)).await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
