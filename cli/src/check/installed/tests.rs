//! What is told of the mesh's own programs.

use ambit_core::checks::NodeChecks;
use ambit_core::status::{IdentityStatus, NodeStatus, Rejection, ReplicaStatus};

use super::super::facts::AgentSays;
use super::*;

fn pod(program: Program, name: &str, node: &str) -> MeshPod {
    MeshPod {
        name: name.into(),
        program,
        node: node.into(),
        version: VERSION.into(),
        ready: true,
        deleting: false,
        why: String::new(),
    }
}

fn pods() -> Vec<MeshPod> {
    vec![
        pod(Program::Controller, "c-1", "n1"),
        pod(Program::Controller, "c-2", "n2"),
        pod(Program::Agent, "a-1", "n1"),
        pod(Program::Agent, "a-2", "n2"),
        pod(Program::Ztunnel, "z-1", "n1"),
        pod(Program::Ztunnel, "z-2", "n2"),
    ]
}

fn proxy(node: &str, acknowledged: &str) -> ProxyStatus {
    ProxyStatus {
        node: node.into(),
        connected: true,
        types: vec![TypeStatus {
            current: "v2".into(),
            acknowledged: Some(acknowledged.into()),
            ..TypeStatus::default()
        }],
        ..ProxyStatus::default()
    }
}

fn status() -> MeshStatus {
    let node = |name: &str| NodeStatus {
        name: name.into(),
        connected: true,
        ..NodeStatus::default()
    };
    MeshStatus {
        root_not_after: Some(1000 + 2 * ROOT_ENDS_SOON),
        nodes: vec![node("n1"), node("n2")],
        proxies: vec![proxy("n1", "v2"), proxy("n2", "v2")],
        replicas: vec![ReplicaStatus::default()],
        ..MeshStatus::default()
    }
}

fn agent(node: &str, checks: Vec<Check>) -> AgentAnswer {
    AgentAnswer {
        pod: format!("agent-of-{node}"),
        node: node.into(),
        says: Ok(AgentSays {
            checks: NodeChecks {
                checks,
                ..NodeChecks::default()
            },
            ..AgentSays::default()
        }),
    }
}

fn mesh() -> Mesh {
    Mesh {
        desired: vec![(Program::Controller, 2)],
        pods: Ok(pods()),
        status: Some(status()),
        agents: vec![
            agent("n1", vec![Check::good("kernel", "fits")]),
            agent("n2", vec![Check::good("kernel", "fits")]),
        ],
    }
}

/// The check of this name among all.
fn judged(facts: &Facts, mesh: &Mesh, name: &str) -> Check {
    let sections = all(facts, mesh, 1000);
    let mut checks = sections.into_iter().flat_map(|section| section.checks);
    let found = checks.find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check {name}"))
}

#[test]
fn a_fine_mesh_fails_nothing() {
    let sections = all(&Facts::fine(), &mesh(), 1000);
    for check in sections.iter().flat_map(|section| &section.checks) {
        // Nobody has joined: that is worth knowing.
        let expected = if check.name == "captured" {
            Grade::Note
        } else {
            Grade::Good
        };
        assert_eq!(check.grade, expected, "{check:?}");
    }
    let names: Vec<_> = sections
        .iter()
        .flat_map(|s| &s.checks)
        .map(|c| &*c.name)
        .collect();
    assert_eq!(
        names,
        [
            "controllers",
            "agents",
            "ztunnels",
            "versions",
            "status",
            "proxies",
            "certificates",
            "kernel",
            "captured",
            "objects"
        ]
    );
}

#[test]
fn pods_that_cannot_be_listed_are_all_that_is_told() {
    let mesh = Mesh {
        pods: Err("forbidden".into()),
        ..mesh()
    };
    let sections = all(&Facts::fine(), &mesh, 1000);
    assert_eq!(sections.len(), 1);
    assert_eq!(sections[0].checks[0].grade, Grade::Bad);
}

#[test]
fn controllers_are_counted() {
    let cases = [
        (vec![true, true], 2, Grade::Good, "2 of 2 are ready"),
        (vec![true], 1, Grade::Note, "1 of 1 are ready"),
        (vec![true, false], 2, Grade::Bad, "1 of 2 are ready"),
        (vec![true], 2, Grade::Bad, "1 of 2 are ready"),
        (vec![], 2, Grade::Bad, "0 of 2 are ready"),
    ];
    for (ready, desired, grade, found) in cases {
        let of = |(at, ready): (usize, &bool)| MeshPod {
            ready: *ready,
            why: "CrashLoopBackOff".into(),
            ..pod(Program::Controller, &format!("c-{at}"), "n1")
        };
        let mesh = Mesh {
            desired: vec![(Program::Controller, desired)],
            pods: Ok(ready.iter().enumerate().map(of).collect()),
            ..mesh()
        };
        let check = judged(&Facts::fine(), &mesh, "controllers");
        assert_eq!((check.grade, &*check.found), (grade, found), "{ready:?}");
        if ready.contains(&false) {
            assert_eq!(check.details, ["c-1: CrashLoopBackOff"]);
            assert!(check.next_step.contains("describe pod c-1"), "{check:?}");
        }
    }
}

#[test]
fn a_node_without_a_ready_agent_is_named() {
    let mut mesh = mesh();
    let pods = mesh.pods.as_mut().unwrap();
    pods[3].ready = false;
    pods[3].why = "ImagePullBackOff".into();
    let check = judged(&Facts::fine(), &mesh, "agents");
    assert_eq!(
        (check.grade, &*check.found),
        (Grade::Bad, "ready on 1 of 2 nodes")
    );
    assert_eq!(check.details, ["n2: a-2: ImagePullBackOff"]);
    assert!(check.next_step.contains("logs a-2 -c agent"), "{check:?}");
    mesh.pods.as_mut().unwrap().remove(3);
    let check = judged(&Facts::fine(), &mesh, "agents");
    assert_eq!(check.details, ["n2: there is none"]);
    let mut facts = Facts::fine();
    facts.nodes.as_mut().unwrap()[1].os = "windows".into();
    assert_eq!(judged(&facts, &mesh, "agents").grade, Grade::Good);
}

#[test]
fn versions_that_differ_are_told() {
    let with = |versions: [&str; 2]| {
        let of = |version: &str| MeshPod {
            version: version.into(),
            ..pod(Program::Ztunnel, version, "n1")
        };
        self::versions(&versions.map(of))
    };
    assert_eq!(with([VERSION, VERSION]).grade, Grade::Good);
    assert_eq!(with([VERSION, ""]).grade, Grade::Good);
    let other = with(["9.9.9", "9.9.9"]);
    assert_eq!(other.grade, Grade::Note);
    assert!(other.found.contains("9.9.9"), "{other:?}");
    let mixed = with([VERSION, "9.9.9"]);
    assert_eq!(mixed.grade, Grade::Bad);
    assert_eq!(mixed.details.len(), 2, "{mixed:?}");
    assert_eq!(with(["", ""]).grade, Grade::Note);
}

#[test]
fn a_controller_that_does_not_answer_is_named() {
    let mut mesh = mesh();
    mesh.status.as_mut().unwrap().replicas = vec![ReplicaStatus {
        name: "c-1".into(),
        unanswered: Some("refused".into()),
        ..ReplicaStatus::default()
    }];
    let check = judged(&Facts::fine(), &mesh, "status");
    assert_eq!(check.grade, Grade::Bad);
    assert_eq!(check.details, ["c-1: refused"]);
}

#[test]
fn proxies_are_connected_take_everything_and_keep_up() {
    type Change = fn(&mut MeshStatus);
    let cases: [(Change, Grade, &str); 4] = [
        (
            |s| s.nodes[1].connected = false,
            Grade::Bad,
            "n2: its ztunnel is not connected to a controller",
        ),
        (
            |s| {
                s.proxies[0].types[0].rejected = vec![Rejection {
                    name: "x/y".into(),
                    cause: "no".into(),
                }];
            },
            Grade::Bad,
            "n1: refuses x/y: no",
        ),
        (
            |s| s.proxies[1] = proxy("n2", "v1"),
            Grade::Note,
            "n2: has not acknowledged the latest configuration yet",
        ),
        (|_| {}, Grade::Good, ""),
    ];
    for (change, grade, detail) in cases {
        let mut mesh = mesh();
        change(mesh.status.as_mut().unwrap());
        let check = judged(&Facts::fine(), &mesh, "proxies");
        assert_eq!(check.grade, grade, "{check:?}");
        assert_eq!(check.details.first().map_or("", |d| d), detail);
    }
}

#[test]
fn certificates_near_their_end_are_told() {
    let of = |root: Option<u64>, ends: Option<u64>| {
        let mut status = status();
        status.root_not_after = root;
        status.identities = ends
            .map(|not_after| IdentityStatus {
                identity: "spiffe://x".into(),
                node: "n1".into(),
                not_after,
            })
            .into_iter()
            .collect();
        certificates(&status, 1000)
    };
    let later = Some(1000 + 2 * ROOT_ENDS_SOON);
    let good = of(later, Some(1000 + 3600));
    assert_eq!(good.grade, Grade::Good);
    assert_eq!(
        good.found,
        "the root ends in 60 d 0 h; 1 certificate of workloads, the first ends in 1 h 0 min"
    );
    assert_eq!(of(later, None).grade, Grade::Good);
    assert_eq!(of(Some(1000 + ROOT_ENDS_SOON - 1), None).grade, Grade::Bad);
    assert_eq!(of(Some(999), None).grade, Grade::Bad);
    assert_eq!(of(None, None).grade, Grade::Note);
    let late = of(later, Some(1030));
    assert_eq!(late.grade, Grade::Note);
    assert_eq!(late.details, ["spiffe://x on n1 ends in 30 s"]);
}

#[test]
fn what_agents_say_is_put_together_by_name() {
    let good = |found: &str| Check::good("cni", found);
    let bad = Check::bad("cni", "not in the chain", "look").with(vec!["x.conflist".into()]);
    let cases = [
        (
            vec![good("there"), good("there")],
            Check::good("cni", "on 2 nodes: there"),
        ),
        (
            vec![good("a"), good("b")],
            Check::good("cni", "2 of 2 nodes").with(vec!["n0: a".into(), "n1: b".into()]),
        ),
        (
            vec![good("there"), bad.clone()],
            Check::bad("cni", "1 of 2 nodes", "look")
                .with(vec!["n1: not in the chain".into(), "n1: x.conflist".into()]),
        ),
        (
            vec![bad],
            Check::bad("cni", "on 1 node: not in the chain", "look")
                .with(vec!["n0: x.conflist".into()]),
        ),
    ];
    for (said, expected) in cases {
        let answers = said.into_iter().enumerate();
        let answers: Vec<_> = answers
            .map(|(at, check)| agent(&format!("n{at}"), vec![check]))
            .collect();
        assert_eq!(agents(&answers), [expected]);
    }
}

#[test]
fn an_agent_that_does_not_answer_is_named() {
    let silent = AgentAnswer {
        says: Err("no answer".into()),
        ..agent("n1", vec![])
    };
    let checks = agents(&[silent]);
    assert_eq!(checks[0].grade, Grade::Bad);
    assert_eq!(checks[0].details, ["n1: agent-of-n1: no answer"]);
    assert_eq!(agents(&[])[0].grade, Grade::Bad);
}
