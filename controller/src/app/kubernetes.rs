//! Opens what belongs to a cluster: the client, the root in its Secret, token reviews, the status on the pod's loopback.
//!
//! Called by [`super`]. Waits for an API server that is away; readiness tells so meanwhile.

use std::sync::Arc;
use std::time::Duration;

use ambit_core::names::Text;
use futures_util::future::FutureExt as _;
use kube::Client;
use kube::config::Config as ClientConfig;
use tokio::sync::watch;

use super::{AppError, Ground, Running, StatusPort, Wires, listen};
use crate::ca::authenticate::Authenticator;
use crate::ca::authenticate::review::{Reviews, Trusted};
use crate::ca::root::secret;
use crate::config::{Config, Kubernetes};
use crate::duties::Duties;
use crate::index::served::CaptureSource;
use crate::reports::NodeReports;
use crate::watch::kubernetes;

/// Wait for a connection to the API server: it is near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reaches for the API server and reads what is kept there.
pub(super) async fn open(
    cluster: &Kubernetes,
    config: &Config,
    wires: Wires,
    running: &Running,
) -> Result<Ground, AppError> {
    let client = client().await?;
    let trusted = Trusted {
        audience: cluster.token_audience.clone(),
        accounts: cluster.trusted_accounts.clone(),
    };
    let status = listen("AMBIT_STATUS_ADDR", cluster.status)?;
    let root = secret::open(&client, &cluster.namespace, &config.mesh.trust_domain).await?;
    let (in_force, root) = watch::channel(Arc::new(root));
    let namespace = Text::clone(&cluster.namespace);
    let exchange = secret::follow(client.clone(), namespace, in_force);
    let duties = Duties {
        client: client.clone(),
        namespace: Text::clone(&cluster.namespace),
        identity: Text::clone(&cluster.pod_name),
        root: root.clone(),
        verdicts: wires.verdicts,
    };
    running
        .control
        .spawn(duties.run(running.control.stop_signal()));
    let meters = || Arc::clone(&running.meters);
    let reviews = Reviews::new(client.clone(), trusted);
    let source = kubernetes::run(client, wires.events.clone());
    Ok(Ground {
        root,
        authenticator: Authenticator::reviewing(reviews, meters()),
        capture: CaptureSource::Annotations,
        reports: NodeReports::in_memory(wires.events, meters()),
        status: StatusPort::Loopback(status),
        tasks: vec![source.boxed(), exchange.boxed()],
    })
}

async fn client() -> Result<Client, AppError> {
    let mut config = ClientConfig::infer().await.map_err(AppError::NoCluster)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(AppError::Client)
}
