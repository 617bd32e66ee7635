//! Which pods a gateway's address means.

use super::*;
use crate::names::NetworkId;
use crate::service::{Service, Visibility};
use crate::testing::{behind, ip, pod, service, uid, view, waypoint, waypoint_at};
use crate::workload::{ApplicationTunnel, Health, TunnelPreamble};

/// A mesh with one waypoint `gate` of one pod and one client.
fn mesh() -> MeshView {
    let gate = behind(pod("gate-1", &["10.0.0.5", "fd00::5"]), "gate", &[]);
    let gates = service("gate", &["10.1.0.5"], &[(15008, 15008)]);
    view([gate, pod("client", &["10.0.0.1"])], [gates])
}

fn reach_with(
    view: &MeshView,
    gateway: &GatewayAddress,
    wanted: &str,
    exclude: &[WorkloadUid],
) -> Result<(String, Vec<String>), Reason> {
    let source = view.pod("shop", "client").unwrap();
    let wanted = SocketAddr::new(ip(wanted), 80);
    let journey = Journey {
        source,
        wanted,
        exclude,
        roll: 3,
    };
    reach(view, gateway, &journey).map(|pod| {
        (
            pod.via.to_string(),
            pod.expect.iter().map(ToString::to_string).collect(),
        )
    })
}

#[test]
fn a_gateway_is_reached_by_name_by_vip_and_by_address() {
    let view = mesh();
    let own_port = GatewayAddress {
        hbone_mtls_port: 15443,
        ..waypoint_at("fd00::5")
    };
    #[rustfmt::skip] // a row a case
    let cases = [
        ("name", waypoint("gate"), "10.1.0.1", "10.0.0.5:15008"),
        ("name, in the family of the wanted", waypoint("gate"), "fd01::1", "[fd00::5]:15008"),
        ("vip", waypoint_at("10.1.0.5"), "10.1.0.1", "10.0.0.5:15008"),
        ("vip, in the family of the wanted", waypoint_at("10.1.0.5"), "fd01::1", "[fd00::5]:15008"),
        ("address, as it is", waypoint_at("fd00::5"), "10.1.0.1", "[fd00::5]:15008"),
        ("port of its own", own_port, "10.1.0.1", "[fd00::5]:15443"),
    ];
    for (name, gateway, wanted, want) in cases {
        let (via, expect) = reach_with(&view, &gateway, wanted, &[]).unwrap();
        assert_eq!(via, want, "{name}");
        assert_eq!(
            expect,
            ["spiffe://cluster.local/ns/shop/sa/gate-1"],
            "{name}"
        );
    }
}

#[test]
fn a_gateways_service_maps_its_port_and_allows_identities() {
    let mut view = mesh();
    let other = SpiffeId::new("cluster.local", "shop", "other");
    let own = SpiffeId::new("cluster.local", "shop", "gate-1");
    let gates = Service {
        subject_alt_names: vec![own, other],
        ..service("gate", &[], &[(15008, 25008)])
    };
    view.apply([crate::view::update::Update::Service(Box::new(gates))]);
    let (via, expect) = reach_with(&view, &waypoint("gate"), "10.1.0.1", &[]).unwrap();
    assert_eq!(via, "10.0.0.5:25008");
    assert_eq!(
        expect,
        [
            "spiffe://cluster.local/ns/shop/sa/gate-1",
            "spiffe://cluster.local/ns/shop/sa/other"
        ]
    );
}

#[test]
fn a_gateway_behind_ztunnel_needs_no_port_of_its_own() {
    let tunnel = ApplicationTunnel {
        preamble: TunnelPreamble::None,
        port: 9000,
    };
    let gate = behind(pod("gate-1", &["10.0.0.5"]), "gate", &[]);
    let gate = Workload {
        application_tunnel: Some(tunnel),
        ..gate
    };
    let view = view([gate, pod("client", &[])], [service("gate", &[], &[])]);
    let (via, _) = reach_with(&view, &waypoint("gate"), "10.1.0.1", &[]).unwrap();
    assert_eq!(via, "10.0.0.5:15008");
}

#[test]
fn a_gateway_that_cannot_be_reached_is_an_error() {
    let unavailable = Err(Reason::WaypointUnavailable);
    let tried = [uid("gate-1")];
    #[rustfmt::skip] // a row a case
    let cases: [(&str, GatewayAddress, &[WorkloadUid]); 6] = [
        ("no such service", waypoint("nobody"), &[]),
        ("no such address", waypoint_at("10.9.9.9"), &[]),
        ("port not known", GatewayAddress { hbone_mtls_port: 1, ..waypoint("gate") }, &[]),
        ("tried, by name", waypoint("gate"), &tried),
        ("tried, by vip", waypoint_at("10.1.0.5"), &tried),
        ("tried, by address", waypoint_at("10.0.0.5"), &tried),
    ];
    for (name, gateway, exclude) in cases {
        assert_eq!(
            reach_with(&mesh(), &gateway, "10.1.0.1", exclude),
            unavailable,
            "{name}"
        );
    }
    let sick = Workload {
        health: Health::Unhealthy,
        ..behind(pod("gate-1", &["10.0.0.5"]), "gate", &[])
    };
    let away = Workload {
        network: NetworkId::new("n2"),
        health: Health::Healthy,
        ..sick.clone()
    };
    let of = |gate| {
        view(
            [gate, pod("client", &[])],
            [service("gate", &[], &[(15008, 15008)])],
        )
    };
    assert_eq!(
        reach_with(&of(sick), &waypoint("gate"), "10.1.0.1", &[]),
        unavailable
    );
    assert_eq!(
        reach_with(&of(away.clone()), &waypoint("gate"), "10.1.0.1", &[]),
        Err(Reason::OtherNetwork)
    );
    let elsewhere = GatewayAddress {
        destination: GatewayDestination::Address(NetworkAddress::new(
            NetworkId::new("n2"),
            ip("10.0.0.5"),
        )),
        hbone_mtls_port: 15008,
    };
    assert_eq!(
        reach_with(&of(away), &elsewhere, "10.1.0.1", &[]),
        Err(Reason::OtherNetwork)
    );
}

#[test]
fn only_a_gateways_own_pods_are_behind_it() {
    let view = mesh();
    let gate = view.pod("shop", "gate-1").unwrap();
    let client = view.pod("shop", "client").unwrap();
    let forms = [
        waypoint("gate"),
        waypoint_at("10.1.0.5"),
        waypoint_at("10.0.0.5"),
        waypoint_at("fd00::5"),
    ];
    for gateway in forms {
        assert!(is_behind(&view, &gateway, gate), "{gateway:?}");
        assert!(!is_behind(&view, &gateway, client), "{gateway:?}");
    }
    for gateway in [waypoint("nobody"), waypoint_at("10.9.9.9")] {
        assert!(!is_behind(&view, &gateway, gate), "{gateway:?}");
    }
}

#[test]
fn a_hidden_gateway_is_no_gateway_for_others_by_vip() {
    let gate = behind(pod("gate-1", &["10.0.0.5"]), "gate", &[]);
    let mut client = pod("client", &["10.0.0.1"]);
    client.namespace = "other".into();
    let hidden = Service {
        visibility: Visibility::Namespace,
        ..service("gate", &["10.1.0.5"], &[(15008, 15008)])
    };
    let view = view([gate, client.clone()], [hidden]);
    let wanted = "10.1.0.1:80".parse().unwrap();
    let journey = Journey {
        source: &client,
        wanted,
        exclude: &[],
        roll: 3,
    };
    assert_eq!(
        reach(&view, &waypoint_at("10.1.0.5"), &journey),
        Err(Reason::WaypointUnavailable)
    );
}
