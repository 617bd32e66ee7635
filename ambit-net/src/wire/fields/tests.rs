//! The tables say what the `.proto` file says.

use std::collections::BTreeMap;
use std::path::Path;

use prost_types::field_descriptor_proto::Type;

use super::*;

/// For each message of policies, its fields with the message inside that has to be looked into.
fn from_proto() -> BTreeMap<String, Vec<(u32, Option<String>)>> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let compiled = protox::compile(["security.proto"], [sources]).unwrap();
    let mut messages = BTreeMap::new();
    for file in &compiled.file {
        for message in &file.message_type {
            let fields = message.field.iter().map(|field| {
                let inner = field.type_name().trim_start_matches('.');
                let looked_into =
                    field.r#type() == Type::Message && inner != "istio.workload.Extension";
                let number = field.number().unsigned_abs();
                (number, looked_into.then(|| inner.to_owned()))
            });
            let full = format!("{}.{}", file.package(), message.name());
            messages.insert(full, fields.collect());
        }
    }
    messages
}

fn from_tables(known: &Known, messages: &mut BTreeMap<String, Vec<(u32, Option<String>)>>) {
    let fields = known.fields.iter();
    let fields = fields.map(|(number, inner)| (*number, inner.map(|k| k.message.to_owned())));
    messages.insert(known.message.to_owned(), fields.collect());
    for (_, inner) in known.fields {
        if let Some(inner) = inner {
            from_tables(inner, messages);
        }
    }
}

#[test]
fn the_tables_are_those_of_the_proto_file() {
    let mut tables = BTreeMap::new();
    from_tables(&AUTHORIZATION, &mut tables);
    let mut proto = from_proto();
    let of_policies =
        |name: &str| name.starts_with("istio.security.") || name == "google.protobuf.Empty";
    proto.retain(|name, _| of_policies(name));
    assert_eq!(tables, proto);
}

#[test]
fn refuses_bytes_that_are_no_fields() {
    // A group, a varint without end, a length over what is there, a tag of field 0.
    for bytes in [&[0x0b_u8][..], &[0x18, 0xff], &[0x0a, 0x02, 0x61], &[0x00]] {
        assert_eq!(
            check(bytes, &AUTHORIZATION),
            Err(Surplus::Malformed),
            "{bytes:?}"
        );
    }
}
