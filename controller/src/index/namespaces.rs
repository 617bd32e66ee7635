//! Namespaces (what they say for their pods and services) and nodes (where they are).
//!
//! A namespace is authoritative: nothing in one that is not known reaches the mesh.

use ambit_core::enrollment::Metadata;
use ambit_core::names::Text;
use ambit_core::workload::Locality;
use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Node as KubeNode};

use super::{Dirty, Index, Source, replace, within};
use crate::crds::Labels;

/// What a namespace says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
}

impl Namespace {
    /// Reduces the object.
    pub fn of(object: KubeNamespace) -> Self {
        Self {
            labels: object.metadata.labels.unwrap_or_default(),
            annotations: object.metadata.annotations.unwrap_or_default(),
        }
    }

    /// Labels and annotations as the enrollment decision takes them.
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata {
            labels: Some(&self.labels),
            annotations: Some(&self.annotations),
        }
    }
}

/// Where a node is, from the well-known labels.
pub fn locality(node: &KubeNode) -> Locality {
    let label = |key: &str| -> Text {
        let labels = node.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get(key))
            .map_or("", String::as_str)
            .into()
    };
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}

impl Index {
    /// The namespace, if it is there. The root namespace always is.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        static ROOT: Namespace = Namespace {
            labels: Labels::new(),
            annotations: Labels::new(),
        };
        let known = self.namespaces.get(name);
        known.or_else(|| (*name == *self.mesh.root_namespace).then_some(&ROOT))
    }

    /// Where a node is; empty when nobody says.
    pub fn locality(&self, node: &str) -> Locality {
        self.nodes.get(node).cloned().unwrap_or_default()
    }

    pub(super) fn set_namespace(&mut self, name: &Text, value: Option<Namespace>) -> Dirty {
        if replace(&mut self.namespaces, name, value).is_none() {
            return Dirty::new();
        }
        let pods = within(&self.pods, name).map(|(name, _)| Source::Pod(name.clone()));
        let services = within(&self.services, name).map(|(name, _)| Source::Service(name.clone()));
        let slices =
            within(&self.slices, name).map(|(name, _)| Source::EndpointSlice(name.clone()));
        let rules = within(&self.authorization, name)
            .map(|(name, _)| Source::AuthorizationPolicy(name.clone()));
        let modes = within(&self.authentication, name)
            .map(|(name, _)| Source::PeerAuthentication(name.clone()));
        pods.chain(services)
            .chain(slices)
            .chain(rules)
            .chain(modes)
            .collect()
    }

    pub(super) fn set_node(&mut self, name: &Text, value: Option<Locality>) -> Dirty {
        if replace(&mut self.nodes, name, value).is_none() {
            return Dirty::new();
        }
        let pods = self.pods.iter().filter(|(_, pod)| pod.node == *name);
        let slices = self.slices.iter().filter(|(_, slice)| slice.is_on(name));
        pods.map(|(name, _)| Source::Pod(name.clone()))
            .chain(slices.map(|(name, _)| Source::EndpointSlice(name.clone())))
            .collect()
    }
}
