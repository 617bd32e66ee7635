//! Who may be picked, who is preferred, and how often.

use std::collections::BTreeMap;

use super::*;
use crate::names::NetworkId;
use crate::testing::{behind, ip, pod, service, uid};
use crate::workload::{ApplicationTunnel, Locality, TunnelPreamble};

const PORT: u16 = 80;

fn endpoint(name: &str, address: &str) -> Workload {
    behind(pod(name, &[address]), "web", &[])
}

fn web() -> Service {
    service("web", &["10.1.0.1"], &[(PORT, 8080)])
}

fn preferring(mode: BalanceMode, routing_preference: &[Scope]) -> Service {
    let routing_preference = routing_preference.to_vec();
    Service {
        load_balancing: LoadBalancing {
            mode,
            routing_preference,
            ..LoadBalancing::default()
        },
        ..web()
    }
}

fn query<'a>(source: &'a Workload, service: &'a Service) -> Query<'a> {
    Query {
        source,
        service,
        port: PORT,
        wanted: ip("10.1.0.1"),
        as_waypoint: false,
        exclude: &[],
    }
}

fn shared(endpoints: Vec<Workload>) -> Vec<Arc<Workload>> {
    endpoints.into_iter().map(Arc::new).collect()
}

/// Rolls that are spread evenly.
fn rolls(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |i| i * (u64::MAX / count))
}

/// The names that some roll picks.
fn reachable(endpoints: &[Arc<Workload>], query: &Query<'_>) -> Vec<String> {
    let picked = rolls(1000).filter_map(|roll| pick(endpoints, query, roll).ok());
    let names: std::collections::BTreeSet<_> =
        picked.map(|e| e.workload.name.to_string()).collect();
    names.into_iter().collect()
}

#[test]
fn only_what_can_take_the_connection_is_picked() {
    let good = || endpoint("a", "10.0.0.1");
    let sick = || Workload {
        health: Health::Unhealthy,
        ..good()
    };
    let allow_all = || {
        let balancing = LoadBalancing {
            health_policy: HealthPolicy::AllowAll,
            ..LoadBalancing::default()
        };
        Service {
            load_balancing: balancing,
            ..web()
        }
    };
    let unnamed = || service("web", &[], &[(PORT, 0)]);
    let tunnel = || {
        Some(ApplicationTunnel {
            preamble: TunnelPreamble::None,
            port: 9000,
        })
    };
    let ok = Ok(());
    let none = Err(Reason::NoHealthyEndpoint);
    #[rustfmt::skip] // a row a case
    let cases = [
        ("good", good(), web(), ok),
        ("unhealthy", sick(), web(), none),
        ("unhealthy where all are allowed", sick(), allow_all(), ok),
        ("no address", Workload { addresses: vec![], hostname: Some("db.example".into()), ..good() }, web(), none),
        ("port not known", good(), service("web", &[], &[(81, 8080)]), none),
        ("port named by nobody", good(), unnamed(), none),
        ("port named by the endpoint", behind(good(), "web", &[(PORT, 9090)]), unnamed(), ok),
        ("port not that of a waypoint", Workload { application_tunnel: tunnel(), ..good() }, unnamed(), none),
        ("no capacity", Workload { capacity: 0, ..good() }, web(), none),
        ("no address of an allowed family", good(), Service { ip_families: IpFamilies::Ipv6Only, ..web() }, none),
        ("another network", Workload { network: NetworkId::new("n2"), ..good() }, web(), Err(Reason::OtherNetwork)),
        ("another network and unhealthy", Workload { network: NetworkId::new("n2"), ..sick() }, web(), none),
    ];
    let source = pod("client", &["10.0.9.9"]);
    for (name, workload, service, want) in cases {
        let endpoints = shared(vec![workload]);
        let got = pick(&endpoints, &query(&source, &service), 7).map(|_| ());
        assert_eq!(got, want, "{name}");
    }
    assert_eq!(
        pick(&[], &query(&source, &web()), 7),
        Err(Reason::NoHealthyEndpoint)
    );
}

#[test]
fn endpoints_here_are_picked_before_anything_is_said_of_others() {
    let away = Workload {
        network: NetworkId::new("n2"),
        ..endpoint("a", "10.0.0.1")
    };
    let endpoints = shared(vec![away, endpoint("b", "10.0.0.2")]);
    let (source, service) = (pod("client", &[]), web());
    assert_eq!(reachable(&endpoints, &query(&source, &service)), ["b"]);
}

#[test]
fn what_was_tried_is_not_picked_again() {
    let endpoints = shared(vec![endpoint("a", "10.0.0.1"), endpoint("b", "10.0.0.2")]);
    let (source, service) = (pod("client", &[]), web());
    let exclude = [uid("a"), uid("b")];
    let some = Query {
        exclude: &exclude[..1],
        ..query(&source, &service)
    };
    assert_eq!(reachable(&endpoints, &some), ["b"]);
    let all = Query {
        exclude: &exclude,
        ..some
    };
    assert_eq!(pick(&endpoints, &all, 0), Err(Reason::NoHealthyEndpoint));
}

#[test]
fn the_endpoints_own_port_counts_before_the_services() {
    #[rustfmt::skip] // a row a case
    let cases = [
        ("service's", endpoint("a", "10.0.0.1"), 8080),
        ("own", behind(endpoint("a", "10.0.0.1"), "web", &[(PORT, 9090)]), 9090),
        ("own of another port", behind(endpoint("a", "10.0.0.1"), "web", &[(81, 9090)]), 8080),
        ("own without number", behind(endpoint("a", "10.0.0.1"), "web", &[(PORT, 0)]), 8080),
    ];
    let (source, service) = (pod("client", &[]), web());
    for (name, workload, want) in cases {
        let endpoints = shared(vec![workload]);
        let picked = pick(&endpoints, &query(&source, &service), 0).unwrap();
        assert_eq!(
            picked.address,
            SocketAddr::new(ip("10.0.0.1"), want),
            "{name}"
        );
    }
}

#[test]
fn a_waypoint_behind_ztunnel_takes_the_port_as_it_is() {
    let tunnel = Some(ApplicationTunnel {
        preamble: TunnelPreamble::None,
        port: 9000,
    });
    let endpoints = shared(vec![Workload {
        application_tunnel: tunnel,
        ..endpoint("a", "10.0.0.1")
    }]);
    let (source, service) = (pod("client", &[]), service("web", &[], &[]));
    let query = Query {
        as_waypoint: true,
        port: 15008,
        ..query(&source, &service)
    };
    assert_eq!(
        pick(&endpoints, &query, 0).unwrap().address,
        "10.0.0.1:15008".parse().unwrap()
    );
}

/// Name, addresses, allowed families, wanted address, answer.
type AddressRow = (
    &'static str,
    &'static [&'static str],
    IpFamilies,
    &'static str,
    Option<&'static str>,
);

#[test]
fn the_address_suits_the_client_and_the_service() {
    use IpFamilies::{Automatic, Dual, Ipv4Only, Ipv6Only};
    let both = &["10.0.0.1", "fd00::1", "10.0.0.2"][..];
    #[rustfmt::skip] // a row a case
    let cases: [AddressRow; 10] = [
        ("wanted is its own", both, Automatic, "10.0.0.2", Some("10.0.0.2")),
        ("wanted is its own, whatever families", both, Ipv6Only, "10.0.0.2", Some("10.0.0.2")),
        ("family of the wanted", both, Automatic, "10.1.0.1", Some("10.0.0.1")),
        ("family of the wanted, v6", both, Dual, "fd01::1", Some("fd00::1")),
        ("only v4", both, Ipv4Only, "fd01::1", Some("10.0.0.1")),
        ("only v6", both, Ipv6Only, "10.1.0.1", Some("fd00::1")),
        ("other family if need be", &["fd00::1"], Automatic, "10.1.0.1", Some("fd00::1")),
        ("none allowed", &["fd00::1"], Ipv4Only, "10.1.0.1", None),
        ("none at all", &[], Automatic, "10.1.0.1", None),
        ("mapped is v4", &["::ffff:10.0.0.1"], Ipv4Only, "10.1.0.1", Some("10.0.0.1")),
    ];
    for (name, addresses, families, wanted, want) in cases {
        let got = address_of(&pod("a", addresses), families, ip(wanted));
        assert_eq!(got, want.map(ip), "{name}");
    }
}

fn located(name: &str, region: &str, zone: &str, node: &str) -> Workload {
    let locality = Locality {
        region: region.into(),
        zone: zone.into(),
        subzone: "".into(),
    };
    Workload {
        locality,
        node: node.into(),
        ..endpoint(name, "10.0.0.1")
    }
}

/// Name, mode, preferences, endpoints, those that may be picked.
type RankRow = (
    &'static str,
    BalanceMode,
    &'static [Scope],
    Vec<Workload>,
    &'static [&'static str],
);

#[test]
fn preferences_rank_and_modes_decide() {
    use BalanceMode::{Failover, Passthrough, Strict, Unspecified};
    use Scope::{Cluster, Network, Node, Region, Subzone, Zone};
    let near = || located("near", "r1", "z1", "n1");
    let zone = || located("zone", "r1", "z1", "n2");
    let region = || located("region", "r1", "z2", "n2");
    let far = || located("far", "r2", "z1", "n1");
    let all = || vec![near(), zone(), region(), far()];
    #[rustfmt::skip] // a row a case
    let cases: [RankRow; 13] = [
        ("no mode", Unspecified, &[Node], all(), &["far", "near", "region", "zone"]),
        ("no preference", Failover, &[], all(), &["far", "near", "region", "zone"]),
        ("no preference, strict", Strict, &[], all(), &["far", "near", "region", "zone"]),
        ("most matches", Failover, &[Region, Zone, Node], all(), &["near"]),
        ("second best", Failover, &[Region, Zone, Node], vec![far(), region(), zone()], &["zone"]),
        ("worst is better than none", Failover, &[Region, Zone, Node], vec![far()], &["far"]),
        ("matches after a miss do not count", Failover, &[Region, Zone, Node], vec![far(), region()], &["region"]),
        ("equal ones share", Failover, &[Region], all(), &["near", "region", "zone"]),
        ("passthrough ranks too", Passthrough, &[Region, Zone, Node], all(), &["near"]),
        ("strict", Strict, &[Node], all(), &["far", "near"]),
        ("strict on all", Strict, &[Region, Node], all(), &["near"]),
        ("strict with the network first", Strict, &[Network, Node], all(), &["far", "near"]),
        ("strict finds none", Strict, &[Subzone, Cluster, Node], vec![zone()], &[]),
    ];
    let source = located("client", "r1", "z1", "n1");
    for (name, mode, preferences, endpoints, want) in cases {
        let service = preferring(mode, preferences);
        assert_eq!(
            reachable(&shared(endpoints), &query(&source, &service)),
            want,
            "{name}"
        );
    }
}

#[test]
fn an_unhealthy_near_one_does_not_hold_back_a_healthy_far_one() {
    let sick = Workload {
        health: Health::Unhealthy,
        ..located("near", "r1", "z1", "n1")
    };
    let endpoints = shared(vec![sick, located("far", "r2", "z2", "n2")]);
    let source = located("client", "r1", "z1", "n1");
    let service = preferring(BalanceMode::Failover, &[Scope::Region, Scope::Zone]);
    assert_eq!(reachable(&endpoints, &query(&source, &service)), ["far"]);
}

#[test]
fn the_network_outweighs_all_other_preferences_and_missing_it_ends_nothing() {
    use Scope::{Network, Region, Zone};
    let source = located("client", "r1", "z1", "n1");
    let away = |w: Workload| Workload {
        network: NetworkId::new("n2"),
        ..w
    };
    let here_but_far = located("a", "r2", "z2", "n9");
    let [best, zone, region, far] = [("r1", "z1"), ("r1", "z1"), ("r1", "z2"), ("r2", "z2")]
        .map(|(r, z)| away(located("b", r, z, "n9")));
    let of = |preferences: &[Scope], w: &Workload| {
        rank(
            &preferring(BalanceMode::Failover, preferences).load_balancing,
            &source,
            w,
        )
    };
    let first = &[Network, Region, Zone];
    assert!(of(first, &here_but_far) > of(first, &best));
    assert!(of(first, &located("c", "r1", "z2", "n9")) > of(first, &here_but_far));
    assert!(of(first, &zone) > of(first, &region));
    assert!(of(first, &region) > of(first, &far));
    // Anywhere but first it is a preference like others.
    assert_eq!(of(&[Region, Network, Zone], &zone), Some(1));
    let strict = preferring(BalanceMode::Strict, first).load_balancing;
    assert_eq!(rank(&strict, &source, &zone), None);
    assert!(rank(&strict, &source, &located("d", "r1", "z1", "n9")).is_some());
}

#[test]
fn capacity_decides_how_often_each_is_picked() {
    let weights = [("a", 1), ("b", 3), ("c", 0), ("d", 6)];
    let endpoints = shared(
        weights
            .iter()
            .map(|(name, capacity)| Workload {
                capacity: *capacity,
                ..endpoint(name, "10.0.0.1")
            })
            .collect(),
    );
    let (source, service) = (pod("client", &[]), web());
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    // The rolls of a seeded generator, as a proxy draws them.
    let mut roll = 42;
    for _ in 0..10_000 {
        roll = another_roll(roll);
        let picked = pick(&endpoints, &query(&source, &service), roll).unwrap();
        *counts.entry(picked.workload.name.to_string()).or_default() += 1;
    }
    for (name, weight) in weights {
        let count = counts.get(name).copied().unwrap_or_default();
        assert!(
            count.abs_diff(weight * 1000) <= weight * 100,
            "{name}: {counts:?}"
        );
    }
}

#[test]
fn weights_share_all_rolls_exactly() {
    let cases: [(&[u32], &[u64]); 5] = [
        (&[1, 1], &[500, 500]),
        (&[9, 1], &[900, 100]),
        (&[0, 5, 0], &[0, 1000, 0]),
        (&[u32::MAX, u32::MAX], &[500, 500]),
        (&[7], &[1000]),
    ];
    for (weights, want) in cases {
        let mut counts = vec![0; weights.len()];
        // The middle of each of a thousand equal parts.
        for roll in rolls(1000).map(|r| r + u64::MAX / 2000) {
            counts[pick_weighted(weights.iter().copied(), roll).unwrap()] += 1;
        }
        assert_eq!(counts, want, "{weights:?}");
    }
    for nothing in [&[][..], &[0, 0]] {
        for roll in [0, 1, u64::MAX] {
            assert_eq!(pick_weighted(nothing.iter().copied(), roll), None);
        }
    }
    for roll in [0, u64::MAX] {
        let last = if roll == 0 { 0 } else { 1 };
        assert_eq!(pick_weighted([1, 1].into_iter(), roll), Some(last));
    }
}

#[test]
fn the_second_roll_is_independent_of_the_first() {
    // Of the rolls that choose the first of two waypoints, the second roll chooses its endpoints evenly.
    let low = rolls(10_000).filter(|roll| pick_weighted([1, 1].into_iter(), *roll) == Some(0));
    let again: Vec<_> = low
        .map(|roll| pick_weighted([1, 1].into_iter(), another_roll(roll)))
        .collect();
    let firsts = again.iter().filter(|i| **i == Some(0)).count();
    assert!(again.len().abs_diff(5000) <= 1, "{}", again.len());
    assert!(firsts.abs_diff(2500) < 150, "{firsts}");
}
