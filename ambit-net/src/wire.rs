//! Protobuf on one side, ambit-core's types on the other: what is refused, what is ignored, what is assumed.
//!
//! Called by `xds` (decode) and by the controller's store (encode). A resource that cannot be used is an error that
//! names it and leaves the rest of the response alone. Fields that are not known are ignored in workloads and services;
//! in policies they make the policy unreadable, so that it refuses what it selects (`policy.rs`). Our own facts are
//! extensions named `ambit.mesh/…`.

mod fields;
pub mod workload;
pub mod service;
pub mod policy;
pub mod handoff;

use std::net::IpAddr;

use ambit_core::names::{Hostname, NamespacedName, NetworkAddress, NetworkId, ServiceKey};
use ambit_core::policy::Authorization;
use ambit_core::service::Service;
use ambit_core::view::unreadable::Unreadable;
use ambit_core::workload::{GatewayAddress, GatewayDestination, Workload};
use ipnet::IpNet;
use prost::Message;
use prost_types::Any;
use thiserror::Error;

use crate::proto;
use crate::proto::workload::address::Type as AddressType;
use crate::proto::workload::gateway_address::Destination;

/// Type URL of workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// Extension of a workload or a policy: what it stands on refuses everything. Its config is `PolicyUnreadable`.
const POLICY_UNREADABLE: &str = "ambit.mesh/policy-unreadable";
/// Type URL of that extension's config.
const POLICY_UNREADABLE_TYPE: &str = "type.googleapis.com/ambit.mesh.v1.PolicyUnreadable";

/// Bits of an IPv6 prefix before the IPv4 address that is mapped into it (RFC 4291 §2.5.5.2).
const MAPPED_BITS: u32 = 96;

/// Why a resource cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The bytes are not a message of the type.
    #[error("is not a {message}: {source}")]
    Protobuf {
        /// The protobuf message that was expected.
        message: &'static str,
        /// What the decoder found.
        #[source]
        source: prost::DecodeError,
    },
    /// A field that has to be there is not.
    #[error("has no {0}")]
    Missing(&'static str),
    /// A field has a value that cannot be used.
    #[error("{field} has the value {value}, {why}")]
    Value {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It has something that this version of the mesh does not know.
    #[error("has {0}, which this version does not know")]
    Unknown(String),
    /// The sender says itself that it could not express the resource.
    #[error("{0}")]
    Unexpressed(String),
    /// The resource is sent under another name than its content has.
    #[error("is the content of {0}")]
    Name(String),
}

/// Bytes of a reason that are kept: a resource may hold a text of any length.
const MAX_REASON: usize = 500;

impl WireError {
    /// The reason in words, for logs, refusals and policies; of bounded length.
    pub fn brief(&self) -> String {
        let mut text = self.to_string();
        text.truncate(text.floor_char_boundary(MAX_REASON));
        text
    }
}

/// A workload or a service, as one resource of [`ADDRESS_TYPE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An endpoint.
    Workload(Box<Workload>),
    /// A name in front of endpoints.
    Service(Box<Service>),
}

/// Packs a workload; its resource name is its uid.
pub fn pack_workload(workload: &Workload) -> Any {
    let message = Box::new(workload::encode(workload));
    pack_address(AddressType::Workload(message))
}

/// Packs a service; its resource name is its key (`namespace/hostname`).
pub fn pack_service(service: &Service) -> Any {
    let message = Box::new(service::encode(service));
    pack_address(AddressType::Service(message))
}

/// Packs a policy; its resource name is its name (`namespace/name`).
pub fn pack_policy(policy: &Authorization) -> Any {
    Any {
        type_url: AUTHORIZATION_TYPE.to_owned(),
        value: policy::encode(policy).encode_to_vec(),
    }
}

/// Reads the body of the resource `name` of [`ADDRESS_TYPE`].
///
/// # Errors
/// When the bytes do not decode, when a workload or service cannot be used, or when it has another name than the
/// resource (it could not be removed later). The sender is at fault.
pub fn unpack_address(name: &str, body: &[u8]) -> Result<Address, WireError> {
    let message = proto::workload::Address::decode(body).map_err(|source| WireError::Protobuf {
        message: "istio.workload.Address",
        source,
    })?;
    match message.r#type.ok_or(WireError::Missing("type"))? {
        AddressType::Workload(message) => {
            let workload = workload::decode(*message)?;
            if workload.uid.as_str() != name {
                return Err(WireError::Name(workload.uid.to_string()));
            }
            Ok(Address::Workload(Box::new(workload)))
        }
        AddressType::Service(message) => {
            let service = service::decode(*message)?;
            if ServiceKey::parse(name).as_ref() != Some(&service.key) {
                return Err(WireError::Name(service.key.to_string()));
            }
            Ok(Address::Service(Box::new(service)))
        }
    }
}

/// What can still be told of a resource that [`unpack_address`] refused: which addresses it claims, so that nothing is sent
/// there as if they were outside the mesh.
///
/// None where not even the message can be decoded; a workload on host network claims none, they are its node's.
pub fn salvage_address(name: &str, body: &[u8]) -> Unreadable {
    let message = proto::workload::Address::decode(body).unwrap_or_default();
    let addresses = match message.r#type {
        Some(AddressType::Workload(message)) => workload::salvage(&message),
        Some(AddressType::Service(message)) => service::salvage(*message),
        None => Vec::new(),
    };
    Unreadable {
        name: name.to_owned(),
        addresses,
    }
}

fn pack_address(message: AddressType) -> Any {
    Any {
        type_url: ADDRESS_TYPE.to_owned(),
        value: proto::workload::Address {
            r#type: Some(message),
        }
        .encode_to_vec(),
    }
}

fn bad(field: &'static str, value: impl ToString, why: &'static str) -> WireError {
    WireError::Value {
        field,
        value: value.to_string(),
        why,
    }
}

/// An enum's value that a newer sender knows.
fn unknown(field: &'static str, value: i32) -> WireError {
    WireError::Unknown(format!("the value {value} in {field}"))
}

/// A port that something listens on.
fn decode_port(field: &'static str, port: u32) -> Result<u16, WireError> {
    match decode_port_or_zero(field, port)? {
        0 => Err(bad(field, port, "which is not a port")),
        port => Ok(port),
    }
}

/// A port, or zero where zero has a meaning of its own.
fn decode_port_or_zero(field: &'static str, port: u32) -> Result<u16, WireError> {
    u16::try_from(port).map_err(|_over| bad(field, port, "which is over 65535"))
}

/// An address in network byte order; IPv4-mapped IPv6 becomes IPv4.
fn decode_ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        return Ok(IpAddr::from(v6).to_canonical());
    }
    let value = format!("of {} bytes", bytes.len());
    Err(bad(field, value, "where an address has 4 or 16 bytes"))
}

/// A range of addresses without the bits behind its prefix; of IPv4-mapped addresses it becomes one of IPv4.
fn decode_net(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, WireError> {
    let ip = decode_ip(field, bytes)?;
    let was_mapped = ip.is_ipv4() && bytes.len() == 16;
    let before = if was_mapped { MAPPED_BITS } else { 0 };
    let length = length.checked_sub(before);
    let prefix = length.and_then(|length| u8::try_from(length).ok());
    let net = prefix.and_then(|prefix| IpNet::new(ip, prefix).ok());
    net.map(|net| net.trunc())
        .ok_or_else(|| bad(field, ip, "and a prefix that does not fit it"))
}

fn encode_ip(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn encode_network_address(address: &NetworkAddress) -> proto::workload::NetworkAddress {
    proto::workload::NetworkAddress {
        network: address.network.to_string(),
        address: encode_ip(address.ip),
        length: None,
    }
}

fn encode_gateway(gateway: &GatewayAddress) -> proto::workload::GatewayAddress {
    let destination = match &gateway.destination {
        GatewayDestination::Hostname(key) => {
            Destination::Hostname(proto::workload::NamespacedHostname {
                namespace: key.namespace.to_string(),
                hostname: key.hostname.to_string(),
            })
        }
        GatewayDestination::Address(address) => {
            Destination::Address(encode_network_address(address))
        }
    };
    proto::workload::GatewayAddress {
        hbone_mtls_port: gateway.hbone_mtls_port.into(),
        destination: Some(destination),
    }
}

fn decode_gateway(
    field: &'static str,
    gateway: proto::workload::GatewayAddress,
) -> Result<GatewayAddress, WireError> {
    let destination = match gateway.destination.ok_or(WireError::Missing(field))? {
        Destination::Hostname(name) => {
            GatewayDestination::Hostname(decode_service_key(field, name.namespace, &name.hostname)?)
        }
        Destination::Address(address) => {
            if address.length.is_some() {
                return Err(bad(field, "a range", "where one address is needed"));
            }
            let ip = decode_ip(field, &address.address)?;
            GatewayDestination::Address(NetworkAddress::new(NetworkId::new(address.network), ip))
        }
    };
    Ok(GatewayAddress {
        destination,
        hbone_mtls_port: decode_port(field, gateway.hbone_mtls_port)?,
    })
}

/// A key whose printed form can be read again, so that a removal by name finds it.
fn decode_service_key(
    field: &'static str,
    namespace: String,
    hostname: &str,
) -> Result<ServiceKey, WireError> {
    let key = ServiceKey {
        namespace: namespace.into(),
        hostname: Hostname::new(hostname),
    };
    let printed = key.to_string();
    if ServiceKey::parse(&printed).as_ref() != Some(&key) {
        return Err(bad(field, printed, "which is not namespace/hostname"));
    }
    Ok(key)
}

fn decode_policy_name(text: &str) -> Result<NamespacedName, WireError> {
    NamespacedName::parse(text)
        .ok_or_else(|| bad("policy name", text, "which is not namespace/name"))
}

fn encode_unreadable(reason: &str) -> proto::workload::Extension {
    let config = proto::facts::PolicyUnreadable {
        reason: reason.to_owned(),
    };
    proto::workload::Extension {
        name: POLICY_UNREADABLE.to_owned(),
        config: Some(Any {
            type_url: POLICY_UNREADABLE_TYPE.to_owned(),
            value: config.encode_to_vec(),
        }),
    }
}

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
