//! xDS: how a proxy learns the mesh from the controller, and how far it has.
//!
//! Delta xDS over one aggregated stream, as istio/ztunnel speaks it (Envoy xDS protocol, incremental variant): all
//! policies and all addresses, each acknowledged or refused by name, resumed by version after a reconnect. [`session`]
//! is the protocol without I/O, [`response`] reads what arrived, [`client`] moves bytes between those and the view.

pub mod session;
pub mod response;
pub mod client;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use ambit_core::names::{ClusterId, NetworkId, Text};
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};
use tokio::sync::Notify;

use crate::proto::core::Node;
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

/// The kinds of resources that a proxy subscribes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Authorization policies.
    Policy,
    /// Workloads and services.
    Address,
}

impl Kind {
    /// Every kind, in the order of subscription: policies first, so that workloads find those that they name.
    pub const ALL: [Self; 2] = [Self::Policy, Self::Address];

    /// Its type URL.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Policy => AUTHORIZATION_TYPE,
            Self::Address => ADDRESS_TYPE,
        }
    }

    /// The kind with this type URL, if it is one of ours.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Policy => 1,
            Self::Address => 2,
        }
    }
}

/// Tells which kinds have arrived in full since the process started; cheap to clone and to ask.
///
/// A kind counts from the moment its first response has been applied; losing the controller later changes nothing,
/// since what is known stays in force.
#[derive(Clone, Debug, Default)]
pub struct Synced {
    shared: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    bits: AtomicU8,
    changed: Notify,
}

impl Synced {
    /// Nothing has arrived.
    pub fn new() -> Self {
        Self::default()
    }

    /// True once the policies are known: before that nothing may be let in.
    pub fn policies(&self) -> bool {
        self.has(Kind::Policy)
    }

    /// True once workloads and services are known: before that an address that is not known may still be one of them.
    pub fn addresses(&self) -> bool {
        self.has(Kind::Address)
    }

    /// True once both are known.
    pub fn is_complete(&self) -> bool {
        Kind::ALL.into_iter().all(|kind| self.has(kind))
    }

    /// What readiness still waits for, in words.
    pub fn waits_for(&self) -> Vec<&'static str> {
        let missing = Kind::ALL.into_iter().filter(|kind| !self.has(*kind));
        let word = |kind| match kind {
            Kind::Policy => "policies from the controller",
            Kind::Address => "addresses from the controller",
        };
        missing.map(word).collect()
    }

    /// Waits until both are known; the caller sets a deadline.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn wait(&self) {
        loop {
            // Made before the look, so that a change between the two wakes it.
            let changed = self.shared.changed.notified();
            if self.is_complete() {
                return;
            }
            changed.await;
        }
    }

    /// Records that all of a kind has been applied; for the client, and for tests of those who wait.
    pub fn mark(&self, kind: Kind) {
        self.shared.bits.fetch_or(kind.bit(), Ordering::Release);
        self.shared.changed.notify_waiters();
    }

    fn has(&self, kind: Kind) -> bool {
        self.shared.bits.load(Ordering::Acquire) & kind.bit() != 0
    }
}

/// Who this proxy is, told to the controller in the first request of a stream.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Address of the proxy; only shown.
    pub ip: String,
    /// Name of the proxy's pod.
    pub pod_name: Text,
    /// Namespace of the proxy's pod.
    pub pod_namespace: Text,
    /// The node that it serves; must be the one that the token names.
    pub node_name: Text,
    /// The node's cluster.
    pub cluster: ClusterId,
    /// The node's network.
    pub network: NetworkId,
    /// More metadata: Istio's `ISTIO_META_X` as `X`.
    pub metadata: BTreeMap<String, String>,
}

impl NodeInfo {
    /// The message, with the node id that Istio's control plane takes apart (`ztunnel~IP~POD.NAMESPACE~DOMAIN`).
    fn message(&self) -> Node {
        let (pod, namespace) = (&self.pod_name, &self.pod_namespace);
        let own = [
            ("NAME", &**pod),
            ("NAMESPACE", &**namespace),
            ("INSTANCE_IPS", &self.ip),
            ("NODE_NAME", &*self.node_name),
            ("CLUSTER_ID", self.cluster.as_str()),
            ("NETWORK", self.network.as_str()),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let all = self.metadata.clone().into_iter().chain(own);
        let text = |(key, text)| {
            let kind = Some(ValueKind::StringValue(text));
            (key, Value { kind })
        };
        Node {
            id: format!(
                "ztunnel~{}~{pod}.{namespace}~{namespace}.svc.cluster.local",
                self.ip
            ),
            cluster: String::new(),
            metadata: Some(Struct {
                fields: all.map(text).collect(),
            }),
            user_agent_name: "ambit".to_owned(),
            user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
