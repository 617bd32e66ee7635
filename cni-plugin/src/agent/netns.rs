//! The network namespaces that the agent works in: opened by path, each held for one pod, never the node's own.
//!
//! Called by the pod tasks. Two pods in one namespace would undo each other's rules, and rules in the node's own namespace
//! would capture the node; both are refused here. Knows no rules.

mod results;
mod processes;
pub mod find;

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ambit_core::names::PodUid;
use ambit_net::netns::{Netns, NetnsError, NetnsId};
use nix::sys::stat::fstat;
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use thiserror::Error;
use tokio::task::spawn_blocking;

use super::pods::Spec;

/// The namespace of the node, seen from a pod of the node that shares its process ids; absent elsewhere.
const INIT: &str = "/proc/1/ns/net";

/// Why a pod's namespace cannot be used.
#[derive(Debug, Error)]
pub(super) enum OpenError {
    /// There is no file at the path: the pod has not started, or has ended.
    #[error("there is no network namespace at {0}")]
    Absent(PathBuf),
    /// It cannot be opened.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// It is the node's or the agent's own.
    #[error(
        "{0} is the node's own network namespace, not a pod's; capturing it would cut off the node"
    )]
    Own(PathBuf),
    /// Another pod has it.
    #[error("{path} is the network namespace of pod {holder} already")]
    Taken {
        /// The path.
        path: PathBuf,
        /// Who has it.
        holder: PodUid,
    },
    /// It is another pod's.
    #[error("{0} holds none of the pod's addresses: it has become another pod's network namespace")]
    Foreign(PathBuf),
    /// A helper thread ended without a result.
    #[error("a thread of the agent panicked")]
    Panicked,
}

/// Which namespaces are in use. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(super) struct Namespaces {
    forbidden: Arc<Vec<NetnsId>>,
    holders: Arc<Mutex<HashMap<NetnsId, PodUid>>>,
}

/// A namespace that one pod has, until this value goes.
#[derive(Debug)]
pub(super) struct Held {
    netns: Netns,
    all: Namespaces,
}

impl Namespaces {
    /// Knows the namespaces that are not to be touched.
    ///
    /// # Errors
    /// When the own namespace cannot be read.
    pub(super) fn new() -> Result<Self, NetnsError> {
        let own = Netns::current()?;
        let init = Netns::open(Path::new(INIT)).ok();
        let forbidden = std::iter::once(own).chain(init).map(|netns| netns.id());
        Ok(Self {
            forbidden: Arc::new(forbidden.collect()),
            holders: Arc::default(),
        })
    }

    /// Opens the namespace of a pod. Where its addresses are known, the namespace has to hold one of them: what is at the
    /// path may have changed since it was noted.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) async fn open(&self, spec: &Spec) -> Result<Held, OpenError> {
        let (all, uid, path) = (self.clone(), spec.pod.uid.clone(), spec.netns.clone());
        let opened = spawn_blocking(move || all.take(&uid, &path)).await;
        let held = opened.map_err(|_panic| OpenError::Panicked)??;
        if spec.addresses.is_empty() || find::holds_one_of(held.netns(), &spec.addresses).await? {
            return Ok(held);
        }
        Err(OpenError::Foreign(spec.netns.clone()))
    }

    /// Opens the namespace at `path` for a pod. Blocks on files.
    fn take(&self, pod: &PodUid, path: &Path) -> Result<Held, OpenError> {
        let netns = Netns::open(path).map_err(|error| match error {
            NetnsError::Open { path, source } if source.kind() == io::ErrorKind::NotFound => {
                OpenError::Absent(path)
            }
            // What `ip netns` leaves when its mount has gone is an empty file.
            NetnsError::NotANetns { .. } if is_plain_file(path) => {
                OpenError::Absent(path.to_owned())
            }
            other => OpenError::Netns(other),
        })?;
        if self.forbidden.contains(&netns.id()) {
            return Err(OpenError::Own(path.to_owned()));
        }
        let mut holders = self.holders();
        if let Some(holder) = holders.get(&netns.id()) {
            return Err(OpenError::Taken {
                path: path.to_owned(),
                holder: holder.clone(),
            });
        }
        holders.insert(netns.id(), pod.clone());
        drop(holders);
        Ok(Held {
            netns,
            all: self.clone(),
        })
    }

    /// True for the node's own namespace and the agent's.
    pub(super) fn are_nodes(&self, netns: &Netns) -> bool {
        self.forbidden.contains(&netns.id())
    }

    fn holders(&self) -> MutexGuard<'_, HashMap<NetnsId, PodUid>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// The namespace.
    pub(super) fn netns(&self) -> &Netns {
        &self.netns
    }

    /// True while `path` leads to this namespace. When it does not, the pod has ended: what is held here is only kept alive
    /// by being held.
    pub(super) async fn is_at(&self, path: &Path) -> bool {
        let (netns, path) = (self.netns.clone(), path.to_owned());
        let same = spawn_blocking(move || {
            let here = fstat(&netns).map(|stat| (stat.st_dev, stat.st_ino));
            let there = std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
            matches!((here, there), (Ok(here), Ok(there)) if here == there)
        });
        // Only a look that took place can tell that it has gone.
        same.await.unwrap_or(true)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.holders().remove(&self.netns.id());
    }
}

/// True for an empty file of an ordinary file system; namespaces of all kinds look like empty files as well.
fn is_plain_file(path: &Path) -> bool {
    let empty = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0);
    empty && statfs(path).is_ok_and(|system| system.filesystem_type() != NSFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_and_what_is_none_are_refused() {
        let namespaces = Namespaces::new().unwrap();
        let open = |path: &str| namespaces.take(&PodUid::new("a"), Path::new(path));
        assert!(matches!(open("/proc/self/ns/net"), Err(OpenError::Own(_))));
        assert!(matches!(open("/nowhere/at/all"), Err(OpenError::Absent(_))));
        assert!(matches!(
            open("/proc/self/ns/uts"),
            Err(OpenError::Netns(_))
        ));
    }

    #[test]
    fn a_file_that_lost_its_mount_is_an_absent_namespace() {
        let path = std::env::temp_dir().join(format!("ambit-netns-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let opened = Namespaces::new().unwrap().take(&PodUid::new("a"), &path);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(opened, Err(OpenError::Absent(_))), "{opened:?}");
    }
}
