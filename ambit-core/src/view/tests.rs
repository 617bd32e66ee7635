//! What is found after which changes, and that nothing dangles in whatever order they come.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::unreadable::Unreadable;
use super::update::{Changed, Update};
use super::*;
use crate::policy::{PolicyAction, PolicyScope, Rule};
use crate::service::Visibility;
use crate::testing::{at, behind, host, ip, key, plain_pod, pod, policy, service, uid, view};
use crate::workload::{Health, NetworkMode};

fn put(view: &mut MeshView, workload: Workload) -> Changed {
    view.apply([Update::Workload(Box::new(workload))])
}

fn put_service(view: &mut MeshView, service: Service) -> Changed {
    view.apply([Update::Service(Box::new(service))])
}

fn put_policy(view: &mut MeshView, policy: Authorization) -> Changed {
    view.apply([Update::Policy(Box::new(policy))])
}

fn remove(view: &mut MeshView, name: &str) -> Changed {
    view.apply([Update::RemoveAddress(name.to_owned())])
}

fn unreadable(name: &str, addresses: &[&str]) -> Update {
    Update::Unreadable(Box::new(Unreadable {
        name: name.to_owned(),
        addresses: service("_", addresses, &[]).addresses,
    }))
}

fn name_at<'v>(view: &'v MeshView, address: &str) -> Option<&'v str> {
    view.workload_at(&at(address)).map(|w| &*w.name)
}

fn names(endpoints: &[Arc<Workload>]) -> Vec<&str> {
    endpoints.iter().map(|w| &*w.name).collect()
}

/// Nothing is left in any index.
fn assert_forgot_everything(view: &MeshView) {
    assert!(view.workloads.is_empty(), "{view:?}");
    assert!(view.by_address.is_empty(), "{view:?}");
    assert!(view.services.is_empty(), "{view:?}");
    assert!(view.by_vip.is_empty(), "{view:?}");
    assert!(view.ranges.is_empty(), "{view:?}");
    assert!(view.by_hostname.is_empty(), "{view:?}");
    assert!(view.policies.is_empty(), "{view:?}");
    assert!(view.global_policies.is_empty(), "{view:?}");
    assert!(view.namespace_policies.is_empty(), "{view:?}");
    assert!(view.unreadable.is_empty(), "{view:?}");
}

#[test]
fn a_workload_is_found_by_key_name_and_each_address() {
    let view = view([pod("web", &["10.0.0.1", "fd00::1"])], []);
    assert_eq!(view.workload(&uid("web")).unwrap().name, "web".into());
    assert_eq!(view.pod("shop", "web").unwrap().uid, uid("web"));
    assert_eq!(view.pod("other", "web"), None);
    for address in ["10.0.0.1", "fd00::1", "::ffff:10.0.0.1"] {
        assert_eq!(name_at(&view, address), Some("web"), "{address}");
    }
    let elsewhere = NetworkAddress::new(NetworkId::new("other"), ip("10.0.0.1"));
    assert_eq!(view.workload_at(&elsewhere), None);
}

#[test]
fn a_change_of_address_leaves_the_old_one_empty() {
    let mut view = view([pod("web", &["10.0.0.1"])], []);
    put(&mut view, pod("web", &["10.0.0.2"]));
    assert_eq!(name_at(&view, "10.0.0.1"), None);
    assert_eq!(name_at(&view, "10.0.0.2"), Some("web"));
}

#[test]
fn host_network_workloads_are_not_found_by_address() {
    let mut host = behind(plain_pod("host", &["10.0.0.1"]), "svc", &[]);
    host.network_mode = NetworkMode::HostNetwork;
    let mut view = view([host.clone()], []);
    assert_eq!(name_at(&view, "10.0.0.1"), None);
    assert_eq!(names(view.endpoints(&key("svc"))), ["host"]);

    host.network_mode = NetworkMode::Standard;
    put(&mut view, host.clone());
    assert_eq!(name_at(&view, "10.0.0.1"), Some("host"));
    host.network_mode = NetworkMode::HostNetwork;
    put(&mut view, host);
    assert_eq!(name_at(&view, "10.0.0.1"), None);
}

#[test]
fn workloads_that_share_an_address_do_not_disturb_each_other() {
    let shared = &["10.0.0.1"];
    for gone in ["old", "new"] {
        let mut view = view([pod("old", shared), pod("new", shared)], []);
        assert_eq!(name_at(&view, "10.0.0.1"), Some("new"));
        remove(&mut view, uid(gone).as_str());
        let left = if gone == "old" { "new" } else { "old" };
        assert_eq!(name_at(&view, "10.0.0.1"), Some(left));
        remove(&mut view, uid(left).as_str());
        assert_forgot_everything(&view);
    }
}

#[test]
fn of_workloads_with_one_address_hbone_answers_then_healthy_then_newest() {
    let shared = &["10.0.0.1"];
    let sick = |name| Workload {
        health: Health::Unhealthy,
        ..pod(name, shared)
    };
    #[rustfmt::skip] // a row a case
    let cases = [
        ("hbone first", pod("a", shared), plain_pod("b", shared), "a"),
        ("hbone first, turned", plain_pod("a", shared), pod("b", shared), "b"),
        ("hbone beats health", sick("a"), plain_pod("b", shared), "a"),
        ("healthy first", pod("a", shared), sick("b"), "a"),
        ("healthy first, turned", sick("a"), pod("b", shared), "b"),
        ("newest", pod("b", shared), pod("a", shared), "a"),
    ];
    for (name, first, second, want) in cases {
        let view = view([first, second], []);
        assert_eq!(name_at(&view, "10.0.0.1"), Some(want), "{name}");
    }
}

#[test]
fn an_address_listed_twice_is_indexed_once() {
    let mut view = view(
        [pod("web", &["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1"])],
        [],
    );
    assert_eq!(view.by_address.len(), 1);
    assert_eq!(view.by_address[&at("10.0.0.1")].len(), 1);
    remove(&mut view, uid("web").as_str());
    assert_forgot_everything(&view);
}

#[test]
fn endpoints_are_known_whichever_comes_first() {
    let mut view = view([behind(pod("b", &["10.0.0.2"]), "web", &[])], []);
    assert_eq!(names(view.endpoints(&key("web"))), ["b"]);
    assert_eq!(view.service(&key("web")), None);
    assert!(view.services().next().is_none());

    put_service(&mut view, service("web", &["10.1.0.1"], &[(80, 8080)]));
    put(&mut view, behind(pod("a", &["10.0.0.1"]), "web", &[]));
    assert_eq!(names(view.endpoints(&key("web"))), ["a", "b"]);

    put(&mut view, pod("b", &["10.0.0.2"]));
    assert_eq!(names(view.endpoints(&key("web"))), ["a"]);

    remove(&mut view, &key("web").to_string());
    assert_eq!(view.service(&key("web")), None);
    assert_eq!(names(view.endpoints(&key("web"))), ["a"]);
    put_service(&mut view, service("web", &["10.1.0.1"], &[(80, 8080)]));
    assert_eq!(names(view.endpoints(&key("web"))), ["a"]);
}

#[test]
fn endpoints_hold_the_newest_form_of_a_workload() {
    let mut view = view([behind(pod("a", &["10.0.0.1"]), "web", &[])], []);
    put(
        &mut view,
        behind(
            Workload {
                capacity: 7,
                ..pod("a", &["10.0.0.1"])
            },
            "web",
            &[],
        ),
    );
    assert_eq!(view.endpoints(&key("web")).len(), 1);
    assert_eq!(view.endpoints(&key("web"))[0].capacity, 7);
}

#[test]
fn removal_goes_by_the_shape_of_the_name() {
    let mut view = view(
        [pod("web", &["10.0.0.1"])],
        [service("web", &["10.1.0.1"], &[])],
    );
    let nothing = remove(&mut view, "shop/nobody.shop.svc.cluster.local");
    assert_eq!(nothing, Changed::default());
    assert_eq!(
        remove(&mut view, "Kubernetes//Pod/shop/nobody"),
        Changed::default()
    );
    assert_eq!(remove(&mut view, ""), Changed::default());

    let service_gone = remove(&mut view, "shop/web.shop.svc.cluster.local");
    assert_eq!(service_gone.services, [key("web")]);
    assert!(view.workload(&uid("web")).is_some());
    let pod_gone = remove(&mut view, "Kubernetes//Pod/shop/web");
    assert_eq!(pod_gone.workloads, [uid("web")]);
    assert_forgot_everything(&view);
}

#[test]
fn what_could_not_be_read_is_refused_until_it_can_be_or_is_gone() {
    let web = uid("web").to_string();
    let svc = key("svc").to_string();
    let bad = || {
        [
            unreadable(&web, &["10.0.0.1"]),
            unreadable(&svc, &["10.1.0.1"]),
        ]
    };
    let claimed = |view: &MeshView| {
        let at = |address| view.destination("shop", &at(address)) == Destination::Unreadable;
        [at("10.0.0.1"), at("10.1.0.1")]
    };
    let mut view = view([], []);
    assert_eq!(view.why_no_pod("shop", "web"), Reason::WorkloadUnknown);
    let changed = view.apply(bad());
    assert_eq!(
        (changed.workloads, changed.services),
        (vec![uid("web")], vec![key("svc")])
    );
    assert_eq!(claimed(&view), [true, true]);
    assert_eq!(view.why_no_pod("shop", "web"), Reason::ResourceUnreadable);
    assert_eq!(view.apply(bad()), Changed::default());
    let names: Vec<_> = view.unreadable().map(|u| &*u.name).collect();
    assert_eq!(names, [&*web, &*svc]);

    put(&mut view, pod("web", &["10.0.0.2"]));
    put_service(&mut view, service("svc", &["10.1.0.2"], &[]));
    assert_eq!(claimed(&view), [false, false]);

    view.apply(bad());
    assert_eq!(claimed(&view), [true, true]);
    assert_eq!(remove(&mut view, &web).workloads, [uid("web")]);
    assert_eq!(remove(&mut view, &svc).services, [key("svc")]);
    assert_eq!(view.why_no_pod("shop", "web"), Reason::WorkloadUnknown);
    assert_forgot_everything(&view);
}

#[test]
fn of_what_could_not_be_read_again_the_old_stays_unless_it_is_plain() {
    let mut view = view(
        [
            pod("web", &["10.0.0.1"]),
            behind(plain_pod("old", &["10.0.0.2"]), "svc", &[]),
        ],
        [service("svc", &["10.1.0.1"], &[])],
    );
    view.apply([
        unreadable(uid("web").as_str(), &["10.0.0.1", "10.0.0.3"]),
        unreadable(uid("old").as_str(), &[]),
        unreadable(&key("svc").to_string(), &["10.1.0.1"]),
    ]);
    assert_eq!(name_at(&view, "10.0.0.1"), Some("web"));
    let moved = view.destination("shop", &at("10.0.0.3"));
    assert_eq!(moved, Destination::Unreadable);
    assert_eq!(name_at(&view, "10.0.0.2"), None);
    assert_eq!(names(view.endpoints(&key("svc"))), [""; 0]);
    assert!(view.service(&key("svc")).is_some());
}

#[test]
fn what_is_equal_is_no_change() {
    let mut view = view(
        [pod("web", &["10.0.0.1"])],
        [service("web", &["10.1.0.1"], &[])],
    );
    let p = policy("shop/p", PolicyScope::Global, PolicyAction::Allow);
    put_policy(&mut view, p.clone());
    assert_eq!(
        put(&mut view, pod("web", &["10.0.0.1"])),
        Changed::default()
    );
    assert_eq!(
        put_service(&mut view, service("web", &["10.1.0.1"], &[])),
        Changed::default()
    );
    assert_eq!(put_policy(&mut view, p), Changed::default());
    let gone = view.apply([Update::RemovePolicy(NamespacedName::new("shop", "nobody"))]);
    assert_eq!(gone, Changed::default());
}

#[test]
fn open_connections_are_judged_again_when_what_judges_them_changes() {
    let mut view = view([pod("web", &["10.0.0.1"])], []);
    let with = |names: &[&str], unreadable| Workload {
        authorization_policies: names
            .iter()
            .filter_map(|n| NamespacedName::parse(n))
            .collect(),
        policy_unreadable: unreadable,
        ..pod("web", &["10.0.0.1"])
    };
    let p = policy("shop/p", PolicyScope::WorkloadSelector, PolicyAction::Allow);
    let steps = [
        ("policy arrives", Update::Policy(Box::new(p.clone())), true),
        ("policy again", Update::Policy(Box::new(p.clone())), false),
        (
            "rules change",
            Update::Policy(Box::new(Authorization {
                rules: vec![Rule::default()],
                ..p
            })),
            true,
        ),
        (
            "pod refers to it",
            Update::Workload(Box::new(with(&["shop/p"], false))),
            true,
        ),
        (
            "pod changes elsewhere",
            Update::Workload(Box::new(Workload {
                capacity: 3,
                ..with(&["shop/p"], false)
            })),
            false,
        ),
        (
            "pod's policies unreadable",
            Update::Workload(Box::new(with(&["shop/p"], true))),
            true,
        ),
        (
            "policy goes",
            Update::RemovePolicy(NamespacedName::new("shop", "p")),
            true,
        ),
        (
            "pod is new",
            Update::Workload(Box::new(pod("other", &[]))),
            false,
        ),
    ];
    for (name, update, want) in steps {
        assert_eq!(view.apply([update]).policies, want, "{name}");
    }
}

#[test]
fn services_are_found_by_vip_and_forgotten_with_it() {
    let mut view = view([], [service("web", &["10.1.0.1", "fd01::1"], &[])]);
    for vip in ["10.1.0.1", "fd01::1"] {
        assert_eq!(
            view.service_at("shop", &at(vip)).unwrap().key,
            key("web"),
            "{vip}"
        );
    }
    put_service(&mut view, service("web", &["10.1.0.2"], &[]));
    assert_eq!(view.service_at("shop", &at("10.1.0.1")), None);
    assert!(view.service_at("shop", &at("10.1.0.2")).is_some());
    remove(&mut view, &key("web").to_string());
    assert_forgot_everything(&view);
}

/// A service `namespace/name` at an address or range.
fn in_namespace(namespace: &str, name: &str, vip: &str) -> Service {
    Service {
        key: ServiceKey::new(namespace, &host(name)),
        ..service(name, &[vip], &[])
    }
}

#[test]
fn of_services_with_one_address_the_clients_own_is_meant() {
    let canonical = |service| Service {
        canonical: true,
        ..service
    };
    let hidden = |service| Service {
        visibility: Visibility::Namespace,
        ..service
    };
    let vip = "10.1.0.1";
    let (a, b, c) = (
        in_namespace("a", "x", vip),
        in_namespace("b", "x", vip),
        in_namespace("c", "x", vip),
    );
    #[rustfmt::skip] // a row a case
    let cases = [
        ("own namespace", "c", vec![a.clone(), canonical(b.clone()), c.clone()], Some("c")),
        ("canonical", "z", vec![a.clone(), canonical(b.clone()), c.clone()], Some("b")),
        ("first by name", "z", vec![c.clone(), b.clone(), a.clone()], Some("a")),
        ("hidden from others", "z", vec![hidden(canonical(a.clone())), b.clone()], Some("b")),
        ("hidden but own", "a", vec![hidden(a.clone()), canonical(b.clone())], Some("a")),
        ("all hidden", "z", vec![hidden(a.clone())], None),
        ("address before range", "z", vec![a, canonical(in_namespace("z", "r", "10.1.0.1/32"))], Some("a")),
        ("hidden address, then range", "z", vec![hidden(b), in_namespace("r", "r", "10.1.0.0/16")], Some("r")),
        ("own range", "r", vec![in_namespace("r", "r", "10.1.0.0/16"), in_namespace("q", "q", "10.1.0.0/24")], Some("r")),
        ("longest range", "z", vec![in_namespace("r", "r", "10.1.0.0/16"), in_namespace("s", "s", "10.1.0.0/24")], Some("s")),
        ("canonical range", "z", vec![in_namespace("r", "r", "10.1.0.0/16"), canonical(in_namespace("s", "s", "10.1.0.0/16"))], Some("s")),
        ("hidden range", "z", vec![hidden(in_namespace("r", "r", "10.1.0.0/16"))], None),
        ("outside the range", "z", vec![in_namespace("r", "r", "10.2.0.0/16")], None),
        ("impossible range", "z", vec![in_namespace("r", "r", "10.1.0.0/33")], None),
    ];
    for (name, client, services, want) in cases {
        let view = view([], services);
        let found = view.service_at(client, &at(vip)).map(|s| &*s.key.namespace);
        assert_eq!(found, want, "{name}");
    }
}

#[test]
fn a_range_belongs_to_its_network_and_goes_with_its_service() {
    let mut view = view([], [service("r", &["fd01::/64", "10.1.0.0/16"], &[])]);
    assert!(view.service_at("shop", &at("fd01::9")).is_some());
    let elsewhere = NetworkAddress::new(NetworkId::new("other"), ip("10.1.0.9"));
    assert_eq!(view.service_at("shop", &elsewhere), None);
    remove(&mut view, &key("r").to_string());
    assert_forgot_everything(&view);
}

#[test]
fn a_host_name_means_the_clients_own_service_then_the_canonical_one() {
    let of = |namespace: &str, canonical, visibility| Service {
        canonical,
        visibility,
        ..in_namespace(namespace, "x", "10.1.0.1")
    };
    let services = [
        of("a", false, Visibility::Public),
        of("b", true, Visibility::Public),
        of("c", false, Visibility::Namespace),
    ];
    let view = view([], services);
    let name = Hostname::new(&host("x"));
    for (client, want) in [("a", "a"), ("b", "b"), ("c", "c"), ("z", "b")] {
        assert_eq!(
            &*view.service_named(client, &name).unwrap().key.namespace,
            want,
            "{client}"
        );
    }
    assert_eq!(view.service_named("a", &Hostname::new("nobody")), None);
}

#[test]
fn policies_select_by_scope() {
    let mut view = view([], []);
    for (name, scope) in [
        ("root/mesh", PolicyScope::Global),
        ("shop/all", PolicyScope::Namespace),
        ("other/all", PolicyScope::Namespace),
        ("shop/some", PolicyScope::WorkloadSelector),
        ("shop/unused", PolicyScope::WorkloadSelector),
    ] {
        put_policy(&mut view, policy(name, scope, PolicyAction::Allow));
    }
    let mut web = pod("web", &[]);
    let selected = |view: &MeshView, w: &Workload| -> BTreeSet<String> {
        view.policies_for(w)
            .unwrap()
            .iter()
            .map(|p| p.name.to_string())
            .collect()
    };
    assert_eq!(
        selected(&view, &web),
        ["root/mesh", "shop/all"].map(String::from).into()
    );
    web.authorization_policies = vec![NamespacedName::new("shop", "some")];
    assert_eq!(
        selected(&view, &web),
        ["root/mesh", "shop/all", "shop/some"]
            .map(String::from)
            .into()
    );

    put_policy(
        &mut view,
        policy(
            "shop/all",
            PolicyScope::WorkloadSelector,
            PolicyAction::Allow,
        ),
    );
    put_policy(
        &mut view,
        policy("root/mesh", PolicyScope::Namespace, PolicyAction::Allow),
    );
    assert_eq!(
        selected(&view, &web),
        ["shop/some"].map(String::from).into()
    );
    for policy in [
        "root/mesh",
        "shop/all",
        "other/all",
        "shop/some",
        "shop/unused",
    ] {
        view.apply([Update::RemovePolicy(NamespacedName::parse(policy).unwrap())]);
    }
    assert_forgot_everything(&view);
}

#[test]
fn nothing_is_let_through_while_policies_are_missing_or_unreadable() {
    let mut view = view([], []);
    let connection = Connection {
        peer: None,
        source_ip: ip("10.0.0.7"),
        destination: "10.0.0.1:80".parse().unwrap(),
    };
    let referring = Workload {
        authorization_policies: vec![NamespacedName::new("shop", "late")],
        ..pod("web", &[])
    };
    let unreadable = Workload {
        policy_unreadable: true,
        ..pod("web", &[])
    };
    assert!(view.authorize(&pod("web", &[]), &connection).is_allow());
    let names = vec![NamespacedName::new("shop", "late")];
    assert_eq!(
        view.authorize(&referring, &connection),
        Verdict::Deny(Reason::PolicyNotSynced, names)
    );
    assert_eq!(
        view.authorize(&unreadable, &connection),
        Verdict::Deny(Reason::PolicyUnreadable, vec![])
    );

    let mut late = policy(
        "shop/late",
        PolicyScope::WorkloadSelector,
        PolicyAction::Allow,
    );
    late.rules = vec![Rule::default()];
    put_policy(&mut view, late);
    assert!(view.authorize(&referring, &connection).is_allow());
}

#[test]
fn dumps_are_in_order() {
    let mut view = view(
        [pod("b", &[]), pod("a", &[]), pod("c", &[])],
        [service("b", &[], &[]), service("a", &[], &[])],
    );
    for name in ["shop/b", "shop/a"] {
        put_policy(
            &mut view,
            policy(name, PolicyScope::Global, PolicyAction::Deny),
        );
    }
    let workloads: Vec<_> = view.workloads().map(|w| Text::clone(&w.name)).collect();
    assert_eq!(workloads, ["a", "b", "c"].map(Text::from));
    let services: Vec<_> = view.services().map(|s| Text::clone(&s.name)).collect();
    assert_eq!(services, ["a", "b"].map(Text::from));
    let policies: Vec<_> = view.policies().map(|p| p.name.to_string()).collect();
    assert_eq!(policies, ["shop/a", "shop/b"]);
}

/// One of few workloads, addresses and services, so that they collide.
fn any_update() -> impl Strategy<Value = Update> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    let addresses =
        prop::sample::subsequence(vec!["10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1"], 0..=3);
    let services = prop::sample::subsequence(vec!["x", "y"], 0..=2);
    let vips = prop::sample::subsequence(vec!["10.1.0.1", "10.1.0.2", "10.1.0.0/16"], 0..=3);
    let scope = prop::sample::select(vec![
        PolicyScope::Global,
        PolicyScope::Namespace,
        PolicyScope::WorkloadSelector,
    ]);
    prop_oneof![
        (name(), addresses, services, any::<bool>()).prop_map(
            |(name, addresses, services, hbone)| {
                let new = if hbone {
                    pod(name, &addresses)
                } else {
                    plain_pod(name, &addresses)
                };
                Update::Workload(Box::new(
                    services.into_iter().fold(new, |pod, s| behind(pod, s, &[])),
                ))
            }
        ),
        (prop::sample::select(vec!["x", "y"]), vips)
            .prop_map(|(name, vips)| Update::Service(Box::new(service(name, &vips, &[])))),
        (name(), scope).prop_map(|(name, scope)| {
            Update::Policy(Box::new(policy(
                &format!("shop/{name}"),
                scope,
                PolicyAction::Allow,
            )))
        }),
        (
            name(),
            prop::sample::subsequence(vec!["10.0.0.1", "10.1.9.9", "10.1.0.0/16"], 0..=3)
        )
            .prop_map(|(name, claims)| unreadable(uid(name).as_str(), &claims)),
        (
            prop::sample::select(vec!["x", "y"]),
            prop::sample::subsequence(vec!["10.1.0.1", "10.1.0.0/16"], 0..=2)
        )
            .prop_map(|(name, claims)| unreadable(&key(name).to_string(), &claims)),
        name().prop_map(|name| Update::RemoveAddress(uid(name).to_string())),
        prop::sample::select(vec!["x", "y"])
            .prop_map(|name| Update::RemoveAddress(key(name).to_string())),
        name().prop_map(|name| Update::RemovePolicy(NamespacedName::new("shop", name))),
    ]
}

/// Everything that lookups can see, for comparison.
fn seen(view: &MeshView) -> String {
    let mut text = String::new();
    for address in ["10.0.0.1", "10.0.0.2", "10.1.0.1", "10.1.0.2", "10.1.9.9"] {
        let claims = view.by_address.get(&at(address)).into_iter().flatten();
        let claims: BTreeSet<_> = claims.map(|w| w.uid.to_string()).collect();
        let service = view
            .service_at("shop", &at(address))
            .map(|s| s.key.to_string());
        let means = view.destination("shop", &at(address));
        let is_unreadable = means == Destination::Unreadable;
        text += &format!("{address} {claims:?} {service:?} {is_unreadable}\n");
    }
    for name in ["x", "y"] {
        let named = view
            .service_named("shop", &Hostname::new(&host(name)))
            .map(|s| s.key.to_string());
        text += &format!("{name} {named:?} {:?}\n", names(view.endpoints(&key(name))));
    }
    let policies = view.policies_for(&pod("a", &[])).unwrap();
    let policies: BTreeSet<_> = policies.iter().map(|p| p.name.to_string()).collect();
    text + &format!("{policies:?}")
}

proptest! {
    /// A history leaves nothing behind: the view equals one that was told only the final state.
    #[test]
    fn history_does_not_matter(updates in prop::collection::vec(any_update(), 0..30)) {
        let mut old = view([], []);
        old.apply(updates);
        let mut fresh = view([], []);
        fresh.apply(old.policies().map(|p| Update::Policy(Box::new((**p).clone()))));
        fresh.apply(old.services().map(|s| Update::Service(Box::new((**s).clone()))));
        fresh.apply(old.workloads().map(|w| Update::Workload(Box::new((**w).clone()))));
        fresh.apply(old.unreadable().map(|u| Update::Unreadable(Box::new(u.clone()))));
        prop_assert_eq!(seen(&old), seen(&fresh));

        let all: Vec<_> = old.workloads().map(|w| w.uid.to_string())
            .chain(old.services().map(|s| s.key.to_string()))
            .chain(old.unreadable().map(|u| u.name.clone()))
            .map(Update::RemoveAddress)
            .chain(old.policies().map(|p| Update::RemovePolicy(p.name.clone())))
            .collect();
        old.apply(all);
        assert_forgot_everything(&old);
    }
}
