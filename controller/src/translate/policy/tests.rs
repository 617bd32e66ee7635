//! What an AuthorizationPolicy permits and refuses at L4, and that nothing in it is overlooked.

use ambit_core::policy::{Clause, Match, ServiceAccountMatch, StringMatch};

use super::super::{Resource, translate};
use super::*;
use crate::index::Source;
use crate::testing::{index, name_of};

fn translated_in(namespace: &str, rest: &str) -> Translated {
    let objects = format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: a}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: {namespace}}}
{rest}"
    );
    let name = name_of(&format!("{namespace}/p"));
    translate(&index(&objects), &Source::AuthorizationPolicy(name))
}

fn translated(spec: &str) -> Translated {
    translated_in("a", &format!("spec: {spec}"))
}

fn only(translated: &Translated) -> &Authorization {
    match translated.resources.as_slice() {
        [Resource::Policy(policy)] => policy,
        other => panic!("{other:?}"),
    }
}

/// The policy with these rules (YAML), which must be understood.
fn understood(action: &str, rules: &str) -> (Authorization, Vec<String>) {
    let translated = translated(&format!("{{action: {action}, rules: {rules}}}"));
    let policy = only(&translated).clone();
    assert_eq!(policy.unreadable, None, "{rules}");
    (policy, translated.problems)
}

#[test]
fn the_scope_follows_namespace_and_selector() {
    let selector = "spec: {selector: {matchLabels: {app: web}}}";
    let cases = [
        ("a", "spec: {}", PolicyScope::Namespace),
        ("mesh", "spec: {}", PolicyScope::Global),
        ("a", selector, PolicyScope::WorkloadSelector),
        ("mesh", selector, PolicyScope::WorkloadSelector),
        (
            "a",
            "spec: {selector: {matchLabels: {}}}",
            PolicyScope::Namespace,
        ),
        ("a", "spec: {selector: {}}", PolicyScope::Namespace),
        ("a", "spec: {targetRefs: []}", PolicyScope::Namespace),
    ];
    for (namespace, spec, scope) in cases {
        assert_eq!(
            only(&translated_in(namespace, spec)).scope,
            scope,
            "{namespace} {spec}"
        );
    }
}

#[test]
fn an_empty_policy_permits_nobody() {
    for rest in ["", "spec:", "spec: {}"] {
        let translated = translated_in("a", rest);
        let policy = only(&translated);
        assert_eq!(
            (policy.action, policy.rules.len()),
            (PolicyAction::Allow, 0),
            "{rest}"
        );
        assert_eq!(policy.unreadable, None, "{rest}");
    }
    let (policy, _) = understood("ALLOW", "[{}]");
    assert_eq!(
        policy.rules,
        [Rule::default()],
        "an empty rule fits everybody"
    );
}

/// A rule with every attribute that connections have.
const EVERYTHING: &str = "[{to: [{operation: {ports: ['80'], notPorts: ['81']}}],
           from: [{source: {principals: ['*'], notPrincipals: ['*/sa/x'], namespaces: ['b*'], notNamespaces: [c],
                            ipBlocks: [10.1.2.3/8], notIpBlocks: [10.0.0.1], serviceAccounts: [x, b/y], notServiceAccounts: [z]}},
                  {source: {namespaces: [d]}}],
           when: [{key: destination.port, values: ['82']}, {key: destination.ip, notValues: ['fd00::/8']},
                  {key: source.ip, values: [10.0.0.2]}, {key: source.namespace, values: [e]}, {key: source.principal, notValues: [f]}]}]";

#[test]
fn every_attribute_of_connections_is_carried_over() {
    let (policy, notes) = understood("ALLOW", EVERYTHING);
    assert_eq!(notes, Vec::<String>::new());
    let account = |namespace: &str, name: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: name.into(),
    };
    let exact = |text: &str| vec![StringMatch::Exact(text.into())];
    let clause = |matches: Vec<Match>| Clause { matches };
    let none = Match::default;
    let expected = vec![
        clause(vec![Match {
            destination_ports: vec![80],
            not_destination_ports: vec![81],
            ..none()
        }]),
        clause(vec![
            Match {
                principals: vec![StringMatch::Presence],
                not_principals: vec![StringMatch::Suffix("/sa/x".into())],
                namespaces: vec![StringMatch::Prefix("b".into())],
                not_namespaces: exact("c"),
                source_ips: vec!["10.0.0.0/8".parse().unwrap()],
                not_source_ips: vec!["10.0.0.1/32".parse().unwrap()],
                service_accounts: vec![account("a", "x"), account("b", "y")],
                not_service_accounts: vec![account("a", "z")],
                ..none()
            },
            Match {
                namespaces: exact("d"),
                ..none()
            },
        ]),
        clause(vec![Match {
            destination_ports: vec![82],
            ..none()
        }]),
        clause(vec![Match {
            not_destination_ips: vec!["fd00::/8".parse().unwrap()],
            ..none()
        }]),
        clause(vec![Match {
            source_ips: vec!["10.0.0.2/32".parse().unwrap()],
            ..none()
        }]),
        clause(vec![Match {
            namespaces: exact("e"),
            ..none()
        }]),
        clause(vec![Match {
            not_principals: exact("f"),
            ..none()
        }]),
    ];
    assert_eq!(policy.rules, [Rule { clauses: expected }]);
}

#[test]
fn what_only_requests_have_never_widens_a_permission() {
    let requests = [
        "{to: [{operation: {methods: [GET], ports: ['80']}}]}",
        "{to: [{operation: {ports: ['80']}}, {operation: {notPaths: [/x]}}]}",
        "{from: [{source: {requestPrincipals: ['*']}}]}",
        "{from: [{source: {namespaces: [b], notRemoteIpBlocks: [10.0.0.1]}}]}",
        "{from: [{source: {namespaces: [b]}}], when: [{key: 'request.headers[x]', values: [y]}]}",
        "{when: [{key: connection.sni, values: [y]}]}",
    ];
    for rule in requests {
        let (policy, notes) = understood(
            "ALLOW",
            &format!("[{rule}, {{to: [{{operation: {{ports: ['9']}}}}]}}]"),
        );
        assert_eq!((policy.rules.len(), notes.len()), (1, 1), "{rule}");
        assert!(
            notes[0].starts_with("spec.rules[0]: it permits nothing"),
            "{notes:?}"
        );
    }
    let (policy, _) = understood("ALLOW", "[{to: [{operation: {methods: [GET]}}]}]");
    assert_eq!(policy.rules, [], "what is left permits nobody");
}

#[test]
fn what_only_requests_have_makes_a_refusal_wider_or_void() {
    let port = |port| Clause {
        matches: vec![Match {
            destination_ports: vec![port],
            ..Match::default()
        }],
    };
    let cases: [(&str, Option<Vec<Clause>>, &str); 5] = [
        (
            "{to: [{operation: {methods: [GET], ports: ['80']}}]}",
            Some(vec![port(80)]),
            "refuses more",
        ),
        (
            "{to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]}",
            Some(vec![port(80)]),
            "refuses more",
        ),
        (
            "{to: [{operation: {methods: [GET]}}]}",
            None,
            "refuses nothing",
        ),
        (
            "{to: [{operation: {ports: ['80']}}], when: [{key: request.auth.claims, values: [x]}]}",
            None,
            "refuses nothing",
        ),
        (
            "{from: [{source: {remoteIpBlocks: [10.0.0.1]}}], to: [{operation: {ports: ['80']}}]}",
            None,
            "refuses nothing",
        ),
    ];
    for (rule, expected, word) in cases {
        let (policy, notes) = understood("DENY", &format!("[{rule}]"));
        let clauses = policy.rules.into_iter().map(|rule| rule.clauses).next();
        assert_eq!(clauses, expected, "{rule}");
        assert!(notes[0].contains(word), "{rule}: {notes:?}");
    }
}

#[test]
fn what_is_not_understood_refuses_what_it_selects() {
    let selector = "selector: {matchLabels: {app: web}}";
    let cases = [
        ("{rulez: []}", "rulez"),
        ("{action: MAYBE}", "MAYBE"),
        ("{action: CUSTOM, provider: {name: x}}", "CUSTOM"),
        ("{rules: [{form: []}]}", "form"),
        (
            "{rules: [{from: [{source: {namespace: [a]}}]}]}",
            "namespace",
        ),
        ("{rules: [{from: [{sources: {}}]}]}", "sources"),
        (
            "{rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}",
            "10.0.0.0/33",
        ),
        ("{rules: [{from: [{source: {ipBlocks: ['']}}]}]}", "address"),
        (
            "{rules: [{from: [{source: {namespaces: ['a*b']}}]}]}",
            "a*b",
        ),
        ("{rules: [{from: [{source: {namespaces: ['']}}]}]}", "text"),
        (
            "{rules: [{from: [{source: {principals: ['spiffe://t/ns/a/sa/b']}}]}]}",
            "spiffe",
        ),
        (
            "{rules: [{from: [{source: {serviceAccounts: ['b/*']}}]}]}",
            "b/*",
        ),
        (
            "{rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}",
            "a/b/c",
        ),
        ("{rules: [{from: [{source: {}}]}]}", "empty source"),
        ("{rules: [{from: []}]}", "at least one"),
        ("{rules: [{to: [{operation: {}}]}]}", "empty operation"),
        (
            "{rules: [{to: [{operation: {ports: ['70000']}}]}]}",
            "70000",
        ),
        ("{rules: [{to: [{operation: {ports: ['0']}}]}]}", "port"),
        ("{rules: [{to: [{operation: {ports: [80]}}]}]}", "string"),
        ("{rules: [{when: [{key: source.ip}]}]}", "values"),
        (
            "{rules: [{when: [{key: source.colour, values: [red]}]}]}",
            "source.colour",
        ),
        ("{rules: {}}", "sequence"),
        ("{rules: [[]]}", "map"),
        ("{rules: [{from: [[]]}]}", "map"),
        ("{rules: [{from: [{source: []}]}]}", "map"),
        ("{rules: [{from: null}]}", "sequence"),
        ("{rules: [{to: null}]}", "sequence"),
        ("{rules: [{to: [{operation: null}]}]}", "map"),
        ("{rules: null}", "sequence"),
    ];
    for (spec, word) in cases {
        let spec = spec.replacen('{', &format!("{{{selector}, "), 1);
        let translated = translated(&spec);
        let policy = only(&translated);
        let why = policy
            .unreadable
            .as_deref()
            .unwrap_or_else(|| panic!("{spec}"));
        assert!(why.contains(word), "{spec}: {why}");
        assert_eq!(policy.scope, PolicyScope::WorkloadSelector, "{spec}");
        assert!(translated.problems[0].contains("refuses all"), "{spec}");
    }
}

#[test]
fn what_cannot_say_whom_it_selects_refuses_its_namespace() {
    let cases = [
        "spec: {selector: {matchExpressions: []}}",
        "spec: {selector: [app]}",
        "spec: {selector: {matchLabels: {app: 7}}}",
        "spec: {selector: {matchLabels: {app: 'w*'}}}",
        "spec: []",
        "spec: {targetRef: null}",
        "spec: {targetRef: {}}",
        "spec: {targetRefs: null}",
        "spec: {targetRefs: [null]}",
        "spec: {targetRefs: {kind: Service, name: s}}",
        "rules: []",
        "spec: {selector: {matchLabels: {app: web}}, targetRef: {kind: Gateway, name: g}}",
    ];
    for rest in cases {
        let translated = translated_in("a", rest);
        let policy = only(&translated);
        assert!(policy.unreadable.is_some(), "{rest}");
        assert_eq!(policy.scope, PolicyScope::Namespace, "{rest}");
    }
}

#[test]
fn another_version_of_the_policy_is_not_understood() {
    let yaml = "{apiVersion: security.istio.io/v2, kind: AuthorizationPolicy, metadata: {name: p, namespace: mesh}}";
    let translated = translate(
        &index(yaml),
        &Source::AuthorizationPolicy(name_of("mesh/p")),
    );
    assert!(only(&translated).unreadable.is_some());
    let older = yaml.replace("v2", "v1beta1");
    let translated = translate(
        &index(&older),
        &Source::AuthorizationPolicy(name_of("mesh/p")),
    );
    assert_eq!(only(&translated).unreadable, None);
}

#[test]
fn metadata_that_is_not_understood_refuses_too() {
    let yaml = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: mesh, annotations: {a: 1}}}";
    let translated = translate(
        &index(yaml),
        &Source::AuthorizationPolicy(name_of("mesh/p")),
    );
    assert!(only(&translated).unreadable.is_some());
}

#[test]
fn audits_and_policies_of_waypoints_have_no_effect_and_say_so() {
    for spec in [
        "{action: AUDIT, rules: [{}]}",
        "{targetRefs: [{kind: Service, name: s}]}",
        "{targetRef: {kind: Gateway, name: g}}",
    ] {
        let translated = translated(spec);
        assert_eq!(translated.resources, [], "{spec}");
        assert!(translated.problems[0].contains("no effect"), "{spec}");
    }
}

#[test]
fn a_dry_run_never_refuses() {
    let dry = |spec: &str| {
        let yaml = format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: mesh, annotations: {{istio.io/dry-run: 'true'}}}}, spec: {spec}}}"
        );
        translate(
            &index(&yaml),
            &Source::AuthorizationPolicy(name_of("mesh/p")),
        )
    };
    let readable = dry("{action: DENY, rules: [{}]}");
    assert!(only(&readable).dry_run && only(&readable).rules.len() == 1);
    let unreadable = dry("{action: MAYBE}");
    assert!(only(&unreadable).dry_run && only(&unreadable).unreadable.is_none());
    assert_eq!(unreadable.problems.len(), 1);
}
