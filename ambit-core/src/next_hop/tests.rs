//! The outbound algorithm, one row a case, and what may never come out of it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::names::NetworkId;
use crate::service::{Visibility, WeightedWaypoint};
use crate::testing::{behind, plain_pod, pod, service, uid, view, waypoint, waypoint_at};
use crate::view::unreadable::Unreadable;
use crate::view::update::Update;
use crate::workload::{Health, NetworkMode};

/// What a decision comes to, short enough for a table.
fn told(decision: &Decision) -> String {
    let service = decision.service.as_ref().map_or("-", |s| &*s.name);
    let workload = decision.workload.as_ref().map_or("-", |w| &*w.name);
    let hop = match &decision.hop {
        NextHop::Passthrough { to } => format!("passthrough {to}"),
        NextHop::Plain { to } => format!("plain {to}"),
        NextHop::Tunnel {
            via,
            target,
            expect,
            kind,
        } => {
            let expect: Vec<_> = expect.iter().map(|id| &*id.service_account).collect();
            format!("{kind:?} {via} {target} as {}", expect.join("+")).to_lowercase()
        }
        NextHop::Refuse(reason) => format!("refuse {}", reason.code()),
    };
    format!("{hop} | {service} {workload}")
}

fn client() -> Workload {
    pod("client", &["10.0.0.1", "fd00::1"])
}

/// One of everything: a client, endpoints in and out of the mesh, a waypoint `gate`, a service of each kind.
fn mesh() -> MeshView {
    view(workloads(), services())
}

fn workloads() -> impl IntoIterator<Item = Workload> {
    let sick = Workload {
        health: Health::Unhealthy,
        ..behind(pod("sick", &["10.0.0.4"]), "down", &[])
    };
    let bound = Workload {
        waypoint: Some(waypoint("gate")),
        ..pod("bound", &["10.0.0.6"])
    };
    let stray = Workload {
        waypoint: Some(waypoint("nobody")),
        ..pod("stray", &["10.0.0.7"])
    };
    let host = Workload {
        network_mode: NetworkMode::HostNetwork,
        ..behind(plain_pod("host", &["10.9.0.1"]), "hosts", &[])
    };
    let away = Workload {
        network: NetworkId::new("n2"),
        ..behind(pod("away", &["10.0.0.2"]), "far", &[])
    };
    let named = Workload {
        hostname: Some("db.example".into()),
        ..behind(plain_pod("named", &[]), "named", &[])
    };
    [
        client(),
        behind(pod("web", &["10.0.0.2", "fd00::2"]), "web", &[]),
        behind(plain_pod("old", &["10.0.0.3"]), "old", &[]),
        sick,
        behind(pod("gate", &["10.0.0.5", "fd00::5"]), "gate", &[]),
        bound,
        stray,
        host,
        away,
        named,
    ]
}

fn services() -> impl IntoIterator<Item = Service> {
    let with = |name: &str, vip: &str, change: fn(&mut Service)| {
        let mut service = service(name, &[vip], &[(80, 8080)]);
        change(&mut service);
        service
    };
    let passthrough = |s: &mut Service| s.load_balancing.mode = BalanceMode::Passthrough;
    [
        service("web", &["10.1.0.1", "fd01::1"], &[(80, 8080), (81, 15008)]),
        with("old", "10.1.0.2", |_| ()),
        with("down", "10.1.0.3", |_| ()),
        service("gate", &["10.1.0.4"], &[(15008, 15008)]),
        with("hosts", "10.1.0.5", |_| ()),
        with("far", "10.1.0.6", |_| ()),
        with("named", "10.1.0.7", |_| ()),
        with("guarded", "10.1.0.8", |s| {
            s.waypoint = Some(waypoint("gate"))
        }),
        with("stranded", "10.1.0.9", |s| {
            s.waypoint = Some(waypoint("nobody"))
        }),
        with("external", "10.1.0.10", passthrough),
        with("range", "10.2.0.0/16", passthrough),
        with("hidden", "10.1.0.11", |s| {
            s.key.namespace = "other".into();
            s.visibility = Visibility::Namespace;
        }),
    ]
}

fn unreadable(name: &str, addresses: &[&str]) -> Update {
    Update::Unreadable(Box::new(Unreadable {
        name: name.to_owned(),
        addresses: service("_", addresses, &[]).addresses,
    }))
}

#[test]
fn what_could_not_be_read_is_refused_and_never_sent_to_in_the_clear() {
    let mut mesh = mesh();
    mesh.apply([
        unreadable("c//Pod/shop/new", &["192.0.2.1", "fd02::1", "10.2.0.9"]),
        unreadable(
            "shop/new.example",
            &["192.0.2.2", "10.2.8.0/24", "10.0.0.0/8"],
        ),
        unreadable("c//Pod/shop/reused", &["10.0.0.2", "10.0.0.3", "10.1.0.10"]),
    ]);
    #[rustfmt::skip] // a row a case
    let cases = [
        ("workload", "192.0.2.1:443", "refuse resource_unreadable | - -"),
        ("workload, mapped", "[::ffff:192.0.2.1]:443", "refuse resource_unreadable | - -"),
        ("workload, IPv6", "[fd02::1]:443", "refuse resource_unreadable | - -"),
        ("workload, a capture port", "192.0.2.1:15008", "refuse resource_unreadable | - -"),
        ("workload in a range that passes through", "10.2.0.9:80", "refuse resource_unreadable | - -"),
        ("service", "192.0.2.2:80", "refuse resource_unreadable | - -"),
        ("service's range", "10.200.0.1:80", "refuse resource_unreadable | - -"),
        ("service's range in a wider one", "10.2.8.1:9", "refuse resource_unreadable | - -"),
        ("service's range around a narrower one", "10.2.3.4:9", "refuse resource_unreadable | - -"),
        ("beside an HBONE workload", "10.0.0.2:80", "workload 10.0.0.2:15008 10.0.0.2:80 as web | - web"),
        ("beside a plain workload", "10.0.0.3:80", "refuse resource_unreadable | - old"),
        ("beside a plain endpoint", "10.1.0.2:80", "refuse resource_unreadable | old old"),
        ("beside a service that passes through", "10.1.0.10:80", "refuse resource_unreadable | external -"),
        ("range around a workload", "10.0.0.5:80", "workload 10.0.0.5:15008 10.0.0.5:80 as gate | - gate"),
        ("range around a service", "10.1.0.1:80", "workload 10.0.0.2:15008 10.0.0.2:8080 as web | web web"),
        ("elsewhere", "192.0.2.3:443", "passthrough 192.0.2.3:443 | - -"),
    ];
    for (name, wanted, expected) in cases {
        let decision = next_hop(&mesh, &client(), wanted.parse().unwrap(), &[], 0);
        assert_eq!(told(&decision), expected, "{name}");
    }
}

#[test]
fn each_destination_has_its_way() {
    #[rustfmt::skip] // a row a case
    let cases = [
        // Addresses that the mesh does not know.
        ("unknown", "192.0.2.1:443", "passthrough 192.0.2.1:443 | - -"),
        ("unknown, mapped", "[::ffff:192.0.2.1]:443", "passthrough 192.0.2.1:443 | - -"),
        ("unknown, a capture port elsewhere", "192.0.2.1:15001", "passthrough 192.0.2.1:15001 | - -"),
        ("host network is not found by address", "10.9.0.1:8080", "passthrough 10.9.0.1:8080 | - -"),
        ("hidden from this namespace", "10.1.0.11:80", "passthrough 10.1.0.11:80 | - -"),
        // Services.
        ("service", "10.1.0.1:80", "workload 10.0.0.2:15008 10.0.0.2:8080 as web | web web"),
        ("service over IPv6", "[fd01::1]:80", "workload [fd00::2]:15008 [fd00::2]:8080 as web | web web"),
        ("service, mapped", "[::ffff:10.1.0.1]:80", "workload 10.0.0.2:15008 10.0.0.2:8080 as web | web web"),
        ("service not in the mesh", "10.1.0.2:80", "plain 10.0.0.3:8080 | old old"),
        ("service on host network", "10.1.0.5:80", "plain 10.9.0.1:8080 | hosts host"),
        ("service without that port", "10.1.0.1:82", "refuse target_unknown | web -"),
        ("service with no healthy endpoint", "10.1.0.3:80", "refuse no_healthy_endpoint | down -"),
        ("service on another network", "10.1.0.6:80", "refuse other_network | far -"),
        ("service of endpoints to resolve", "10.1.0.7:80", "refuse no_healthy_endpoint | named -"),
        ("service that passes through", "10.1.0.10:80", "passthrough 10.1.0.10:80 | external -"),
        ("range that passes through", "10.2.3.4:9", "passthrough 10.2.3.4:9 | range -"),
        ("service port that leads to a capture port", "10.1.0.1:81", "refuse capture_port | web web"),
        // Waypoints of services.
        ("waypoint", "10.1.0.8:80", "waypoint 10.0.0.5:15008 10.1.0.8:80 as gate | guarded gate"),
        ("waypoint knows the ports, we do not", "10.1.0.8:9", "waypoint 10.0.0.5:15008 10.1.0.8:9 as gate | guarded gate"),
        ("waypoint that is not there", "10.1.0.9:80", "refuse waypoint_unavailable | stranded -"),
        ("waypoint, to a capture port", "10.1.0.8:15008", "refuse capture_port | guarded gate"),
        // Workloads by address: any port is theirs.
        ("pod", "10.0.0.2:9", "workload 10.0.0.2:15008 10.0.0.2:9 as web | - web"),
        ("pod over IPv6", "[fd00::2]:9", "workload [fd00::2]:15008 [fd00::2]:9 as web | - web"),
        ("unhealthy pod, by its address", "10.0.0.4:9", "workload 10.0.0.4:15008 10.0.0.4:9 as sick | - sick"),
        ("pod not in the mesh", "10.0.0.3:9", "plain 10.0.0.3:9 | - old"),
        ("pod not in the mesh, a capture port", "10.0.0.3:15008", "plain 10.0.0.3:15008 | - old"),
        ("pod with a waypoint", "10.0.0.6:9", "waypoint 10.0.0.5:15008 10.0.0.6:9 as gate | - gate"),
        ("pod whose waypoint is not there", "10.0.0.7:9", "refuse waypoint_unavailable | - -"),
        ("itself", "10.0.0.1:9", "workload 10.0.0.1:15008 10.0.0.1:9 as client | - client"),
        // Capture ports.
        ("pod's capture port", "10.0.0.2:15008", "refuse capture_port | - web"),
        ("loopback", "127.0.0.1:80", "passthrough 127.0.0.1:80 | - -"),
        ("loopback, capture port", "127.0.0.1:15001", "refuse capture_port | - -"),
        ("loopback, any address of it", "127.9.9.9:15006", "refuse capture_port | - -"),
        ("loopback, mapped", "[::ffff:127.0.0.1]:15006", "refuse capture_port | - -"),
        ("loopback, IPv6", "[::1]:15008", "refuse capture_port | - -"),
        ("no address", "0.0.0.0:15001", "refuse capture_port | - -"),
        ("own capture port", "10.0.0.1:15001", "refuse capture_port | - client"),
        ("own capture port, mapped", "[::ffff:10.0.0.1]:15001", "refuse capture_port | - client"),
    ];
    let view = mesh();
    for (name, wanted, want) in cases {
        let decision = next_hop(&view, &client(), wanted.parse().unwrap(), &[], 5);
        assert_eq!(told(&decision), want, "{name}");
    }
}

#[test]
fn a_zone_stays_with_its_address() {
    let zoned = SocketAddr::V6(std::net::SocketAddrV6::new(
        "fe80::1".parse().unwrap(),
        80,
        0,
        3,
    ));
    let hop = next_hop(&mesh(), &client(), zoned, &[], 5).hop;
    assert_eq!(hop, NextHop::Passthrough { to: zoned });
}

#[test]
fn a_workloads_address_counts_before_a_vip() {
    let view = view(
        [pod("web", &["10.1.0.1"])],
        [service("web", &["10.1.0.1"], &[(80, 8080)])],
    );
    let decision = next_hop(&view, &client(), "10.1.0.1:80".parse().unwrap(), &[], 5);
    assert_eq!(
        told(&decision),
        "workload 10.1.0.1:15008 10.1.0.1:80 as web | - web"
    );
}

#[test]
fn addresses_of_other_networks_are_not_ours() {
    let mut view = MeshView::new(
        NetworkId::new("n1"),
        crate::names::ClusterId::new("Kubernetes"),
    );
    view.apply([Update::Workload(Box::new(pod("web", &["10.0.0.2"])))]);
    let hop = next_hop(&view, &client(), "10.0.0.2:80".parse().unwrap(), &[], 5).hop;
    assert_eq!(
        hop,
        NextHop::Passthrough {
            to: "10.0.0.2:80".parse().unwrap()
        }
    );
}

#[test]
fn a_service_allows_identities_beside_the_endpoints_own() {
    let own = SpiffeId::new("cluster.local", "shop", "web");
    let other = SpiffeId::new("cluster.local", "shop", "other");
    let web = Service {
        subject_alt_names: vec![other, own],
        ..service("web", &["10.1.0.1"], &[(80, 8080)])
    };
    let view = view([behind(pod("web", &["10.0.0.2"]), "web", &[])], [web]);
    let by_service = next_hop(&view, &client(), "10.1.0.1:80".parse().unwrap(), &[], 5);
    assert_eq!(
        told(&by_service),
        "workload 10.0.0.2:15008 10.0.0.2:8080 as web+other | web web"
    );
    let direct = next_hop(&view, &client(), "10.0.0.2:80".parse().unwrap(), &[], 5);
    assert_eq!(
        told(&direct),
        "workload 10.0.0.2:15008 10.0.0.2:80 as web | - web"
    );
}

#[test]
fn a_waypoint_reaches_its_own_pods_straight_and_services_like_all_others() {
    let view = mesh();
    let gate = view.pod("shop", "gate").unwrap();
    let to_pod = next_hop(&view, gate, "10.0.0.6:9".parse().unwrap(), &[], 5);
    assert_eq!(
        told(&to_pod),
        "workload 10.0.0.6:15008 10.0.0.6:9 as bound | - bound"
    );
    let to_service = next_hop(&view, gate, "10.1.0.8:80".parse().unwrap(), &[], 5);
    assert_eq!(
        told(&to_service),
        "waypoint 10.0.0.5:15008 10.1.0.8:80 as gate | guarded gate"
    );
}

#[test]
fn another_try_goes_elsewhere_or_nowhere() {
    let both = ["a", "b"].map(|n| {
        behind(
            pod(n, &[if n == "a" { "10.0.0.2" } else { "10.0.0.3" }]),
            "web",
            &[],
        )
    });
    let gates = ["gate-a", "gate-b"].map(|n| {
        behind(
            pod(
                n,
                &[if n == "gate-a" {
                    "10.0.0.5"
                } else {
                    "10.0.0.6"
                }],
            ),
            "gate",
            &[],
        )
    });
    let guarded = Service {
        waypoint: Some(waypoint("gate")),
        ..service("guarded", &["10.1.0.2"], &[])
    };
    let services = [
        service("web", &["10.1.0.1"], &[(80, 80)]),
        service("gate", &[], &[(15008, 15008)]),
        guarded,
    ];
    let view = view(both.into_iter().chain(gates), services);
    for (wanted, refusal) in [
        ("10.1.0.1:80", Reason::NoHealthyEndpoint),
        ("10.1.0.2:80", Reason::WaypointUnavailable),
    ] {
        let mut tried = Vec::new();
        for _ in 0..2 {
            let decision = next_hop(&view, &client(), wanted.parse().unwrap(), &tried, 5);
            tried.push(decision.workload.unwrap().uid.clone());
        }
        assert_ne!(tried[0], tried[1], "{wanted}");
        let last = next_hop(&view, &client(), wanted.parse().unwrap(), &tried, 5);
        assert_eq!(last.hop, NextHop::Refuse(refusal), "{wanted}");
    }
}

#[test]
fn a_pod_that_was_tried_by_its_address_is_not_tried_again() {
    let tried = [uid("web")];
    let decision = next_hop(&mesh(), &client(), "10.0.0.2:9".parse().unwrap(), &tried, 5);
    assert_eq!(told(&decision), "refuse no_healthy_endpoint | - -");
}

#[test]
fn a_pod_outside_the_mesh_never_reaches_its_own_capture_port() {
    let old = behind(plain_pod("old", &["10.0.0.3"]), "old", &[]);
    let view = view(
        [old.clone()],
        [service("old", &["10.1.0.1"], &[(80, 15006)])],
    );
    for wanted in ["10.0.0.3:15006", "10.1.0.1:80"] {
        let hop = next_hop(&view, &old, wanted.parse().unwrap(), &[], 5).hop;
        assert_eq!(hop, NextHop::Refuse(Reason::CapturePort), "{wanted}");
    }
}

fn weighted(name: &str, weight: u32) -> WeightedWaypoint {
    WeightedWaypoint {
        destination: waypoint(name),
        weight,
    }
}

#[test]
fn waypoints_are_chosen_by_weight() {
    let gates = ["main", "canary"].map(|n| {
        let address = if n == "main" { "10.0.0.5" } else { "10.0.0.6" };
        behind(pod(n, &[address]), n, &[])
    });
    let of = |weighted_waypoints, plain: Option<&str>| {
        let guarded = Service {
            weighted_waypoints,
            waypoint: plain.map(waypoint),
            ..service("guarded", &["10.1.0.1"], &[])
        };
        let gate_services = ["main", "canary"].map(|n| service(n, &[], &[(15008, 15008)]));
        view(gates.clone(), gate_services.into_iter().chain([guarded]))
    };
    let shares = |view: &MeshView| -> (usize, usize) {
        let picked = (0..1000).map(|i| {
            next_hop(
                view,
                &client(),
                "10.1.0.1:80".parse().unwrap(),
                &[],
                i * (u64::MAX / 1000),
            )
        });
        let names: Vec<_> = picked
            .map(|d| d.workload.map_or("-".into(), |w| w.name.to_string()))
            .collect();
        let of = |name: &str| names.iter().filter(|n| *n == name).count();
        (of("main"), of("canary"))
    };
    #[rustfmt::skip] // a row a case
    let cases = [
        ("by weight", vec![weighted("main", 90), weighted("canary", 10)], Some("main"), (900, 100)),
        ("one has all", vec![weighted("main", 0), weighted("canary", 10)], Some("main"), (0, 1000)),
        ("no weight at all: the plain one", vec![weighted("canary", 0)], Some("main"), (1000, 0)),
        ("no weight and no plain one", vec![weighted("canary", 0)], None, (0, 0)),
        ("chosen one is not there: the plain one", vec![weighted("nobody", 1)], Some("main"), (1000, 0)),
        ("chosen one is not there and no plain one", vec![weighted("nobody", 1)], None, (0, 0)),
    ];
    for (name, weights, plain, want) in cases {
        let got = shares(&of(weights, plain));
        assert!(
            got.0.abs_diff(want.0) <= 1 && got.1.abs_diff(want.1) <= 1,
            "{name}: {got:?}"
        );
    }
}

#[test]
fn the_choice_of_a_waypoint_says_nothing_of_the_choice_of_its_pod() {
    let pods = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")];
    let gates = pods
        .iter()
        .zip(["10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8"]);
    let gates = gates.map(|((name, gate), address)| behind(pod(name, &[address]), gate, &[]));
    let weighted_waypoints = vec![weighted("a", 1), weighted("b", 1)];
    let guarded = Service {
        weighted_waypoints,
        ..service("guarded", &["10.1.0.1"], &[])
    };
    let gate_services = ["a", "b"].map(|n| service(n, &[], &[(15008, 15008)]));
    let view = view(gates, gate_services.into_iter().chain([guarded]));
    let mut counts = BTreeMap::new();
    for i in 0..1000 {
        let roll = i * (u64::MAX / 1000);
        let decision = next_hop(&view, &client(), "10.1.0.1:80".parse().unwrap(), &[], roll);
        *counts
            .entry(decision.workload.unwrap().name.to_string())
            .or_insert(0_u32) += 1;
    }
    for (name, _) in pods {
        let count = counts.get(name).copied().unwrap_or_default();
        assert!(count.abs_diff(250) < 50, "{name}: {counts:?}");
    }
}

#[test]
fn a_waypoint_is_never_gone_around() {
    let of = |weighted_waypoints, waypoint| {
        let mut guarded = service("web", &["10.1.0.1"], &[(80, 80)]);
        guarded.load_balancing.mode = BalanceMode::Passthrough;
        Service {
            weighted_waypoints,
            waypoint,
            ..guarded
        }
    };
    #[rustfmt::skip] // a row a case
    let cases = [
        ("at an address of nobody", of(vec![], Some(waypoint_at("10.9.9.9")))),
        ("a service that is not there", of(vec![], Some(waypoint("nobody")))),
        ("chosen by weight and not there", of(vec![weighted("nobody", 1)], None)),
        ("weighted, all of them nothing", of(vec![weighted("nobody", 0)], None)),
    ];
    for (name, guarded) in cases {
        let view = view([behind(pod("web", &["10.0.0.2"]), "web", &[])], [guarded]);
        let hop = next_hop(&view, &client(), "10.1.0.1:80".parse().unwrap(), &[], 5).hop;
        assert_eq!(hop, NextHop::Refuse(Reason::WaypointUnavailable), "{name}");
    }
}

proptest! {
    /// Whatever is asked for, no answer leads into a capture port of ours, and an answer for a bound destination is its
    /// waypoint or a refusal.
    #[test]
    fn never_into_a_capture_port_and_never_around_a_waypoint(
        last in 0..12u8, net in 0..4usize, port in prop::sample::select(vec![9, 80, 81, 82, 15001, 15006, 15008]), roll: u64,
        source in prop::sample::select(vec!["client", "web", "old", "gate", "bound"]),
    ) {
        let view = mesh();
        let ip = [format!("10.0.0.{last}"), format!("10.1.0.{last}"), format!("127.0.0.{last}"), format!("fd00::{last}")];
        let wanted = SocketAddr::new(ip[net].parse().unwrap(), port);
        let source = view.pod("shop", source).unwrap();
        let decision = next_hop(&view, source, wanted, &[], roll);
        match &decision.hop {
            NextHop::Tunnel { via, target, expect, kind } => {
                prop_assert!(!ports::is_capture_port(target.port()));
                prop_assert_eq!(via.port(), ports::INBOUND_HBONE);
                prop_assert!(!expect.is_empty());
                prop_assert!(decision.workload.is_some());
                let bound = decision.service.as_ref().is_some_and(|s| s.waypoint.is_some());
                prop_assert_eq!(bound || decision.service.is_none() && *kind == TunnelKind::Waypoint, *kind == TunnelKind::Waypoint);
            }
            NextHop::Plain { to } | NextHop::Passthrough { to } => {
                prop_assert!(!(is_own(source, to.ip()) && ports::is_capture_port(to.port())));
                prop_assert!(decision.service.as_ref().is_none_or(|s| s.waypoint.is_none()));
            }
            NextHop::Refuse(_) => {}
        }
    }
}
