//! Handshakes: how many strangers may be in the middle of one on a worker, and how many of them from one address.
//!
//! Asked by the inbound conductor before it does any work for a client; one for each worker. Whoever opens connections and
//! says nothing holds up its own address's handshakes only.

use std::net::IpAddr;

use ambit_net::shares::{Share, Shares};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Part of the turns that one client address may have: it takes eight to hold up a worker's handshakes.
const SHARE: usize = 8;

/// The turns of one worker.
#[derive(Debug)]
pub(crate) struct Handshakes {
    turns: Semaphore,
    shares: Shares,
}

/// A turn; given back on drop.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    _turn: Option<SemaphorePermit<'a>>,
    _share: Share,
}

impl Handshakes {
    /// So many turns.
    pub(crate) fn new(turns: usize) -> Self {
        Self {
            turns: Semaphore::new(turns.clamp(1, Semaphore::MAX_PERMITS)),
            shares: Shares::new(turns / SHARE),
        }
    }

    /// Waits for a turn, first behind the client's own; the caller sets a deadline.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the place in the line.
    pub(crate) async fn turn(&self, client: IpAddr) -> Turn<'_> {
        let share = self.shares.take(client).await;
        // Never closed; a closed one would mean that nobody counts.
        let turn = self.turns.acquire().await.ok();
        Turn {
            _turn: turn,
            _share: share,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_client_that_holds_all_its_turns_holds_up_nobody_else() {
        let handshakes = Handshakes::new(8 * SHARE);
        let client = |last: u8| IpAddr::from([10, 0, 0, last]);
        let turn = |last| timeout(Duration::ZERO, handshakes.turn(client(last)));
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(turn(1).await.unwrap());
        }
        assert!(turn(1).await.is_err());
        for other in 2..=8 {
            for _ in 0..8 {
                held.push(turn(other).await.unwrap());
            }
        }
        // Now all are taken, whoever asks.
        assert!(turn(9).await.is_err());
        held.pop();
        assert!(turn(9).await.is_ok());
    }
}
