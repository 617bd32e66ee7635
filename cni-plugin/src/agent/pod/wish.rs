//! What is wanted of a pod: by the source of pods, which knows what it is, and by CNI, which also knows where it is.
//!
//! Changed by the agent's loop only (`agent.rs`), followed by the pod's task. Pure.

use std::mem;

use crate::agent::pods::Wanted;

/// What is wanted of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Wish {
    /// It is in the mesh.
    Captured(Wanted, Attempt),
    /// It is not.
    Left,
    /// What was begun for a CNI request is undone at once: no app runs in the pod yet.
    Undone(Attempt),
}

/// Which CNI request a wish is from, counted from 1; 0 for wishes of the source.
pub(in crate::agent) type Attempt = u64;

impl Wish {
    /// Changes the wish to leaving; tells whether it was another one.
    pub(in crate::agent) fn become_left(&mut self) -> bool {
        if matches!(self, Self::Undone(_)) {
            return false;
        }
        mem::replace(self, Self::Left) != Self::Left
    }

    /// Changes the wish to what the source wants, unless it is that already; tells whether it was another one. What only CNI
    /// knows of where the pod is stays known.
    pub(in crate::agent) fn become_captured(&mut self, wanted: &Wanted) -> bool {
        let mut wanted = wanted.clone();
        if let Self::Captured(old, _) = self {
            if old.covers(&wanted) {
                return false;
            }
            wanted.place.netns = wanted.place.netns.or_else(|| old.place.netns.clone());
        }
        *self = Self::Captured(wanted, 0);
        true
    }

    /// Takes back what a CNI request wished, if nobody has wished anything since; tells whether that was so.
    pub(in crate::agent) fn become_undone(&mut self, attempt: Attempt) -> bool {
        let current = matches!(self, Self::Captured(_, of) if *of == attempt);
        if current {
            *self = Self::Undone(attempt);
        }
        current
    }

    /// True while the pod is to be in the mesh.
    pub(in crate::agent) fn is_captured(&self) -> bool {
        matches!(self, Self::Captured(..))
    }
}
