//! Conductor: one connection that a pod's app opened and the kernel redirected to port 15001.
//!
//! Called by the accept loop. Where it goes is `ambit_core::next_hop`, how it gets there is `dial`.

use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::next_hop::{NextHop, next_hop};
use ambit_net::relay::{Peer, relay};
use ambit_net::sockopt::original_dst;
use tokio::net::TcpStream;

use super::PodContext;
use super::dial::dial;
use super::error::OutboundError;
use super::record::ConnectionRecord;

/// Endpoints that are tried for one connection, each with the deadline of a dial.
const ATTEMPTS: usize = 3;

/// Carries one captured connection: find out where, reach it, relay, report.
pub(crate) async fn handle(pod: Arc<PodContext>, app: TcpStream, client: SocketAddr) {
    let mut record = ConnectionRecord::outbound(&pod, client);
    let outcome = carry(&pod, app, &mut record).await;
    record.finish(outcome);
}

async fn carry(
    pod: &PodContext,
    app: TcpStream,
    record: &mut ConnectionRecord,
) -> Result<(), OutboundError> {
    let wanted = original_dst(&app).map_err(OutboundError::OriginalDestination)?;
    record.wanted(wanted);
    let peer = reach(pod, wanted, record).await?;
    relay(app, peer, record.opened()).await?;
    Ok(())
}

/// Reaches the destination; where it is a service, on another endpoint when one could not be reached.
async fn reach(
    pod: &PodContext,
    wanted: SocketAddr,
    record: &mut ConnectionRecord,
) -> Result<Peer, OutboundError> {
    let mut tried = Vec::new();
    let mut failure = None;
    loop {
        let roll = fastrand::u64(..);
        let decision = pod
            .look(|view, source| {
                let decision = next_hop(view, source, wanted, &tried, roll);
                (Arc::clone(source), decision)
            })
            .await?;
        let (source, decision) = decision;
        // Nobody is left to try: what failed first says more than that.
        if let (NextHop::Refuse(_), Some(failure)) = (&decision.hop, failure.take()) {
            return Err(failure);
        }
        record.decided(source, &decision);
        let error = match dial(pod, &decision.hop, record).await {
            Ok(peer) => return Ok(peer),
            Err(error) => error,
        };
        let endpoint = decision.workload.filter(|_| decision.service.is_some());
        match endpoint {
            Some(endpoint) if tried.len() + 1 < ATTEMPTS && error.may_go_elsewhere() => {
                tried.push(endpoint.uid.clone());
                failure = Some(error);
            }
            _ => return Err(error),
        }
    }
}
