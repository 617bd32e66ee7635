//! The headers that HBONE proxies send with CONNECT: `baggage`, `forwarded` and `traceparent`.
//!
//! They are claims of the peer, used in logs and metrics only; no decision may rest on them. Reading is lenient where
//! the standards are (unknown entries are skipped) and never fails loudly, since Envoy peers send none of them.
//! W3C Baggage, RFC 7239 and W3C Trace Context, in the narrow forms of istio/ztunnel.

use std::fmt;
use std::net::SocketAddr;

use crate::names::{Hostname, Text};
use crate::workload::{Workload, WorkloadType};

/// Longest header value that is read, in bytes (W3C Baggage §3.3.2); of a longer one nothing is.
const MAX_LEN: usize = 8192;

/// Who a peer says it is; empty texts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// Cluster, `k8s.cluster.name`.
    pub cluster: Text,
    /// Namespace, `k8s.namespace.name`.
    pub namespace: Text,
    /// Kind of owner: the middle of `k8s.deployment.name` and its like.
    pub workload_type: WorkloadType,
    /// Name of the owner.
    pub workload_name: Text,
    /// Canonical name, `service.name`.
    pub service_name: Text,
    /// Canonical revision, `service.version`.
    pub service_version: Text,
    /// Region, `cloud.region`.
    pub region: Text,
    /// Zone, `cloud.availability_zone`.
    pub zone: Text,
}

impl Baggage {
    /// What a proxy says of a workload.
    pub fn of(workload: &Workload) -> Self {
        Self {
            cluster: workload.cluster.as_str().into(),
            namespace: Text::clone(&workload.namespace),
            workload_type: workload.workload_type,
            workload_name: Text::clone(&workload.workload_name),
            service_name: Text::clone(&workload.canonical_name),
            service_version: Text::clone(&workload.canonical_revision),
            region: Text::clone(&workload.locality.region),
            zone: Text::clone(&workload.locality.zone),
        }
    }

    /// Reads what is known in a header; the first of several equal keys counts.
    pub fn parse(header: &str) -> Self {
        let mut read = Self::default();
        if header.len() > MAX_LEN {
            return read;
        }
        for entry in header.split(',') {
            let pair = entry.split(';').next().unwrap_or_default();
            if let Some((key, value)) = pair.split_once('=') {
                read.take(key.trim(), value.trim());
            }
        }
        read
    }

    fn take(&mut self, key: &str, value: &str) {
        let kind = WORKLOAD_KEYS.iter().find(|(name, _)| *name == key);
        let slot = match (kind, key) {
            (Some(_), _) => &mut self.workload_name,
            (_, "k8s.cluster.name") => &mut self.cluster,
            (_, "k8s.namespace.name") => &mut self.namespace,
            (_, "service.name") => &mut self.service_name,
            (_, "service.version") => &mut self.service_version,
            (_, "cloud.region") => &mut self.region,
            (_, "cloud.availability_zone") => &mut self.zone,
            _ => return,
        };
        if !slot.is_empty() || !is_baggage_value(value) {
            return;
        }
        *slot = value.into();
        if let Some((_, kind)) = kind {
            self.workload_type = *kind;
        }
    }
}

impl fmt::Display for Baggage {
    /// Prints the header; what is unknown, or would break the header, is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload_key = WORKLOAD_KEYS
            .iter()
            .find(|(_, kind)| *kind == self.workload_type)
            .map_or("k8s.pod.name", |(key, _)| *key);
        let entries = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (workload_key, &self.workload_name),
            ("service.name", &self.service_name),
            ("service.version", &self.service_version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut separator = "";
        for (key, value) in entries {
            if is_baggage_value(value) {
                write!(f, "{separator}{key}={value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

const WORKLOAD_KEYS: [(&str, WorkloadType); 4] = [
    ("k8s.deployment.name", WorkloadType::Deployment),
    ("k8s.cronjob.name", WorkloadType::CronJob),
    ("k8s.pod.name", WorkloadType::Pod),
    ("k8s.job.name", WorkloadType::Job),
];

/// Not empty and only of W3C Baggage's `baggage-octet`s: nothing that separates, quotes or controls.
fn is_baggage_value(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b';' | b'\\'))
}

/// Whom a proxy speaks for and what name was asked for (RFC 7239).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's own address, where the peer gives one with a port.
    pub client: Option<SocketAddr>,
    /// Host name of the service that the client addressed.
    pub host: Option<Hostname>,
}

impl Forwarded {
    /// Reads the first element of a header; parts that are missing or malformed are none.
    pub fn parse(header: &str) -> Self {
        let mut read = Self::default();
        if header.len() > MAX_LEN {
            return read;
        }
        let first = header.split(',').next().unwrap_or_default();
        for (name, value) in first.split(';').filter_map(|pair| pair.split_once('=')) {
            let value = unquoted(value.trim());
            if name.trim().eq_ignore_ascii_case("for") && read.client.is_none() {
                read.client = value.parse().ok();
            } else if name.trim().eq_ignore_ascii_case("host") && read.host.is_none() {
                read.host = is_host(value).then(|| Hostname::new(value));
            }
        }
        read
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
        }
        let separator = if self.client.is_some() { ";" } else { "" };
        match &self.host {
            Some(host) if is_host(host.as_str()) => write!(f, "{separator}host={host}"),
            _ => Ok(()),
        }
    }
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"')
        .and_then(|t| t.strip_suffix('"'))
        .unwrap_or(text)
}

/// A host name as a token of RFC 7239 §4: nothing that would need quotes.
fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'*'))
}

/// Identity of a connection in traces (W3C Trace Context §3.2); neither id is ever zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traceparent {
    trace_id: u128,
    parent_id: u64,
    flags: u8,
}

impl Traceparent {
    /// Starts a trace from two random numbers, not sampled.
    pub fn new(trace_roll: u128, parent_roll: u64) -> Self {
        Self {
            trace_id: trace_roll.max(1),
            parent_id: parent_roll.max(1),
            flags: 0,
        }
    }

    /// Continues the trace under another random parent id.
    #[must_use]
    pub fn child(self, parent_roll: u64) -> Self {
        Self {
            parent_id: parent_roll.max(1),
            ..self
        }
    }

    /// Reads a header of version 00, or the part of a later version that has the same form.
    pub fn parse(header: &str) -> Option<Self> {
        let (version, rest) = header.split_once('-')?;
        let (trace, rest) = rest.split_once('-')?;
        let (parent, rest) = rest.split_once('-')?;
        let (flags, more) = rest
            .split_once('-')
            .map_or((rest, false), |(flags, _)| (flags, true));
        let version = hex(version, 2)?;
        if version == 0xff || (version == 0 && more) {
            return None;
        }
        Some(Self {
            trace_id: hex(trace, 32).filter(|id| *id != 0)?,
            parent_id: u64::try_from(hex(parent, 16)?).ok().filter(|id| *id != 0)?,
            flags: u8::try_from(hex(flags, 2)?).ok()?,
        })
    }

    /// The trace's id.
    pub const fn trace_id(self) -> u128 {
        self.trace_id
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.parent_id, self.flags
        )
    }
}

/// Exactly `digits` lower-case hexadecimal digits.
fn hex(text: &str, digits: usize) -> Option<u128> {
    let plain =
        text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests;
