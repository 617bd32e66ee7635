//! Service: a name and virtual addresses in front of workloads, as WDS describes it.
//!
//! Written by `ambit-net/wire/service.rs` and the controller's translation; read by every decision. Which workloads
//! are its endpoints is said by the workloads ([`crate::workload::Workload::services`]).

use serde::Serialize;

use crate::identity::SpiffeId;
use crate::names::{NetworkAddress, NetworkId, ServiceKey, Text};
use crate::workload::{GatewayAddress, Workload};

/// What a port carries, as its owner declares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum AppProtocol {
    /// Not declared.
    #[default]
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// TLS that the app terminates.
    Tls,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// The service's port.
    pub service_port: u16,
    /// The endpoints' port; zero means that each endpoint names its own.
    pub target_port: u16,
    /// What it carries.
    pub app_protocol: AppProtocol,
}

/// One step of locality preference (WDS `LoadBalancing.Scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Scope {
    /// Same region.
    Region,
    /// Same zone.
    Zone,
    /// Same subzone.
    Subzone,
    /// Same node.
    Node,
    /// Same cluster.
    Cluster,
    /// Same network.
    Network,
}

/// What locality preference does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum BalanceMode {
    /// All endpoints are equal.
    #[default]
    Unspecified,
    /// Only endpoints that match every preference.
    Strict,
    /// The endpoints that match most preferences.
    Failover,
    /// The client's choice of address is kept.
    Passthrough,
}

/// Which endpoints may be picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum HealthPolicy {
    /// Only healthy ones.
    #[default]
    OnlyHealthy,
    /// All of them.
    AllowAll,
}

/// How an endpoint is picked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// Preferences in order.
    pub routing_preference: Vec<Scope>,
    /// What the preferences do.
    pub mode: BalanceMode,
    /// Which endpoints may be picked.
    pub health_policy: HealthPolicy,
}

/// Which address families clients may be sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum IpFamilies {
    /// Whatever the endpoints have.
    #[default]
    Automatic,
    /// IPv4 only.
    Ipv4Only,
    /// IPv6 only.
    Ipv6Only,
    /// Both.
    Dual,
}

/// Who may address the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Public,
    /// Only clients in the service's own namespace.
    Namespace,
}

/// A waypoint with a share of the connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share, relative to the sum.
    pub weight: u32,
}

/// A virtual address: a single one, or a range when `prefix` is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceAddress {
    /// The address, or the first one of the range.
    pub address: NetworkAddress,
    /// Length of the prefix in bits when this is a range.
    pub prefix: Option<u8>,
}

/// A name and virtual addresses in front of workloads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Unique key: namespace and host name.
    pub key: ServiceKey,
    /// Name of the object.
    pub name: Text,
    /// Virtual addresses; none for a headless service.
    pub addresses: Vec<ServiceAddress>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Identities that its endpoints may prove beside their own.
    pub subject_alt_names: Vec<SpiffeId>,
    /// Waypoint for connections addressed to the service.
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints by weight; overrides `waypoint` when not empty.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How an endpoint is picked.
    pub load_balancing: LoadBalancing,
    /// Which families clients are sent to.
    pub ip_families: IpFamilies,
    /// True for the winner among services with the same host name.
    pub canonical: bool,
    /// Who may address it.
    pub visibility: Visibility,
    /// True when ingress gateways should pass its waypoint too.
    pub ingress_use_waypoint: bool,
}

impl Service {
    /// A service with nothing but its names; fields are set from there.
    pub fn named(key: ServiceKey, name: &str) -> Self {
        Self {
            key,
            name: name.into(),
            addresses: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            canonical: false,
            visibility: Visibility::Public,
            ingress_use_waypoint: false,
        }
    }

    /// The port with this number.
    pub fn port(&self, service_port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.service_port == service_port)
    }

    /// The port on which an endpoint takes connections to one of the service's ports; none when nobody names it.
    ///
    /// What the endpoint says counts before what the service says.
    pub fn target_port(&self, endpoint: &Workload, service_port: u16) -> Option<u16> {
        let own = endpoint.services.get(&self.key).into_iter().flatten();
        own.filter(|m| m.service_port == service_port)
            .map(|m| m.target_port)
            .chain(self.port(service_port).map(|p| p.target_port))
            .find(|port| *port != 0)
    }

    /// True when clients of a namespace may address the service.
    pub fn is_visible_to(&self, client_namespace: &str) -> bool {
        self.visibility == Visibility::Public || *self.key.namespace == *client_namespace
    }

    /// Virtual addresses that are single ones, on one network.
    pub fn vips<'a>(&'a self, network: &'a NetworkId) -> impl Iterator<Item = &'a NetworkAddress> {
        self.addresses
            .iter()
            .filter(move |a| a.prefix.is_none() && a.address.network == *network)
            .map(|a| &a.address)
    }
}
