//! What the checks are judged from: plain values, as far as they could be read.
//!
//! Filled in by `gather.rs`, judged by the others. No Kubernetes type is needed to write a test.

use std::collections::BTreeMap;

use ambit_core::checks::NodeChecks;
use ambit_core::status::MeshStatus;

use crate::mesh::{MeshPod, Program};

/// A fact, or why it could not be read.
pub(crate) type Read<T> = Result<T, String>;

/// Everything that was read.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// Where the API server is.
    pub(crate) url: String,
    /// The mesh's own namespace.
    pub(crate) namespace: String,
    /// The API server's version, such as `v1.34.4`.
    pub(crate) version: Read<String>,
    /// What the user may do, of what an installation or these checks need.
    pub(crate) rights: Vec<Right>,
    pub(crate) nodes: Read<Vec<Node>>,
    pub(crate) namespaces: Read<Vec<Namespace>>,
    /// Names of all CRDs.
    pub(crate) kinds: Read<Vec<String>>,
    /// All DaemonSets, as `namespace/name`.
    pub(crate) daemonsets: Read<Vec<String>>,
    /// Cilium's settings, where it is.
    pub(crate) cilium: Option<BTreeMap<String, String>>,
    /// The mesh, where it is installed.
    pub(crate) mesh: Option<Mesh>,
}

/// Something that a user may or may not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    /// As kubectl says it: `create daemonsets.apps in ambit-system`.
    pub(crate) what: String,
    /// Needed to install; otherwise to look.
    pub(crate) to_install: bool,
    pub(crate) allowed: Read<bool>,
}

/// One node, as its kubelet describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) os: String,
    pub(crate) architecture: String,
    /// Such as `6.1.0-18-amd64`.
    pub(crate) kernel: String,
    /// Such as `containerd://1.7.2`.
    pub(crate) runtime: String,
    pub(crate) ready: bool,
}

/// One namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The installed mesh.
#[derive(Clone, Debug)]
pub(crate) struct Mesh {
    /// How many pods of each program there should be.
    pub(crate) desired: Vec<(Program, usize)>,
    pub(crate) pods: Read<Vec<MeshPod>>,
    /// What all controllers say together; none when there is no controller.
    pub(crate) status: Option<MeshStatus>,
    /// What each agent says.
    pub(crate) agents: Vec<AgentAnswer>,
}

/// What one agent says.
#[derive(Clone, Debug)]
pub(crate) struct AgentAnswer {
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) says: Read<AgentSays>,
}

/// An agent's node and pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct AgentSays {
    pub(crate) checks: NodeChecks,
    pub(crate) pods: Vec<HandledPod>,
}

/// A pod that an agent deals with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HandledPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// `waiting`, `held`, `captured` or `leaving`.
    pub(crate) state: String,
    pub(crate) why: String,
}

impl Facts {
    /// The nodes that the mesh can be on: those with Linux.
    pub(crate) fn linux_nodes(&self) -> Vec<&Node> {
        let nodes = self.nodes.as_deref().unwrap_or_default();
        nodes.iter().filter(|node| node.os == "linux").collect()
    }
}

#[cfg(test)]
impl Facts {
    /// A cluster where all is well and nothing is installed.
    pub(crate) fn fine() -> Self {
        let node = |name: &str| Node {
            name: name.into(),
            os: "linux".into(),
            architecture: "amd64".into(),
            kernel: "6.18.5".into(),
            runtime: "containerd://1.7.2".into(),
            ready: true,
        };
        Self {
            url: "https://api".into(),
            namespace: "ambit-system".into(),
            version: Ok("v1.34.4".into()),
            rights: vec![],
            nodes: Ok(vec![node("n1"), node("n2")]),
            namespaces: Ok(vec![]),
            kinds: Ok(vec![
                "authorizationpolicies.security.istio.io".into(),
                "peerauthentications.security.istio.io".into(),
            ]),
            daemonsets: Ok(vec!["kube-system/kube-proxy".into()]),
            cilium: None,
            mesh: None,
        }
    }
}
