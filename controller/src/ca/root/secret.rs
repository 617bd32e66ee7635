//! The root in a Kubernetes Secret: made by the first replica that finds none, read by all, followed while they run.
//!
//! Called by the app where Kubernetes is the source. The Secret is created and never written again; who replaces the root
//! edits it (docs/decisions/0011), and every replica signs and trusts as it says from then on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use ambit_core::names::Text;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{Root, RootError, RootTexts, make};
use crate::api_server::{AskError, Watch, ask, waits};

/// Name of the Secret, in the controller's namespace.
pub const SECRET: &str = "ambit-ca";
/// The certificate that signs.
const CERTIFICATE: &str = "ca.crt";
/// Its private key.
const KEY: &str = "ca.key";
/// All certificates that are trusted; the one that signs alone where it is missing.
const TRUSTED: &str = "roots.pem";
/// Name of the ConfigMap in which every namespace finds what is trusted.
pub const ROOT_CONFIG_MAP: &str = "ambit-root-cert";
/// Label and value of what this controller has made and may change.
pub const OURS: (&str, &str) = ("ambit.mesh/managed-by", "controller");

/// Why the Secret gives no root.
#[derive(Debug, Error)]
enum OpenError {
    /// Waiting may help.
    #[error("{0}")]
    Ask(#[from] AskError),
    /// A person has to act.
    #[error("{0}")]
    Root(#[from] RootError),
}

/// Reads the root, or makes one if there is no Secret. Waits for an API server that is away or refuses.
///
/// # Errors
/// When the Secret is damaged, or has gone while the mesh still trusts it; the operator's to correct.
///
/// # Cancel safety
/// Cancel safe: a root that was made counts only once the API server has it.
pub async fn open(client: &Client, namespace: &str, trust_domain: &str) -> Result<Root, RootError> {
    let mut backoff = waits();
    loop {
        match attempt(client, namespace, trust_domain).await {
            Ok(root) => return Ok(root),
            Err(OpenError::Root(error)) => return Err(error),
            Err(OpenError::Ask(error)) => {
                warn!(secret = %place(namespace), %error, "the CA's root cannot be read yet");
            }
        }
        sleep(backoff.next_wait()).await;
    }
}

/// Lets `root` be what the Secret says, for as long as it is polled. What is damaged changes nothing.
pub async fn follow(client: Client, namespace: Text, root: watch::Sender<Arc<Root>>) {
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    let fields = format!("metadata.name={SECRET}");
    let mut watch = Watch::new(secrets, "the Secret of the CA's root", &fields);
    loop {
        match watch.next().await {
            Event::Apply(secret) | Event::InitApply(secret) => take(&secret, &namespace, &root),
            Event::Delete(_) => error!(
                secret = %place(&namespace),
                "the Secret of the CA's root is gone; put back a copy before a controller starts anew"
            ),
            Event::Init | Event::InitDone => {}
        }
    }
}

/// Takes over what a Secret says, if it says something else than before.
fn take(secret: &Secret, namespace: &str, root: &watch::Sender<Arc<Root>>) {
    match read(secret, namespace, SystemTime::now()) {
        Ok(new) => {
            let changed = root.send_if_modified(|current| {
                let differs = current.pem() != new.pem() || current.trusted() != new.trusted();
                if differs {
                    *current = Arc::new(new);
                }
                differs
            });
            if changed {
                info!(secret = %place(namespace), "the CA's root has changed");
            }
        }
        Err(error) => error!(%error, "the CA keeps the root that it has"),
    }
}

async fn attempt(client: &Client, namespace: &str, domain: &str) -> Result<Root, OpenError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    // Before the Secret: whoever publishes a root has made the Secret first.
    let published = is_published(client, namespace).await?;
    if let Some(secret) = ask(secrets.get_opt(SECRET)).await? {
        return Ok(read(&secret, namespace, SystemTime::now())?);
    }
    if published {
        return Err(OpenError::Root(gone(namespace)));
    }
    let made = make(domain, SystemTime::now()).map_err(RootError::Make)?;
    let secret = match ask(secrets.create(&PostParams::default(), &secret_of(&made))).await {
        Ok(secret) => {
            info!(secret = %place(namespace), "a root is made");
            secret
        }
        // Another replica was first; what is there counts.
        Err(AskError::Conflict(_)) => ask(secrets.get(SECRET)).await?,
        Err(error) => return Err(error.into()),
    };
    Ok(read(&secret, namespace, SystemTime::now())?)
}

/// True when this mesh has told a root to its own namespace.
async fn is_published(client: &Client, namespace: &str) -> Result<bool, AskError> {
    let maps: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client.clone(), namespace);
    let map = ask(maps.get_opt(ROOT_CONFIG_MAP)).await?;
    Ok(map.is_some_and(|map| is_ours(&map.metadata)))
}

/// True for what this controller has made.
pub fn is_ours(metadata: &ObjectMeta) -> bool {
    let (label, value) = OURS;
    let labels = metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(label))
        .map(String::as_str)
        == Some(value)
}

/// What a Secret says.
fn read(secret: &Secret, namespace: &str, now: SystemTime) -> Result<Root, RootError> {
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let text = |key: &str| data.get(key).map(|bytes| String::from_utf8_lossy(&bytes.0));
    let (certificate, key, trusted) = (text(CERTIFICATE), text(KEY), text(TRUSTED));
    let texts = RootTexts {
        certificate: certificate.as_deref().unwrap_or_default(),
        key: key.as_deref().unwrap_or_default(),
        trusted: trusted.as_deref(),
    };
    Root::parse(&place(namespace), texts, now)
}

/// The Secret of a new root.
fn secret_of(made: &super::Made) -> Secret {
    let data = [
        (CERTIFICATE, &made.certificate),
        (KEY, &made.key),
        (TRUSTED, &made.certificate),
    ];
    let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes())));
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data.into()),
        ..Secret::default()
    }
}

fn place(namespace: &str) -> String {
    format!("Secret {namespace}/{SECRET}")
}

fn gone(namespace: &str) -> RootError {
    RootError::Gone {
        place: place(namespace),
        published: format!("ConfigMap {namespace}/{ROOT_CONFIG_MAP}"),
    }
}

#[cfg(test)]
mod tests;
