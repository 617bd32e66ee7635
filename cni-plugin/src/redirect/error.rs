//! Why redirection could not be set up, in words that say what is missing and how to get it.
//!
//! Made by `nft.rs`, `routes.rs` and `connections.rs`; read by the agent and, through its log and state, by operators.

use std::fmt;
use std::io;

use netlink_packet_core::NlasIterator;
use thiserror::Error;

use super::netlink::NetlinkError;
use super::ruleset::ChainKind;

/// `EPERM`: the kernel asks for a capability.
const EPERM: i32 = 1;
/// `ENOENT`: no such kind of chain or expression (nftables' answer).
const ENOENT: i32 = 2;
/// `EPROTONOSUPPORT`: no such netlink protocol.
const EPROTONOSUPPORT: i32 = 93;
/// `EOPNOTSUPP`: no such subsystem, key or kind of request.
const EOPNOTSUPP: i32 = 95;
/// `EAFNOSUPPORT`: no such address family.
const EAFNOSUPPORT: i32 = 97;
/// `ENETDOWN`: the interface of a route is down.
const ENETDOWN: i32 = 100;
/// Attribute of an nftables expression: its name.
const NFTA_EXPR_NAME: u16 = 1;

/// What was being done when the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reaching netfilter over netlink.
    Netfilter,
    /// Reaching routing over netlink.
    Routing,
    /// Making or deleting a table of family inet.
    Table,
    /// Making a base chain.
    Chain(ChainKind),
    /// Making a set, or adding to it.
    Set,
    /// Adding a rule.
    Rule,
    /// Reading the rules back.
    ReadRules,
    /// Adding or deleting the rule that leads marked packets to our routing table.
    PolicyRule,
    /// Adding or deleting the local route of our routing table.
    LocalRoute,
    /// Reading policy rules or routes.
    ReadRoutes,
    /// Reading the tracked connections.
    ReadConnections,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netfilter => write!(f, "reaching netfilter"),
            Self::Routing => write!(f, "reaching the routing tables"),
            Self::Table => write!(f, "writing the nftables table"),
            Self::Chain(kind) => write!(f, "adding the nftables {} chain", kind.name()),
            Self::Set => write!(f, "adding an nftables set"),
            Self::Rule => write!(f, "adding an nftables rule"),
            Self::ReadRules => write!(f, "reading the nftables rules"),
            Self::PolicyRule => write!(f, "writing the routing rule for marked packets"),
            Self::LocalRoute => write!(f, "writing the local route for marked packets"),
            Self::ReadRoutes => write!(f, "reading routing rules and routes"),
            Self::ReadConnections => write!(f, "reading the tracked connections"),
        }
    }
}

/// A part of the kernel that redirection needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Netfilter over netlink.
    Netfilter,
    /// nftables with tables of family inet.
    NfTables,
    /// nftables chains that translate addresses.
    NatChain,
    /// nftables chains that route again.
    RouteChain,
    /// An expression of nftables, by its name in netlink.
    Expression(String),
    /// Routing by packet mark.
    PolicyRouting,
    /// Reading tracked connections over netlink.
    ConnectionDump,
}

impl Feature {
    /// The kernel's build option, and its module if it may be one.
    fn origin(&self) -> (&str, Option<&str>) {
        match self {
            Self::Netfilter => ("CONFIG_NETFILTER_NETLINK", Some("nfnetlink")),
            Self::NfTables => (
                "CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET",
                Some("nf_tables"),
            ),
            Self::NatChain => ("CONFIG_NFT_NAT and CONFIG_NF_NAT", Some("nft_chain_nat")),
            Self::RouteChain => ("CONFIG_NF_TABLES_INET of Linux 5.3 or newer", None),
            Self::Expression(name) => match name.as_str() {
                "redir" => ("CONFIG_NFT_REDIR", Some("nft_redir")),
                "nat" => ("CONFIG_NFT_NAT", Some("nft_nat")),
                "ct" => ("CONFIG_NFT_CT and CONFIG_NF_CONNTRACK_MARK", Some("nft_ct")),
                _ => ("CONFIG_NF_TABLES of Linux 5.6 or newer", None),
            },
            Self::PolicyRouting => (
                "CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES",
                None,
            ),
            Self::ConnectionDump => ("CONFIG_NF_CT_NETLINK", Some("nf_conntrack_netlink")),
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (option, module) = self.origin();
        match self {
            Self::Netfilter => write!(f, "netfilter over netlink")?,
            Self::NfTables => write!(f, "nftables tables of family inet")?,
            Self::NatChain => write!(f, "nftables nat chains")?,
            Self::RouteChain => write!(f, "nftables route chains")?,
            Self::Expression(name) => write!(f, "the nftables expression \"{name}\"")?,
            Self::PolicyRouting => write!(f, "routing by packet mark")?,
            Self::ConnectionDump => write!(f, "reading tracked connections")?,
        }
        match module {
            Some(module) => write!(
                f,
                ": run `modprobe {module}` on the node, or use a kernel built with {option}"
            ),
            None => write!(f, ": use a kernel built with {option}"),
        }
    }
}

/// Why redirection could not be set up, read or removed.
#[derive(Debug, Error)]
pub enum RedirectError {
    /// The process may not change the namespace's network.
    #[error(
        "{step} is not permitted: it needs the capability CAP_NET_ADMIN over the pod's network namespace \
         (run the node agent as root with NET_ADMIN and SYS_ADMIN)"
    )]
    Privilege {
        /// What was refused.
        step: Step,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel lacks something.
    #[error("{step}: the kernel lacks {feature}")]
    Feature {
        /// What was refused.
        step: Step,
        /// What is missing.
        feature: Feature,
        /// The system's error.
        source: io::Error,
    },
    /// Loopback is down, so redirected connections could not reach ztunnel.
    #[error("{step}: the namespace's interface lo is down; bring it up with `ip link set lo up`")]
    LoopbackDown {
        /// What was refused.
        step: Step,
        /// The system's error.
        source: io::Error,
    },
    /// Anything else; the source says it in the kernel's words.
    #[error("{step} failed")]
    Kernel {
        /// What was refused.
        step: Step,
        /// What the kernel said.
        source: io::Error,
    },
    /// The rules were written and read back otherwise: something else in the namespace changes them.
    #[error(
        "the rules read back differ from those written; another program changes the tables ambit-nat, \
         ambit-mangle or ambit-host, the routing rule or its table in this namespace"
    )]
    Disputed,
}

impl RedirectError {
    /// Says which privilege or feature a failure at this step means.
    pub(super) fn explain(step: Step, error: NetlinkError) -> Self {
        let errno = error.errno();
        let feature = missing(step, &error);
        let source = error.into_io();
        match (errno, feature) {
            (Some(EPERM), _) => Self::Privilege { step, source },
            (Some(ENETDOWN), _) => Self::LoopbackDown { step, source },
            (_, Some(feature)) => Self::Feature {
                step,
                feature,
                source,
            },
            _ => Self::Kernel { step, source },
        }
    }
}

/// The feature whose absence the kernel reports so at this step.
fn missing(step: Step, error: &NetlinkError) -> Option<Feature> {
    let errno = error.errno()?;
    match (step, errno) {
        (_, EPROTONOSUPPORT) if matches!(error, NetlinkError::Socket(_)) => {
            Some(Feature::Netfilter)
        }
        (Step::Netfilter | Step::ReadRules, EOPNOTSUPP | ENOENT)
        | (Step::Table, EAFNOSUPPORT | EOPNOTSUPP) => Some(Feature::NfTables),
        (Step::Chain(ChainKind::Nat), ENOENT | EOPNOTSUPP) => Some(Feature::NatChain),
        (Step::Chain(ChainKind::Route), ENOENT | EOPNOTSUPP) => Some(Feature::RouteChain),
        (Step::Rule, ENOENT | EOPNOTSUPP) => Some(Feature::Expression(expression(error))),
        (Step::PolicyRule | Step::ReadRoutes, EOPNOTSUPP) => Some(Feature::PolicyRouting),
        (Step::ReadConnections, EOPNOTSUPP | ENOENT) => Some(Feature::ConnectionDump),
        _ => None,
    }
}

/// Name of the expression that the kernel points at. Without a pointer it is `ct`: for a key that it was built without,
/// the kernel gives none.
fn expression(error: &NetlinkError) -> String {
    let pointed = match error {
        NetlinkError::Refused(refusal) => refusal.attribute.as_deref(),
        _ => None,
    };
    // It points at the whole expression, whose name is an attribute in it.
    let name = pointed.and_then(|expression| {
        let mut parts = NlasIterator::new(expression).flatten();
        text(parts.find(|part| part.kind() == NFTA_EXPR_NAME)?.value())
    });
    name.unwrap_or_else(|| "ct".to_owned())
}

/// The text in an attribute, if it is a word.
fn text(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value.strip_suffix(&[0])?).ok()?;
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then(|| text.to_owned())
}

#[cfg(test)]
mod tests;
