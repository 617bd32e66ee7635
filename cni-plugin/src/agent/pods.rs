//! The pods of this node, as a source describes them, and which of them belong to the mesh.
//!
//! [`Source`] is what the agent listens to: files or the Kubernetes API; what comes from it is all there is, every time.
//! Knows nothing of namespaces of the kernel.

pub mod files;
pub mod probes;
pub mod shelf;
pub mod cluster;
pub mod kubernetes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ambit_core::enrollment::Enrollment;
use ambit_core::names::PodUid;
use ambit_net::wire::handoff::HandoffPod;

use crate::redirect::ruleset::InterfaceName;

/// Annotations of a pod that takes inbound TCP itself: `true`. The second is Istio's.
const BYPASS_INBOUND: [&str; 2] = [
    "ambit.mesh/bypass-inbound-capture",
    "ambient.istio.io/bypass-inbound-capture",
];
/// Annotations of a pod with machines behind it: names of interfaces, separated by commas. The second is Istio's.
const VIRTUAL_INTERFACES: [&str; 2] = [
    "ambit.mesh/reroute-virtual-interfaces",
    "istio.io/reroute-virtual-interfaces",
];

/// A pod that is to be captured, as it is described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Who it is.
    pub pod: HandoffPod,
    /// What it asks for.
    pub options: Options,
    /// Where it is.
    pub place: Place,
}

/// What is known of where a pod's network namespace is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its path, where somebody has said so.
    pub netns: Option<PathBuf>,
    /// The pod's addresses. Without any, the path is taken for what it says.
    pub addresses: Vec<IpAddr>,
    /// The uid by which the kubelet knows a static pod, where it differs from that of its copy in the API.
    pub static_uid: Option<String>,
}

/// A pod whose network namespace has been found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Who it is.
    pub pod: HandoffPod,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its addresses, where they are known.
    pub addresses: Vec<IpAddr>,
    /// What it asks for.
    pub options: Options,
}

impl Wanted {
    /// The pod with its place, if that is known.
    pub fn into_spec(self) -> Option<Spec> {
        Some(Spec {
            netns: self.place.netns?,
            pod: self.pod,
            addresses: self.place.addresses,
            options: self.options,
        })
    }

    /// True when `other` says nothing about the pod that this does not say already.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let (place, theirs) = (&self.place, &other.place);
        let same_path = theirs.netns.is_none() || theirs.netns == place.netns;
        let shared = |ip: &IpAddr| place.addresses.contains(ip);
        let same_addresses = theirs.addresses.is_empty() || theirs.addresses.iter().any(shared);
        self.pod == other.pod && self.options == other.options && same_path && same_addresses
    }
}

impl Spec {
    /// Addresses and ports that kubelet may probe around the mesh.
    pub fn probe_targets(&self) -> BTreeSet<SocketAddr> {
        let ports = |ip: IpAddr| {
            self.options
                .probed
                .iter()
                .map(move |port| (ip, *port).into())
        };
        self.addresses.iter().copied().flat_map(ports).collect()
    }
}

impl From<Spec> for Wanted {
    fn from(spec: Spec) -> Self {
        Self {
            pod: spec.pod,
            options: spec.options,
            place: Place {
                netns: Some(spec.netns),
                addresses: spec.addresses,
                static_uid: None,
            },
        }
    }
}

/// What a pod may ask for by annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// It takes inbound TCP itself.
    pub bypass_inbound: bool,
    /// Interfaces behind it, TCP from which counts as outbound.
    pub virtual_interfaces: Vec<InterfaceName>,
    /// Ports at which kubelet knocks.
    pub probed: BTreeSet<u16>,
}

impl Options {
    /// Reads them from a pod's annotations; fails with what is wrong with one.
    pub(super) fn read(annotations: Option<&BTreeMap<String, String>>) -> Result<Self, String> {
        let said = |names: [&str; 2]| {
            let values = names.iter().find_map(|name| annotations?.get(*name));
            values.map(String::as_str)
        };
        let virtual_interfaces = said(VIRTUAL_INTERFACES)
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(|name| {
                InterfaceName::new(name).ok_or(format!("{name} is no name of an interface"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            bypass_inbound: said(BYPASS_INBOUND) == Some("true"),
            virtual_interfaces,
            probed: BTreeSet::new(),
        })
    }
}

/// What a source says at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePods {
    /// The pods of this node that belong to the mesh.
    pub enrolled: BTreeMap<PodUid, Wanted>,
    /// The pods of this node that do not belong to the mesh, with where they are if they say so.
    pub others: BTreeMap<PodUid, Option<Spec>>,
    /// Pods that belong to the mesh and cannot be captured as they are described: whatever they were before, they stay.
    pub unclear: BTreeMap<PodUid, String>,
    /// True once the source could be read at all.
    pub heard: bool,
    /// False when something could not be read that may hold more pods.
    pub whole: bool,
}

/// Where pods come from.
#[derive(Debug)]
pub enum Source {
    /// A directory of Kubernetes YAML.
    Files(files::Files),
    /// The Kubernetes API.
    Kubernetes(Box<kubernetes::Kubernetes>),
}

impl Source {
    /// Waits for a state that differs from the last one returned; the first call returns what is there.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> NodePods {
        match self {
            Self::Files(files) => files.next().await,
            Self::Kubernetes(kubernetes) => kubernetes.next().await,
        }
    }

    /// The state now, where it can be told without waiting.
    pub fn now(&mut self) -> Option<NodePods> {
        match self {
            Self::Files(_) => None,
            Self::Kubernetes(kubernetes) => kubernetes.now(),
        }
    }

    /// Takes a pod as it was read just now, and says whether it belongs to the mesh; nothing if it is gone.
    pub fn learn(&mut self, read: &kubernetes::Read) -> Option<(cluster::KnownPod, Enrollment)> {
        match self {
            Self::Files(_) => None,
            Self::Kubernetes(kubernetes) => kubernetes.learn(read),
        }
    }
}
