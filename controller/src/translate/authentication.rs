//! PeerAuthentication → Authorization: mutual TLS is asked for by refusing who has no identity.
//!
//! A workload's policy beats its namespace's, which beats the mesh's; the oldest wins on one level; UNSET takes what is
//! above. DISABLE is PERMISSIVE, since a ztunnel always accepts both. Follows Istio's conversion for ztunnel, whose
//! names of the made policies are kept.

use ambit_core::names::{NamespacedName, Text};
use ambit_core::policy::{
    Authorization, Clause, Match, PolicyAction, PolicyScope, Rule, StringMatch,
};

use super::Translated;
use crate::crds::Selection;
use crate::crds::peer_authentication::{Mode, PeerAuthenticationSpec};
use crate::index::Index;
use crate::index::pods::Pod;
use crate::index::policies::PeerAuthentication;

/// Name of the one policy that STRICT workloads name, in the root namespace.
pub(super) const STRICT_POLICY: &str = "istio_converted_static_strict";

/// What PeerAuthentications mean for one pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effective {
    /// Plaintext is refused on every port.
    pub(super) strict: bool,
    /// The policy that says it by port.
    pub(super) port_level: Option<NamespacedName>,
    /// One that stands on the pod is not understood.
    pub(super) unreadable: bool,
}

/// Merges what stands on a pod.
pub(super) fn effective(index: &Index, pod: &Pod) -> Effective {
    let selecting: Vec<_> = index
        .authentication_selecting(pod)
        .filter(|policy| !has_no_effect(index, policy))
        .collect();
    let base = is_strict_above(index, &pod.name.namespace);
    let own = selecting
        .iter()
        .copied()
        .filter(|p| p.selection != Selection::All);
    let (mut strict, mut port_level) = (base, None);
    if let Some((policy, spec)) = oldest(own) {
        strict = is_strict(spec, base);
        if port_rules(spec, base).is_some() {
            port_level = Some(port_policy(&policy.name));
            strict = false;
        }
    }
    Effective {
        strict,
        port_level,
        unreadable: selecting.iter().any(|policy| policy.spec.is_err()),
    }
}

/// The policy that STRICT workloads name; there when there is any PeerAuthentication.
pub(super) fn strict(index: &Index) -> Translated {
    if !index.has_authentication() {
        return Translated::default();
    }
    let root = Text::clone(&index.mesh.root_namespace);
    let name = NamespacedName::new(root, STRICT_POLICY);
    let rule = Rule {
        clauses: vec![clause(without_identity())],
    };
    Translated::policy(denying(name, vec![rule]))
}

/// The policy that says by port who needs mutual TLS, where it says more than its mode alone.
pub(super) fn port_level(index: &Index, name: &NamespacedName) -> Translated {
    let Some(policy) = index.authentication(name) else {
        return Translated::default();
    };
    if has_no_effect(index, policy) {
        return Translated::no_effect(
            "it has no effect: in the root namespace selectors are not served",
        );
    }
    let spec = match &policy.spec {
        Ok(spec) => spec,
        Err(why) => {
            let problem = format!("it is not understood and refuses all that it selects: {why}");
            return Translated::default().with_mistake(problem);
        }
    };
    let rules = port_rules(spec, is_strict_above(index, &name.namespace));
    rules.map_or_else(Translated::default, |rules| {
        Translated::policy(denying(port_policy(name), rules))
    })
}

fn has_no_effect(index: &Index, policy: &PeerAuthentication) -> bool {
    index.is_root(&policy.name.namespace) && policy.selection != Selection::All
}

/// Mode of a namespace: its own, or else the mesh's.
fn is_strict_above(index: &Index, namespace: &str) -> bool {
    let level = |root: bool| {
        let levels = index.authentication_levels(namespace);
        let here = levels.filter(|policy| index.is_root(&policy.name.namespace) == root);
        oldest(here).map(|(_, spec)| spec)
    };
    let mesh = level(true).is_some_and(|spec| is_strict(spec, false));
    level(false).map_or(mesh, |spec| is_strict(spec, mesh))
}

fn is_strict(spec: &PeerAuthenticationSpec, above: bool) -> bool {
    match spec.mtls.mode {
        Mode::Strict => true,
        Mode::Permissive | Mode::Disable => false,
        Mode::Unset => above,
    }
}

/// The oldest that is understood; without times, the first by name.
fn oldest<'a>(
    policies: impl Iterator<Item = &'a PeerAuthentication>,
) -> Option<(&'a PeerAuthentication, &'a PeerAuthenticationSpec)> {
    policies
        .filter_map(|policy| Some((policy, policy.spec.as_ref().ok()?)))
        .min_by_key(|(policy, _)| (policy.created, &policy.name))
}

/// Rules by port; none when the mode alone says the same.
fn port_rules(spec: &PeerAuthenticationSpec, above: bool) -> Option<Vec<Rule>> {
    let with = |modes: &'static [Mode]| {
        let ports = spec.port_level_mtls.iter();
        ports
            .filter(|(_, tls)| modes.contains(&tls.mode))
            .map(|(port, _)| *port)
    };
    if !is_strict(spec, above) {
        let rules: Vec<_> = with(&[Mode::Strict]).map(strict_port).collect();
        return (!rules.is_empty()).then_some(rules);
    }
    // Under an inherited STRICT only PERMISSIVE opens a port; DISABLE does so under a STRICT of the policy's own.
    let opening: &[Mode] = match spec.mtls.mode {
        Mode::Unset => &[Mode::Permissive],
        _ => &[Mode::Permissive, Mode::Disable],
    };
    with(opening).next()?;
    let exceptions = with(&[Mode::Permissive, Mode::Disable]).map(|port| {
        clause(Match {
            not_destination_ports: vec![port],
            ..Match::default()
        })
    });
    let clauses = [clause(without_identity())].into_iter().chain(exceptions);
    Some(vec![Rule {
        clauses: clauses.collect(),
    }])
}

fn strict_port(port: u16) -> Rule {
    Rule {
        clauses: vec![clause(Match {
            destination_ports: vec![port],
            ..without_identity()
        })],
    }
}

fn without_identity() -> Match {
    Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    }
}

fn clause(fits: Match) -> Clause {
    Clause {
        matches: vec![fits],
    }
}

fn port_policy(name: &NamespacedName) -> NamespacedName {
    let made = format!("converted_peer_authentication_{}", name.name);
    NamespacedName::new(Text::clone(&name.namespace), made)
}

fn denying(name: NamespacedName, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        scope: PolicyScope::WorkloadSelector,
        action: PolicyAction::Deny,
        rules,
        dry_run: false,
        unreadable: None,
    }
}

#[cfg(test)]
mod tests;
