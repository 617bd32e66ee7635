//! Workloads and services that could not be read: enough is kept of them to refuse what would go there.
//!
//! Filled by `update` with what `ambit-net`'s `wire` could still make out, asked by the lookups of [`super::MeshView`]. Without
//! it the address of such a resource would look like one outside the mesh, and be sent to in the clear.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::Serialize;

use crate::names::{NetworkAddress, NetworkId, ServiceKey, WorkloadUid};
use crate::service::ServiceAddress;

/// What could be read of a workload or service of which the rest could not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Its WDS resource name.
    pub name: String,
    /// The addresses that it certainly claims; maybe not all of them.
    pub addresses: Vec<ServiceAddress>,
}

/// What a WDS resource name means: `namespace/hostname` is a service, all else the uid of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Workload(WorkloadUid),
    Service(ServiceKey),
}

impl Key {
    pub(super) fn of(name: &str) -> Self {
        ServiceKey::parse(name)
            .map_or_else(|| Self::Workload(WorkloadUid::new(name)), Self::Service)
    }
}

/// All that could not be read, by name and by address.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_key: BTreeMap<Key, Unreadable>,
    /// Who claims a single address; a set is never empty.
    by_address: BTreeMap<NetworkAddress, BTreeSet<Key>>,
    ranges: Vec<(Key, NetworkId, IpNet)>,
}

impl Claims {
    /// True when it is new or different.
    pub(super) fn put(&mut self, unreadable: Unreadable) -> bool {
        let key = Key::of(&unreadable.name);
        if self.by_key.get(&key) == Some(&unreadable) {
            return false;
        }
        self.take(&key);
        for ServiceAddress { address, prefix } in &unreadable.addresses {
            let range = prefix.map(|prefix| IpNet::new(address.ip, prefix));
            match range {
                Some(Ok(net)) => self
                    .ranges
                    .push((key.clone(), address.network.clone(), net)),
                // Of a range that is none its first address is at least meant.
                None | Some(Err(_)) => {
                    let there = self.by_address.entry(address.clone()).or_default();
                    there.insert(key.clone());
                }
            }
        }
        self.by_key.insert(key, unreadable);
        true
    }

    /// True when there was one.
    pub(super) fn take(&mut self, key: &Key) -> bool {
        let Some(old) = self.by_key.remove(key) else {
            return false;
        };
        for ServiceAddress { address, .. } in &old.addresses {
            if let Some(there) = self.by_address.get_mut(address) {
                there.remove(key);
                if there.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        self.ranges.retain(|(owner, ..)| owner != key);
        true
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.by_key.contains_key(key)
    }

    pub(super) fn has_address(&self, address: &NetworkAddress) -> bool {
        self.by_address.contains_key(address)
    }

    pub(super) fn has_range_around(&self, address: &NetworkAddress) -> bool {
        let mut ranges = self.ranges.iter();
        ranges.any(|(_, network, net)| *network == address.network && net.contains(&address.ip))
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Unreadable> {
        self.by_key.values()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.by_address.is_empty() && self.ranges.is_empty()
    }
}
