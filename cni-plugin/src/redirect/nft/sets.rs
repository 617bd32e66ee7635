//! Named sets of addresses with ports ⇄ kernel: the messages that make one, and what of one is compared.
//!
//! Called by `nft.rs`. A key is an address and a port, each filled up to whole registers of 32 bits, as a rule puts them one
//! behind the other (`expressions.rs`). Numbers: `uapi/linux/netfilter/nf_tables.h`, types of keys as `nft` prints them.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute,
    SetElementList, SetElementMessage, SetMessage,
};

use super::{Attributes, canonical, dump_of};
use crate::redirect::netlink::{Conversation, NetlinkError};
use crate::redirect::ruleset::Set;

/// Types of keys by which `nft` knows how to print them; one behind the other is `first << 6 | second`.
const IPV4_AND_PORT: u32 = 7 << 6 | 13;
const IPV6_AND_PORT: u32 = 8 << 6 | 13;
/// Length of a port in a key, bytes.
const PORT: u32 = 4;
/// Elements in one message: together they are one attribute, whose length has 16 bits.
const MOST_ELEMENTS: usize = 1000;

/// Makes a set and fills it. `id` tells sets of one transaction apart.
pub(super) fn messages(table: &str, set: &Set, id: u32) -> Vec<NfTablesMessage> {
    let attributes = attributes(table, set, id);
    let mut all = vec![NfTablesMessage::NewSet(SetMessage { attributes })];
    for keys in keys(set).chunks(MOST_ELEMENTS) {
        let elements = keys.iter().map(|key| {
            let key = SetElementAttribute::Key(DataAttribute::Value(key.clone()));
            ListAttribute::Element(vec![key])
        });
        let attributes = vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(set.name.to_owned()),
            SetElementList::Elements(elements.collect()),
        ];
        all.push(NfTablesMessage::NewSetElement(SetElementMessage {
            attributes,
        }));
    }
    all
}

pub(super) fn attributes(table: &str, set: &Set, id: u32) -> Vec<SetAttribute> {
    let (kind, length) = match set.v6 {
        false => (IPV4_AND_PORT, 4 + PORT),
        true => (IPV6_AND_PORT, 16 + PORT),
    };
    vec![
        SetAttribute::Table(table.to_owned()),
        SetAttribute::Name(set.name.to_owned()),
        SetAttribute::KeyType(kind),
        SetAttribute::KeyLen(length),
        SetAttribute::Id(id),
    ]
}

/// The keys of a set's elements.
pub(super) fn keys(set: &Set) -> Vec<Vec<u8>> {
    let fitting = set.elements.iter().filter(|addr| addr.is_ipv6() == set.v6);
    fitting.map(key).collect()
}

fn key(addr: &SocketAddr) -> Vec<u8> {
    let mut key = match addr.ip() {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    };
    key.extend(addr.port().to_be_bytes());
    key.extend([0, 0]);
    key
}

/// Name and form of each set that a table has in the kernel.
pub(super) fn of_table(
    kernel: &mut Conversation,
    table: &str,
) -> Result<Vec<(String, Attributes)>, NetlinkError> {
    let attributes = vec![SetAttribute::Table(table.to_owned())];
    let request = NfTablesMessage::GetSet(SetMessage { attributes });
    let found = dump_of(kernel, request)?.filter_map(|message| match message {
        NfTablesMessage::NewSet(set) => named(&set.attributes, table),
        _ => None,
    });
    Ok(found.collect())
}

fn named(attributes: &[SetAttribute], table: &str) -> Option<(String, Attributes)> {
    let is_of_table = |a: &SetAttribute| matches!(a, SetAttribute::Table(name) if name == table);
    if !attributes.iter().any(is_of_table) {
        return None;
    }
    let name = attributes.iter().find_map(|a| match a {
        SetAttribute::Name(name) => Some(name.clone()),
        _ => None,
    })?;
    Some((name, canonical_set(attributes)))
}

/// What of a set is compared: the kernel adds and leaves out the rest as it likes.
pub(super) fn canonical_set(attributes: &[SetAttribute]) -> Attributes {
    canonical(attributes.iter().filter(|a| {
        matches!(
            a,
            SetAttribute::Table(_)
                | SetAttribute::Name(_)
                | SetAttribute::Flags(_)
                | SetAttribute::KeyType(_)
                | SetAttribute::KeyLen(_)
        )
    }))
}

/// The keys that a set has in the kernel.
pub(super) fn keys_of(
    kernel: &mut Conversation,
    table: &str,
    set: &str,
) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let attributes = vec![
        SetElementList::Table(table.to_owned()),
        SetElementList::Set(set.to_owned()),
    ];
    let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
    let mut keys = Vec::new();
    for message in dump_of(kernel, request)? {
        let NfTablesMessage::NewSetElement(message) = message else {
            continue;
        };
        for attribute in message.attributes {
            if let SetElementList::Elements(elements) = attribute {
                keys.extend(elements.iter().filter_map(key_of));
            }
        }
    }
    Ok(keys)
}

fn key_of(element: &ListAttribute<SetElementAttribute>) -> Option<Vec<u8>> {
    let ListAttribute::Element(parts) = element else {
        return None;
    };
    parts.iter().find_map(|part| match part {
        SetElementAttribute::Key(DataAttribute::Value(key)) => Some(key.clone()),
        _ => None,
    })
}
