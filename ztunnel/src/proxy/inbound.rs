//! Conductors: one connection to port 15008, and one CONNECT stream in it.
//!
//! The first is called by the accept loop and spawns the second for each request. What a request may name is
//! `ambit_core::delivery`, who may come in is `admission`; a refusal is a status with its reason.

use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::delivery::deliver;
use ambit_core::hbone::ConnectTarget;
use ambit_core::identity::SpiffeId;
use ambit_core::names::Hostname;
use ambit_core::reason::Reason;
use ambit_net::hbone::TunnelSettings;
use ambit_net::hbone::server::{ConnectRequest, Tunnel};
use ambit_net::relay::{Peer, relay};
use ambit_net::sockopt::canonical;
use ambit_net::tls;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use super::admission::{Admitted, Claim};
use super::error::InboundError;
use super::record::{ConnectionRecord, Delivered};
use super::{HANDSHAKE_DEADLINE, PodContext};

/// Who is at the other end of a tunnel, and where it arrived.
#[derive(Clone, Debug)]
struct Caller {
    client: SocketAddr,
    identity: SpiffeId,
    local: SocketAddr,
}

/// Serves one tunnel: handshake as the pod, then a task for each request until the client or the pod's end ends it.
pub(crate) async fn handle_connection(pod: Arc<PodContext>, tcp: TcpStream, client: SocketAddr) {
    let Ok(local) = tcp.local_addr().map(canonical) else {
        // It was reset before it was looked at.
        return;
    };
    let (mut tunnel, identity) = match open(&pod, tcp, client).await {
        Ok(opened) => opened,
        Err(error) => {
            let mut record = ConnectionRecord::inbound(&pod, client, None);
            record.wanted(local);
            return record.finish(Err(error));
        }
    };
    let caller = Caller {
        client,
        identity,
        local,
    };
    let _counted = pod.tunnels.hold();
    let stop = pod.spawner.stop_signal();
    let mut leaving = false;
    loop {
        tokio::select! {
            () = stop.stopped(), if !leaving => {
                leaving = true;
                tunnel.shutdown();
            }
            next = tunnel.next_connect() => match next {
                Some(Ok(request)) => {
                    pod.spawner.spawn(handle_stream(Arc::clone(&pod), caller.clone(), request));
                }
                Some(Err(error)) => debug!(src.addr = %client, reason = error.reason().code(), %error, "tunnel lost"),
                None => return,
            },
        }
    }
}

/// Proves the pod's identity and learns the client's.
async fn open(
    pod: &PodContext,
    tcp: TcpStream,
    client: SocketAddr,
) -> Result<(Tunnel, SpiffeId), InboundError> {
    let turn = timeout(HANDSHAKE_DEADLINE, pod.handshakes.turn(client.ip())).await;
    let _turn = turn.map_err(|_elapsed| InboundError::Handshakes)?;
    let credential = pod.mesh.certs.get(&pod.pod.identity).await?;
    let (tls, identity) = tls::accept::accept(tcp, &credential, HANDSHAKE_DEADLINE).await?;
    let tunnel = Tunnel::handshake(tls, TunnelSettings::SERVER).await?;
    Ok((tunnel, identity))
}

/// Carries one stream: find out where, admit, connect to the app, answer, relay until done or revoked, report.
async fn handle_stream(pod: Arc<PodContext>, caller: Caller, request: ConnectRequest) {
    let mut record = ConnectionRecord::inbound(&pod, caller.client, Some(caller.identity.clone()));
    let outcome = carry(&pod, &caller, request, &mut record).await;
    record.finish(outcome);
}

async fn carry(
    pod: &PodContext,
    caller: &Caller,
    mut request: ConnectRequest,
    record: &mut ConnectionRecord,
) -> Result<(), InboundError> {
    let asked = Asked::of(&request);
    let reached = tokio::select! {
        reached = reach_app(pod, caller, asked, record) => reached,
        _gone = request.gave_up() => Err(InboundError::GaveUp),
    };
    let (mut admitted, app) = match reached {
        Ok(reached) => reached,
        Err(error) => {
            request.refuse(error.reason());
            return Err(error);
        }
    };
    let stream = request.accept(record.own_baggage().as_ref())?;
    tokio::select! {
        // First of all, so that not a byte passes after policy has changed.
        biased;
        denied = admitted.revoked() => Err(denied.into()),
        done = relay(app, Peer::Tunnel(stream), record.opened()) => Ok(done?),
    }
}

/// From the request to a connection with the app, which has not got a byte yet.
async fn reach_app(
    pod: &PodContext,
    caller: &Caller,
    asked: Asked,
    record: &mut ConnectionRecord,
) -> Result<(Admitted, TcpStream), InboundError> {
    record.wanted(caller.local);
    let target = asked.target.map_err(InboundError::Refused)?;
    record.target(&target);
    let source = caller.client.ip();
    let (delivered, delivery) = pod
        .look(|view, own| {
            let delivery = deliver(view, own, caller.local, &target, asked.claimed.as_ref());
            let service = delivery
                .as_ref()
                .ok()
                .and_then(|delivery| delivery.service.as_ref());
            (Delivered::new(view, own, source, service), delivery)
        })
        .await?;
    record.delivered(delivered);
    let to = delivery.map_err(InboundError::Refused)?.to;
    let admitted = pod.admission.admit(Claim {
        peer: Some(caller.identity.clone()),
        source,
        destination: to,
    })?;
    record.allowed_by(admitted.allowed_by());
    let app = pod
        .sockets
        .connect_as(source, to)
        .await
        .map_err(InboundError::App)?;
    Ok((admitted, app))
}

/// What a request asks for.
struct Asked {
    target: Result<ConnectTarget, Reason>,
    /// The host that the client's proxy says was addressed.
    claimed: Option<Hostname>,
}

impl Asked {
    fn of(request: &ConnectRequest) -> Self {
        Self {
            target: request.target(),
            claimed: request.forwarded().and_then(|forwarded| forwarded.host),
        }
    }
}
