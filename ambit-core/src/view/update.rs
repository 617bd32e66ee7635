//! How a [`MeshView`] changes: one resource at a time, by key, keeping every index true.
//!
//! Called with what xDS delivered. Every change first takes back all that the old resource of the same key had put into
//! the indexes, so that two resources which share an address, a name or a service never disturb each other.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::sync::Arc;

use ipnet::IpNet;

use crate::names::{NamespacedName, NetworkAddress, ServiceKey, Text, WorkloadUid};
use crate::policy::{Authorization, PolicyScope};
use crate::service::Service;
use crate::view::unreadable::{Key, Unreadable};
use crate::view::{MeshView, Range};
use crate::workload::{Health, NetworkMode, TunnelProtocol, Workload};

/// One change of what a proxy knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// A workload is new or different.
    Workload(Box<Workload>),
    /// A service is new or different.
    Service(Box<Service>),
    /// A workload or service is new or different and could not be read.
    ///
    /// What was known of it before stays in force, unless that was a workload to be reached in plain text: it may since
    /// have joined the mesh.
    Unreadable(Box<Unreadable>),
    /// A workload or service is gone, by its WDS resource name: `namespace/hostname` is a service, all else a uid.
    RemoveAddress(String),
    /// A policy is new or different.
    Policy(Box<Authorization>),
    /// A policy is gone.
    RemovePolicy(NamespacedName),
}

/// What was really changed; resources that were equal before are not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// True when open connections have to be judged again: a policy, or what a known workload says of its policies, is
    /// different. A verdict of [`crate::reason::Reason::PolicyNotSynced`] is then no cause to cut: the policy is on its way.
    pub policies: bool,
    /// Workloads that are new, different or gone; one may be named twice.
    pub workloads: Vec<WorkloadUid>,
    /// Services that are new, different or gone; one may be named twice.
    pub services: Vec<ServiceKey>,
}

impl MeshView {
    /// Applies changes in their order.
    pub fn apply(&mut self, updates: impl IntoIterator<Item = Update>) -> Changed {
        let mut changed = Changed::default();
        for update in updates {
            match update {
                Update::Workload(workload) => self.put_workload(*workload, &mut changed),
                Update::Service(service) => self.put_service(*service, &mut changed),
                Update::Unreadable(what) => self.put_unreadable(*what, &mut changed),
                Update::RemoveAddress(name) => self.remove_address(Key::of(&name), &mut changed),
                Update::Policy(policy) => self.put_policy(*policy, &mut changed),
                Update::RemovePolicy(name) => changed.policies |= self.take_policy(&name).is_some(),
            }
        }
        changed
    }

    fn put_unreadable(&mut self, what: Unreadable, changed: &mut Changed) {
        let key = Key::of(&what.name);
        if !self.unreadable.put(what) {
            return;
        }
        if let Key::Workload(uid) = &key {
            let old = self.workload(uid);
            if old.is_some_and(|old| old.tunnel_protocol == TunnelProtocol::None) {
                self.take_workload(uid);
            }
        }
        changed.name(key);
    }

    fn remove_address(&mut self, key: Key, changed: &mut Changed) {
        let was_unreadable = self.unreadable.take(&key);
        let was_known = match &key {
            Key::Workload(uid) => self.take_workload(uid),
            Key::Service(key) => self.take_service(key),
        };
        if was_unreadable || was_known {
            changed.name(key);
        }
    }

    fn put_workload(&mut self, workload: Workload, changed: &mut Changed) {
        self.unreadable.take(&Key::Workload(workload.uid.clone()));
        let old = self.workloads.get(&workload.uid);
        if old.is_some_and(|old| **old == workload) {
            return;
        }
        changed.policies |= old.is_some_and(|old| !same_policies(old, &workload));
        changed.workloads.push(workload.uid.clone());
        self.take_workload(&workload.uid);
        let workload = Arc::new(workload);
        for address in addresses(&workload) {
            let there = self.by_address.entry(address).or_default();
            let place = there
                .iter()
                .position(|w| rank(w) <= rank(&workload))
                .unwrap_or(there.len());
            // The same address may be listed twice, once as an IPv4-mapped one.
            if !there.iter().any(|w| w.uid == workload.uid) {
                there.insert(place, Arc::clone(&workload));
            }
        }
        for key in workload.services.keys() {
            let endpoints = &mut self.services.entry(key.clone()).or_default().endpoints;
            put_sorted(endpoints, &workload, |w| &w.uid);
        }
        self.workloads.insert(workload.uid.clone(), workload);
    }

    fn take_workload(&mut self, uid: &WorkloadUid) -> bool {
        let Some(old) = self.workloads.remove(uid) else {
            return false;
        };
        for address in addresses(&old) {
            drop_from(&mut self.by_address, address, |w| w.uid == *uid);
        }
        for key in old.services.keys() {
            if let MapEntry::Occupied(mut entry) = self.services.entry(key.clone()) {
                entry.get_mut().endpoints.retain(|w| w.uid != *uid);
                if entry.get().is_empty() {
                    entry.remove();
                }
            }
        }
        true
    }

    fn put_service(&mut self, service: Service, changed: &mut Changed) {
        self.unreadable.take(&Key::Service(service.key.clone()));
        if self
            .service(&service.key)
            .is_some_and(|old| **old == service)
        {
            return;
        }
        changed.services.push(service.key.clone());
        self.take_service(&service.key);
        let service = Arc::new(service);
        for vip in &service.addresses {
            let Some(prefix) = vip.prefix else {
                let there = self.by_vip.entry(vip.address.clone()).or_default();
                put_sorted(there, &service, |s| &s.key);
                continue;
            };
            // A prefix that is longer than the address covers nothing.
            if let Ok(net) = IpNet::new(vip.address.ip, prefix) {
                let network = vip.address.network.clone();
                let place = self
                    .ranges
                    .partition_point(|r| r.service.key <= service.key);
                self.ranges.insert(
                    place,
                    Range {
                        network,
                        net,
                        service: Arc::clone(&service),
                    },
                );
            }
        }
        let named = self
            .by_hostname
            .entry(service.key.hostname.clone())
            .or_default();
        put_sorted(named, &service, |s| &s.key);
        let entry = self.services.entry(service.key.clone()).or_default();
        entry.service = Some(service);
    }

    /// Leaves the endpoints: they are what workloads say, and the service may come back.
    fn take_service(&mut self, key: &ServiceKey) -> bool {
        let MapEntry::Occupied(mut entry) = self.services.entry(key.clone()) else {
            return false;
        };
        let Some(old) = entry.get_mut().service.take() else {
            return false;
        };
        if entry.get().is_empty() {
            entry.remove();
        }
        for vip in &old.addresses {
            drop_from(&mut self.by_vip, vip.address.clone(), |s| s.key == *key);
        }
        self.ranges.retain(|r| r.service.key != *key);
        drop_from(&mut self.by_hostname, old.key.hostname.clone(), |s| {
            s.key == *key
        });
        true
    }

    fn put_policy(&mut self, policy: Authorization, changed: &mut Changed) {
        if self.policy(&policy.name).is_some_and(|old| **old == policy) {
            return;
        }
        changed.policies = true;
        self.take_policy(&policy.name);
        let (name, policy) = (policy.name.clone(), Arc::new(policy));
        match policy.scope {
            PolicyScope::Global => {
                self.global_policies
                    .insert(name.clone(), Arc::clone(&policy));
            }
            PolicyScope::Namespace => {
                let theirs = self
                    .namespace_policies
                    .entry(Text::clone(&name.namespace))
                    .or_default();
                theirs.insert(name.clone(), Arc::clone(&policy));
            }
            PolicyScope::WorkloadSelector => {}
        }
        self.policies.insert(name, policy);
    }

    fn take_policy(&mut self, name: &NamespacedName) -> Option<Arc<Authorization>> {
        let old = self.policies.remove(name)?;
        self.global_policies.remove(name);
        if let MapEntry::Occupied(mut theirs) =
            self.namespace_policies.entry(Text::clone(&name.namespace))
        {
            theirs.get_mut().remove(name);
            if theirs.get().is_empty() {
                theirs.remove();
            }
        }
        Some(old)
    }
}

impl Changed {
    fn name(&mut self, key: Key) {
        match key {
            Key::Workload(uid) => self.workloads.push(uid),
            Key::Service(key) => self.services.push(key),
        }
    }
}

impl super::Entry {
    fn is_empty(&self) -> bool {
        self.service.is_none() && self.endpoints.is_empty()
    }
}

/// The keys under which a workload is found: none when its addresses are its node's.
fn addresses(workload: &Workload) -> impl Iterator<Item = NetworkAddress> + '_ {
    let own = workload.network_mode == NetworkMode::Standard;
    let ips = workload.addresses.iter().filter(move |_| own);
    ips.map(|ip| NetworkAddress::new(workload.network.clone(), *ip))
}

/// Who answers for an address that several claim. HBONE first: if the claim is stale the peer's identity shows it, while
/// a stale plaintext claim would send in the clear what should not be.
fn rank(workload: &Workload) -> (bool, bool) {
    (
        workload.tunnel_protocol == TunnelProtocol::Hbone,
        workload.health == Health::Healthy,
    )
}

fn same_policies(old: &Workload, new: &Workload) -> bool {
    old.authorization_policies == new.authorization_policies
        && old.policy_unreadable == new.policy_unreadable
        && old.namespace == new.namespace
}

/// Inserts by key; an element with the same key is replaced.
fn put_sorted<T, K: Ord>(list: &mut Vec<Arc<T>>, item: &Arc<T>, key: impl Fn(&T) -> &K) {
    match list.binary_search_by(|there| key(there).cmp(key(item))) {
        Ok(at) => {
            if let Some(slot) = list.get_mut(at) {
                *slot = Arc::clone(item);
            }
        }
        Err(at) => list.insert(at, Arc::clone(item)),
    }
}

/// Removes from one list of an index, and the list when nothing is left of it.
fn drop_from<K: Ord, T>(index: &mut BTreeMap<K, Vec<T>>, key: K, gone: impl Fn(&T) -> bool) {
    if let MapEntry::Occupied(mut there) = index.entry(key) {
        there.get_mut().retain(|item| !gone(item));
        if there.get().is_empty() {
            there.remove();
        }
    }
}
