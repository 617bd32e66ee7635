//! Keeps the CNI plugin on the node: its program, and its place at the end of the node's network configuration.
//!
//! Run by `app.rs` beside the agent; [`uninstall`] undoes it. The configuration belongs to others, who write it when they
//! like: it is looked at twice a second and repaired, and nothing of theirs is lost. Stopping leaves all as it is, so that pods
//! which start meanwhile wait instead of starting outside the mesh.

pub mod conflist;
mod files;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_core::checks::Check;
use ambit_net::admin::Readiness;
use ambit_net::tasks::Stop;
use serde::Serialize;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::checks::Checks;
use conflist::{Chain, OURS, Unusable};
use files::Exchanged;

/// Time between two looks. A pod that starts in between, while our plugin is not in the chain, is captured as a running one.
const INTERVAL: Duration = Duration::from_millis(500);
/// Names of our own list, for configurations that cannot be edited; the first that comes before them is taken.
const OWN_LISTS: [&str; 2] = ["00-ambit.conflist", "0-ambit.conflist"];
/// Times that another program may write a file while we edit it before we leave it to the next look.
const ATTEMPTS: usize = 8;
/// Mode of the program and of our own list.
const PROGRAM_MODE: u32 = 0o755;
const LIST_MODE: u32 = 0o644;
/// What readiness and the checks call the two.
const PROGRAM: &str = "cni-binary";
const CONFIGURATION: &str = "cni-configuration";
/// The check that tells of another mesh.
const OTHER: &str = "other-ambient";

/// Where things are on this node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where container runtimes read network configurations.
    pub net_dir: PathBuf,
    /// Where container runtimes find plugins.
    pub bin_dir: PathBuf,
    /// The program to install.
    pub program: PathBuf,
    /// Where the plugin asks the agent, as the node sees it.
    pub socket: PathBuf,
    /// Namespaces whose pods the plugin lets through without asking.
    pub excluded: Vec<String>,
}

/// Why the plugin is not in place.
#[derive(Debug, Error)]
pub enum InstallError {
    /// A file or directory cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The cluster has no network on this node yet.
    #[error("{0} has no network configuration")]
    NoConfiguration(PathBuf),
    /// The configuration that runtimes use first cannot be used.
    #[error("{path} cannot be used: {cause}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: Unusable,
    },
    /// Another program writes the file all the time.
    #[error("{0} is being written by another program")]
    Contended(PathBuf),
    /// No name of ours would come before it.
    #[error("{0} comes before every file that Ambit could put beside it")]
    NoName(PathBuf),
}

impl InstallError {
    fn next_step(&self) -> &'static str {
        match self {
            Self::File { .. } => "see that the disk has room and that the agent may write there",
            Self::NoConfiguration(_) => {
                "install the cluster's network plugin; Ambit's comes after it"
            }
            Self::Unusable { .. } => "repair the file, or remove it if no network plugin owns it",
            Self::Contended(_) => "wait; if it stays, find out which program rewrites the file",
            Self::NoName(_) => "give the file a name that begins with a digit",
        }
    }
}

/// Keeps the plugin installed. Run it as a task.
#[derive(Debug)]
pub struct Installer {
    settings: Settings,
    checks: Checks,
    readiness: Readiness,
    beside: watch::Sender<bool>,
}

impl Installer {
    /// Blocks readiness until the plugin is in place.
    pub fn new(settings: Settings, checks: Checks, readiness: Readiness) -> Self {
        readiness.block(PROGRAM);
        readiness.block(CONFIGURATION);
        Self {
            settings,
            checks,
            readiness,
            beside: watch::Sender::new(false),
        }
    }

    /// True while the plugin of another mesh stands in the chain, which captures pods on this node too.
    pub fn beside_another(&self) -> watch::Receiver<bool> {
        self.beside.subscribe()
    }

    /// Looks and repairs until stopped.
    pub async fn run(self, stop: Stop) {
        let mut known = None;
        loop {
            let settings = self.settings.clone();
            let look = tokio::task::spawn_blocking(move || Look::at(&settings, known));
            match look.await {
                Ok(look) => {
                    known = look.stamp;
                    self.note(look);
                }
                Err(error) => {
                    warn!(%error, "the look at the CNI configuration has ended early");
                    known = None;
                }
            }
            tokio::select! {
                () = stop.stopped() => return,
                () = sleep(INTERVAL) => {}
            }
        }
    }

    fn note(&self, look: Look) {
        let found = look
            .program
            .map(|()| self.settings.bin_dir.join(OURS).display().to_string());
        self.found(PROGRAM, found);
        let Some(configuration) = look.configuration else {
            return;
        };
        let found = configuration.map(|(path, chain)| {
            self.note_other(chain.other_mesh());
            format!("{}: {}", path.display(), chain.plugins.join(", "))
        });
        self.found(CONFIGURATION, found);
    }

    fn note_other(&self, plugin: Option<&str>) {
        let news = self.beside.send_if_modified(|old| {
            let news = *old != plugin.is_some();
            *old = plugin.is_some();
            news
        });
        match plugin {
            Some(plugin) if news => self.checks.note(Check::note(
                OTHER,
                format!("{plugin} stands in the chain"),
                "pods that ask by Istio's label are its own; those that ask by ambit.mesh/dataplane-mode are ours",
            )),
            None if news => self.checks.strike(OTHER),
            _ => {}
        }
    }

    fn found(&self, name: &'static str, found: Result<String, InstallError>) {
        match found {
            Ok(found) => {
                self.checks.note(Check::good(name, found));
                self.readiness.clear(name);
            }
            Err(error) => {
                let next = error.next_step();
                self.checks.note(Check::bad(name, error.to_string(), next));
                self.readiness.block(name);
            }
        }
    }
}

/// Identifies the content of a file as long as nobody writes it: inode, size, time of change.
type Stamp = (u64, u64, i64, i64);

/// What one look has found and done.
struct Look {
    program: Result<(), InstallError>,
    /// Not looked at while the program is missing: a chain with a plugin that is not there would start no pod at all.
    configuration: Option<Result<(PathBuf, Chain), InstallError>>,
    stamp: Option<Stamp>,
}

impl Look {
    fn at(settings: &Settings, known: Option<Stamp>) -> Self {
        match program(settings, known) {
            Ok(stamp) => Self {
                program: Ok(()),
                configuration: Some(configuration(settings)),
                stamp: Some(stamp),
            },
            Err(error) => Self {
                program: Err(error),
                configuration: None,
                stamp: None,
            },
        }
    }
}

/// Sees to it that the program is there; `known` is how it was when it was compared last.
fn program(settings: &Settings, known: Option<Stamp>) -> Result<Stamp, InstallError> {
    let path = settings.bin_dir.join(OURS);
    if let (Ok(stamp), Some(known)) = (stamp(&path), known)
        && stamp == known
    {
        return Ok(known);
    }
    let wanted = fs::read(&settings.program).map_err(failed("read", &settings.program))?;
    let there = fs::read(&path).is_ok_and(|there| there == wanted);
    if !there {
        files::replace(&path, &wanted, PROGRAM_MODE).map_err(failed("write", &path))?;
        info!(path = %path.display(), "the CNI plugin's program is installed");
    }
    stamp(&path).map_err(failed("read", &path))
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let seen = fs::metadata(path)?;
    Ok((seen.ino(), seen.size(), seen.ctime(), seen.ctime_nsec()))
}

/// Sees to it that the plugin stands in the configuration that runtimes use: the first by name.
///
/// Some runtimes stop at one that is broken, others take the next. So the next one is prepared, and the broken one told of.
fn configuration(settings: &Settings) -> Result<(PathBuf, Chain), InstallError> {
    let dir = &settings.net_dir;
    let all = files::configurations(dir).map_err(failed("read", dir))?;
    let (own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|path| is_own(path));
    let object = object(settings);
    let mut broken = None;
    for path in &others {
        match install_in(path, &object) {
            Ok((list, chain)) => {
                for stale in own.iter().filter(|path| **path != list) {
                    files::remove(stale).map_err(failed("remove", stale))?;
                }
                return match broken {
                    None => Ok((list, chain)),
                    Some(error) => Err(error),
                };
            }
            Err(error @ InstallError::Unusable { .. }) => broken = broken.or(Some(error)),
            Err(error) => return Err(error),
        }
    }
    for stale in &own {
        files::remove(stale).map_err(failed("remove", stale))?;
    }
    Err(broken.unwrap_or(InstallError::NoConfiguration(dir.clone())))
}

/// Puts the plugin into one configuration. A list is edited; what is no list, or a link to a file elsewhere, stays as it is and
/// a list of our own comes before it.
fn install_in(path: &Path, object: &str) -> Result<(PathBuf, Chain), InstallError> {
    let kind = fs::symlink_metadata(path).map_err(failed("read", path))?;
    let is_list = path.extension().is_some_and(|ending| ending == "conflist");
    if is_list && kind.is_file() {
        let now = rewrite(path, |text| conflist::with_ours(text, object))?;
        return Ok((path.to_owned(), chain(path, &now)?));
    }
    let seen = fs::read(path).map_err(failed("read", path))?;
    let text = text(&seen).map_err(unusable(path))?;
    let list = match is_list {
        true => conflist::with_ours(text, object),
        false => conflist::list_from_conf(text, object),
    }
    .map_err(unusable(path))?;
    let mut names = OWN_LISTS.iter().map(|name| path.with_file_name(name));
    let own = names.find(|own| own.as_path() < path);
    let own = own.ok_or_else(|| InstallError::NoName(path.to_owned()))?;
    if fs::read(&own).ok().as_deref() != Some(list.as_bytes()) {
        files::replace(&own, list.as_bytes(), LIST_MODE).map_err(failed("write", &own))?;
        info!(path = %own.display(), of = %path.display(), "the CNI plugin stands in a list of its own");
    }
    let chain = chain(path, &list)?;
    Ok((own, chain))
}

/// Makes a file as `edit` says, unless it is; returns what it is then.
fn rewrite(
    path: &Path,
    edit: impl Fn(&str) -> Result<String, Unusable>,
) -> Result<String, InstallError> {
    for _ in 0..ATTEMPTS {
        let seen = fs::read(path).map_err(failed("read", path))?;
        let edited = text(&seen).and_then(&edit).map_err(unusable(path))?;
        if edited.as_bytes() == seen {
            return Ok(edited);
        }
        let done = files::exchange(path, &seen, edited.as_bytes());
        if done.map_err(failed("write", path))? == Exchanged::Done {
            info!(path = %path.display(), "the node's network configuration is changed");
            return Ok(edited);
        }
    }
    Err(InstallError::Contended(path.to_owned()))
}

/// Takes the plugin out of every configuration of the node, then its program away. Nothing may run that installs it.
///
/// # Errors
/// When it stands in a file that cannot be read or written: then the program stays too, or no pod of the node would start.
pub fn uninstall(settings: &Settings) -> Result<(), InstallError> {
    let dir = &settings.net_dir;
    for path in files::configurations(dir).map_err(failed("read", dir))? {
        if is_own(&path) {
            files::remove(&path).map_err(failed("remove", &path))?;
            continue;
        }
        let seen = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            seen => seen.map_err(failed("read", &path))?,
        };
        if String::from_utf8_lossy(&seen).contains(OURS) {
            rewrite(&path, conflist::without_ours)?;
        }
    }
    let program = settings.bin_dir.join(OURS);
    files::remove(&program).map_err(failed("remove", &program))?;
    info!(directory = %dir.display(), "the CNI plugin is uninstalled");
    Ok(())
}

/// Our plugin's object in the configuration.
fn object(settings: &Settings) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Object<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        socket: &'a Path,
        exclude_namespaces: &'a [String],
    }
    let object = Object {
        kind: OURS,
        socket: &settings.socket,
        exclude_namespaces: &settings.excluded,
    };
    // A path that is not text could not have come from a setting.
    serde_json::to_string(&object).unwrap_or_default()
}

fn is_own(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| OWN_LISTS.contains(&name))
}

fn text(bytes: &[u8]) -> Result<&str, Unusable> {
    std::str::from_utf8(bytes).map_err(|error| Unusable::NotAList(error.to_string()))
}

fn chain(path: &Path, text: &str) -> Result<Chain, InstallError> {
    conflist::chain(text).map_err(unusable(path))
}

fn unusable(path: &Path) -> impl FnOnce(Unusable) -> InstallError {
    move |cause| InstallError::Unusable {
        path: path.to_owned(),
        cause,
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    move |source| InstallError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
