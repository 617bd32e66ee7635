//! SPIFFE identities as the mesh uses them: `spiffe://trust-domain/ns/namespace/sa/service-account`.
//!
//! Called by TLS verification, policy, WDS and the CA. Follows the SPIFFE ID specification, narrowed to the
//! five segments that Istio accepts.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

use crate::names::Text;

/// The trust domain when none is configured.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// Longest SPIFFE ID that is read, in bytes (SPIFFE ID §2.3).
const MAX_LEN: usize = 2048;

/// Identity of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The trust domain, compared byte for byte.
    pub trust_domain: Text,
    /// The Kubernetes namespace.
    pub namespace: Text,
    /// The Kubernetes service account.
    pub service_account: Text,
}

/// Why a text is not an identity of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpiffeIdError {
    /// It does not begin with `spiffe://`.
    #[error("a SPIFFE ID begins with spiffe://")]
    Scheme,
    /// The path is not `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    #[error(
        "a SPIFFE ID of the mesh has the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
    )]
    Form,
    /// A segment is empty or has a character that is not allowed (SPIFFE ID §2.1, §2.2).
    #[error("a SPIFFE ID has letters, digits, '.', '-' and '_' between its slashes")]
    Characters,
    /// Over 2048 bytes.
    #[error("a SPIFFE ID has at most 2048 bytes")]
    Length,
}

impl SpiffeId {
    /// Builds an identity from parts that are trusted to be well-formed.
    pub fn new(
        trust_domain: impl Into<Text>,
        namespace: impl Into<Text>,
        service_account: impl Into<Text>,
    ) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// Reads `spiffe://trust-domain/ns/namespace/sa/service-account`.
    ///
    /// # Errors
    /// When the text has another form; nothing is guessed or repaired.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_LEN {
            return Err(SpiffeIdError::Length);
        }
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or(SpiffeIdError::Scheme)?;
        let mut parts = rest.split('/');
        let mut next = || parts.next().ok_or(SpiffeIdError::Form);
        let (trust_domain, ns, namespace, sa, service_account) =
            (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(SpiffeIdError::Form);
        }
        let all_good = [trust_domain, namespace, service_account]
            .into_iter()
            .all(is_segment);
        if !all_good {
            return Err(SpiffeIdError::Characters);
        }
        Ok(Self::new(trust_domain, namespace, service_account))
    }

    /// The form that policies compare: without the `spiffe://`.
    pub fn principal(&self) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

fn is_segment(text: &str) -> bool {
    !text.is_empty()
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_everything_but_the_five_segments() {
        let cases = [
            ("https://cluster.local/ns/a/sa/b", SpiffeIdError::Scheme),
            ("spiffe://cluster.local", SpiffeIdError::Form),
            ("spiffe://cluster.local/ns/a/sa", SpiffeIdError::Form),
            ("spiffe://cluster.local/ns/a/sa/b/c", SpiffeIdError::Form),
            ("spiffe://cluster.local/sa/a/ns/b", SpiffeIdError::Form),
            ("spiffe:///ns/a/sa/b", SpiffeIdError::Characters),
            ("spiffe://cluster.local/ns//sa/b", SpiffeIdError::Characters),
            (
                "spiffe://cluster.local/ns/a%2fb/sa/b",
                SpiffeIdError::Characters,
            ),
            (
                "spiffe://cluster.local/ns/../sa/b",
                SpiffeIdError::Characters,
            ),
        ];
        for (text, error) in cases {
            assert_eq!(SpiffeId::parse(text), Err(error), "{text}");
        }
        let long = format!("spiffe://{}/ns/a/sa/b", "x".repeat(MAX_LEN));
        assert_eq!(SpiffeId::parse(&long), Err(SpiffeIdError::Length));
    }

    proptest! {
        #[test]
        fn prints_what_it_reads(td in "[a-z0-9.-]{1,20}", ns in "[a-z0-9-]{1,20}", sa in "[a-z0-9-]{1,20}") {
            let id = SpiffeId::new(td, ns, sa);
            let is_dots = [&id.trust_domain, &id.namespace].iter().any(|t| matches!(&***t, "." | ".."));
            prop_assume!(!is_dots);
            prop_assert_eq!(SpiffeId::parse(&id.to_string()), Ok(id));
        }

        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ignored = SpiffeId::parse(&text);
        }
    }
}
