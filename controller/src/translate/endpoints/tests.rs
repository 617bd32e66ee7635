//! What endpoints that are no pods look like to the mesh.

use ambit_core::workload::TunnelProtocol;

use super::super::translate;
use super::*;
use crate::index::Source;
use crate::testing::{index, name_of};

const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}";
const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: s, namespace: a}, spec: {ports: [{port: 80}]}}";
const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: e, namespace: a, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [192.0.2.1], nodeName: n1}
- {addresses: [192.0.2.2], conditions: {ready: false}}
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: p}}
- {addresses: [example.org]}
";

fn translated(yaml: &[&str]) -> Translated {
    let index = index(&yaml.join("\n---\n"));
    translate(&index, &Source::EndpointSlice(name_of("a/e")))
}

#[test]
fn every_address_that_is_no_pod_is_a_workload_without_identity() {
    let translated = translated(&[NAMESPACE, SERVICE, SLICE]);
    let workloads: Vec<_> = translated
        .resources
        .iter()
        .map(|resource| match resource {
            Resource::Workload(workload) => workload,
            other => panic!("{other:?}"),
        })
        .collect();
    let uids: Vec<_> = workloads.iter().map(|w| w.uid.to_string()).collect();
    let uid = |ip| format!("Kubernetes/discovery.k8s.io/EndpointSlice/a/e/{ip}");
    assert_eq!(uids, [uid("192.0.2.1"), uid("192.0.2.2")]);
    for workload in &workloads {
        assert_eq!(workload.network_mode, NetworkMode::HostNetwork);
        assert_eq!(workload.tunnel_protocol, TunnelProtocol::None);
        assert_eq!(&*workload.service_account, "");
        let ports: Vec<_> = workload
            .services
            .values()
            .flatten()
            .map(|p| (p.service_port, p.target_port))
            .collect();
        assert_eq!(ports, [(80, 8080)]);
    }
    let health: Vec<_> = workloads.iter().map(|w| w.health).collect();
    assert_eq!(health, [Health::Healthy, Health::Unhealthy]);
}

#[test]
fn a_slice_without_its_service_or_namespace_gives_nothing() {
    for yaml in [vec![NAMESPACE, SLICE], vec![SERVICE, SLICE]] {
        let translated = translated(&yaml);
        assert_eq!(
            (translated.resources.len(), translated.problems.len()),
            (0, 1),
            "{yaml:?}"
        );
    }
}
