//! Services survive the wire, and what chooses endpoints is refused when it is not understood.

use ambit_core::names::ServiceKey;
use ipnet::IpNet;
use proptest::prelude::*;

use super::super::samples::{gateway, ip, name, port, service_key, text};
use super::*;

fn plain() -> pb::Service {
    pb::Service {
        namespace: "shop".into(),
        hostname: "web.shop.svc".into(),
        ..pb::Service::default()
    }
}

prop_compose! {
    fn service_address()(network in text(), ip in ip(), prefix in prop::option::of(0_u8..=32)) -> ServiceAddress {
        let range = prefix.map(|prefix| IpNet::new(ip, prefix).unwrap().trunc());
        let ip = range.map_or(ip, |range| range.addr());
        let address = NetworkAddress::new(NetworkId::new(network), ip);
        ServiceAddress { prefix, address }
    }
}

prop_compose! {
    fn service_port()(service_port in port(), target_port: u16, kind in 0..6) -> ServicePort {
        let message = pb::Port {
            service_port: service_port.into(), target_port: target_port.into(), app_protocol: kind,
        };
        decode_service_port(&message).unwrap()
    }
}

prop_compose! {
    fn weighted()(destination in gateway(), weight: u32) -> WeightedWaypoint {
        WeightedWaypoint { destination, weight }
    }
}

prop_compose! {
    fn balancing()(scopes in prop::collection::vec(1..7, 0..4), mode in 0..4, health_policy in 0..2) -> LoadBalancing {
        let message = pb::LoadBalancing { routing_preference: scopes, mode, health_policy };
        decode_load_balancing(message).unwrap()
    }
}

prop_compose! {
    fn identity()(trust_domain in name(), namespace in name(), account in name()) -> SpiffeId {
        SpiffeId::new(trust_domain, namespace, account)
    }
}

prop_compose! {
    fn service()(
        key in service_key(),
        name in text(),
        addresses in prop::collection::vec(service_address(), 0..4),
        ports in prop::collection::vec(service_port(), 0..4),
        subject_alt_names in prop::collection::vec(identity(), 0..3),
        waypoint in prop::option::of(gateway()),
        weighted_waypoints in prop::collection::vec(weighted(), 0..3),
        load_balancing in balancing(),
        families in 0..4,
        flags: [bool; 3],
    ) -> Service {
        let [canonical, is_public, ingress_use_waypoint] = flags;
        Service {
            key, name, addresses, ports, subject_alt_names, waypoint, weighted_waypoints, load_balancing,
            ip_families: decode_ip_families(families).unwrap(),
            canonical,
            visibility: if is_public { Visibility::Public } else { Visibility::Namespace },
            ingress_use_waypoint,
        }
    }
}

proptest! {
    #[test]
    fn comes_back_as_it_was_sent(service in service()) {
        prop_assert_eq!(decode(encode(&service)), Ok(service));
    }
}

#[test]
fn refuses_a_choice_of_endpoints_that_it_does_not_know() {
    let balancing = |scope, mode, health_policy| pb::Service {
        load_balancing: Some(pb::LoadBalancing {
            routing_preference: vec![scope],
            mode,
            health_policy,
        }),
        ..plain()
    };
    let families = pb::Service {
        ip_families: 4,
        ..plain()
    };
    let cases = [
        ("an unknown scope", balancing(7, 0, 0)),
        ("the unspecified scope", balancing(0, 1, 0)),
        ("an unknown mode", balancing(1, 4, 0)),
        ("an unknown health policy", balancing(1, 0, 2)),
        ("unknown families", families),
    ];
    for (case, message) in cases {
        assert!(decode(message).is_err(), "{case}");
    }
    assert!(decode(balancing(1, 1, 0)).is_ok());
}

#[test]
fn refuses_ports_addresses_and_names_out_of_range() {
    let port = |service_port, target_port| pb::Service {
        ports: vec![pb::Port {
            service_port,
            target_port,
            app_protocol: 0,
        }],
        ..plain()
    };
    let address = |address: &[u8], length| pb::Service {
        addresses: vec![pb::NetworkAddress {
            network: String::new(),
            address: address.to_vec(),
            length,
        }],
        ..plain()
    };
    let hostname = |namespace: &str, hostname: &str| pb::Service {
        namespace: namespace.into(),
        hostname: hostname.into(),
        ..plain()
    };
    let cases = [
        ("service port 0", port(0, 80)),
        ("service port 65536", port(65536, 80)),
        ("target port 65536", port(80, 65536)),
        ("an address of three bytes", address(&[10, 0, 0], None)),
        ("prefix 33 of IPv4", address(&[10, 0, 0, 0], Some(33))),
        ("no namespace", hostname("", "web")),
        ("no host name", hostname("shop", "")),
        ("a slash in the host name", hostname("shop", "a/b")),
    ];
    for (case, message) in cases {
        assert!(decode(message).is_err(), "{case}");
    }
    assert!(decode(port(80, 0)).is_ok());
    assert!(decode(address(&[10, 0, 0, 0], Some(32))).is_ok());
}

#[test]
fn refuses_waypoints_that_lead_nowhere() {
    let name = pb::NamespacedHostname {
        namespace: "shop".into(),
        hostname: "waypoint".into(),
    };
    let name = Some(pb::gateway_address::Destination::Hostname(name));
    let gateway = |destination: &Option<_>, hbone_mtls_port| pb::GatewayAddress {
        destination: Option::clone(destination),
        hbone_mtls_port,
    };
    let waypoint = |gateway| pb::Service {
        waypoint: Some(gateway),
        ..plain()
    };
    let share = |destination| pb::Service {
        weighted_waypoints: vec![pb::WeightedWaypoint {
            destination,
            weight: 1,
        }],
        ..plain()
    };
    assert!(decode(waypoint(gateway(&name, 15008))).is_ok());
    assert!(decode(waypoint(gateway(&name, 0))).is_err());
    assert!(decode(waypoint(gateway(&None, 15008))).is_err());
    assert!(decode(share(Some(gateway(&name, 15008)))).is_ok());
    assert!(decode(share(None)).is_err());
}

#[test]
fn reads_an_unknown_visibility_as_the_narrowest() {
    let message = pb::Service {
        visibility: 2,
        ..plain()
    };
    assert_eq!(decode(message).unwrap().visibility, Visibility::Namespace);
}

#[test]
fn leaves_out_names_that_are_no_identities() {
    let message = pb::Service {
        subject_alt_names: vec!["web.example.com".into(), "spiffe://td/ns/a/sa/b".into()],
        ..plain()
    };
    let expected = SpiffeId::new("td", "a", "b");
    assert_eq!(decode(message).unwrap().subject_alt_names, [expected]);
}

#[test]
fn reads_keys_without_case() {
    let message = pb::Service {
        hostname: "Web.Shop.svc.".into(),
        ..plain()
    };
    let key = ServiceKey::new("shop", "web.shop.svc");
    assert_eq!(decode(message).unwrap().key, key);
}
