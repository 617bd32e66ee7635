//! What an HBONE CONNECT request says in text: its target here, its headers in `headers.rs`.
//!
//! Called by the tunnel's client and server and by the inbound decision; knows no HTTP library. The bytes come from a
//! peer, so everything that is not exactly one of the known forms is refused (RFC 9110 §9.3.6, RFC 3986 §3.2).

mod headers;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::names::Hostname;

pub use headers::{Baggage, Forwarded, Traceparent};

/// Longest host name, in bytes (RFC 1035 §2.3.4 without the final dot).
const MAX_HOST: usize = 253;

/// Longest label of a host name, in bytes (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;

/// Longest authority that is read: a host name, a colon and five digits.
const MAX_AUTHORITY: usize = MAX_HOST + 6;

/// Where a CONNECT request wants to go: its `:authority`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConnectTarget {
    /// An address and port, `10.0.0.1:80` or `[fd00::1]:80`.
    Address(SocketAddr),
    /// A service's host name and port, `web.shop.svc.cluster.local:80`.
    Hostname(Hostname, u16),
}

/// Why a text names no target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// Over 259 bytes.
    #[error("an authority has at most 259 bytes")]
    TooLong,
    /// No colon, or no number from 1 to 65535 after the last one.
    #[error("an authority ends with a port from 1 to 65535")]
    Port,
    /// The part before the port is neither an address nor a host name.
    #[error("an authority begins with an IPv4 address, an IPv6 address in brackets or a host name")]
    Host,
}

impl ConnectTarget {
    /// Reads an authority: `IPv4:port`, `[IPv6]:port` or `hostname:port`.
    ///
    /// # Errors
    /// When the text is anything else: without a port, with userinfo, with spaces, with a zone, over-long. Nothing is
    /// repaired, except that case and a final dot of a host name do not matter and an IPv4-mapped address is IPv4.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if text.len() > MAX_AUTHORITY {
            return Err(TargetError::TooLong);
        }
        let (host, port) = text.rsplit_once(':').ok_or(TargetError::Port)?;
        let port = port_number(port).ok_or(TargetError::Port)?;
        let target = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(bracketed) => Self::address(bracketed.parse::<Ipv6Addr>().ok(), port),
            None if is_hostname(host) => Some(Self::Hostname(Hostname::new(host), port)),
            None => Self::address(host.parse::<Ipv4Addr>().ok(), port),
        };
        target.ok_or(TargetError::Host)
    }

    /// The port, never zero when it was parsed.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(addr) => addr.port(),
            Self::Hostname(_, port) => *port,
        }
    }

    fn address(ip: Option<impl Into<IpAddr>>, port: u16) -> Option<Self> {
        ip.map(|ip| Self::Address(SocketAddr::new(ip.into().to_canonical(), port)))
    }
}

impl fmt::Display for ConnectTarget {
    /// Prints what goes on the wire: never an IPv6 zone, which means nothing to the other side.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => SocketAddr::new(addr.ip().to_canonical(), addr.port()).fmt(f),
            Self::Hostname(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// 1 to 65535 in decimal, without sign or leading zeros.
fn port_number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    plain.then(|| text.parse().ok()).flatten()
}

/// A host name whose last label is not a number: that would be an address, and a malformed one may mean another one.
fn is_hostname(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let ends_in_number = || {
        name.rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
    };
    name.len() <= MAX_HOST && name.split('.').all(is_label) && !ends_in_number()
}

fn is_label(label: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(allowed)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests;
