//! The one accept loop: takes connections while a permit is free, hands each to a task of its own, ends on stop.
//!
//! Called for every TCP listener of the proxies and of the admin endpoints. Over the limit it waits by not accepting,
//! so that the kernel's queue pushes back on clients. Knows nothing of what is spoken on the connections.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::errno::Errno;
use pin_project_lite::pin_project;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::tasks::Spawner;

/// First and longest wait after the process or the system ran out of something; nobody tells us when it is back.
const SHORTAGE_WAITS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// The same trouble of one listener is logged at most this often.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// Accepts connections and runs `handle` on each in `tasks`, at most `limit` at a time, until the group is stopped.
///
/// Accepted sockets have `TCP_NODELAY`. A permit is held until the handler's future is dropped.
pub async fn serve<H, F>(listener: TcpListener, limit: usize, tasks: Spawner, handle: H)
where
    H: Fn(TcpStream, SocketAddr) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let stop = tasks.stop_signal();
    let mut stopped = pin!(stop.stopped());
    let mut intake = Intake::new(listener, limit);
    loop {
        let (stream, peer, permit) = tokio::select! {
            () = &mut stopped => return,
            accepted = intake.next() => accepted,
        };
        let work = handle(stream, peer);
        tasks.spawn(Permitted { work, permit });
    }
}

pin_project! {
    /// Holds a permit as long as the handler's future exists. An async block would hold that future twice.
    struct Permitted<F> {
        #[pin]
        work: F,
        permit: OwnedSemaphorePermit,
    }
}

impl<F: Future<Output = ()>> Future for Permitted<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().work.poll(cx)
    }
}

struct Intake {
    listener: TcpListener,
    limit: usize,
    free: Arc<Semaphore>,
    waits: Backoff,
    told: Option<Instant>,
}

impl Intake {
    fn new(listener: TcpListener, limit: usize) -> Self {
        let (first, cap) = SHORTAGE_WAITS;
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            listener,
            limit,
            free: Arc::new(Semaphore::new(limit)),
            waits: Backoff::new(first, cap, || fastrand::u64(..)),
            told: None,
        }
    }

    /// The next connection. Dropping the future loses none: what is not accepted stays in the kernel's queue.
    async fn next(&mut self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        let permit = self.permit().await;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    self.waits.reset();
                    // Set here although our own listeners pass it on: who forgets it there gets stalls of 40 ms.
                    if let Err(error) = stream.set_nodelay(true) {
                        debug!(%error, "a connection refused TCP_NODELAY");
                    }
                    return (stream, peer, permit);
                }
                Err(error) => sleep(self.wait_after(&error)).await,
            }
        }
    }

    /// How long to wait before accepting again: not at all when only the connection was lost.
    fn wait_after(&mut self, error: &io::Error) -> Duration {
        if concerns_one_connection(error) {
            debug!(%error, "a connection was gone before it was accepted");
            return Duration::ZERO;
        }
        if self.may_tell() {
            warn!(%error, "cannot accept connections; look at the limits of open files and memory");
        }
        self.waits.next_wait()
    }

    async fn permit(&mut self) -> OwnedSemaphorePermit {
        if self.free.available_permits() == 0 && self.may_tell() {
            warn!(
                limit = self.limit,
                "connection limit reached; not accepting"
            );
        }
        match Arc::clone(&self.free).acquire_owned().await {
            Ok(permit) => permit,
            // The semaphore is never closed; to wait for ever is what a closed intake would mean.
            Err(_closed) => std::future::pending().await,
        }
    }

    fn may_tell(&mut self) -> bool {
        let now = Instant::now();
        let may = self
            .told
            .is_none_or(|told| now.duration_since(told) >= TELL_AGAIN);
        if may {
            self.told = Some(now);
        }
        may
    }
}

/// True for errors that accept(2) reports for the connection it would have returned (`man 2 accept`, "Error handling").
fn concerns_one_connection(error: &io::Error) -> bool {
    use Errno::{
        ECONNABORTED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, ENONET,
        ENOPROTOOPT, EOPNOTSUPP, EPERM, EPROTO, ETIMEDOUT,
    };
    error
        .raw_os_error()
        .map(Errno::from_raw)
        .is_some_and(|code| {
            matches!(
                code,
                ECONNABORTED
                    | ECONNRESET
                    | EHOSTDOWN
                    | EHOSTUNREACH
                    | EINTR
                    | ENETDOWN
                    | ENETUNREACH
                    | ENONET
                    | ENOPROTOOPT
                    | EOPNOTSUPP
                    | EPERM
                    | EPROTO
                    | ETIMEDOUT
            )
        })
}

#[cfg(test)]
mod tests;
