//! `PeerAuthentication` (`security.istio.io/v1`): every field of its spec.
//!
//! Read through [`super::Policy`]; how several of them merge is said in the translation. Follows istio/api
//! `security/v1beta1/peer_authentication.proto`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Labels, Mapping, Selector, Spec, present};

/// Whether a connection needs mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// What the level above says.
    #[default]
    Unset,
    /// For a ztunnel the same as PERMISSIVE: it always accepts both.
    Disable,
    /// Both are accepted.
    Permissive,
    /// Plaintext is refused.
    Strict,
}

/// A mode where one may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MutualTls {
    /// The mode.
    pub mode: Mode,
}

/// The spec.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    /// Read by [`super::Policy`].
    #[serde(deserialize_with = "present")]
    selector: Option<Mapping<Selector>>,
    /// For all ports that are not named.
    pub mtls: Mapping<MutualTls>,
    /// By the port of the workload.
    pub port_level_mtls: BTreeMap<u16, Mapping<MutualTls>>,
}

impl Spec for PeerAuthenticationSpec {
    const HAS_TARGETS: bool = false;

    fn check(&self) -> Result<(), String> {
        if self.port_level_mtls.contains_key(&0) {
            return Err("spec.portLevelMtls: port 0 does not exist".to_owned());
        }
        let labels = self.selector.as_ref().map(|s| &s.match_labels);
        if !self.port_level_mtls.is_empty() && labels.is_none_or(Labels::is_empty) {
            return Err("spec.portLevelMtls: ports need a selector".to_owned());
        }
        Ok(())
    }
}
