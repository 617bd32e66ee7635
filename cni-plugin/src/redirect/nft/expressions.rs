//! One rule as the kernel wants it: a list of small instructions on registers.
//!
//! Called by `nft.rs` for writing and for comparing; pure. The instructions are those that `nft --debug=netlink` prints
//! for the rule's text. Numbers: `uapi/linux/netfilter/nf_tables.h`; offsets: RFC 791, RFC 8200, RFC 9293.

use std::net::IpAddr;

use ambit_core::ports;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute,
    Lookup, Meta, MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use crate::redirect::ruleset::{Action, Condition, Rule};

/// Instructions of one rule, as netlink carries them.
pub(super) type Instructions = Vec<ListAttribute<ExpressionAttribute>>;

/// The register that carries every value here.
const REGISTER: Register = Register::Reg1;
/// Length of an interface name in a register, bytes (`IFNAMSIZ`).
const INTERFACE_NAME: usize = 16;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
/// FIN, SYN, RST and ACK in the byte of TCP flags.
const FIN_SYN_RST_ACK: u8 = 0x17;
const SYN: u8 = 0x02;
const TCP_DESTINATION_PORT: (u32, u32) = (2, 2);
const TCP_FLAGS: (u32, u32) = (13, 1);
const IPV4_SOURCE: (u32, u32) = (12, 4);
const IPV4_DESTINATION: (u32, u32) = (16, 4);
const IPV6_SOURCE: (u32, u32) = (8, 16);
const IPV6_DESTINATION: (u32, u32) = (24, 16);
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFT_BITWISE_BOOL` (`NFT_BITWISE_MASK_XOR` since Linux 6.13): and, then exclusive or.
const MASK_XOR: u32 = 0;
/// Bit of an established connection in `ct state` (`NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`).
const CT_ESTABLISHED: u32 = 2;
/// Verdicts `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `NFT_NAT_SNAT`.
const SOURCE_NAT: u32 = 0;
/// `NF_NAT_RANGE_MAP_IPS`: the translation says the address.
const ADDRESS_GIVEN: u32 = 1;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`: the redirection says the port.
const PORT_GIVEN: u32 = 2;

/// Keys of the `ct` expression.
#[derive(Clone, Copy)]
enum CtKey {
    State = 0,
    Mark = 3,
}

/// The instructions of a rule.
pub(super) fn of(rule: &Rule) -> Instructions {
    let mut all: Vec<Expressions> = rule.when.iter().flat_map(condition).collect();
    all.extend(action(rule.then));
    all.into_iter().map(ListAttribute::from).collect()
}

fn condition(condition: &Condition) -> Vec<Expressions> {
    match condition {
        Condition::Tcp => tcp(),
        Condition::TcpSyn => {
            let flags = [
                payload(TRANSPORT_HEADER, TCP_FLAGS),
                mask(&[FIN_SYN_RST_ACK], &[0]),
            ];
            [tcp(), Vec::from(flags), vec![equals(&[SYN])]].concat()
        }
        Condition::TcpPortIsNot(port) => {
            let load = payload(TRANSPORT_HEADER, TCP_DESTINATION_PORT);
            [tcp(), vec![load, differs(&port.to_be_bytes())]].concat()
        }
        Condition::Source(addr) => address(*addr, IPV4_SOURCE, IPV6_SOURCE),
        Condition::Destination(addr) => address(*addr, IPV4_DESTINATION, IPV6_DESTINATION),
        Condition::DestinationIn(set, v6) => destination_in(set, *v6),
        Condition::User(user) => vec![load(MetaKey::SocketUserId), equals(&user.to_ne_bytes())],
        Condition::Arrives(name) => {
            vec![load(MetaKey::Iifname), equals(&interface(name.as_str()))]
        }
        Condition::ArrivesNotOnLoopback => vec![load(MetaKey::Iifname), differs(&interface("lo"))],
        Condition::LeavesOnLoopback => vec![load(MetaKey::Oifname), equals(&interface("lo"))],
        Condition::Mark(mark) => vec![
            load(MetaKey::Mark),
            under_mask(),
            equals(&mark.to_ne_bytes()),
        ],
        Condition::MarkIsNot(mark) => {
            vec![
                load(MetaKey::Mark),
                under_mask(),
                differs(&mark.to_ne_bytes()),
            ]
        }
        Condition::ConnMark(mark) => {
            vec![
                ct_load(CtKey::Mark),
                under_mask(),
                equals(&mark.to_ne_bytes()),
            ]
        }
        Condition::Established => vec![
            ct_load(CtKey::State),
            mask(&CT_ESTABLISHED.to_ne_bytes(), &[0; 4]),
            differs(&[0; 4]),
        ],
    }
}

fn action(action: Action) -> Vec<Expressions> {
    match action {
        Action::Accept => vec![verdict(Verdict::Other(ACCEPT))],
        Action::Drop => vec![verdict(Verdict::Other(DROP))],
        Action::Return => vec![verdict(Verdict::Return)],
        Action::Redirect(port) => vec![
            Expressions::Immediate(vec![
                Immediate::DestinationRegister(REGISTER),
                Immediate::Data(DataAttribute::Value(port.to_be_bytes().to_vec())),
            ]),
            redirect(),
        ],
        Action::TranslateSource(addr) => translate_source(addr),
        Action::SetConnMark(mark) => {
            vec![ct_load(CtKey::Mark), under_others(mark), ct_store_mark()]
        }
        Action::SetMark(mark) => vec![
            load(MetaKey::Mark),
            under_others(mark),
            Expressions::Meta(vec![
                Meta::Key(MetaKey::Mark),
                Meta::SourceRegister(REGISTER),
            ]),
        ],
    }
}

fn tcp() -> Vec<Expressions> {
    vec![load(MetaKey::L4Proto), equals(&[IPPROTO_TCP])]
}

fn address(addr: IpAddr, v4: (u32, u32), v6: (u32, u32)) -> Vec<Expressions> {
    let (family, place, bytes) = match addr {
        IpAddr::V4(addr) => (NFPROTO_IPV4, v4, addr.octets().to_vec()),
        IpAddr::V6(addr) => (NFPROTO_IPV6, v6, addr.octets().to_vec()),
    };
    vec![
        load(MetaKey::Nfproto),
        equals(&[family]),
        payload(NETWORK_HEADER, place),
        equals(&bytes),
    ]
}

/// Address and port, one behind the other in registers of 32 bits, as one key.
fn destination_in(set: &str, v6: bool) -> Vec<Expressions> {
    let (family, addr, behind) = match v6 {
        false => (NFPROTO_IPV4, IPV4_DESTINATION, Register::Reg32_01),
        true => (NFPROTO_IPV6, IPV6_DESTINATION, Register::Reg2),
    };
    vec![
        load(MetaKey::Nfproto),
        equals(&[family]),
        payload(NETWORK_HEADER, addr),
        payload_into(behind, TRANSPORT_HEADER, TCP_DESTINATION_PORT),
        Expressions::Lookup(vec![
            Lookup::Set(set.to_owned()),
            Lookup::SourceRegister(REGISTER),
            Lookup::Flags(0),
        ]),
    ]
}

/// `NFTA_NAT_TYPE` is 1, `_FAMILY` 2, `_REG_ADDR_MIN` 3, `_REG_ADDR_MAX` 4, `_FLAGS` 7.
fn translate_source(addr: IpAddr) -> Vec<Expressions> {
    let (family, bytes) = match addr {
        IpAddr::V4(addr) => (NFPROTO_IPV4, addr.octets().to_vec()),
        IpAddr::V6(addr) => (NFPROTO_IPV6, addr.octets().to_vec()),
    };
    let (kind, family, addr) = ((1, SOURCE_NAT), (2, family.into()), REGISTER.into());
    vec![
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(REGISTER),
            Immediate::Data(DataAttribute::Value(bytes)),
        ]),
        untyped(
            "nat",
            &[kind, family, (3, addr), (4, addr), (7, ADDRESS_GIVEN)],
        ),
    ]
}

fn interface(name: &str) -> [u8; INTERFACE_NAME] {
    let mut padded = [0; INTERFACE_NAME];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

fn load(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(REGISTER)])
}

fn payload(base: u32, place: (u32, u32)) -> Expressions {
    payload_into(REGISTER, base, place)
}

fn payload_into(register: Register, base: u32, (offset, length): (u32, u32)) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// Keeps the bits of our marks.
fn under_mask() -> Expressions {
    mask(&ports::MARK_MASK.to_ne_bytes(), &[0; 4])
}

/// Keeps the bits of others and sets ours to `mark`.
fn under_others(mark: u32) -> Expressions {
    mask(&(!ports::MARK_MASK).to_ne_bytes(), &mark.to_ne_bytes())
}

/// And with `mask`, then exclusive or with `xor`, of the same length.
fn mask(mask: &[u8], xor: &[u8]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(REGISTER),
        Bitwise::DestinationRegister(REGISTER),
        Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
        Bitwise::Op(MASK_XOR),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(xor.to_vec())),
    ])
}

fn equals(value: &[u8]) -> Expressions {
    compare(Operator::Equal, value)
}

fn differs(value: &[u8]) -> Expressions {
    compare(Operator::NotEqual, value)
}

fn compare(operator: Operator, value: &[u8]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(REGISTER),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ])
}

fn verdict(code: Verdict) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(code)])),
    ])
}

/// `NFTA_CT_KEY` is 2, `NFTA_CT_DREG` 1.
fn ct_load(key: CtKey) -> Expressions {
    untyped("ct", &[(2, key as u32), (1, REGISTER.into())])
}

/// `NFTA_CT_KEY` is 2, `NFTA_CT_SREG` 4.
fn ct_store_mark() -> Expressions {
    untyped("ct", &[(2, CtKey::Mark as u32), (4, REGISTER.into())])
}

/// `NFTA_REDIR_REG_PROTO_MIN` is 1, `_MAX` 2, `NFTA_REDIR_FLAGS` 3.
fn redirect() -> Expressions {
    let port = REGISTER.into();
    untyped("redir", &[(1, port), (2, port), (3, PORT_GIVEN)])
}

/// An expression for which the crate has no type; all its attributes are numbers in network order.
fn untyped(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    let attributes = attributes
        .iter()
        .map(|(kind, value)| DefaultNla::new(*kind, value.to_be_bytes().to_vec()))
        .collect();
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes,
    }
}
