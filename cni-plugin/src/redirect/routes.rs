//! Brings replies for connections that ztunnel opened with a client's address back to ztunnel.
//!
//! Such replies bear the connection's mark (`ruleset.rs`); a routing rule leads them to a table in which every address
//! is local. Called by `redirect.rs` in the namespace concerned; knows no nftables. Format: man 7 rtnetlink.

use ambit_core::ports;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::error::{RedirectError, Step};
use super::netlink::Conversation;
use super::ruleset::Families;

/// Index of loopback in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
/// What is to go is not there (`ENOENT`, `ESRCH`), or nothing of its kind can be (`EOPNOTSUPP`, `EAFNOSUPPORT`: a kernel
/// without IPv6 or without routing rules).
const ABSENT: [i32; 4] = [2, 3, 95, 97];
/// What is to come is there already.
const EEXIST: i32 = 17;
/// Most copies of our rule that are deleted at once; more means that somebody else adds them.
const COPIES: usize = 16;

/// One object of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The rule for marked packets of a family.
    Rule(AddressFamily),
    /// The route of our table in a family.
    Route(AddressFamily),
}

impl Entry {
    /// All objects for these families, in the order in which they are made: a rule leads nowhere before its route.
    pub(super) fn all(families: Families) -> impl DoubleEndedIterator<Item = Self> {
        let v4 = families.v4.then_some(AddressFamily::Inet);
        let v6 = families.v6.then_some(AddressFamily::Inet6);
        v4.into_iter()
            .chain(v6)
            .flat_map(|family| [Self::Route(family), Self::Rule(family)])
    }

    fn step(self) -> Step {
        match self {
            Self::Rule(_) => Step::PolicyRule,
            Self::Route(_) => Step::LocalRoute,
        }
    }
}

/// The namespace's routing, as far as it is ours.
pub(super) struct Routing(Conversation);

impl Routing {
    /// Opens the routing of the calling thread's namespace.
    pub(super) fn open() -> Result<Self, RedirectError> {
        Conversation::open(NETLINK_ROUTE)
            .map(Self)
            .map_err(|error| RedirectError::explain(Step::Routing, error))
    }

    /// Brings the interface lo up.
    pub(super) fn bring_loopback_up(&mut self) -> Result<(), RedirectError> {
        let mut loopback = LinkMessage::default();
        loopback.header.index = LOOPBACK;
        loopback.header.flags = LinkFlags::Up;
        loopback.header.change_mask = LinkFlags::Up;
        self.0
            .request(RouteNetlinkMessage::SetLink(loopback), 0)
            .map_err(|error| RedirectError::explain(Step::Routing, error))
    }

    /// Adds an object; tells whether it was absent.
    pub(super) fn add(&mut self, entry: Entry) -> Result<bool, RedirectError> {
        let message = match entry {
            Entry::Rule(family) => RouteNetlinkMessage::NewRule(rule(family)),
            Entry::Route(family) => RouteNetlinkMessage::NewRoute(route(family)),
        };
        // Without exclusiveness the kernel would add copies of a rule.
        match self.0.request(message, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(true),
            // What is there may be somebody else's: another default route in our table.
            Err(error) if error.errno() == Some(EEXIST) && self.has(entry)? => Ok(false),
            Err(error) if error.errno() == Some(EEXIST) => Err(RedirectError::Disputed),
            Err(error) => Err(RedirectError::explain(entry.step(), error)),
        }
    }

    /// Deletes an object and its copies; absent is fine.
    pub(super) fn delete(&mut self, entry: Entry) -> Result<(), RedirectError> {
        for _ in 0..COPIES {
            let message = match entry {
                Entry::Rule(family) => RouteNetlinkMessage::DelRule(rule(family)),
                Entry::Route(family) => RouteNetlinkMessage::DelRoute(route(family)),
            };
            match self.0.request(message, 0) {
                Ok(()) => {}
                Err(error) if error.errno().is_some_and(|errno| ABSENT.contains(&errno)) => {
                    return Ok(());
                }
                Err(error) => return Err(RedirectError::explain(entry.step(), error)),
            }
        }
        Err(RedirectError::Disputed)
    }

    /// True when the object is there as we make it.
    pub(super) fn has(&mut self, entry: Entry) -> Result<bool, RedirectError> {
        let request = match entry {
            Entry::Rule(family) => {
                let mut all = RuleMessage::default();
                all.header.family = family;
                RouteNetlinkMessage::GetRule(all)
            }
            Entry::Route(family) => {
                let mut all = RouteMessage::default();
                all.header.address_family = family;
                RouteNetlinkMessage::GetRoute(all)
            }
        };
        let found = self
            .0
            .dump(request)
            .map_err(|error| RedirectError::explain(Step::ReadRoutes, error))?;
        Ok(found.iter().any(|object| match object {
            RouteNetlinkMessage::NewRule(rule) => is_our_rule(rule),
            RouteNetlinkMessage::NewRoute(route) => is_our_route(route),
            _ => false,
        }))
    }
}

/// `fwmark 0x111/0xfff lookup 100`, priority 32764: before the main table.
fn rule(family: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader {
        family,
        action: RuleAction::ToTable,
        ..RuleHeader::default()
    };
    message.attributes = rule_attributes();
    message
}

fn rule_attributes() -> Vec<RuleAttribute> {
    vec![
        RuleAttribute::Priority(ports::ROUTE_RULE_PRIORITY),
        RuleAttribute::FwMark(ports::CONN_MARK),
        RuleAttribute::FwMask(ports::MARK_MASK),
        RuleAttribute::Table(ports::ROUTE_TABLE),
    ]
}

/// `local default dev lo table 100`: every address is this host's.
fn route(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Table(ports::ROUTE_TABLE),
        RouteAttribute::Oif(LOOPBACK),
    ];
    message
}

/// True for the rule as we make it: with every condition of ours and with no other.
fn is_our_rule(found: &RuleMessage) -> bool {
    let ours = rule_attributes();
    let harmless = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX)
        )
    };
    found.header.action == RuleAction::ToTable
        && found.header.flags.is_empty()
        && found.header.tos == 0
        && ours
            .iter()
            .all(|attribute| found.attributes.contains(attribute))
        && found
            .attributes
            .iter()
            .all(|attribute| ours.contains(attribute) || harmless(attribute))
}

/// True for the route as we make it: whatever else it has, every address is local.
fn is_our_route(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Local
        && route.header.destination_prefix_length == 0
        && route.header.source_prefix_length == 0
        && route
            .attributes
            .contains(&RouteAttribute::Table(ports::ROUTE_TABLE))
        && route.attributes.contains(&RouteAttribute::Oif(LOOPBACK))
}
