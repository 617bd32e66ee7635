//! Pool: opens streams over tunnels that are shared by all connections with the same ends.
//!
//! Called by the outbound conductor; one pool per pod and worker thread, so that everything of a connection stays on one
//! thread. Dials through a closure of the caller and knows nothing of namespaces, certificates or the mesh's view.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ambit_core::identity::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use super::client::{NoPlace, Opened, Place, TunnelClient, handshake};
use super::{ConnectHead, HboneError, TunnelSettings};
use crate::meters::Gauge;
use crate::tasks::{Drained, Tasks};

/// Dials of one key under way at once, each of which is promised to as many streams as one tunnel has: a burst of 6400
/// connections of one pod on one worker can wait.
const MAX_DIALS: usize = 64;

/// Dials after which a peer that takes no stream on any of its tunnels is given up.
const ATTEMPTS: usize = 4;

/// The ends of a tunnel. Connections share a tunnel only when all of this is equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    source: SpiffeId,
    source_ip: IpAddr,
    via: SocketAddr,
    expect: Vec<SpiffeId>,
}

impl TunnelKey {
    /// From `source`, seen at `source_ip`, to `via`, which must prove to be one of `expect`, in whatever order.
    pub fn new(
        source: SpiffeId,
        source_ip: IpAddr,
        via: SocketAddr,
        mut expect: Vec<SpiffeId>,
    ) -> Self {
        expect.sort_unstable();
        expect.dedup();
        Self {
            source,
            source_ip,
            via,
            expect,
        }
    }

    /// Who opens the tunnel.
    pub const fn source(&self) -> &SpiffeId {
        &self.source
    }

    /// The address that the tunnel comes from.
    pub const fn source_ip(&self) -> IpAddr {
        self.source_ip
    }

    /// Where the tunnel ends.
    pub const fn via(&self) -> SocketAddr {
        self.via
    }

    /// Whom the other end must prove to be.
    pub fn expect(&self) -> &[SpiffeId] {
        &self.expect
    }
}

/// Bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// The tunnels; `idle` and `streams` decide how they are shared.
    pub tunnel: TunnelSettings,
    /// How long one dial may take: TCP, TLS and HTTP/2 together.
    pub dial_deadline: Duration,
    /// How long the peer may take to answer a CONNECT request; it dials its app meanwhile, for up to 10 s.
    pub answer_deadline: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            tunnel: TunnelSettings::CLIENT,
            dial_deadline: Duration::from_secs(20),
            answer_deadline: Duration::from_secs(15),
        }
    }
}

/// Shared tunnels of one pod on one worker thread. Dropping it closes them all at once.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    tasks: Tasks,
    open: Gauge,
}

struct Shared {
    settings: PoolSettings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: HashMap<TunnelKey, Slot>,
    is_closing: bool,
}

/// What there is for one key; never empty.
#[derive(Default)]
struct Slot {
    tunnels: Vec<Arc<TunnelClient>>,
    dials: Vec<Dial>,
}

type DialResult = Result<Arc<TunnelClient>, HboneError>;

struct Dial {
    result: watch::Receiver<Option<DialResult>>,
    promised: u32,
}

/// What a caller has to do next.
enum Next {
    Use(Place),
    Await(watch::Receiver<Option<DialResult>>),
    Start(watch::Sender<Option<DialResult>>),
}

impl Pool {
    /// An empty pool; `name` says in logs whose it is, `open` counts its tunnels.
    pub fn new(name: impl Into<Arc<str>>, settings: PoolSettings, open: Gauge) -> Self {
        let shared = Arc::new(Shared {
            settings,
            state: Mutex::default(),
        });
        Self {
            shared,
            tasks: Tasks::new(name),
            open,
        }
    }

    /// Opens a stream to `head.target` over a tunnel of `key`, dialling one when none has a place left.
    ///
    /// Whoever needs the same tunnel meanwhile waits for the same dial, and the dial goes on when its first caller
    /// gives up. A request that the peer has certainly not acted on is sent once more, over a fresh tunnel.
    ///
    /// # Errors
    /// The dial failed, or the peer refused, broke the tunnel or did not answer in time.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream; a tunnel that was dialled stays.
    pub async fn open<D, F, T>(
        &self,
        key: &TunnelKey,
        head: &ConnectHead,
        dial: D,
    ) -> Result<Opened, HboneError>
    where
        D: Fn() -> F,
        F: Future<Output = Result<T, HboneError>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let deadline = self.shared.settings.answer_deadline;
        let place = self.place(key, &dial, false).await?;
        match place.connect(head, deadline).await {
            Err(error) if error.is_unprocessed() => {
                debug!(via = %key.via, %error, "sending the request again over a fresh tunnel");
                let place = self.place(key, &dial, true).await?;
                place.connect(head, deadline).await
            }
            result => result,
        }
    }

    /// Opens no more streams, waits up to `deadline` for those that are open, then cuts them.
    ///
    /// # Cancel safety
    /// If dropped while it waits, nothing has been cut; no stream can be opened any more.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.close();
        self.tasks.drain(deadline).await
    }

    /// Opens no more streams; a tunnel closes when its last stream has ended.
    pub fn close(&self) {
        let mut state = self.shared.locked();
        state.is_closing = true;
        let slots = std::mem::take(&mut state.slots);
        drop(state);
        let tunnels = slots.values().flat_map(|slot| &slot.tunnels);
        tunnels.for_each(|tunnel| tunnel.retire());
    }

    /// Tunnels that stand or are being dialled.
    pub fn tunnels(&self) -> usize {
        self.tasks.live()
    }

    async fn place<D, F, T>(
        &self,
        key: &TunnelKey,
        dial: &D,
        fresh: bool,
    ) -> Result<Place, HboneError>
    where
        D: Fn() -> F,
        F: Future<Output = Result<T, HboneError>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        for attempt in 0..ATTEMPTS {
            // Asked for a fresh one, any other is fresh enough once one was dialled.
            let mut result = match self.shared.next(key, fresh && attempt == 0)? {
                Next::Use(place) => return Ok(place),
                Next::Await(result) => result,
                Next::Start(promise) => {
                    let result = promise.subscribe();
                    self.start(key.clone(), promise, dial());
                    result
                }
            };
            // Ends at the dial's deadline. Without an answer the pool was closed under it.
            let dialled = match result.wait_for(Option::is_some).await {
                Ok(answer) => answer.clone(),
                Err(_closed) => None,
            };
            match dialled.ok_or(HboneError::Closing)??.place() {
                Ok(place) => return Ok(place),
                Err(NoPlace::Over(error)) => return Err(error),
                // Others were quicker: look again.
                Err(NoPlace::Full) => {}
            }
        }
        Err(HboneError::NoPlace)
    }

    /// Dials in a task of its own, and goes on as the driver of the tunnel.
    fn start<F, T>(&self, key: TunnelKey, promise: watch::Sender<Option<DialResult>>, dial: F)
    where
        F: Future<Output = Result<T, HboneError>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shared = Arc::downgrade(&self.shared);
        let settings = self.shared.settings;
        let open = self.open.clone();
        self.tasks.spawn(async move {
            let dialled = timeout(settings.dial_deadline, async {
                handshake(Box::pin(dial).await?, &settings.tunnel).await
            });
            let (tunnel, driver) = match dialled.await.unwrap_or(Err(HboneError::ConnectDeadline)) {
                Ok(made) => made,
                Err(error) => return settle(&shared, &key, promise, Err(error)),
            };
            let _counted = open.hold();
            settle(&shared, &key, promise, Ok(Arc::clone(&tunnel)));
            if let Err(error) = driver.run().await {
                debug!(via = %key.via, reason = error.reason().code(), %error, "tunnel lost");
            }
            if let Some(shared) = shared.upgrade() {
                shared.forget(&key, &tunnel);
            }
        });
    }
}

/// Tells all who wait for a dial what became of it.
fn settle(
    shared: &Weak<Shared>,
    key: &TunnelKey,
    promise: watch::Sender<Option<DialResult>>,
    mut result: DialResult,
) {
    if let Some(shared) = shared.upgrade() {
        result = shared.settle(key, &promise, result);
    }
    promise.send_replace(Some(result));
}

impl Shared {
    fn next(&self, key: &TunnelKey, fresh: bool) -> Result<Next, HboneError> {
        let mut state = self.locked();
        if state.is_closing {
            return Err(HboneError::Closing);
        }
        let streams = self.settings.tunnel.streams;
        match state.slots.get_mut(key) {
            Some(slot) => slot.next(fresh, streams),
            None => (state.slots.entry(key.clone()).or_default()).next(fresh, streams),
        }
    }

    /// Puts the tunnel, if there is one, in the place of its dial.
    fn settle(
        &self,
        key: &TunnelKey,
        promise: &watch::Sender<Option<DialResult>>,
        result: DialResult,
    ) -> DialResult {
        let mut state = self.locked();
        if state.is_closing {
            drop(state);
            return result.and_then(|tunnel| {
                tunnel.retire();
                Err(HboneError::Closing)
            });
        }
        let Some(slot) = state.slots.get_mut(key) else {
            return result;
        };
        let ours = promise.subscribe();
        slot.dials.retain(|dial| !dial.result.same_channel(&ours));
        slot.tunnels.extend(result.iter().cloned());
        state.tidy(key);
        result
    }

    fn forget(&self, key: &TunnelKey, tunnel: &Arc<TunnelClient>) {
        let mut state = self.locked();
        if let Some(slot) = state.slots.get_mut(key) {
            slot.tunnels.retain(|held| !Arc::ptr_eq(held, tunnel));
            state.tidy(key);
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        // Every change under the lock leaves a slot usable, whatever panics after it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tidy(&mut self, key: &TunnelKey) {
        let is_empty = |slot: &Slot| slot.tunnels.is_empty() && slot.dials.is_empty();
        if self.slots.get(key).is_some_and(is_empty) {
            self.slots.remove(key);
        }
    }
}

impl Slot {
    /// The oldest tunnel with a place, so that the newer ones become idle; else a dial.
    fn next(&mut self, fresh: bool, streams: u32) -> Result<Next, HboneError> {
        self.tunnels.retain(|tunnel| !tunnel.is_retired());
        if !fresh && let Some(place) = self.tunnels.iter().find_map(|tunnel| tunnel.place().ok()) {
            return Ok(Next::Use(place));
        }
        // A dial whose task is gone without an answer is nothing to wait for.
        self.dials.retain(|dial| dial.result.has_changed().is_ok());
        if let Some(dial) = self.dials.iter_mut().find(|dial| dial.promised < streams) {
            dial.promised += 1;
            return Ok(Next::Await(dial.result.clone()));
        }
        if self.dials.len() >= MAX_DIALS {
            return Err(HboneError::TooManyDials);
        }
        let promise = watch::Sender::new(None);
        self.dials.push(Dial {
            result: promise.subscribe(),
            promised: 1,
        });
        Ok(Next::Start(promise))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.locked();
        f.debug_struct("Shared")
            .field("keys", &state.slots.len())
            .field("is_closing", &state.is_closing)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
