//! The rules of every kind of pod, as golden text that `nft -f` accepts.

use super::*;

fn pod() -> PodNet {
    PodNet {
        families: Families::DUAL,
        probes: Probes::ISTIO,
        bypass_inbound: false,
        virtual_interfaces: Vec::new(),
    }
}

/// Compares with the golden file; a difference prints both as a whole, so that the file can be replaced by hand.
#[track_caller]
fn is_golden(name: &str, pod: &PodNet, phase: Phase) {
    let path = format!(
        "{}/src/redirect/golden/{name}.nft",
        env!("CARGO_MANIFEST_DIR")
    );
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    let printed = for_pod(pod, phase).to_string();
    assert!(
        printed == golden,
        "{path} says\n{golden}\nbut the rules are\n{printed}"
    );
}

#[test]
fn dual_stack_pod() {
    is_golden("dual", &pod(), Phase::Captured);
}

#[test]
fn ipv4_pod_has_no_ipv6_exemptions_but_captures_ipv6() {
    let families = Families {
        v4: true,
        v6: false,
    };
    is_golden("v4", &PodNet { families, ..pod() }, Phase::Captured);
}

#[test]
fn ipv6_pod_has_no_ipv4_exemptions_but_captures_ipv4() {
    let families = Families {
        v4: false,
        v6: true,
    };
    is_golden("v6", &PodNet { families, ..pod() }, Phase::Captured);
}

#[test]
fn without_probes_nothing_is_exempt() {
    let probes = Probes::default();
    is_golden("no-probes", &PodNet { probes, ..pod() }, Phase::Captured);
}

#[test]
fn pod_that_takes_inbound_itself() {
    let pod = PodNet {
        bypass_inbound: true,
        ..pod()
    };
    is_golden("bypass-inbound", &pod, Phase::Captured);
}

#[test]
fn machines_behind_the_pod_count_as_outbound() {
    let virtual_interfaces = ["vnet0", "br-vm"].map(|name| InterfaceName::new(name).unwrap());
    let pod = PodNet {
        virtual_interfaces: Vec::from(virtual_interfaces),
        ..pod()
    };
    is_golden("virtual-interfaces", &pod, Phase::Captured);
}

#[test]
fn joining_pod_lets_new_connections_wait() {
    is_golden("joining", &pod(), Phase::Joining);
}

#[test]
fn leaving_pod_redirects_nothing_and_holds_connection_tracking() {
    is_golden("leaving", &pod(), Phase::Leaving);
    let bypass = PodNet {
        bypass_inbound: true,
        ..pod()
    };
    is_golden("leaving", &bypass, Phase::Leaving);
}

#[test]
fn interface_names_are_those_of_the_kernel() {
    for good in ["a", "eth0", "vnet-1.2@x", "fifteen-letters"] {
        assert_eq!(InterfaceName::new(good).unwrap().as_str(), good);
    }
    for bad in [
        "",
        ".",
        "..",
        "a b",
        "a/b",
        "a:b",
        "a\"b",
        "sixteen-letters!",
        "vnet*",
        "ü",
    ] {
        assert_eq!(InterfaceName::new(bad), None, "{bad:?}");
    }
}
