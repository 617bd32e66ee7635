//! Flows: the connections that are being carried on one worker.
//!
//! Filled by `proxy::record`, listed by the dump. Moves bytes into the metrics every second, so that long connections are
//! seen while they last; one tick for all of a worker's connections costs less than a timer in each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambit_core::names::PodUid;
use ambit_net::meters::{self, Gauge, Hold, Meters, Reporter, Traffic};
use ambit_net::relay::ByteCounts;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

/// How often bytes are moved into the metrics: often enough for a scrape every few seconds.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Which way a connection goes, as seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// The pod is the server.
    Inbound,
    /// The pod is the client.
    Outbound,
}

impl Direction {
    /// The word in the access log.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    /// Who reports it, seen from the pod.
    pub(crate) const fn reporter(self) -> Reporter {
        match self {
            Self::Inbound => Reporter::Destination,
            Self::Outbound => Reporter::Source,
        }
    }
}

/// Where a connection comes from and goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The pod whose connection it is.
    pub(crate) pod: PodUid,
    /// Which way it goes.
    pub(crate) direction: Direction,
    /// The client.
    pub(crate) source: SocketAddr,
    /// Where the client wanted to go.
    pub(crate) wanted: Option<SocketAddr>,
    /// Where it goes.
    pub(crate) destination: Option<SocketAddr>,
    /// True when it goes through a tunnel.
    pub(crate) hbone: bool,
}

/// One connection that is being carried.
#[derive(Debug)]
pub(crate) struct Flow {
    route: Route,
    counts: ByteCounts,
    traffic: Traffic,
    /// Bytes that the metrics know already, from client and to client.
    told: (AtomicU64, AtomicU64),
}

/// The connections that are being carried on one worker.
#[derive(Debug)]
pub(crate) struct Flows {
    book: Mutex<Book>,
    /// How many there are in each direction, on all workers together.
    inbound: Gauge,
    outbound: Gauge,
}

#[derive(Debug, Default)]
struct Book {
    next: u64,
    open: BTreeMap<u64, Arc<Flow>>,
}

/// A connection in the book; on drop it is closed in the metrics and taken out.
#[derive(Debug)]
pub(crate) struct OpenFlow {
    flows: Arc<Flows>,
    id: u64,
    flow: Arc<Flow>,
    _counted: Hold,
}

impl Flows {
    /// An empty book.
    pub(crate) fn new(meters: &Meters) -> Self {
        let open = |direction: Direction| {
            meters.gauge(&meters::SOCKETS_OPEN, [direction.reporter().word()])
        };
        Self {
            book: Mutex::default(),
            inbound: open(Direction::Inbound),
            outbound: open(Direction::Outbound),
        }
    }

    /// Enters a connection and counts it as opened.
    pub(crate) fn open(self: &Arc<Self>, route: Route, traffic: Traffic) -> OpenFlow {
        traffic.opened();
        let counted = match route.direction {
            Direction::Inbound => self.inbound.hold(),
            Direction::Outbound => self.outbound.hold(),
        };
        let flow = Arc::new(Flow {
            route,
            counts: ByteCounts::default(),
            traffic,
            told: Default::default(),
        });
        let mut book = self.book();
        let id = book.next;
        book.next += 1;
        book.open.insert(id, Arc::clone(&flow));
        OpenFlow {
            flows: Arc::clone(self),
            id,
            flow,
            _counted: counted,
        }
    }

    /// The routes of the open connections, oldest first.
    pub(crate) fn routes(&self) -> Vec<Route> {
        self.book()
            .open
            .values()
            .map(|flow| flow.route.clone())
            .collect()
    }

    /// Moves bytes into the metrics for as long as it is polled.
    pub(crate) async fn keep_reporting(self: Arc<Self>) {
        let mut ticks = interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for flow in self.book().open.values() {
                flow.report();
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic elsewhere leaves the map whole: entries are added and removed in one step each.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenFlow {
    /// Where the relay counts.
    pub(crate) fn counts(&self) -> &ByteCounts {
        &self.flow.counts
    }

    /// Bytes that went from the client to the server and from the server to the client.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        self.flow.bytes()
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.flows.book().open.remove(&self.id);
        self.flow.report();
        self.flow.traffic.closed();
    }
}

impl Flow {
    fn bytes(&self) -> (u64, u64) {
        let (from_app, to_app) = (self.counts.from_app(), self.counts.to_app());
        match self.route.direction {
            Direction::Outbound => (from_app, to_app),
            Direction::Inbound => (to_app, from_app),
        }
    }

    /// Only ever called on the flow's own worker, so nothing is counted twice.
    fn report(&self) {
        let (received, sent) = self.bytes();
        let (told_received, told_sent) = &self.told;
        self.traffic
            .received(received - told_received.swap(received, Ordering::Relaxed));
        self.traffic
            .sent(sent - told_sent.swap(sent, Ordering::Relaxed));
    }
}
