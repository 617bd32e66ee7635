//! Is this pod in the mesh? Decided from labels, annotations and pod facts alone.
//!
//! Called by the controller and by the node agent, which must agree; knows neither Kubernetes types nor files. What the
//! pod says beats what its namespace says; on one object `none` beats `ambient`. Follows istio-cni's enrollment, with
//! `ambit.mesh/dataplane-mode` beside Istio's label.

use std::collections::BTreeMap;
use std::fmt;

use crate::names::PodUid;

/// Our own setting, as an annotation or a label: `ambient` or `none`.
pub const DATAPLANE_MODE: &str = "ambit.mesh/dataplane-mode";

/// Istio's setting, a label: `ambient` or `none`.
pub const ISTIO_DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// Annotation by which a node's ambient agent says that it captures a pod; ztunnels and controllers read it. Istio's key.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// Value of [`REDIRECTION`] on a pod whose traffic is captured.
pub const REDIRECTION_ENABLED: &str = "enabled";

/// Value of [`REDIRECTION`] on a pod whose capture has begun and is not complete.
pub const REDIRECTION_PENDING: &str = "pending";

/// Annotation beside [`REDIRECTION`] that says which agent wrote it.
pub const CAPTURED_BY: &str = "ambit.mesh/captured-by";

/// Value of [`CAPTURED_BY`] on a pod that our agent captures.
pub const CAPTURED_BY_AMBIT: &str = "ambit";

/// Annotation by which Istio marks a pod that has a sidecar of its own.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// Namespaces whose pods never join: the cluster's own and ours.
pub const SYSTEM_NAMESPACES: [&str; 2] = ["kube-system", "ambit-system"];

/// Labels and annotations of one object; absent maps are empty ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Metadata<'a> {
    /// The object's labels.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// The object's annotations.
    pub annotations: Option<&'a BTreeMap<String, String>>,
}

/// What the decision looks at in a pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodFacts<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's labels and annotations.
    pub metadata: Metadata<'a>,
    /// True when the pod shares its node's network (`spec.hostNetwork`).
    pub host_network: bool,
    /// `status.phase`; absent where nobody reports one.
    pub phase: Option<&'a str>,
}

/// Whether a pod belongs to the mesh, and because of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enrollment {
    /// In: the pod asks for it.
    ByPod,
    /// In: the namespace asks for it and the pod does not object.
    ByNamespace,
    /// Out: the pod shares its node's network, so its traffic cannot be told apart.
    HostNetwork,
    /// Out: the pod has a sidecar that carries its traffic.
    Sidecar,
    /// Out: another ambient mesh serves the pod.
    AnotherMesh,
    /// Out: the namespace is one that the mesh itself depends on.
    SystemNamespace,
    /// Out: the pod has ended.
    Ended,
    /// Out: the pod refuses it.
    PodOptsOut,
    /// Out: the namespace refuses it.
    NamespaceOptsOut,
    /// Out: neither pod nor namespace asks for it.
    NotAsked,
}

/// Who has announced on a pod that it captures its traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Captor {
    /// Nobody: its traffic is plain.
    Nobody,
    /// Our agent.
    Ambit,
    /// The agent of another ambient mesh; whatever the pod asks for, we leave it alone.
    Another,
}

/// Decides whether a pod belongs to the mesh.
///
/// A namespace that is not known counts as one without settings. Values other than `ambient` and `none` are no settings.
pub fn enrollment(pod: &PodFacts<'_>, namespace: &Metadata<'_>) -> Enrollment {
    if let Some(never) = never(pod) {
        return never;
    }
    asked(&pod.metadata, namespace, Heard::AllKeys)
}

/// Decides likewise on a node where the agent of another ambient mesh is at work: what asks by Istio's label alone is
/// left to that one, unless we capture it already.
pub fn enrollment_beside_another(pod: &PodFacts<'_>, namespace: &Metadata<'_>) -> Enrollment {
    let alone = enrollment(pod, namespace);
    if !alone.is_enrolled() || captor(pod.metadata.annotations) == Captor::Ambit {
        return alone;
    }
    let ours = asked(&pod.metadata, namespace, Heard::OurKeys);
    if ours.is_enrolled() {
        ours
    } else {
        Enrollment::AnotherMesh
    }
}

/// Who captures a pod, by what its annotations say.
pub fn captor(annotations: Option<&BTreeMap<String, String>>) -> Captor {
    let ours = value(annotations, CAPTURED_BY) == Some(CAPTURED_BY_AMBIT);
    match (value(annotations, REDIRECTION), ours) {
        (Some(REDIRECTION_ENABLED), true) => Captor::Ambit,
        (Some(REDIRECTION_ENABLED | REDIRECTION_PENDING), false) => Captor::Another,
        _ => Captor::Nobody,
    }
}

/// True when the pod or its namespace asks for the mesh by any key, whether or not the pod can join.
pub fn asks(pod: &Metadata<'_>, namespace: &Metadata<'_>) -> bool {
    asked(pod, namespace, Heard::AllKeys).is_enrolled()
}

/// The uid of a pod, or `namespace/name` where nobody gave it one (documents without Kubernetes).
pub fn pod_uid(uid: Option<&str>, namespace: &str, name: &str) -> PodUid {
    match uid.filter(|uid| !uid.is_empty()) {
        Some(uid) => PodUid::new(uid),
        None => PodUid::new(format!("{namespace}/{name}")),
    }
}

impl Enrollment {
    /// True when the pod belongs to the mesh.
    pub const fn is_enrolled(self) -> bool {
        matches!(self, Self::ByPod | Self::ByNamespace)
    }

    /// The cause in one phrase for operators.
    pub const fn why(self) -> &'static str {
        match self {
            Self::ByPod => "the pod asks for it",
            Self::ByNamespace => "the namespace asks for it",
            Self::HostNetwork => "pods with hostNetwork cannot join",
            Self::Sidecar => "the pod has a sidecar of its own",
            Self::AnotherMesh => "another ambient mesh serves it",
            Self::SystemNamespace => "pods of system namespaces cannot join",
            Self::Ended => "the pod has ended",
            Self::PodOptsOut => "the pod says none",
            Self::NamespaceOptsOut => "the namespace says none",
            Self::NotAsked => "neither the pod nor its namespace asks for it",
        }
    }
}

impl fmt::Display for Enrollment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

/// Which keys may ask for the mesh; all may refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    AllKeys,
    OurKeys,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Ambient,
    None,
}

fn never(pod: &PodFacts<'_>) -> Option<Enrollment> {
    if matches!(pod.phase, Some("Succeeded" | "Failed")) {
        return Some(Enrollment::Ended);
    }
    if pod.host_network {
        return Some(Enrollment::HostNetwork);
    }
    if SYSTEM_NAMESPACES.contains(&pod.namespace) {
        return Some(Enrollment::SystemNamespace);
    }
    if captor(pod.metadata.annotations) == Captor::Another {
        return Some(Enrollment::AnotherMesh);
    }
    value(pod.metadata.annotations, SIDECAR_STATUS).map(|_| Enrollment::Sidecar)
}

fn asked(pod: &Metadata<'_>, namespace: &Metadata<'_>, heard: Heard) -> Enrollment {
    match (setting(pod, heard), setting(namespace, heard)) {
        (Some(Mode::None), _) => Enrollment::PodOptsOut,
        (Some(Mode::Ambient), _) => Enrollment::ByPod,
        (None, Some(Mode::None)) => Enrollment::NamespaceOptsOut,
        (None, Some(Mode::Ambient)) => Enrollment::ByNamespace,
        (None, None) => Enrollment::NotAsked,
    }
}

fn setting(object: &Metadata<'_>, heard: Heard) -> Option<Mode> {
    let ours = [
        value(object.annotations, DATAPLANE_MODE),
        value(object.labels, DATAPLANE_MODE),
    ];
    let istios = value(object.labels, ISTIO_DATAPLANE_MODE);
    let istio_asks = heard == Heard::AllKeys && istios == Some("ambient");
    if ours.contains(&Some("none")) || istios == Some("none") {
        Some(Mode::None)
    } else if ours.contains(&Some("ambient")) || istio_asks {
        Some(Mode::Ambient)
    } else {
        None
    }
}

fn value<'a>(map: Option<&'a BTreeMap<String, String>>, key: &str) -> Option<&'a str> {
    map?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests;
