//! One proxy's stream without I/O: what it asked for, what it lacks, what it answered.
//!
//! Owned by the subscriber's task in `server.rs`, which moves the messages. Per type one response is under way at a time;
//! what changes meanwhile is only a name in a set, so the next response always has the newest and nothing queues up.

mod subscription;

use std::collections::BTreeMap;

use ambit_core::names::Text;
use ambit_core::status::TypeStatus;
use ambit_net::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use ambit_net::xds::Kind;
use thiserror::Error;

use self::subscription::Subscription;
use super::store::{Snapshot, node_key};

pub(in crate::xds) use self::subscription::cut;

/// Types that one stream may name; there are two.
const MAX_TYPES: usize = 16;
/// Longest type URL, in bytes; ours have 47 at most.
const MAX_TYPE_URL: usize = 256;

/// Why a stream cannot go on. All are the proxy's doing but the last.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// It names no type, or too many that do not exist.
    #[error("a request has to name a type that exists")]
    Type,
    /// It asks for more names than the mesh could have, or for one that nothing could have.
    #[error("too many names are subscribed to, or one that is too long")]
    Names,
    /// It was too slow for what is remembered; reconnecting is cheaper than telling it all.
    #[error("the proxy fell too far behind; it has to reconnect")]
    Behind,
}

/// What a request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A subscription, or nothing of interest.
    Asked,
    /// A type that does not exist.
    Unknown,
    /// The proxy took a response.
    Acknowledged,
    /// The proxy refused something in a response, in its words.
    Rejected(String),
}

/// One stream.
#[derive(Debug)]
pub struct Session {
    own_node: Text,
    nonces: u64,
    types: BTreeMap<String, Subscription>,
}

impl Session {
    /// A stream of the proxy of `node`, before its first request.
    pub fn new(node: &str) -> Self {
        Self {
            own_node: node_key(node),
            nonces: 0,
            types: BTreeMap::new(),
        }
    }

    /// Takes one request.
    ///
    /// # Errors
    /// When the stream has to end.
    pub fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<Heard, SessionError> {
        if request.type_url.is_empty() || request.type_url.len() > MAX_TYPE_URL {
            return Err(SessionError::Type);
        }
        let Some(known) = self.types.get_mut(&request.type_url) else {
            return self.subscribe_first(request, snapshot);
        };
        let heard = known.answered(&request);
        known.subscribe(&request, snapshot)?;
        Ok(heard)
    }

    fn subscribe_first(
        &mut self,
        request: DeltaDiscoveryRequest,
        snapshot: &Snapshot,
    ) -> Result<Heard, SessionError> {
        if self.types.len() >= MAX_TYPES {
            return Err(SessionError::Type);
        }
        let kind = Kind::of(&request.type_url);
        let type_url = request.type_url.clone();
        let own_node = Text::clone(&self.own_node);
        let subscription = Subscription::first(kind, own_node, request, snapshot)?;
        self.types.insert(type_url, subscription);
        if kind.is_none() {
            return Ok(Heard::Unknown);
        }
        Ok(Heard::Asked)
    }

    /// Takes note of a newer state.
    ///
    /// # Errors
    /// [`SessionError::Behind`] when what changed since the last call is no longer known.
    pub fn advance(&mut self, snapshot: &Snapshot) -> Result<(), SessionError> {
        self.types
            .values_mut()
            .try_for_each(|known| known.advance(snapshot))
    }

    /// The next response to send, if one is owed; policies first, since workloads name them.
    pub fn next_push(&mut self, snapshot: &Snapshot) -> Option<DeltaDiscoveryResponse> {
        let ready = self.types.iter_mut().find(|(_, known)| known.has_push());
        let (type_url, known) = ready?;
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        Some(known.push(type_url, nonce, snapshot))
    }

    /// True while a response waits for the proxy's answer.
    pub fn awaits_answer(&self) -> bool {
        self.types.values().any(Subscription::awaits_answer)
    }

    /// What the proxy holds of each type; `current` is filled in by whoever knows the store.
    pub fn status(&self) -> Vec<TypeStatus> {
        let types = self.types.iter();
        types
            .map(|(type_url, known)| known.status(type_url))
            .collect()
    }
}

#[cfg(test)]
mod tests;
