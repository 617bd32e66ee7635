//! Claims about letting inbound connections in and cutting them again.

use std::net::Ipv4Addr;
use std::time::Duration;

use ambit_core::names::{ClusterId, NetworkId, Text, WorkloadUid};
use ambit_core::policy::{
    Authorization, Clause, Match, PolicyAction, PolicyScope, Rule, StringMatch,
};
use ambit_core::view::unreadable::Unreadable;
use ambit_core::view::update::Update;
use ambit_net::tasks::Tasks;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(5);

/// A view that knows the pod `shop/web`, which names these policies.
fn mesh(policies: &[&str]) -> SharedView {
    let view = SharedView::new(MeshView::new(NetworkId::default(), ClusterId::new("c")));
    view.apply(vec![web(policies)]);
    view
}

fn web(policies: &[&str]) -> Update {
    let uid = WorkloadUid::pod(&ClusterId::new("c"), "shop", "web");
    let mut workload = Workload::named(uid, "shop", "web");
    workload.authorization_policies = policies.iter().map(|name| policy_name(name)).collect();
    Update::Workload(Box::new(workload))
}

fn policy_name(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

/// A policy about clients of a namespace.
fn policy(name: &str, action: PolicyAction, namespace: &str) -> Update {
    Update::Policy(Box::new(Authorization {
        name: policy_name(name),
        scope: PolicyScope::WorkloadSelector,
        action,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![Match {
                    namespaces: vec![StringMatch::Exact(namespace.into())],
                    ..Match::default()
                }],
            }],
        }],
        dry_run: false,
        unreadable: None,
    }))
}

fn admission(view: &SharedView) -> Arc<Admission> {
    Arc::new(Admission::new(
        NamespacedName::new("shop", "web"),
        view.clone(),
    ))
}

fn unreadable() -> Update {
    Update::Unreadable(Box::new(Unreadable {
        name: "c//Pod/shop/web".to_owned(),
        addresses: Vec::new(),
    }))
}

fn claim(namespace: &str) -> Claim {
    Claim {
        peer: Some(SpiffeId::new(
            "cluster.local",
            namespace,
            Text::from("default"),
        )),
        source: Ipv4Addr::new(10, 0, 0, 1).into(),
        destination: (Ipv4Addr::new(10, 0, 0, 2), 80).into(),
    }
}

#[test]
fn admits_by_policy_and_names_what_refuses() {
    let view = mesh(&["only-shop"]);
    view.apply(vec![policy("only-shop", PolicyAction::Allow, "shop")]);
    let admission = admission(&view);
    let admitted = admission.admit(claim("shop")).unwrap();
    assert_eq!(admitted.allowed_by(), Some(&policy_name("only-shop")));
    let denied = admission.admit(claim("evil")).unwrap_err();
    assert_eq!(denied.reason, Reason::PolicyNotAllowed);
    assert_eq!(denied.policies, [policy_name("only-shop")]);
}

#[test]
fn refuses_while_a_policy_is_missing_or_the_pod_is_unknown() {
    let view = mesh(&["not-there-yet"]);
    let reason = |view: &SharedView| admission(view).admit(claim("shop")).unwrap_err().reason;
    assert_eq!(reason(&view), Reason::PolicyNotSynced);
    let empty = SharedView::new(MeshView::new(NetworkId::default(), ClusterId::new("c")));
    assert_eq!(reason(&empty), Reason::WorkloadUnknown);
    empty.apply(vec![unreadable()]);
    assert_eq!(reason(&empty), Reason::ResourceUnreadable);
}

#[test]
fn refused_and_finished_connections_leave_the_book() {
    let view = mesh(&["no-evil"]);
    view.apply(vec![policy("no-evil", PolicyAction::Deny, "evil")]);
    let admission = admission(&view);
    assert!(admission.admit(claim("evil")).is_err());
    assert_eq!(admission.open(), []);
    let admitted = admission.admit(claim("shop")).unwrap();
    assert_eq!(admission.open(), [claim("shop")]);
    drop(admitted);
    assert_eq!(admission.open(), []);
}

#[tokio::test]
async fn changed_policy_cuts_what_it_denies_and_nothing_else() {
    let view = mesh(&["rule"]);
    view.apply(vec![policy("rule", PolicyAction::Deny, "nobody")]);
    let (tasks, admission) = (Tasks::new("test"), admission(&view));
    tasks.spawn(Arc::clone(&admission).keep_watch(tasks.stop_signal()));
    let mut evil = admission.admit(claim("evil")).unwrap();
    let mut good = admission.admit(claim("shop")).unwrap();

    view.apply(vec![policy("rule", PolicyAction::Deny, "evil")]);

    let denied = timeout(SOON, evil.revoked()).await.unwrap();
    assert_eq!(denied.reason, Reason::PolicyChanged);
    assert_eq!(denied.policies, [policy_name("rule")]);
    assert_eq!(denied.to_string(), "connection closed due to policy change");
    assert!(timeout(Duration::ZERO, good.revoked()).await.is_err());
    assert_eq!(admission.open(), [claim("shop")]);
}

#[tokio::test]
async fn changed_selection_of_the_pod_cuts_as_well() {
    let view = mesh(&[]);
    view.apply(vec![policy("only-shop", PolicyAction::Allow, "shop")]);
    let (tasks, admission) = (Tasks::new("test"), admission(&view));
    tasks.spawn(Arc::clone(&admission).keep_watch(tasks.stop_signal()));
    let mut evil = admission.admit(claim("evil")).unwrap();

    view.apply(vec![web(&["only-shop"])]);

    assert!(timeout(SOON, evil.revoked()).await.is_ok());
}

#[tokio::test]
async fn pod_that_was_away_comes_back_with_its_policies() {
    let view = mesh(&[]);
    view.apply(vec![policy("only-shop", PolicyAction::Allow, "shop")]);
    let (tasks, admission) = (Tasks::new("test"), admission(&view));
    tasks.spawn(Arc::clone(&admission).keep_watch(tasks.stop_signal()));
    let mut evil = admission.admit(claim("evil")).unwrap();

    view.apply(vec![Update::RemoveAddress("c//Pod/shop/web".to_owned())]);
    view.apply(vec![web(&["only-shop"])]);

    assert!(timeout(SOON, evil.revoked()).await.is_ok());
}

#[tokio::test]
async fn missing_policies_and_a_missing_pod_cut_nothing() {
    let view = mesh(&[]);
    let admission = admission(&view);
    let mut open = admission.admit(claim("shop")).unwrap();
    view.apply(vec![web(&["not-there-yet"])]);
    admission.recheck();
    view.apply(vec![Update::RemoveAddress("c//Pod/shop/web".to_owned())]);
    admission.recheck();
    view.apply(vec![unreadable()]);
    admission.recheck();
    assert!(timeout(Duration::ZERO, open.revoked()).await.is_err());
}

/// The claim is in the book before it is judged, so that a policy which changes at that moment is seen by one of the two.
#[test]
fn no_change_of_policy_falls_between_judgement_and_book() {
    let view = mesh(&["rule"]);
    let admission = admission(&view);
    let deny = |namespace| view.apply(vec![policy("rule", PolicyAction::Deny, namespace)]);
    for _ in 0..200 {
        deny("nobody");
        std::thread::scope(|scope| {
            let entering = scope.spawn(|| admission.admit(claim("evil")));
            deny("evil");
            admission.recheck();
            let Ok(Ok(mut admitted)) = entering.join() else {
                return;
            };
            assert!(
                admitted.revoked.try_recv().is_ok(),
                "admitted and never revoked"
            );
        });
    }
}
