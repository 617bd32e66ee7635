//! Each refusal of the kernel says what is missing and how to get it.

use super::*;
use crate::redirect::netlink::Refusal;

fn refused(errno: i32, attribute: Option<&[u8]>) -> NetlinkError {
    NetlinkError::Refused(Refusal {
        index: 3,
        source: io::Error::from_raw_os_error(errno),
        text: None,
        attribute: attribute.map(<[u8]>::to_vec),
    })
}

fn no_such_protocol() -> NetlinkError {
    NetlinkError::Socket(io::Error::from_raw_os_error(EPROTONOSUPPORT))
}

/// An expression as the kernel points at it: an attribute with its name.
fn named(expression: &str) -> Vec<u8> {
    let length = u8::try_from(expression.len() + 5).unwrap();
    let mut bytes = vec![length, 0, 1, 0];
    bytes.extend(expression.bytes());
    bytes.push(0);
    bytes
}

/// Step, error number, expression that the kernel points at (none: no pointer), and a part of the remedy.
type Row = (Step, i32, &'static str, &'static str);

const NAT: Step = Step::Chain(ChainKind::Nat);
const ROUTE: Step = Step::Chain(ChainKind::Route);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    (Step::Netfilter, EOPNOTSUPP, "", "modprobe nf_tables"),
    (Step::Table, EAFNOSUPPORT, "", "CONFIG_NF_TABLES_INET"),
    (NAT, ENOENT, "", "modprobe nft_chain_nat"),
    (ROUTE, ENOENT, "", "Linux 5.3"),
    (Step::Rule, ENOENT, "redir", "modprobe nft_redir"),
    (Step::Rule, ENOENT, "ct", "modprobe nft_ct"),
    (Step::Rule, ENOENT, "bitwise", "\"bitwise\""),
    (Step::Rule, EOPNOTSUPP, "", "CONFIG_NF_CONNTRACK_MARK"),
    (Step::PolicyRule, EOPNOTSUPP, "", "CONFIG_IP_MULTIPLE_TABLES"),
    (Step::ReadConnections, EOPNOTSUPP, "", "modprobe nf_conntrack_netlink"),
];

#[track_caller]
fn names_feature(step: Step, error: NetlinkError, remedy: &str) {
    let explained = RedirectError::explain(step, error);
    let text = explained.to_string();
    let feature = matches!(explained, RedirectError::Feature { .. });
    assert!(
        feature && text.contains("the kernel lacks"),
        "{step}: {text}"
    );
    assert!(text.contains(remedy), "{text}");
}

#[test]
fn missing_features_are_named_with_their_remedy() {
    for (step, errno, expression, remedy) in ROWS {
        let pointed = named(expression);
        let pointed = (!expression.is_empty()).then_some(pointed.as_slice());
        names_feature(*step, refused(*errno, pointed), remedy);
    }
    names_feature(
        Step::Netfilter,
        no_such_protocol(),
        "CONFIG_NETFILTER_NETLINK",
    );
}

#[test]
fn missing_privilege_names_the_capability() {
    for step in [
        Step::Netfilter,
        Step::Table,
        Step::PolicyRule,
        Step::ReadConnections,
    ] {
        let text = RedirectError::explain(step, refused(EPERM, None)).to_string();
        assert!(
            text.contains("CAP_NET_ADMIN") && text.contains("as root"),
            "{text}"
        );
    }
}

#[test]
fn everything_else_is_told_in_the_kernels_words() {
    let error = NetlinkError::Refused(Refusal {
        index: 0,
        source: io::Error::from_raw_os_error(16),
        text: Some("somebody holds it".into()),
        attribute: None,
    });
    let told = crate::with_causes(&RedirectError::explain(Step::Table, error));
    assert!(
        told.contains("somebody holds it") && told.contains("os error 16"),
        "{told}"
    );
    // A pointer at something that is no name is not taken for one.
    for attribute in [&b""[..], b"\0", b"\xff\xfe\0", b"no end"] {
        assert_eq!(
            expression(&refused(ENOENT, Some(attribute))),
            "ct",
            "{attribute:?}"
        );
    }
}
