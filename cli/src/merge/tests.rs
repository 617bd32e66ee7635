//! What the replicas' documents become together.

use ambit_core::status::TypeStatus;

use super::*;

fn status(change: impl FnOnce(&mut MeshStatus)) -> Result<MeshStatus, String> {
    let mut status = MeshStatus {
        controller_version: "0.1.0".into(),
        trust_domain: "cluster.local".into(),
        root_not_after: Some(900),
        ..MeshStatus::default()
    };
    change(&mut status);
    Ok(status)
}

fn of_two(a: impl FnOnce(&mut MeshStatus), b: impl FnOnce(&mut MeshStatus)) -> MeshStatus {
    merge(vec![("b".into(), status(b)), ("a".into(), status(a))])
}

fn node(connected: bool, reported_at: Option<u64>, pods_served: u32) -> NodeStatus {
    NodeStatus {
        name: "n1".into(),
        connected,
        reported_at,
        pods_served,
    }
}

fn pod(name: &str, capture: CaptureState) -> PodStatus {
    PodStatus {
        namespace: "x".into(),
        name: name.into(),
        capture,
        ..PodStatus::default()
    }
}

fn proxy(id: &str, connected: bool, acknowledged: &str) -> ProxyStatus {
    ProxyStatus {
        id: id.into(),
        node: "n1".into(),
        connected,
        types: vec![TypeStatus {
            acknowledged: Some(acknowledged.into()),
            ..TypeStatus::default()
        }],
    }
}

#[test]
fn equal_answers_are_one_with_the_replicas_named() {
    let merged = of_two(|_| {}, |_| {});
    assert_eq!(merged.controller_version, "0.1.0");
    assert_eq!(merged.trust_domain, "cluster.local");
    assert_eq!(merged.root_not_after, Some(900));
    let names: Vec<_> = merged.replicas.iter().map(|r| &*r.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(merged.problems, []);
}

#[test]
fn a_node_is_connected_to_whichever_replica_and_its_last_report_counts() {
    let cases = [
        ((true, Some(5), 3), (false, Some(9), 1), (true, Some(9), 1)),
        ((false, Some(9), 1), (true, Some(5), 3), (true, Some(9), 1)),
        ((false, None, 0), (true, Some(1), 2), (true, Some(1), 2)),
        ((false, Some(1), 2), (false, None, 0), (false, Some(1), 2)),
    ];
    for (a, b, expected) in cases {
        let of = |(connected, at, pods)| node(connected, at, pods);
        let merged = of_two(|s| s.nodes.push(of(a)), |s| s.nodes.push(of(b)));
        assert_eq!(merged.nodes, [of(expected)], "{a:?} and {b:?}");
    }
}

#[test]
fn pods_of_all_replicas_are_listed_once_and_sorted() {
    let merged = of_two(
        |s| {
            s.pods = vec![
                pod("p", CaptureState::Captured),
                pod("r", CaptureState::Out),
            ]
        },
        |s| {
            s.pods = vec![
                pod("p", CaptureState::Captured),
                pod("a", CaptureState::Out),
            ]
        },
    );
    let names: Vec<_> = merged.pods.iter().map(|p| &*p.name).collect();
    assert_eq!(names, ["a", "p", "r"]);
    assert_eq!(merged.problems, []);
}

#[test]
fn where_replicas_differ_over_a_pod_the_worse_counts_and_it_is_told() {
    use CaptureState::{Captured, Leaving, Out, Pending};
    for (a, b, expected) in [
        (Captured, Pending, Pending),
        (Pending, Captured, Pending),
        (Out, Leaving, Leaving),
        (Captured, Out, Out),
    ] {
        let merged = of_two(
            |s| s.pods = vec![pod("p", a)],
            |s| s.pods = vec![pod("p", b)],
        );
        assert_eq!(merged.pods, [pod("p", expected)], "{a} and {b}");
        let told = &merged.problems[0];
        assert_eq!(told.place, "Pod x/p");
        assert!(told.what.contains(&format!("a says {a}")), "{}", told.what);
        assert!(told.what.contains(&format!("b says {b}")), "{}", told.what);
    }
}

#[test]
fn of_each_identity_the_newest_certificate_counts() {
    let of = |node: &str, not_after| IdentityStatus {
        identity: "spiffe://x".into(),
        node: node.into(),
        not_after,
    };
    let merged = of_two(
        |s| s.identities = vec![of("n1", 10), of("n2", 30)],
        |s| s.identities = vec![of("n1", 20)],
    );
    assert_eq!(merged.identities, [of("n1", 20), of("n2", 30)]);
}

#[test]
fn a_proxy_is_told_by_the_replica_that_it_is_connected_to() {
    let expected = proxy("z", true, "new");
    for swapped in [false, true] {
        let old = proxy("z", false, "old");
        let (a, b) = if swapped {
            (expected.clone(), old)
        } else {
            (old, expected.clone())
        };
        let merged = of_two(|s| s.proxies = vec![a], |s| s.proxies = vec![b]);
        assert_eq!(merged.proxies, std::slice::from_ref(&expected));
    }
    // Its pod was replaced: another id on the same node.
    let merged = of_two(
        |s| s.proxies = vec![proxy("z-old", false, "old")],
        |s| s.proxies = vec![proxy("z-new", true, "new")],
    );
    assert_eq!(merged.proxies, [proxy("z-new", true, "new")]);
    let away = of_two(|s| s.proxies = vec![proxy("z", false, "old")], |_| {});
    assert_eq!(away.proxies, [proxy("z", false, "old")]);
}

#[test]
fn the_root_that_ends_first_counts() {
    assert_eq!(
        of_two(|s| s.root_not_after = Some(5), |_| {}).root_not_after,
        Some(5)
    );
    assert_eq!(
        of_two(|s| s.root_not_after = None, |_| {}).root_not_after,
        Some(900)
    );
}

#[test]
fn a_problem_that_several_know_is_told_once() {
    let problem = |what: &str| Problem {
        place: "Service x/y".into(),
        what: what.into(),
    };
    let merged = of_two(
        |s| s.problems = vec![problem("broken")],
        |s| s.problems = vec![problem("broken"), problem("odd")],
    );
    assert_eq!(merged.problems, [problem("broken"), problem("odd")]);
}

#[test]
fn a_replica_that_does_not_answer_is_named_with_the_cause() {
    let merged = merge(vec![
        ("a".into(), Err("refused".into())),
        ("b".into(), status(|s| s.nodes = vec![node(true, None, 0)])),
    ]);
    assert_eq!(merged.replicas[0].unanswered.as_deref(), Some("refused"));
    assert_eq!(merged.replicas[1].unanswered, None);
    assert_eq!(merged.controller_version, "0.1.0");
    assert_eq!(merged.nodes.len(), 1);
    assert_eq!(merged.problems, [], "no answer is no other version");
}

#[test]
fn replicas_of_different_versions_or_trust_domains_are_told() {
    let merged = of_two(
        |s| s.controller_version = "0.2.0".into(),
        |s| s.trust_domain = "other".into(),
    );
    assert_eq!(merged.controller_version, "0.1.0, 0.2.0");
    assert_eq!(merged.trust_domain, "cluster.local, other");
    let told: Vec<_> = merged.problems.iter().map(|p| &*p.what).collect();
    assert!(
        told.iter().any(|t| t.contains("different versions")),
        "{told:?}"
    );
    assert!(
        told.iter().any(|t| t.contains("different trust domains")),
        "{told:?}"
    );
}
