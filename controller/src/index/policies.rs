//! AuthorizationPolicies and PeerAuthentications, and which workloads they stand on.

use ambit_core::names::NamespacedName;

use super::pods::Pod;
use super::{Dirty, Index, Source, replace, within};
use crate::crds::authorization_policy::AuthorizationPolicySpec;
use crate::crds::peer_authentication::PeerAuthenticationSpec;
use crate::crds::{Policy, Selection};

/// A PeerAuthentication as the index keeps it.
pub type PeerAuthentication = Policy<PeerAuthenticationSpec>;
/// An AuthorizationPolicy as the index keeps it.
pub type AuthorizationPolicy = Policy<AuthorizationPolicySpec>;

impl Index {
    /// The policy, if it and its namespace are there.
    pub fn authorization(&self, name: &NamespacedName) -> Option<&AuthorizationPolicy> {
        self.namespace(&name.namespace)?;
        self.authorization.get(name)
    }

    /// The policy, if it and its namespace are there.
    pub fn authentication(&self, name: &NamespacedName) -> Option<&PeerAuthentication> {
        self.namespace(&name.namespace)?;
        self.authentication.get(name)
    }

    /// Policies with a selector that select the pod: those of its namespace and of the root namespace.
    pub fn authorization_selecting<'a>(
        &'a self,
        pod: &'a Pod,
    ) -> impl Iterator<Item = &'a AuthorizationPolicy> {
        self.reaching(&self.authorization, &pod.name.namespace)
            .filter(|policy| matches!(policy.selection, Selection::Labels(_)))
            .filter(|policy| policy.selects(&pod.labels))
    }

    /// PeerAuthentications that stand on the pod, on all levels.
    pub fn authentication_selecting<'a>(
        &'a self,
        pod: &'a Pod,
    ) -> impl Iterator<Item = &'a PeerAuthentication> {
        self.reaching(&self.authentication, &pod.name.namespace)
            .filter(|policy| policy.selects(&pod.labels))
    }

    /// PeerAuthentications without a selector that hold in a namespace: its own and the mesh's.
    pub fn authentication_levels<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a PeerAuthentication> {
        self.reaching(&self.authentication, namespace)
            .filter(|policy| policy.selection == Selection::All)
    }

    /// True when there is any PeerAuthentication.
    pub fn has_authentication(&self) -> bool {
        !self.authentication.is_empty()
    }

    /// True for the namespace whose policies hold mesh-wide.
    pub fn is_root(&self, namespace: &str) -> bool {
        *namespace == *self.mesh.root_namespace
    }

    pub(super) fn set_authorization(
        &mut self,
        name: &NamespacedName,
        value: Option<AuthorizationPolicy>,
    ) -> Dirty {
        let now = value.clone();
        let Some(before) = replace(&mut self.authorization, name, value) else {
            return Dirty::new();
        };
        let either: Vec<_> = before.into_iter().chain(now).collect();
        // Policies without a selector reach workloads by their scope; the workloads do not name them.
        let named = |pod: &&Pod| {
            let mut labelled = either
                .iter()
                .filter(|p| matches!(p.selection, Selection::Labels(_)));
            labelled.any(|policy| policy.selects(&pod.labels))
        };
        let pods = self.pods_reached_from(&name.namespace).filter(named);
        pods.map(|pod| Source::Pod(pod.name.clone()))
            .chain([Source::AuthorizationPolicy(name.clone())])
            .collect()
    }

    pub(super) fn set_authentication(
        &mut self,
        name: &NamespacedName,
        value: Option<PeerAuthentication>,
    ) -> Dirty {
        if replace(&mut self.authentication, name, value).is_none() {
            return Dirty::new();
        }
        // What a port-level policy says depends on the levels above it.
        let below = self.authentication.keys();
        let below = below
            .filter(|other| self.is_root(&name.namespace) || other.namespace == name.namespace);
        let pods = self.pods_reached_from(&name.namespace);
        pods.map(|pod| Source::Pod(pod.name.clone()))
            .chain(below.map(|other| Source::PeerAuthentication(other.clone())))
            .chain([
                Source::PeerAuthentication(name.clone()),
                Source::StrictPolicy,
            ])
            .collect()
    }

    /// Policies of a namespace and of the root namespace, each once.
    fn reaching<'a, S>(
        &'a self,
        policies: &'a std::collections::BTreeMap<NamespacedName, Policy<S>>,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Policy<S>> {
        let root = (!self.is_root(namespace)).then_some(&*self.mesh.root_namespace);
        let namespaces = [Some(namespace), root].into_iter().flatten();
        namespaces.flat_map(|namespace| within(policies, namespace).map(|(_, policy)| policy))
    }

    /// Pods on which a policy of a namespace may stand.
    fn pods_reached_from<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Pod> {
        let everywhere = self.is_root(namespace);
        self.pods
            .values()
            .filter(move |pod| everywhere || *pod.name.namespace == *namespace)
    }
}
