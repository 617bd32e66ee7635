//! `istio.security.Authorization` and [`Authorization`], both ways.
//!
//! Used through `wire` by the xDS client and the controller's store. A policy with anything that this version does not
//! understand (a field, an enum value, an extension, an address) comes out *unreadable*: it refuses what it selects
//! instead of being dropped or matched in part. Only a policy without a usable name is an error.

mod rule;

use ambit_core::names::NamespacedName;
use ambit_core::policy::{Authorization, PolicyAction, PolicyScope, Rule};
use prost::Message;

use super::fields::{AUTHORIZATION, Surplus, check};
use super::{POLICY_UNREADABLE, WireError, decode_policy_name, encode_unreadable, unknown};
use crate::proto::facts::PolicyUnreadable;
use crate::proto::security as pb;
use crate::proto::workload::Extension;

/// The message for a policy; equal policies give equal bytes.
///
/// An unreadable one is sent as a DENY whose rule fits every connection, so that a proxy that does not know our
/// extension refuses as well.
pub fn encode(policy: &Authorization) -> pb::Authorization {
    let message = pb::Authorization {
        name: policy.name.name.to_string(),
        namespace: policy.name.namespace.to_string(),
        scope: encode_scope(policy.scope).into(),
        ..pb::Authorization::default()
    };
    if let Some(why) = &policy.unreadable {
        return pb::Authorization {
            action: pb::Action::Deny.into(),
            rules: vec![pb::Rule::default()],
            extensions: vec![encode_unreadable(why)],
            ..message
        };
    }
    pb::Authorization {
        action: encode_action(policy.action).into(),
        rules: policy.rules.iter().map(rule::encode).collect(),
        dry_run: policy.dry_run,
        ..message
    }
}

/// Reads the body of the resource `name` (`namespace/name`); `root_namespace` is the one whose policies may select the
/// whole mesh.
///
/// What is not understood makes the policy unreadable; its scope is kept if that can be read. Otherwise it is the
/// widest that a policy of its namespace can have: the mesh from `root_namespace`, its namespace from any other. The
/// view applies an unreadable policy also to workloads that name it.
///
/// # Errors
/// When `name` is not `namespace/name`: nothing can be said about what it selects, and it could not be removed.
pub fn decode(name: &str, body: &[u8], root_namespace: &str) -> Result<Authorization, WireError> {
    let name = decode_policy_name(name)?;
    let widest = widest_scope(&name, root_namespace);
    let decoded = pb::Authorization::decode(body).map_err(|source| WireError::Protobuf {
        message: "istio.security.Authorization",
        source,
    });
    let message = match decoded {
        Ok(message) => message,
        Err(error) => return Ok(refusing(name, widest, &error)),
    };
    let scope = decode_scope(message.scope);
    let read = check_fields(body).and_then(|()| decode_content(&name, message));
    Ok(match (scope, read) {
        (Ok(scope), Ok(content)) => Authorization {
            name,
            scope,
            action: content.action,
            rules: content.rules,
            dry_run: content.dry_run,
            unreadable: None,
        },
        (Ok(scope), Err(why)) => refusing(name, scope, &why),
        (Err(why), _) => refusing(name, widest, &why),
    })
}

/// The policy of that name when its body is none: it refuses as widely as a policy of its namespace could select.
///
/// # Errors
/// When `name` is not `namespace/name`, as in [`decode`].
pub fn unreadable(
    name: &str,
    why: &WireError,
    root_namespace: &str,
) -> Result<Authorization, WireError> {
    let name = decode_policy_name(name)?;
    let scope = widest_scope(&name, root_namespace);
    Ok(refusing(name, scope, why))
}

fn widest_scope(name: &NamespacedName, root_namespace: &str) -> PolicyScope {
    if &*name.namespace == root_namespace {
        PolicyScope::Global
    } else {
        PolicyScope::Namespace
    }
}

fn refusing(name: NamespacedName, scope: PolicyScope, why: &WireError) -> Authorization {
    Authorization {
        name,
        scope,
        action: PolicyAction::Deny,
        rules: Vec::new(),
        dry_run: false,
        unreadable: Some(why.brief().into()),
    }
}

/// What a readable policy says.
struct Content {
    action: PolicyAction,
    rules: Vec<Rule>,
    dry_run: bool,
}

fn decode_content(name: &NamespacedName, message: pb::Authorization) -> Result<Content, WireError> {
    if *message.namespace != *name.namespace || *message.name != *name.name {
        let inner = format!("{}/{}", message.namespace, message.name);
        return Err(WireError::Name(inner));
    }
    check_extensions(&message.extensions)?;
    let rules = message.rules.into_iter().map(rule::decode);
    Ok(Content {
        action: decode_action(message.action)?,
        rules: rules.collect::<Result<_, _>>()?,
        dry_run: message.dry_run,
    })
}

/// Refuses every extension: one may change what the policy means, and ours says that it could not be expressed.
fn check_extensions(extensions: &[Extension]) -> Result<(), WireError> {
    let Some(extension) = extensions.first() else {
        return Ok(());
    };
    if extension.name != POLICY_UNREADABLE {
        return Err(WireError::Unknown(format!(
            "extension {:?}",
            extension.name
        )));
    }
    let config = extension.config.as_ref();
    let fact = config.and_then(|c| PolicyUnreadable::decode(c.value.as_slice()).ok());
    let reason = fact.map(|f| f.reason).filter(|r| !r.is_empty());
    let reason = reason.unwrap_or_else(|| "the controller could not express it".to_owned());
    Err(WireError::Unexpressed(reason))
}

/// Refuses every field that is not in the tables of `fields.rs`, which the decoder would drop.
fn check_fields(body: &[u8]) -> Result<(), WireError> {
    check(body, &AUTHORIZATION).map_err(|surplus| match surplus {
        Surplus::Field { message, number } => {
            WireError::Unknown(format!("field {number} in {message}"))
        }
        Surplus::Malformed => WireError::Unknown("a malformed field".to_owned()),
    })
}

fn encode_scope(scope: PolicyScope) -> pb::Scope {
    match scope {
        PolicyScope::Global => pb::Scope::Global,
        PolicyScope::Namespace => pb::Scope::Namespace,
        PolicyScope::WorkloadSelector => pb::Scope::WorkloadSelector,
    }
}

fn decode_scope(value: i32) -> Result<PolicyScope, WireError> {
    match pb::Scope::try_from(value) {
        Ok(pb::Scope::Global) => Ok(PolicyScope::Global),
        Ok(pb::Scope::Namespace) => Ok(PolicyScope::Namespace),
        Ok(pb::Scope::WorkloadSelector) => Ok(PolicyScope::WorkloadSelector),
        Err(_unknown) => Err(unknown("scope", value)),
    }
}

fn encode_action(action: PolicyAction) -> pb::Action {
    match action {
        PolicyAction::Allow => pb::Action::Allow,
        PolicyAction::Deny => pb::Action::Deny,
    }
}

fn decode_action(value: i32) -> Result<PolicyAction, WireError> {
    match pb::Action::try_from(value) {
        Ok(pb::Action::Allow) => Ok(PolicyAction::Allow),
        Ok(pb::Action::Deny) => Ok(PolicyAction::Deny),
        Err(_unknown) => Err(unknown("action", value)),
    }
}

#[cfg(test)]
mod tests;
