//! What follows from what the API server says of pods and namespaces.

use serde_json::{Value, json};

use super::*;

fn pod(name: &str, changes: &[(&str, Value)]) -> (Version, KnownPod) {
    let mut pod = json!({
        "metadata": { "namespace": "shop", "name": name, "uid": name, "annotations": {}, "labels": { "app": name } },
        "spec": { "nodeName": "node1", "containers": [] },
        "status": { "phase": "Running", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] },
    });
    for (pointer, value) in changes {
        *pod.pointer_mut(pointer).unwrap() = value.clone();
    }
    let pod: Pod = serde_json::from_value(pod).unwrap();
    (Some(1), KnownPod::of(&pod).unwrap())
}

fn namespace(annotations: Value) -> Settings {
    let metadata = json!({ "annotations": annotations });
    Settings::of(&serde_json::from_value(metadata).unwrap())
}

/// A cluster whose namespace `shop` says this, with these pods.
fn cluster(annotations: Value, pods: &[(Version, KnownPod)]) -> Cluster {
    let mut cluster = Cluster::new(Arc::default());
    let shop = namespace(annotations);
    cluster.hear_of_namespaces(Said::Begin);
    cluster.hear_of_namespaces(Said::Listed("shop".into(), Some(1), shop));
    cluster.hear_of_namespaces(Said::Complete);
    cluster.hear_of_pods(Said::Begin);
    for (version, pod) in pods {
        let uid = pod.pod.uid.clone();
        cluster.hear_of_pods(Said::Listed(uid, *version, pod.clone()));
    }
    cluster.hear_of_pods(Said::Complete);
    assert!(cluster.is_heard());
    cluster
}

fn ambient() -> Value {
    json!({ "ambit.mesh/dataplane-mode": "ambient" })
}

fn enrolled(cluster: &Cluster) -> Vec<&str> {
    let uids = cluster.pods.iter().map(|(uid, _)| uid);
    let found = cluster.node_pods(false).enrolled;
    uids.filter(|uid| found.contains_key(*uid))
        .map(PodUid::as_str)
        .collect()
}

#[test]
fn pods_join_with_their_namespace_and_are_looked_for_by_address() {
    let mut cluster = cluster(json!({}), &[pod("a", &[])]);
    assert_eq!(enrolled(&cluster), [""; 0]);
    let said = Said::Is("shop".into(), Some(2), namespace(ambient()));
    assert!(cluster.hear_of_namespaces(said));
    let found = cluster.node_pods(false).enrolled;
    let wanted = &found[&PodUid::new("a")];
    assert_eq!(wanted.place.netns, None);
    let addresses: [IpAddr; 2] = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap());
    assert_eq!(wanted.place.addresses, addresses);
    assert_eq!(&*wanted.pod.service_account, "default");
}

#[test]
fn a_pod_without_address_waits_for_cni() {
    let status = json!({ "phase": "Pending" });
    let cluster = cluster(ambient(), &[pod("a", &[("/status", status)])]);
    let found = cluster.node_pods(false);
    assert!(found.enrolled.is_empty() && found.others.is_empty());
    assert!(found.unclear.contains_key(&PodUid::new("a")));
}

#[test]
fn what_was_read_for_cni_beats_what_a_slow_watch_says_later() {
    let mut cluster = cluster(json!({}), &[]);
    cluster.learn(&pod("a", &[]), &(Some(9), namespace(ambient())));
    assert_eq!(enrolled(&cluster), ["a"]);
    let old = Said::Is("shop".into(), Some(5), namespace(json!({})));
    assert!(!cluster.hear_of_namespaces(old));
    assert_eq!(enrolled(&cluster), ["a"]);
}

#[test]
fn excluded_namespaces_never_join() {
    let mut cluster = cluster(ambient(), &[pod("a", &[])]);
    cluster.excluded = Arc::new(BTreeSet::from(["shop".into()]));
    assert_eq!(enrolled(&cluster), [""; 0]);
}

#[test]
fn owners_are_told_why_a_pod_that_asks_is_left_alone() {
    let host = pod(
        "host",
        &[(
            "/spec",
            json!({ "hostNetwork": true, "nodeName": "node1", "containers": [] }),
        )],
    );
    let theirs = json!({ "ambient.istio.io/redirection": "enabled" });
    let theirs = pod("theirs", &[("/metadata/annotations", theirs)]);
    let out = json!({ "ambit.mesh/dataplane-mode": "none" });
    let out = pod("out", &[("/metadata/annotations", out)]);
    let pods = [host, theirs, out, pod("a", &[])];
    let told = cluster(ambient(), &pods).left_alone(false);
    let told: Vec<_> = told
        .iter()
        .map(|(uid, (_, why))| (uid.as_str(), *why))
        .collect();
    let want = [
        ("host", Enrollment::HostNetwork),
        ("theirs", Enrollment::AnotherMesh),
    ];
    assert_eq!(told, want);
    let nobody_asks = cluster(json!({}), &pods).left_alone(false);
    assert!(nobody_asks.is_empty(), "{nobody_asks:?}");
}

#[test]
fn bad_options_leave_a_pod_as_it_is() {
    let bad = json!({ "ambit.mesh/reroute-virtual-interfaces": "no/interface" });
    let cluster = cluster(ambient(), &[pod("a", &[("/metadata/annotations", bad)])]);
    let found = cluster.node_pods(false);
    assert!(found.unclear[&PodUid::new("a")].contains("no/interface"));
}

#[test]
fn labels_that_decide_nothing_are_not_kept() {
    let (_, pod) = pod("a", &[]);
    assert_eq!(pod.settings, Settings::default());
}
