//! Which proxies are or were connected, and what each holds: what `ambit status` prints of them.
//!
//! Written by the subscribers' tasks, read by the overview. A lock is held for a copy only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ambit_core::names::Text;
use ambit_core::status::{ProxyStatus, TypeStatus};

/// Proxies of one node that are remembered after they have gone; a restart makes a new one.
const REMEMBERED_PER_NODE: usize = 2;

type Key = (Text, String);

#[derive(Debug, Default)]
struct Proxy {
    streams: usize,
    /// Grows with each connection, so that the oldest is forgotten first.
    order: u64,
    types: Vec<TypeStatus>,
}

#[derive(Debug, Default)]
struct Inner {
    proxies: BTreeMap<Key, Proxy>,
    connections: u64,
}

/// All proxies; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    inner: Arc<Mutex<Inner>>,
}

/// One open stream; dropping it says that the stream has ended.
#[derive(Debug)]
pub struct OpenStream {
    proxies: Proxies,
    key: Key,
}

impl Proxies {
    /// Notes that the proxy `id` of `node` has opened a stream.
    pub fn opened(&self, node: &Text, id: &str) -> OpenStream {
        let key = (Text::clone(node), id.to_owned());
        let mut inner = self.lock();
        inner.connections += 1;
        let order = inner.connections;
        let proxy = inner.proxies.entry(key.clone()).or_default();
        proxy.streams += 1;
        proxy.order = order;
        inner.forget(node);
        drop(inner);
        OpenStream {
            proxies: self.clone(),
            key,
        }
    }

    /// What is known of all proxies, by node and id; `current` is the version that the store has of a type.
    pub fn status(&self, current: impl Fn(&str) -> String) -> Vec<ProxyStatus> {
        let inner = self.lock();
        let proxies = inner.proxies.iter();
        proxies
            .map(|((node, id), proxy)| ProxyStatus {
                id: id.clone(),
                node: node.to_string(),
                connected: proxy.streams > 0,
                types: proxy
                    .types
                    .iter()
                    .map(|known| TypeStatus {
                        current: current(&known.type_url),
                        ..known.clone()
                    })
                    .collect(),
            })
            .collect()
    }

    /// Streams that are open.
    pub fn open(&self) -> usize {
        self.lock()
            .proxies
            .values()
            .map(|proxy| proxy.streams)
            .sum()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, node: &Text) {
        let proxies = self.proxies.iter();
        let gone = proxies.filter(|((of, _), proxy)| of == node && proxy.streams == 0);
        let mut gone: Vec<_> = gone
            .map(|(key, proxy)| (proxy.order, key.clone()))
            .collect();
        gone.sort();
        let surplus = gone.len().saturating_sub(REMEMBERED_PER_NODE);
        for (_, key) in gone.into_iter().take(surplus) {
            self.proxies.remove(&key);
        }
    }
}

impl OpenStream {
    /// Notes what the proxy holds now.
    pub fn holds(&self, types: Vec<TypeStatus>) {
        if let Some(proxy) = self.proxies.lock().proxies.get_mut(&self.key) {
            proxy.types = types;
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut inner = self.proxies.lock();
        if let Some(proxy) = inner.proxies.get_mut(&self.key) {
            proxy.streams -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_connected_while_it_has_a_stream_and_remembered_after() {
        let proxies = Proxies::default();
        let node = Text::from("n1");
        let first = proxies.opened(&node, "a");
        let second = proxies.opened(&node, "a");
        first.holds(vec![TypeStatus {
            type_url: "t".into(),
            acknowledged: Some("v".into()),
            ..TypeStatus::default()
        }]);
        drop(first);
        let status = proxies.status(|type_url| format!("{type_url}-now"));
        assert!(status[0].connected && status.len() == 1 && proxies.open() == 1);
        assert_eq!(status[0].types[0].current, "t-now");
        drop(second);
        assert!(!proxies.status(|_| String::new())[0].connected);
    }

    #[test]
    fn only_the_last_proxies_of_a_node_are_remembered() {
        let proxies = Proxies::default();
        let node = Text::from("n1");
        let other = proxies.opened(&"n2".into(), "x");
        for id in ["a", "b", "c", "d"] {
            drop(proxies.opened(&node, id));
        }
        let ids: Vec<_> = proxies
            .status(|_| String::new())
            .into_iter()
            .map(|p| p.id)
            .collect();
        assert_eq!(ids, ["b", "c", "d", "x"]);
        drop(other);
    }
}
