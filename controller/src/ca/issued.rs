//! Which certificates were signed and until when they are good: what `ambit status` prints of identities.
//!
//! Written by the CA, read by the overview. Only the newest of each identity and node is kept, and none that has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ambit_core::identity::SpiffeId;
use ambit_core::names::Text;
use ambit_core::status::IdentityStatus;

/// The certificates; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Issued {
    newest: Arc<Mutex<BTreeMap<(SpiffeId, Text), u64>>>,
}

impl Issued {
    /// Notes a certificate; `not_after` is in seconds since the epoch.
    pub fn note(&self, identity: SpiffeId, node: &Text, not_after: u64) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.insert((identity, Text::clone(node)), not_after);
    }

    /// Those that are still good at `now` (seconds since the epoch), by identity and node; forgets the others.
    pub fn status(&self, now: u64) -> Vec<IdentityStatus> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.retain(|_, not_after| *not_after > now);
        let certificates = newest.iter();
        certificates
            .map(|((identity, node), not_after)| IdentityStatus {
                identity: identity.to_string(),
                node: node.to_string(),
                not_after: *not_after,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_identity_and_node_is_shown_until_it_ends() {
        let issued = Issued::default();
        let identity = || SpiffeId::new("cluster.local", "a", "b");
        let (one, two) = (Text::from("n1"), Text::from("n2"));
        issued.note(identity(), &one, 100);
        issued.note(identity(), &one, 200);
        issued.note(identity(), &two, 150);
        let shown = |now| {
            let status = issued.status(now).into_iter();
            status.map(|i| (i.node, i.not_after)).collect::<Vec<_>>()
        };
        assert_eq!(shown(120), [("n1".to_owned(), 200), ("n2".to_owned(), 150)]);
        assert_eq!(shown(150), [("n1".to_owned(), 200)]);
    }
}
