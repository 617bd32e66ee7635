//! What a Kubernetes Service looks like to the mesh, field by field.

use super::super::{Resource, translate};
use super::*;
use crate::index::Source;
use crate::testing::{index, name_of};

const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}";

fn translated(namespace: &str, spec: &str) -> Translated {
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: a}}, spec: {{{spec}}}}}"
    );
    let index = index(&format!("{namespace}\n---\n{service}"));
    translate(&index, &Source::Service(name_of("a/s")))
}

fn service_of(spec: &str) -> Service {
    only(translated(NAMESPACE, spec))
}

fn only(translated: Translated) -> Service {
    match translated.resources.as_slice() {
        [Resource::Service(service)] => Service::clone(service),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_has_its_host_name_addresses_and_tcp_ports() {
    let service = service_of(
        "clusterIP: 10.9.0.1, clusterIPs: [10.9.0.1, 'fd00::9'], ipFamilies: [IPv4, IPv6],
         ports: [{name: http-a, port: 80, targetPort: 8080}, {name: b, port: 81, targetPort: web}, {port: 53, protocol: UDP}]",
    );
    assert_eq!(service.key.to_string(), "a/s.a.svc.cluster.local");
    let addresses: Vec<_> = service
        .addresses
        .iter()
        .map(|a| a.address.to_string())
        .collect();
    assert_eq!(addresses, ["/10.9.0.1", "/fd00::9"]);
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|p| (p.service_port, p.target_port))
        .collect();
    assert_eq!(ports, [(80, 8080), (81, 0)]);
    assert_eq!(service.ip_families, IpFamilies::Dual);
    assert!(service.canonical);
}

#[test]
fn headless_services_have_no_address_and_external_names_are_none() {
    assert_eq!(
        service_of("clusterIP: None, ports: [{port: 80}]").addresses,
        []
    );
    assert_eq!(service_of("ports: [{port: 80}]").addresses, []);
    let external = translated(NAMESPACE, "type: ExternalName, externalName: example.org");
    assert_eq!(external, Translated::default());
}

#[test]
fn a_service_of_a_missing_namespace_is_left_out() {
    let elsewhere = NAMESPACE.replace("name: a", "name: b");
    let translated = translated(&elsewhere, "clusterIP: 10.9.0.1");
    assert_eq!(translated.resources, []);
    assert_eq!(translated.problems.len(), 1);
}

#[test]
fn values_that_are_none_are_left_out_and_reported() {
    let translated = translated(
        NAMESPACE,
        "clusterIPs: [nowhere, 10.9.0.1], ports: [{port: 70000}, {port: 0}, {port: 80, targetPort: 99999}, {port: 81}]",
    );
    assert_eq!(translated.problems.len(), 4, "{:?}", translated.problems);
    let service = only(translated);
    assert_eq!((service.addresses.len(), service.ports.len()), (1, 1));
}

#[test]
fn load_balancing_follows_the_first_setting_that_is_there() {
    let annotated = NAMESPACE.replace(
        "name: a",
        "name: a, annotations: {networking.istio.io/traffic-distribution: PreferSameNode}",
    );
    let close = [Scope::Network, Scope::Region, Scope::Zone];
    let node = [
        Scope::Network,
        Scope::Region,
        Scope::Zone,
        Scope::Subzone,
        Scope::Node,
    ];
    let cases: [(&str, &str, BalanceMode, &[Scope]); 8] = [
        (NAMESPACE, "", BalanceMode::Unspecified, &[]),
        (
            NAMESPACE,
            "internalTrafficPolicy: Local, trafficDistribution: PreferClose",
            BalanceMode::Strict,
            &[Scope::Node],
        ),
        (
            NAMESPACE,
            "internalTrafficPolicy: Cluster, trafficDistribution: PreferClose",
            BalanceMode::Failover,
            &close,
        ),
        (
            NAMESPACE,
            "trafficDistribution: PreferSameZone",
            BalanceMode::Failover,
            &close,
        ),
        (
            NAMESPACE,
            "trafficDistribution: PreferSameNode",
            BalanceMode::Failover,
            &node,
        ),
        (&annotated, "", BalanceMode::Failover, &node),
        (
            &annotated,
            "trafficDistribution: PreferClose",
            BalanceMode::Failover,
            &close,
        ),
        (
            &annotated,
            "trafficDistribution: Any",
            BalanceMode::Unspecified,
            &[],
        ),
    ];
    for (namespace, spec, mode, preference) in cases {
        let balancing = only(translated(namespace, spec)).load_balancing;
        assert_eq!(
            (balancing.mode, &*balancing.routing_preference),
            (mode, preference),
            "{spec}"
        );
    }
}

#[test]
fn a_traffic_distribution_that_is_not_known_is_reported() {
    let unknown = translated(NAMESPACE, "trafficDistribution: PreferMoon");
    assert_eq!(unknown.problems.len(), 1);
    assert_eq!(only(unknown).load_balancing, LoadBalancing::default());
}

#[test]
fn endpoints_that_are_not_ready_count_where_the_service_says_so() {
    let policy = |spec: &str| service_of(spec).load_balancing.health_policy;
    assert_eq!(
        policy("publishNotReadyAddresses: true"),
        HealthPolicy::AllowAll
    );
    assert_eq!(
        policy("publishNotReadyAddresses: false"),
        HealthPolicy::OnlyHealthy
    );
}

#[test]
fn protocols_are_declared_by_field_or_name() {
    let cases = [
        ("name: http", AppProtocol::Http11),
        ("name: http2-web", AppProtocol::Http2),
        ("name: grpc-web", AppProtocol::Grpc),
        ("name: https", AppProtocol::Tls),
        ("name: tls-x", AppProtocol::Tls),
        ("name: redis", AppProtocol::Tcp),
        ("name: web", AppProtocol::Unknown),
        ("name: httpx", AppProtocol::Unknown),
        ("name: http, appProtocol: tcp", AppProtocol::Tcp),
        (
            "name: x, appProtocol: kubernetes.io/h2c",
            AppProtocol::Http2,
        ),
    ];
    for (port, protocol) in cases {
        let service = service_of(&format!("ports: [{{port: 80, {port}}}]"));
        assert_eq!(service.ports[0].app_protocol, protocol, "{port}");
    }
}
