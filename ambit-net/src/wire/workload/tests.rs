//! Workloads survive the wire, and what must not be guessed is refused.

use proptest::prelude::*;

use super::super::samples::{gateway, ip, name, namespaced, port, service_key, text};
use super::*;

fn named(uid: &str) -> pb::Workload {
    pb::Workload {
        uid: uid.to_owned(),
        ..pb::Workload::default()
    }
}

fn plain() -> pb::Workload {
    named("c//Pod/ns/name")
}

prop_compose! {
    fn place()(region in text(), zone in text(), subzone in text()) -> Locality {
        Locality { region, zone, subzone }
    }
}

prop_compose! {
    fn mapping()(service_port in port(), target_port: u16) -> PortMapping {
        PortMapping { service_port, target_port }
    }
}

prop_compose! {
    fn tunnel()(is_proxy: bool, port: u16) -> ApplicationTunnel {
        let preamble = if is_proxy { TunnelPreamble::Proxy } else { TunnelPreamble::None };
        ApplicationTunnel { preamble, port }
    }
}

prop_compose! {
    fn names()(
        uid in "[a-z]{1,8}//Pod/[a-z]{1,8}/[a-z]{1,8}",
        name in text(),
        namespace in text(),
        trust_domain in name(),
        service_account in name(),
        cluster in name(),
        network in text(),
        node in text(),
        workload_name in text(),
        hostname in prop::option::of(name()),
    ) -> Workload {
        Workload {
            trust_domain,
            service_account,
            cluster: ClusterId::new(cluster),
            network: NetworkId::new(network),
            node,
            workload_name,
            hostname,
            ..Workload::named(WorkloadUid::new(uid), &namespace, &name)
        }
    }
}

prop_compose! {
    fn workload()(
        names in names(),
        addresses in prop::collection::vec(ip(), 0..4),
        waypoint in prop::option::of(gateway()),
        network_gateway in prop::option::of(gateway()),
        application_tunnel in prop::option::of(tunnel()),
        locality in place(),
        authorization_policies in prop::collection::vec(namespaced(), 0..4),
        services in prop::collection::btree_map(
            service_key(), prop::collection::vec(mapping(), 0..4), 0..4),
        flags: [bool; 5],
        capacity: u32,
        kind in 0..4,
    ) -> Workload {
        let [hbone, host_network, native_tunnel, policy_unreadable, healthy] = flags;
        Workload {
            addresses,
            waypoint,
            network_gateway,
            application_tunnel,
            locality,
            authorization_policies,
            services,
            tunnel_protocol: if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None },
            network_mode: if host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            native_tunnel,
            policy_unreadable,
            health: if healthy { Health::Healthy } else { Health::Unhealthy },
            capacity,
            workload_type: decode_workload_type(kind),
            ..names
        }
    }
}

proptest! {
    #[test]
    fn comes_back_as_it_was_sent(workload in workload()) {
        prop_assert_eq!(decode(encode(&workload)), Ok(workload));
    }
}

#[test]
fn assumes_istios_defaults() {
    let workload = decode(plain()).unwrap();
    assert_eq!(&*workload.trust_domain, "cluster.local");
    assert_eq!(&*workload.service_account, "default");
    assert_eq!(workload.cluster, ClusterId::new("Kubernetes"));
    assert_eq!(workload.capacity, 1);
    assert_eq!(workload.tunnel_protocol, TunnelProtocol::None);
}

#[test]
fn refuses_legacy_istio_mtls() {
    let message = pb::Workload {
        tunnel_protocol: pb::TunnelProtocol::LegacyIstioMtls.into(),
        ..plain()
    };
    let error = decode(message).unwrap_err().to_string();
    assert!(error.contains("LEGACY_ISTIO_MTLS"), "{error}");
}

#[test]
fn refuses_modes_that_it_does_not_know() {
    let mut message = plain();
    message.tunnel_protocol = 3;
    assert!(decode(message).is_err());
    let mut message = plain();
    message.network_mode = 2;
    assert!(decode(message).is_err());
}

#[test]
fn refuses_names_and_destinations_that_lead_nowhere() {
    let with_waypoint = pb::Workload {
        waypoint: Some(pb::GatewayAddress::default()),
        ..plain()
    };
    let with_address = pb::Workload {
        addresses: vec![vec![10, 0, 0, 1], vec![0; 5]],
        ..plain()
    };
    let cases = [
        ("no uid", named("")),
        ("a uid like a service's key", named("ns/host")),
        ("a waypoint without destination", with_waypoint),
        ("an address of five bytes", with_address),
    ];
    for (case, message) in cases {
        assert!(decode(message).is_err(), "{case}");
    }
}

#[test]
fn refuses_ports_out_of_range() {
    let service = |name: &str, service_port, target_port| {
        let port = pb::Port {
            service_port,
            target_port,
            app_protocol: 0,
        };
        let list = pb::PortList { ports: vec![port] };
        pb::Workload {
            services: BTreeMap::from([(name.to_owned(), list)]),
            ..plain()
        }
    };
    let tunnel = |protocol, port| pb::Workload {
        application_tunnel: Some(pb::ApplicationTunnel { protocol, port }),
        ..plain()
    };
    let cases = [
        ("a service without namespace", service("host", 80, 80)),
        ("service port 0", service("ns/host", 0, 80)),
        ("service port 65536", service("ns/host", 65536, 80)),
        ("target port 65536", service("ns/host", 80, 65536)),
        ("an unknown preamble", tunnel(2, 80)),
        ("tunnel port 65536", tunnel(1, 65536)),
    ];
    for (case, message) in cases {
        assert!(decode(message).is_err(), "{case}");
    }
    assert!(decode(service("ns/host", 80, 0)).is_ok());
}

#[test]
fn takes_unknown_descriptions_for_their_defaults() {
    let message = pb::Workload {
        status: 9,
        workload_type: 9,
        ..plain()
    };
    let workload = decode(message).unwrap();
    assert_eq!(workload.health, Health::Unhealthy);
    assert_eq!(workload.workload_type, WorkloadType::Pod);
}

#[test]
fn a_policy_reference_that_cannot_be_read_makes_policies_unreadable() {
    let message = pb::Workload {
        authorization_policies: vec!["ns/good".into(), "bad".into()],
        ..plain()
    };
    let workload = decode(message).unwrap();
    assert!(workload.policy_unreadable);
    let good = NamespacedName::new("ns", "good");
    assert_eq!(workload.authorization_policies, [good]);
}

#[test]
fn unknown_extensions_are_ignored() {
    let extension = pb::Extension {
        name: "example.com/other".into(),
        config: None,
    };
    let message = pb::Workload {
        extensions: vec![extension],
        ..plain()
    };
    assert!(!decode(message).unwrap().policy_unreadable);
}
