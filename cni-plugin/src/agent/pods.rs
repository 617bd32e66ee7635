//! The pods of this node, as a source describes them, and which of them belong to the mesh.
//!
//! [`Source`] is what the agent listens to; what comes from it is all there is, every time. Today it reads files; pods
//! from the Kubernetes API will be a second variant. Knows nothing of namespaces of the kernel.

pub mod files;
pub mod probes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use ambit_core::names::PodUid;
use ambit_net::wire::handoff::HandoffPod;

use crate::redirect::ruleset::InterfaceName;

/// A pod that is to be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Who it is.
    pub pod: HandoffPod,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// What it asks for.
    pub options: Options,
}

/// What a pod may ask for by annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// It takes inbound TCP itself.
    pub bypass_inbound: bool,
    /// Interfaces behind it, TCP from which counts as outbound.
    pub virtual_interfaces: Vec<InterfaceName>,
}

/// What a source says at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePods {
    /// The pods of this node that belong to the mesh.
    pub enrolled: BTreeMap<PodUid, Spec>,
    /// The pods of this node that do not belong to the mesh, with where they are if they say so.
    pub others: BTreeMap<PodUid, Option<Spec>>,
    /// Pods that belong to the mesh and cannot be captured as they are described: whatever they were before, they stay.
    pub unclear: BTreeMap<PodUid, String>,
    /// True once the source could be read at all.
    pub heard: bool,
    /// False when something could not be read that may hold more pods.
    pub whole: bool,
}

/// Where pods come from.
#[derive(Debug)]
pub enum Source {
    /// A directory of Kubernetes YAML.
    Files(files::Files),
}

impl Source {
    /// Waits for a state that differs from the last one returned; the first call returns what is there.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> NodePods {
        match self {
            Self::Files(files) => files.next().await,
        }
    }
}
