//! Kubernetes Service → Service: host name, virtual addresses, ports, load balancing.

use ambit_core::names::{NamespacedName, NetworkAddress};
use ambit_core::service::{
    AppProtocol, BalanceMode, HealthPolicy, IpFamilies, LoadBalancing, Scope, Service,
    ServiceAddress, ServicePort,
};

use super::Translated;
use crate::index::Index;
use crate::index::services::{Port, Service as Known, TargetPort};

/// Annotation of a Service or Namespace that stands in for `spec.trafficDistribution`.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// The service of a Service; none for other names of something outside.
pub(super) fn service(index: &Index, name: &NamespacedName) -> Translated {
    let Some(known) = index.service(name).filter(|service| !service.external_name) else {
        return Translated::default();
    };
    if index.namespace(&name.namespace).is_none() {
        let namespace = &name.namespace;
        return Translated::problem(format!("it is left out: there is no Namespace {namespace}"));
    }
    let addresses = known.addresses.iter().map(|ip| ServiceAddress {
        address: NetworkAddress::new(index.mesh.network.clone(), *ip),
        prefix: None,
    });
    let (load_balancing, unknown) = load_balancing(index, known);
    let service = Service {
        addresses: addresses.collect(),
        ports: known.ports.iter().map(port).collect(),
        load_balancing,
        ip_families: ip_families(known),
        canonical: true,
        ..Service::named(index.service_key(name), &name.name)
    };
    let mut translated = Translated::service(service);
    for bad in &known.bad {
        let problem = format!("its {bad} is left out: that is not a usable value");
        translated = translated.with_mistake(problem);
    }
    if let Some(text) = unknown {
        let problem = format!("traffic distribution `{text}` is not known and has no effect");
        translated = translated.with_mistake(problem);
    }
    translated
}

fn port(port: &Port) -> ServicePort {
    ServicePort {
        service_port: port.port,
        target_port: match port.target {
            TargetPort::Number(number) => number,
            // Each endpoint names its own.
            TargetPort::Name(_) => 0,
        },
        app_protocol: app_protocol(port),
    }
}

/// `appProtocol`, or else the port's name up to its first hyphen (Istio's protocol selection).
fn app_protocol(port: &Port) -> AppProtocol {
    let prefix = port.name.split('-').next().unwrap_or_default();
    let declared = port.app_protocol.as_deref().unwrap_or(prefix);
    match declared.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

/// The first that is set: internalTrafficPolicy Local, spec.trafficDistribution, the annotation on the Service, on the
/// Namespace. The second value is a setting that is not known.
fn load_balancing(index: &Index, known: &Known) -> (LoadBalancing, Option<String>) {
    let mut balancing = LoadBalancing::default();
    if known.publish_not_ready {
        balancing.health_policy = HealthPolicy::AllowAll;
    }
    if known.local_only {
        balancing.mode = BalanceMode::Strict;
        balancing.routing_preference = vec![Scope::Node];
        return (balancing, None);
    }
    let namespace = index.namespace(&known.name.namespace);
    let by_service = known.annotations.get(TRAFFIC_DISTRIBUTION);
    let by_namespace = namespace.and_then(|ns| ns.annotations.get(TRAFFIC_DISTRIBUTION));
    let setting = known
        .traffic_distribution
        .as_ref()
        .or(by_service)
        .or(by_namespace);
    let Some(setting) = setting else {
        return (balancing, None);
    };
    let close = [Scope::Network, Scope::Region, Scope::Zone];
    match setting.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => balancing.routing_preference = close.to_vec(),
        "prefersamenode" => {
            let closer = [Scope::Subzone, Scope::Node];
            balancing.routing_preference = close.into_iter().chain(closer).collect();
        }
        "any" | "" => return (balancing, None),
        _ => return (balancing, Some(setting.clone())),
    }
    balancing.mode = BalanceMode::Failover;
    (balancing, None)
}

fn ip_families(known: &Known) -> IpFamilies {
    let families: Vec<_> = known.ip_families.iter().map(String::as_str).collect();
    match families.as_slice() {
        ["IPv4"] => IpFamilies::Ipv4Only,
        ["IPv6"] => IpFamilies::Ipv6Only,
        ["IPv4", "IPv6"] | ["IPv6", "IPv4"] => IpFamilies::Dual,
        _ => IpFamilies::Automatic,
    }
}

#[cfg(test)]
mod tests;
