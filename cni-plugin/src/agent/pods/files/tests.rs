//! From documents to the pods of a node. The decision itself is tested with `ambit_core::enrollment`.

use std::path::Path;

use ambit_core::names::PodUid;
use ambit_net::documents::Problem;
use serde_json::json;

use super::*;

fn reader() -> Reader {
    Reader {
        node: "n1".into(),
        ..Reader::default()
    }
}

fn snapshot(values: impl IntoIterator<Item = Value>) -> Snapshot {
    let document = |(index, value)| {
        Arc::new(Document {
            file: Path::new("a.yaml").into(),
            line: index + 1,
            value,
        })
    };
    Snapshot {
        complete: true,
        documents: values.into_iter().enumerate().map(document).collect(),
        problems: vec![],
    }
}

fn namespace(name: &str, mode: &str) -> Value {
    let labels = json!({ "istio.io/dataplane-mode": mode });
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "ns",
            "annotations": { "ambit.mesh/netns": format!("/run/netns/{name}") },
        },
        "spec": { "nodeName": "n1", "serviceAccountName": "account", "containers": [] },
    })
}

/// The pod with another value at a place in it.
fn pod_with(name: &str, place: &str, value: Value) -> Value {
    let mut pod = pod(name);
    *pod.pointer_mut(place).expect("the place is there") = value;
    pod
}

fn enrolled(found: &NodePods) -> Vec<&str> {
    found
        .enrolled
        .values()
        .map(|spec| &*spec.pod.name.name)
        .collect()
}

#[test]
fn a_pod_of_this_node_in_a_joined_namespace_is_captured() {
    let found = reader().read(&snapshot([namespace("ns", "ambient"), pod("a")]));
    let uid = PodUid::new("ns/a");
    let wanted = Spec {
        addresses: Vec::new(),
        pod: HandoffPod {
            uid: uid.clone(),
            name: NamespacedName::new("ns", "a"),
            service_account: "account".into(),
        },
        netns: "/run/netns/a".into(),
        options: Options::default(),
    };
    assert_eq!(found.enrolled, BTreeMap::from([(uid, wanted.into())]));
    assert!(found.whole && found.unclear.is_empty() && found.others.is_empty());
}

#[test]
fn others_are_not() {
    let elsewhere = pod_with("b", "/spec/nodeName", json!("n2"));
    let ended = {
        let mut pod = pod("c");
        pod["status"] = json!({ "phase": "Succeeded" });
        pod
    };
    let homeless = pod_with("d", "/metadata/namespace", json!("nowhere"));
    let found = reader().read(&snapshot([
        namespace("ns", "ambient"),
        elsewhere,
        ended,
        homeless,
    ]));
    assert_eq!(enrolled(&found), [""; 0]);
    assert_eq!(
        found.others.keys().collect::<Vec<_>>(),
        [&PodUid::new("ns/c")]
    );
    let found = reader().read(&snapshot([namespace("ns", "none"), pod("a")]));
    let other = found.others[&PodUid::new("ns/a")].as_ref();
    assert_eq!(
        other.expect("it says where it is").netns,
        Path::new("/run/netns/a")
    );
}

#[test]
fn a_pod_says_who_it_is_and_what_it_wants() {
    let mut said = pod("a");
    said["metadata"]["uid"] = json!("u-1");
    said["spec"]["serviceAccountName"] = json!("");
    said["metadata"]["annotations"]["ambient.istio.io/bypass-inbound-capture"] = json!("true");
    said["metadata"]["annotations"]["istio.io/reroute-virtual-interfaces"] = json!("vnet0, vnet1,");
    let found = reader().read(&snapshot([namespace("ns", "ambient"), said]));
    let spec = &found.enrolled[&PodUid::new("u-1")];
    assert_eq!(&*spec.pod.service_account, "default");
    assert!(spec.options.bypass_inbound);
    let interfaces: Vec<_> = spec
        .options
        .virtual_interfaces
        .iter()
        .map(crate::redirect::ruleset::InterfaceName::as_str)
        .collect();
    assert_eq!(interfaces, ["vnet0", "vnet1"]);
}

#[test]
fn lists_are_opened() {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [namespace("ns", "ambient"), pod("a")] });
    assert_eq!(enrolled(&reader().read(&snapshot([list]))), ["a"]);
}

#[test]
fn a_pod_that_cannot_be_captured_as_described_is_unclear() {
    let netns = "/metadata/annotations/ambit.mesh~1netns";
    let mut wired = pod("b");
    wired["metadata"]["annotations"]["istio.io/reroute-virtual-interfaces"] = json!("a/b");
    let cases = [
        (
            pod_with("b", "/metadata/annotations", json!({})),
            "no annotation ambit.mesh/netns",
        ),
        (
            pod_with("b", netns, json!("run/netns/b")),
            "not an absolute path",
        ),
        (
            pod_with("b", netns, json!("/run/netns/a")),
            "ns/a has the same",
        ),
        (wired, "a/b is no name of an interface"),
    ];
    for (bad, cause) in cases {
        let mut reader = reader();
        let found = reader.read(&snapshot([namespace("ns", "ambient"), pod("a"), bad]));
        assert_eq!(enrolled(&found), ["a"], "{cause}");
        let said = &found.unclear[&PodUid::new("ns/b")];
        assert!(said.contains(cause), "{said}");
        assert_eq!(reader.faults.first().expect("a fault").place, "a.yaml:3");
    }
}

#[test]
fn a_bad_document_does_not_take_away_what_it_said_before() {
    let mut reader = reader();
    let good = snapshot([namespace("ns", "ambient"), pod("a"), pod("b")]);
    assert_eq!(enrolled(&reader.read(&good)), ["a", "b"]);
    let broken = pod_with("a", "/spec/containers", json!("none"));
    let found = reader.read(&snapshot([namespace("ns", "ambient"), broken, pod("b")]));
    assert_eq!(enrolled(&found), ["a", "b"]);
    assert!(found.whole);
    let found = reader.read(&snapshot([namespace("ns", "ambient"), pod("b")]));
    assert_eq!(enrolled(&found), ["b"]);
}

#[test]
fn what_may_hide_pods_is_said() {
    let broken = pod_with("a", "/spec/containers", json!("none"));
    assert!(
        !reader()
            .read(&snapshot([namespace("ns", "ambient"), broken]))
            .whole
    );
    let nameless = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": {} });
    assert!(!reader().read(&snapshot([nameless])).whole);
    let problem = |previous_in_force| Problem {
        file: Path::new("b.yaml").into(),
        line: Some(1),
        cause: "broken".into(),
        previous_in_force,
        head: None,
    };
    for previous in [true, false] {
        let read = Snapshot {
            problems: vec![problem(previous)],
            ..snapshot([])
        };
        assert_eq!(reader().read(&read).whole, previous);
    }
    assert!(!reader().read(&Snapshot::default()).whole);
}

#[test]
fn the_first_of_two_objects_of_one_name_counts() {
    let mut reader = reader();
    let second = pod_with(
        "a",
        "/metadata/annotations/ambit.mesh~1netns",
        json!("/other"),
    );
    let found = reader.read(&snapshot([namespace("ns", "ambient"), pod("a"), second]));
    let spec = &found.enrolled[&PodUid::new("ns/a")];
    assert_eq!(spec.place.netns.as_deref(), Some(Path::new("/run/netns/a")));
    let fault = reader.faults.first().expect("a fault");
    assert_eq!(fault.cause, "ns/a is already in a.yaml:2");
}

#[test]
fn other_kinds_are_none_of_the_agents_business() {
    let foreign = [
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "x" }, "spec": 7 }),
        json!({ "apiVersion": "example.com/v1", "kind": "Pod", "metadata": { "name": "x" } }),
        json!("a word"),
        json!([1, 2]),
    ];
    let mut reader = reader();
    let found = reader.read(&snapshot(foreign));
    assert!(
        found.whole && reader.faults.is_empty(),
        "{:?}",
        reader.faults
    );
}
