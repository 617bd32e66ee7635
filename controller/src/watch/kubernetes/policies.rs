//! The policy kinds: those of another project's API group, which may be absent, appear later, and be served in several
//! versions.
//!
//! Run by [`super`]. A version that we do not understand is followed all the same: what it holds must refuse, not be
//! passed over.

use std::time::Duration;

use ambit_core::names::NamespacedName;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::{sleep, timeout};
use tracing::info;

use super::follow::{DEADLINE, End, Follower, Steps};
use crate::crds::{Policy, SECURITY_GROUP, VERSIONS};
use crate::watch::object::{ObjectError, checked_name};
use crate::watch::{Kind, Object};

/// Time between two looks for a kind that is not there.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Follows a policy kind, whenever there is one.
pub(super) async fn follow(kind: Kind, client: Client, steps: Steps) {
    let read = match kind {
        Kind::AuthorizationPolicy => authorization,
        _ => authentication,
    };
    let mut follower = Follower::new(kind, read, steps);
    let mut said_absent = false;
    loop {
        let Ok(Ok(versions)) = timeout(DEADLINE, versions(&client)).await else {
            let cause = "the API server does not say what it serves".to_owned();
            if !follower.trouble(cause).await {
                return;
            }
            follower.pause().await;
            continue;
        };
        for version in versions {
            let gvk = GroupVersionKind::gvk(SECURITY_GROUP, &version, kind.as_str());
            let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural());
            let api = Api::all_with(client.clone(), &resource);
            if follower.run(&api).await == End::Closed {
                return;
            }
        }
        if !said_absent {
            info!(
                kind = kind.as_str(),
                "this kind is not installed; it is noticed when it is"
            );
            said_absent = true;
        }
        if !follower.clear().await {
            return;
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// The versions to ask for: those that we understand, whether or not the server lists them, then those that it has beside.
/// A server that has just started may list less than it serves; what it answers about a version itself counts.
async fn versions(client: &Client) -> kube::Result<Vec<String>> {
    let groups = client.list_api_groups().await?.groups;
    let group = groups
        .into_iter()
        .find(|group| group.name == SECURITY_GROUP);
    let served = group.into_iter().flat_map(|group| group.versions);
    let mut versions: Vec<_> = VERSIONS.map(str::to_owned).into();
    let others = served.map(|version| version.version);
    versions.extend(others.filter(|version| !VERSIONS.contains(&version.as_str())));
    Ok(versions)
}

fn authorization(object: DynamicObject) -> Result<Object, ObjectError> {
    let (name, document) = document(Kind::AuthorizationPolicy, object)?;
    Ok(Object::AuthorizationPolicy(Policy::read(
        name, &document, None,
    )))
}

fn authentication(object: DynamicObject) -> Result<Object, ObjectError> {
    let (name, document) = document(Kind::PeerAuthentication, object)?;
    Ok(Object::PeerAuthentication(Policy::read(
        name, &document, None,
    )))
}

fn document(kind: Kind, object: DynamicObject) -> Result<(NamespacedName, Value), ObjectError> {
    let meta = &object.metadata;
    let name = checked_name(kind, meta.namespace.as_deref(), meta.name.as_deref())?;
    Ok((name, serde_json::to_value(object)?))
}
