//! What one proxy knows of the mesh, and how it is looked up.
//!
//! Filled by [`update`] from xDS, read by every decision. Holds no lock and knows no wire format; `ambit-net` shares
//! it between threads. An index never points at something that is gone, and everything holds whatever the order in
//! which workloads, services and policies arrive.

pub mod unreadable;
pub mod update;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use crate::names::{
    ClusterId, Hostname, NamespacedName, NetworkAddress, NetworkId, ServiceKey, Text, WorkloadUid,
};
use crate::policy::{self, Authorization, Connection, Verdict};
use crate::reason::Reason;
use crate::service::Service;
use crate::view::unreadable::{Claims, Key, Unreadable};
use crate::workload::Workload;

/// What one proxy knows of the mesh.
///
/// Ordered maps throughout: dumps are in order, and no change is ever slow because a table grows (a hash table of 100,000
/// entries takes milliseconds for that, in which no connection could be decided).
#[derive(Debug)]
pub struct MeshView {
    network: NetworkId,
    cluster: ClusterId,
    workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    /// Workloads by address, the one that answers first; a list is never empty.
    by_address: BTreeMap<NetworkAddress, Vec<Arc<Workload>>>,
    services: BTreeMap<ServiceKey, Entry>,
    /// Services by single virtual address, sorted by key; a list is never empty.
    by_vip: BTreeMap<NetworkAddress, Vec<Arc<Service>>>,
    /// Virtual addresses that are ranges, sorted by key.
    ranges: Vec<Range>,
    /// Services by host name, sorted by key; a list is never empty.
    by_hostname: BTreeMap<Hostname, Vec<Arc<Service>>>,
    policies: BTreeMap<NamespacedName, Arc<Authorization>>,
    global_policies: BTreeMap<NamespacedName, Arc<Authorization>>,
    namespace_policies: BTreeMap<Text, BTreeMap<NamespacedName, Arc<Authorization>>>,
    /// Workloads and services whose newest version could not be read.
    unreadable: Claims,
}

/// What a client means by an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination<'v> {
    /// A workload's own address.
    Workload(&'v Arc<Workload>),
    /// A virtual address.
    Service(&'v Arc<Service>),
    /// Something of the mesh that could not be read: nothing may be sent there.
    Unreadable,
    /// Nothing of the mesh.
    Unknown,
}

/// A service and the workloads that say they are its endpoints; either may be known first.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Arc<Service>>,
    /// Sorted by uid.
    endpoints: Vec<Arc<Workload>>,
}

#[derive(Debug)]
struct Range {
    network: NetworkId,
    net: IpNet,
    service: Arc<Service>,
}

/// Why the policies of a workload cannot be told: nothing may be let through to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyGap {
    /// The workload refers to policies that have not arrived.
    NotSynced(Vec<NamespacedName>),
    /// The controller says that the workload's policies hold something that it could not express.
    Unreadable,
}

impl MeshView {
    /// A view that knows nothing yet but where its proxy is.
    pub fn new(network: NetworkId, cluster: ClusterId) -> Self {
        Self {
            network,
            cluster,
            workloads: BTreeMap::new(),
            by_address: BTreeMap::new(),
            services: BTreeMap::new(),
            by_vip: BTreeMap::new(),
            ranges: Vec::new(),
            by_hostname: BTreeMap::new(),
            policies: BTreeMap::new(),
            global_policies: BTreeMap::new(),
            namespace_policies: BTreeMap::new(),
            unreadable: Claims::default(),
        }
    }

    /// The network of the proxy.
    pub fn network(&self) -> &NetworkId {
        &self.network
    }

    /// The workload with this key.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// A pod of the proxy's cluster.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workload(&WorkloadUid::pod(&self.cluster, namespace, name))
    }

    /// Why there is no such pod: [`Reason::ResourceUnreadable`] when it was sent and could not be read, else
    /// [`Reason::WorkloadUnknown`].
    pub fn why_no_pod(&self, namespace: &str, name: &str) -> Reason {
        let key = Key::Workload(WorkloadUid::pod(&self.cluster, namespace, name));
        if self.unreadable.has(&key) {
            Reason::ResourceUnreadable
        } else {
            Reason::WorkloadUnknown
        }
    }

    /// What a client of a namespace means by an address: a workload, else a service, else nothing that is known here.
    ///
    /// What could not be read counts before ranges; whether something in plain text may be sent to an address that it
    /// claims is for the caller to ask ([`Self::is_unreadable`]).
    pub fn destination(&self, client: &str, address: &NetworkAddress) -> Destination<'_> {
        if let Some(workload) = self.workload_at(address) {
            return Destination::Workload(workload);
        }
        if let Some(service) = self.service_with_vip(client, address) {
            return Destination::Service(service);
        }
        if self.is_unreadable(address) || self.unreadable.has_range_around(address) {
            return Destination::Unreadable;
        }
        self.service_around(client, address)
            .map_or(Destination::Unknown, Destination::Service)
    }

    /// True when something that could not be read claims this very address.
    pub fn is_unreadable(&self, address: &NetworkAddress) -> bool {
        self.unreadable.has_address(address)
    }

    /// The workload with this address; of several, one that is HBONE before one that is not, then a healthy one, then the
    /// one that was written last.
    pub fn workload_at(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.by_address.get(address)?.first()
    }

    /// The service with this key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)?.service.as_ref()
    }

    /// The service that a client of a namespace means by an address.
    ///
    /// A single virtual address counts before a range. Of several services the client's own namespace counts first, then
    /// the longest range, then the canonical one; services that are not visible to the client do not count.
    pub fn service_at(&self, client: &str, address: &NetworkAddress) -> Option<&Arc<Service>> {
        self.service_with_vip(client, address)
            .or_else(|| self.service_around(client, address))
    }

    /// The service that a client of a namespace means by a host name: its own namespace's, then the canonical one.
    pub fn service_named(&self, client: &str, host: &Hostname) -> Option<&Arc<Service>> {
        preferred(self.by_hostname.get(host)?, client)
    }

    /// The workloads that are endpoints of a service, sorted by uid; also of a service that has not arrived yet.
    pub fn endpoints(&self, key: &ServiceKey) -> &[Arc<Workload>] {
        self.services.get(key).map_or(&[], |entry| &entry.endpoints)
    }

    /// The policy with this name.
    pub fn policy(&self, name: &NamespacedName) -> Option<&Arc<Authorization>> {
        self.policies.get(name)
    }

    /// The policies that select a workload, dry runs among them: the mesh's, its namespace's and those that it names.
    ///
    /// # Errors
    /// When they are not all known or not all understood; then no connection to the workload may be let through.
    pub fn policies_for(&self, workload: &Workload) -> Result<Vec<&Authorization>, PolicyGap> {
        if workload.policy_unreadable {
            return Err(PolicyGap::Unreadable);
        }
        let namespace = self.namespace_policies.get(&workload.namespace).into_iter();
        let mut found: Vec<&Authorization> = self
            .global_policies
            .values()
            .chain(namespace.flat_map(BTreeMap::values))
            .map(|policy| &**policy)
            .collect();
        let mut missing = Vec::new();
        for name in &workload.authorization_policies {
            match self.policies.get(name) {
                Some(policy) => found.push(policy),
                None => missing.push(name.clone()),
            }
        }
        if missing.is_empty() {
            Ok(found)
        } else {
            Err(PolicyGap::NotSynced(missing))
        }
    }

    /// Decides whether a connection to a workload is let through.
    pub fn authorize(&self, workload: &Workload, connection: &Connection<'_>) -> Verdict {
        match self.policies_for(workload) {
            Ok(policies) => policy::authorize(policies, connection),
            Err(PolicyGap::NotSynced(names)) => Verdict::Deny(Reason::PolicyNotSynced, names),
            Err(PolicyGap::Unreadable) => Verdict::Deny(Reason::PolicyUnreadable, Vec::new()),
        }
    }

    /// All workloads, sorted by uid.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, sorted by key.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services
            .values()
            .filter_map(|entry| entry.service.as_ref())
    }

    /// All policies, sorted by name.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Authorization>> {
        self.policies.values()
    }

    /// What could not be read, sorted by name: what of it is refused.
    pub fn unreadable(&self) -> impl ExactSizeIterator<Item = &Unreadable> {
        self.unreadable.iter()
    }

    fn service_with_vip(&self, client: &str, address: &NetworkAddress) -> Option<&Arc<Service>> {
        preferred(self.by_vip.get(address)?, client)
    }

    fn service_around(&self, client: &str, address: &NetworkAddress) -> Option<&Arc<Service>> {
        self.ranges
            .iter()
            .filter(|r| r.network == address.network && r.net.contains(&address.ip))
            .filter(|r| r.service.is_visible_to(client))
            .min_by_key(|r| {
                let (foreign, canonical) = (is_foreign(&r.service, client), r.service.canonical);
                (foreign, Reverse(r.net.prefix_len()), !canonical)
            })
            .map(|r| &r.service)
    }
}

fn preferred<'a>(services: &'a [Arc<Service>], client: &str) -> Option<&'a Arc<Service>> {
    services
        .iter()
        .filter(|service| service.is_visible_to(client))
        .min_by_key(|service| (is_foreign(service, client), !service.canonical))
}

fn is_foreign(service: &Service, client: &str) -> bool {
    *service.key.namespace != *client
}

#[cfg(test)]
mod tests;
