//! Finds fields that a message should not have: protobuf decoders drop them in silence, policies must not.
//!
//! Called by `policy.rs` on the raw bytes beside their decoding. The tables are what this version understands; a
//! test compares them with the `.proto` file.

use prost::encoding::{WireType, decode_key, decode_varint};

/// The fields of one message, and for those that are messages, theirs.
#[derive(Debug)]
pub(super) struct Known {
    /// Full name of the message, for the error.
    pub(super) message: &'static str,
    /// Field numbers, each with the table of the message inside if that is to be looked into.
    pub(super) fields: &'static [(u32, Option<&'static Known>)],
}

/// The fields of a policy. Extensions are not looked into: whoever has one is unreadable anyway.
pub(super) const AUTHORIZATION: Known = Known {
    message: "istio.security.Authorization",
    fields: &[
        (1, None),
        (2, None),
        (3, None),
        (4, None),
        (5, Some(&RULE)),
        (6, None),
        (7, None),
    ],
};

const RULE: Known = Known {
    message: "istio.security.Rule",
    fields: &[(1, Some(&CLAUSE))],
};

const CLAUSE: Known = Known {
    message: "istio.security.Clause",
    fields: &[(2, Some(&MATCH))],
};

const MATCH: Known = Known {
    message: "istio.security.Match",
    fields: &[
        (1, Some(&STRING_MATCH)),
        (2, Some(&STRING_MATCH)),
        (3, Some(&STRING_MATCH)),
        (4, Some(&STRING_MATCH)),
        (5, Some(&ADDRESS)),
        (6, Some(&ADDRESS)),
        (7, Some(&ADDRESS)),
        (8, Some(&ADDRESS)),
        (9, None),
        (10, None),
        (11, Some(&SERVICE_ACCOUNT_MATCH)),
        (12, Some(&SERVICE_ACCOUNT_MATCH)),
        (13, None),
    ],
};

const STRING_MATCH: Known = Known {
    message: "istio.security.StringMatch",
    fields: &[(1, None), (2, None), (3, None), (4, Some(&EMPTY))],
};

const EMPTY: Known = Known {
    message: "google.protobuf.Empty",
    fields: &[],
};

const ADDRESS: Known = Known {
    message: "istio.security.Address",
    fields: &[(1, None), (2, None)],
};

const SERVICE_ACCOUNT_MATCH: Known = Known {
    message: "istio.security.ServiceAccountMatch",
    fields: &[(1, None), (2, None)],
};

/// Why bytes hold more than the tables explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Surplus {
    /// A field that is not in the table.
    Field {
        /// The message that has it.
        message: &'static str,
        /// Its number.
        number: u32,
    },
    /// Not protobuf, or a form of it that is not used here.
    Malformed,
}

/// Looks through `bytes` and the messages inside, as deep as the tables go.
///
/// # Errors
/// The first field that is not known, or that the bytes cannot be cut into fields.
pub(super) fn check(mut bytes: &[u8], known: &Known) -> Result<(), Surplus> {
    while !bytes.is_empty() {
        let (number, wire_type) = decode_key(&mut bytes).map_err(|_bad| Surplus::Malformed)?;
        let Some((_, inner)) = known.fields.iter().find(|(n, _)| *n == number) else {
            let message = known.message;
            return Err(Surplus::Field { message, number });
        };
        let value = take_value(&mut bytes, wire_type).ok_or(Surplus::Malformed)?;
        if let Some(inner) = inner {
            check(value, inner)?;
        }
    }
    Ok(())
}

/// Cuts one field's value off the front: what is inside a length-delimited one, nothing that matters of others.
fn take_value<'a>(bytes: &mut &'a [u8], wire_type: WireType) -> Option<&'a [u8]> {
    let length = match wire_type {
        WireType::Varint => {
            decode_varint(bytes).ok()?;
            0
        }
        WireType::ThirtyTwoBit => 4,
        WireType::SixtyFourBit => 8,
        WireType::LengthDelimited => usize::try_from(decode_varint(bytes).ok()?).ok()?,
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(value)
}

#[cfg(test)]
mod tests;
