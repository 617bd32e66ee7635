//! `istio.workload.Service` and [`Service`], both ways.
//!
//! Used through `wire` by the xDS client and the controller's store. What decides which endpoint is picked is refused
//! when it is not understood; what restricts is read as the narrowest.

use ambit_core::identity::SpiffeId;
use ambit_core::names::{NetworkAddress, NetworkId};
use ambit_core::service::{
    AppProtocol, BalanceMode, HealthPolicy, IpFamilies, LoadBalancing, Scope, Service,
    ServiceAddress, ServicePort, Visibility, WeightedWaypoint,
};

use super::{
    WireError, decode_gateway, decode_ip, decode_net, decode_port, decode_port_or_zero,
    decode_service_key, encode_gateway, encode_network_address, unknown,
};
use crate::proto::workload as pb;
use crate::proto::workload::load_balancing as pb_lb;

/// The message for a service; equal services give equal bytes.
pub fn encode(service: &Service) -> pb::Service {
    let sans = service.subject_alt_names.iter();
    let waypoints = service.weighted_waypoints.iter();
    pb::Service {
        name: service.name.to_string(),
        namespace: service.key.namespace.to_string(),
        hostname: service.key.hostname.to_string(),
        addresses: service.addresses.iter().map(encode_address).collect(),
        ports: service.ports.iter().map(encode_port).collect(),
        subject_alt_names: sans.map(ToString::to_string).collect(),
        waypoint: service.waypoint.as_ref().map(encode_gateway),
        load_balancing: encode_load_balancing(&service.load_balancing),
        ip_families: encode_ip_families(service.ip_families).into(),
        extensions: Vec::new(),
        canonical: service.canonical,
        ingress_use_waypoint: service.ingress_use_waypoint,
        weighted_waypoints: waypoints.map(encode_weighted).collect(),
        visibility: encode_visibility(service.visibility).into(),
    }
}

/// Reads a service.
///
/// A subject alternative name that is not an identity of the mesh is left out: fewer peers are accepted, never more.
///
/// # Errors
/// When namespace or host name do not make a key, an address, prefix or port is out of range, a waypoint has no
/// destination, or the choice of endpoints has a setting that this version does not know. The sender is at fault.
pub fn decode(message: pb::Service) -> Result<Service, WireError> {
    let addresses = message.addresses.into_iter().map(decode_address);
    let sans = message.subject_alt_names.iter();
    let waypoints = message.weighted_waypoints.into_iter().map(decode_weighted);
    Ok(Service {
        key: decode_service_key("hostname", message.namespace, &message.hostname)?,
        name: message.name.into(),
        addresses: addresses.collect::<Result<_, _>>()?,
        ports: message
            .ports
            .iter()
            .map(decode_service_port)
            .collect::<Result<_, _>>()?,
        subject_alt_names: sans.filter_map(|san| SpiffeId::parse(san).ok()).collect(),
        waypoint: message
            .waypoint
            .map(|waypoint| decode_gateway("waypoint", waypoint))
            .transpose()?,
        weighted_waypoints: waypoints.collect::<Result<_, _>>()?,
        load_balancing: message
            .load_balancing
            .map(decode_load_balancing)
            .transpose()?
            .unwrap_or_default(),
        ip_families: decode_ip_families(message.ip_families)?,
        canonical: message.canonical,
        visibility: decode_visibility(message.visibility),
        ingress_use_waypoint: message.ingress_use_waypoint,
    })
}

/// The addresses and ranges of a service that cannot be read: those that are some, and the address of a range that is none.
pub(super) fn salvage(message: pb::Service) -> Vec<ServiceAddress> {
    let claim = |mut message: pb::NetworkAddress| {
        decode_address(message.clone()).or_else(|_bad_range| {
            message.length = None;
            decode_address(message)
        })
    };
    let addresses = message.addresses.into_iter().map(claim);
    addresses.filter_map(Result::ok).collect()
}

fn encode_address(address: &ServiceAddress) -> pb::NetworkAddress {
    pb::NetworkAddress {
        length: address.prefix.map(u32::from),
        ..encode_network_address(&address.address)
    }
}

fn decode_address(message: pb::NetworkAddress) -> Result<ServiceAddress, WireError> {
    let field = "addresses";
    let (ip, prefix) = match message.length {
        None => (decode_ip(field, &message.address)?, None),
        Some(length) => {
            let range = decode_net(field, &message.address, length)?;
            (range.addr(), Some(range.prefix_len()))
        }
    };
    let address = NetworkAddress::new(NetworkId::new(message.network), ip);
    Ok(ServiceAddress { address, prefix })
}

fn encode_port(port: &ServicePort) -> pb::Port {
    let app_protocol = match port.app_protocol {
        AppProtocol::Unknown => pb::AppProtocol::Unknown,
        AppProtocol::Http11 => pb::AppProtocol::Http11,
        AppProtocol::Http2 => pb::AppProtocol::Http2,
        AppProtocol::Grpc => pb::AppProtocol::Grpc,
        AppProtocol::Tcp => pb::AppProtocol::Tcp,
        AppProtocol::Tls => pb::AppProtocol::Tls,
    };
    pb::Port {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
        app_protocol: app_protocol.into(),
    }
}

/// A protocol that is not known is taken for not declared.
fn decode_service_port(port: &pb::Port) -> Result<ServicePort, WireError> {
    let app_protocol = match pb::AppProtocol::try_from(port.app_protocol) {
        Ok(pb::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
        Ok(pb::AppProtocol::Http11) => AppProtocol::Http11,
        Ok(pb::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(pb::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(pb::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(pb::AppProtocol::Tls) => AppProtocol::Tls,
    };
    Ok(ServicePort {
        service_port: decode_port("service_port", port.service_port)?,
        target_port: decode_port_or_zero("target_port", port.target_port)?,
        app_protocol,
    })
}

fn encode_weighted(waypoint: &WeightedWaypoint) -> pb::WeightedWaypoint {
    pb::WeightedWaypoint {
        destination: Some(encode_gateway(&waypoint.destination)),
        weight: waypoint.weight,
    }
}

fn decode_weighted(waypoint: pb::WeightedWaypoint) -> Result<WeightedWaypoint, WireError> {
    let field = "weighted_waypoints";
    let destination = waypoint.destination.ok_or(WireError::Missing(field))?;
    Ok(WeightedWaypoint {
        destination: decode_gateway(field, destination)?,
        weight: waypoint.weight,
    })
}

fn encode_load_balancing(choice: &LoadBalancing) -> Option<pb::LoadBalancing> {
    if *choice == LoadBalancing::default() {
        return None;
    }
    let scope = |scope: &Scope| match scope {
        Scope::Region => pb_lb::Scope::Region.into(),
        Scope::Zone => pb_lb::Scope::Zone.into(),
        Scope::Subzone => pb_lb::Scope::Subzone.into(),
        Scope::Node => pb_lb::Scope::Node.into(),
        Scope::Cluster => pb_lb::Scope::Cluster.into(),
        Scope::Network => pb_lb::Scope::Network.into(),
    };
    let mode = match choice.mode {
        BalanceMode::Unspecified => pb_lb::Mode::UnspecifiedMode,
        BalanceMode::Strict => pb_lb::Mode::Strict,
        BalanceMode::Failover => pb_lb::Mode::Failover,
        BalanceMode::Passthrough => pb_lb::Mode::Passthrough,
    };
    let health_policy = match choice.health_policy {
        HealthPolicy::OnlyHealthy => pb_lb::HealthPolicy::OnlyHealthy,
        HealthPolicy::AllowAll => pb_lb::HealthPolicy::AllowAll,
    };
    Some(pb::LoadBalancing {
        routing_preference: choice.routing_preference.iter().map(scope).collect(),
        mode: mode.into(),
        health_policy: health_policy.into(),
    })
}

fn decode_load_balancing(message: pb::LoadBalancing) -> Result<LoadBalancing, WireError> {
    let mode = match pb_lb::Mode::try_from(message.mode) {
        Ok(pb_lb::Mode::UnspecifiedMode) => BalanceMode::Unspecified,
        Ok(pb_lb::Mode::Strict) => BalanceMode::Strict,
        Ok(pb_lb::Mode::Failover) => BalanceMode::Failover,
        Ok(pb_lb::Mode::Passthrough) => BalanceMode::Passthrough,
        Err(_unknown) => return Err(unknown("mode", message.mode)),
    };
    let health_policy = match pb_lb::HealthPolicy::try_from(message.health_policy) {
        Ok(pb_lb::HealthPolicy::OnlyHealthy) => HealthPolicy::OnlyHealthy,
        Ok(pb_lb::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        Err(_unknown) => return Err(unknown("health_policy", message.health_policy)),
    };
    let scopes = message.routing_preference.into_iter().map(decode_scope);
    Ok(LoadBalancing {
        routing_preference: scopes.collect::<Result<_, _>>()?,
        mode,
        health_policy,
    })
}

fn decode_scope(value: i32) -> Result<Scope, WireError> {
    match pb_lb::Scope::try_from(value) {
        Ok(pb_lb::Scope::Region) => Ok(Scope::Region),
        Ok(pb_lb::Scope::Zone) => Ok(Scope::Zone),
        Ok(pb_lb::Scope::Subzone) => Ok(Scope::Subzone),
        Ok(pb_lb::Scope::Node) => Ok(Scope::Node),
        Ok(pb_lb::Scope::Cluster) => Ok(Scope::Cluster),
        Ok(pb_lb::Scope::Network) => Ok(Scope::Network),
        Ok(pb_lb::Scope::UnspecifiedScope) | Err(_) => Err(unknown("routing_preference", value)),
    }
}

fn encode_ip_families(families: IpFamilies) -> pb::IpFamilies {
    match families {
        IpFamilies::Automatic => pb::IpFamilies::Automatic,
        IpFamilies::Ipv4Only => pb::IpFamilies::Ipv4Only,
        IpFamilies::Ipv6Only => pb::IpFamilies::Ipv6Only,
        IpFamilies::Dual => pb::IpFamilies::Dual,
    }
}

fn decode_ip_families(value: i32) -> Result<IpFamilies, WireError> {
    match pb::IpFamilies::try_from(value) {
        Ok(pb::IpFamilies::Automatic) => Ok(IpFamilies::Automatic),
        Ok(pb::IpFamilies::Ipv4Only) => Ok(IpFamilies::Ipv4Only),
        Ok(pb::IpFamilies::Ipv6Only) => Ok(IpFamilies::Ipv6Only),
        Ok(pb::IpFamilies::Dual) => Ok(IpFamilies::Dual),
        Err(_unknown) => Err(unknown("ip_families", value)),
    }
}

fn encode_visibility(visibility: Visibility) -> pb::Visibility {
    match visibility {
        Visibility::Public => pb::Visibility::Public,
        Visibility::Namespace => pb::Visibility::Namespace,
    }
}

/// A visibility that is not known is read as the narrowest.
fn decode_visibility(value: i32) -> Visibility {
    match pb::Visibility::try_from(value) {
        Ok(pb::Visibility::Public) => Visibility::Public,
        Ok(pb::Visibility::Namespace) | Err(_) => Visibility::Namespace,
    }
}

#[cfg(test)]
mod tests;
