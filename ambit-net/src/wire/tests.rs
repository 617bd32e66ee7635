//! What holds for every resource, whichever type it has.

use ambit_core::names::WorkloadUid;
use ambit_core::service::ServiceAddress;
use proptest::prelude::*;

use super::*;

fn workload() -> Workload {
    Workload::named(WorkloadUid::new("c//Pod/shop/web"), "shop", "web")
}

fn service() -> Service {
    Service::named(ServiceKey::new("shop", "web.shop.svc.cluster.local"), "web")
}

#[test]
fn packed_resources_are_read_under_their_own_name() {
    let packed = pack_workload(&workload());
    assert_eq!(packed.type_url, ADDRESS_TYPE);
    let read = unpack_address("c//Pod/shop/web", &packed.value);
    assert_eq!(read, Ok(Address::Workload(Box::new(workload()))));
    let packed = pack_service(&service());
    let read = unpack_address("shop/web.shop.svc.cluster.local", &packed.value);
    assert_eq!(read, Ok(Address::Service(Box::new(service()))));
}

#[test]
fn refuses_a_resource_under_a_foreign_name() {
    let packed = pack_workload(&workload());
    let read = unpack_address("c//Pod/shop/other", &packed.value);
    assert_eq!(read, Err(WireError::Name("c//Pod/shop/web".into())));
    let packed = pack_service(&service());
    let read = unpack_address("other/web.shop.svc.cluster.local", &packed.value);
    let key = "shop/web.shop.svc.cluster.local";
    assert_eq!(read, Err(WireError::Name(key.into())));
}

#[test]
fn refuses_an_address_that_is_neither_workload_nor_service() {
    assert_eq!(unpack_address("x", &[]), Err(WireError::Missing("type")));
    let read = unpack_address("x", &[0x0a, 0x05]);
    assert!(matches!(read, Err(WireError::Protobuf { .. })), "{read:?}");
}

#[test]
fn of_what_it_refuses_the_addresses_are_salvaged() {
    let pack = |message| pack_address(message).value;
    let workload = |network_mode: i32| {
        pack(AddressType::Workload(Box::new(proto::workload::Workload {
            network: "n".into(),
            addresses: vec![vec![10, 0, 0, 1], vec![7], vec![0; 16]],
            network_mode,
            ..Default::default()
        })))
    };
    let vip = |address: Vec<u8>, length| proto::workload::NetworkAddress {
        network: "n".into(),
        address,
        length,
    };
    let service = pack(AddressType::Service(Box::new(proto::workload::Service {
        addresses: vec![
            vip(vec![10, 1, 0, 1], None),
            vip(vec![10, 2, 0, 0], Some(16)),
            vip(vec![10, 3, 0, 0], Some(99)),
            vip(vec![10], None),
        ],
        ..Default::default()
    })));
    let host_network = proto::workload::NetworkMode::HostNetwork.into();
    for (name, body, expected) in [
        ("workload", workload(0), "n/10.0.0.1 n/::"),
        ("of an unknown mode", workload(9), "n/10.0.0.1 n/::"),
        ("of host network", workload(host_network), ""),
        ("service", service, "n/10.1.0.1 n/10.2.0.0 to 16 n/10.3.0.0"),
        ("of no type", Vec::new(), ""),
        ("garbage", vec![0xff], ""),
    ] {
        assert!(unpack_address("x", &body).is_err(), "{name}");
        let salvaged = salvage_address("x", &body);
        let claim = |claim: &ServiceAddress| match claim.prefix {
            None => claim.address.to_string(),
            Some(prefix) => format!("{} to {prefix}", claim.address),
        };
        let claims: Vec<_> = salvaged.addresses.iter().map(claim).collect();
        assert_eq!(claims.join(" "), expected, "{name}");
        assert_eq!(salvaged.name, "x");
    }
}

#[test]
fn ignores_unknown_fields_of_an_address() {
    let mut body = pack_workload(&workload()).value;
    // Field 77, varint 1, beside the workload.
    body.extend([0xe8, 0x04, 0x01]);
    let read = unpack_address("c//Pod/shop/web", &body);
    assert_eq!(read, Ok(Address::Workload(Box::new(workload()))));
}

#[test]
fn reads_ranges_without_the_bits_behind_the_prefix() {
    let v4 = decode_net("f", &[10, 1, 2, 3], 8);
    assert_eq!(v4, Ok("10.0.0.0/8".parse().unwrap()));
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3];
    assert_eq!(
        decode_net("f", &mapped, 104),
        Ok("10.0.0.0/8".parse().unwrap())
    );
    for (bytes, length) in [
        (&mapped[..], 95),
        (&mapped[..], 129),
        (&[10, 1, 2, 3], 33),
        (&[10, 1, 2, 3], u32::MAX),
        (&[10, 1, 2], 8),
        (&[0; 16], 129),
        (&[], 0),
    ] {
        assert!(
            decode_net("f", bytes, length).is_err(),
            "{bytes:?}/{length}"
        );
    }
}

#[test]
fn reasons_have_a_bound() {
    let reason = WireError::Name("ü".repeat(1000)).brief();
    assert!(
        reason.len() <= MAX_REASON && reason.ends_with('ü'),
        "{reason}"
    );
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(name in ".{0,20}", body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ignored = unpack_address(&name, &body);
        let _ignored = salvage_address(&name, &body);
        let _ignored = policy::decode(&name, &body, "ambit-system");
    }

    #[test]
    fn damaged_addresses_never_panic(at: prop::sample::Index, bit in 0_u32..8) {
        let gateway = GatewayAddress {
            destination: GatewayDestination::Hostname(service().key),
            hbone_mtls_port: 15008,
        };
        let workload = Workload { waypoint: Some(gateway.clone()), ..workload() };
        let service = Service { waypoint: Some(gateway), ..service() };
        for mut body in [pack_workload(&workload).value, pack_service(&service).value] {
            let at = at.index(body.len());
            body[at] ^= 1 << bit;
            let _ignored = unpack_address("c//Pod/shop/web", &body);
            let _ignored = salvage_address("c//Pod/shop/web", &body);
        }
    }
}
