//! Strategies for values of the mesh in their normal form, for the round trips of the wire types.

use std::net::IpAddr;

use ambit_core::names::{NamespacedName, NetworkAddress, NetworkId, ServiceKey, Text};
use ambit_core::workload::{GatewayAddress, GatewayDestination};
use proptest::prelude::*;

pub(super) fn text() -> impl Strategy<Value = Text> {
    "[a-z0-9.-]{0,12}".prop_map(Text::from)
}

pub(super) fn name() -> impl Strategy<Value = Text> {
    "[a-z0-9-]{1,12}".prop_map(Text::from)
}

pub(super) fn namespaced() -> impl Strategy<Value = NamespacedName> {
    (name(), name()).prop_map(|(namespace, name)| NamespacedName { namespace, name })
}

pub(super) fn service_key() -> impl Strategy<Value = ServiceKey> {
    (name(), name()).prop_map(|(namespace, host)| ServiceKey::new(namespace, &format!("{host}.x")))
}

pub(super) fn ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|ip| ip.to_canonical())
}

pub(super) fn address() -> impl Strategy<Value = NetworkAddress> {
    (text(), ip()).prop_map(|(network, ip)| NetworkAddress::new(NetworkId::new(network), ip))
}

pub(super) fn port() -> impl Strategy<Value = u16> {
    1..=u16::MAX
}

pub(super) fn gateway() -> impl Strategy<Value = GatewayAddress> {
    let destination = prop_oneof![
        service_key().prop_map(GatewayDestination::Hostname),
        address().prop_map(GatewayDestination::Address),
    ];
    (destination, port()).prop_map(|(destination, hbone_mtls_port)| GatewayAddress {
        destination,
        hbone_mtls_port,
    })
}
