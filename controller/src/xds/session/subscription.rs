//! What one stream holds of one type: names asked for, names to look at again, the response under way.
//!
//! A wildcard subscription covers every name. An on-demand one covers the keys that were asked for, what they stand for,
//! and the workloads of the proxy's own node.

use std::collections::{BTreeMap, BTreeSet};

use ambit_core::names::Text;
use ambit_core::status::{Rejection, TypeStatus};
use ambit_net::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use ambit_net::xds::Kind;

use super::{Heard, SessionError};
use crate::xds::store::{Entry, Shelf, Snapshot};

/// Bytes of resources in one response after the first: as much as a proxy applies without a pause that is noticed. The
/// first of a type holds everything, since a proxy is ready once it has applied it.
const MAX_PUSH: usize = 4 << 20;
/// Keys that one stream may ask for.
const MAX_KEYS: usize = 100_000;
/// Bytes of a refusal that are kept; our proxies send no more.
const MAX_DETAIL: usize = 64 * 1024;
/// Longest key, in bytes; a pod's has two DNS names and the cluster's.
const MAX_KEY: usize = 1024;
/// The key that stands for every name.
const WILDCARD: &str = "*";

/// A response that was sent and not answered.
#[derive(Debug)]
struct InFlight {
    nonce: String,
    names: Vec<Text>,
    /// Version of the whole type that the proxy has once it takes this one; none while parts follow.
    completes: Option<Text>,
}

/// One type of one stream.
#[derive(Debug)]
pub(super) struct Subscription {
    /// None for a type that does not exist: it is answered empty.
    kind: Option<Kind>,
    wildcard: bool,
    /// Keys that were asked for.
    asked: BTreeSet<Text>,
    /// Names that the keys stood for.
    wanted: BTreeSet<Text>,
    /// Names to send, or to say that they are gone.
    pending: BTreeSet<Text>,
    /// Keys to say that they stand for nothing.
    absent: BTreeSet<Text>,
    /// True when the proxy awaits a response even if it is empty.
    owes: bool,
    sent_first: bool,
    /// Revision up to which changes are in `pending`.
    seen: u64,
    in_flight: Option<InFlight>,
    acknowledged: Option<Text>,
    rejected: BTreeMap<Text, String>,
}

impl Subscription {
    /// The first request of a type: wildcard when it asks for no name, or for `*` without taking that back.
    pub(super) fn first(
        kind: Option<Kind>,
        own_node: Text,
        request: DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<Self, SessionError> {
        let asks = &request.resource_names_subscribe;
        let mut subscription = Self {
            kind,
            wildcard: asks.is_empty(),
            asked: BTreeSet::new(),
            wanted: BTreeSet::new(),
            pending: BTreeSet::new(),
            absent: BTreeSet::new(),
            owes: true,
            sent_first: false,
            seen: snapshot.revision,
            in_flight: None,
            acknowledged: None,
            rejected: BTreeMap::new(),
        };
        subscription.subscribe(&request, snapshot)?;
        let Some(shelf) = kind.map(|kind| snapshot.shelf(kind)) else {
            return Ok(subscription);
        };
        if subscription.wildcard {
            subscription.pending.extend(shelf.names().cloned());
        } else if kind == Some(Kind::Address) {
            subscription.ask(own_node, shelf);
            subscription.absent.retain(|key| !key.starts_with('@'));
        }
        subscription.resume(request.initial_resource_versions, shelf);
        Ok(subscription)
    }

    /// What the proxy holds already is not sent again; what is gone is said to be.
    fn resume(&mut self, held: BTreeMap<String, String>, shelf: &Shelf) {
        for (name, version) in held {
            let name = Text::from(name);
            if !self.wildcard {
                self.wanted.insert(Text::clone(&name));
            }
            if shelf
                .entry(&name)
                .is_some_and(|entry| *entry.version == *version)
            {
                self.pending.remove(&name);
            } else {
                self.pending.insert(name);
            }
        }
    }

    /// Takes what a request adds and removes.
    pub(super) fn subscribe(
        &mut self,
        request: &DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<(), SessionError> {
        let shelf = self.kind.map(|kind| snapshot.shelf(kind));
        // Each once: a key may stand for all that there is, and a request holds millions of short ones.
        let added = distinct(&request.resource_names_subscribe)?;
        let taken_back = distinct(&request.resource_names_unsubscribe)?;
        for key in added {
            self.owes = true;
            match shelf {
                Some(shelf) if key == WILDCARD => {
                    self.wildcard = true;
                    self.pending.extend(shelf.names().cloned());
                }
                Some(shelf) => self.ask(Text::from(key), shelf),
                None => {}
            }
        }
        for key in taken_back {
            if key == WILDCARD && self.wildcard {
                self.wildcard = false;
                let wanted = &self.wanted;
                self.pending.retain(|name| wanted.contains(name));
            }
            self.asked.remove(key);
            self.wanted.remove(key);
            self.absent.remove(key);
        }
        if self.asked.len() > MAX_KEYS {
            return Err(SessionError::Names);
        }
        Ok(())
    }

    fn ask(&mut self, key: Text, shelf: &Shelf) {
        let names = shelf.resolve(&key);
        if names.is_empty() {
            self.absent.insert(Text::clone(&key));
        }
        self.asked.insert(key);
        self.pending.extend(names.iter().cloned());
        self.wanted.extend(names);
    }

    /// Takes the answer to a response, if this is one.
    pub(super) fn answered(&mut self, request: &DeltaDiscoveryRequest) -> Heard {
        let nonce = &request.response_nonce;
        let Some(answered) = self.in_flight.take_if(|flight| flight.nonce == *nonce) else {
            return Heard::Asked;
        };
        for name in &answered.names {
            self.rejected.remove(name);
        }
        if let Some(refusal) = &request.error_detail {
            let detail = cut(&refusal.message, MAX_DETAIL);
            self.rejected.extend(refused(detail, &answered.names));
            return Heard::Rejected(detail.to_owned());
        }
        if answered.completes.is_some() {
            self.acknowledged = answered.completes;
        }
        Heard::Acknowledged
    }

    /// Takes note of what a newer state touched.
    pub(super) fn advance(&mut self, snapshot: &Snapshot) -> Result<(), SessionError> {
        let Some(shelf) = self.kind.map(|kind| snapshot.shelf(kind)) else {
            return Ok(());
        };
        let touched = shelf.touched_since(self.seen).ok_or(SessionError::Behind)?;
        for name in touched {
            self.touch(name, shelf);
        }
        self.seen = snapshot.revision;
        if self.acknowledged.is_some() && self.is_idle() {
            // What changed is nothing to this proxy, so it is as current as it can be.
            self.acknowledged = Some(shelf.version());
        }
        Ok(())
    }

    fn touch(&mut self, name: &Text, shelf: &Shelf) {
        if self.wildcard {
            self.pending.insert(Text::clone(name));
            return;
        }
        let entry = shelf.entry(name);
        let keys = entry.into_iter().flat_map(|entry| &entry.keys);
        let mut keys = keys.chain([name]);
        if keys.any(|key| self.asked.contains(key) || self.wanted.contains(key)) {
            // A service brings its endpoints along.
            let names = shelf.resolve(name);
            let unknown = names.into_iter().filter(|name| !self.wanted.contains(name));
            let new: Vec<_> = unknown.chain([Text::clone(name)]).collect();
            self.pending.extend(new.iter().cloned());
            self.wanted.extend(new);
        }
    }

    fn is_idle(&self) -> bool {
        !self.has_push() && self.in_flight.is_none() && self.rejected.is_empty()
    }

    /// True when a response can and should be sent.
    pub(super) fn has_push(&self) -> bool {
        let wants = self.owes || !self.pending.is_empty() || !self.absent.is_empty();
        wants && self.in_flight.is_none()
    }

    /// True while a response waits for its answer.
    pub(super) fn awaits_answer(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Makes the next response from the newest state.
    pub(super) fn push(
        &mut self,
        type_url: &str,
        nonce: String,
        snapshot: &Snapshot,
    ) -> DeltaDiscoveryResponse {
        let shelf = self.kind.map(|kind| snapshot.shelf(kind));
        let mut response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: nonce.clone(),
            ..DeltaDiscoveryResponse::default()
        };
        let mut names = Vec::new();
        if let Some(shelf) = shelf {
            names = self.fill(&mut response, shelf);
            response.system_version_info = shelf.version().to_string();
        }
        let whole = self.pending.is_empty();
        self.owes = false;
        self.sent_first = true;
        self.in_flight = Some(InFlight {
            nonce,
            names,
            completes: shelf.filter(|_| whole).map(Shelf::version),
        });
        response
    }

    /// Moves names from `pending` into the response until it is full; gives those that it has.
    fn fill(&mut self, response: &mut DeltaDiscoveryResponse, shelf: &Shelf) -> Vec<Text> {
        let mut names = Vec::new();
        let mut bytes = 0;
        while bytes < MAX_PUSH || !self.sent_first {
            let Some(name) = self.pending.pop_first() else {
                break;
            };
            match shelf.entry(&name) {
                Some(entry) => {
                    bytes += entry.body.value.len();
                    response.resources.push(self.resource(&name, entry));
                }
                None => {
                    self.wanted.remove(&name);
                    response.removed_resources.push(name.to_string());
                }
            }
            names.push(name);
        }
        let absent = std::mem::take(&mut self.absent);
        let still = absent.iter().filter(|key| shelf.resolve(key).is_empty());
        response
            .removed_resources
            .extend(still.map(ToString::to_string));
        names
    }

    fn resource(&self, name: &Text, entry: &Entry) -> Resource {
        let aliases = entry
            .keys
            .iter()
            .filter(|key| self.asked.contains(*key) && !key.starts_with('@'));
        Resource {
            name: name.to_string(),
            version: entry.version.to_string(),
            resource: Some(entry.body.clone()),
            aliases: aliases.map(ToString::to_string).collect(),
        }
    }

    /// What the proxy holds.
    pub(super) fn status(&self, type_url: &str) -> TypeStatus {
        let rejected = self.rejected.iter().map(|(name, cause)| Rejection {
            name: name.to_string(),
            cause: cause.clone(),
        });
        TypeStatus {
            type_url: type_url.to_owned(),
            current: String::new(),
            acknowledged: self.acknowledged.as_ref().map(ToString::to_string),
            rejected: rejected.collect(),
        }
    }
}

/// The keys of a request, each once.
fn distinct(keys: &[String]) -> Result<BTreeSet<&str>, SessionError> {
    if keys.len() > MAX_KEYS || keys.iter().any(|key| key.len() > MAX_KEY) {
        return Err(SessionError::Names);
    }
    Ok(keys.iter().map(String::as_str).collect())
}

/// At most so many bytes of a text.
pub(in crate::xds) fn cut(text: &str, bytes: usize) -> &str {
    let end = text.floor_char_boundary(bytes);
    text.get(..end).unwrap_or(text)
}

/// Reads `name: reason; name2: reason`; what names none of the sent resources, which are sorted, belongs to the reason
/// before it.
fn refused(message: &str, sent: &[Text]) -> BTreeMap<Text, String> {
    let mut refused: BTreeMap<Text, String> = BTreeMap::new();
    let mut last: Option<Text> = None;
    for part in message.split("; ") {
        let named = part.split_once(": ").and_then(|(name, reason)| {
            let at = sent.binary_search_by(|sent| (**sent).cmp(name)).ok()?;
            Some((Text::clone(sent.get(at)?), reason))
        });
        if let Some((name, reason)) = named {
            refused.insert(Text::clone(&name), reason.to_owned());
            last = Some(name);
            continue;
        }
        let name = last.clone().unwrap_or_else(|| Text::from(""));
        let reason = refused.entry(name).or_default();
        if !reason.is_empty() {
            reason.push_str("; ");
        }
        reason.push_str(part);
    }
    refused
}
