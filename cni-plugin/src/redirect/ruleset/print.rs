//! A rule set as text that `nft -f` accepts: for golden files, logs and people.

use std::fmt;
use std::net::IpAddr;

use ambit_core::ports;

use super::{Action, Condition, Rule, Ruleset, Set, Table};

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|table| table.fmt(f))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for set in &self.sets {
            set.fmt(f)?;
        }
        for chain in &self.chains {
            writeln!(f, "\tchain {} {{", chain.name)?;
            writeln!(
                f,
                "\t\ttype {} hook {} priority {}; policy accept;",
                chain.kind.name(),
                chain.hook.name(),
                chain.priority()
            )?;
            for rule in &chain.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v6 { "ipv6_addr" } else { "ipv4_addr" };
        writeln!(f, "\tset {} {{", self.name)?;
        writeln!(f, "\t\ttype {family} . inet_service")?;
        if !self.elements.is_empty() {
            let elements = self.elements.iter();
            let elements = elements.map(|addr| format!("{} . {}", addr.ip(), addr.port()));
            let elements = elements.collect::<Vec<_>>().join(", ");
            writeln!(f, "\t\telements = {{ {elements} }}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.when {
            write!(f, "{condition} ")?;
        }
        self.then.fmt(f)
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mask = ports::MARK_MASK;
        match self {
            Self::Tcp => write!(f, "meta l4proto tcp"),
            Self::TcpSyn => write!(f, "tcp flags & (fin | syn | rst | ack) == syn"),
            Self::TcpPortIsNot(port) => write!(f, "tcp dport != {port}"),
            Self::Source(IpAddr::V4(addr)) => write!(f, "ip saddr {addr}"),
            Self::Source(IpAddr::V6(addr)) => write!(f, "ip6 saddr {addr}"),
            Self::Destination(IpAddr::V4(addr)) => write!(f, "ip daddr {addr}"),
            Self::Destination(IpAddr::V6(addr)) => write!(f, "ip6 daddr {addr}"),
            Self::DestinationIn(set, false) => write!(f, "ip daddr . tcp dport @{set}"),
            Self::DestinationIn(set, true) => write!(f, "ip6 daddr . tcp dport @{set}"),
            Self::User(user) => write!(f, "meta skuid {user}"),
            Self::Arrives(interface) => write!(f, "iifname \"{}\"", interface.as_str()),
            Self::ArrivesNotOnLoopback => write!(f, "iifname != \"lo\""),
            Self::LeavesOnLoopback => write!(f, "oifname \"lo\""),
            Self::Mark(mark) => write!(f, "meta mark & {mask:#010x} == {mark:#010x}"),
            Self::MarkIsNot(mark) => write!(f, "meta mark & {mask:#010x} != {mark:#010x}"),
            Self::ConnMark(mark) => write!(f, "ct mark & {mask:#010x} == {mark:#010x}"),
            Self::Established => write!(f, "ct state established"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others = !ports::MARK_MASK;
        match self {
            Self::Accept => write!(f, "accept"),
            Self::Drop => write!(f, "drop"),
            Self::Return => write!(f, "return"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::TranslateSource(IpAddr::V4(addr)) => write!(f, "snat ip to {addr}"),
            Self::TranslateSource(IpAddr::V6(addr)) => write!(f, "snat ip6 to {addr}"),
            Self::SetConnMark(mark) => {
                write!(f, "ct mark set ct mark & {others:#010x} | {mark:#010x}")
            }
            Self::SetMark(mark) => {
                write!(f, "meta mark set meta mark & {others:#010x} | {mark:#010x}")
            }
        }
    }
}
