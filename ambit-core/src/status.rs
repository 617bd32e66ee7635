//! What the controller tells operators about the mesh: the JSON document behind `ambit status`.
//!
//! Written by the controller's status endpoint, printed by the cli. Texts are already printed forms, and fields that a
//! reader does not know or does not find are no error: cli and controller may be one version apart.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The mesh as one controller sees it; every list is sorted by its first field or fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshStatus {
    /// Version of the controller.
    pub controller_version: String,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// When the CA's root ends, in seconds since the epoch; none when the controller does not say.
    pub root_not_after: Option<u64>,
    /// The replicas whose documents were merged into this one; empty in a document of a single controller.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<ReplicaStatus>,
    /// Nodes that have pods, a token or a proxy.
    pub nodes: Vec<NodeStatus>,
    /// Pods of the mesh's sources, enrolled or not.
    pub pods: Vec<PodStatus>,
    /// Certificates that this controller has signed and that are still valid, the newest of each identity and node.
    pub identities: Vec<IdentityStatus>,
    /// Proxies that are or were connected.
    pub proxies: Vec<ProxyStatus>,
    /// What is wrong in the sources, where a person has to act.
    pub problems: Vec<Problem>,
}

/// One replica of the controller, as whoever merged the documents saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaStatus {
    /// Its pod's name.
    pub name: String,
    /// Its version; empty when it did not answer.
    pub version: String,
    /// Why it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
}

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// The node's name.
    pub name: String,
    /// True while its proxy has an xDS stream to this controller.
    pub connected: bool,
    /// When its proxy last said which pods it serves, in seconds since the epoch; none when it never did.
    pub reported_at: Option<u64>,
    /// How many pods its proxy said it serves.
    pub pods_served: u32,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node; empty while it has none.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its SPIFFE ID.
    pub identity: String,
    /// Whether its traffic is captured.
    pub capture: CaptureState,
    /// Why it is in or out of the mesh ([`crate::enrollment::Enrollment::why`]).
    pub why: String,
}

/// Whether a pod's traffic is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureState {
    /// Its node's proxy serves it: it is announced as HBONE.
    Captured,
    /// It is enrolled and its node's proxy has not said that it serves it: it is announced as plain TCP.
    Pending,
    /// It is not enrolled.
    #[default]
    Out,
    /// It is not enrolled and its node's proxy still serves it.
    Leaving,
    /// A state of a newer controller.
    #[serde(other)]
    Unknown,
}

/// One certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentityStatus {
    /// The SPIFFE ID in it.
    pub identity: String,
    /// The node that asked for it.
    pub node: String,
    /// When it ends, in seconds since the epoch.
    pub not_after: u64,
}

/// One proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyStatus {
    /// The xDS node id that it gave.
    pub id: String,
    /// Its node, from its credential.
    pub node: String,
    /// True while its stream is open.
    pub connected: bool,
    /// What it holds of each type that it subscribed to.
    pub types: Vec<TypeStatus>,
}

/// What a proxy holds of one xDS type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TypeStatus {
    /// The type URL.
    pub type_url: String,
    /// The configuration version that the controller has.
    pub current: String,
    /// The configuration version that the proxy has acknowledged last; none before the first.
    pub acknowledged: Option<String>,
    /// Resources of the last response that the proxy would not take.
    pub rejected: Vec<Rejection>,
}

/// A resource that a proxy would not take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rejection {
    /// The resource's name; empty when the proxy refused the response as a whole.
    pub name: String,
    /// The proxy's words.
    pub cause: String,
}

/// Something wrong in the sources.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Problem {
    /// Where it is: `file:line` or `Kind namespace/name`.
    pub place: String,
    /// What it is and what to do.
    pub what: String,
}

impl fmt::Display for CaptureState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Captured => "captured",
            Self::Pending => "pending",
            Self::Out => "out",
            Self::Leaving => "leaving",
            Self::Unknown => "unknown",
        })
    }
}

impl TypeStatus {
    /// True when the proxy has acknowledged what the controller has and took all of it.
    pub fn is_in_sync(&self) -> bool {
        self.acknowledged.as_ref() == Some(&self.current) && self.rejected.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_another_version_is_still_read() {
        let newer = r#"{
            "controllerVersion": "0.2.0", "quorum": 3,
            "pods": [{ "namespace": "shop", "name": "web", "capture": "half-captured", "zone": "a" }]
        }"#;
        let status: MeshStatus = serde_json::from_str(newer).unwrap();
        assert_eq!(status.controller_version, "0.2.0");
        assert_eq!(status.pods[0].name, "web");
        assert_eq!(status.pods[0].capture, CaptureState::Unknown);
        assert!(status.nodes.is_empty());
    }

    #[test]
    fn what_is_written_is_read() {
        let written = MeshStatus {
            nodes: vec![NodeStatus {
                name: "n1".into(),
                reported_at: Some(7),
                ..NodeStatus::default()
            }],
            pods: vec![PodStatus {
                capture: CaptureState::Pending,
                ..PodStatus::default()
            }],
            proxies: vec![ProxyStatus {
                types: vec![TypeStatus {
                    acknowledged: Some("v1".into()),
                    ..TypeStatus::default()
                }],
                ..ProxyStatus::default()
            }],
            ..MeshStatus::default()
        };
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<MeshStatus>(&json).unwrap(), written);
    }

    #[test]
    fn in_sync_means_acknowledged_and_nothing_rejected() {
        let of = |acknowledged: Option<&str>, rejected| TypeStatus {
            current: "v2".into(),
            acknowledged: acknowledged.map(String::from),
            rejected,
            ..TypeStatus::default()
        };
        assert!(of(Some("v2"), vec![]).is_in_sync());
        assert!(!of(Some("v1"), vec![]).is_in_sync());
        assert!(!of(None, vec![]).is_in_sync());
        assert!(!of(Some("v2"), vec![Rejection::default()]).is_in_sync());
    }
}
