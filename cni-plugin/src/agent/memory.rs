//! What the agent must still know after a restart: the pods whose namespaces hold our rules. A small file, mode 0600.
//!
//! Written by the pod tasks before they touch a namespace, and read once at start: a pod that left the mesh while the agent was
//! down is found by it. One task writes, whole files only, each replaced at once. Knows nothing of rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambit_core::names::{NamespacedName, PodUid};
use ambit_net::wire::handoff::HandoffPod;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::pods::{Options, Spec};
use crate::redirect::ruleset::InterfaceName;

/// Name of the file in the state directory.
const FILE: &str = "pods.json";
/// Name of the file that is locked while an agent runs; it stays empty.
const LOCK: &str = "lock";
/// Version of its format. Another one is refused: what it says may mean something else.
const VERSION: u32 = 1;
/// Changes that may wait for the writer: it takes all that wait at once, so a pod task never waits for more than two
/// writes.
const MOST_CHANGES: usize = 256;

/// A pod in whose namespace our rules are, or are about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The pod.
    pub spec: Spec,
    /// It leaves: its rules capture no new connections any more.
    pub leaving: bool,
}

/// Why the file cannot be used.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// It cannot be read or written.
    #[error(
        "the agent's memory {path} cannot be used: {source}; set AMBIT_STATE_DIR to a directory on disk"
    )]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another agent has it.
    #[error("another node agent uses {path}; each needs an AMBIT_STATE_DIR of its own")]
    InUse {
        /// The file that it has locked.
        path: PathBuf,
    },
    /// It is damaged or of another version.
    #[error(
        "the agent's memory {path} cannot be read: {cause}. Without it, pods that left the mesh meanwhile would stay \
         captured: move the file away and run `ambit-cni-agent --release-all` before the agent is started again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// Takes changes and has them on disk when it answers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Memory {
    changes: mpsc::Sender<(PodUid, Change)>,
}

/// What a pod task wants remembered or forgotten, and who waits for it.
type Change = (
    Option<Record>,
    oneshot::Sender<Result<(), Arc<MemoryError>>>,
);

/// The one writer. Run it as a task.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    records: BTreeMap<PodUid, Record>,
    changes: mpsc::Receiver<(PodUid, Change)>,
    /// The last write has failed: what is on disk is older.
    stale: bool,
    _lock: File,
}

/// An opened memory.
#[derive(Debug)]
pub struct Opened {
    /// What was remembered.
    pub records: BTreeMap<PodUid, Record>,
    /// Takes changes.
    pub memory: Memory,
    /// Writes them.
    pub writer: Writer,
}

/// Opens the memory in `dir`, which is made if it is missing, for this process alone.
///
/// # Errors
/// [`MemoryError`]; the agent must not start without its memory, or pods would be forgotten in capture.
pub fn open(dir: &Path) -> Result<Opened, MemoryError> {
    let path = dir.join(FILE);
    let lock = lock(dir)?;
    let records = match fs::read_to_string(&path) {
        Ok(text) => parse(&path, &text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        Err(source) => return Err(MemoryError::File { path, source }),
    };
    let (sender, changes) = mpsc::channel(MOST_CHANGES);
    Ok(Opened {
        memory: Memory { changes: sender },
        writer: Writer {
            path,
            records: records.clone(),
            changes,
            stale: false,
            _lock: lock,
        },
        records,
    })
}

/// Locks the directory until the file is closed.
fn lock(dir: &Path) -> Result<File, MemoryError> {
    let path = dir.join(LOCK);
    let make = || {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(dir)?;
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
    };
    let file = make().map_err(|source| MemoryError::File {
        path: path.clone(),
        source,
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(MemoryError::InUse { path }),
        Err(TryLockError::Error(source)) => Err(MemoryError::File { path, source }),
    }
}

impl Memory {
    /// Remembers a pod, or that it leaves.
    ///
    /// # Errors
    /// When it is not on disk; the next change tries again.
    pub async fn remember(&self, record: Record) -> Result<(), Arc<MemoryError>> {
        self.change(record.spec.pod.uid.clone(), Some(record)).await
    }

    /// Forgets a pod.
    ///
    /// # Errors
    /// When that is not on disk; the next change tries again.
    pub async fn forget(&self, uid: &PodUid) -> Result<(), Arc<MemoryError>> {
        self.change(uid.clone(), None).await
    }

    async fn change(&self, uid: PodUid, record: Option<Record>) -> Result<(), Arc<MemoryError>> {
        let (done, answer) = oneshot::channel();
        // Both fail only when the writer is gone, which is when the agent stops: then nothing is written any more.
        if self.changes.send((uid, (record, done))).await.is_err() {
            return Ok(());
        }
        answer.await.unwrap_or(Ok(()))
    }
}

impl Writer {
    /// Forgets everything and takes the files away; for a program that has cleaned up and has no other use for the memory.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn erase(self) -> Result<(), MemoryError> {
        let files = [
            self.path.with_extension("new"),
            self.path.with_file_name(LOCK),
            self.path,
        ];
        for path in files {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(MemoryError::File { path, source });
                }
                _gone => {}
            }
        }
        Ok(())
    }

    /// Writes changes until all [`Memory`] handles are gone.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        while self.changes.recv_many(&mut batch, MOST_CHANGES).await > 0 {
            let before = self.records.clone();
            let mut waiting = Vec::new();
            for (uid, (record, done)) in batch.drain(..) {
                match record {
                    Some(record) => self.records.insert(uid, record),
                    None => self.records.remove(&uid),
                };
                waiting.push(done);
            }
            let outcome = if before == self.records && !self.stale {
                Ok(())
            } else {
                self.write().await.map_err(Arc::new)
            };
            self.stale = outcome.is_err();
            for done in waiting {
                // Who asked may have stopped waiting.
                let _told = done.send(outcome.clone());
            }
        }
    }

    async fn write(&self) -> Result<(), MemoryError> {
        let path = self.path.clone();
        let text = print(&self.records);
        let written = tokio::task::spawn_blocking({
            let path = path.clone();
            move || replace(&path, &text)
        });
        let source = match written.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(source)) => source,
            Err(panicked) => io::Error::other(panicked),
        };
        Err(MemoryError::File { path, source })
    }
}

/// Puts `text` in the place of a file, so that a crash leaves either the old or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    pods: Vec<Line>,
}

/// A record as the file has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    uid: String,
    namespace: String,
    name: String,
    service_account: String,
    netns: PathBuf,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    leaving: bool,
    bypass_inbound: bool,
    virtual_interfaces: Vec<String>,
    #[serde(default)]
    probed: BTreeSet<u16>,
}

fn print(records: &BTreeMap<PodUid, Record>) -> String {
    let pods = records
        .values()
        .map(|Record { spec, leaving }| Line {
            uid: spec.pod.uid.to_string(),
            namespace: spec.pod.name.namespace.to_string(),
            name: spec.pod.name.name.to_string(),
            service_account: spec.pod.service_account.to_string(),
            netns: spec.netns.clone(),
            addresses: spec.addresses.clone(),
            leaving: *leaving,
            bypass_inbound: spec.options.bypass_inbound,
            virtual_interfaces: spec
                .options
                .virtual_interfaces
                .iter()
                .map(|name| name.as_str().to_owned())
                .collect(),
            probed: spec.options.probed.clone(),
        })
        .collect();
    let content = Content {
        version: VERSION,
        pods,
    };
    // The content is strings, numbers and lists: it always prints.
    serde_json::to_string_pretty(&content).unwrap_or_default()
}

fn parse(path: &Path, text: &str) -> Result<BTreeMap<PodUid, Record>, MemoryError> {
    let damaged = |cause: String| MemoryError::Damaged {
        path: path.to_owned(),
        cause,
    };
    let content: Content =
        serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
    if content.version != VERSION {
        let cause = format!("its version is {}, not {VERSION}", content.version);
        return Err(damaged(cause));
    }
    content
        .pods
        .into_iter()
        .map(|line| {
            let interfaces: Option<_> = line
                .virtual_interfaces
                .iter()
                .map(|name| InterfaceName::new(name))
                .collect();
            let virtual_interfaces =
                interfaces.ok_or_else(|| damaged("an interface has an impossible name".into()))?;
            let uid = PodUid::new(line.uid);
            let spec = Spec {
                pod: HandoffPod {
                    uid: uid.clone(),
                    name: NamespacedName::new(line.namespace, line.name),
                    service_account: line.service_account.into(),
                },
                netns: line.netns,
                addresses: line.addresses,
                options: Options {
                    bypass_inbound: line.bypass_inbound,
                    virtual_interfaces,
                    probed: line.probed,
                },
            };
            let leaving = line.leaving;
            Ok((uid, Record { spec, leaving }))
        })
        .collect()
}

#[cfg(test)]
mod tests;
