//! What is found good, worth knowing and bad in a cluster.

use ambit_core::checks::Grade;

use super::*;

fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    let found = checks.iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check {name} in {checks:?}"))
}

#[test]
fn a_fine_cluster_passes_everything() {
    let checks = all(&Facts::fine(), false);
    for check in &checks {
        assert_eq!(
            (check.grade, &*check.next_step),
            (Grade::Good, ""),
            "{check:?}"
        );
    }
    assert_eq!(checks.len(), 7);
}

#[test]
fn without_an_api_server_nothing_else_is_said() {
    let mut facts = Facts::fine();
    facts.version = Err("cannot reach it".into());
    let checks = all(&facts, false);
    assert_eq!(checks.len(), 1);
    assert_eq!(
        (checks[0].grade, &*checks[0].found),
        (Grade::Bad, "cannot reach it")
    );
}

#[test]
fn the_version_of_kubernetes_is_judged() {
    for (version, grade) in [
        ("v1.30.0", Grade::Good),
        ("v1.34.4", Grade::Good),
        ("v1.31.2-gke.12", Grade::Good),
        ("v1.30+", Grade::Good),
        ("v1.29.9", Grade::Bad),
        ("v2.0.0", Grade::Good),
        ("tomorrow", Grade::Note),
    ] {
        let check = api_server("https://api", &Ok(version.into()));
        assert_eq!(check.grade, grade, "{version}");
    }
}

#[test]
fn rights_to_install_matter_until_it_is_installed() {
    let right = |what: &str, to_install, allowed| Right {
        what: what.into(),
        to_install,
        allowed,
    };
    let to_install = right("create namespaces", true, Ok(false));
    let to_look = right("list pods in ambit-system", false, Ok(false));
    let unasked = right("list nodes", false, Err("refused".into()));
    let cases = [
        (vec![], false, Grade::Good, "install"),
        (vec![to_install.clone()], false, Grade::Bad, "administrator"),
        (vec![to_install.clone()], true, Grade::Good, "ask the mesh"),
        (
            vec![to_install, to_look.clone()],
            true,
            Grade::Bad,
            "ambit-operator",
        ),
        (vec![to_look, unasked], true, Grade::Note, "refused"),
    ];
    for (rights, installed, grade, word) in cases {
        let check = permissions(&rights, installed);
        assert_eq!(check.grade, grade, "{check:?}");
        let told = format!("{} {}", check.found, check.next_step);
        assert!(told.contains(word), "{check:?}");
        if grade == Grade::Bad {
            assert_eq!(check.details.len(), 1, "{check:?}");
        }
    }
}

#[test]
fn other_meshes_are_named_with_what_that_means() {
    let mut facts = Facts::fine();
    facts.daemonsets = Ok(vec![
        "istio-system/istio-cni-node".into(),
        "linkerd-cni/linkerd-cni".into(),
        "other/my-istio-cni-node-x".into(),
    ]);
    let checks = all(&facts, false);
    let check = named(&checks, "other-meshes");
    assert_eq!(check.grade, Grade::Note);
    assert_eq!(
        check.found,
        "Istio's CNI agent and Linkerd's CNI plugin is here"
    );
    assert!(
        check.details[0].contains("istio-system/istio-cni-node"),
        "{check:?}"
    );
    facts.daemonsets = Err("forbidden".into());
    let checks = all(&facts, false);
    assert!(named(&checks, "other-meshes").found.contains("forbidden"));
}

#[test]
fn a_missing_crd_is_named_and_no_failure() {
    let mut facts = Facts::fine();
    facts.kinds = Ok(vec!["authorizationpolicies.security.istio.io".into()]);
    let checks = all(&facts, false);
    let check = named(&checks, "policy-kinds");
    assert_eq!(check.grade, Grade::Note);
    assert_eq!(
        check.details,
        ["no CustomResourceDefinition peerauthentications.security.istio.io"]
    );
    assert!(check.next_step.contains("deploy/crds-istio"));
}

fn space(name: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Namespace {
    let map = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        pairs.collect()
    };
    Namespace {
        name: name.into(),
        labels: map(labels),
        annotations: map(annotations),
    }
}

#[test]
fn settings_that_do_not_mean_what_they_say_are_told() {
    let ours = "ambit.mesh/dataplane-mode";
    let istios = "istio.io/dataplane-mode";
    let cases = [
        (space("a", &[], &[(ours, "ambient")]), None),
        (space("a", &[(istios, "none")], &[]), None),
        (
            space("a", &[], &[(ours, "enabled")]),
            Some("ambit.mesh/dataplane-mode=enabled is no setting"),
        ),
        (
            space("a", &[(istios, "Ambient")], &[]),
            Some("istio.io/dataplane-mode=Ambient is no setting"),
        ),
        (
            space("a", &[], &[(istios, "ambient")]),
            Some("counts as a label only"),
        ),
        (
            space("kube-system", &[], &[(ours, "ambient")]),
            Some("pods of this namespace never do"),
        ),
        (
            space("a", &[("istio-injection", "enabled")], &[(ours, "ambient")]),
            Some("istio-injection=enabled"),
        ),
        (space("a", &[("istio-injection", "enabled")], &[]), None),
    ];
    for (namespace, told) in cases {
        let check = settings(&Ok(vec![namespace.clone()]));
        match told {
            None => assert_eq!(check.grade, Grade::Good, "{namespace:?}: {check:?}"),
            Some(words) => {
                assert_eq!(check.grade, Grade::Note, "{namespace:?}");
                assert!(check.details[0].contains(words), "{check:?}");
            }
        }
    }
}

#[test]
fn namespaces_that_have_joined_are_named() {
    let ours = "ambit.mesh/dataplane-mode";
    let both = vec![
        space("a", &[], &[(ours, "ambient")]),
        space("b", &[(ours, "ambient")], &[]),
        space("c", &[(ours, "ambient")], &[(ours, "none")]),
        space("d", &[], &[]),
    ];
    assert_eq!(settings(&Ok(both)).found, "2 have joined: a, b");
    assert_eq!(settings(&Ok(vec![])).found, "none has joined yet");
}

#[test]
fn a_mesh_that_is_not_there_fails_only_who_wants_one() {
    let facts = Facts::fine();
    assert_eq!(not_installed(&facts, false).grade, Grade::Note);
    assert_eq!(not_installed(&facts, true).grade, Grade::Bad);
}
