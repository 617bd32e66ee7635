//! A mesh and a pod for unit tests: everything real but the controller, in the test's own network namespace.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::identity::SpiffeId;
use ambit_core::names::{ClusterId, NamespacedName, NetworkId, PodUid};
use ambit_core::view::MeshView;
use ambit_net::certs::{CertStore, CertStoreSettings, Sign, SignError};
use ambit_net::hbone::pool::{Pool, PoolSettings};
use ambit_net::meters::{Meters, TUNNELS_OPEN};
use ambit_net::netns::Netns;
use ambit_net::shared_view::SharedView;
use ambit_net::tasks::Tasks;
use ambit_net::xds::Synced;

use crate::config::Limits;
use crate::flows::Flows;
use crate::handshakes::Handshakes;
use crate::proxy::admission::Admission;
use crate::proxy::sockets::PodSockets;
use crate::proxy::{Mesh, Pod, PodContext};

/// Signs nothing.
struct NoCa;

impl Sign for NoCa {
    fn sign<'a>(
        &'a self,
        _identity: &'a SpiffeId,
        _request: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, SignError>> + Send + 'a>> {
        Box::pin(async { Err(SignError::Refused("this is a test".to_owned())) })
    }
}

/// A mesh that knows nothing yet.
pub(crate) fn mesh() -> Arc<Mesh> {
    let view = MeshView::new(NetworkId::default(), ClusterId::new("Kubernetes"));
    let meters = Meters::new("ztunnel", 100);
    let settings = CertStoreSettings::default();
    Arc::new(Mesh {
        view: SharedView::new(view),
        synced: Synced::new(),
        certs: CertStore::new(Arc::new(NoCa), settings, Arc::new(|| 0), &meters),
        meters,
        trust_domain: "cluster.local".into(),
        ipv6: true,
        limits: Limits {
            connections: 10,
            handshakes: 10,
            traffic_series: 100,
            termination: Duration::from_secs(1),
        },
    })
}

/// The pod `shop/NAME` with the account `NAME`.
pub(crate) fn pod(name: &str) -> Pod {
    Pod {
        uid: PodUid::new(format!("uid-{name}")),
        name: NamespacedName::new("shop", name),
        identity: SpiffeId::new("cluster.local", "shop", name),
    }
}

/// One worker's part of a pod. Its tasks run nowhere.
pub(crate) fn context(name: &str, mesh: &Arc<Mesh>) -> PodContext {
    let pod = pod(name);
    PodContext {
        sockets: PodSockets::new(Netns::current().unwrap(), true),
        admission: Arc::new(Admission::new(pod.name.clone(), mesh.view.clone())),
        pool: Pool::new(
            "test",
            PoolSettings::default(),
            mesh.meters.gauge(&TUNNELS_OPEN, ["outbound"]),
        ),
        tunnels: mesh.meters.gauge(&TUNNELS_OPEN, ["inbound"]),
        handshakes: Arc::new(Handshakes::new(1)),
        spawner: Tasks::new("test").spawner(),
        flows: Arc::new(Flows::new(&mesh.meters)),
        ending: Arc::default(),
        mesh: Arc::clone(mesh),
        pod,
    }
}
