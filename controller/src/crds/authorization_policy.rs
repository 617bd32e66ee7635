//! `AuthorizationPolicy` (`security.istio.io/v1`): every field of its spec.
//!
//! Read through [`super::Policy`]; what the fields mean for connections is said in the translation. Follows istio/api
//! `security/v1beta1/authorization_policy.proto` and Istio's validation of it.

use serde::Deserialize;
use serde_json::Value;

use super::{Mapping, Selector, Spec, present};

/// What a match means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Lets through.
    #[default]
    Allow,
    /// Refuses.
    Deny,
    /// Notes requests; no effect on connections.
    Audit,
    /// Asks an authorization provider.
    Custom,
}

/// The spec.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    /// Read by [`super::Policy`].
    #[serde(deserialize_with = "present")]
    selector: Option<Mapping<Selector>>,
    /// Read by [`super::Policy`].
    target_ref: Option<Value>,
    /// Read by [`super::Policy`].
    target_refs: Vec<Value>,
    /// Whom CUSTOM asks.
    provider: Option<Value>,
    /// What a match means.
    pub action: Action,
    /// Rules of which one must fit; none at all fits nothing.
    pub rules: Vec<Mapping<Rule>>,
}

/// Conditions that must all hold; none at all always hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Sources of which one must fit.
    #[serde(deserialize_with = "present")]
    pub from: Option<Vec<Mapping<From>>>,
    /// Operations of which one must fit.
    #[serde(deserialize_with = "present")]
    pub to: Option<Vec<Mapping<To>>>,
    /// Conditions that must all hold.
    pub when: Vec<Mapping<Condition>>,
}

/// One entry of `from`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// The source.
    pub source: Mapping<Source>,
}

/// One entry of `to`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// The operation.
    pub operation: Mapping<Operation>,
}

/// Who connects; every kind of attribute that is set must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are those of istio.security.v1beta1.Source"
)]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// What is asked for; every kind of attribute that is set must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[expect(
    missing_docs,
    reason = "the fields are those of istio.security.v1beta1.Operation"
)]
pub struct Operation {
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// One entry of `when`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Condition {
    /// The attribute.
    pub key: String,
    /// Values of which one must fit.
    pub values: Vec<String>,
    /// Values of which none may fit.
    pub not_values: Vec<String>,
}

impl Spec for AuthorizationPolicySpec {
    const HAS_TARGETS: bool = true;

    fn check(&self) -> Result<(), String> {
        self.rules.iter().enumerate().try_for_each(|(at, rule)| {
            let checked = check_rule(rule);
            checked.map_err(|cause| format!("spec.rules[{at}]: {cause}"))
        })
    }
}

/// Istio's validation: what says nothing was meant to say something.
fn check_rule(rule: &Rule) -> Result<(), &'static str> {
    let from = rule.from.as_deref();
    let to = rule.to.as_deref();
    if from.is_some_and(<[_]>::is_empty) || to.is_some_and(<[_]>::is_empty) {
        return Err("from and to need at least one entry");
    }
    let no_source = |from: &Mapping<From>| *from.source == Source::default();
    if from.is_some_and(|from| from.iter().any(no_source)) {
        return Err("an empty source selects nobody");
    }
    let no_operation = |to: &Mapping<To>| *to.operation == Operation::default();
    if to.is_some_and(|to| to.iter().any(no_operation)) {
        return Err("an empty operation selects nothing");
    }
    let no_value = |when: &Mapping<Condition>| when.values.is_empty() && when.not_values.is_empty();
    if rule.when.iter().any(no_value) {
        return Err("a condition needs values or notValues");
    }
    Ok(())
}
