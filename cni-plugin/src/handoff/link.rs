//! The conversation with one ztunnel: its greeting, the snapshot, then one order after the other, each acknowledged.
//!
//! Called by [`super::Handoff`] in a task for each ztunnel. Anything else than what is due ends the conversation: an answer
//! that cannot be told from a late one would be taken for the wrong pod.

use ambit_core::names::PodUid;
use ambit_net::handoff::{Connection, HandoffError, Packet};
use ambit_net::netns::Netns;
use ambit_net::wire::handoff::{Request, ZdsError, check_hello, decode_ack};
use std::os::fd::AsFd as _;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::{ANSWER_DEADLINE, Handoff, Order, Serving};

/// Why a conversation is over.
#[derive(Debug, Error)]
pub(super) enum LinkError {
    /// ztunnel has closed it.
    #[error("ztunnel has closed the connection")]
    Closed,
    /// ztunnel does not speak the protocol.
    #[error("what came from ztunnel is not the protocol")]
    Protocol(#[from] ZdsError),
    /// ztunnel sent something that nobody asked for.
    #[error("ztunnel sent a packet of {bytes} bytes that nobody asked for")]
    Unasked {
        /// Its length.
        bytes: usize,
    },
    /// ztunnel did not answer in time.
    #[error("ztunnel has not answered within {} s ({waiting_for})", ANSWER_DEADLINE.as_secs())]
    Silent {
        /// What was due.
        waiting_for: &'static str,
    },
    /// ztunnel is so slow that its orders did not fit any more.
    #[error("ztunnel is too far behind")]
    Behind,
    /// The connection failed.
    #[error(transparent)]
    Connection(HandoffError),
}

impl From<HandoffError> for LinkError {
    fn from(error: HandoffError) -> Self {
        let gone = |error: &std::io::Error| {
            use std::io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
            matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
        };
        match error {
            HandoffError::Io(error) if gone(&error) => Self::Closed,
            other => Self::Connection(other),
        }
    }
}

/// Speaks to ztunnel until either side ends it; returns why.
///
/// # Cancel safety
/// Dropped only together with the connection, so that no answer is left to be mistaken for another.
pub(super) async fn talk(
    connection: &Connection,
    handoff: &Handoff,
    id: u64,
    snapshot: Vec<PodUid>,
    orders: mpsc::Receiver<Order>,
) -> LinkError {
    let link = Talk {
        connection,
        handoff,
        id,
    };
    match link.run(snapshot, orders).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// Has no value: a conversation ends by an error only.
enum Never {}

struct Talk<'a> {
    connection: &'a Connection,
    handoff: &'a Handoff,
    id: u64,
}

impl Talk<'_> {
    async fn run(
        &self,
        snapshot: Vec<PodUid>,
        mut orders: mpsc::Receiver<Order>,
    ) -> Result<Never, LinkError> {
        check_hello(&self.answer("greeting").await?)?;
        let pods = snapshot.len();
        for uid in snapshot {
            self.add(&uid, true).await?;
        }
        if let Err(error) = self.ask(&Request::SnapshotSent, None).await? {
            warn!(
                link = self.id,
                error, "ztunnel does not accept the snapshot"
            );
        }
        info!(link = self.id, pods, "ztunnel has the snapshot");
        loop {
            let order = tokio::select! {
                order = orders.recv() => order.ok_or(LinkError::Behind)?,
                packet = self.connection.recv() => return Err(unasked(packet?)),
            };
            match order {
                Order::Add(uid) => self.add(&uid, false).await?,
                Order::Remove(uid, done) => {
                    if let Err(error) = self.ask(&Request::Remove(uid.clone()), None).await? {
                        warn!(link = self.id, pod = %uid, error, "ztunnel cannot let go of a pod");
                    }
                    // Whoever asked may have stopped waiting.
                    let _told = done.send(());
                }
            }
        }
    }

    /// Adds a pod as it is announced now; skips one that has left meanwhile.
    async fn add(&self, uid: &PodUid, in_snapshot: bool) -> Result<(), LinkError> {
        let Some(announcement) = self.handoff.announcement(uid) else {
            return Ok(());
        };
        let request = match &announcement.netns {
            Some(_) => Request::Add(announcement.pod.clone()),
            None if in_snapshot => Request::Keep(uid.clone()),
            // Its order comes again as soon as the namespace is open.
            None => return Ok(()),
        };
        let answer = match self.ask(&request, announcement.netns.as_ref()).await {
            // One pod's names are too long for the protocol: the others are not to suffer.
            Err(LinkError::Connection(HandoffError::TooLong)) => {
                Err(HandoffError::TooLong.to_string())
            }
            other => other?,
        };
        match answer {
            Ok(()) => self.handoff.settle(self.id, &announcement, Serving::Served),
            Err(error) if matches!(request, Request::Keep(_)) => {
                debug!(link = self.id, pod = %uid, error, "ztunnel does not know a remembered pod");
            }
            Err(error) => {
                let refused = Serving::Refused(error.into());
                self.handoff.settle(self.id, &announcement, refused);
            }
        }
        Ok(())
    }

    /// Sends a request and takes its acknowledgement: done, or ztunnel's text.
    async fn ask(
        &self,
        request: &Request,
        netns: Option<&Netns>,
    ) -> Result<Result<(), String>, LinkError> {
        let bytes = request.encode();
        let sending = self
            .connection
            .send(&bytes, netns.map(|netns| netns.as_fd()));
        timeout(ANSWER_DEADLINE, sending)
            .await
            .map_err(|_late| LinkError::Silent {
                waiting_for: request.word(),
            })??;
        Ok(decode_ack(&self.answer(request.word()).await?)?)
    }

    async fn answer(&self, waiting_for: &'static str) -> Result<Packet, LinkError> {
        let packet = timeout(ANSWER_DEADLINE, self.connection.recv())
            .await
            .map_err(|_late| LinkError::Silent { waiting_for })??;
        packet.ok_or(LinkError::Closed)
    }
}

fn unasked(packet: Option<Packet>) -> LinkError {
    match packet {
        Some(packet) => LinkError::Unasked {
            bytes: packet.bytes.len(),
        },
        None => LinkError::Closed,
    }
}
