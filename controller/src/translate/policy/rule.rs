//! One rule of an AuthorizationPolicy → one rule over connections.
//!
//! Every value is read or the policy is not understood; nothing is dropped in silence. Attributes of requests cannot be
//! seen at L4: an ALLOW rule with one is left out (it would permit too much), a DENY rule loses the attribute (it refuses
//! more), and is left out where nothing else remains.

use std::net::IpAddr;

use ambit_core::names::Text;
use ambit_core::policy::{Clause, Match, PolicyAction, Rule, ServiceAccountMatch, StringMatch};

use crate::crds::authorization_policy as crd;

/// Attributes of `when` that only a proxy for HTTP or TLS sees; a key ending in `[` or `.` is a prefix.
const REQUEST_KEYS: [&str; 6] = [
    "request.headers[",
    "request.auth.",
    "remote.ip",
    "connection.sni",
    "experimental.envoy.filters.",
    "request.regex.headers[",
];

/// What remains of a rule.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Reduced {
    /// The rule; none when it can have no effect.
    pub(super) rule: Option<Rule>,
    /// What its author should know.
    pub(super) note: Option<&'static str>,
}

/// One alternative of a clause.
#[derive(Default)]
struct Element {
    fits: Match,
    /// True when it also has attributes of requests.
    sees_requests: bool,
}

/// Reduces a rule to what L4 sees; `namespace` is the policy's.
///
/// Clauses come in the order to, from, when.
///
/// # Errors
/// When a value is not understood, in words for the policy's author.
pub(super) fn reduce(
    rule: &crd::Rule,
    action: PolicyAction,
    namespace: &str,
) -> Result<Reduced, String> {
    let mut clauses: Vec<Vec<Element>> = Vec::new();
    if let Some(to) = &rule.to {
        clauses.push(
            to.iter()
                .map(|to| operation(&to.operation))
                .collect::<Result<_, _>>()?,
        );
    }
    if let Some(from) = &rule.from {
        let sources = from.iter().map(|from| source(&from.source, namespace));
        clauses.push(sources.collect::<Result<_, _>>()?);
    }
    for when in &rule.when {
        clauses.push(vec![condition(when)?]);
    }
    let sees_requests = clauses
        .iter()
        .flatten()
        .any(|element| element.sees_requests);
    if sees_requests && action == PolicyAction::Allow {
        return Ok(Reduced {
            rule: None,
            note: Some(
                "it permits nothing: it asks for attributes of requests, which need a waypoint",
            ),
        });
    }
    let clauses: Vec<_> = clauses.into_iter().map(clause).collect();
    if clauses.iter().any(|clause| clause.matches.is_empty()) {
        return Ok(Reduced {
            rule: None,
            note: Some("it refuses nothing: all that it asks for needs a waypoint"),
        });
    }
    Ok(Reduced {
        rule: Some(Rule { clauses }),
        note: sees_requests
            .then_some("it refuses more than it says: attributes of requests need a waypoint"),
    })
}

/// The alternatives that still say something.
fn clause(elements: Vec<Element>) -> Clause {
    let matches = elements.into_iter().map(|element| element.fits);
    Clause {
        matches: matches.filter(|fits| *fits != Match::default()).collect(),
    }
}

fn operation(operation: &crd::Operation) -> Result<Element, String> {
    let crd::Operation {
        ports: to_ports,
        not_ports,
        hosts,
        not_hosts,
        methods,
        not_methods,
        paths,
        not_paths,
    } = operation;
    let requests = [hosts, not_hosts, methods, not_methods, paths, not_paths];
    Ok(Element {
        fits: Match {
            destination_ports: ports(to_ports)?,
            not_destination_ports: ports(not_ports)?,
            ..Match::default()
        },
        sees_requests: requests.iter().any(|values| !values.is_empty()),
    })
}

fn source(source: &crd::Source, namespace: &str) -> Result<Element, String> {
    let requests = [
        &source.request_principals,
        &source.not_request_principals,
        &source.remote_ip_blocks,
        &source.not_remote_ip_blocks,
    ];
    Ok(Element {
        fits: Match {
            principals: principals(&source.principals)?,
            not_principals: principals(&source.not_principals)?,
            namespaces: texts(&source.namespaces)?,
            not_namespaces: texts(&source.not_namespaces)?,
            source_ips: blocks(&source.ip_blocks)?,
            not_source_ips: blocks(&source.not_ip_blocks)?,
            service_accounts: accounts(&source.service_accounts, namespace)?,
            not_service_accounts: accounts(&source.not_service_accounts, namespace)?,
            ..Match::default()
        },
        sees_requests: requests.iter().any(|values| !values.is_empty()),
    })
}

fn condition(when: &crd::Condition) -> Result<Element, String> {
    let mut element = Element::default();
    let fits = &mut element.fits;
    let crd::Condition {
        key,
        values,
        not_values,
    } = when;
    match key.as_str() {
        "source.ip" => {
            fits.source_ips = blocks(values)?;
            fits.not_source_ips = blocks(not_values)?;
        }
        "source.namespace" => {
            fits.namespaces = texts(values)?;
            fits.not_namespaces = texts(not_values)?;
        }
        "source.principal" => {
            fits.principals = principals(values)?;
            fits.not_principals = principals(not_values)?;
        }
        "destination.ip" => {
            fits.destination_ips = blocks(values)?;
            fits.not_destination_ips = blocks(not_values)?;
        }
        "destination.port" => {
            fits.destination_ports = ports(values)?;
            fits.not_destination_ports = ports(not_values)?;
        }
        key if is_of_requests(key) => element.sees_requests = true,
        key => return Err(format!("unknown condition `{key}`")),
    }
    Ok(element)
}

fn is_of_requests(key: &str) -> bool {
    REQUEST_KEYS
        .iter()
        .any(|known| match known.ends_with(['[', '.']) {
            true => key.starts_with(known),
            false => key == *known,
        })
}

/// Reads values one by one; the first that is not understood is named.
fn each<T>(
    values: &[String],
    read: impl Fn(&str) -> Option<T>,
    wanted: &str,
) -> Result<Vec<T>, String> {
    let read = |value: &String| read(value).ok_or_else(|| format!("`{value}` is no {wanted}"));
    values.iter().map(read).collect()
}

fn ports(values: &[String]) -> Result<Vec<u16>, String> {
    each(
        values,
        |text| text.parse().ok().filter(|port| *port != 0),
        "port (1 to 65535)",
    )
}

fn texts(values: &[String]) -> Result<Vec<StringMatch>, String> {
    each(
        values,
        string_match,
        "text with at most one `*`, at its beginning or end",
    )
}

fn principals(values: &[String]) -> Result<Vec<StringMatch>, String> {
    let principal = |text: &str| string_match(text).filter(|_| !text.starts_with("spiffe:"));
    each(
        values,
        principal,
        "principal (trust-domain/ns/namespace/sa/account, without spiffe://)",
    )
}

fn blocks(values: &[String]) -> Result<Vec<ipnet::IpNet>, String> {
    let block = |text: &str| match text.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical().into()),
        Err(_) => text.parse::<ipnet::IpNet>().ok().map(|net| net.trunc()),
    };
    each(values, block, "address or CIDR block")
}

fn accounts(values: &[String], namespace: &str) -> Result<Vec<ServiceAccountMatch>, String> {
    let account = |text: &str| {
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        let plain = |part: &str| !part.is_empty() && !part.contains(['*', '/']);
        (plain(namespace) && plain(name)).then(|| ServiceAccountMatch {
            namespace: namespace.into(),
            service_account: name.into(),
        })
    };
    each(
        values,
        account,
        "service account (`name` or `namespace/name`)",
    )
}

/// `*` is presence, `*x` ends with, `x*` begins with, anything else is equal.
fn string_match(text: &str) -> Option<StringMatch> {
    let plain = |rest: &str| (!rest.is_empty() && !rest.contains('*')).then(|| Text::from(rest));
    if text == "*" {
        return Some(StringMatch::Presence);
    }
    if let Some(rest) = text.strip_prefix('*') {
        return plain(rest).map(StringMatch::Suffix);
    }
    if let Some(rest) = text.strip_suffix('*') {
        return plain(rest).map(StringMatch::Prefix);
    }
    plain(text).map(StringMatch::Exact)
}
