//! `istio.workload.Workload` and [`Workload`], both ways.
//!
//! Used through `wire` by the xDS client and the controller's store. What decides where bytes go is refused when it is
//! not understood; what only describes falls back to the default that its doc comment names.

use std::collections::BTreeMap;

use ambit_core::identity::DEFAULT_TRUST_DOMAIN;
use ambit_core::names::{
    ClusterId, NamespacedName, NetworkAddress, NetworkId, ServiceKey, Text, WorkloadUid,
};
use ambit_core::service::ServiceAddress;
use ambit_core::workload::{
    ApplicationTunnel, GatewayAddress, Health, Locality, NetworkMode, PortMapping, TunnelPreamble,
    TunnelProtocol, Workload, WorkloadType,
};

use super::{
    POLICY_UNREADABLE, WireError, bad, decode_gateway, decode_ip, decode_policy_name, decode_port,
    decode_port_or_zero, encode_gateway, encode_ip, encode_unreadable, unknown,
};
use crate::proto::workload as pb;

/// Cluster of workloads that do not say one.
const DEFAULT_CLUSTER: &str = "Kubernetes";
/// Service account of workloads that do not say one.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// Weight of workloads that do not say one.
const DEFAULT_CAPACITY: u32 = 1;

/// The message for a workload; equal workloads give equal bytes.
pub fn encode(workload: &Workload) -> pb::Workload {
    let is_default_domain = &*workload.trust_domain == DEFAULT_TRUST_DOMAIN;
    pb::Workload {
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().copied().map(encode_ip).collect(),
        network: workload.network.to_string(),
        tunnel_protocol: encode_tunnel_protocol(workload.tunnel_protocol).into(),
        trust_domain: if is_default_domain {
            String::new()
        } else {
            workload.trust_domain.to_string()
        },
        service_account: workload.service_account.to_string(),
        waypoint: workload.waypoint.as_ref().map(encode_gateway),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: encode_workload_type(workload.workload_type).into(),
        workload_name: workload.workload_name.to_string(),
        native_tunnel: workload.native_tunnel,
        authorization_policies: strings(&workload.authorization_policies),
        status: encode_health(workload.health).into(),
        cluster_id: workload.cluster.to_string(),
        network_gateway: workload.network_gateway.as_ref().map(encode_gateway),
        uid: workload.uid.to_string(),
        hostname: workload.hostname.as_deref().unwrap_or_default().to_owned(),
        services: encode_services(&workload.services),
        application_tunnel: workload.application_tunnel.map(encode_application_tunnel),
        locality: encode_locality(&workload.locality),
        network_mode: encode_network_mode(workload.network_mode).into(),
        extensions: encode_extensions(workload),
        capacity: (workload.capacity != DEFAULT_CAPACITY).then_some(workload.capacity),
    }
}

/// Reads a workload.
///
/// Assumed where the message is silent: trust domain `cluster.local`, service account `default`, cluster `Kubernetes`,
/// capacity 1. A reference to a policy that is not `namespace/name` makes its policies unreadable.
///
/// # Errors
/// When it has no uid or one that reads like a service's key, an address that is none, a port out of range, a gateway
/// without destination, a service that is not `namespace/hostname`, or a way to be reached that this version does not
/// know (LEGACY_ISTIO_MTLS among them). The sender is at fault.
pub fn decode(message: pb::Workload) -> Result<Workload, WireError> {
    if message.uid.is_empty() {
        return Err(WireError::Missing("uid"));
    }
    if ServiceKey::parse(&message.uid).is_some() {
        let why = "which a removal could not tell from a service's key";
        return Err(bad("uid", message.uid, why));
    }
    let addresses = message.addresses.iter().map(|a| decode_ip("addresses", a));
    let (authorization_policies, bad_reference) = decode_policies(&message.authorization_policies);
    Ok(Workload {
        tunnel_protocol: decode_tunnel_protocol(message.tunnel_protocol)?,
        network_mode: decode_network_mode(message.network_mode)?,
        addresses: addresses.collect::<Result<_, _>>()?,
        waypoint: decode_optional_gateway("waypoint", message.waypoint)?,
        network_gateway: decode_optional_gateway("network_gateway", message.network_gateway)?,
        services: decode_services(message.services)?,
        application_tunnel: message
            .application_tunnel
            .map(decode_application_tunnel)
            .transpose()?,
        policy_unreadable: bad_reference
            || message
                .extensions
                .iter()
                .any(|e| e.name == POLICY_UNREADABLE),
        authorization_policies,
        uid: WorkloadUid::new(message.uid),
        name: message.name.into(),
        namespace: message.namespace.into(),
        trust_domain: text_or(message.trust_domain, DEFAULT_TRUST_DOMAIN),
        service_account: text_or(message.service_account, DEFAULT_SERVICE_ACCOUNT),
        network: NetworkId::new(message.network),
        node: message.node.into(),
        cluster: ClusterId::new(text_or(message.cluster_id, DEFAULT_CLUSTER)),
        locality: message.locality.map(decode_locality).unwrap_or_default(),
        canonical_name: message.canonical_name.into(),
        canonical_revision: message.canonical_revision.into(),
        workload_type: decode_workload_type(message.workload_type),
        workload_name: message.workload_name.into(),
        native_tunnel: message.native_tunnel,
        health: decode_health(message.status),
        hostname: Some(message.hostname)
            .filter(|h| !h.is_empty())
            .map(Text::from),
        capacity: message.capacity.unwrap_or(DEFAULT_CAPACITY),
    })
}

/// The addresses of a workload that cannot be read: those that are addresses, unless they are its node's.
pub(super) fn salvage(message: &pb::Workload) -> Vec<ServiceAddress> {
    if message.network_mode == i32::from(pb::NetworkMode::HostNetwork) {
        return Vec::new();
    }
    let claim = |ip| ServiceAddress {
        address: NetworkAddress::new(NetworkId::new(message.network.as_str()), ip),
        prefix: None,
    };
    let own = message.addresses.iter();
    own.filter_map(|a| decode_ip("addresses", a).ok())
        .map(claim)
        .collect()
}

fn encode_extensions(workload: &Workload) -> Vec<pb::Extension> {
    let unreadable = workload.policy_unreadable;
    unreadable
        .then(|| encode_unreadable("a policy that selects the workload cannot be expressed"))
        .into_iter()
        .collect()
}

fn encode_services(
    services: &BTreeMap<ServiceKey, Vec<PortMapping>>,
) -> BTreeMap<String, pb::PortList> {
    let port = |mapping: &PortMapping| pb::Port {
        service_port: mapping.service_port.into(),
        target_port: mapping.target_port.into(),
        app_protocol: pb::AppProtocol::Unknown.into(),
    };
    let list = |ports: &[PortMapping]| pb::PortList {
        ports: ports.iter().map(port).collect(),
    };
    let entry = |(key, ports): (&ServiceKey, &Vec<PortMapping>)| (key.to_string(), list(ports));
    services.iter().map(entry).collect()
}

fn decode_services(
    services: BTreeMap<String, pb::PortList>,
) -> Result<BTreeMap<ServiceKey, Vec<PortMapping>>, WireError> {
    let port = |port: &pb::Port| {
        Ok(PortMapping {
            service_port: decode_port("service_port", port.service_port)?,
            target_port: decode_port_or_zero("target_port", port.target_port)?,
        })
    };
    let entry = |(name, list): (String, pb::PortList)| {
        let key = ServiceKey::parse(&name)
            .ok_or_else(|| bad("services", &name, "which is not namespace/hostname"))?;
        let ports = list.ports.iter().map(port).collect::<Result<_, _>>()?;
        Ok((key, ports))
    };
    services.into_iter().map(entry).collect()
}

/// The references that can be read, and whether there was one that cannot.
fn decode_policies(references: &[String]) -> (Vec<NamespacedName>, bool) {
    let names: Vec<_> = references
        .iter()
        .filter_map(|text| decode_policy_name(text).ok())
        .collect();
    let bad_reference = names.len() < references.len();
    (names, bad_reference)
}

fn decode_optional_gateway(
    field: &'static str,
    gateway: Option<pb::GatewayAddress>,
) -> Result<Option<GatewayAddress>, WireError> {
    gateway.map(|g| decode_gateway(field, g)).transpose()
}

fn encode_tunnel_protocol(protocol: TunnelProtocol) -> pb::TunnelProtocol {
    match protocol {
        TunnelProtocol::None => pb::TunnelProtocol::None,
        TunnelProtocol::Hbone => pb::TunnelProtocol::Hbone,
    }
}

fn decode_tunnel_protocol(value: i32) -> Result<TunnelProtocol, WireError> {
    let field = "tunnel_protocol";
    match pb::TunnelProtocol::try_from(value) {
        Ok(pb::TunnelProtocol::None) => Ok(TunnelProtocol::None),
        Ok(pb::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Ok(pb::TunnelProtocol::LegacyIstioMtls) => {
            Err(bad(field, "LEGACY_ISTIO_MTLS", "which is not served"))
        }
        Err(_unknown) => Err(unknown(field, value)),
    }
}

fn encode_network_mode(mode: NetworkMode) -> pb::NetworkMode {
    match mode {
        NetworkMode::Standard => pb::NetworkMode::Standard,
        NetworkMode::HostNetwork => pb::NetworkMode::HostNetwork,
    }
}

fn decode_network_mode(value: i32) -> Result<NetworkMode, WireError> {
    match pb::NetworkMode::try_from(value) {
        Ok(pb::NetworkMode::Standard) => Ok(NetworkMode::Standard),
        Ok(pb::NetworkMode::HostNetwork) => Ok(NetworkMode::HostNetwork),
        Err(_unknown) => Err(unknown("network_mode", value)),
    }
}

fn encode_health(health: Health) -> pb::WorkloadStatus {
    match health {
        Health::Healthy => pb::WorkloadStatus::Healthy,
        Health::Unhealthy => pb::WorkloadStatus::Unhealthy,
    }
}

/// A status that is not known is taken for unhealthy.
fn decode_health(value: i32) -> Health {
    match pb::WorkloadStatus::try_from(value) {
        Ok(pb::WorkloadStatus::Healthy) => Health::Healthy,
        Ok(pb::WorkloadStatus::Unhealthy) | Err(_) => Health::Unhealthy,
    }
}

fn encode_workload_type(kind: WorkloadType) -> pb::WorkloadType {
    match kind {
        WorkloadType::Deployment => pb::WorkloadType::Deployment,
        WorkloadType::CronJob => pb::WorkloadType::Cronjob,
        WorkloadType::Pod => pb::WorkloadType::Pod,
        WorkloadType::Job => pb::WorkloadType::Job,
    }
}

/// A type that is not known, which is only a label, is taken for a bare pod.
fn decode_workload_type(value: i32) -> WorkloadType {
    match pb::WorkloadType::try_from(value) {
        Ok(pb::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(pb::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(pb::WorkloadType::Pod) | Err(_) => WorkloadType::Pod,
        Ok(pb::WorkloadType::Job) => WorkloadType::Job,
    }
}

fn encode_application_tunnel(tunnel: ApplicationTunnel) -> pb::ApplicationTunnel {
    let protocol = match tunnel.preamble {
        TunnelPreamble::None => pb::application_tunnel::Protocol::None,
        TunnelPreamble::Proxy => pb::application_tunnel::Protocol::Proxy,
    };
    pb::ApplicationTunnel {
        protocol: protocol.into(),
        port: tunnel.port.into(),
    }
}

fn decode_application_tunnel(
    tunnel: pb::ApplicationTunnel,
) -> Result<ApplicationTunnel, WireError> {
    let field = "application_tunnel";
    let preamble = match pb::application_tunnel::Protocol::try_from(tunnel.protocol) {
        Ok(pb::application_tunnel::Protocol::None) => TunnelPreamble::None,
        Ok(pb::application_tunnel::Protocol::Proxy) => TunnelPreamble::Proxy,
        Err(_unknown) => return Err(unknown(field, tunnel.protocol)),
    };
    // Zero: the port to which the bytes were sent.
    let port = decode_port_or_zero(field, tunnel.port)?;
    Ok(ApplicationTunnel { preamble, port })
}

fn encode_locality(locality: &Locality) -> Option<pb::Locality> {
    (*locality != Locality::default()).then(|| pb::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        subzone: locality.subzone.to_string(),
    })
}

fn decode_locality(locality: pb::Locality) -> Locality {
    Locality {
        region: locality.region.into(),
        zone: locality.zone.into(),
        subzone: locality.subzone.into(),
    }
}

fn strings<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

fn text_or(text: String, default: &str) -> Text {
    if text.is_empty() {
        return Text::from(default);
    }
    text.into()
}

#[cfg(test)]
mod tests;
