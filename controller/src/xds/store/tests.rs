//! Versions, keys and what changed since.

use ambit_core::names::NetworkId;
use ambit_core::names::{NamespacedName, ServiceKey, WorkloadUid};
use ambit_core::policy::{Authorization, PolicyAction, PolicyScope};
use ambit_core::service::ServiceAddress;

use super::*;
use crate::testing::name_of;

fn source(name: &str) -> Source {
    Source::Pod(name_of(name))
}

fn workload(name: &str, ip: &str) -> Resource {
    let (namespace, name) = name.split_once('/').unwrap();
    let uid = WorkloadUid::new(format!("Kubernetes//Pod/{namespace}/{name}"));
    Resource::Workload(Box::new(Workload {
        addresses: vec![ip.parse().unwrap()],
        node: "n1".into(),
        services: [(ServiceKey::new("a", "s.a.svc"), Vec::new())].into(),
        ..Workload::named(uid, namespace, name)
    }))
}

fn service() -> Resource {
    let mut service = Service::named(ServiceKey::new("a", "s.a.svc"), "s");
    service.addresses.push(ServiceAddress {
        address: NetworkAddress::new(NetworkId::default(), "10.9.0.1".parse().unwrap()),
        prefix: None,
    });
    Resource::Service(Box::new(service))
}

fn policy(name: &str) -> Resource {
    Resource::Policy(Box::new(Authorization {
        name: NamespacedName::parse(name).unwrap(),
        scope: PolicyScope::Namespace,
        action: PolicyAction::Allow,
        rules: Vec::new(),
        dry_run: false,
        unreadable: None,
    }))
}

fn names(names: impl IntoIterator<Item = Text>) -> Vec<String> {
    names.into_iter().map(|name| name.to_string()).collect()
}

const WEB: &str = "Kubernetes//Pod/a/web";
const DB: &str = "Kubernetes//Pod/a/db";

#[test]
fn versions_are_those_of_the_content_whatever_the_order() {
    let one = {
        let mut store = Store::default();
        store.replace(source("a/web"), vec![workload("a/web", "10.0.0.1")]);
        store.replace(source("a/db"), vec![workload("a/db", "10.0.0.2")]);
        store.commit().unwrap()
    };
    let other = {
        let mut store = Store::default();
        store.replace(source("a/db"), vec![workload("a/db", "10.0.0.9")]);
        store.commit().unwrap();
        store.replace(source("a/x"), vec![workload("a/x", "10.0.0.3")]);
        store.replace(source("a/db"), vec![workload("a/db", "10.0.0.2")]);
        store.replace(source("a/web"), vec![workload("a/web", "10.0.0.1")]);
        store.replace(source("a/x"), Vec::new());
        store.commit().unwrap()
    };
    let (one, other) = (one.shelf(Kind::Address), other.shelf(Kind::Address));
    assert_eq!(one.version(), other.version());
    assert_eq!(
        one.entry(WEB).unwrap().version,
        other.entry(WEB).unwrap().version
    );
    assert_ne!(
        one.entry(WEB).unwrap().version,
        one.entry(DB).unwrap().version
    );
    assert_eq!(
        one.entry(WEB).unwrap().version.len(),
        64,
        "SHA-256 in hexadecimal"
    );
}

#[test]
fn what_did_not_change_is_no_commit() {
    let mut store = Store::default();
    assert!(store.commit().is_none());
    store.replace(source("a/web"), vec![workload("a/web", "10.0.0.1")]);
    let first = store.commit().unwrap();
    store.replace(source("a/web"), vec![workload("a/web", "10.0.0.1")]);
    assert!(store.commit().is_none());
    store.replace(source("a/web"), vec![workload("a/web", "10.0.0.2")]);
    let second = store.commit().unwrap();
    assert_eq!(second.revision, first.revision + 1);
    assert_eq!(
        first.shelf(Kind::Address).len(),
        1,
        "a snapshot does not change"
    );
    let (before, after) = (
        first.shelf(Kind::Address).version(),
        second.shelf(Kind::Address).version(),
    );
    assert_ne!(before, after);
    let version = |snapshot: &Snapshot| snapshot.shelf(Kind::Policy).version();
    assert_eq!(
        version(&first),
        version(&second),
        "the other type is as it was"
    );
}

#[test]
fn what_a_source_no_longer_gives_is_gone() {
    let mut store = Store::default();
    let both = vec![workload("a/web", "10.0.0.1"), workload("a/db", "10.0.0.2")];
    store.replace(source("a/x"), both);
    store.replace(Source::StrictPolicy, vec![policy("a/p")]);
    store.replace(source("a/x"), vec![workload("a/db", "10.0.0.2")]);
    let snapshot = store.commit().unwrap();
    assert_eq!(names(snapshot.shelf(Kind::Address).names().cloned()), [DB]);
    store.replace(source("a/x"), Vec::new());
    store.replace(Source::StrictPolicy, Vec::new());
    let snapshot = store.commit().unwrap();
    assert!(snapshot.shelf(Kind::Address).is_empty() && snapshot.shelf(Kind::Policy).is_empty());
    assert!(
        snapshot
            .shelf(Kind::Address)
            .resolve("/10.0.0.2")
            .is_empty()
    );
}

#[test]
fn keys_stand_for_what_has_them_and_for_the_endpoints_of_services() {
    let mut store = Store::default();
    store.replace(source("a/web"), vec![workload("a/web", "10.0.0.1")]);
    store.replace(source("a/db"), vec![workload("a/db", "10.0.0.2")]);
    store.replace(Source::Service(name_of("a/s")), vec![service()]);
    let snapshot = store.commit().unwrap();
    let resolve = |key: &str| names(snapshot.shelf(Kind::Address).resolve(key));
    assert_eq!(resolve("/10.0.0.1"), [WEB]);
    assert_eq!(resolve(WEB), [WEB]);
    let all = [DB, WEB, "a/s.a.svc"];
    for key in ["a/s.a.svc", "/10.9.0.1"] {
        assert_eq!(resolve(key), all, "{key}");
    }
    assert_eq!(resolve(&node_key("n1")), [DB, WEB]);
    assert_eq!(resolve("/10.0.0.3"), Vec::<String>::new());
}

#[test]
fn a_workload_on_its_nodes_network_is_not_found_by_address() {
    let Resource::Workload(mut shared) = workload("a/web", "10.0.0.1") else {
        panic!("a workload");
    };
    shared.network_mode = NetworkMode::HostNetwork;
    let mut store = Store::default();
    store.replace(source("a/web"), vec![Resource::Workload(shared)]);
    let snapshot = store.commit().unwrap();
    assert!(
        snapshot
            .shelf(Kind::Address)
            .resolve("/10.0.0.1")
            .is_empty()
    );
    assert_eq!(
        names(snapshot.shelf(Kind::Address).resolve(&node_key("n1"))),
        [WEB]
    );
}

#[test]
fn changes_are_remembered_by_name_for_a_while() {
    let mut store = Store::default();
    store.replace(source("a/db"), vec![workload("a/db", "10.0.0.2")]);
    let first = store.commit().unwrap();
    let mut last = Arc::clone(&first);
    for number in 0..REMEMBERED {
        let ip = format!("10.1.{}.{}", number / 256, number % 256);
        store.replace(source("a/web"), vec![workload("a/web", &ip)]);
        last = store.commit().unwrap();
    }
    let shelf = last.shelf(Kind::Address);
    let since = |revision| {
        shelf
            .touched_since(revision)
            .map(|names| names.cloned().collect::<BTreeSet<_>>())
    };
    assert_eq!(names(since(first.revision).unwrap()), [WEB]);
    assert_eq!(since(last.revision), Some(BTreeSet::new()));
    assert_eq!(since(0), None, "the first commit is forgotten");
}
