//! Conductor: one inbound connection outside of a tunnel, which the kernel redirected to port 15006.
//!
//! Called by the accept loop. It has no identity, so a pod that requires mutual TLS refuses it by policy.

use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::delivery::service_behind;
use ambit_core::ports;
use ambit_core::reason::Reason;
use ambit_net::relay::{Peer, relay};
use ambit_net::sockopt::original_dst;
use tokio::net::TcpStream;

use super::PodContext;
use super::admission::Claim;
use super::error::InboundError;
use super::record::{ConnectionRecord, Delivered};

/// Carries one plain connection: find out where, admit, connect to the app, relay until done or revoked, report.
pub(crate) async fn handle(pod: Arc<PodContext>, tcp: TcpStream, client: SocketAddr) {
    let mut record = ConnectionRecord::inbound(&pod, client, None);
    let outcome = carry(&pod, tcp, &mut record).await;
    record.finish(outcome);
}

async fn carry(
    pod: &PodContext,
    tcp: TcpStream,
    record: &mut ConnectionRecord,
) -> Result<(), InboundError> {
    let to = original_dst(&tcp).map_err(InboundError::OriginalDestination)?;
    record.wanted(to);
    // Also where a connection ends up that came to a capture port directly: it would come back to us.
    if ports::is_capture_port(to.port()) {
        return Err(InboundError::Refused(Reason::CapturePort));
    }
    let source = record.client();
    let delivered = pod
        .look(|view, own| {
            Delivered::new(
                view,
                own,
                source.ip(),
                service_behind(view, own, None, to.port()),
            )
        })
        .await?;
    record.delivered(delivered);
    let claim = Claim {
        peer: None,
        source: source.ip(),
        destination: to,
    };
    let mut admitted = pod.admission.admit(claim)?;
    record.allowed_by(admitted.allowed_by());
    let app = pod
        .sockets
        .connect_as(source.ip(), to)
        .await
        .map_err(InboundError::App)?;
    tokio::select! {
        // First of all, so that not a byte passes after policy has changed.
        biased;
        denied = admitted.revoked() => Err(denied.into()),
        done = relay(app, Peer::Tcp(tcp), record.opened()) => Ok(done?),
    }
}
