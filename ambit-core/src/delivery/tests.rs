//! Which targets a pod takes, and where they lead.

use proptest::prelude::*;

use super::*;
use crate::names::ServiceKey;
use crate::testing::{behind, host, ip, key, pod, service, view, waypoint, waypoint_at};

const LOCAL: &str = "10.0.0.2:15008";

fn tunnel(preamble: TunnelPreamble, port: u16) -> Option<ApplicationTunnel> {
    Some(ApplicationTunnel { preamble, port })
}

fn mesh() -> MeshView {
    let bound = Workload {
        waypoint: Some(waypoint("gate")),
        ..pod("bound", &["10.0.0.6"])
    };
    let bound_at = Workload {
        waypoint: Some(waypoint_at("10.0.0.5")),
        ..pod("bound-at", &["10.0.0.7"])
    };
    let workloads = [
        behind(
            behind(pod("web", &["10.0.0.2", "fd00::2"]), "web", &[(81, 8181)]),
            "also",
            &[],
        ),
        pod("other", &["10.0.0.3"]),
        behind(pod("gate", &["10.0.0.5"]), "gate", &[]),
        Workload {
            application_tunnel: tunnel(TunnelPreamble::None, 9000),
            ..behind(pod("plain-gate", &["10.0.0.8"]), "plain-gate", &[])
        },
        Workload {
            application_tunnel: tunnel(TunnelPreamble::Proxy, 9000),
            ..pod("proxy-gate", &["10.0.0.9"])
        },
        Workload {
            application_tunnel: tunnel(TunnelPreamble::None, 15006),
            ..pod("loop-gate", &["10.0.0.10"])
        },
        bound,
        bound_at,
    ];
    let guarded = Service {
        waypoint: Some(waypoint("gate")),
        ..service("guarded", &["10.1.0.3"], &[(80, 8080)])
    };
    let canary = crate::service::WeightedWaypoint {
        destination: waypoint("gate"),
        weight: 0,
    };
    let tested = Service {
        weighted_waypoints: vec![canary],
        ..service("tested", &["10.1.0.4"], &[(80, 8080)])
    };
    let services = [
        service(
            "web",
            &["10.1.0.1"],
            &[(80, 8080), (81, 0), (82, 0), (83, 15006)],
        ),
        service("also", &["10.1.0.2"], &[(90, 8080), (91, 9191)]),
        service("other", &["10.1.0.5"], &[(80, 8080)]),
        guarded,
        tested,
    ];
    view(workloads, services)
}

/// The address, or the reason's word.
fn told(pod: &str, local: &str, target: &str) -> String {
    let view = mesh();
    let pod = view.pod("shop", pod).unwrap();
    let target = ConnectTarget::parse(target).unwrap();
    match deliver(&view, pod, local.parse().unwrap(), &target, None) {
        Ok(delivery) => delivery.to.to_string(),
        Err(reason) => reason.code().to_owned(),
    }
}

#[test]
fn a_pod_takes_its_own_targets_only() {
    let web = host("web");
    #[rustfmt::skip] // a row a case
    let cases = [
        ("own address", LOCAL, "10.0.0.2:8080", "10.0.0.2:8080"),
        ("own address, a port of no service", LOCAL, "10.0.0.2:9", "10.0.0.2:9"),
        ("own address, IPv6", "[fd00::2]:15008", "[fd00::2]:9", "[fd00::2]:9"),
        ("own address, mapped", "[::ffff:10.0.0.2]:15008", "10.0.0.2:9", "10.0.0.2:9"),
        ("another address of its own", LOCAL, "[fd00::2]:9", "not_our_target"),
        ("another pod", LOCAL, "10.0.0.3:8080", "not_our_target"),
        ("loopback", LOCAL, "127.0.0.1:8080", "not_our_target"),
        ("unknown", LOCAL, "192.0.2.1:80", "not_our_target"),
        ("VIP of its service", LOCAL, "10.1.0.1:80", "not_our_target"),
        ("pod of another waypoint", LOCAL, "10.0.0.6:80", "not_our_target"),
        ("service of another waypoint", LOCAL, "10.1.0.3:80", "not_our_target"),
        ("capture port", LOCAL, "10.0.0.2:15008", "capture_port"),
        ("capture port, outbound", LOCAL, "10.0.0.2:15001", "capture_port"),
        ("capture port, inbound", LOCAL, "10.0.0.2:15006", "capture_port"),
        ("service by name", LOCAL, &format!("{web}:80"), "10.0.0.2:8080"),
        ("service by name, at the address of arrival", "[fd00::2]:15008", &format!("{web}:80"), "[fd00::2]:8080"),
        ("service by name, own port", LOCAL, &format!("{web}:81"), "10.0.0.2:8181"),
        ("service by name, port of nobody", LOCAL, &format!("{web}:82"), "target_unknown"),
        ("service by name, no such port", LOCAL, &format!("{web}:8080"), "target_unknown"),
        ("service by name, to a capture port", LOCAL, &format!("{web}:83"), "capture_port"),
        ("service of others by name", LOCAL, &format!("{}:80", host("other")), "not_our_target"),
        ("unknown name", LOCAL, "nobody.example:80", "target_unknown"),
    ];
    for (name, local, target, want) in cases {
        assert_eq!(told("web", local, target), want, "{name}");
    }
}

#[test]
fn a_waypoint_takes_what_is_bound_to_it_at_its_own_address() {
    let local = "10.0.0.5:15008";
    #[rustfmt::skip] // a row a case
    let cases = [
        ("own address", "10.0.0.5:80", "10.0.0.5:80"),
        ("pod", "10.0.0.6:80", "10.0.0.5:80"),
        ("pod, bound by address", "10.0.0.7:80", "10.0.0.5:80"),
        ("service", "10.1.0.3:80", "10.0.0.5:80"),
        ("service, by a weight of zero", "10.1.0.4:80", "10.0.0.5:80"),
        ("service by name", &format!("{}:80", host("guarded")), "10.0.0.5:80"),
        ("pod of nobody", "10.0.0.3:80", "not_our_target"),
        ("service of nobody", "10.1.0.1:80", "not_our_target"),
        ("capture port", "10.0.0.6:15006", "capture_port"),
    ];
    for (name, target, want) in cases {
        assert_eq!(told("gate", local, target), want, "{name}");
    }
}

#[test]
fn an_application_tunnel_takes_the_place_of_the_port() {
    #[rustfmt::skip] // a row a case
    let cases = [
        ("anything goes", "plain-gate", "10.0.0.8:15008", "192.0.2.1:80", "10.0.0.8:9000"),
        ("by name", "plain-gate", "10.0.0.8:15008", &format!("{}:80", host("web")), "10.0.0.8:9000"),
        ("but not a capture port", "plain-gate", "10.0.0.8:15008", "192.0.2.1:15001", "capture_port"),
        ("nor into one", "loop-gate", "10.0.0.10:15008", "192.0.2.1:80", "capture_port"),
        ("PROXY protocol is not served", "proxy-gate", "10.0.0.9:15008", "192.0.2.1:80", "not_served"),
    ];
    for (name, pod, local, target, want) in cases {
        assert_eq!(told(pod, local, target), want, "{name}");
    }
}

#[test]
fn the_service_is_the_named_one_or_one_that_leads_there() {
    #[rustfmt::skip] // a row a case
    let cases = [
        ("by port: the first", "10.0.0.2:8080", None, Some("also")),
        ("by port of the endpoint", "10.0.0.2:8181", None, Some("web")),
        ("by no port", "10.0.0.2:9", None, None),
        ("claimed", "10.0.0.2:8080", Some("web"), Some("web")),
        ("claimed, whatever the port", "10.0.0.2:9", Some("web"), Some("web")),
        ("claimed but of others", "10.0.0.2:8080", Some("other"), Some("also")),
        ("claimed but unknown", "10.0.0.2:8080", Some("nobody"), Some("also")),
        ("named", &format!("{}:80", host("web")), Some("also"), Some("web")),
    ];
    let view = mesh();
    let web = view.pod("shop", "web").unwrap();
    for (name, target, claimed, want) in cases {
        let target = ConnectTarget::parse(target).unwrap();
        let claimed = claimed.map(|c| Hostname::new(&host(c)));
        let delivery = deliver(
            &view,
            web,
            LOCAL.parse().unwrap(),
            &target,
            claimed.as_ref(),
        )
        .unwrap();
        assert_eq!(
            delivery.service.map(|s| s.key.clone()),
            want.map(key),
            "{name}"
        );
    }
}

#[test]
fn a_name_means_the_service_of_the_pods_own_namespace() {
    let mut elsewhere = service("web", &[], &[(80, 1)]);
    elsewhere.key = ServiceKey::new("other", &host("web"));
    elsewhere.canonical = true;
    let view = view(
        [behind(pod("web", &["10.0.0.2"]), "web", &[])],
        [elsewhere, service("web", &[], &[(80, 8080)])],
    );
    let target = ConnectTarget::parse(&format!("{}:80", host("web"))).unwrap();
    let delivery = deliver(
        &view,
        view.pod("shop", "web").unwrap(),
        LOCAL.parse().unwrap(),
        &target,
        None,
    )
    .unwrap();
    assert_eq!(delivery.to, "10.0.0.2:8080".parse().unwrap());
    assert_eq!(delivery.service.map(|s| s.key.clone()), Some(key("web")));
}

proptest! {
    /// No request leads out of the pod or into a capture port.
    #[test]
    fn nothing_leaves_the_address_of_arrival(
        pod in prop::sample::select(vec!["web", "gate", "plain-gate", "loop-gate", "bound"]),
        target in prop::sample::select(vec!["10.0.0.2", "10.0.0.5", "10.0.0.6", "10.0.0.8", "10.1.0.1", "10.1.0.3", "127.0.0.1"]),
        port in prop_oneof![1..=u16::MAX, prop::sample::select(vec![15001, 15006, 15008])],
    ) {
        let view = mesh();
        let pod = view.pod("shop", pod).unwrap();
        let local = SocketAddr::new(pod.addresses[0], 15008);
        let target = ConnectTarget::Address(SocketAddr::new(ip(target), port));
        if let Ok(delivery) = deliver(&view, pod, local, &target, None) {
            prop_assert_eq!(delivery.to.ip(), local.ip());
            prop_assert!(!ports::is_capture_port(delivery.to.port()));
        }
    }
}
