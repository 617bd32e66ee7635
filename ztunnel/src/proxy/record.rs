//! ConnectionRecord: what becomes known of one connection on its way, and at its end one log line and the metrics.
//!
//! Opened by each conductor as its first step and finished as its last. A record that is dropped unfinished reports too:
//! its connection was cut. The line has istio/ztunnel's fields, on target `access`, with our `reason` and `policy` beside them.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use ambit_core::hbone::{Baggage, ConnectTarget, Forwarded, Traceparent};
use ambit_core::identity::SpiffeId;
use ambit_core::names::{NamespacedName, NetworkAddress};
use ambit_core::next_hop::{Decision, NextHop};
use ambit_core::reason::Reason;
use ambit_core::service::Service;
use ambit_core::view::MeshView;
use ambit_core::workload::Workload;
use ambit_net::hbone::ConnectHead;
use ambit_net::meters::{CONNECTION_ENDS, Meters, Party, ServiceParty, TrafficLabels};
use ambit_net::relay::ByteCounts;
use tokio::time::Instant;
use tracing::{debug, field, info, warn};

use super::PodContext;
use super::admission::names;
use super::error::Failure;
use crate::flows::{Direction, Flows, OpenFlow, Route};

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionRecord {
    facts: Facts,
    started: Instant,
    meters: Arc<Meters>,
    flows: Arc<Flows>,
    open: Option<OpenFlow>,
    ending: Arc<OnceLock<Reason>>,
    is_finished: bool,
}

/// What the log line says, but for the end.
#[derive(Debug)]
struct Facts {
    route: Route,
    source: End,
    destination: End,
    /// The destination inside of the tunnel.
    target: Option<ConnectTarget>,
    service: Option<Arc<Service>>,
    policies: Vec<NamespacedName>,
}

/// One end of a connection.
#[derive(Debug, Default)]
struct End {
    workload: Option<Arc<Workload>>,
    /// Proved by mutual TLS.
    identity: Option<SpiffeId>,
}

/// What the mesh knows of an inbound connection.
#[derive(Clone, Debug)]
pub(crate) struct Delivered {
    /// The pod's own workload.
    pub(crate) own: Arc<Workload>,
    /// The client's workload, by its address.
    pub(crate) source: Option<Arc<Workload>>,
    /// The service by which the client came, as far as it can be told.
    pub(crate) service: Option<Arc<Service>>,
}

impl Delivered {
    /// Looks up the client.
    pub(crate) fn new(
        view: &MeshView,
        own: &Arc<Workload>,
        source: IpAddr,
        service: Option<&Arc<Service>>,
    ) -> Self {
        let address = NetworkAddress::new(view.network().clone(), source);
        Self {
            own: Arc::clone(own),
            source: view.workload_at(&address).cloned(),
            service: service.cloned(),
        }
    }
}

impl ConnectionRecord {
    /// Begins with a connection of the pod's own app.
    pub(crate) fn outbound(pod: &PodContext, client: SocketAddr) -> Self {
        Self::new(pod, Direction::Outbound, client)
    }

    /// Begins with a connection from `client`, who proved to be `peer` if it came through a tunnel.
    pub(crate) fn inbound(pod: &PodContext, client: SocketAddr, peer: Option<SpiffeId>) -> Self {
        let mut record = Self::new(pod, Direction::Inbound, client);
        record.facts.route.hbone = peer.is_some();
        // Both sides have proved who they are, or neither.
        record.facts.destination.identity = peer.as_ref().map(|_| pod.pod.identity.clone());
        record.facts.source.identity = peer;
        record
    }

    fn new(pod: &PodContext, direction: Direction, source: SocketAddr) -> Self {
        let route = Route {
            pod: pod.pod.uid.clone(),
            direction,
            source,
            wanted: None,
            destination: None,
            hbone: false,
        };
        Self {
            facts: Facts {
                route,
                source: End::default(),
                destination: End::default(),
                target: None,
                service: None,
                policies: Vec::new(),
            },
            started: Instant::now(),
            meters: Arc::clone(&pod.mesh.meters),
            flows: Arc::clone(&pod.flows),
            open: None,
            ending: Arc::clone(&pod.ending),
            is_finished: false,
        }
    }

    /// The client's address.
    pub(crate) fn client(&self) -> SocketAddr {
        self.facts.route.source
    }

    /// Notes where the client wanted to go.
    pub(crate) fn wanted(&mut self, wanted: SocketAddr) {
        let route = &mut self.facts.route;
        route.wanted = Some(wanted);
        route.destination = Some(wanted);
    }

    /// Notes the outbound decision; a later one replaces it.
    pub(crate) fn decided(&mut self, source: Arc<Workload>, decision: &Decision) {
        let facts = &mut self.facts;
        facts.route.hbone = matches!(decision.hop, NextHop::Tunnel { .. });
        facts.target = None;
        (facts.source.identity, facts.destination.identity) = (None, None);
        match &decision.hop {
            NextHop::Passthrough { to } | NextHop::Plain { to } => {
                facts.route.destination = Some(*to)
            }
            NextHop::Tunnel { via, target, .. } => {
                facts.route.destination = Some(*via);
                facts.target = Some(target.clone());
            }
            NextHop::Refuse(_) => {}
        }
        if facts.route.hbone {
            facts.source.identity = Some(source.identity());
            let destination = decision.workload.as_deref();
            facts.destination.identity = destination.map(Workload::identity);
        }
        facts.source.workload = Some(source);
        facts.destination.workload.clone_from(&decision.workload);
        facts.service.clone_from(&decision.service);
    }

    /// Notes what the request in a tunnel names.
    pub(crate) fn target(&mut self, target: &ConnectTarget) {
        self.facts.target = Some(target.clone());
    }

    /// Notes what the mesh knows of an inbound connection.
    pub(crate) fn delivered(&mut self, delivered: Delivered) {
        self.facts.source.workload = delivered.source;
        self.facts.destination.workload = Some(delivered.own);
        self.facts.service = delivered.service;
    }

    /// Notes the policy that allowed the connection.
    pub(crate) fn allowed_by(&mut self, policy: Option<&NamespacedName>) {
        self.facts.policies = policy.cloned().into_iter().collect();
    }

    /// What a CONNECT request says of this connection.
    pub(crate) fn connect_head(&self, target: &ConnectTarget) -> ConnectHead {
        let service = self.facts.service.as_deref();
        ConnectHead {
            target: target.clone(),
            baggage: self.facts.source.workload.as_deref().map(Baggage::of),
            forwarded: Some(Forwarded {
                client: Some(self.client()),
                host: service.map(|service| service.key.hostname.clone()),
            }),
            traceparent: Some(Traceparent::new(fastrand::u128(..), fastrand::u64(..))),
        }
    }

    /// What the answer to a CONNECT request says of the pod.
    pub(crate) fn own_baggage(&self) -> Option<Baggage> {
        self.facts.destination.workload.as_deref().map(Baggage::of)
    }

    /// Counts the connection as opened and says where its bytes are counted.
    pub(crate) fn opened(&mut self) -> &ByteCounts {
        let traffic = self.meters.traffic(&self.facts.labels());
        let route = self.facts.route.clone();
        debug!(target: "access", { src.addr = %route.source, direction = route.direction.word() }, "connection opened");
        let open = self.flows.open(route, traffic);
        self.open.insert(open).counts()
    }

    /// Reports the connection: one log line, the last bytes, and what failed.
    pub(crate) fn finish(mut self, outcome: Result<(), impl Into<Failure>>) {
        let failure = outcome.err().map(Into::into);
        self.report(failure);
    }

    fn report(&mut self, failure: Option<Failure>) {
        self.is_finished = true;
        let open = self.open.take();
        let bytes = open.as_ref().map(OpenFlow::bytes).unwrap_or_default();
        let millis = self.started.elapsed().as_millis();
        if let Some(failure) = &failure {
            let flags = failure.reason.response_flags();
            self.meters.traffic(&self.facts.labels()).failed(flags);
        }
        drop(open);
        let word = failure
            .as_ref()
            .map_or(Reason::Ok, |failure| failure.reason)
            .code();
        let labels = [self.facts.route.direction.word(), word];
        self.meters.counter(&CONNECTION_ENDS, labels).increment();
        self.facts.log(bytes, millis, failure.as_ref());
    }
}

impl Drop for ConnectionRecord {
    /// A record is dropped unfinished when the connection's task was cut: the pod or the proxy was told to end.
    fn drop(&mut self) {
        if !self.is_finished {
            let reason = self.ending.get().copied().unwrap_or(Reason::Drained);
            self.report(Some(Failure::cut(reason)));
        }
    }
}

impl Facts {
    fn labels(&self) -> TrafficLabels {
        let service = self.service.as_deref().map(ServiceParty::of);
        TrafficLabels {
            reporter: self.route.direction.reporter(),
            source: Arc::new(self.source.party()),
            destination: Arc::new(self.destination.party()),
            service: Arc::new(service.unwrap_or_default()),
            mutual_tls: self.source.identity.is_some(),
        }
    }

    fn log(&self, (received, sent): (u64, u64), millis: u128, failure: Option<&Failure>) {
        let reason = failure.map_or(Reason::Ok, |failure| failure.reason);
        let refusing = failure.map_or(&[][..], |failure| &failure.policies);
        let policies = if refusing.is_empty() {
            &self.policies
        } else {
            refusing
        };
        let policy = (!policies.is_empty()).then(|| names(policies));
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    target: "access",
                    { src.addr = %self.route.source,
                    src.workload = self.source.text(|w| &w.name),
                    src.namespace = self.source.text(|w| &w.namespace),
                    src.identity = self.source.identity.as_ref().map(field::display),
                    src.cluster = self.source.text(|w| w.cluster.as_str()),
                    dst.addr = self.route.destination.map(field::display),
                    dst.hbone_addr = self.target.as_ref().map(field::display),
                    dst.service = self.service.as_ref().map(|s| s.key.hostname.as_str()),
                    dst.workload = self.destination.text(|w| &w.name),
                    dst.namespace = self.destination.text(|w| &w.namespace),
                    dst.identity = self.destination.identity.as_ref().map(field::display),
                    dst.cluster = self.destination.text(|w| w.cluster.as_str()),
                    direction = self.route.direction.word(),
                    bytes_sent = sent,
                    bytes_recv = received,
                    duration = %format_args!("{millis}ms"),
                    reason = reason.code(),
                    policy,
                    error = failure.map(|failure| failure.text.as_str()) },
                    "connection complete"
                )
            };
        }
        match failure {
            None => line!(info),
            Some(_) => line!(warn),
        }
    }
}

impl End {
    fn party(&self) -> Party {
        let identity = self.identity.as_ref();
        match &self.workload {
            Some(workload) => Party::of(workload, identity),
            None => Party {
                principal: identity.map(ToString::to_string).unwrap_or_default().into(),
                ..Party::default()
            },
        }
    }

    fn text<'a>(&'a self, part: impl Fn(&'a Workload) -> &'a str) -> Option<&'a str> {
        self.workload.as_deref().map(part)
    }
}

#[cfg(test)]
mod tests;
