//! What is trusted, where pods of any namespace can mount it: ConfigMaps `ambit-root-cert` and, where nobody else has
//! written one, `istio-ca-root-cert`.
//!
//! Run by [`crate::duties`] on the replica that leads. Follows namespaces, both names, and the root; only what carries our
//! label is ever changed, and nothing is deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use ambit_core::names::Text;
use ambit_net::tls::hash::sha256;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ObjectMeta, PostParams};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::api_server::{AskError, Watch, ask, waits};
use crate::ca::root::Root;
use crate::ca::root::secret::{OURS, ROOT_CONFIG_MAP, is_ours};

/// Istio's name for the same; programs that were made for it mount it.
const COMPATIBLE: &str = "istio-ca-root-cert";
/// Both names.
const NAMES: [&str; 2] = [ROOT_CONFIG_MAP, COMPATIBLE];
/// The key in both.
const KEY: &str = "root-cert.pem";

/// A ConfigMap as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Ours, with the hash of its text.
    Ours([u8; 32]),
    /// Somebody else's.
    Foreign,
}

/// One ConfigMap to write.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Write {
    namespace: Text,
    name: &'static str,
    is_new: bool,
}

/// What is known of the cluster.
#[derive(Debug, Default)]
struct Cluster {
    namespaces: Mirror<()>,
    /// By namespace, for each of [`NAMES`].
    maps: [Mirror<Known>; 2],
}

/// Keeps both ConfigMaps in all namespaces, for as long as it is polled.
pub async fn run(client: Client, mut root: watch::Receiver<Arc<Root>>) {
    let mut cluster = Cluster::default();
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let mut namespaces = Watch::new(namespaces, "namespaces", "");
    let [mut ours, mut compatible] = NAMES.map(|name| {
        let maps: Api<ConfigMap> = Api::all(client.clone());
        Watch::new(maps, name, &format!("metadata.name={name}"))
    });
    let mut backoff = waits();
    let mut again: Option<Instant> = None;
    loop {
        let [own_maps, compatible_maps] = &mut cluster.maps;
        tokio::select! {
            event = namespaces.next() => cluster.namespaces.take(event, namespace),
            event = ours.next() => own_maps.take(event, map),
            event = compatible.next() => compatible_maps.take(event, map),
            Ok(()) = root.changed() => {}
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
        }
        let text = root.borrow_and_update().trusted().to_owned();
        let writes = cluster.missing(&text);
        if writes.is_empty() || again.is_some_and(|again| Instant::now() < again) {
            continue;
        }
        again = if cluster.write(&client, writes, &text).await {
            backoff.reset();
            None
        } else {
            Some(Instant::now() + backoff.next_wait())
        };
    }
}

impl Cluster {
    /// What has to be written, once everything has been read.
    fn missing(&self, text: &str) -> Vec<Write> {
        let is_read = self.namespaces.is_read && self.maps.iter().all(|maps| maps.is_read);
        if !is_read {
            return Vec::new();
        }
        let wanted = Known::Ours(sha256(&[text.as_bytes()]));
        let mut writes = Vec::new();
        for namespace in self.namespaces.known.keys() {
            for (name, maps) in NAMES.into_iter().zip(&self.maps) {
                let is_new = match maps.known.get(namespace) {
                    None => true,
                    Some(Known::Foreign) => continue,
                    Some(ours) if *ours == wanted => continue,
                    Some(_) => false,
                };
                writes.push(Write {
                    namespace: Text::clone(namespace),
                    name,
                    is_new,
                });
            }
        }
        writes
    }

    /// Writes them; false when some have to be tried again.
    async fn write(&mut self, client: &Client, writes: Vec<Write>, text: &str) -> bool {
        let mut is_done = true;
        let number = writes.len();
        for write in writes {
            match put(client, &write, text).await {
                Ok(map) => self.note(&write, &map),
                // Its watch will say what is there.
                Err(AskError::Conflict(_)) => is_done = false,
                Err(AskError::NotFound(_)) => {
                    debug!(namespace = %write.namespace, "a namespace is gone")
                }
                Err(AskError::Forbidden(cause)) if cause.contains("being terminated") => {
                    debug!(namespace = %write.namespace, "a namespace is going");
                }
                Err(error) => {
                    warn!(namespace = %write.namespace, name = write.name, %error, "the root cannot be published");
                    is_done = false;
                    if matches!(error, AskError::Late | AskError::Unreachable(_)) {
                        return false;
                    }
                }
            }
        }
        info!(writes = number, "the root is published");
        is_done
    }

    /// Remembers what was written until its watch says so.
    fn note(&mut self, write: &Write, map: &ConfigMap) {
        for (name, maps) in NAMES.into_iter().zip(&mut self.maps) {
            if name == write.name {
                maps.known.insert(Text::clone(&write.namespace), known(map));
            }
        }
    }
}

/// Creates or changes one; who else has written in between wins.
async fn put(client: &Client, write: &Write, text: &str) -> Result<ConfigMap, AskError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &write.namespace);
    let params = PostParams::default();
    if write.is_new {
        return ask(maps.create(&params, &new(write.name, text))).await;
    }
    let mut map = ask(maps.get(write.name)).await?;
    if !is_ours(&map.metadata) {
        return Err(AskError::Conflict("it is no longer ours".to_owned()));
    }
    let data = map.data.get_or_insert_default();
    data.insert(KEY.to_owned(), text.to_owned());
    ask(maps.replace(write.name, &params, &map)).await
}

fn new(name: &str, text: &str) -> ConfigMap {
    let (label, value) = OURS;
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(label.to_owned(), value.to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some([(KEY.to_owned(), text.to_owned())].into()),
        ..ConfigMap::default()
    }
}

fn known(map: &ConfigMap) -> Known {
    if !is_ours(&map.metadata) {
        return Known::Foreign;
    }
    let text = map.data.as_ref().and_then(|data| data.get(KEY));
    let text = text.map(String::as_str).unwrap_or_default();
    Known::Ours(sha256(&[text.as_bytes()]))
}

/// A ConfigMap by its namespace.
fn map(map: &ConfigMap) -> (Text, Option<Known>) {
    let namespace = map.metadata.namespace.as_deref().unwrap_or_default();
    (namespace.into(), Some(known(map)))
}

/// A namespace by its name; one that is being deleted takes nothing new.
fn namespace(object: &PartialObjectMeta<Namespace>) -> (Text, Option<()>) {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let stays = object.metadata.deletion_timestamp.is_none();
    (name.into(), stays.then_some(()))
}

/// What a watch has said, reduced to what is needed of each object.
#[derive(Debug)]
struct Mirror<V> {
    known: BTreeMap<Text, V>,
    listed: BTreeMap<Text, V>,
    is_read: bool,
}

impl<V> Default for Mirror<V> {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            listed: BTreeMap::new(),
            is_read: false,
        }
    }
}

impl<V> Mirror<V> {
    /// Takes an event; `reduce` gives an object's key, and its value unless it counts as gone.
    fn take<K>(&mut self, event: Event<K>, reduce: fn(&K) -> (Text, Option<V>)) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                if let (key, Some(value)) = reduce(&object) {
                    self.listed.insert(key, value);
                }
            }
            Event::InitDone => {
                self.known = std::mem::take(&mut self.listed);
                self.is_read = true;
            }
            Event::Apply(object) => match reduce(&object) {
                (key, Some(value)) => drop(self.known.insert(key, value)),
                (key, None) => drop(self.known.remove(&key)),
            },
            Event::Delete(object) => {
                self.known.remove(&reduce(&object).0);
            }
        }
    }
}

#[cfg(test)]
mod tests;
