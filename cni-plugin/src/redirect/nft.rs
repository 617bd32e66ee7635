//! Rule set ⇄ kernel: one netlink batch that replaces our tables in one transaction, and a dump that compares.
//!
//! Called by `redirect.rs` in the namespace concerned; knows nothing of pods or routes. Every attribute that the kernel
//! reports back is sent, so that a dump can be compared exactly: what differs in any bit is not ours any more.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Nla};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, ExpressionAttribute, Hook as HookAttribute, HookNumber,
    InetHookNumber, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute,
    TableFlags, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::error::{RedirectError, Step};
use super::netlink::{Conversation, NetlinkError};
use super::ruleset::{Chain, Hook, Ruleset, Table};

mod expressions;
mod sets;

/// Number of nftables among netfilter's subsystems; a batch names it (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;
/// Policy of our base chains (`NF_ACCEPT`).
const ACCEPT: u32 = 1;

/// Puts these tables in the place of ours, all or nothing.
///
/// Deleting and making anew in one transaction is what `nft -f` does on a reload: the new chains are at their hooks and
/// hold connection tracking before the old ones go, so open connections keep their translation.
pub(crate) fn replace(rules: &Ruleset) -> Result<(), RedirectError> {
    let mut batch = Batch::default();
    for table in &rules.tables {
        batch.delete(table.name);
        batch.add(table);
    }
    batch.commit()
}

/// Removes tables of ours, all or nothing; absent ones are fine.
pub(crate) fn remove(tables: &[&'static str]) -> Result<(), RedirectError> {
    let mut batch = Batch::default();
    for table in tables {
        batch.delete(table);
    }
    batch.commit()
}

/// What is in the kernel under our names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// None of the tables.
    Nothing,
    /// Exactly the wanted rules.
    Same,
    /// Something else.
    Other,
}

/// Compares the kernel's tables of these names with the wanted ones.
pub(crate) fn compare(tables: &[&str], rules: &Ruleset) -> Result<Found, RedirectError> {
    let mut kernel = Conversation::open(NETLINK_NETFILTER)
        .map_err(|error| RedirectError::explain(Step::Netfilter, error))?;
    let found = Dump::read(&mut kernel, tables)
        .map_err(|error| RedirectError::explain(Step::ReadRules, error))?;
    if found.tables.is_empty() {
        return Ok(Found::Nothing);
    }
    let wanted = Dump::of(rules);
    Ok(if found == wanted {
        Found::Same
    } else {
        Found::Other
    })
}

/// Messages of one transaction, each with what it is for.
#[derive(Default)]
struct Batch {
    messages: Vec<(NfTablesMessage, u16)>,
    steps: Vec<Step>,
}

impl Batch {
    /// Deletes a table; made first, so that its absence is no error.
    fn delete(&mut self, table: &'static str) {
        let name = TableMessage {
            attributes: vec![TableAttribute::Name(table.to_owned())],
        };
        self.push(
            NfTablesMessage::NewTable(name.clone()),
            NLM_F_CREATE,
            Step::Table,
        );
        self.push(NfTablesMessage::DeleteTable(name), 0, Step::Table);
    }

    fn add(&mut self, table: &Table) {
        let attributes = table_attributes(table.name);
        let message = NfTablesMessage::NewTable(TableMessage { attributes });
        self.push(message, NLM_F_CREATE, Step::Table);
        for (set, id) in table.sets.iter().zip(1..) {
            for message in sets::messages(table.name, set, id) {
                self.push(message, NLM_F_CREATE, Step::Set);
            }
        }
        for chain in &table.chains {
            let attributes = chain_attributes(table.name, chain);
            let message = NfTablesMessage::NewChain(ChainMessage { attributes });
            self.push(message, NLM_F_CREATE, Step::Chain(chain.kind));
            for rule in &chain.rules {
                let attributes = vec![
                    RuleAttribute::Table(table.name.to_owned()),
                    RuleAttribute::Chain(chain.name.to_owned()),
                    RuleAttribute::Expressions(expressions::of(rule)),
                ];
                let message = NfTablesMessage::NewRule(RuleMessage { attributes });
                self.push(message, NLM_F_CREATE | NLM_F_APPEND, Step::Rule);
            }
        }
    }

    fn push(&mut self, message: NfTablesMessage, flags: u16, step: Step) {
        self.messages.push((message, flags | NLM_F_ACK));
        self.steps.push(step);
    }

    fn commit(self) -> Result<(), RedirectError> {
        let mut kernel = Conversation::open(NETLINK_NETFILTER)
            .map_err(|error| RedirectError::explain(Step::Netfilter, error))?;
        let mut messages = vec![(control(ControlMessage::BatchBegin), 0)];
        let rules = self.messages.into_iter();
        messages.extend(rules.map(|(message, flags)| (in_family(message), flags)));
        messages.push((control(ControlMessage::BatchEnd), 0));
        kernel.batch(messages).map_err(|error| {
            // The first message opens the batch; a refusal of it concerns the whole.
            let step = match &error {
                NetlinkError::Refused(refusal) => refusal
                    .index
                    .checked_sub(1)
                    .and_then(|index| self.steps.get(index).copied()),
                _ => None,
            };
            RedirectError::explain(step.unwrap_or(Step::Netfilter), error)
        })
    }
}

fn control(message: ControlMessage) -> NetfilterMessage {
    NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM),
        message,
    )
}

fn in_family(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0),
        message,
    )
}

fn table_attributes(name: &str) -> Vec<TableAttribute> {
    vec![
        TableAttribute::Name(name.to_owned()),
        TableAttribute::Flags(TableFlags::empty()),
    ]
}

fn chain_attributes(table: &str, chain: &Chain) -> Vec<ChainAttribute> {
    let hook = match chain.hook {
        Hook::Prerouting => InetHookNumber::PreRouting,
        Hook::Output => InetHookNumber::LocalOut,
        Hook::Postrouting => InetHookNumber::PostRouting,
    };
    vec![
        ChainAttribute::Table(table.to_owned()),
        ChainAttribute::Name(chain.name.to_owned()),
        ChainAttribute::Hook(vec![
            HookAttribute::Number(HookNumber::Inet(hook)),
            HookAttribute::Priority(chain.priority().cast_unsigned()),
        ]),
        ChainAttribute::Policy(ACCEPT),
        ChainAttribute::Type(chain.kind.name().to_owned()),
    ]
}

/// Our tables in a form in which equal means equal: attributes sorted, what the kernel counts or numbers left out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Dump {
    tables: Vec<Attributes>,
    sets: Vec<Attributes>,
    /// Keys, with the names of their table and set.
    elements: Vec<(String, String, Vec<u8>)>,
    chains: Vec<Attributes>,
    rules: Vec<(String, String, Vec<Attributes>)>,
}

/// Kinds and values of attributes, sorted.
type Attributes = Vec<(u16, Vec<u8>)>;

impl Dump {
    /// The form of a rule set.
    fn of(rules: &Ruleset) -> Self {
        let mut dump = Self::default();
        for table in &rules.tables {
            dump.tables.push(canonical(&table_attributes(table.name)));
            for set in &table.sets {
                dump.sets
                    .push(sets::canonical_set(&sets::attributes(table.name, set, 0)));
                dump.add_elements(table.name, set.name, sets::keys(set));
            }
            for chain in &table.chains {
                dump.chains
                    .push(canonical(&chain_attributes(table.name, chain)));
                for rule in &chain.rules {
                    let name = (table.name.to_owned(), chain.name.to_owned());
                    dump.add_rule(name, &expressions::of(rule));
                }
            }
        }
        dump.sorted()
    }

    /// Reads the tables of these names from the kernel.
    fn read(kernel: &mut Conversation, tables: &[&str]) -> Result<Self, NetlinkError> {
        let mut dump = Self::default();
        let all = TableMessage { attributes: vec![] };
        let mut there = Vec::new();
        for message in dump_of(kernel, NfTablesMessage::GetTable(all))? {
            if let NfTablesMessage::NewTable(table) = message {
                there.extend(dump.read_table(&table.attributes, tables));
            }
        }
        let all = ChainMessage { attributes: vec![] };
        for message in dump_of(kernel, NfTablesMessage::GetChain(all))? {
            if let NfTablesMessage::NewChain(chain) = message {
                dump.read_chain(&chain.attributes, tables);
            }
        }
        for table in there {
            for (set, attributes) in sets::of_table(kernel, table)? {
                let keys = sets::keys_of(kernel, table, &set)?;
                dump.sets.push(attributes);
                dump.add_elements(table, &set, keys);
            }
            let of_table = RuleMessage {
                attributes: vec![RuleAttribute::Table(table.to_owned())],
            };
            for message in dump_of(kernel, NfTablesMessage::GetRule(of_table))? {
                if let NfTablesMessage::NewRule(rule) = message {
                    dump.read_rule(&rule.attributes, table);
                }
            }
        }
        Ok(dump.sorted())
    }

    /// Notes a table if its name is one of these; returns it then.
    fn read_table<'a>(
        &mut self,
        attributes: &[TableAttribute],
        tables: &[&'a str],
    ) -> Option<&'a str> {
        let is_named = |wanted: &str| {
            let mut attributes = attributes.iter();
            attributes.any(|a| matches!(a, TableAttribute::Name(name) if name == wanted))
        };
        let ours = tables.iter().find(|table| is_named(table))?;
        self.tables.push(canonical(attributes.iter().filter(|a| {
            matches!(a, TableAttribute::Name(_) | TableAttribute::Flags(_))
        })));
        Some(ours)
    }

    fn read_chain(&mut self, attributes: &[ChainAttribute], tables: &[&str]) {
        let ours = attributes
            .iter()
            .any(|a| matches!(a, ChainAttribute::Table(name) if tables.contains(&name.as_str())));
        if ours {
            self.chains.push(canonical(attributes.iter().filter(|a| {
                matches!(
                    a,
                    ChainAttribute::Table(_)
                        | ChainAttribute::Name(_)
                        | ChainAttribute::Hook(_)
                        | ChainAttribute::Policy(_)
                        | ChainAttribute::Type(_)
                )
            })));
        }
    }

    fn add_elements(&mut self, table: &str, set: &str, keys: Vec<Vec<u8>>) {
        let keys = keys.into_iter();
        self.elements
            .extend(keys.map(|key| (table.to_owned(), set.to_owned(), key)));
    }

    fn read_rule(&mut self, attributes: &[RuleAttribute], wanted: &str) {
        let mut name = (String::new(), String::new());
        let mut instructions: &[ListAttribute<ExpressionAttribute>] = &[];
        for attribute in attributes {
            match attribute {
                RuleAttribute::Table(table) => name.0.clone_from(table),
                RuleAttribute::Chain(chain) => name.1.clone_from(chain),
                RuleAttribute::Expressions(list) => instructions = list,
                _ => {}
            }
        }
        // A kernel that does not know the request's filter sends the rules of all tables.
        if name.0 == wanted {
            self.add_rule(name, instructions);
        }
    }

    fn add_rule(
        &mut self,
        (table, chain): (String, String),
        instructions: &[ListAttribute<ExpressionAttribute>],
    ) {
        let instructions = instructions.iter().map(instruction).collect();
        self.rules.push((table, chain, instructions));
    }

    /// Tables, sets and chains in any order, rules by chain and there in their own order.
    fn sorted(mut self) -> Self {
        self.tables.sort();
        self.sets.sort();
        self.elements.sort();
        self.chains.sort();
        self.rules
            .sort_by(|(t1, c1, _), (t2, c2, _)| (t1, c1).cmp(&(t2, c2)));
        self
    }
}

fn dump_of(
    kernel: &mut Conversation,
    message: NfTablesMessage,
) -> Result<impl Iterator<Item = NfTablesMessage>, NetlinkError> {
    let found = kernel.dump(in_family(message))?;
    Ok(found.into_iter().filter_map(|message| match message.inner {
        NetfilterMessageInner::NfTables(message) => Some(message),
        _ => None,
    }))
}

/// One instruction: its name and its own attributes, sorted together.
fn instruction(element: &ListAttribute<ExpressionAttribute>) -> Attributes {
    match element {
        ListAttribute::Element(parts) => {
            let mut all = Attributes::new();
            for part in parts {
                match part {
                    ExpressionAttribute::Data(data) => all.extend(own_attributes(data)),
                    other => all.extend(canonical([other])),
                }
            }
            all
        }
        other => canonical([other]),
    }
}

fn own_attributes(data: &netlink_packet_netfilter::nftables::Expressions) -> Attributes {
    use netlink_packet_netfilter::nftables::Expressions;
    match data {
        Expressions::Bitwise(attributes) => canonical(attributes),
        Expressions::Cmp(attributes) => canonical(attributes),
        Expressions::Immediate(attributes) => canonical(attributes),
        Expressions::Lookup(attributes) => canonical(attributes),
        Expressions::Meta(attributes) => canonical(attributes),
        Expressions::Payload(attributes) => canonical(attributes),
        Expressions::Unknown(attributes) | Expressions::Other { attributes, .. } => {
            canonical(attributes)
        }
        // A kind of instruction that a newer crate knows: never one of ours, so it only has to differ.
        other => vec![(u16::MAX, format!("{other:?}").into_bytes())],
    }
}

fn canonical<'a, A: Nla + 'a>(attributes: impl IntoIterator<Item = &'a A>) -> Attributes {
    let mut all: Attributes = attributes
        .into_iter()
        .map(|attribute| {
            let mut value = vec![0; attribute.value_len()];
            attribute.emit_value(&mut value);
            (attribute.kind(), value)
        })
        .collect();
    all.sort();
    all
}
