//! The client's side of delta xDS without I/O: what to ask, what is held, how a response is answered.
//!
//! Called by `client.rs`, which moves the messages. Lives longer than a stream: what it holds is what the next stream
//! begins with, so that the controller sends only what changed and names what is gone.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Kind;
use crate::proto::core::Node;
use crate::proto::discovery::DeltaDiscoveryRequest;
use crate::proto::rpc;

/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
/// Bytes of names and reasons in one refusal; the rest is only counted.
const MAX_DETAIL: usize = 64 * 1024;

/// What became of one response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Its type URL.
    pub type_url: String,
    /// Its nonce.
    pub nonce: String,
    /// Names that are now held, with the version that counts as held; empty when the content is not as it was sent.
    pub held: Vec<(String, String)>,
    /// Names that are gone.
    pub removed: Vec<String>,
    /// Names whose content was refused, and why.
    pub rejected: Vec<Rejected>,
}

/// A resource that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// Why, in words for the controller's log.
    pub why: String,
}

/// The state of the subscriptions, across streams.
#[derive(Debug)]
pub struct Session {
    node: Node,
    policies: BTreeMap<String, String>,
    addresses: BTreeMap<String, String>,
}

impl Session {
    /// A session that holds nothing.
    pub const fn new(node: Node) -> Self {
        Self {
            node,
            policies: BTreeMap::new(),
            addresses: BTreeMap::new(),
        }
    }

    /// The first requests of a stream: all resources of each kind, and what is held already.
    pub fn open(&self) -> Vec<DeltaDiscoveryRequest> {
        let mut node = Some(self.node.clone());
        let subscribe = |kind: Kind| DeltaDiscoveryRequest {
            node: node.take(),
            type_url: kind.type_url().to_owned(),
            initial_resource_versions: self.held(kind).clone(),
            ..DeltaDiscoveryRequest::default()
        };
        Kind::ALL.into_iter().map(subscribe).collect()
    }

    /// Records what became of a response and gives the answer to it: an ACK, or a NACK that names each refused resource.
    ///
    /// What was refused leaves what was held before under that name as it is. A type that is not subscribed to is only
    /// acknowledged.
    pub fn answered(&mut self, outcome: Outcome) -> DeltaDiscoveryRequest {
        if let Some(kind) = Kind::of(&outcome.type_url) {
            let held = self.held_mut(kind);
            held.extend(outcome.held);
            for name in &outcome.removed {
                held.remove(name);
            }
        }
        DeltaDiscoveryRequest {
            type_url: outcome.type_url,
            response_nonce: outcome.nonce,
            error_detail: detail(&outcome.rejected),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// How many resources of a kind are held.
    pub fn count(&self, kind: Kind) -> usize {
        self.held(kind).len()
    }

    const fn held(&self, kind: Kind) -> &BTreeMap<String, String> {
        match kind {
            Kind::Policy => &self.policies,
            Kind::Address => &self.addresses,
        }
    }

    const fn held_mut(&mut self, kind: Kind) -> &mut BTreeMap<String, String> {
        match kind {
            Kind::Policy => &mut self.policies,
            Kind::Address => &mut self.addresses,
        }
    }
}

/// `name: why; name2: why2`, or nothing when nothing was refused.
fn detail(rejected: &[Rejected]) -> Option<rpc::Status> {
    if rejected.is_empty() {
        return None;
    }
    let mut message = String::new();
    for (count, Rejected { name, why }) in rejected.iter().enumerate() {
        if message.len() + name.len() + why.len() > MAX_DETAIL {
            let left = rejected.len() - count;
            let _infallible = write!(message, "and {left} more");
            break;
        }
        let _infallible = write!(message, "{name}: {why}; ");
    }
    let message = message.trim_end_matches("; ").to_owned();
    Some(rpc::Status {
        code: INVALID_ARGUMENT,
        message,
        details: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
