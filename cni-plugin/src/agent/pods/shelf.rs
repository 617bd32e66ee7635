//! Objects of one kind as a watch and single reads have told of them, newest first.
//!
//! Used by `cluster.rs`. A list that begins anew replaces what is there when it is complete and not before, so that nothing
//! seems to be gone meanwhile; what was read singly stays if it is newer. Knows nothing of what the objects are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// An object's `metadata.resourceVersion` as a number; none where it is no number. Versions of one kind grow
/// (Kubernetes KEP-5504; true of every API server on etcd).
pub type Version = Option<u64>;

/// Deletions that are remembered, so that a read from before one is known to be old: as many as a node has pods.
const MOST_GRAVES: usize = 256;

/// What a watch says.
#[derive(Clone, Debug)]
pub enum Said<K, V> {
    /// A list begins.
    Begin,
    /// An object of the list.
    Listed(K, Version, V),
    /// The list is complete.
    Complete,
    /// An object is new or has changed.
    Is(K, Version, V),
    /// An object has been deleted.
    Gone(K, Version),
}

/// The objects.
#[derive(Debug)]
pub struct Shelf<K, V> {
    known: BTreeMap<K, (Version, V)>,
    /// The list that is coming in.
    listed: Option<BTreeMap<K, (Version, V)>>,
    /// What was read singly while it did.
    learned: BTreeSet<K>,
    graves: VecDeque<(K, Version)>,
    complete: bool,
}

impl<K, V> Default for Shelf<K, V> {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            listed: None,
            learned: BTreeSet::new(),
            graves: VecDeque::new(),
            complete: false,
        }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> Shelf<K, V> {
    /// Takes what the watch says; true when something is known now that was not before.
    pub fn hear(&mut self, said: Said<K, V>) -> bool {
        match said {
            Said::Begin => {
                self.listed = Some(BTreeMap::new());
                self.learned.clear();
                false
            }
            Said::Listed(key, version, value) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(key, (version, value));
                }
                false
            }
            Said::Complete => self.replace(),
            Said::Is(key, version, value) => self.put(key, version, value),
            Said::Gone(key, version) => {
                self.bury(key.clone(), version);
                self.known.remove(&key).is_some()
            }
        }
    }

    /// Takes an object that was read singly.
    pub fn learn(&mut self, key: &K, version: Version, value: V) {
        let grave = self.graves.iter().find(|(buried, _)| buried == key);
        if grave.is_some_and(|(_, deleted)| !is_newer(version, *deleted)) {
            return;
        }
        self.learned.insert(key.clone());
        self.put(key.clone(), version, value);
    }

    /// True once a list has been complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// An object.
    pub fn find(&self, key: &K) -> Option<&V> {
        self.known.get(key).map(|(_, value)| value)
    }

    /// All objects.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.known.iter().map(|(key, (_, value))| (key, value))
    }

    fn put(&mut self, key: K, version: Version, value: V) -> bool {
        if let Some((known, old)) = self.known.get(&key) {
            if is_newer(*known, version) {
                return false;
            }
            let news = *old != value;
            self.known.insert(key, (version, value));
            return news;
        }
        self.known.insert(key, (version, value));
        true
    }

    fn replace(&mut self) -> bool {
        let mut listed = self.listed.take().unwrap_or_default();
        for key in std::mem::take(&mut self.learned) {
            let Some(read) = self.known.get(&key) else {
                continue;
            };
            let newer = listed
                .get(&key)
                .is_none_or(|(version, _)| is_newer(read.0, *version));
            if newer {
                listed.insert(key, read.clone());
            }
        }
        let first = !std::mem::replace(&mut self.complete, true);
        let before = std::mem::replace(&mut self.known, listed);
        let mut pairs = before.iter().zip(&self.known);
        let same = before.len() == self.known.len()
            && pairs.all(|((a, (_, was)), (b, (_, is)))| a == b && was == is);
        first || !same
    }

    fn bury(&mut self, key: K, version: Version) {
        if self.graves.len() >= MOST_GRAVES {
            self.graves.pop_front();
        }
        self.graves.push_back((key, version));
    }
}

/// True when `a` is certainly newer than `b`.
fn is_newer(a: Version, b: Version) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a > b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(version: u64) -> Version {
        Some(version)
    }

    fn shown(shelf: &Shelf<&'static str, u32>) -> Vec<(&'static str, u32)> {
        shelf.iter().map(|(key, value)| (*key, *value)).collect()
    }

    fn listed(objects: &[(&'static str, u64, u32)]) -> Shelf<&'static str, u32> {
        let mut shelf = Shelf::default();
        shelf.hear(Said::Begin);
        for (key, version, value) in objects {
            shelf.hear(Said::Listed(*key, at(*version), *value));
        }
        assert!(shelf.hear(Said::Complete));
        shelf
    }

    #[test]
    fn the_newest_version_of_an_object_counts_wherever_it_is_from() {
        let mut shelf = listed(&[("a", 5, 1)]);
        shelf.learn(&"a", at(9), 2);
        assert!(!shelf.hear(Said::Is("a", at(7), 1)));
        assert_eq!(shown(&shelf), [("a", 2)]);
        assert!(shelf.hear(Said::Is("a", at(12), 3)));
        shelf.learn(&"a", at(10), 2);
        assert_eq!(shown(&shelf), [("a", 3)]);
        assert!(
            !shelf.hear(Said::Is("a", at(13), 3)),
            "same value is no news"
        );
    }

    #[test]
    fn a_list_that_begins_anew_counts_when_it_is_complete() {
        let mut shelf = listed(&[("a", 1, 1), ("b", 2, 2)]);
        assert!(!shelf.hear(Said::Begin));
        assert!(!shelf.hear(Said::Listed("b", at(2), 2)));
        assert_eq!(shown(&shelf), [("a", 1), ("b", 2)]);
        assert!(shelf.hear(Said::Complete), "a is gone");
        assert_eq!(shown(&shelf), [("b", 2)]);
        shelf.hear(Said::Begin);
        shelf.hear(Said::Listed("b", at(2), 2));
        assert!(!shelf.hear(Said::Complete), "nothing has changed");
    }

    #[test]
    fn what_is_read_while_a_list_comes_in_survives_the_list() {
        let mut shelf = listed(&[("a", 1, 1)]);
        shelf.hear(Said::Begin);
        shelf.hear(Said::Listed("a", at(1), 1));
        shelf.learn(&"new", at(8), 8);
        shelf.learn(&"a", at(9), 9);
        shelf.hear(Said::Complete);
        assert_eq!(shown(&shelf), [("a", 9), ("new", 8)]);
    }

    #[test]
    fn a_read_from_before_the_deletion_brings_nothing_back() {
        let mut shelf = listed(&[("a", 1, 1)]);
        assert!(shelf.hear(Said::Gone("a", at(5))));
        shelf.learn(&"a", at(4), 1);
        assert_eq!(shown(&shelf), []);
        shelf.learn(&"a", at(6), 2);
        assert_eq!(shown(&shelf), [("a", 2)]);
    }
}
