//! Counts the connections of a namespace that go through ztunnel, so that a leaving pod's rules stay until the last ends.
//!
//! Called by the agent through `redirect.rs`, in the namespace concerned. It asks connection tracking, because that is
//! what keeps a redirected connection alive: `uapi/linux/netfilter/nfnetlink_conntrack.h`.

use ambit_core::ports;
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, ProtoInfo, ProtoInfoTCP, ProtoTuple, Status, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::error::{RedirectError, Step};
use super::netlink::Conversation;

/// TCP states of connection tracking in which both sides are done (`uapi/linux/netfilter/nf_conntrack_tcp.h`).
const TIME_WAIT: u8 = 7;
const CLOSE: u8 = 8;

/// Number of captured connections that are not over yet: redirected ones, and those that ztunnel opened to the app with
/// the client's address.
pub(super) fn count() -> Result<usize, RedirectError> {
    let explain = |error| RedirectError::explain(Step::ReadConnections, error);
    let mut kernel = Conversation::open(NETLINK_NETFILTER).map_err(explain)?;
    let all = NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        ConntrackMessage::Get(vec![]),
    );
    let found = kernel.dump(all).map_err(explain)?;
    let captured = found.iter().filter(|message| match &message.inner {
        NetfilterMessageInner::Conntrack(ConntrackMessage::New(entry)) => is_captured(entry),
        _ => false,
    });
    Ok(captured.count())
}

/// True for an entry that our rules made what it is and that is not over.
fn is_captured(entry: &[ConntrackAttribute]) -> bool {
    let (mut marked, mut translated, mut to_capture_port, mut over) = (false, false, false, false);
    for attribute in entry {
        match attribute {
            ConntrackAttribute::CtaMark(mark) => {
                marked = mark & ports::MARK_MASK == ports::CONN_MARK;
            }
            ConntrackAttribute::CtaStatus(status) => translated = status.contains(Status::DstNat),
            ConntrackAttribute::CtaTupleReply(reply) => {
                to_capture_port = comes_from_capture_port(reply);
            }
            ConntrackAttribute::CtaProtoInfo(info) => over = is_over(info),
            _ => {}
        }
    }
    (marked || (translated && to_capture_port)) && !over
}

/// True when replies come from one of the ports that connections are redirected to.
fn comes_from_capture_port(reply: &[Tuple]) -> bool {
    reply.iter().any(|part| match part {
        Tuple::Proto(parts) => parts.iter().any(|part| {
            matches!(
                part,
                ProtoTuple::SourcePort(ports::OUTBOUND | ports::INBOUND_PLAINTEXT)
            )
        }),
        _ => false,
    })
}

fn is_over(info: &[ProtoInfo]) -> bool {
    info.iter().any(|part| match part {
        ProtoInfo::TCP(parts) => parts
            .iter()
            .any(|part| matches!(part, ProtoInfoTCP::State(TIME_WAIT | CLOSE))),
        _ => false,
    })
}
