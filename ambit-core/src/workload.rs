//! Workload: one endpoint of the mesh, as the workload discovery service (WDS) describes it.
//!
//! Written by `ambit-net/wire/workload.rs` and the controller's translation; read by every decision.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::identity::SpiffeId;
use crate::names::{
    ClusterId, NamespacedName, NetworkAddress, NetworkId, ServiceKey, Text, WorkloadUid,
};

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum TunnelProtocol {
    /// Plain TCP: the workload is not in the mesh (or not captured yet).
    #[default]
    #[serde(rename = "TCP")]
    None,
    /// HBONE on port 15008.
    #[serde(rename = "HBONE")]
    Hbone,
}

/// Whether the workload has addresses of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum NetworkMode {
    /// Its addresses are its own.
    #[default]
    Standard,
    /// It shares its node's addresses: never found by address.
    HostNetwork,
}

/// Readiness as the endpoint's owner reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Health {
    /// May receive connections.
    #[default]
    Healthy,
    /// Receives connections only where the service says so.
    Unhealthy,
}

/// What kind of owner a workload has; a label of telemetry only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

/// Where a workload runs; empty texts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// Region, from the node's `topology.kubernetes.io/region`.
    pub region: Text,
    /// Zone, from the node's `topology.kubernetes.io/zone`.
    pub zone: Text,
    /// Subzone, from the node's `topology.istio.io/subzone`.
    pub subzone: Text,
}

/// What a [`GatewayAddress`] points at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum GatewayDestination {
    /// A service by its key; one of its endpoints is picked.
    Hostname(ServiceKey),
    /// A workload or service by its address.
    Address(NetworkAddress),
}

/// Where a waypoint or a network gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayAddress {
    /// The gateway.
    pub destination: GatewayDestination,
    /// Its HBONE port, 15008 by convention.
    pub hbone_mtls_port: u16,
}

/// A port of a service and the port of the endpoint behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The service's port.
    pub service_port: u16,
    /// The endpoint's port; zero means that each endpoint names its own.
    pub target_port: u16,
}

/// Preamble that an application tunnel writes before the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum TunnelPreamble {
    /// Nothing.
    None,
    /// PROXY protocol version 2.
    Proxy,
}

/// A waypoint that lets ztunnel terminate HBONE for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ApplicationTunnel {
    /// What is written first.
    pub preamble: TunnelPreamble,
    /// The local port that takes the bytes.
    pub port: u16,
}

/// One endpoint of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Unique key.
    pub uid: WorkloadUid,
    /// Name, for a pod the pod's.
    pub name: Text,
    /// Namespace.
    pub namespace: Text,
    /// Trust domain of its identity.
    pub trust_domain: Text,
    /// Service account of its identity.
    pub service_account: Text,
    /// Addresses; may be empty when `hostname` is set.
    pub addresses: Vec<IpAddr>,
    /// Network in which the addresses are meaningful.
    pub network: NetworkId,
    /// How it is reached.
    pub tunnel_protocol: TunnelProtocol,
    /// Whether the addresses are its own.
    pub network_mode: NetworkMode,
    /// Waypoint for connections addressed to the workload itself.
    pub waypoint: Option<GatewayAddress>,
    /// Gateway for senders on other networks.
    pub network_gateway: Option<GatewayAddress>,
    /// Node on which it runs.
    pub node: Text,
    /// Cluster in which it runs.
    pub cluster: ClusterId,
    /// Where it runs.
    pub locality: Locality,
    /// Name in telemetry.
    pub canonical_name: Text,
    /// Revision in telemetry.
    pub canonical_revision: Text,
    /// Kind of its owner.
    pub workload_type: WorkloadType,
    /// Name of its owner.
    pub workload_name: Text,
    /// True when the app itself speaks HBONE.
    pub native_tunnel: bool,
    /// Policies with a selector that matches it.
    pub authorization_policies: Vec<NamespacedName>,
    /// True when its policies hold something that cannot be expressed or understood: refuse it all.
    pub policy_unreadable: bool,
    /// Readiness.
    pub health: Health,
    /// Name to resolve when `addresses` is empty.
    pub hostname: Option<Text>,
    /// Services that it is an endpoint of, with its own ports where it has a say.
    pub services: BTreeMap<ServiceKey, Vec<PortMapping>>,
    /// Set for waypoints behind ztunnel.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Weight in load balancing; zero is never picked.
    pub capacity: u32,
}

impl Workload {
    /// A workload of the default network and cluster with nothing but its names; fields are set from there.
    pub fn named(uid: WorkloadUid, namespace: &str, name: &str) -> Self {
        Self {
            uid,
            name: name.into(),
            namespace: namespace.into(),
            trust_domain: crate::identity::DEFAULT_TRUST_DOMAIN.into(),
            service_account: "default".into(),
            addresses: Vec::new(),
            network: NetworkId::default(),
            tunnel_protocol: TunnelProtocol::None,
            network_mode: NetworkMode::Standard,
            waypoint: None,
            network_gateway: None,
            node: Text::from(""),
            cluster: ClusterId::new("Kubernetes"),
            locality: Locality::default(),
            canonical_name: name.into(),
            canonical_revision: "latest".into(),
            workload_type: WorkloadType::Pod,
            workload_name: name.into(),
            native_tunnel: false,
            authorization_policies: Vec::new(),
            policy_unreadable: false,
            health: Health::Healthy,
            hostname: None,
            services: BTreeMap::new(),
            application_tunnel: None,
            capacity: 1,
        }
    }

    /// The identity that its certificate must prove.
    pub fn identity(&self) -> SpiffeId {
        SpiffeId::new(
            Text::clone(&self.trust_domain),
            Text::clone(&self.namespace),
            Text::clone(&self.service_account),
        )
    }
}
