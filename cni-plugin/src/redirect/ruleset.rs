//! What a pod's namespace must contain so that its TCP goes through ztunnel: a pure value, printable as nft text.
//!
//! Called by `redirect.rs` and its tests; knows no netlink. The rules are those of Istio's ambient mode (marks, ports and
//! exemptions; DNS capture comes later), with one addition: only a connection that *begins* with a SYN seen by our rules
//! is redirected. Connection tracking takes up mid-stream packets as new (`nf_conntrack_tcp_loose`), and without that
//! condition joining would reset what is open. Golden copies: `golden/*.nft`, which `nft -f` accepts as they are.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ambit_core::ports;

mod print;

/// Name of the table that redirects; belongs to us alone and is replaced as a whole.
pub const NAT_TABLE: &str = "ambit-nat";
/// Name of the table that marks; belongs to us alone and is replaced as a whole.
pub const MANGLE_TABLE: &str = "ambit-mangle";
/// Longest interface name, bytes (`IFNAMSIZ` less the closing zero, man 7 netdevice).
const INTERFACE_NAME_MAX: usize = 15;

/// Where the node's probes come from: TCP from and to these addresses is not captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// IPv4 source of probes, if any.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 source of probes, if any.
    pub v6: Option<Ipv6Addr>,
}

impl Probes {
    /// The addresses that Istio's node agent gives to the kubelet's probes.
    pub const ISTIO: Self = Self {
        v4: Some(Ipv4Addr::new(169, 254, 7, 127)),
        v6: Some(Ipv6Addr::new(
            0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff,
        )),
    };
}

/// Which address families a namespace speaks. Capture covers both always; exemptions and routes only those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// IPv4 is there.
    pub v4: bool,
    /// IPv6 is there.
    pub v6: bool,
}

impl Families {
    /// Both families.
    pub const DUAL: Self = Self { v4: true, v6: true };
}

/// Name of a network interface, as the kernel permits it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Takes a name of 1 to 15 printable ASCII characters without space, quote, slash and colon (`dev_valid_name`).
    pub fn new(name: &str) -> Option<Self> {
        let fits = (1..=INTERFACE_NAME_MAX).contains(&name.len()) && name != "." && name != "..";
        let clean = name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'"' | b'*'));
        (fits && clean).then(|| Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Everything the rules of one pod depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNet {
    /// Families that the namespace speaks.
    pub families: Families,
    /// Exempt probe addresses.
    pub probes: Probes,
    /// The pod takes inbound TCP itself (ingress gateways); only what it opens is captured.
    pub bypass_inbound: bool,
    /// Interfaces of machines behind the pod (bridges of VMs): TCP that arrives there is treated as outbound.
    pub virtual_interfaces: Vec<InterfaceName>,
}

/// Which form a pod's rules have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// New connections wait: their SYN is dropped, and the kernel that sent it tries again after a second. For the moment
    /// until ztunnel listens; a redirect would refuse them.
    Joining,
    /// New connections are redirected.
    Captured,
    /// New connections pass; those that were redirected before go on until they end.
    Leaving,
}

/// All tables of ours in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Tables of family `inet`, in the order in which they are made.
    pub tables: Vec<Table>,
}

/// One table of family `inet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its sets.
    pub sets: Vec<Set>,
    /// Its base chains.
    pub chains: Vec<Chain>,
}

/// A named set of addresses with ports, all of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// True when its addresses are of IPv6.
    pub v6: bool,
    /// What is in it.
    pub elements: BTreeSet<SocketAddr>,
}

/// One base chain; its policy is accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// What its verdicts may do.
    pub kind: ChainKind,
    /// Where packets meet it.
    pub hook: Hook,
    /// Its rules, in the order of evaluation.
    pub rules: Vec<Rule>,
}

/// Types of base chains (man 8 nft, CHAINS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of a connection; may translate addresses.
    Nat,
    /// Sees every packet; one whose mark changes is routed again.
    Route,
}

impl ChainKind {
    /// The word for it in nft and netlink.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

impl Chain {
    /// -150 (mangle) is after connection tracking (-200) and before address translation (-100, dstnat). Behind routing, 95 is
    /// before those who translate every source (100, srcnat): the first translation stays.
    pub const fn priority(&self) -> i32 {
        match (self.kind, self.hook) {
            (ChainKind::Filter | ChainKind::Route, _) => -150,
            (ChainKind::Nat, Hook::Postrouting) => 95,
            (ChainKind::Nat, _) => -100,
        }
    }
}

/// Hooks in use (man 8 nft, ADDRESS FAMILIES).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Every arriving packet.
    Prerouting,
    /// Every packet made in the namespace.
    Output,
    /// Every packet that leaves.
    Postrouting,
}

/// One rule: when all conditions hold, the action is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, in the order of evaluation.
    pub when: Vec<Condition>,
    /// What then happens.
    pub then: Action,
}

/// One condition. Marks are compared under [`ports::MARK_MASK`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The packet is TCP.
    Tcp,
    /// The packet asks for a new TCP connection: of FIN, SYN, RST and ACK only SYN is set.
    TcpSyn,
    /// The packet's TCP destination port is another.
    TcpPortIsNot(u16),
    /// The packet comes from this address.
    Source(IpAddr),
    /// The packet goes to this address.
    Destination(IpAddr),
    /// The packet's destination and TCP port are in this set, which is of IPv6 or not.
    DestinationIn(&'static str, bool),
    /// The packet was made by a process of this user in this namespace.
    User(u32),
    /// The packet arrived on this interface.
    Arrives(InterfaceName),
    /// The packet did not arrive over loopback.
    ArrivesNotOnLoopback,
    /// The packet leaves over loopback.
    LeavesOnLoopback,
    /// The packet's mark is this.
    Mark(u32),
    /// The packet's mark is another.
    MarkIsNot(u32),
    /// The connection's mark is this.
    ConnMark(u32),
    /// The packet belongs to a connection that both sides have confirmed.
    Established,
}

/// What a rule does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Lets it pass this chain.
    Accept,
    /// Ends the evaluation of this chain.
    Return,
    /// Loses the packet.
    Drop,
    /// Sends the connection to this port of the namespace itself.
    Redirect(u16),
    /// Has the connection come from this address.
    TranslateSource(IpAddr),
    /// Writes the connection's mark under [`ports::MARK_MASK`].
    SetConnMark(u32),
    /// Writes the packet's mark under [`ports::MARK_MASK`].
    SetMark(u32),
}

/// The rules of a pod.
pub fn for_pod(pod: &PodNet, phase: Phase) -> Ruleset {
    Ruleset {
        tables: vec![
            mangle(),
            match phase {
                Phase::Joining => nat(
                    prerouting(pod, |_port| Action::Drop),
                    output(pod, |_port| Action::Drop),
                ),
                Phase::Captured => nat(
                    prerouting(pod, Action::Redirect),
                    output(pod, Action::Redirect),
                ),
                // A rule that asks for the connection's state keeps connection tracking, and with it the address
                // translation of what is open, alive. Without any such rule the kernel lets go and resets it. The
                // marks hold it as well, but what is open must not hang on another table.
                Phase::Leaving => nat(vec![keep_established()], vec![keep_established()]),
            },
        ],
    }
}

/// Marks connections that ztunnel opens to the app with the client's address, and their replies, which the route of
/// `routes.rs` then leads back to ztunnel.
fn mangle() -> Table {
    let remember = rule(
        [Condition::Mark(ports::PROXY_MARK)],
        Action::SetConnMark(ports::CONN_MARK),
    );
    let restore = rule(
        [Condition::ConnMark(ports::CONN_MARK)],
        Action::SetMark(ports::CONN_MARK),
    );
    Table {
        name: MANGLE_TABLE,
        sets: Vec::new(),
        chains: vec![
            chain(Hook::Prerouting, ChainKind::Filter, vec![remember]),
            chain(Hook::Output, ChainKind::Route, vec![restore]),
        ],
    }
}

fn nat(prerouting: Vec<Rule>, output: Vec<Rule>) -> Table {
    Table {
        name: NAT_TABLE,
        sets: Vec::new(),
        chains: vec![
            chain(Hook::Prerouting, ChainKind::Nat, prerouting),
            chain(Hook::Output, ChainKind::Nat, output),
        ],
    }
}

/// Inbound: everything but HBONE, ztunnel's own and the node's probes. Istio excludes the address of localhost; here it
/// is the interface, which is the same for every packet that the kernel lets through, and stricter if it is told to
/// route foreign packets to 127.0.0.1 (`route_localnet`).
fn prerouting(pod: &PodNet, capture: fn(u16) -> Action) -> Vec<Rule> {
    let mut rules = Vec::new();
    for interface in &pod.virtual_interfaces {
        let arrives = || Condition::Arrives(interface.clone());
        rules.push(rule(
            [arrives(), Condition::TcpSyn],
            capture(ports::OUTBOUND),
        ));
        rules.push(rule([arrives(), Condition::Tcp], Action::Return));
    }
    if pod.bypass_inbound {
        return rules;
    }
    rules.extend(
        probe_addresses(pod)
            .map(|probe| rule([Condition::Tcp, Condition::Source(probe)], Action::Accept)),
    );
    rules.push(rule(
        [
            Condition::ArrivesNotOnLoopback,
            Condition::MarkIsNot(ports::PROXY_MARK),
            Condition::TcpPortIsNot(ports::INBOUND_HBONE),
            Condition::TcpSyn,
        ],
        capture(ports::INBOUND_PLAINTEXT),
    ));
    rules
}

/// Outbound: everything but ztunnel's own, what stays in the pod (all of that leaves over loopback) and probe replies.
fn output(pod: &PodNet, capture: fn(u16) -> Action) -> Vec<Rule> {
    let mut rules: Vec<Rule> = probe_addresses(pod)
        .map(|probe| {
            rule(
                [Condition::Tcp, Condition::Destination(probe)],
                Action::Accept,
            )
        })
        .collect();
    rules.push(rule(
        [Condition::Tcp, Condition::Mark(ports::CONN_MARK)],
        Action::Accept,
    ));
    rules.push(rule([Condition::LeavesOnLoopback], Action::Accept));
    rules.push(rule(
        [Condition::MarkIsNot(ports::PROXY_MARK), Condition::TcpSyn],
        capture(ports::OUTBOUND),
    ));
    rules
}

fn probe_addresses(pod: &PodNet) -> impl Iterator<Item = IpAddr> {
    let v4 = pod.probes.v4.filter(|_| pod.families.v4).map(IpAddr::V4);
    let v6 = pod.probes.v6.filter(|_| pod.families.v6).map(IpAddr::V6);
    v4.into_iter().chain(v6)
}

fn keep_established() -> Rule {
    rule([Condition::Established], Action::Accept)
}

fn rule<const N: usize>(when: [Condition; N], then: Action) -> Rule {
    Rule {
        when: Vec::from(when),
        then,
    }
}

fn chain(hook: Hook, kind: ChainKind, rules: Vec<Rule>) -> Chain {
    Chain {
        name: hook.name(),
        kind,
        hook,
        rules,
    }
}

impl Hook {
    /// The word for it in nft; our chains bear it as their name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }
}

#[cfg(test)]
mod tests;
