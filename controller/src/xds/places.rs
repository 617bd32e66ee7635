//! Places: how many streams there may be at once, in all and of one node, so that no node can keep the others out.
//!
//! Asked by the discovery service before it takes a stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ambit_core::names::Text;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Streams of one node at once: a proxy's, its successor's, and some that have not been noticed to be lost.
const OF_ONE_NODE: usize = 8;

/// All places; cheap to clone.
#[derive(Clone, Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    /// Only nodes that have a stream.
    of_nodes: Arc<Mutex<BTreeMap<Text, usize>>>,
}

/// A place; given back on drop.
#[derive(Debug)]
pub struct Place {
    places: Places,
    node: Text,
    _one_of_all: OwnedSemaphorePermit,
}

impl Places {
    /// So many for all nodes together.
    pub fn new(limit: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
            of_nodes: Arc::default(),
        }
    }

    /// A place for a stream of this node, if there is one left.
    pub fn take(&self, node: &Text) -> Option<Place> {
        let mut of_nodes = self.locked();
        let taken = of_nodes.get(node).copied().unwrap_or_default();
        if taken >= OF_ONE_NODE {
            return None;
        }
        let one_of_all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        of_nodes.insert(Text::clone(node), taken + 1);
        Some(Place {
            places: self.clone(),
            node: Text::clone(node),
            _one_of_all: one_of_all,
        })
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<Text, usize>> {
        // Every change under the lock is one insertion or removal.
        self.of_nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of_nodes = self.places.locked();
        match of_nodes.get_mut(&self.node) {
            Some(taken) if *taken > 1 => *taken -= 1,
            _ => drop(of_nodes.remove(&self.node)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_has_its_places_and_all_have_theirs() {
        let places = Places::new(OF_ONE_NODE + 1);
        let (one, two) = (Text::from("n1"), Text::from("n2"));
        let mut held: Vec<_> = (0..OF_ONE_NODE)
            .map(|_| places.take(&one).unwrap())
            .collect();
        assert!(places.take(&one).is_none());
        let other = places.take(&two).unwrap();
        assert!(places.take(&two).is_none(), "all are taken");
        held.pop();
        assert!(places.take(&two).is_some());
        drop((held, other));
        assert!(places.locked().is_empty());
        assert!(places.take(&one).is_some());
    }
}
