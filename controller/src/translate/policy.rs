//! AuthorizationPolicy → Authorization: which workloads, what a match means, and the rules as far as L4 can say them.
//!
//! A policy that is not wholly understood is sent as unreadable: it refuses what it selects. What only a proxy for HTTP
//! could check never widens a permission. Follows Istio's conversion for ztunnel.

mod rule;

use ambit_core::names::{NamespacedName, Text};
use ambit_core::policy::{Authorization, PolicyAction, PolicyScope, Rule};

use super::Translated;
use crate::crds::authorization_policy::{Action, AuthorizationPolicySpec};
use crate::crds::{Policy, Selection};
use crate::index::Index;
use crate::index::policies::AuthorizationPolicy;

/// Annotation that asks to report what a policy would do instead of doing it.
const DRY_RUN: &str = "istio.io/dry-run";

/// True when ztunnels get the policy at all; workloads name only such policies.
pub(super) fn is_sent(policy: &AuthorizationPolicy) -> bool {
    let audits = policy
        .spec
        .as_ref()
        .is_ok_and(|spec| spec.action == Action::Audit);
    policy.selection != Selection::Targets && !audits
}

/// The policy as ztunnels enforce it.
pub(super) fn authorization(index: &Index, name: &NamespacedName) -> Translated {
    let Some(policy) = index.authorization(name) else {
        return Translated::default();
    };
    if !is_sent(policy) {
        return Translated::no_effect(why_not_sent(policy));
    }
    let content = match &policy.spec {
        Ok(spec) => content(spec, &name.namespace),
        Err(why) => Err(why.to_string()),
    };
    let mut sent = Authorization {
        name: name.clone(),
        scope: scope(index, policy),
        action: PolicyAction::Deny,
        rules: Vec::new(),
        dry_run: policy
            .annotations
            .get(DRY_RUN)
            .is_some_and(|value| value == "true"),
        unreadable: None,
    };
    match content {
        Ok(content) => {
            sent.action = content.action;
            sent.rules = content.rules;
            Translated {
                problems: content.notes,
                ..Translated::policy(sent)
            }
        }
        Err(why) if sent.dry_run => {
            let problem =
                format!("it is not understood and has no effect, since it is a dry run: {why}");
            Translated::policy(sent).with_mistake(problem)
        }
        Err(why) => {
            let problem = format!("it is not understood and refuses all that it selects: {why}");
            sent.unreadable = Some(Text::from(why));
            Translated::policy(sent).with_mistake(problem)
        }
    }
}

/// What of a policy's spec L4 can say.
struct Content {
    action: PolicyAction,
    rules: Vec<Rule>,
    notes: Vec<String>,
}

fn content(spec: &AuthorizationPolicySpec, namespace: &str) -> Result<Content, String> {
    let action = match spec.action {
        Action::Allow => PolicyAction::Allow,
        Action::Deny => PolicyAction::Deny,
        Action::Custom => return Err("action CUSTOM is not served".to_owned()),
        // Such a policy is not sent; were it, it should not have this action.
        Action::Audit => return Err("action AUDIT does not decide".to_owned()),
    };
    let mut content = Content {
        action,
        rules: Vec::new(),
        notes: Vec::new(),
    };
    for (at, rule) in spec.rules.iter().enumerate() {
        let place = |what: &str| format!("spec.rules[{at}]: {what}");
        let reduced = rule::reduce(rule, action, namespace).map_err(|why| place(&why))?;
        content.rules.extend(reduced.rule);
        content.notes.extend(reduced.note.map(place));
    }
    Ok(content)
}

fn scope<S>(index: &Index, policy: &Policy<S>) -> PolicyScope {
    match policy.selection {
        Selection::Labels(_) | Selection::Targets => PolicyScope::WorkloadSelector,
        Selection::All if index.is_root(&policy.name.namespace) => PolicyScope::Global,
        Selection::All => PolicyScope::Namespace,
    }
}

fn why_not_sent(policy: &AuthorizationPolicy) -> &'static str {
    match policy.selection {
        Selection::Targets => {
            "it has no effect: its targetRefs are for waypoints, which are not served yet"
        }
        _ => "it has no effect: action AUDIT does not decide over connections",
    }
}

#[cfg(test)]
mod tests;
