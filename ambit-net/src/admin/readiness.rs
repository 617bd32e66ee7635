//! Whether a program is ready: it is when nothing blocks it, and what blocks it has a name.
//!
//! Written by the parts of a program that others depend on, read by the probe. Knows nothing of HTTP.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a program still waits for; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Readiness {
    /// Ready, until something blocks it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the program not ready until [`clear`](Self::clear) is called with the same name.
    pub fn block(&self, name: &'static str) {
        self.names().insert(name);
    }

    /// Takes a blocker away; one that is not there is no mistake.
    pub fn clear(&self, name: &'static str) {
        self.names().remove(name);
    }

    /// The names of what blocks, sorted; none when ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.names().iter().copied().collect()
    }

    /// A set of names is true whatever thread panicked, so a poisoned lock is taken as it is.
    fn names(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
