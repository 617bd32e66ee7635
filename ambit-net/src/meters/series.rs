//! Counters and gauges: handles to shared atomics, usable from any thread.
//!
//! Given out by `Meters`. They order nothing between threads, so all accesses are relaxed.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::table::Kind;

/// A number that only rises.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

/// A number that rises and falls.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

/// Counts one in a gauge until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it takes the one back"]
pub struct Hold(Gauge);

/// Either, as the registry keeps them.
#[derive(Clone, Debug)]
pub(super) enum Cell {
    Counter(Counter),
    Gauge(Gauge),
}

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds a number.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// Adds a number, or takes it away when it is negative.
    pub fn add(&self, number: i64) {
        self.0.fetch_add(number, Relaxed);
    }

    /// Adds one until the returned value is dropped.
    pub fn hold(&self) -> Hold {
        self.add(1);
        Hold(self.clone())
    }

    /// The present value.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

impl Cell {
    pub(super) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter(Counter::default()),
            Kind::Gauge => Self::Gauge(Gauge::default()),
        }
    }

    /// The value as it is printed.
    pub(super) fn value(&self) -> i128 {
        match self {
            Self::Counter(counter) => counter.value().into(),
            Self::Gauge(gauge) => gauge.value().into(),
        }
    }
}
