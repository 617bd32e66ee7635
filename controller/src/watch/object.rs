//! A document → an object of a kind that the mesh reads.
//!
//! Called by the sources. Strict in what names an object, since names become identities and resource names, and lenient
//! in fields that Kubernetes may add; the specs of policies are read strictly by [`crate::crds`].

use ambit_core::names::NamespacedName;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::ObjectKey;
use crate::crds::authorization_policy::AuthorizationPolicySpec;
use crate::crds::peer_authentication::PeerAuthenticationSpec;
use crate::crds::{Policy, SECURITY_GROUP};

/// Where an object is when it does not say, as with `kubectl`.
const DEFAULT_NAMESPACE: &str = "default";

/// The kinds that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` ServiceAccount.
    ServiceAccount,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Pod.
    Pod,
    /// `security.istio.io/v1` AuthorizationPolicy.
    AuthorizationPolicy,
    /// `security.istio.io/v1` PeerAuthentication.
    PeerAuthentication,
}

/// An object of one of the kinds that the mesh reads.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants are those of Kind")]
#[expect(clippy::large_enum_variant, reason = "an event boxes it")]
pub enum Object {
    Namespace(Namespace),
    Node(Node),
    ServiceAccount(ServiceAccount),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Pod(Pod),
    AuthorizationPolicy(Policy<AuthorizationPolicySpec>),
    PeerAuthentication(Policy<PeerAuthenticationSpec>),
}

/// Why a document is no object of the mesh.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// It has no apiVersion and kind.
    #[error("this is no Kubernetes object: it needs apiVersion and kind")]
    Untyped,
    /// It is of a kind that has no effect here.
    #[error("{api_version} {kind} has no effect in this mesh")]
    UnknownKind {
        /// As the document says.
        api_version: String,
        /// As the document says.
        kind: String,
    },
    /// Its name or namespace is missing or malformed.
    #[error("{0}")]
    Name(&'static str),
    /// A field has the wrong type.
    #[error("{0}")]
    Content(#[from] serde_json::Error),
}

impl Kind {
    /// The kind as documents write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }

    /// The kind as paths of the API and rules of RBAC write it, without its group.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Node => "nodes",
            Self::ServiceAccount => "serviceaccounts",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Pod => "pods",
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::PeerAuthentication => "peerauthentications",
        }
    }

    /// The kind's API group; empty for the core's.
    pub const fn group(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io",
            Self::AuthorizationPolicy | Self::PeerAuthentication => SECURITY_GROUP,
            _ => "",
        }
    }

    /// Plural and group in one word, as `kubectl auth can-i list` takes them.
    pub fn resource(self) -> String {
        match (self.plural(), self.group()) {
            (plural, "") => plural.to_owned(),
            (plural, group) => format!("{plural}.{group}"),
        }
    }

    /// True for kinds whose objects are in no namespace.
    pub const fn is_cluster_wide(self) -> bool {
        matches!(self, Self::Namespace | Self::Node)
    }

    /// True for kinds that refuse what they select when they are not understood.
    pub const fn is_policy(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerAuthentication)
    }

    fn of(api_version: &str, kind: &str) -> Option<Self> {
        let group = api_version.split_once('/').map(|(group, _)| group);
        Some(match (api_version, kind) {
            ("v1", "Namespace") => Self::Namespace,
            ("v1", "Node") => Self::Node,
            ("v1", "ServiceAccount") => Self::ServiceAccount,
            ("v1", "Service") => Self::Service,
            ("v1", "Pod") => Self::Pod,
            ("discovery.k8s.io/v1", "EndpointSlice") => Self::EndpointSlice,
            // Whatever the version: one that is not understood must refuse, not be passed over.
            (_, "AuthorizationPolicy") if group == Some(SECURITY_GROUP) => {
                Self::AuthorizationPolicy
            }
            (_, "PeerAuthentication") if group == Some(SECURITY_GROUP) => Self::PeerAuthentication,
            _ => return None,
        })
    }
}

/// Kind and name of the object in a document.
///
/// # Errors
/// When the document is of no kind that the mesh reads or has no good name.
pub fn identify(document: &Value) -> Result<ObjectKey, ObjectError> {
    let text = |field| document.get(field).and_then(Value::as_str);
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        return Err(ObjectError::Untyped);
    };
    let kind = Kind::of(api_version, kind).ok_or_else(|| ObjectError::UnknownKind {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    })?;
    let name = name(kind, document)?;
    Ok(ObjectKey { kind, name })
}

impl Object {
    /// Reads the document that `key` was found in; `fault` says that it is only the readable head of one.
    ///
    /// # Errors
    /// When a field has the wrong type. Policies are always read; their fault is inside.
    pub fn read(
        key: &ObjectKey,
        document: &Value,
        fault: Option<&str>,
    ) -> Result<Self, ObjectError> {
        Ok(match key.kind {
            Kind::Namespace => Self::Namespace(typed(document)?),
            Kind::Node => Self::Node(typed(document)?),
            Kind::ServiceAccount => Self::ServiceAccount(typed(document)?),
            Kind::Service => Self::Service(typed(document)?),
            Kind::EndpointSlice => Self::EndpointSlice(typed(document)?),
            Kind::Pod => Self::Pod(checked(typed(document)?)?),
            Kind::AuthorizationPolicy => {
                Self::AuthorizationPolicy(Policy::read(key.name.clone(), document, fault))
            }
            Kind::PeerAuthentication => {
                Self::PeerAuthentication(Policy::read(key.name.clone(), document, fault))
            }
        })
    }
}

fn typed<T: DeserializeOwned>(document: &Value) -> Result<T, ObjectError> {
    Ok(T::deserialize(document)?)
}

/// Refuses names that would not make an identity or a file name.
///
/// # Errors
/// When the pod's account or node has such a name.
pub fn checked(pod: Pod) -> Result<Pod, ObjectError> {
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|spec| spec.service_account_name.as_deref());
    if account.is_some_and(|name| !name.is_empty() && !is_subdomain(name)) {
        return Err(ObjectError::Name(
            "spec.serviceAccountName is no DNS name (RFC 1123)",
        ));
    }
    let node = spec.and_then(|spec| spec.node_name.as_deref());
    if node.is_some_and(|name| !name.is_empty() && !is_subdomain(name)) {
        return Err(ObjectError::Name("spec.nodeName is no DNS name (RFC 1123)"));
    }
    Ok(pod)
}

fn name(kind: Kind, document: &Value) -> Result<NamespacedName, ObjectError> {
    let text = |field| {
        document
            .pointer(field)
            .map(|value| value.as_str().unwrap_or_default())
    };
    checked_name(kind, text("/metadata/namespace"), text("/metadata/name"))
}

/// The name of an object of a kind, checked; an object that names no namespace is in `default`.
///
/// # Errors
/// When it would not make a host name, an identity or a file name.
pub fn checked_name(
    kind: Kind,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<NamespacedName, ObjectError> {
    let name = name.unwrap_or_default();
    let good = match kind {
        // Names of Namespaces and Services become labels of a host name.
        Kind::Namespace | Kind::Service => is_label(name),
        _ => is_subdomain(name),
    };
    if !good {
        return Err(ObjectError::Name(
            "metadata.name is missing or no DNS name (RFC 1123: a-z, 0-9, '-', and '.' in most kinds)",
        ));
    }
    if kind.is_cluster_wide() {
        return Ok(NamespacedName::new("", name));
    }
    let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
    if !is_label(namespace) {
        return Err(ObjectError::Name(
            "metadata.namespace is no DNS label (RFC 1123)",
        ));
    }
    Ok(NamespacedName::new(namespace, name))
}

/// True for a label of a DNS name, RFC 1123 §2.1: what Kubernetes allows as name of a namespace.
pub fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// True for a DNS name, RFC 1123 §2.1: what Kubernetes allows as name of most objects.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}
