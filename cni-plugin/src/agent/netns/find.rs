//! Finds the network namespace of a pod that runs already: from what is known, from the runtime, or by its processes.
//!
//! Called by the pod tasks on Kubernetes. Whatever names a namespace may be out of date, so none is used that does not hold
//! one of the pod's addresses: rules in a wrong one would capture another pod, or the node. Knows no rules.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ambit_core::names::{NamespacedName, PodUid};
use ambit_net::netns::{Netns, NetnsError};
use nix::ifaddrs::getifaddrs;
use thiserror::Error;
use tokio::task::spawn_blocking;

use super::{processes, results};

/// Where runtimes put namespaces on the node, as they write it; `/var/run` is a link to `/run` there and may be none here.
const RUN: [&str; 2] = ["/run", "/var/run"];
/// The node's processes, as runtimes write it.
const PROC: &str = "/proc";
/// Most namespaces that are looked into for one pod: a pod has one, and its processes may make some.
const MOST_CANDIDATES: usize = 16;

/// The pod whose namespace is looked for.
#[derive(Clone, Debug)]
pub struct Sought {
    /// Its uid in the API.
    pub uid: PodUid,
    /// Its name.
    pub name: NamespacedName,
    /// The uid that a static pod has on its node (annotation `kubernetes.io/config.hash`).
    pub static_uid: Option<String>,
    /// Its addresses (`status.podIPs`, or what CNI answered).
    pub addresses: Vec<IpAddr>,
    /// Where it is thought to be: by CNI, or from before a restart.
    pub known: Option<PathBuf>,
}

/// Why a pod's namespace was not found. It is looked for again.
#[derive(Debug, Error)]
pub enum FindError {
    /// It has no address by which its namespace could be known.
    #[error(
        "the pod has no address yet, so it has no network that could be captured; if this stays, the cluster's network \
         (CNI) has failed to give it one: see `kubectl describe pod`"
    )]
    NoAddress,
    /// Nobody names a namespace.
    #[error(
        "neither the runtime's notes in {cache} nor a process in {proc} belong to the pod: its containers are not up, or the \
         agent does not see the node's files (AMBIT_CNI_CACHE, AMBIT_PROC)"
    )]
    Nowhere {
        /// The cache of the CNI library.
        cache: PathBuf,
        /// The node's processes.
        proc: PathBuf,
    },
    /// What is named is not the pod's.
    #[error(
        "{path}, said to be the pod's network namespace, holds none of its addresses{}; it has been left alone",
        nor_others(*others)
    )]
    Foreign {
        /// The first of them.
        path: PathBuf,
        /// How many more there are.
        others: usize,
    },
    /// What is named is the node's own.
    #[error(
        "{0} is the node's own network namespace: the pod uses the host's network (hostNetwork) and is left alone"
    )]
    Own(PathBuf),
    /// A namespace cannot be looked into.
    #[error(
        "cannot look into {path}; the agent needs the capabilities SYS_ADMIN and SYS_PTRACE for this"
    )]
    Closed {
        /// Which.
        path: PathBuf,
        /// Why.
        source: NetnsError,
    },
    /// A helper thread ended without a result.
    #[error("a thread of the agent panicked")]
    Panicked,
}

fn nor_others(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(", nor do {count} others"),
    }
}

/// Looks for namespaces of pods on this node.
#[derive(Clone, Debug)]
pub struct Finder {
    proc: PathBuf,
    cache: PathBuf,
}

/// What became of looking at one path.
enum Seen {
    Pods,
    Others,
    Own,
    Gone,
    Closed(NetnsError),
}

impl Finder {
    /// Looks below these folders: the node's /proc, and the CNI library's cache (`/var/lib/cni` on the node).
    pub fn new(proc: PathBuf, cache: PathBuf) -> Self {
        Self { proc, cache }
    }

    /// Finds the namespace of a pod; the path leads there as long as the pod's sandbox lives.
    ///
    /// # Errors
    /// [`FindError`].
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is changed.
    pub async fn find(&self, sought: &Sought) -> Result<PathBuf, FindError> {
        if sought.addresses.is_empty() {
            return Err(FindError::NoAddress);
        }
        let mut failed: Option<FindError> = None;
        let mut foreign = 0;
        for source in [Self::known, Self::by_runtime, Self::by_processes] {
            for path in self.list(source, sought).await? {
                let error = match look(&path, &sought.addresses).await {
                    Seen::Pods => return Ok(path),
                    Seen::Gone => continue,
                    Seen::Own => FindError::Own(path),
                    Seen::Closed(source) => FindError::Closed { path, source },
                    Seen::Others => {
                        foreign += 1;
                        FindError::Foreign { path, others: 0 }
                    }
                };
                failed.get_or_insert(error);
            }
        }
        Err(match failed {
            Some(FindError::Foreign { path, .. }) => FindError::Foreign {
                path,
                others: foreign - 1,
            },
            Some(error) => error,
            None => FindError::Nowhere {
                cache: self.cache.clone(),
                proc: self.proc.clone(),
            },
        })
    }

    /// Runs one way of listing on a thread that may block.
    async fn list(
        &self,
        source: fn(&Self, &Sought) -> Vec<PathBuf>,
        sought: &Sought,
    ) -> Result<Vec<PathBuf>, FindError> {
        let (finder, sought) = (self.clone(), sought.clone());
        let listed = spawn_blocking(move || source(&finder, &sought)).await;
        listed.map_err(|_panic| FindError::Panicked)
    }

    fn known(&self, sought: &Sought) -> Vec<PathBuf> {
        let known = sought.known.as_deref();
        known.map(|path| self.places(path)).unwrap_or_default()
    }

    fn by_runtime(&self, sought: &Sought) -> Vec<PathBuf> {
        let pod = results::Pod {
            uids: &uids(sought),
            namespace: &sought.name.namespace,
            name: &sought.name.name,
        };
        // A runtime that does not use the library has no such folder.
        let noted = results::paths(&self.cache, pod).unwrap_or_default();
        let places = noted.iter().flat_map(|path| self.places(path));
        places.take(MOST_CANDIDATES).collect()
    }

    fn by_processes(&self, sought: &Sought) -> Vec<PathBuf> {
        let mut found = processes::paths(&self.proc, &uids(sought)).unwrap_or_default();
        found.truncate(MOST_CANDIDATES);
        found
    }

    /// Where a path of the node may be seen from here.
    fn places(&self, path: &Path) -> Vec<PathBuf> {
        if let Ok(below) = path.strip_prefix(PROC) {
            return vec![self.proc.join(below)];
        }
        let [short, long] = RUN;
        let other = match (path.strip_prefix(short), path.strip_prefix(long)) {
            (Ok(below), _) => Some(Path::new(long).join(below)),
            (_, Ok(below)) => Some(Path::new(short).join(below)),
            _ => None,
        };
        std::iter::once(path.to_owned()).chain(other).collect()
    }
}

/// True when the namespace holds one of these addresses.
///
/// # Errors
/// When it cannot be entered, or does not say its addresses.
///
/// # Cancel safety
/// Cancel safe: nothing is changed.
pub async fn holds_one_of(netns: &Netns, addresses: &[IpAddr]) -> Result<bool, NetnsError> {
    let wanted = addresses.to_vec();
    let held = netns
        .run_on_thread(move || own_addresses().map(|own| own.iter().any(|ip| wanted.contains(ip))));
    held.await?.map_err(|source| NetnsError::Enter {
        id: netns.id(),
        source,
    })
}

/// Addresses of all interfaces in the calling thread's namespace.
fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
    });
    Ok(addresses.collect())
}

async fn look(path: &Path, addresses: &[IpAddr]) -> Seen {
    let (opened, own) = {
        let path = path.to_owned();
        match spawn_blocking(move || (Netns::open(&path), Netns::current())).await {
            Ok(both) => both,
            Err(_panic) => return Seen::Gone,
        }
    };
    let netns = match (opened, own) {
        (Ok(netns), Ok(own)) if netns.id() == own.id() => return Seen::Own,
        (Ok(netns), _) => netns,
        (Err(NetnsError::Open { source, .. }), _) if source.kind() == io::ErrorKind::NotFound => {
            return Seen::Gone;
        }
        // What `ip netns` and runtimes leave when the mount has gone is an empty file.
        (Err(NetnsError::NotANetns { .. }), _) => return Seen::Gone,
        (Err(error), _) => return Seen::Closed(error),
    };
    match holds_one_of(&netns, addresses).await {
        Ok(true) => Seen::Pods,
        Ok(false) => Seen::Others,
        Err(error) => Seen::Closed(error),
    }
}

fn uids(sought: &Sought) -> Vec<&str> {
    let uids = std::iter::once(sought.uid.as_str()).chain(sought.static_uid.as_deref());
    uids.filter(|uid| !uid.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sought(addresses: &[&str], known: Option<&str>) -> Sought {
        Sought {
            uid: PodUid::new("6c1a2b0e-7c2f-4f1e-9f6b-8f2f3a1d0b11"),
            name: NamespacedName::new("zoo", "bear-0"),
            static_uid: None,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            known: known.map(PathBuf::from),
        }
    }

    #[test]
    fn paths_of_the_node_are_looked_for_where_the_agent_sees_them() {
        let finder = Finder::new("/host/proc".into(), "/var/lib/cni".into());
        let places = |path: &str| {
            let places = finder.places(Path::new(path));
            places
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(places("/proc/7/ns/net"), ["/host/proc/7/ns/net"]);
        assert_eq!(places("/host/proc/7/ns/net"), ["/host/proc/7/ns/net"]);
        assert_eq!(places("/run/netns/a"), ["/run/netns/a", "/var/run/netns/a"]);
        assert_eq!(
            places("/var/run/netns/a"),
            ["/var/run/netns/a", "/run/netns/a"]
        );
        assert_eq!(places("/var/lib/x"), ["/var/lib/x"]);
    }

    #[tokio::test]
    async fn a_pod_without_a_network_is_told_so() {
        let finder = Finder::new("/nowhere".into(), "/nowhere".into());
        let error = finder
            .find(&sought(&[], Some("/proc/self/ns/net")))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("has no address yet"), "{error}");
        let error = finder.find(&sought(&["10.0.0.1"], None)).await.unwrap_err();
        assert!(error.to_string().contains("AMBIT_PROC"), "{error}");
    }

    #[tokio::test]
    async fn the_nodes_own_namespace_is_never_a_pods() {
        let finder = Finder::new("/proc".into(), "/nowhere".into());
        let error = finder
            .find(&sought(&["127.0.0.1"], Some("/proc/self/ns/net")))
            .await
            .unwrap_err();
        assert!(matches!(error, FindError::Own(_)), "{error}");
    }
}
