//! Turns the outbound decision into a stream of bytes: a TCP connection, or a stream in a tunnel.
//!
//! Called by the outbound conductor. Both are made inside the pod's namespace. Sharing of tunnels is the pool's matter.

use std::io;
use std::sync::Arc;

use ambit_core::next_hop::NextHop;
use ambit_net::certs::CertStore;
use ambit_net::hbone::HboneError;
use ambit_net::hbone::pool::TunnelKey;
use ambit_net::relay::Peer;
use ambit_net::tls::{self, TlsStream};

use super::error::OutboundError;
use super::record::ConnectionRecord;
use super::sockets::{ConnectError, PodSockets};
use super::{HANDSHAKE_DEADLINE, PodContext};

/// Reaches the next hop of one connection.
///
/// # Errors
/// The decision is to refuse, or the other side cannot be reached; no byte of the app has been taken then.
///
/// # Cancel safety
/// Dropping the future gives the attempt up; a tunnel that it began to dial is there for others.
pub(crate) async fn dial(
    pod: &PodContext,
    hop: &NextHop,
    record: &ConnectionRecord,
) -> Result<Peer, OutboundError> {
    match hop {
        NextHop::Passthrough { to } | NextHop::Plain { to } => {
            Ok(Peer::Tcp(pod.sockets.connect(*to).await?))
        }
        NextHop::Tunnel {
            via,
            target,
            expect,
            ..
        } => {
            let source_ip = record.client().ip();
            let key = TunnelKey::new(pod.pod.identity.clone(), source_ip, *via, expect.clone());
            let head = record.connect_head(target);
            let tunnel = || connect(pod.sockets.clone(), pod.mesh.certs.clone(), key.clone());
            let opened = pod.pool.open(&key, &head, tunnel).await?;
            Ok(Peer::Tunnel(opened.stream))
        }
        NextHop::Refuse(reason) => Err(OutboundError::Refused(*reason)),
    }
}

/// Dials a tunnel: TCP from inside the pod, then TLS as the pod.
async fn connect(
    sockets: PodSockets,
    certs: CertStore,
    key: TunnelKey,
) -> Result<TlsStream, HboneError> {
    let credential = certs
        .get(key.source())
        .await
        .map_err(HboneError::Certificate)?;
    let tcp = sockets.connect(key.via()).await.map_err(tunnel_error)?;
    tls::connect::connect(tcp, &credential, key.expect(), HANDSHAKE_DEADLINE)
        .await
        .map_err(HboneError::Tls)
}

fn tunnel_error(error: ConnectError) -> HboneError {
    match error {
        ConnectError::Refused { source, .. } => HboneError::Connect(Arc::new(source)),
        ConnectError::Timeout { .. } => HboneError::ConnectDeadline,
        ours @ (ConnectError::Netns(_) | ConnectError::Socket(_)) => {
            HboneError::Socket(Arc::new(io::Error::other(ours)))
        }
    }
}
