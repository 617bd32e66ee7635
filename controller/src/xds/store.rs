//! The resources by type, each under a version that is a hash of its content.
//!
//! Written by the publisher alone; read by every subscriber as an immutable [`Snapshot`] behind a `watch`, so a slow one
//! holds an old snapshot for a while and nothing else. What did not change is dropped here and wakes nobody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::mem;
use std::sync::Arc;

use ambit_core::names::{NetworkAddress, Text};
use ambit_core::service::Service;
use ambit_core::workload::{NetworkMode, Workload};
use ambit_net::tls::hash::sha256;
use ambit_net::wire::{pack_policy, pack_service, pack_workload};
use ambit_net::xds::Kind;
use prost_types::Any;

use crate::index::Source;
use crate::translate::Resource;

/// How many commits are remembered by name. A subscriber that falls further behind has to reconnect, which needs the
/// thread that serves it to stand still for that long.
const REMEMBERED: usize = 512;

/// One resource.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// SHA-256 of its content, in hexadecimal.
    pub version: Text,
    /// Its content.
    pub body: Any,
    /// Other keys under which it is delivered: its addresses, the services it is an endpoint of, its node.
    pub keys: Vec<Text>,
}

/// The resources of one type.
#[derive(Clone, Debug, Default)]
pub struct Shelf {
    entries: Arc<BTreeMap<Text, Arc<Entry>>>,
    by_key: Arc<BTreeMap<Text, BTreeSet<Text>>>,
    /// Names that the last commits touched, by their revision.
    recent: VecDeque<(u64, Arc<[Text]>)>,
    /// Exclusive or of all resources' hashes: another one whenever the content is, in whatever order it came.
    fingerprint: [u8; 32],
}

/// All resources at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with each commit; means nothing outside this process.
    pub revision: u64,
    policies: Shelf,
    addresses: Shelf,
}

/// The writer's side.
#[derive(Debug, Default)]
pub struct Store {
    next: Snapshot,
    /// Names that each source object gave.
    given: BTreeMap<Source, Vec<(Kind, Text)>>,
    touched: BTreeMap<&'static str, BTreeSet<Text>>,
}

impl Store {
    /// Takes all that one source object gives now; what it gave before and does not now is gone.
    pub fn replace(&mut self, source: Source, resources: Vec<Resource>) {
        let mut names = Vec::with_capacity(resources.len());
        let before = self.given.remove(&source).unwrap_or_default();
        for resource in resources {
            let (kind, name, entry) = pack(&resource);
            if self.next.shelf_mut(kind).put(&name, entry) {
                self.touched
                    .entry(kind.type_url())
                    .or_default()
                    .insert(Text::clone(&name));
            }
            names.push((kind, name));
        }
        for (kind, name) in before.into_iter().filter(|old| !names.contains(old)) {
            if self.next.shelf_mut(kind).take(&name) {
                self.touched
                    .entry(kind.type_url())
                    .or_default()
                    .insert(name);
            }
        }
        if !names.is_empty() {
            self.given.insert(source, names);
        }
    }

    /// Closes a batch. None when nothing changed since the last one.
    pub fn commit(&mut self) -> Option<Arc<Snapshot>> {
        if self.touched.is_empty() {
            return None;
        }
        self.next.revision += 1;
        let revision = self.next.revision;
        for (type_url, names) in mem::take(&mut self.touched) {
            if let Some(kind) = Kind::of(type_url) {
                self.next.shelf_mut(kind).remember(revision, names);
            }
        }
        Some(self.snapshot())
    }

    /// What there is now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(self.next.clone())
    }
}

impl Snapshot {
    /// The resources of one type.
    pub const fn shelf(&self, kind: Kind) -> &Shelf {
        match kind {
            Kind::Policy => &self.policies,
            Kind::Address => &self.addresses,
        }
    }

    const fn shelf_mut(&mut self, kind: Kind) -> &mut Shelf {
        match kind {
            Kind::Policy => &mut self.policies,
            Kind::Address => &mut self.addresses,
        }
    }
}

impl Shelf {
    /// The resource of this name.
    pub fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.get(name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &Text> {
        self.entries.keys()
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Version of the whole content, for people: equal where the content is, on every replica.
    pub fn version(&self) -> Text {
        hex(self.fingerprint.get(..8).unwrap_or_default()).into()
    }

    /// Names of the resources that a key stands for: the one of that name, those that have the key, and the endpoints of
    /// services among them.
    pub fn resolve(&self, key: &str) -> BTreeSet<Text> {
        let named = self
            .entries
            .get_key_value(key)
            .map(|(name, _)| Text::clone(name));
        let mut names: BTreeSet<Text> = self.having(key).chain(named).collect();
        let endpoints: Vec<_> = names.iter().flat_map(|name| self.having(name)).collect();
        names.extend(endpoints);
        names
    }

    /// Names that commits after `revision` touched; none when that is longer ago than what is remembered.
    pub fn touched_since(&self, revision: u64) -> Option<impl Iterator<Item = &Text>> {
        let forgotten = self.recent.len() >= REMEMBERED
            && self
                .recent
                .front()
                .is_some_and(|(oldest, _)| *oldest > revision + 1);
        let later = self.recent.iter().filter(move |(at, _)| *at > revision);
        (!forgotten).then(|| later.flat_map(|(_, names)| names.iter()))
    }

    fn having(&self, key: &str) -> impl Iterator<Item = Text> + '_ {
        self.by_key.get(key).into_iter().flatten().cloned()
    }

    /// Puts a resource in its place; true when that is a change.
    fn put(&mut self, name: &Text, entry: Entry) -> bool {
        if self.entries.get(name).is_some_and(|old| **old == entry) {
            return false;
        }
        self.take(name);
        self.mark(name, &entry.version);
        let by_key = Arc::make_mut(&mut self.by_key);
        for key in &entry.keys {
            by_key
                .entry(Text::clone(key))
                .or_default()
                .insert(Text::clone(name));
        }
        Arc::make_mut(&mut self.entries).insert(Text::clone(name), Arc::new(entry));
        true
    }

    /// Takes a resource away; true when it was there.
    fn take(&mut self, name: &Text) -> bool {
        let Some(old) = Arc::make_mut(&mut self.entries).remove(name) else {
            return false;
        };
        self.mark(name, &old.version);
        let by_key = Arc::make_mut(&mut self.by_key);
        for key in &old.keys {
            if let Some(names) = by_key.get_mut(key) {
                names.remove(name);
                if names.is_empty() {
                    by_key.remove(key);
                }
            }
        }
        true
    }

    /// Adds a resource to the fingerprint or, the second time, takes it out again.
    fn mark(&mut self, name: &str, version: &str) {
        let hash = sha256(&[name.as_bytes(), b"\0", version.as_bytes()]);
        for (sum, byte) in self.fingerprint.iter_mut().zip(hash) {
            *sum ^= byte;
        }
    }

    fn remember(&mut self, revision: u64, names: BTreeSet<Text>) {
        if self.recent.len() >= REMEMBERED {
            self.recent.pop_front();
        }
        self.recent
            .push_back((revision, names.into_iter().collect()));
    }
}

/// Key under which a proxy finds the workloads of its own node; no name or address looks like it.
pub fn node_key(node: &str) -> Text {
    format!("@node/{node}").into()
}

fn pack(resource: &Resource) -> (Kind, Text, Entry) {
    let (kind, name, body, keys) = match resource {
        Resource::Workload(workload) => (
            Kind::Address,
            workload.uid.to_string(),
            pack_workload(workload),
            workload_keys(workload),
        ),
        Resource::Service(service) => (
            Kind::Address,
            service.key.to_string(),
            pack_service(service),
            service_keys(service),
        ),
        Resource::Policy(policy) => (
            Kind::Policy,
            policy.name.to_string(),
            pack_policy(policy),
            Vec::new(),
        ),
    };
    let version = hex(&sha256(&[&body.value])).into();
    let entry = Entry {
        version,
        body,
        keys,
    };
    (kind, name.into(), entry)
}

fn workload_keys(workload: &Workload) -> Vec<Text> {
    let own = workload.network_mode == NetworkMode::Standard;
    let addresses = workload.addresses.iter().filter(|_| own);
    let addresses =
        addresses.map(|ip| NetworkAddress::new(workload.network.clone(), *ip).to_string());
    let services = workload.services.keys().map(ToString::to_string);
    let keys = addresses.chain(services).map(Text::from);
    keys.chain([node_key(&workload.node)]).collect()
}

fn service_keys(service: &Service) -> Vec<Text> {
    let single = service
        .addresses
        .iter()
        .filter(|address| address.prefix.is_none());
    single
        .map(|address| address.address.to_string().into())
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests;
