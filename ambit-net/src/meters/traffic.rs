//! Istio's metrics of TCP connections: five figures for each set of labels.
//!
//! Resolved once per connection, by both reporters. Bounded, and forgotten when idle: a cluster has more pairs of
//! workloads over a day than a node's memory has room for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::labels::{NO_FLAGS, TrafficLabels};
use super::series::Counter;
use super::table::{About, TCP_CLOSED, TCP_FAILED, TCP_OPENED, TCP_RECEIVED, TCP_SENT};
use super::text;

/// Values of `response_flags` of connections that failed.
const FLAGS: [&str; 7] = [
    "DENY",
    "CONNECT",
    "TLS_FAILURE",
    "H2_HANDSHAKE_FAILURE",
    "NETWORK_POLICY",
    "IDENTITY_ERROR",
    "CERT_REVOKED",
];
/// How long a series stays after its last flow, so that the last figures are scraped several times.
const IDLE: Duration = Duration::from_secs(600);
/// How often a full registry looks for idle series.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Counts connections with the same labels; held by each as long as it is open.
#[derive(Clone, Debug)]
pub struct Traffic(Arc<Figures>);

#[derive(Debug, Default)]
struct Figures {
    opened: AtomicU64,
    closed: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    failed: [AtomicU64; FLAGS.len()],
}

impl Traffic {
    /// A connection was opened.
    pub fn opened(&self) {
        self.0.opened.fetch_add(1, Relaxed);
    }

    /// A connection was closed; call it once for each that was opened.
    pub fn closed(&self) {
        self.0.closed.fetch_add(1, Relaxed);
    }

    /// Bytes went from client to server.
    pub fn received(&self, bytes: u64) {
        self.0.received.fetch_add(bytes, Relaxed);
    }

    /// Bytes went from server to client.
    pub fn sent(&self, bytes: u64) {
        self.0.sent.fetch_add(bytes, Relaxed);
    }

    /// A connection failed, by `Reason::response_flags`; `-` is no failure.
    pub fn failed(&self, flags: &str) {
        let figures = FLAGS.iter().zip(&self.0.failed);
        if let Some((_, failed)) = figures.into_iter().find(|(known, _)| **known == flags) {
            failed.fetch_add(1, Relaxed);
        }
    }
}

impl Figures {
    /// Changes whenever anything was counted.
    fn sum(&self) -> u64 {
        let all = [&self.opened, &self.closed, &self.received, &self.sent];
        let all = all.into_iter().chain(&self.failed);
        all.fold(0, |sum, figure| sum.wrapping_add(figure.load(Relaxed)))
    }
}

type Series = HashMap<TrafficLabels, Entry>;

/// All series of traffic.
#[derive(Debug)]
pub(super) struct TrafficSeries {
    limit: usize,
    series: RwLock<Series>,
    /// When a full registry was last searched for idle series.
    searched: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Entry {
    figures: Arc<Figures>,
    /// Since when nobody holds it, and what it had counted then.
    idle: Option<(Instant, u64)>,
}

impl TrafficSeries {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            series: RwLock::default(),
            searched: Mutex::default(),
        }
    }

    pub(super) fn resolve(
        &self,
        labels: &TrafficLabels,
        now: Instant,
        limited: &Counter,
    ) -> Traffic {
        if let Some(entry) = self.read().get(labels) {
            return Traffic(Arc::clone(&entry.figures));
        }
        if self.is_full(&self.read()) && self.may_search(now) {
            self.expire(now);
        }
        let mut series = self.write();
        let full = !series.contains_key(labels) && self.is_full(&series);
        let key = if full {
            limited.increment();
            labels.collapsed()
        } else {
            labels.clone()
        };
        Traffic(Arc::clone(&series.entry(key).or_default().figures))
    }

    /// Drops series that nobody holds and that have not changed for [`IDLE`].
    pub(super) fn expire(&self, now: Instant) {
        let mut series = self.write();
        series.retain(|_, entry| entry.stays(now));
    }

    pub(super) fn render(&self, out: &mut String) {
        let series = self.read();
        let printed = series
            .iter()
            .map(|(labels, entry)| (labels.print(NO_FLAGS), labels, &entry.figures));
        let mut all: Vec<_> = printed.collect();
        all.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        let mut family = |about: &About, figure: fn(&Figures) -> &AtomicU64| {
            text::head(out, about);
            for (labels, _, figures) in &all {
                text::line(out, about.name, labels, figure(figures).load(Relaxed));
            }
        };
        family(&TCP_OPENED, |figures| &figures.opened);
        family(&TCP_CLOSED, |figures| &figures.closed);
        family(&TCP_RECEIVED, |figures| &figures.received);
        family(&TCP_SENT, |figures| &figures.sent);
        text::head(out, &TCP_FAILED);
        for (_, labels, figures) in &all {
            for (flags, failed) in FLAGS.iter().zip(&figures.failed) {
                let failed = failed.load(Relaxed);
                if failed > 0 {
                    text::line(out, TCP_FAILED.name, &labels.print(flags), failed);
                }
            }
        }
    }

    fn is_full(&self, series: &Series) -> bool {
        let collapsed = TrafficLabels::all_collapsed().filter(|labels| series.contains_key(labels));
        series.len() >= self.limit && series.len() - collapsed.count() >= self.limit
    }

    /// Counts cannot be left in a state that harms anybody, so a poisoned lock is taken as it is.
    fn read(&self) -> RwLockReadGuard<'_, Series> {
        self.series.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Series> {
        self.series.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_search(&self, now: Instant) -> bool {
        let mut searched = self.searched.lock().unwrap_or_else(PoisonError::into_inner);
        let may = searched.is_none_or(|before| now.duration_since(before) >= LOOK_AGAIN);
        if may {
            *searched = Some(now);
        }
        may
    }
}

impl Entry {
    /// Judges under the write lock, so that nobody can take a handle meanwhile.
    fn stays(&mut self, now: Instant) -> bool {
        let sum = self.figures.sum();
        if Arc::strong_count(&self.figures) > 1 {
            self.idle = None;
            return true;
        }
        match self.idle {
            Some((since, before)) if before == sum => now.duration_since(since) < IDLE,
            _ => {
                self.idle = Some((now, sum));
                true
            }
        }
    }
}
