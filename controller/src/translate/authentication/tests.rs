//! Who has to come with mutual TLS: levels, ages, ports.

use super::super::{Resource, translate};
use super::*;
use crate::index::Source;
use crate::testing::{index, name_of};

/// A pod `a/web` and these PeerAuthentications: `namespace/name`, rest of the metadata, spec.
fn world(policies: &[(&str, &str, &str)]) -> Index {
    let mut yaml = String::from(
        "{apiVersion: v1, kind: Namespace, metadata: {name: a}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web}}, status: {podIP: 10.0.0.1}}",
    );
    for (name, metadata, spec) in policies {
        let name = name_of(name);
        let (namespace, name) = (&name.namespace, &name.name);
        yaml += &format!(
            "\n---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: {name}, namespace: {namespace}{metadata}}}, spec: {{{spec}}}}}"
        );
    }
    index(&yaml)
}

fn effect(policies: &[(&str, &str, &str)]) -> Effective {
    let index = world(policies);
    effective(&index, index.pod(&name_of("a/web")).unwrap())
}

const STRICT: &str = "mtls: {mode: STRICT}";
const PERMISSIVE: &str = "mtls: {mode: PERMISSIVE}";
const UNSET: &str = "mtls: {mode: UNSET}";
const DISABLE: &str = "mtls: {mode: DISABLE}";

fn on_web(spec: &str) -> String {
    format!("selector: {{matchLabels: {{app: web}}}}, {spec}")
}

#[test]
fn the_nearest_level_that_says_something_decides() {
    let mine = |spec| on_web(spec);
    let cases: [(&[(&str, String)], bool); 9] = [
        (&[], false),
        (&[("mesh/m", STRICT.into())], true),
        (
            &[("mesh/m", STRICT.into()), ("a/n", PERMISSIVE.into())],
            false,
        ),
        (&[("mesh/m", STRICT.into()), ("a/n", UNSET.into())], true),
        (&[("mesh/m", STRICT.into()), ("a/n", String::new())], true),
        (
            &[("mesh/m", PERMISSIVE.into()), ("a/n", STRICT.into())],
            true,
        ),
        (&[("a/n", STRICT.into()), ("a/w", mine(DISABLE))], false),
        (&[("a/n", PERMISSIVE.into()), ("a/w", mine(STRICT))], true),
        (&[("a/n", STRICT.into()), ("a/w", mine(UNSET))], true),
    ];
    for (policies, strict) in cases {
        let policies: Vec<_> = policies
            .iter()
            .map(|(name, spec)| (*name, "", spec.as_str()))
            .collect();
        let expected = Effective {
            strict,
            ..Effective::default()
        };
        assert_eq!(effect(&policies), expected, "{policies:?}");
    }
}

#[test]
fn policies_for_others_have_no_effect() {
    let db = "selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}";
    assert_eq!(effect(&[("a/w", "", db)]), Effective::default());
    let root = on_web(STRICT);
    let policies = [("mesh/w", "", root.as_str())];
    assert_eq!(
        effect(&policies),
        Effective::default(),
        "no selectors in the root namespace"
    );
    let told = translate(
        &world(&policies),
        &Source::PeerAuthentication(name_of("mesh/w")),
    );
    assert_eq!((told.resources.len(), told.problems.len()), (0, 1));
}

#[test]
fn the_oldest_of_a_level_wins() {
    let made = |time: &str| format!(", creationTimestamp: '2026-01-01T00:00:{time}Z'");
    let (early, late) = (made("01"), made("02"));
    assert!(effect(&[("a/x", &late, PERMISSIVE), ("a/y", &early, STRICT)]).strict);
    assert!(!effect(&[("a/x", &early, PERMISSIVE), ("a/y", &late, STRICT)]).strict);
    assert!(
        effect(&[("a/x", "", STRICT), ("a/y", "", PERMISSIVE)]).strict,
        "by name without times"
    );
    assert!(
        effect(&[("a/x", "", PERMISSIVE), ("a/y", &late, STRICT)]).strict,
        "a time is older than none"
    );
}

#[test]
fn strict_workloads_name_one_policy_that_refuses_who_has_no_identity() {
    let index = world(&[("a/n", "", STRICT)]);
    let pod = translate(&index, &Source::Pod(name_of("a/web")));
    let [Resource::Workload(workload)] = pod.resources.as_slice() else {
        panic!("{pod:?}");
    };
    assert_eq!(
        workload.authorization_policies,
        [NamespacedName::new("mesh", STRICT_POLICY)]
    );
    let strict = translate(&index, &Source::StrictPolicy);
    let [Resource::Policy(policy)] = strict.resources.as_slice() else {
        panic!("{strict:?}");
    };
    assert_eq!(policy.action, PolicyAction::Deny);
    assert_eq!(policy.rules.len(), 1);
    assert_eq!(policy.rules[0].clauses, [clause(without_identity())]);
    assert_eq!(
        translate(&world(&[]), &Source::StrictPolicy),
        Translated::default()
    );
}

/// Ports that a rule names, `-` before those it must not be, by clause.
fn ports(rule: &Rule) -> Vec<String> {
    let of = |clause: &Clause| {
        let fits = &clause.matches[0];
        let not = fits
            .not_destination_ports
            .iter()
            .map(|port| format!("-{port}"));
        let ports = fits.destination_ports.iter().map(u16::to_string).chain(not);
        let anonymous = !fits.not_principals.is_empty();
        let who = anonymous.then(|| "anonymous".to_owned());
        who.into_iter().chain(ports).collect::<Vec<_>>().join(" ")
    };
    rule.clauses.iter().map(of).collect()
}

/// Clauses of each rule.
type Rules = &'static [&'static [&'static str]];

#[test]
fn ports_say_more_only_where_they_differ() {
    let two_strict: Rules = &[&["anonymous 1"], &["anonymous 2"]];
    let but_one: Rules = &[&["anonymous", "-1"]];
    let but_both: Rules = &[&["anonymous", "-1", "-2"]];
    // Mode above, own mode, modes of ports 1 and 2; STRICT as a whole, rules.
    let cases: [(&str, &str, &str, &str, bool, Rules); 11] = [
        ("PERMISSIVE", "UNSET", "STRICT", "STRICT", false, two_strict),
        ("PERMISSIVE", "UNSET", "PERMISSIVE", "DISABLE", false, &[]),
        (
            "STRICT",
            "PERMISSIVE",
            "STRICT",
            "UNSET",
            false,
            &[&["anonymous 1"]],
        ),
        ("STRICT", "DISABLE", "PERMISSIVE", "PERMISSIVE", false, &[]),
        ("STRICT", "UNSET", "STRICT", "STRICT", true, &[]),
        ("STRICT", "UNSET", "PERMISSIVE", "STRICT", false, but_one),
        ("STRICT", "UNSET", "PERMISSIVE", "DISABLE", false, but_both),
        ("STRICT", "UNSET", "DISABLE", "STRICT", true, &[]),
        ("PERMISSIVE", "STRICT", "DISABLE", "STRICT", false, but_one),
        (
            "PERMISSIVE",
            "STRICT",
            "PERMISSIVE",
            "DISABLE",
            false,
            but_both,
        ),
        ("PERMISSIVE", "STRICT", "STRICT", "UNSET", true, &[]),
    ];
    for case in cases {
        let (above, own, one, two, strict, rules) = case;
        let spec = on_web(&format!(
            "mtls: {{mode: {own}}}, portLevelMtls: {{1: {{mode: {one}}}, 2: {{mode: {two}}}}}"
        ));
        let above = format!("mtls: {{mode: {above}}}");
        let index = world(&[("a/n", "", &above), ("a/w", "", &spec)]);
        let effect = effective(&index, index.pod(&name_of("a/web")).unwrap());
        let name = NamespacedName::new("a", "converted_peer_authentication_w");
        let port_level = (!rules.is_empty()).then_some(name);
        let expected = Effective {
            strict,
            port_level,
            unreadable: false,
        };
        assert_eq!(effect, expected, "{case:?}");
        let translated = translate(&index, &Source::PeerAuthentication(name_of("a/w")));
        let made: Vec<_> = match translated.resources.as_slice() {
            [Resource::Policy(policy)] => policy.rules.iter().map(ports).collect(),
            _ => Vec::new(),
        };
        assert_eq!(made, rules, "{case:?}");
    }
}

#[test]
fn what_is_not_understood_refuses_what_it_selects() {
    let cases = [
        ("a/n", "mtls: {mode: LAX}"),
        ("a/n", "mtls: STRICT"),
        ("a/n", "mtlz: {mode: STRICT}"),
        ("a/n", "mtls:"),
        ("a/n", "portLevelMtls: {80: {mode: STRICT}}"),
        ("a/n", "targetRefs: [{kind: Service, name: s}]"),
        ("mesh/m", "mtls: {mode: LAX}"),
        (
            "a/w",
            "selector: {matchLabels: {app: web}}, portLevelMtls: {70000: {mode: STRICT}}",
        ),
        (
            "a/w",
            "selector: {matchLabels: {app: web}}, portLevelMtls: {0: {mode: STRICT}}",
        ),
        (
            "a/w",
            "selector: {matchLabels: {app: web}}, portLevelMtls: {web: {mode: STRICT}}",
        ),
        (
            "a/w",
            "selector: {matchLabels: {app: web}}, mtls: {mode: LAX}",
        ),
    ];
    for (name, spec) in cases {
        let index = world(&[(name, "", spec)]);
        let pod = translate(&index, &Source::Pod(name_of("a/web")));
        let [Resource::Workload(workload)] = pod.resources.as_slice() else {
            panic!("{pod:?}");
        };
        assert!(workload.policy_unreadable, "{name} {spec}");
        let told = translate(&index, &Source::PeerAuthentication(name_of(name)));
        assert!(told.problems[0].contains("refuses all"), "{spec}: {told:?}");
    }
    let other = "selector: {matchLabels: {app: db}}, mtls: {mode: LAX}";
    assert!(!effect(&[("a/w", "", other)]).unreadable);
}
