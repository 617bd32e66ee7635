//! Tells the authors of policies and Services, by a condition `ambit.mesh/Accepted`, whether what they wrote could be
//! translated and why not.
//!
//! Run by [`crate::duties`] on the replica that leads. Writes only what differs, only on the generation that was
//! translated, and leaves conditions of others alone.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::SystemTime;

use ambit_core::names::NamespacedName;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::api_server::{AskError, ask, waits};
use crate::crds::{SECURITY_GROUP, VERSIONS};
use crate::index::Source;
use crate::index::services::ACCEPTED;
use crate::translate::Acceptance;
use crate::verdict::{Verdict, Verdicts};
use crate::watch::Kind;

/// Keeps the conditions as the verdicts are, for as long as it is polled.
pub async fn run(client: Client, mut verdicts: watch::Receiver<Arc<Verdicts>>) {
    let mut told: BTreeMap<Source, Verdict> = BTreeMap::new();
    let mut backoff = waits();
    loop {
        let wanted = Arc::clone(&verdicts.borrow_and_update());
        told.retain(|source, _| wanted.contains_key(source));
        if tell_all(&client, &wanted, &mut told).await {
            backoff.reset();
            if verdicts.changed().await.is_err() {
                // Nobody judges any more: the program stops.
                pending::<()>().await;
            }
        } else {
            sleep(backoff.next_wait()).await;
        }
    }
}

/// Tells what has not been told; false when some of it has to be told again later.
async fn tell_all(
    client: &Client,
    wanted: &Verdicts,
    told: &mut BTreeMap<Source, Verdict>,
) -> bool {
    let mut is_done = true;
    for (source, verdict) in wanted {
        if told.get(source) == Some(verdict) {
            continue;
        }
        match tell(client, source, verdict).await {
            Ok(()) => drop(told.insert(source.clone(), verdict.clone())),
            Err(AskError::NotFound(_)) => {
                debug!(object = %source, "it is gone before its condition was written");
                told.insert(source.clone(), verdict.clone());
            }
            Err(AskError::Conflict(cause)) => {
                debug!(object = %source, cause, "its condition is written later");
                is_done = false;
            }
            Err(error) => {
                warn!(object = %source, %error, "its condition cannot be written");
                is_done = false;
                if matches!(error, AskError::Late | AskError::Unreachable(_)) {
                    return false;
                }
            }
        }
    }
    is_done
}

/// Writes the condition of one object, unless it says the same already.
async fn tell(client: &Client, source: &Source, verdict: &Verdict) -> Result<(), AskError> {
    let mut outcome = Ok(());
    for (resource, name) in resources(source) {
        let objects: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), &name.namespace, &resource);
        let object = match ask(objects.get(&name.name)).await {
            Err(error @ AskError::NotFound(_)) => {
                // Perhaps the server has the kind in another version.
                outcome = Err(error);
                continue;
            }
            object => object?,
        };
        if object.metadata.generation != verdict.generation && verdict.generation.is_some() {
            let cause = "it has changed since it was translated".to_owned();
            return Err(AskError::Conflict(cause));
        }
        let wanted = condition(source, verdict, SystemTime::now());
        let Some(changed) = with_condition(object, wanted) else {
            return Ok(());
        };
        let params = PostParams::default();
        ask(objects.replace_status(&name.name, &params, &changed)).await?;
        info!(object = %source, acceptance = ?verdict.acceptance, cause = verdict.message, "a condition is written");
        return Ok(());
    }
    outcome
}

/// How an object may be asked for, the likeliest first.
fn resources(source: &Source) -> Vec<(ApiResource, &NamespacedName)> {
    let (kind, name, versions): (_, _, &[&str]) = match source {
        Source::AuthorizationPolicy(name) => (Kind::AuthorizationPolicy, name, &VERSIONS),
        Source::PeerAuthentication(name) => (Kind::PeerAuthentication, name, &VERSIONS),
        Source::Service(name) => (Kind::Service, name, &["v1"]),
        Source::Pod(_) | Source::EndpointSlice(_) | Source::StrictPolicy => return Vec::new(),
    };
    let group = if kind == Kind::Service {
        ""
    } else {
        SECURITY_GROUP
    };
    let resource = |version: &&str| {
        let gvk = GroupVersionKind::gvk(group, version, kind.as_str());
        (ApiResource::from_gvk_with_plural(&gvk, kind.plural()), name)
    };
    versions.iter().map(resource).collect()
}

/// The condition that a verdict makes; none on a Service of which all is understood.
fn condition(source: &Source, verdict: &Verdict, now: SystemTime) -> Option<Condition> {
    let (status, reason) = match verdict.acceptance {
        Acceptance::Accepted => ("True", "Accepted"),
        Acceptance::NoEffect => ("False", "NoEffect"),
        Acceptance::NotUnderstood => ("False", "NotUnderstood"),
    };
    if matches!(source, Source::Service(_)) && verdict.acceptance == Acceptance::Accepted {
        return None;
    }
    Some(Condition {
        type_: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: verdict.message.clone(),
        observed_generation: verdict.generation,
        last_transition_time: Time(Timestamp::try_from(now).unwrap_or_default()),
    })
}

/// The object with our condition as wanted, or without it; none when nothing has to change.
fn with_condition(mut object: DynamicObject, wanted: Option<Condition>) -> Option<DynamicObject> {
    let data = object.data.as_object_mut()?;
    let status = data.entry("status").or_insert_with(|| json!({}));
    if status.is_null() {
        *status = json!({});
    }
    let conditions = status.as_object_mut()?.entry("conditions");
    let conditions = conditions.or_insert_with(|| json!([]));
    if conditions.is_null() {
        *conditions = json!([]);
    }
    let conditions = conditions.as_array_mut()?;
    let is_ours = |condition: &Value| condition.get("type").is_some_and(|name| name == ACCEPTED);
    let before = conditions
        .iter()
        .find(|condition| is_ours(condition))
        .cloned();
    let wanted = wanted.and_then(|wanted| serde_json::to_value(wanted).ok());
    let wanted = wanted.map(|wanted| dated(wanted, before.as_ref()));
    if wanted == before {
        return None;
    }
    conditions.retain(|condition| !is_ours(condition));
    conditions.extend(wanted);
    Some(object)
}

/// A condition with the time of its last transition: that of before, while its status is the same.
fn dated(mut wanted: Value, before: Option<&Value>) -> Value {
    const TIME: &str = "lastTransitionTime";
    let same = before.filter(|before| before.get("status") == wanted.get("status"));
    let time = same.and_then(|before| before.get(TIME));
    if let (Some(time), Some(fields)) = (time, wanted.as_object_mut()) {
        fields.insert(TIME.to_owned(), time.clone());
    }
    wanted
}

#[cfg(test)]
mod tests;
