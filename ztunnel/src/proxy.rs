//! PodProxy: one pod's listeners and connections on every worker; started as a whole, drained as a whole.
//!
//! Made by `pods`. Each worker has a [`PodContext`] of its own, which is what the conductors work with: nothing of a
//! connection is shared between workers. Knows nothing of the node agent.

pub(crate) mod sockets;
pub(crate) mod error;
pub(crate) mod admission;
pub(crate) mod record;
pub(crate) mod dial;
pub(crate) mod outbound;
pub(crate) mod inbound;
pub(crate) mod plaintext;
#[cfg(test)]
pub(crate) mod testing;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ambit_core::identity::SpiffeId;
use ambit_core::names::{NamespacedName, PodUid, Text};
use ambit_core::reason::Reason;
use ambit_core::view::MeshView;
use ambit_core::workload::Workload;
use ambit_net::certs::CertStore;
use ambit_net::hbone::pool::{Pool, PoolSettings};
use ambit_net::meters::{Gauge, Meters, TUNNELS_OPEN};
use ambit_net::netns::Netns;
use ambit_net::node_report::ServedPod;
use ambit_net::serve::serve;
use ambit_net::shared_view::SharedView;
use ambit_net::sockopt::canonical;
use ambit_net::tasks::{Spawner, Tasks};
use ambit_net::wire::handoff::HandoffPod;
use ambit_net::xds::Synced;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use self::admission::Admission;
use self::error::PodUnknown;
use self::sockets::{ListenError, Listeners, PodSockets};
use crate::config::Limits;
use crate::flows::Flows;
use crate::handshakes::Handshakes;
use crate::workers::Worker;

/// How long a connection waits for the mesh to be known (istio/ztunnel: 5 s for its own workload).
const KNOWN_DEADLINE: Duration = Duration::from_secs(5);

/// How long TLS may take, and how long a handshake may wait for its turn.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// What all pods of the node share.
#[derive(Debug)]
pub(crate) struct Mesh {
    /// What is known of the mesh.
    pub(crate) view: SharedView,
    /// Whether that is all of it.
    pub(crate) synced: Synced,
    /// The pods' certificates.
    pub(crate) certs: CertStore,
    /// What is counted.
    pub(crate) meters: Arc<Meters>,
    /// The trust domain of all identities.
    pub(crate) trust_domain: Text,
    /// Whether IPv6 is captured.
    pub(crate) ipv6: bool,
    /// Bounds.
    pub(crate) limits: Limits,
}

/// A pod as the node agent names it.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// Tells a pod from its successor of the same name.
    pub(crate) uid: PodUid,
    /// Namespace and name.
    pub(crate) name: NamespacedName,
    /// Who it is by that account; the controller has to say the same.
    pub(crate) identity: SpiffeId,
}

/// Why a pod's proxy could not be started.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// A listener could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A listener could not be put on its worker.
    #[error("a listener cannot be watched: {0}")]
    Watch(#[from] io::Error),
}

/// A pod that is served.
#[derive(Debug)]
pub(crate) struct PodProxy {
    shares: Vec<Share>,
    ending: Arc<OnceLock<Reason>>,
}

/// One worker's part of a pod.
#[derive(Debug)]
struct Share {
    context: Arc<PodContext>,
    /// Listeners and connections.
    tasks: Tasks,
    /// The watch over policy, which has to last as long as there are connections.
    background: Tasks,
}

/// What one pod's connections on one worker share.
#[derive(Debug)]
pub(crate) struct PodContext {
    pub(crate) pod: Pod,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) sockets: PodSockets,
    pub(crate) admission: Arc<Admission>,
    /// Tunnels to other proxies.
    pub(crate) pool: Pool,
    /// Tunnels that clients have opened, to any pod.
    pub(crate) tunnels: Gauge,
    /// The worker's handshakes with clients that may be under way.
    pub(crate) handshakes: Arc<Handshakes>,
    /// Where the streams of a tunnel are spawned.
    pub(crate) spawner: Spawner,
    /// The worker's book of connections that are being carried.
    pub(crate) flows: Arc<Flows>,
    /// Why connections that are cut are cut; set when the end begins.
    pub(crate) ending: Arc<OnceLock<Reason>>,
}

impl PodProxy {
    /// Opens the pod's listeners on every worker; when it returns, all of them take connections.
    ///
    /// # Errors
    /// When a listener cannot be opened; then none stays open.
    pub(crate) fn start(
        pod: &Pod,
        netns: &Netns,
        mesh: &Arc<Mesh>,
        workers: &[Worker],
    ) -> Result<Self, StartError> {
        let sockets = PodSockets::new(netns.clone(), mesh.ipv6);
        let listeners: Vec<_> = workers
            .iter()
            .map(|_| sockets.listen())
            .collect::<Result<_, _>>()?;
        let ending = Arc::default();
        let shares = workers.iter().zip(listeners).map(|(worker, listeners)| {
            let tasks = Tasks::new(format!("connections of {}", pod.name));
            let context = Arc::new(PodContext {
                pod: pod.clone(),
                mesh: Arc::clone(mesh),
                sockets: sockets.clone(),
                admission: Arc::new(Admission::new(pod.name.clone(), mesh.view.clone())),
                pool: Pool::new(
                    format!("tunnels of {}", pod.name),
                    PoolSettings::default(),
                    mesh.meters.gauge(&TUNNELS_OPEN, ["outbound"]),
                ),
                tunnels: mesh.meters.gauge(&TUNNELS_OPEN, ["inbound"]),
                handshakes: Arc::clone(&worker.handshakes),
                spawner: tasks.spawner(),
                flows: Arc::clone(&worker.flows),
                ending: Arc::clone(&ending),
            });
            // What is spawned and registered from here on belongs to the worker.
            let _inside = worker.runtime.enter();
            Share::start(context, tasks, listeners)
        });
        let shares = shares.collect::<io::Result<_>>()?;
        Ok(Self { shares, ending })
    }

    /// The books of open inbound connections, one a worker.
    pub(crate) fn admissions(&self) -> Vec<Arc<Admission>> {
        self.shares
            .iter()
            .map(|share| Arc::clone(&share.context.admission))
            .collect()
    }

    /// Closes the listeners and tells clients to open no more streams; connections go on. `why` is logged for those that are cut.
    pub(crate) fn stop(&self, why: Reason) {
        // Only the first reason counts: a pod that is leaving while the proxy stops was leaving.
        self.ending.get_or_init(|| why);
        for share in &self.shares {
            share.tasks.stop();
        }
    }

    /// Waits until all connections have ended, at most until `end`, and cuts the rest.
    pub(crate) async fn drain(self, end: Instant) {
        for share in self.shares {
            share
                .tasks
                .drain(end.saturating_duration_since(Instant::now()))
                .await;
            share.context.pool.drain(Duration::ZERO).await;
            share.background.drain(Duration::ZERO).await;
        }
    }
}

impl Share {
    fn start(context: Arc<PodContext>, tasks: Tasks, listeners: Listeners) -> io::Result<Self> {
        let background = Tasks::new(format!("background of {}", context.pod.name));
        let admission = Arc::clone(&context.admission);
        background.spawn(admission.keep_watch(background.stop_signal()));
        let share = Self {
            context,
            tasks,
            background,
        };
        share.listen(listeners.outbound, outbound::handle)?;
        share.listen(listeners.plaintext, plaintext::handle)?;
        share.listen(listeners.hbone, inbound::handle_connection)?;
        Ok(share)
    }

    fn listen<H, F>(&self, listener: std::net::TcpListener, handle: H) -> io::Result<()>
    where
        H: Fn(Arc<PodContext>, TcpStream, SocketAddr) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::from_std(listener)?;
        let pod = Arc::clone(&self.context);
        let limit = pod.mesh.limits.connections;
        let handle = move |stream, client| handle(Arc::clone(&pod), stream, canonical(client));
        self.tasks
            .spawn(serve(listener, limit, self.tasks.spawner(), handle));
        Ok(())
    }
}

impl PodContext {
    /// Decides something from the mesh and the pod's own workload in it; waits a while for those to be known.
    ///
    /// # Errors
    /// When they are not known in time.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn look<R>(
        &self,
        look: impl Fn(&MeshView, &Arc<Workload>) -> R,
    ) -> Result<R, PodUnknown> {
        match self.look_now(&look) {
            Ok(found) => Ok(found),
            // Rare, so its size is no burden to every connection.
            Err(unknown) => Box::pin(self.look_later(&look, unknown)).await,
        }
    }

    fn look_now<R>(&self, look: impl Fn(&MeshView, &Arc<Workload>) -> R) -> Result<R, PodUnknown> {
        // Before the first sync an unknown address may still be one of the mesh's, and a policy may still be missing.
        if !self.mesh.synced.is_complete() {
            return Err(PodUnknown::NotSynced);
        }
        self.mesh.view.read(|view| {
            let name = &self.pod.name;
            let workload = view.pod(&name.namespace, &name.name).ok_or_else(|| {
                match view.why_no_pod(&name.namespace, &name.name) {
                    Reason::ResourceUnreadable => PodUnknown::Unreadable,
                    _ => PodUnknown::Absent,
                }
            })?;
            let (ours, theirs) = (&self.pod.identity, workload.identity());
            if *ours == theirs {
                Ok(look(view, workload))
            } else {
                let ours = ours.clone();
                Err(PodUnknown::OtherIdentity { ours, theirs })
            }
        })
    }

    async fn look_later<R>(
        &self,
        look: impl Fn(&MeshView, &Arc<Workload>) -> R,
        mut unknown: PodUnknown,
    ) -> Result<R, PodUnknown> {
        let mut changes = self.mesh.view.changes();
        let known = timeout(KNOWN_DEADLINE, async {
            self.mesh.synced.wait().await;
            loop {
                match self.look_now(&look) {
                    Ok(found) => return found,
                    Err(still) => unknown = still,
                }
                if changes.changed().await.is_err() {
                    // The view is gone, and with it the process: nothing will change any more.
                    std::future::pending::<()>().await;
                }
            }
        });
        known.await.map_err(|_elapsed| unknown)
    }
}

impl Pod {
    /// The pod that the agent names, as a member of a trust domain.
    pub(crate) fn new(pod: HandoffPod, trust_domain: &Text) -> Self {
        let namespace = Text::clone(&pod.name.namespace);
        Self {
            uid: pod.uid,
            name: pod.name,
            identity: SpiffeId::new(Text::clone(trust_domain), namespace, pod.service_account),
        }
    }

    /// The pod as the controller is told of it.
    pub(crate) fn as_served(&self) -> ServedPod {
        ServedPod {
            name: self.name.clone(),
            uid: self.uid.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (TcpStream, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stream, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
        (stream.unwrap(), accepted.unwrap().1)
    }

    /// Each open connection costs this much memory; what makes it grow should be boxed if it is rare.
    #[tokio::test]
    async fn futures_of_connections_stay_small() {
        let pod = Arc::new(testing::context("web", &testing::mesh()));
        let (tcp, client) = pair().await;
        let outbound = size_of_val(&outbound::handle(Arc::clone(&pod), tcp, client));
        let (tcp, client) = pair().await;
        let plaintext = size_of_val(&plaintext::handle(Arc::clone(&pod), tcp, client));
        let (tcp, client) = pair().await;
        let tunnel = size_of_val(&inbound::handle_connection(pod, tcp, client));
        for (what, size, limit) in [
            ("outbound", outbound, 2560),
            ("plaintext", plaintext, 2048),
            ("tunnel", tunnel, 3584),
        ] {
            assert!(size <= limit, "{what}: {size} bytes, at most {limit}");
        }
    }
}
