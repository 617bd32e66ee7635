//! The Container Network Interface as far as a chained plugin needs it: what it is called with, and what it answers.
//!
//! CNI 1.1.0 and the versions before it that have chained plugins (0.3.0 on). Called by `plugin.rs`; [`Failure`] also travels
//! from the node agent to the plugin. Everything is checked here, so that what follows works on values. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{AddrParseError, IpAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;

/// Versions that we speak, oldest first. Before 0.3.0 there were no chained plugins.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Longest name of a network interface (`IFNAMSIZ` without its zero byte).
const LONGEST_INTERFACE: usize = 15;

/// What a code of an error means. Those below 100 are the specification's (§Error), the others our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A version that we do not speak, or one in which the command does not exist.
    IncompatibleVersion,
    /// Variables are missing or wrong.
    Environment,
    /// Reading or writing failed.
    Io,
    /// What came is not JSON.
    Decoding,
    /// The configuration does not make sense.
    InvalidConfig,
    /// Something that should clear up: the agent, ztunnel or the API server is away.
    TryAgainLater,
    /// The pod is in the mesh and could not be captured.
    NotCaptured,
}

impl Code {
    /// The number.
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::InvalidConfig => 7,
            Self::TryAgainLater => 11,
            Self::NotCaptured => 100,
        }
    }
}

/// Why a command failed. Runtimes print `msg; details`, and kubelet puts that into an event of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// [`Code::number`].
    pub code: u32,
    /// What failed, short.
    pub msg: String,
    /// The likely cause and the next step.
    pub details: String,
}

impl Failure {
    /// A failure.
    pub fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code: code.number(),
            msg: msg.into(),
            details: details.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.msg, self.details)
    }
}

impl std::error::Error for Failure {}

/// A command with all that it needs.
#[derive(Debug)]
pub enum Invocation {
    /// Which versions do we speak? The runtime's own one is repeated.
    Version(String),
    /// The sandbox has a network.
    Add(NetConf, Attachment),
    /// Is it as it should be?
    Check(NetConf, Attachment),
    /// The sandbox ends.
    Del(NetConf, Attachment),
    /// What of sandboxes that are no more is still there?
    Gc(NetConf),
    /// Can sandboxes be added?
    Status(NetConf),
}

/// The configuration that comes on standard input.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    /// Version of the specification that the runtime speaks.
    #[serde(default)]
    pub cni_version: String,
    /// The network's name.
    #[serde(default)]
    name: String,
    /// Where the node agent listens.
    pub socket: Option<PathBuf>,
    /// Namespaces whose pods pass without asking, beside those that never join.
    #[serde(default)]
    pub exclude_namespaces: Vec<String>,
    /// What the plugins before us answered, byte for byte.
    pub prev_result: Option<Box<RawValue>>,
}

/// A sandbox and its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; only DEL may come without.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// The pod, from `CNI_ARGS`; none in a container that is not of Kubernetes.
    pub pod: Option<Pod>,
}

/// A pod as container runtimes name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`; not every runtime gives it.
    pub uid: Option<String>,
}

impl Invocation {
    /// Checks what the runtime gave: its environment and all of standard input.
    ///
    /// # Errors
    /// The failure to print. Whatever is wrong with the environment is said at once.
    pub fn read(env: &BTreeMap<String, String>, stdin: &[u8]) -> Result<Self, Failure> {
        let command = env.get("CNI_COMMAND").map_or("", String::as_str);
        match command {
            "ADD" | "CHECK" | "DEL" | "GC" | "STATUS" => {}
            "VERSION" => return asked_version(stdin).map(Self::Version),
            _ => return Err(wrong_variables(&["CNI_COMMAND"])),
        }
        let attachment = match command {
            "GC" | "STATUS" => None,
            _ => Some(Attachment::read(env, command != "DEL")?),
        };
        let conf = NetConf::read(stdin)?;
        let since = match command {
            "CHECK" => "0.4.0",
            "GC" | "STATUS" => "1.1.0",
            _ => "0.3.0",
        };
        conf.speaks(command, since)?;
        Ok(match (command, attachment) {
            ("ADD", Some(attachment)) => Self::Add(conf, attachment),
            ("CHECK", Some(attachment)) => Self::Check(conf, attachment),
            ("DEL", Some(attachment)) => Self::Del(conf, attachment),
            ("GC", _) => Self::Gc(conf),
            _ => Self::Status(conf),
        })
    }
}

impl NetConf {
    fn read(stdin: &[u8]) -> Result<Self, Failure> {
        let conf: Self = serde_json::from_slice(stdin).map_err(|error| unreadable(&error))?;
        if is_name(&conf.name) {
            return Ok(conf);
        }
        Err(Failure::new(
            Code::InvalidConfig,
            "the network configuration has no usable name",
            format!(
                "name is {:?}; it starts with a letter or digit and has letters, digits, `_`, `.` and `-`",
                conf.name
            ),
        ))
    }

    /// Is the runtime's version one of ours, and was there such a command in it?
    fn speaks(&self, command: &str, since: &str) -> Result<(), Failure> {
        let version = self.cni_version.as_str();
        // The list is in order, and the specification's versions are compared as that list has them.
        let level = |wanted: &str| VERSIONS.iter().position(|known| *known == wanted);
        let details = match level(version) {
            Some(own) if Some(own) >= level(since) => return Ok(()),
            Some(_) => {
                format!("{command} exists since CNI {since}; the configuration says {version}")
            }
            None if version.is_empty() => format!(
                "the configuration has no cniVersion, which means 0.1.0; ambit-cni speaks {}",
                VERSIONS.join(", ")
            ),
            None => format!(
                "the configuration says {version}; ambit-cni speaks {}",
                VERSIONS.join(", ")
            ),
        };
        Err(Failure::new(
            Code::IncompatibleVersion,
            "incompatible CNI version",
            details,
        ))
    }

    /// The addresses that the sandbox has got from the plugins before us.
    ///
    /// # Errors
    /// When the previous result is not one.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let Some(result) = &self.prev_result else {
            return Ok(Vec::new());
        };
        let result: Previous = serde_json::from_str(result.get()).map_err(|error| {
            Failure::new(
                Code::InvalidConfig,
                "the result of the plugin before ambit-cni cannot be read",
                error.to_string(),
            )
        })?;
        let interfaces = result.interfaces.unwrap_or_default();
        let mut addresses = Vec::new();
        for ip in result.ips.unwrap_or_default() {
            let of = ip.interface.and_then(|at| interfaces.get(at));
            // An interface without a sandbox is one of the node: a bridge, or the pod's link on this side.
            if of.is_some_and(|interface| interface.sandbox.as_deref().unwrap_or("").is_empty()) {
                continue;
            }
            let text = ip.address.split('/').next().unwrap_or_default();
            addresses.push(text.parse().map_err(|error: AddrParseError| {
                Failure::new(
                    Code::InvalidConfig,
                    "the result of the plugin before ambit-cni cannot be read",
                    format!("{:?}: {error}", ip.address),
                )
            })?);
        }
        Ok(addresses)
    }
}

/// What we read of a result (§ADD Success; the same in all versions that we speak).
#[derive(Deserialize)]
struct Previous {
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<Ip>>,
}

#[derive(Deserialize)]
struct Interface {
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    interface: Option<usize>,
}

impl Attachment {
    fn read(env: &BTreeMap<String, String>, needs_netns: bool) -> Result<Self, Failure> {
        let value = |name| env.get(name).map_or("", String::as_str);
        let (container_id, ifname) = (value("CNI_CONTAINERID"), value("CNI_IFNAME"));
        let netns = Some(value("CNI_NETNS")).filter(|path| !path.is_empty());
        let pod = Pod::read(value("CNI_ARGS"));
        let wrong = [
            (!is_name(container_id), "CNI_CONTAINERID"),
            (!is_interface(ifname), "CNI_IFNAME"),
            (needs_netns && netns.is_none(), "CNI_NETNS"),
            (pod.is_err(), "CNI_ARGS"),
        ];
        let wrong: Vec<&str> = wrong
            .iter()
            .filter(|(is, _)| *is)
            .map(|(_, n)| *n)
            .collect();
        match pod {
            Ok(pod) if wrong.is_empty() => Ok(Self {
                container_id: container_id.to_owned(),
                netns: netns.map(PathBuf::from),
                ifname: ifname.to_owned(),
                pod,
            }),
            _ => Err(wrong_variables(&wrong)),
        }
    }
}

/// `CNI_ARGS` is not a list of `KEY=VALUE` with semicolons between.
struct NoArgs;

impl Pod {
    fn read(args: &str) -> Result<Option<Self>, NoArgs> {
        let mut pairs = BTreeMap::new();
        for pair in args.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or(NoArgs)?;
            pairs.insert(key, value);
        }
        let mut value = |key| {
            pairs
                .remove(key)
                .filter(|v| !v.is_empty())
                .map(str::to_owned)
        };
        match (value("K8S_POD_NAMESPACE"), value("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => Ok(Some(Self {
                namespace,
                name,
                uid: value("K8S_POD_UID"),
            })),
            (None, None) => Ok(None),
            _ => Err(NoArgs),
        }
    }
}

/// The version that the runtime asks about. Older runtimes send nothing: then the newest is as good as any.
fn asked_version(stdin: &[u8]) -> Result<String, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Question {
        cni_version: Option<String>,
    }
    let newest = || VERSIONS.last().copied().unwrap_or_default().to_owned();
    if stdin.trim_ascii().is_empty() {
        return Ok(newest());
    }
    let question: Question = serde_json::from_slice(stdin).map_err(|error| unreadable(&error))?;
    Ok(question.cni_version.unwrap_or_else(newest))
}

fn unreadable(error: &serde_json::Error) -> Failure {
    match error.classify() {
        Category::Data => Failure::new(
            Code::InvalidConfig,
            "the network configuration cannot be used",
            format!(
                "{error}; look at the object of type ambit-cni in the node's CNI configuration"
            ),
        ),
        _ => Failure::new(
            Code::Decoding,
            "the network configuration on standard input is not JSON",
            error.to_string(),
        ),
    }
}

fn wrong_variables(names: &[&str]) -> Failure {
    Failure::new(
        Code::Environment,
        format!("missing or invalid: {}", names.join(", ")),
        "these variables come from the container runtime; ambit-cni is not for running by hand",
    )
}

/// Names of networks and containers (§Parameters, §Configuration format).
pub(crate) fn is_name(text: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(rest)
}

fn is_interface(text: &str) -> bool {
    let odd = |c: char| matches!(c, '/' | ':') || c.is_whitespace();
    (1..=LONGEST_INTERFACE).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.contains(odd)
}

#[cfg(test)]
mod tests;
