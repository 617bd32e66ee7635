//! A small mesh for the tests of this crate: one namespace `shop`, pods with an identity each, services with a VIP.

use std::net::IpAddr;

use crate::names::{ClusterId, NamespacedName, NetworkAddress, NetworkId, ServiceKey, WorkloadUid};
use crate::policy::{Authorization, Match, PolicyAction, PolicyScope, Rule};
use crate::service::{AppProtocol, Service, ServiceAddress, ServicePort};
use crate::view::MeshView;
use crate::view::update::Update;
use crate::workload::{GatewayAddress, GatewayDestination, PortMapping, TunnelProtocol, Workload};

/// The key that [`pod`] gives to a pod of this name.
pub(crate) fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::pod(&ClusterId::new("Kubernetes"), "shop", name)
}

/// A captured pod `shop/name` whose service account has its name.
pub(crate) fn pod(name: &str, addresses: &[&str]) -> Workload {
    let mut pod = Workload::named(uid(name), "shop", name);
    pod.service_account = name.into();
    pod.addresses = addresses.iter().map(|a| ip(a)).collect();
    pod.tunnel_protocol = TunnelProtocol::Hbone;
    pod
}

/// A pod that is not in the mesh.
pub(crate) fn plain_pod(name: &str, addresses: &[&str]) -> Workload {
    Workload {
        tunnel_protocol: TunnelProtocol::None,
        ..pod(name, addresses)
    }
}

/// The key that [`service`] gives to a service of this name.
pub(crate) fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", &host(name))
}

/// The host name that [`service`] gives to a service of this name.
pub(crate) fn host(name: &str) -> String {
    format!("{name}.shop.svc.cluster.local")
}

/// A service `shop/name` with these VIPs and (port, target port) pairs.
pub(crate) fn service(name: &str, vips: &[&str], ports: &[(u16, u16)]) -> Service {
    let mut service = Service::named(key(name), name);
    service.addresses = vips.iter().map(|vip| vip_of(vip)).collect();
    service.ports = ports
        .iter()
        .map(|(service_port, target_port)| ServicePort {
            service_port: *service_port,
            target_port: *target_port,
            app_protocol: AppProtocol::Unknown,
        })
        .collect();
    service
}

/// The pod as an endpoint of a service, with (port, target port) pairs of its own.
pub(crate) fn behind(mut pod: Workload, service: &str, ports: &[(u16, u16)]) -> Workload {
    let mappings = ports.iter().map(|(service_port, target_port)| PortMapping {
        service_port: *service_port,
        target_port: *target_port,
    });
    pod.services.insert(key(service), mappings.collect());
    pod
}

/// A waypoint that is the service of this name, on the usual port.
pub(crate) fn waypoint(service: &str) -> GatewayAddress {
    GatewayAddress {
        destination: GatewayDestination::Hostname(key(service)),
        hbone_mtls_port: crate::ports::INBOUND_HBONE,
    }
}

/// A waypoint at an address, on the usual port.
pub(crate) fn waypoint_at(address: &str) -> GatewayAddress {
    GatewayAddress {
        destination: GatewayDestination::Address(at(address)),
        hbone_mtls_port: crate::ports::INBOUND_HBONE,
    }
}

/// A policy `namespace/name` without rules.
pub(crate) fn policy(name: &str, scope: PolicyScope, action: PolicyAction) -> Authorization {
    Authorization {
        name: NamespacedName::parse(name).unwrap(),
        scope,
        action,
        rules: Vec::new(),
        dry_run: false,
        unreadable: None,
    }
}

/// A rule of one clause with one match.
pub(crate) fn rule(m: Match) -> Rule {
    Rule {
        clauses: vec![crate::policy::Clause { matches: vec![m] }],
    }
}

/// A view of the default network with these resources.
pub(crate) fn view(
    workloads: impl IntoIterator<Item = Workload>,
    services: impl IntoIterator<Item = Service>,
) -> MeshView {
    let mut view = MeshView::new(NetworkId::default(), ClusterId::new("Kubernetes"));
    view.apply(workloads.into_iter().map(|w| Update::Workload(Box::new(w))));
    view.apply(services.into_iter().map(|s| Update::Service(Box::new(s))));
    view
}

/// An address in the default network.
pub(crate) fn at(address: &str) -> NetworkAddress {
    NetworkAddress::new(NetworkId::default(), ip(address))
}

/// Reads an address.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A VIP, or a range when there is a slash.
fn vip_of(text: &str) -> ServiceAddress {
    match text.split_once('/') {
        Some((address, prefix)) => ServiceAddress {
            address: at(address),
            prefix: Some(prefix.parse().unwrap()),
        },
        None => ServiceAddress {
            address: at(text),
            prefix: None,
        },
    }
}
