//! Policies survive the wire, and whatever is not understood makes them refuse what they select.

use ambit_core::policy::{Clause, Match, ServiceAccountMatch, StringMatch};
use ipnet::IpNet;
use proptest::prelude::*;

use super::super::samples::{ip, name, namespaced, port, text};
use super::*;

const ROOT: &str = "ambit-system";

fn read(name: &str, message: &pb::Authorization) -> Authorization {
    decode(name, &message.encode_to_vec(), ROOT).unwrap()
}

/// A policy whose only rule has one clause with this match.
fn with_match(m: pb::Match) -> pb::Authorization {
    let clause = pb::Clause { matches: vec![m] };
    pb::Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: pb::Scope::WorkloadSelector.into(),
        rules: vec![pb::Rule {
            clauses: vec![clause],
        }],
        ..pb::Authorization::default()
    }
}

fn plain() -> pb::Authorization {
    with_match(pb::Match::default())
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        text().prop_map(StringMatch::Exact),
        text().prop_map(StringMatch::Prefix),
        text().prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence),
    ]
}

prop_compose! {
    fn range()(ip in ip(), prefix in 0_u8..=128) -> IpNet {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, prefix.min(longest)).unwrap().trunc()
    }
}

prop_compose! {
    fn account()(namespace in name(), service_account in name()) -> ServiceAccountMatch {
        ServiceAccountMatch { namespace, service_account }
    }
}

fn some<S: Strategy>(of: S) -> impl Strategy<Value = Vec<S::Value>> {
    prop::collection::vec(of, 0..3)
}

prop_compose! {
    fn one_match()(
        namespaces in some(string_match()), not_namespaces in some(string_match()),
        principals in some(string_match()), not_principals in some(string_match()),
        source_ips in some(range()), not_source_ips in some(range()),
        destination_ips in some(range()), not_destination_ips in some(range()),
        destination_ports in some(port()), not_destination_ports in some(port()),
        service_accounts in some(account()), not_service_accounts in some(account()),
    ) -> Match {
        Match {
            namespaces, not_namespaces, principals, not_principals, source_ips, not_source_ips, destination_ips,
            not_destination_ips, destination_ports, not_destination_ports, service_accounts, not_service_accounts,
        }
    }
}

prop_compose! {
    fn policy()(
        name in namespaced(),
        scope in 0..3,
        action in 0..2,
        rules in some(some(some(one_match()))),
        dry_run: bool,
    ) -> Authorization {
        let clause = |matches| Clause { matches };
        let rule = |clauses: Vec<_>| Rule { clauses: clauses.into_iter().map(clause).collect() };
        Authorization {
            name,
            scope: decode_scope(scope).unwrap(),
            action: decode_action(action).unwrap(),
            rules: rules.into_iter().map(rule).collect(),
            dry_run,
            unreadable: None,
        }
    }
}

proptest! {
    #[test]
    fn comes_back_as_it_was_sent(policy in policy()) {
        let body = encode(&policy).encode_to_vec();
        prop_assert_eq!(decode(&policy.name.to_string(), &body, ROOT), Ok(policy));
    }

    #[test]
    fn damage_never_panics_and_never_loses_the_policy(policy in policy(), at: prop::sample::Index, bit in 0_u32..8) {
        let mut body = encode(&policy).encode_to_vec();
        let at = at.index(body.len());
        body[at] ^= 1 << bit;
        let read = decode(&policy.name.to_string(), &body, ROOT);
        prop_assert_eq!(read.map(|read| read.name), Ok(policy.name));
    }

    #[test]
    fn any_field_that_is_not_known_makes_it_unreadable(policy in policy(), number in 8_u32..100, value: u64) {
        let mut body = encode(&policy).encode_to_vec();
        prost::encoding::uint64::encode(number, &value, &mut body);
        let read = decode(&policy.name.to_string(), &body, ROOT).unwrap();
        prop_assert!(read.unreadable.is_some());
        prop_assert_eq!(read.scope, policy.scope);
    }
}

#[test]
fn an_unreadable_policy_comes_back_unreadable_and_denies_to_others() {
    let policy = refusing(
        NamespacedName::new("shop", "p"),
        PolicyScope::WorkloadSelector,
        &WireError::Unexpressed("rules[0].when[1].key".into()),
    );
    let message = encode(&policy);
    assert_eq!(message.action(), pb::Action::Deny);
    assert_eq!(message.rules, [pb::Rule::default()]);
    assert_eq!(read("shop/p", &message), policy);
}

/// The policy is kept with its scope and refuses whatever it selects.
fn assert_refuses(case: &str, message: &pb::Authorization) {
    let policy = read("shop/p", message);
    assert!(policy.unreadable.is_some(), "{case}");
    assert_eq!(policy.scope, PolicyScope::WorkloadSelector, "{case}");
    assert_eq!(policy.rules, [], "{case}");
}

#[test]
fn a_readable_policy_is_not_refused() {
    assert_eq!(read("shop/p", &plain()).unreadable, None);
}

#[test]
fn values_out_of_range_refuse_what_the_policy_selects() {
    let net = |address: &[u8], length| pb::Match {
        not_source_ips: vec![pb::Address {
            address: address.to_vec(),
            length,
        }],
        ..pb::Match::default()
    };
    let port = |port| pb::Match {
        destination_ports: vec![80, port],
        ..pb::Match::default()
    };
    let not_port = |port| pb::Match {
        not_destination_ports: vec![port],
        ..pb::Match::default()
    };
    let cases = [
        ("prefix 33 of IPv4", net(&[10, 0, 0, 0], 33)),
        ("prefix 129 of IPv6", net(&[0; 16], 129)),
        ("an address of six bytes", net(&[0; 6], 8)),
        ("port 65536", port(65536)),
        ("excluded port 65536", not_port(65536)),
        ("port 0", not_port(0)),
    ];
    for (case, m) in cases {
        assert_refuses(case, &with_match(m));
    }
}

#[test]
fn comparisons_with_nothing_refuse_what_the_policy_selects() {
    let account = |namespace: &str, service_account: &str| pb::Match {
        not_service_accounts: vec![pb::ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: service_account.into(),
        }],
        ..pb::Match::default()
    };
    let text = pb::Match {
        not_namespaces: vec![pb::StringMatch { match_type: None }],
        ..pb::Match::default()
    };
    assert_refuses("a text match of no kind", &with_match(text));
    assert_refuses("an account without name", &with_match(account("shop", "")));
    assert_refuses("one without namespace", &with_match(account("", "web")));
}

#[test]
fn unknown_extensions_and_actions_refuse_what_the_policy_selects() {
    let extension = Extension {
        name: "example.com/newer".into(),
        config: None,
    };
    let of_match = pb::Match {
        extensions: vec![extension.clone()],
        ..pb::Match::default()
    };
    assert_refuses("an extension of a match", &with_match(of_match));
    let of_policy = pb::Authorization {
        extensions: vec![extension],
        ..plain()
    };
    assert_refuses("an extension of the policy", &of_policy);
    let why = read("shop/p", &of_policy).unreadable.unwrap();
    assert!(why.contains("example.com/newer"), "{why}");
    let action = pb::Authorization {
        action: 7,
        ..plain()
    };
    assert_refuses("an unknown action", &action);
}

#[test]
fn unknown_fields_are_found_at_every_depth() {
    // Field 15, varint 1: in the match, and from there outwards.
    let unknown = [0x78, 0x01];
    let wrap = |tag: u8, inner: &[u8]| {
        let length = u8::try_from(inner.len()).unwrap();
        [&[tag, length], inner].concat()
    };
    let text = wrap(0x0a, &unknown);
    let presence = wrap(0x0a, &wrap(0x22, &unknown));
    let address = wrap(0x2a, &unknown);
    let account = wrap(0x5a, &unknown);
    let inners = [
        ("Match", unknown.to_vec()),
        ("StringMatch", text),
        ("Empty", presence),
        ("Address", address),
        ("ServiceAccountMatch", account),
    ];
    let clause = |m: &[u8]| wrap(0x0a, &wrap(0x12, m));
    let mut rules: Vec<_> = inners.iter().map(|(name, m)| (*name, clause(m))).collect();
    rules.push(("Clause", wrap(0x0a, &unknown)));
    rules.push(("Rule", unknown.to_vec()));
    let head = pb::Authorization {
        rules: Vec::new(),
        ..plain()
    };
    for (message, rule) in rules {
        let body = [head.encode_to_vec(), wrap(0x2a, &rule)].concat();
        let why = decode("shop/p", &body, ROOT).unwrap().unreadable.unwrap();
        let expected = format!("field 15 in {}", "");
        assert!(
            why.contains(&*expected) && why.contains(message),
            "{message}: {why}"
        );
    }
}

#[test]
fn bytes_that_are_no_policy_refuse_the_whole_namespace() {
    let policy = decode("shop/p", &[0xff; 4], ROOT).unwrap();
    assert_eq!(policy.name, NamespacedName::new("shop", "p"));
    assert_eq!(policy.scope, PolicyScope::Namespace);
    assert!(policy.unreadable.is_some());
}

#[test]
fn an_unknown_scope_is_read_as_the_widest_of_its_namespace() {
    let message = |namespace: &str| pb::Authorization {
        namespace: namespace.into(),
        scope: 3,
        ..plain()
    };
    assert_eq!(
        read("shop/p", &message("shop")).scope,
        PolicyScope::Namespace
    );
    let root = read("ambit-system/p", &message(ROOT));
    assert_eq!(root.scope, PolicyScope::Global);
    assert!(root.unreadable.is_some());
}

#[test]
fn content_of_another_name_is_unreadable_under_the_name_it_was_sent_as() {
    let policy = read("shop/other", &plain());
    assert_eq!(policy.name, NamespacedName::new("shop", "other"));
    assert!(policy.unreadable.unwrap().contains("shop/p"));
}

#[test]
fn a_policy_without_a_usable_name_is_an_error() {
    for name in ["", "p", "/p", "a/b/c"] {
        assert!(
            decode(name, &plain().encode_to_vec(), ROOT).is_err(),
            "{name}"
        );
    }
}
