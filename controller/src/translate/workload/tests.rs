//! What a pod looks like to the mesh, field by field.

use ambit_core::workload::Locality;

use super::super::{Resource, Translated, translate};
use super::*;
use crate::index::Source;
use crate::testing::{apply, index, name_of, served};
use crate::watch::Event;

const AMBIENT: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: a, labels: {app: web, version: v2}}
spec:
  nodeName: n1
  serviceAccountName: shopper
  containers: [{ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]
status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
";

fn translated(yaml: &[&str]) -> Translated {
    let index = index(&yaml.join("\n---\n"));
    translate(&index, &Source::Pod(name_of("a/web")))
}

fn workload(yaml: &[&str]) -> Workload {
    only(translated(yaml))
}

fn only(translated: Translated) -> Workload {
    match translated.resources.as_slice() {
        [Resource::Workload(workload)] => Workload::clone(workload),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_is_a_workload() {
    let node = "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}}}";
    let account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: shopper, namespace: a}}";
    let translated = translated(&[AMBIENT, node, account, POD]);
    assert_eq!(translated.problems, Vec::<String>::new());
    let expected = Workload {
        service_account: "shopper".into(),
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        node: "n1".into(),
        locality: Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        },
        canonical_name: "web".into(),
        canonical_revision: "v2".into(),
        workload_name: "web".into(),
        ..Workload::named(WorkloadUid::new("Kubernetes//Pod/a/web"), "a", "web")
    };
    assert_eq!(only(translated), expected);
}

#[test]
fn only_a_served_and_enrolled_pod_is_announced_as_captured() {
    let plain = AMBIENT.replace("ambient", "none");
    let with_uid = POD.replace("name: web,", "name: web, uid: u-1,");
    let cases: [(&str, &str, &str, &[&str], TunnelProtocol); 6] = [
        ("served", AMBIENT, "n1", &["a/web"], TunnelProtocol::Hbone),
        ("not reported", AMBIENT, "n1", &[], TunnelProtocol::None),
        ("other pod", AMBIENT, "n1", &["a/db"], TunnelProtocol::None),
        (
            "other node",
            AMBIENT,
            "n2",
            &["a/web"],
            TunnelProtocol::None,
        ),
        (
            "not enrolled",
            &plain,
            "n1",
            &["a/web"],
            TunnelProtocol::None,
        ),
        (
            "other pod of that name",
            AMBIENT,
            "n1",
            &["a/web"],
            TunnelProtocol::None,
        ),
    ];
    for (name, namespace, node, pods, expected) in cases {
        let pod = if name == "other pod of that name" {
            &with_uid
        } else {
            POD
        };
        let mut index = index(&format!("{namespace}\n---\n{pod}"));
        index.apply(Event::Served(served(node, pods)));
        let workload = only(translate(&index, &Source::Pod(name_of("a/web"))));
        assert_eq!(workload.tunnel_protocol, expected, "{name}");
    }
}

#[test]
fn what_has_no_address_or_namespace_or_has_ended_is_no_workload() {
    let cases = [
        (
            "ended",
            POD.replace("status: {", "status: {phase: Succeeded, "),
            vec![AMBIENT],
        ),
        (
            "failed",
            POD.replace("status: {", "status: {phase: Failed, "),
            vec![AMBIENT],
        ),
        (
            "no address",
            POD.replace("[{ip: 10.0.0.1}, {ip: 'fd00::1'}]", "[]"),
            vec![AMBIENT],
        ),
        ("no namespace", POD.to_owned(), vec![]),
    ];
    for (name, pod, mut yaml) in cases {
        yaml.push(&pod);
        assert_eq!(translated(&yaml).resources, [], "{name}");
    }
}

#[test]
fn addresses_that_are_none_are_left_out_and_reported() {
    for bad in [
        "nowhere",
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "10.0.0.1/24",
    ] {
        let pod = POD.replace("fd00::1", bad);
        let translated = translated(&[AMBIENT, &pod]);
        assert!(
            translated.problems[0].contains(bad),
            "{:?}",
            translated.problems
        );
        assert_eq!(only(translated).addresses.len(), 1, "{bad}");
    }
}

#[test]
fn readiness_is_the_condition_or_taken_for_granted() {
    let condition = |status: &str| {
        POD.replace(
            "status: {",
            &format!("status: {{conditions: [{{type: Ready, status: '{status}'}}], "),
        )
    };
    let deleting = POD.replace(
        "name: web,",
        "name: web, deletionTimestamp: '2026-01-01T00:00:00Z',",
    );
    let cases = [
        (POD.to_owned(), Health::Healthy),
        (condition("True"), Health::Healthy),
        (condition("False"), Health::Unhealthy),
        (condition("Unknown"), Health::Unhealthy),
        (deleting, Health::Unhealthy),
    ];
    for (pod, health) in cases {
        assert_eq!(workload(&[AMBIENT, &pod]).health, health, "{pod}");
    }
}

#[test]
fn a_pod_on_its_nodes_network_has_no_address_of_its_own() {
    let pod = POD.replace("nodeName: n1", "nodeName: n1\n  hostNetwork: true");
    let workload = workload(&[AMBIENT, &pod]);
    assert_eq!(workload.network_mode, NetworkMode::HostNetwork);
    assert_eq!(workload.tunnel_protocol, TunnelProtocol::None);
}

#[test]
fn a_missing_service_account_is_reported() {
    let translated = translated(&[AMBIENT, POD]);
    assert_eq!(
        translated.problems,
        ["there is no ServiceAccount shopper in its namespace"]
    );
    let default = POD.replace("serviceAccountName: shopper", "serviceAccountName: ''");
    assert_eq!(
        workload(&[AMBIENT, &default]).service_account,
        "default".into()
    );
}

#[test]
fn names_for_telemetry_come_from_labels_and_owners() {
    let owned = |kind: &str, name: &str, hash: &str| {
        POD.replace("labels: {app: web, version: v2}", &format!("labels: {{{hash}}}, ownerReferences: [{{apiVersion: v1, kind: {kind}, name: {name}, uid: u, controller: true}}]"))
    };
    let cases = [
        (
            owned("ReplicaSet", "shop-7f9", "pod-template-hash: 7f9"),
            "shop",
        ),
        (owned("ReplicaSet", "shop-7f9", ""), "shop-7f9"),
        (owned("Job", "report-29012345", ""), "report"),
        (owned("Job", "report-2", ""), "report-2"),
        (owned("DaemonSet", "log", ""), "log"),
    ];
    for (pod, expected) in cases {
        let workload = workload(&[AMBIENT, &pod]);
        assert_eq!(&*workload.workload_name, expected, "{pod}");
        assert_eq!(&*workload.canonical_name, expected, "{pod}");
        assert_eq!(&*workload.canonical_revision, "latest", "{pod}");
    }
    let named = POD.replace(
        "app: web",
        "app: web, service.istio.io/canonical-name: c, app.kubernetes.io/name: k",
    );
    assert_eq!(&*workload(&[AMBIENT, &named]).canonical_name, "c");
}

#[test]
fn a_pod_is_an_endpoint_of_the_services_that_select_it() {
    let service = "
apiVersion: v1
kind: Service
metadata: {name: front, namespace: a}
spec:
  selector: {app: web}
  ports:
  - {name: a, port: 80, targetPort: http}
  - {name: b, port: 81, targetPort: 9000}
  - {name: c, port: 82}
  - {name: d, port: 83, targetPort: nowhere}
  - {name: e, port: 84, targetPort: dns}
  - {name: f, port: 85, protocol: UDP}
";
    let elsewhere = service.replace("namespace: a", "namespace: b");
    let other = service
        .replace("front", "other")
        .replace("app: web", "app: db");
    let outside = service
        .replace("front", "outside")
        .replace("spec:", "spec:\n  type: ExternalName");
    let workload = workload(&[AMBIENT, POD, service, &elsewhere, &other, &outside]);
    let ports = [(80, 8080), (81, 9000), (82, 82)].map(|(service_port, target_port)| PortMapping {
        service_port,
        target_port,
    });
    let key = ServiceKey::new("a", "front.a.svc.cluster.local");
    assert_eq!(workload.services, BTreeMap::from([(key, ports.to_vec())]));
}

#[test]
fn slices_make_pods_endpoints_only_where_no_selector_does() {
    let slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s1, namespace: a, labels: {kubernetes.io/service-name: front}}
addressType: IPv4
ports: [{name: a, port: 8080}]
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, name: web}}]
";
    let service = "{apiVersion: v1, kind: Service, metadata: {name: front, namespace: a}, spec: {ports: [{name: a, port: 80}, {name: b, port: 81}]}}";
    let workload_of = |service: &str| workload(&[AMBIENT, POD, service, slice]);
    let named = workload_of(service).services;
    let ports: Vec<_> = named
        .values()
        .flatten()
        .map(|p| (p.service_port, p.target_port))
        .collect();
    assert_eq!(ports, [(80, 8080)]);
    let selecting = service.replace("spec: {", "spec: {selector: {app: db}, ");
    assert_eq!(workload_of(&selecting).services, BTreeMap::new());
}

#[test]
fn policies_with_a_matching_selector_are_named() {
    let policy = |namespace: &str, name: &str, rest: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{rest}}}}}"
        )
    };
    let selecting = "selector: {matchLabels: {app: web}}";
    let yaml = [
        AMBIENT.to_owned(),
        AMBIENT.replace("name: a", "name: b"),
        POD.to_owned(),
        policy("a", "mine", selecting),
        policy("mesh", "root", selecting),
        policy("b", "foreign", selecting),
        policy("a", "others", "selector: {matchLabels: {app: db}}"),
        policy("a", "everybody", ""),
        policy(
            "a",
            "audit",
            "action: AUDIT, selector: {matchLabels: {app: web}}",
        ),
        policy(
            "a",
            "broken",
            "selector: {matchLabels: {app: web}}, actoin: DENY",
        ),
    ];
    let mut index = index(&yaml.join("\n---\n"));
    let names = |index: &Index| {
        let workload = only(translate(index, &Source::Pod(name_of("a/web"))));
        assert!(!workload.policy_unreadable);
        workload
            .authorization_policies
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&index), ["a/broken", "a/mine", "mesh/root"]);
    apply(&mut index, &POD.replace("app: web", "app: db"));
    assert_eq!(names(&index), ["a/others"]);
}
