//! The rules of a policy: `istio.security.Rule` and [`Rule`], both ways.
//!
//! Called by `policy.rs` only. Any error in here makes the whole policy unreadable: leaving out one attribute of a
//! match would widen it.

use ambit_core::policy::{Clause, Match, Rule, ServiceAccountMatch, StringMatch};
use ipnet::IpNet;

use super::super::{WireError, decode_net, decode_port, encode_ip};
use crate::proto::security as pb;
use crate::proto::security::string_match::MatchType;

pub(super) fn encode(rule: &Rule) -> pb::Rule {
    let clause = |clause: &Clause| pb::Clause {
        matches: clause.matches.iter().map(encode_match).collect(),
    };
    pb::Rule {
        clauses: rule.clauses.iter().map(clause).collect(),
    }
}

pub(super) fn decode(rule: pb::Rule) -> Result<Rule, WireError> {
    let clause = |clause: pb::Clause| {
        let matches = clause.matches.into_iter().map(decode_match);
        let matches = matches.collect::<Result<_, _>>()?;
        Ok(Clause { matches })
    };
    let clauses = rule.clauses.into_iter().map(clause);
    Ok(Rule {
        clauses: clauses.collect::<Result<_, _>>()?,
    })
}

fn encode_match(m: &Match) -> pb::Match {
    pb::Match {
        namespaces: each(&m.namespaces, encode_string),
        not_namespaces: each(&m.not_namespaces, encode_string),
        principals: each(&m.principals, encode_string),
        not_principals: each(&m.not_principals, encode_string),
        source_ips: each(&m.source_ips, encode_range),
        not_source_ips: each(&m.not_source_ips, encode_range),
        destination_ips: each(&m.destination_ips, encode_range),
        not_destination_ips: each(&m.not_destination_ips, encode_range),
        destination_ports: each(&m.destination_ports, |port| u32::from(*port)),
        not_destination_ports: each(&m.not_destination_ports, |port| u32::from(*port)),
        service_accounts: each(&m.service_accounts, encode_account),
        not_service_accounts: each(&m.not_service_accounts, encode_account),
        extensions: Vec::new(),
    }
}

fn decode_match(m: pb::Match) -> Result<Match, WireError> {
    if let Some(extension) = m.extensions.first() {
        return Err(WireError::Unknown(format!(
            "extension {:?}",
            extension.name
        )));
    }
    let port = |port: &u32| decode_port("destination_ports", *port);
    Ok(Match {
        namespaces: try_each(&m.namespaces, decode_string)?,
        not_namespaces: try_each(&m.not_namespaces, decode_string)?,
        principals: try_each(&m.principals, decode_string)?,
        not_principals: try_each(&m.not_principals, decode_string)?,
        source_ips: try_each(&m.source_ips, decode_range)?,
        not_source_ips: try_each(&m.not_source_ips, decode_range)?,
        destination_ips: try_each(&m.destination_ips, decode_range)?,
        not_destination_ips: try_each(&m.not_destination_ips, decode_range)?,
        destination_ports: try_each(&m.destination_ports, port)?,
        not_destination_ports: try_each(&m.not_destination_ports, port)?,
        service_accounts: try_each(&m.service_accounts, decode_account)?,
        not_service_accounts: try_each(&m.not_service_accounts, decode_account)?,
    })
}

fn encode_string(text: &StringMatch) -> pb::StringMatch {
    let match_type = match text {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(()),
    };
    pb::StringMatch {
        match_type: Some(match_type),
    }
}

fn decode_string(text: &pb::StringMatch) -> Result<StringMatch, WireError> {
    match text.match_type.as_ref() {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.as_str().into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.as_str().into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.as_str().into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(WireError::Missing("match_type")),
    }
}

fn encode_range(net: &IpNet) -> pb::Address {
    pb::Address {
        address: encode_ip(net.addr()),
        length: net.prefix_len().into(),
    }
}

fn decode_range(range: &pb::Address) -> Result<IpNet, WireError> {
    decode_net("address", &range.address, range.length)
}

fn encode_account(account: &ServiceAccountMatch) -> pb::ServiceAccountMatch {
    pb::ServiceAccountMatch {
        namespace: account.namespace.to_string(),
        service_account: account.service_account.to_string(),
    }
}

/// An empty part would compare with nothing, and an exclusion that excludes nothing lets everybody in.
fn decode_account(account: &pb::ServiceAccountMatch) -> Result<ServiceAccountMatch, WireError> {
    if account.namespace.is_empty() || account.service_account.is_empty() {
        return Err(WireError::Missing("service account's name or namespace"));
    }
    Ok(ServiceAccountMatch {
        namespace: account.namespace.as_str().into(),
        service_account: account.service_account.as_str().into(),
    })
}

fn each<A, B>(items: &[A], convert: impl Fn(&A) -> B) -> Vec<B> {
    items.iter().map(convert).collect()
}

fn try_each<A, B>(
    items: &[A],
    convert: impl Fn(&A) -> Result<B, WireError>,
) -> Result<Vec<B>, WireError> {
    items.iter().map(convert).collect()
}
