//! The mesh as this controller sees it, for operators on this machine: the document behind `ambit status`.
//!
//! Composed on demand from what the other parts publish. Served on a Unix socket to root and to our own user, where the
//! kernel says who asks; in a cluster on the pod's loopback, which port forwarding reaches and RBAC guards.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, os};

use ambit_core::names::Text;
use ambit_core::status::{MeshStatus, NodeStatus, Problem, ProxyStatus};
use ambit_net::admin::{Answer, Routes, serve_connection, serve_routes};
use ambit_net::tasks::Spawner;
use ambit_net::telemetry::VERSION;
use ambit_net::xds::Kind;
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::ca::authenticate::Authenticator;
use crate::ca::issued::Issued;
use crate::ca::root::Root;
use crate::roster::Roster;
use crate::xds::proxies::Proxies;
use crate::xds::server::Published;

/// The root's last year: time to plan a new one.
const ROOT_ENDS_SOON: u64 = 365 * 86400;
/// Wait before the next attempt to accept, after the system had no descriptor for it.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Why the status cannot be served.
#[derive(Debug, Error)]
pub enum OverviewError {
    /// Another controller answers there.
    #[error("{0} is in use by another controller")]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{0} is there and no socket; remove it")]
    NoSocket(PathBuf),
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What the document is composed from.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Trust domain of all identities.
    pub trust_domain: Text,
    /// The root in force.
    pub root: watch::Receiver<Arc<Root>>,
    /// Who runs where.
    pub roster: watch::Receiver<Option<Arc<Roster>>>,
    /// The resources.
    pub published: Published,
    /// The nodes that may call.
    pub authenticator: Authenticator,
    /// The certificates.
    pub issued: Issued,
    /// The proxies.
    pub proxies: Proxies,
}

impl Overview {
    /// The document; `now` is in seconds since the epoch.
    pub fn status(&self, now: u64) -> MeshStatus {
        let roster = self.roster.borrow().clone().unwrap_or_default();
        let snapshot = self.published.borrow().clone().unwrap_or_default();
        let current = |type_url: &str| {
            let kind = Kind::of(type_url);
            kind.map_or_else(String::new, |kind| {
                snapshot.shelf(kind).version().to_string()
            })
        };
        let proxies = self.proxies.status(current);
        MeshStatus {
            controller_version: VERSION.to_owned(),
            trust_domain: self.trust_domain.to_string(),
            root_not_after: Some(self.root.borrow().not_after()),
            nodes: self.nodes(&roster, &proxies),
            pods: roster.pods.clone(),
            identities: self.issued.status(now),
            proxies,
            problems: self.problems(&roster, now),
            ..MeshStatus::default()
        }
    }

    fn nodes(&self, roster: &Roster, proxies: &[ProxyStatus]) -> Vec<NodeStatus> {
        let mut nodes: BTreeMap<String, NodeStatus> = BTreeMap::new();
        let known = self
            .authenticator
            .nodes()
            .into_iter()
            .map(|node| node.to_string());
        let of_pods = roster.pods.iter().map(|pod| pod.node.clone());
        let of_proxies = proxies.iter().map(|proxy| proxy.node.clone());
        for name in known
            .chain(of_pods)
            .chain(of_proxies)
            .filter(|name| !name.is_empty())
        {
            nodes.entry(name).or_default();
        }
        for (name, report) in &roster.reports {
            let node = nodes.entry(name.to_string()).or_default();
            node.reported_at = Some(report.at);
            node.pods_served = u32::try_from(report.pods).unwrap_or(u32::MAX);
        }
        for proxy in proxies.iter().filter(|proxy| proxy.connected) {
            if let Some(node) = nodes.get_mut(&proxy.node) {
                node.connected = true;
            }
        }
        let named = nodes
            .into_iter()
            .map(|(name, node)| NodeStatus { name, ..node });
        named.collect()
    }

    fn problems(&self, roster: &Roster, now: u64) -> Vec<Problem> {
        let left = self.root.borrow().not_after().saturating_sub(now);
        let ends_soon = left < ROOT_ENDS_SOON;
        let root = ends_soon.then(|| Problem {
            place: "the root of the CA".to_owned(),
            what: format!("it ends in {} days", left / 86400),
        });
        let unread = self.roster.borrow().is_none().then(|| Problem {
            place: "the sources".to_owned(),
            what: "they have not been read yet; nothing is served".to_owned(),
        });
        let tokens = self.authenticator.problems();
        let known = roster.problems.iter().cloned();
        known.chain(tokens).chain(root).chain(unread).collect()
    }
}

/// The status socket.
#[derive(Debug)]
pub struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Who made the socket: we.
    own_user: u32,
}

impl StatusSocket {
    /// Listens at `path`, in place of a socket that nobody serves any more.
    ///
    /// # Errors
    /// When another controller serves there, something else is there, or the system refuses.
    pub fn bind(path: &Path) -> Result<Self, OverviewError> {
        let refused = |source| OverviewError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(refused)?;
        }
        remove_left_over(path)?;
        let listener = UnixListener::bind(path).map_err(refused)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(refused)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            own_user: fs::metadata(path).map_err(refused)?.uid(),
        })
    }

    /// Answers until the owner of `tasks` stops them.
    pub async fn serve(self, overview: Overview, tasks: Spawner) {
        let routes = routes(overview);
        let stop = tasks.stop_signal();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.stopped() => return,
            };
            match accepted {
                Ok((stream, _)) if self.may_ask(&stream) => {
                    tasks.spawn(serve_connection(stream, Arc::clone(&routes), stop.clone()));
                }
                Ok(_) => warn!("somebody who is neither root nor our user asked for the status"),
                Err(error) => {
                    debug!(%error, "no connection could be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn may_ask(&self, stream: &UnixStream) -> bool {
        let asks = stream.peer_cred().map(|who| who.uid());
        asks.is_ok_and(|user| user == 0 || user == self.own_user)
    }
}

/// Answers on a port until the owner of `tasks` stops them; who may reach the port may ask.
pub async fn serve_tcp(listener: TcpListener, overview: Overview, tasks: Spawner) {
    serve_routes(listener, routes(overview), tasks).await;
}

fn routes(overview: Overview) -> Arc<Routes> {
    Arc::new(Routes::new().get("/status", move |_query| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Answer::json(&overview.status(since.map_or(0, |since| since.as_secs())))
    }))
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        // The next start would replace it; it is only tidier without.
        drop(fs::remove_file(&self.path));
    }
}

fn remove_left_over(path: &Path) -> Result<(), OverviewError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(OverviewError::NoSocket(path.to_owned()));
    }
    if os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(OverviewError::InUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(|source| OverviewError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
