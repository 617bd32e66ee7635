//! Names of things in the mesh: cheap to clone, compared by value, printed the way operators write them.
//!
//! Called by every other module. Knows nothing of where a name came from (Kubernetes, xDS, a header).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

/// A string that is cloned often and never changed: one allocation, shared.
pub type Text = Arc<str>;

/// Name of a namespaced object, printed `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    /// The object's namespace.
    pub namespace: Text,
    /// The object's name.
    pub name: Text,
}

impl NamespacedName {
    /// Joins a namespace and a name.
    pub fn new(namespace: impl Into<Text>, name: impl Into<Text>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Reads `namespace/name`; none when there is not exactly one slash or a part is empty.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = split_pair(text)?;
        Some(Self::new(namespace, name))
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A DNS name in lower case without a trailing dot; `*.x` is allowed where the protocol allows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Text);

impl Hostname {
    /// Normalises a host name to lower case and drops one trailing dot.
    pub fn new(text: &str) -> Self {
        let trimmed = text.strip_suffix('.').unwrap_or(text);
        Self(trimmed.to_ascii_lowercase().into())
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Key of a service in the mesh, printed `namespace/hostname` (WDS resource name).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace that owns the service.
    pub namespace: Text,
    /// Fully qualified host name of the service.
    pub hostname: Hostname,
}

impl ServiceKey {
    /// Joins a namespace and a host name.
    pub fn new(namespace: impl Into<Text>, hostname: &str) -> Self {
        Self {
            namespace: namespace.into(),
            hostname: Hostname::new(hostname),
        }
    }

    /// Reads `namespace/hostname`; none when there is not exactly one slash or a part is empty.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, hostname) = split_pair(text)?;
        Some(Self::new(namespace, hostname))
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Text);

        impl $name {
            /// Takes the text as it is.
            pub fn new(text: impl Into<Text>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }
    };
}

text_newtype!(
    /// Unique key of a workload, for a pod `cluster//Pod/namespace/name`.
    WorkloadUid
);
text_newtype!(
    /// Name of an L3 network; empty is the default network. Only one is served today, every address key holds it.
    NetworkId
);
text_newtype!(
    /// Name of a cluster, `Kubernetes` by default. Only one is served today, every workload names it.
    ClusterId
);
text_newtype!(
    /// Kubernetes uid of a pod: the key of the handoff between node agent and ztunnel.
    PodUid
);

impl WorkloadUid {
    /// The key of a pod: `cluster//Pod/namespace/name`.
    pub fn pod(cluster: &ClusterId, namespace: &str, name: &str) -> Self {
        Self::new(format!("{cluster}//Pod/{namespace}/{name}"))
    }
}

/// An address and the network in which it is meaningful, printed `network/ip`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network; the default one is empty.
    pub network: NetworkId,
    /// The address; never an IPv4-mapped IPv6 address.
    pub ip: IpAddr,
}

impl NetworkAddress {
    /// Joins network and address; an IPv4-mapped IPv6 address becomes IPv4.
    pub fn new(network: NetworkId, ip: IpAddr) -> Self {
        Self {
            network,
            ip: ip.to_canonical(),
        }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

macro_rules! serialize_as_display {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    )*};
}
serialize_as_display!(NamespacedName, Hostname, ServiceKey, NetworkAddress);

fn split_pair(text: &str) -> Option<(&str, &str)> {
    let (left, right) = text.split_once('/')?;
    (!left.is_empty() && !right.is_empty() && !right.contains('/')).then_some((left, right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_need_exactly_one_slash() {
        assert_eq!(
            NamespacedName::parse("a/b"),
            Some(NamespacedName::new("a", "b"))
        );
        for bad in ["", "a", "/b", "a/", "a/b/c"] {
            assert_eq!(NamespacedName::parse(bad), None, "{bad}");
            assert_eq!(ServiceKey::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn hostnames_compare_without_case_or_final_dot() {
        assert_eq!(
            Hostname::new("Web.Shop.svc."),
            Hostname::new("web.shop.svc")
        );
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped = NetworkAddress::new(NetworkId::default(), "::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(mapped.to_string(), "/10.0.0.1");
    }
}
