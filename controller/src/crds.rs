//! Policy objects as the mesh reads them: strictly, so that nothing in them is overlooked.
//!
//! Made by the sources, kept by the index, turned into rules by the translation. A policy whose spec has anything that
//! is not understood is kept with what it selects and the reason, and refuses what it selects.

pub mod authorization_policy;
pub mod peer_authentication;

use std::collections::BTreeMap;
use std::ops::Deref;

use ambit_core::names::{NamespacedName, Text};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Labels or annotations of an object.
pub type Labels = BTreeMap<String, String>;

/// The API group of the policies.
pub const SECURITY_GROUP: &str = "security.istio.io";

/// Versions of the policies that are understood; they differ in name only.
pub(crate) const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Fields that an object has besides its spec.
const TOP_LEVEL: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// What a policy stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Every workload of its namespace, or of the mesh when it is in the root namespace.
    All,
    /// Workloads with all of these labels.
    Labels(Labels),
    /// Waypoints or Services, by `targetRef(s)`: ztunnels do not enforce it.
    Targets,
}

/// A policy object.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy<S> {
    /// Its key.
    pub name: NamespacedName,
    /// Its annotations.
    pub annotations: Labels,
    /// When it was made, in seconds since the epoch; the largest number in sources that do not say.
    pub created: i64,
    /// Its spec's number, in sources that count.
    pub generation: Option<i64>,
    /// What it stands on.
    pub selection: Selection,
    /// What it says, or why that cannot be understood.
    pub spec: Result<S, Text>,
}

/// The spec of one kind of policy.
pub trait Spec: DeserializeOwned + Default {
    /// True when the kind has `targetRef` and `targetRefs`.
    const HAS_TARGETS: bool;

    /// Finds what the types alone do not forbid.
    ///
    /// # Errors
    /// In words for the policy's author.
    fn check(&self) -> Result<(), String>;
}

impl<S: Spec> Policy<S> {
    /// Reads a policy of which only the name is known to be good. `fault` says that the document is broken.
    pub fn read(name: NamespacedName, document: &Value, fault: Option<&str>) -> Self {
        let metadata = document.get("metadata").unwrap_or(&Value::Null);
        let metadata = ObjectMeta::deserialize(metadata);
        let spec = document.get("spec").unwrap_or(&Value::Null);
        let selection = selection(spec, S::HAS_TARGETS);
        let content = match (fault, &metadata) {
            (Some(fault), _) => Err(fault.to_owned()),
            (None, Err(error)) => Err(format!("metadata: {error}")),
            (None, Ok(_)) => read_spec::<S>(document, spec, &selection),
        };
        let metadata = metadata.unwrap_or_default();
        Self {
            name,
            annotations: metadata.annotations.unwrap_or_default(),
            created: metadata
                .creation_timestamp
                .map_or(i64::MAX, |time| time.0.as_second()),
            generation: metadata.generation,
            selection: selection.unwrap_or(Selection::All),
            spec: content.map_err(Text::from),
        }
    }
}

impl<S> Policy<S> {
    /// True when a workload with these labels is selected, as far as labels decide it.
    pub fn selects(&self, labels: &Labels) -> bool {
        match &self.selection {
            Selection::All => true,
            Selection::Labels(wanted) => contains_all(labels, wanted),
            Selection::Targets => false,
        }
    }
}

/// True when every pair of `wanted` is in `labels`.
pub fn contains_all(labels: &Labels, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// A value that is written as a mapping. Serde alone would also take a list of the fields' values, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping<T>(pub T);

impl<T> Deref for Mapping<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Mapping<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let map = Map::<String, Value>::deserialize(from)?;
        T::deserialize(Value::Object(map))
            .map(Self)
            .map_err(D::Error::custom)
    }
}

/// For optional fields: absent is none, and null is an error instead of being absent.
pub(crate) fn present<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    T::deserialize(from).map(Some)
}

/// The part of a spec that every policy has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Selector {
    match_labels: Labels,
}

fn read_spec<S: Spec>(
    document: &Value,
    spec: &Value,
    selection: &Result<Selection, String>,
) -> Result<S, String> {
    check_top_level(document)?;
    if let Err(cause) = selection {
        return Err(cause.clone());
    }
    let spec = match spec {
        Value::Null => S::default(),
        spec => {
            Mapping::<S>::deserialize(spec)
                .map_err(|error| format!("spec: {error}"))?
                .0
        }
    };
    spec.check().map(|()| spec)
}

fn check_top_level(document: &Value) -> Result<(), String> {
    let version = document.get("apiVersion").and_then(Value::as_str);
    let version = version.and_then(|v| v.strip_prefix(SECURITY_GROUP)?.strip_prefix('/'));
    if !version.is_some_and(|version| VERSIONS.contains(&version)) {
        return Err(format!(
            "this version of {SECURITY_GROUP} is not understood; write {SECURITY_GROUP}/v1"
        ));
    }
    let fields = document.as_object().into_iter().flat_map(Map::keys);
    match fields
        .into_iter()
        .find(|f| !TOP_LEVEL.contains(&f.as_str()))
    {
        Some(field) => Err(format!("unknown field `{field}` beside spec")),
        None => Ok(()),
    }
}

/// What a spec selects, read even where the rest of it is not understood.
fn selection(spec: &Value, has_targets: bool) -> Result<Selection, String> {
    let targets = has_targets && has_target(spec)?;
    match (spec.get("selector"), targets) {
        (Some(selector), false) => labels(selector),
        (Some(_), true) => Err("spec: selector and targetRef exclude each other".to_owned()),
        (None, true) => Ok(Selection::Targets),
        (None, false) => Ok(Selection::All),
    }
}

/// True when a spec names targets. What may have been meant as one and is none is an error, since a policy for
/// waypoints has no effect on ztunnels.
fn has_target(spec: &Value) -> Result<bool, String> {
    let is_target = |value: &Value| value.as_object().is_some_and(|target| !target.is_empty());
    let one = spec.get("targetRef");
    let several = spec.get("targetRefs");
    if one.is_some_and(|target| !is_target(target)) {
        return Err("spec.targetRef: this is no reference".to_owned());
    }
    let listed = match several {
        None => 0,
        Some(Value::Array(targets)) if targets.iter().all(is_target) => targets.len(),
        Some(_) => return Err("spec.targetRefs: this is no list of references".to_owned()),
    };
    Ok(one.is_some() || listed > 0)
}

fn labels(selector: &Value) -> Result<Selection, String> {
    let selector = Mapping::<Selector>::deserialize(selector)
        .map_err(|error| format!("spec.selector: {error}"))?
        .0
        .match_labels;
    if selector
        .iter()
        .any(|(k, v)| k.is_empty() || k.contains('*') || v.contains('*'))
    {
        return Err("spec.selector: labels are compared whole; `*` has no meaning".to_owned());
    }
    Ok(if selector.is_empty() {
        Selection::All
    } else {
        Selection::Labels(selector)
    })
}
