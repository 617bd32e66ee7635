//! What the session asks and answers, as a table of what went before.

use super::*;
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

fn session() -> Session {
    Session::new(Node {
        id: "ztunnel~x".into(),
        ..Node::default()
    })
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    pairs.iter().map(owned).collect()
}

fn outcome(held: &[(&str, &str)], removed: &[&str], rejected: &[(&str, &str)]) -> Outcome {
    let rejection = |(name, why)| Rejected { name, why };
    Outcome {
        type_url: ADDRESS_TYPE.into(),
        nonce: "n".into(),
        held: pairs(held),
        removed: removed.iter().map(ToString::to_string).collect(),
        rejected: pairs(rejected).into_iter().map(rejection).collect(),
    }
}

/// What the next stream would say is held.
fn resumed(session: &Session, type_url: &str) -> Vec<(String, String)> {
    let requests = session.open();
    let request = requests.into_iter().find(|r| r.type_url == type_url);
    request
        .unwrap()
        .initial_resource_versions
        .into_iter()
        .collect()
}

#[test]
fn opens_with_a_wildcard_per_type_and_the_node_once() {
    let requests = session().open();
    let types: Vec<_> = requests.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(types, [AUTHORIZATION_TYPE, ADDRESS_TYPE]);
    let nodes: Vec<_> = requests.iter().map(|r| r.node.is_some()).collect();
    assert_eq!(nodes, [true, false]);
    for request in requests {
        assert!(request.resource_names_subscribe.is_empty(), "wildcard");
        assert!(request.resource_names_unsubscribe.is_empty(), "wildcard");
        assert!(request.initial_resource_versions.is_empty());
        assert_eq!(request.response_nonce, "");
    }
}

#[test]
fn every_stream_says_who_opens_it() {
    let session = session();
    assert_eq!(session.open()[0].node, session.open()[0].node);
    assert!(session.open()[0].node.is_some());
}

#[test]
fn resumes_with_what_is_held_of_each_type() {
    let mut session = session();
    session.answered(outcome(&[("a", "1"), ("b", "1")], &[], &[]));
    session.answered(outcome(&[("b", "2"), ("c", "1")], &["a", "unknown"], &[]));
    let held = pairs(&[("b", "2"), ("c", "1")]);
    assert_eq!(resumed(&session, ADDRESS_TYPE), held);
    assert_eq!(resumed(&session, AUTHORIZATION_TYPE), []);
    assert_eq!(session.count(Kind::Address), 2);
}

#[test]
fn a_resource_that_comes_and_goes_in_one_response_is_gone() {
    let mut session = session();
    session.answered(outcome(&[("a", "1")], &["a"], &[]));
    assert_eq!(resumed(&session, ADDRESS_TYPE), []);
}

#[test]
fn what_was_refused_is_held_as_it_was_before() {
    let mut session = session();
    session.answered(outcome(&[("old", "1")], &[], &[]));
    session.answered(outcome(&[], &[], &[("old", "bad"), ("new", "bad")]));
    assert_eq!(resumed(&session, ADDRESS_TYPE), pairs(&[("old", "1")]));
}

#[test]
fn a_resource_that_is_held_otherwise_than_sent_has_no_version() {
    let mut session = session();
    session.answered(outcome(&[("a", "1")], &[], &[]));
    session.answered(outcome(&[("a", "")], &[], &[("a", "unreadable")]));
    assert_eq!(resumed(&session, ADDRESS_TYPE), pairs(&[("a", "")]));
}

#[test]
fn acknowledges_by_nonce() {
    let answer = session().answered(outcome(&[("a", "1")], &[], &[]));
    assert_eq!(answer.type_url, ADDRESS_TYPE);
    assert_eq!(answer.response_nonce, "n");
    assert_eq!(answer.error_detail, None);
    assert!(answer.node.is_none());
}

#[test]
fn refuses_by_nonce_and_names_each_resource() {
    let answer = session().answered(outcome(&[], &[], &[("a", "is bad"), ("b", "is worse")]));
    assert_eq!(answer.response_nonce, "n");
    let detail = answer.error_detail.unwrap();
    assert_eq!(detail.code, INVALID_ARGUMENT);
    assert_eq!(detail.message, "a: is bad; b: is worse");
}

#[test]
fn a_refusal_has_a_bound_and_counts_the_rest() {
    let why = "x".repeat(1000);
    let many: Vec<_> = (0..100).map(|i| format!("resource-{i}")).collect();
    let rejected: Vec<_> = many.iter().map(|n| (n.as_str(), why.as_str())).collect();
    let message = session()
        .answered(outcome(&[], &[], &rejected))
        .error_detail
        .unwrap()
        .message;
    assert!(message.len() <= MAX_DETAIL + 20, "{}", message.len());
    let named = message.matches("resource-").count();
    assert!(
        message.ends_with(&format!("; and {} more", 100 - named)),
        "{named}"
    );
}

#[test]
fn a_type_that_was_not_asked_for_is_only_acknowledged() {
    let mut session = session();
    let answer = session.answered(Outcome {
        type_url: "type.googleapis.com/x".into(),
        ..outcome(&[("a", "1")], &[], &[])
    });
    assert_eq!(answer.type_url, "type.googleapis.com/x");
    assert_eq!(answer.response_nonce, "n");
    assert_eq!(answer.error_detail, None);
    assert_eq!(
        session.count(Kind::Address) + session.count(Kind::Policy),
        0
    );
}
