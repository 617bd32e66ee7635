//! Istio's L4 semantics, one rule of them per row.

use super::*;
use crate::testing::{policy, rule};

const SOURCE: &str = "10.0.0.7";
const DESTINATION: &str = "10.0.1.9:8080";

fn texts(kind: fn(Text) -> StringMatch, values: &[&str]) -> Vec<StringMatch> {
    values.iter().map(|v| kind(Text::from(*v))).collect()
}

fn exact(values: &[&str]) -> Vec<StringMatch> {
    texts(StringMatch::Exact, values)
}

fn nets(values: &[&str]) -> Vec<IpNet> {
    values.iter().map(|v| v.parse().unwrap()).collect()
}

fn accounts(pairs: &[(&str, &str)]) -> Vec<ServiceAccountMatch> {
    let one = |(namespace, service_account): &(&str, &str)| ServiceAccountMatch {
        namespace: Text::from(*namespace),
        service_account: Text::from(*service_account),
    };
    pairs.iter().map(one).collect()
}

fn client() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "web")
}

fn decide(policies: &[Authorization], peer: Option<&SpiffeId>) -> Verdict {
    let connection = Connection {
        peer,
        source_ip: SOURCE.parse().unwrap(),
        destination: DESTINATION.parse().unwrap(),
    };
    authorize(policies, &connection)
}

fn named(names: &[&str]) -> Vec<NamespacedName> {
    names
        .iter()
        .map(|n| NamespacedName::parse(n).unwrap())
        .collect()
}

fn with_rules(action: PolicyAction, rules: Vec<Rule>) -> Authorization {
    Authorization {
        rules,
        ..policy("shop/p", PolicyScope::Namespace, action)
    }
}

/// Whether an ALLOW policy of these rules lets through (with identity, without).
fn lets_through(rules: Vec<Rule>) -> (bool, bool) {
    let policies = [with_rules(PolicyAction::Allow, rules)];
    (
        decide(&policies, Some(&client())).is_allow(),
        decide(&policies, None).is_allow(),
    )
}

#[test]
fn attributes_fit_as_istio_says() {
    let presence = || vec![StringMatch::Presence];
    let (both, mtls, plain, never) = ((true, true), (true, false), (false, true), (false, false));
    let m = Match::default;
    #[rustfmt::skip] // a row a case
    let cases = [
        ("namespace", Match { namespaces: exact(&["shop"]), ..m() }, mtls),
        ("one of two namespaces", Match { namespaces: exact(&["x", "shop"]), ..m() }, mtls),
        ("other namespace", Match { namespaces: exact(&["sho"]), ..m() }, never),
        ("namespace prefix", Match { namespaces: texts(StringMatch::Prefix, &["sh"]), ..m() }, mtls),
        ("namespace suffix", Match { namespaces: texts(StringMatch::Suffix, &["op"]), ..m() }, mtls),
        ("any namespace", Match { namespaces: presence(), ..m() }, mtls),
        ("not this namespace", Match { not_namespaces: exact(&["shop"]), ..m() }, plain),
        ("not another namespace", Match { not_namespaces: exact(&["x"]), ..m() }, both),
        ("principal", Match { principals: exact(&["cluster.local/ns/shop/sa/web"]), ..m() }, mtls),
        ("principal with scheme", Match { principals: exact(&["spiffe://cluster.local/ns/shop/sa/web"]), ..m() }, never),
        ("principal of another domain", Match { principals: exact(&["other/ns/shop/sa/web"]), ..m() }, never),
        ("principal prefix", Match { principals: texts(StringMatch::Prefix, &["cluster.local/ns/shop/"]), ..m() }, mtls),
        ("principal suffix", Match { principals: texts(StringMatch::Suffix, &["/sa/web"]), ..m() }, mtls),
        ("any principal", Match { principals: presence(), ..m() }, mtls),
        ("no principal", Match { not_principals: presence(), ..m() }, plain),
        ("not another principal", Match { not_principals: exact(&["x"]), ..m() }, both),
        ("service account", Match { service_accounts: accounts(&[("shop", "web")]), ..m() }, mtls),
        ("service account elsewhere", Match { service_accounts: accounts(&[("x", "web")]), ..m() }, never),
        ("not this service account", Match { not_service_accounts: accounts(&[("shop", "web")]), ..m() }, plain),
        ("not another service account", Match { not_service_accounts: accounts(&[("shop", "x")]), ..m() }, both),
        ("source", Match { source_ips: nets(&["10.0.0.0/24"]), ..m() }, both),
        ("source of another family", Match { source_ips: nets(&["::/0"]), ..m() }, never),
        ("not this source", Match { not_source_ips: nets(&["10.0.0.7/32"]), ..m() }, never),
        ("not another source", Match { not_source_ips: nets(&["10.0.0.8/32"]), ..m() }, both),
        ("destination", Match { destination_ips: nets(&["10.0.1.9/32"]), ..m() }, both),
        ("other destination", Match { destination_ips: nets(&["10.0.0.0/24"]), ..m() }, never),
        ("not this destination", Match { not_destination_ips: nets(&["10.0.1.0/24"]), ..m() }, never),
        ("port", Match { destination_ports: vec![80, 8080], ..m() }, both),
        ("other port", Match { destination_ports: vec![80], ..m() }, never),
        ("not this port", Match { not_destination_ports: vec![8080], ..m() }, never),
        ("not another port", Match { not_destination_ports: vec![80], ..m() }, both),
        ("kinds are ANDed", Match { namespaces: exact(&["shop"]), destination_ports: vec![80], ..m() }, never),
        ("positive and negative are ANDed", Match { namespaces: presence(), not_namespaces: exact(&["shop"]), ..m() }, never),
    ];
    for (name, m, want) in cases {
        assert_eq!(lets_through(vec![rule(m)]), want, "{name}");
    }
}

#[test]
fn rules_clauses_and_matches_combine_as_istio_says() {
    let fits = || Match {
        destination_ports: vec![8080],
        ..Match::default()
    };
    let fails = || Match {
        destination_ports: vec![1],
        ..Match::default()
    };
    let clause = |matches: Vec<Match>| Clause { matches };
    let rule = |clauses: Vec<Clause>| Rule { clauses };
    #[rustfmt::skip] // a row a case
    let cases = [
        ("no rules fit nothing", vec![], false),
        ("a rule without clauses fits everything", vec![rule(vec![])], true),
        ("a clause without matches fits everything", vec![rule(vec![clause(vec![])])], true),
        ("an empty match fits nothing", vec![rule(vec![clause(vec![Match::default()])])], false),
        ("an empty match is skipped", vec![rule(vec![clause(vec![Match::default(), fits()])])], true),
        ("rules are ORed", vec![rule(vec![clause(vec![fails()])]), rule(vec![clause(vec![fits()])])], true),
        ("clauses are ANDed", vec![rule(vec![clause(vec![fits()]), clause(vec![fails()])])], false),
        ("matches are ORed", vec![rule(vec![clause(vec![fails(), fits()])])], true),
        ("one empty clause does not help another", vec![rule(vec![clause(vec![]), clause(vec![fails()])])], false),
    ];
    for (name, rules, want) in cases {
        assert_eq!(lets_through(rules), (want, want), "{name}");
    }
}

#[test]
fn actions_are_weighed_in_istios_order() {
    let everything = || vec![Rule::default()];
    let of = |name: &str, action, rules: Vec<Rule>| Authorization {
        rules,
        ..policy(name, PolicyScope::Namespace, action)
    };
    let allow = of("shop/allow", PolicyAction::Allow, everything());
    let allow_other = of("shop/other", PolicyAction::Allow, vec![]);
    let allow_third = of("shop/third", PolicyAction::Allow, vec![]);
    let deny = of("shop/deny", PolicyAction::Deny, everything());
    let deny_other = of("shop/deny-other", PolicyAction::Deny, vec![]);
    let torn = Authorization {
        unreadable: Some("field 99".into()),
        ..of("shop/torn", PolicyAction::Allow, everything())
    };
    let torn_deny = Authorization {
        action: PolicyAction::Deny,
        rules: vec![],
        ..torn.clone()
    };
    let dry = |p: &Authorization| Authorization {
        dry_run: true,
        ..p.clone()
    };
    let denied = |reason, names: &[&str]| Verdict::Deny(reason, named(names));
    let allowed_by = |name: &str| Verdict::Allow(NamespacedName::parse(name));
    #[rustfmt::skip] // a row a case
    let cases = [
        ("no policy", vec![], Verdict::Allow(None)),
        ("deny that does not match", vec![deny_other.clone()], Verdict::Allow(None)),
        ("deny that matches", vec![deny.clone()], denied(Reason::PolicyDenied, &["shop/deny"])),
        ("deny beats allow", vec![allow.clone(), deny.clone()], denied(Reason::PolicyDenied, &["shop/deny"])),
        ("allow that matches", vec![allow.clone()], allowed_by("shop/allow")),
        ("one allow is enough", vec![allow_other.clone(), allow.clone()], allowed_by("shop/allow")),
        ("no allow matches", vec![allow_other.clone(), allow_third.clone()], denied(Reason::PolicyNotAllowed, &["shop/other", "shop/third"])),
        ("unreadable refuses", vec![torn.clone()], denied(Reason::PolicyUnreadable, &["shop/torn"])),
        ("unreadable refuses whatever its action", vec![torn_deny.clone()], denied(Reason::PolicyUnreadable, &["shop/torn"])),
        ("unreadable beats allow", vec![allow.clone(), torn.clone()], denied(Reason::PolicyUnreadable, &["shop/torn"])),
        ("a deny that matches is named first", vec![torn.clone(), deny.clone()], denied(Reason::PolicyDenied, &["shop/deny"])),
        ("dry deny does nothing", vec![dry(&deny)], Verdict::Allow(None)),
        ("dry allow asks for nothing", vec![dry(&allow_other)], Verdict::Allow(None)),
        ("dry allow grants nothing", vec![dry(&allow), allow_other.clone()], denied(Reason::PolicyNotAllowed, &["shop/other"])),
        ("dry unreadable does nothing", vec![dry(&torn)], Verdict::Allow(None)),
    ];
    for (name, policies, want) in cases {
        assert_eq!(decide(&policies, Some(&client())), want, "{name}");
    }
}

#[test]
fn a_refusal_for_want_of_an_identity_says_so() {
    let strict = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let but = |port| Match {
        not_destination_ports: vec![port],
        ..Match::default()
    };
    let one = |m: Match| Clause { matches: vec![m] };
    let port = Match {
        destination_ports: vec![8080],
        ..strict.clone()
    };
    let elsewhere = Match {
        destination_ports: vec![80],
        ..strict.clone()
    };
    let here = Match {
        destination_ports: vec![8080],
        ..Match::default()
    };
    let by_name = Match {
        not_principals: exact(&["cluster.local/ns/shop/sa/web"]),
        ..Match::default()
    };
    #[rustfmt::skip] // a row a case
    let cases = [
        ("strict", vec![rule(strict.clone())], Some(Reason::PlaintextRefused)),
        ("strict on this port", vec![rule(port)], Some(Reason::PlaintextRefused)),
        ("strict but for another port", vec![Rule { clauses: vec![one(strict.clone()), one(but(80))] }], Some(Reason::PlaintextRefused)),
        ("strict but for this port", vec![Rule { clauses: vec![one(strict.clone()), one(but(8080))] }], None),
        ("strict elsewhere, denied for its port", vec![Rule { clauses: vec![Clause { matches: vec![elsewhere, here] }] }], Some(Reason::PolicyDenied)),
        ("deny all", vec![Rule::default()], Some(Reason::PolicyDenied)),
        ("deny all but one by name", vec![rule(by_name)], Some(Reason::PolicyDenied)),
    ];
    for (name, rules, want) in cases {
        let policies = [with_rules(PolicyAction::Deny, rules)];
        let verdict = decide(&policies, None);
        let got = match &verdict {
            Verdict::Deny(reason, names) => {
                assert_eq!(*names, named(&["shop/p"]), "{name}");
                Some(*reason)
            }
            Verdict::Allow(_) => None,
        };
        assert_eq!(got, want, "{name}");
    }
    let strict = [with_rules(PolicyAction::Deny, vec![rule(strict)])];
    assert!(decide(&strict, Some(&client())).is_allow());
}

#[test]
fn mapped_addresses_are_compared_as_ipv4() {
    let m = Match {
        source_ips: nets(&["10.0.0.7/32"]),
        destination_ips: nets(&["10.0.1.9/32"]),
        ..Match::default()
    };
    let policies = [with_rules(PolicyAction::Allow, vec![rule(m)])];
    let connection = Connection {
        peer: None,
        source_ip: "::ffff:10.0.0.7".parse().unwrap(),
        destination: "[::ffff:10.0.1.9]:8080".parse().unwrap(),
    };
    assert!(authorize(&policies, &connection).is_allow());
}

#[test]
fn a_preview_says_what_enforcing_would_do() {
    let connection = Connection {
        peer: None,
        source_ip: SOURCE.parse().unwrap(),
        destination: DESTINATION.parse().unwrap(),
    };
    let enforced = with_rules(PolicyAction::Allow, vec![Rule::default()]);
    let mut dry = with_rules(PolicyAction::Deny, vec![Rule::default()]);
    assert_eq!(preview(&[&enforced], &connection), None);
    dry.dry_run = true;
    dry.name = NamespacedName::new("shop", "dry");
    let want = Verdict::Deny(Reason::PolicyDenied, named(&["shop/dry"]));
    assert_eq!(preview(&[&enforced, &dry], &connection), Some(want));
    assert!(authorize([&enforced, &dry], &connection).is_allow());
}
