//! A node's network configuration as text: puts our plugin at the end of its chain, and takes it out again.
//!
//! CNI 1.1 §Network configuration format. Called by `install.rs`. Everything but our own object keeps its bytes, so that taking
//! out what was put in gives what was there. Pure.

use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::spec::{VERSIONS, is_name};

/// Our plugin's `type`, which is also the name of its program.
pub const OURS: &str = "ambit-cni";
/// Plugins by which other meshes capture pods on the node itself.
const OTHER_MESHES: [&str; 2] = ["istio-cni", "kmesh-cni"];

/// Why our plugin cannot stand in a configuration.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// It is not JSON, or not a configuration.
    #[error("it is no network configuration: {0}")]
    NotAList(String),
    /// Plugins are not called for a network without a usable name.
    #[error("its name {0:?} is no name of a network")]
    Name(String),
    /// It has no list of plugins, or an empty one.
    #[error("it has no plugins")]
    NoPlugins,
    /// Runtimes would call us in a version that we do not speak, and no pod of the node would start any more.
    #[error("its cniVersion is {0}; chained plugins need one of {known}", known = VERSIONS.join(", "))]
    Version(String),
}

/// What stands in a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The network's name.
    pub network: String,
    /// The types of its plugins, in order.
    pub plugins: Vec<String>,
}

impl Chain {
    /// Our plugin is in it, and nothing comes after it.
    pub fn ends_with_ours(&self) -> bool {
        self.plugins.last().is_some_and(|plugin| plugin == OURS)
    }

    /// The plugin of another mesh that captures pods on the node, if there is one.
    pub fn other_mesh(&self) -> Option<&str> {
        let mut plugins = self.plugins.iter().map(String::as_str);
        plugins.find(|plugin| OTHER_MESHES.contains(plugin))
    }
}

/// A `.conflist`, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    #[serde(default)]
    name: String,
    cni_version: Option<String>,
    cni_versions: Option<Vec<String>>,
    #[serde(borrow)]
    plugins: Option<Vec<&'a RawValue>>,
}

/// A plugin of a list, or a `.conf` as a whole.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Plugin {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    cni_version: Option<String>,
}

/// The text with `ours`, an object, at the end of its chain and nowhere else; the same text if that is how it is.
///
/// # Errors
/// [`Unusable`].
pub fn with_ours(text: &str, ours: &str) -> Result<String, Unusable> {
    let list = read(text)?;
    if !speaks(&list) {
        return Err(Unusable::Version(version(&list)));
    }
    if !is_name(&list.name) {
        return Err(Unusable::Name(list.name));
    }
    let mut marks = list.marks(text)?;
    let mut found = marks.iter().filter(|mark| mark.ours);
    let last = marks.last().ok_or(Unusable::NoPlugins)?;
    if last.ours && found.by_ref().count() == 1 && text.get(last.start..last.end) == Some(ours) {
        return Ok(text.to_owned());
    }
    let mut text = text.to_owned();
    if marks.iter().any(|mark| mark.ours) {
        text = without_ours(&text)?;
        marks = read(&text)?.marks(&text)?;
    }
    let end = marks.last().ok_or(Unusable::NoPlugins)?.end;
    text.insert_str(end, &format!(",\n    {ours}"));
    Ok(text)
}

/// The text without our plugin; the same text if it is not there.
///
/// # Errors
/// [`Unusable`].
pub fn without_ours(text: &str) -> Result<String, Unusable> {
    let marks = read(text)?.marks(text)?;
    let mut kept = String::with_capacity(text.len());
    let (mut from, mut before) = (0, None);
    let mut marks = marks.iter().peekable();
    while let Some(mark) = marks.next() {
        if !mark.ours {
            before = Some(mark.end);
            continue;
        }
        // With what separates it from the plugin before; at the beginning with what separates it from the next.
        let (start, end) = match (before, marks.peek()) {
            (None, Some(next)) => (mark.start, next.start),
            (before, _) => (before.unwrap_or(mark.start), mark.end),
        };
        kept.push_str(text.get(from..start).unwrap_or_default());
        from = end;
    }
    kept.push_str(text.get(from..).unwrap_or_default());
    Ok(kept)
}

/// A list that holds the one plugin of a `.conf`, and ours after it.
///
/// # Errors
/// [`Unusable`].
pub fn list_from_conf(text: &str, ours: &str) -> Result<String, Unusable> {
    let not = |error: serde_json::Error| Unusable::NotAList(error.to_string());
    let conf: Plugin = serde_json::from_str(text).map_err(not)?;
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let list = format!(
        "{{\n  \"cniVersion\": {},\n  \"name\": {},\n  \"plugins\": [\n    {},\n    {ours}\n  ]\n}}\n",
        quoted(conf.cni_version.as_deref().unwrap_or("0.1.0")),
        quoted(&conf.name),
        text.trim()
    );
    with_ours(&list, ours)
}

/// What stands in a list.
///
/// # Errors
/// [`Unusable`].
pub fn chain(text: &str) -> Result<Chain, Unusable> {
    let list = read(text)?;
    let plugins = list.plugins.iter().flatten();
    Ok(Chain {
        plugins: plugins
            .map(|plugin| kind(plugin))
            .collect::<Result<_, _>>()?,
        network: list.name,
    })
}

/// Where a plugin's object stands in the text.
struct Mark {
    start: usize,
    end: usize,
    ours: bool,
}

impl List<'_> {
    fn marks(&self, text: &str) -> Result<Vec<Mark>, Unusable> {
        let plugins = self.plugins.as_ref().ok_or(Unusable::NoPlugins)?;
        let mark = |plugin: &&RawValue| {
            // Raw values are borrowed from the text.
            let start = plugin.get().as_ptr().addr() - text.as_ptr().addr();
            Ok(Mark {
                start,
                end: start + plugin.get().len(),
                ours: kind(plugin)? == OURS,
            })
        };
        plugins.iter().map(mark).collect()
    }
}

fn read(text: &str) -> Result<List<'_>, Unusable> {
    serde_json::from_str(text).map_err(|error| Unusable::NotAList(error.to_string()))
}

fn kind(plugin: &RawValue) -> Result<String, Unusable> {
    let plugin: Result<Plugin, _> = serde_json::from_str(plugin.get());
    let plugin = plugin.map_err(|error| Unusable::NotAList(error.to_string()))?;
    Ok(plugin.kind)
}

/// The version in which runtimes will call: the highest that is listed (§Version considerations). None means 0.1.0.
fn version(list: &List<'_>) -> String {
    let listed = list
        .cni_version
        .iter()
        .chain(list.cni_versions.iter().flatten());
    let highest = listed.max_by_key(|version| {
        let numbers = version
            .split('.')
            .map(|part| part.parse::<u32>().unwrap_or(u32::MAX));
        numbers.collect::<Vec<_>>()
    });
    highest.map_or_else(|| "0.1.0".to_owned(), Clone::clone)
}

fn speaks(list: &List<'_>) -> bool {
    VERSIONS.contains(&version(list).as_str())
}

#[cfg(test)]
mod tests;
