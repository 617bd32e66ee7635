//! Each resource of a response stands for itself.

use ambit_core::names::WorkloadUid;
use ambit_core::policy::{Authorization, PolicyAction, PolicyScope};
use ambit_core::workload::Workload;
use proptest::prelude::*;
use prost_types::Any;

use super::*;
use crate::proto::workload as pb;
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE, pack_policy, pack_workload};
use prost::Message;

const ROOT: &str = "ambit-system";

fn workload(name: &str) -> Workload {
    let uid = WorkloadUid::new(format!("c//Pod/ns/{name}"));
    Workload::named(uid, "ns", name)
}

fn policy(name: &str) -> Authorization {
    Authorization {
        name: NamespacedName::new("ns", name),
        scope: PolicyScope::WorkloadSelector,
        action: PolicyAction::Allow,
        rules: Vec::new(),
        dry_run: false,
        unreadable: None,
    }
}

fn resource(name: &str, body: Option<Any>) -> Resource {
    Resource {
        version: format!("version of {name}"),
        resource: body,
        name: name.to_owned(),
        aliases: Vec::new(),
    }
}

fn response(type_url: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        system_version_info: String::new(),
        resources,
        type_url: type_url.to_owned(),
        nonce: "7".to_owned(),
        removed_resources: removed.iter().map(ToString::to_string).collect(),
    }
}

fn held(names: &[&str]) -> Vec<(String, String)> {
    let pair = |name: &&str| ((*name).to_owned(), format!("version of {name}"));
    names.iter().map(pair).collect()
}

fn refused(reading: &Reading) -> Vec<&str> {
    let rejected = reading.outcome.rejected.iter();
    rejected.map(|r| r.name.as_str()).collect()
}

#[test]
fn a_bad_resource_does_not_hold_up_the_others() {
    let legacy = pb::Workload {
        uid: "c//Pod/ns/legacy".into(),
        tunnel_protocol: pb::TunnelProtocol::LegacyIstioMtls.into(),
        ..pb::Workload::default()
    };
    let address = pb::Address {
        r#type: Some(pb::address::Type::Workload(Box::new(legacy))),
    };
    let legacy = Any {
        type_url: ADDRESS_TYPE.into(),
        value: address.encode_to_vec(),
    };
    let resources = vec![
        resource("c//Pod/ns/a", Some(pack_workload(&workload("a")))),
        resource("c//Pod/ns/legacy", Some(legacy)),
        resource("c//Pod/ns/none", None),
        resource("c//Pod/ns/other", Some(pack_policy(&policy("p")))),
        resource("c//Pod/ns/b", Some(pack_workload(&workload("b")))),
    ];
    let reading = read(response(ADDRESS_TYPE, resources, &[]), ROOT);
    let put = |name| Update::Workload(Box::new(workload(name)));
    let names = |updates: &[Update]| -> Vec<String> {
        let name = |update: &Update| match update {
            Update::Unreadable(what) => what.name.clone(),
            other => panic!("{other:?}"),
        };
        updates.iter().map(name).collect()
    };
    let bad = ["c//Pod/ns/legacy", "c//Pod/ns/none", "c//Pod/ns/other"];
    assert_eq!(reading.updates[0], put("a"));
    assert_eq!(names(&reading.updates[1..4]), bad);
    assert_eq!(reading.updates[4..], [put("b")]);
    // What could not be read is asked for again, and its removal is told.
    let mut expected = held(&["c//Pod/ns/a", "c//Pod/ns/b"]);
    let again = bad.map(|name| (name.to_owned(), String::new()));
    expected.splice(1..1, again);
    assert_eq!(reading.outcome.held, expected);
    assert_eq!(refused(&reading), bad);
    assert_eq!(reading.outcome.nonce, "7");
}

#[test]
fn removals_come_after_what_is_new() {
    let resources = vec![resource("c//Pod/ns/a", Some(pack_workload(&workload("a"))))];
    let reading = read(response(ADDRESS_TYPE, resources, &["ns/host"]), ROOT);
    assert_eq!(reading.updates[1], Update::RemoveAddress("ns/host".into()));
    assert_eq!(reading.outcome.removed, ["ns/host"]);
}

#[test]
fn policies_are_read_and_removed_by_name() {
    let resources = vec![resource("ns/p", Some(pack_policy(&policy("p"))))];
    let reading = read(
        response(AUTHORIZATION_TYPE, resources, &["ns/q", "odd"]),
        ROOT,
    );
    let expected = [
        Update::Policy(Box::new(policy("p"))),
        Update::RemovePolicy(NamespacedName::new("ns", "q")),
    ];
    assert_eq!(reading.updates, expected);
    assert_eq!(reading.outcome.held, held(&["ns/p"]));
    assert_eq!(reading.outcome.removed, ["ns/q", "odd"]);
}

#[test]
fn a_policy_that_cannot_be_understood_is_applied_refusing_and_refused_by_name() {
    let garbage = Any {
        type_url: AUTHORIZATION_TYPE.into(),
        value: vec![0xff; 3],
    };
    let bodies = [Some(garbage), None, Some(pack_workload(&workload("a")))];
    for body in bodies {
        let resources = vec![resource("ns/p", body.clone())];
        let reading = read(response(AUTHORIZATION_TYPE, resources, &[]), ROOT);
        let [Update::Policy(policy)] = reading.updates.as_slice() else {
            panic!("{body:?}: {:?}", reading.updates);
        };
        assert!(policy.unreadable.is_some(), "{body:?}");
        assert_eq!(policy.scope, PolicyScope::Namespace, "{body:?}");
        assert_eq!(refused(&reading), ["ns/p"], "{body:?}");
        let no_version = ("ns/p".to_owned(), String::new());
        assert_eq!(reading.outcome.held, [no_version], "{body:?}");
    }
}

#[test]
fn a_policy_without_a_usable_name_is_refused() {
    let resources = vec![resource("odd", Some(pack_policy(&policy("p"))))];
    let reading = read(response(AUTHORIZATION_TYPE, resources, &[]), ROOT);
    assert_eq!(reading.updates, []);
    assert_eq!(refused(&reading), ["odd"]);
    assert_eq!(reading.outcome.held, []);
}

#[test]
fn a_type_that_was_not_asked_for_changes_nothing() {
    let resources = vec![resource("c//Pod/ns/a", Some(pack_workload(&workload("a"))))];
    let type_url = "type.googleapis.com/istio.workload.Workload";
    let reading = read(response(type_url, resources, &["x"]), ROOT);
    assert_eq!(reading.updates, []);
    let outcome = Outcome {
        type_url: type_url.into(),
        nonce: "7".into(),
        ..Outcome::default()
    };
    assert_eq!(reading.outcome, outcome);
}

proptest! {
    #[test]
    fn foreign_responses_never_panic(
        is_policy: bool,
        names in prop::collection::vec(".{0,12}", 0..4),
        body in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let kind = if is_policy { Kind::Policy } else { Kind::Address };
        let any = |body: &Vec<u8>| Any { type_url: kind.type_url().into(), value: body.clone() };
        let resources: Vec<_> = names.iter().map(|name| resource(name, Some(any(&body)))).collect();
        let sent = resources.len();
        let removed: Vec<_> = names.iter().map(String::as_str).collect();
        let reading = read(response(kind.type_url(), resources, &removed), ROOT);
        // Every resource is either held or refused by name.
        let outcome = reading.outcome;
        prop_assert!(outcome.held.len() + outcome.rejected.len() >= sent);
    }
}
