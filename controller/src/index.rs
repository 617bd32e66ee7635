//! What the sources said, reduced to what the mesh needs, and which resources a change touches.
//!
//! Owned by the publisher's one task as plain `&mut`: no lock, no clock, no I/O. One file per kind; each answers a change
//! with the sources of resources that have to be translated again. Naming too many is harmless: the store drops what did
//! not change. Naming too few is a bug that
//! `translate/tests.rs` looks for.

pub mod namespaces;
pub mod pods;
pub mod services;
pub mod endpoints;
pub mod policies;
pub mod served;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ambit_core::names::{ClusterId, NamespacedName, NetworkId, Text};
use ambit_core::workload::Locality;

use self::endpoints::Slice;
use self::namespaces::Namespace;
use self::pods::Pod;
use self::served::{CaptureSource, Report};
use self::services::Service;
use crate::crds::Policy;
use crate::crds::authorization_policy::AuthorizationPolicySpec;
use crate::crds::peer_authentication::PeerAuthenticationSpec;
use crate::watch::{Event, Kind, Object, ObjectKey};

/// Names that hold for the whole mesh.
#[derive(Clone, Debug)]
pub struct MeshNames {
    /// Trust domain of all identities.
    pub trust_domain: Text,
    /// Suffix of the host names of Services, `cluster.local` by default.
    pub cluster_domain: Text,
    /// Cluster of all workloads.
    pub cluster: ClusterId,
    /// Network of all addresses.
    pub network: NetworkId,
    /// Namespace whose policies hold mesh-wide.
    pub root_namespace: Text,
    /// Namespaces whose pods never join, beside the system's.
    pub excluded: BTreeSet<Text>,
}

/// An object from which resources are made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the variants are those of Kind, with the object's name"
)]
pub enum Source {
    Pod(NamespacedName),
    EndpointSlice(NamespacedName),
    Service(NamespacedName),
    AuthorizationPolicy(NamespacedName),
    PeerAuthentication(NamespacedName),
    /// The one policy that STRICT workloads name; there when any PeerAuthentication is.
    StrictPolicy,
}

/// What has to be translated again.
pub type Dirty = BTreeSet<Source>;

/// What the sources said.
#[derive(Debug)]
pub struct Index {
    /// Names that hold for the whole mesh.
    pub mesh: MeshNames,
    /// Who is believed about capture.
    pub capture: CaptureSource,
    namespaces: BTreeMap<Text, Namespace>,
    nodes: BTreeMap<Text, Locality>,
    service_accounts: BTreeSet<NamespacedName>,
    pods: BTreeMap<NamespacedName, Pod>,
    services: BTreeMap<NamespacedName, Service>,
    slices: BTreeMap<NamespacedName, Slice>,
    authorization: BTreeMap<NamespacedName, Policy<AuthorizationPolicySpec>>,
    authentication: BTreeMap<NamespacedName, Policy<PeerAuthenticationSpec>>,
    served: BTreeMap<Text, Report>,
}

impl Source {
    /// The source that an object is, if resources are made from its kind.
    pub fn of(key: &ObjectKey) -> Option<Self> {
        let name = key.name.clone();
        Some(match key.kind {
            Kind::Pod => Self::Pod(name),
            Kind::EndpointSlice => Self::EndpointSlice(name),
            Kind::Service => Self::Service(name),
            Kind::AuthorizationPolicy => Self::AuthorizationPolicy(name),
            Kind::PeerAuthentication => Self::PeerAuthentication(name),
            Kind::Namespace | Kind::Node | Kind::ServiceAccount => return None,
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "Pod {name}"),
            Self::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Self::Service(name) => write!(f, "Service {name}"),
            Self::AuthorizationPolicy(name) => write!(f, "AuthorizationPolicy {name}"),
            Self::PeerAuthentication(name) => write!(f, "PeerAuthentication {name}"),
            Self::StrictPolicy => f.write_str("the policy of STRICT workloads"),
        }
    }
}

impl Index {
    /// Nothing is known yet.
    pub fn new(mesh: MeshNames, capture: CaptureSource) -> Self {
        Self {
            mesh,
            capture,
            namespaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            service_accounts: BTreeSet::new(),
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            authorization: BTreeMap::new(),
            authentication: BTreeMap::new(),
            served: BTreeMap::new(),
        }
    }

    /// Takes one change and names what it touches.
    pub fn apply(&mut self, event: Event) -> Dirty {
        match event {
            Event::Applied(applied) => self.applied(&applied.key.name, *applied.object),
            Event::Deleted(key) => self.deleted(&key),
            Event::Served(report) => self.set_served(report),
            Event::Problems(_) | Event::Synced => Dirty::new(),
        }
    }

    fn applied(&mut self, name: &NamespacedName, object: Object) -> Dirty {
        match object {
            Object::Namespace(o) => self.set_namespace(&name.name, Some(Namespace::of(o))),
            Object::Node(o) => self.set_node(&name.name, Some(namespaces::locality(&o))),
            Object::ServiceAccount(_) => self.set_service_account(name, true),
            Object::Pod(o) => self.set_pod(name, Some(Pod::of(name, o))),
            Object::Service(o) => self.set_service(name, Some(Service::of(name, o))),
            Object::EndpointSlice(o) => self.set_slice(name, Some(Slice::of(name, o))),
            Object::AuthorizationPolicy(policy) => self.set_authorization(name, Some(policy)),
            Object::PeerAuthentication(policy) => self.set_authentication(name, Some(policy)),
        }
    }

    fn deleted(&mut self, key: &ObjectKey) -> Dirty {
        let name = &key.name;
        match key.kind {
            Kind::Namespace => self.set_namespace(&name.name, None),
            Kind::Node => self.set_node(&name.name, None),
            Kind::ServiceAccount => self.set_service_account(name, false),
            Kind::Pod => self.set_pod(name, None),
            Kind::Service => self.set_service(name, None),
            Kind::EndpointSlice => self.set_slice(name, None),
            Kind::AuthorizationPolicy => self.set_authorization(name, None),
            Kind::PeerAuthentication => self.set_authentication(name, None),
        }
    }
}

/// Puts a value into a map or takes it out; gives what was there before when that is a change.
fn replace<K: Ord + Clone, V: PartialEq>(
    map: &mut BTreeMap<K, V>,
    key: &K,
    value: Option<V>,
) -> Option<Option<V>> {
    if map.get(key) == value.as_ref() {
        return None;
    }
    Some(match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    })
}

/// The entries of one namespace.
fn within<'a, V>(
    map: &'a BTreeMap<NamespacedName, V>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a NamespacedName, &'a V)> {
    map.range(NamespacedName::new(namespace, "")..)
        .take_while(move |(name, _)| *name.namespace == *namespace)
}
