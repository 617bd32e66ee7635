//! What is told of the pods of the mesh.

use ambit_core::checks::Grade;
use ambit_core::status::Problem;

use super::super::facts::{AgentSays, Namespace};
use super::*;

fn pod(name: &str, capture: CaptureState, why: &str) -> PodStatus {
    PodStatus {
        namespace: "x".into(),
        name: name.into(),
        node: "n1".into(),
        addresses: vec!["192.0.2.1".into()],
        capture,
        why: why.into(),
        ..PodStatus::default()
    }
}

fn mesh(pods: Vec<PodStatus>) -> MeshStatus {
    MeshStatus {
        pods,
        ..MeshStatus::default()
    }
}

fn agent(pods: &[(&str, &str, &str)]) -> AgentAnswer {
    let handled = pods.iter().map(|(name, state, why)| HandledPod {
        namespace: "x".into(),
        name: (*name).into(),
        state: (*state).into(),
        why: (*why).into(),
    });
    AgentAnswer {
        pod: "agent-1".into(),
        node: "n1".into(),
        says: Ok(AgentSays {
            pods: handled.collect(),
            ..AgentSays::default()
        }),
    }
}

#[test]
fn a_mesh_whose_pods_are_captured_is_good() {
    let status = mesh(vec![
        pod("a", CaptureState::Captured, ""),
        pod("b", CaptureState::Captured, ""),
        pod("c", CaptureState::Out, ""),
    ]);
    let agents = [agent(&[("a", "captured", ""), ("b", "captured", "")])];
    let check = captured(&status, &agents);
    assert_eq!(
        (check.grade, &*check.found),
        (Grade::Good, "all 2 pods of the mesh")
    );
    let nobody = captured(&mesh(vec![]), &[]);
    assert_eq!(nobody.grade, Grade::Note);
    assert!(nobody.next_step.contains("kubectl annotate namespace"));
}

#[test]
fn a_pod_that_is_not_captured_is_told_with_the_why() {
    let silent = AgentAnswer {
        says: Err("refused".into()),
        ..agent(&[])
    };
    let without_address = PodStatus {
        addresses: vec![],
        ..pod("a", CaptureState::Pending, "")
    };
    let unscheduled = PodStatus {
        node: String::new(),
        ..pod("a", CaptureState::Pending, "")
    };
    let pending = pod("a", CaptureState::Pending, "");
    let cases = [
        (
            pending.clone(),
            vec![agent(&[("a", "waiting", "no ztunnel is connected")])],
            "waiting: no ztunnel is connected",
        ),
        (pending.clone(), vec![agent(&[("a", "held", "")])], "held"),
        (
            pending.clone(),
            vec![agent(&[("a", "captured", "")])],
            "its agent says captured; the controllers have not heard yet",
        ),
        (pending.clone(), vec![], "its node has no agent"),
        (
            pending.clone(),
            vec![silent],
            "its node's agent does not answer",
        ),
        (
            pending,
            vec![agent(&[])],
            "its node's agent has not taken it up yet",
        ),
        (without_address, vec![agent(&[])], "it has no address yet"),
        (
            unscheduled,
            vec![agent(&[])],
            "it is not scheduled to a node yet",
        ),
    ];
    for (one, agents, why) in cases {
        let check = captured(&mesh(vec![one.clone()]), &agents);
        assert_eq!(check.grade, Grade::Bad);
        assert_eq!(check.found, "1 of 1 pod of the mesh are not served");
        let told = format!("x/a on {}: {why}", one.node);
        assert_eq!(check.details, [told]);
    }
}

#[test]
fn a_captured_pod_whose_connections_are_held_is_told() {
    let status = mesh(vec![pod("a", CaptureState::Captured, "")]);
    let check = captured(&status, &[agent(&[("a", "held", "ztunnel is away")])]);
    assert_eq!(check.grade, Grade::Bad);
    assert_eq!(
        check.details,
        ["x/a on n1: new connections are refused: ztunnel is away"]
    );
}

#[test]
fn pods_left_out_of_a_namespace_that_joined_are_told_with_the_reason() {
    let mut facts = Facts::fine();
    facts.namespaces = Ok(vec![Namespace {
        name: "x".into(),
        annotations: [("ambit.mesh/dataplane-mode".into(), "ambient".into())].into(),
        ..Namespace::default()
    }]);
    let host = Enrollment::HostNetwork.why();
    let elsewhere = PodStatus {
        namespace: "y".into(),
        ..pod("d", CaptureState::Out, host)
    };
    let status = mesh(vec![
        pod("a", CaptureState::Out, host),
        pod("b", CaptureState::Out, Enrollment::PodOptsOut.why()),
        pod("c", CaptureState::Out, Enrollment::Ended.why()),
        elsewhere,
        pod("e", CaptureState::Captured, ""),
    ]);
    let check = left_out(&facts, &status).unwrap();
    assert_eq!(check.grade, Grade::Note);
    assert_eq!(check.details, [format!("x/a: {host}")]);
    facts.namespaces = Ok(vec![]);
    assert_eq!(left_out(&facts, &status), None);
}

#[test]
fn what_the_controllers_cannot_serve_fails_and_long_lists_are_cut() {
    assert_eq!(problems(&mesh(vec![])).grade, Grade::Good);
    let many = MeshStatus {
        problems: (0..25)
            .map(|number| Problem {
                place: format!("Service x/{number}"),
                what: "broken".into(),
            })
            .collect(),
        ..MeshStatus::default()
    };
    let check = problems(&many);
    assert_eq!(
        (check.grade, &*check.found),
        (Grade::Bad, "25 matters for a person to solve")
    );
    assert_eq!(check.details.len(), 21);
    assert_eq!(check.details[0], "Service x/0: broken");
    assert_eq!(check.details[20], "and 5 more; `ambit status` has them all");
}
