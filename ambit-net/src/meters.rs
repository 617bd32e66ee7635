//! Metrics of a program: every name in one table, handles that cost one atomic addition, and the text for Prometheus.
//!
//! A handle is resolved once per flow or part and kept; looking one up takes a shared lock and a hash. Series are
//! bounded: over the bound labels become `unknown` and `ambit_metric_series_limited_total` says so. Knows nothing of
//! HTTP (`admin` serves the text) and nothing of what is counted. Why there is no metrics crate: docs/decisions.

mod table;
mod text;
mod labels;
mod series;
mod traffic;
mod process;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::time::Instant;

pub use self::labels::{Party, Reporter, ServiceParty, TrafficLabels};
use self::series::Cell;
pub use self::series::{Counter, Gauge, Hold};
pub use self::table::*;
use self::table::{LABELS, UNKNOWN};
pub use self::traffic::Traffic;
use self::traffic::TrafficSeries;
use crate::telemetry;

/// Series of one metric beside those of traffic. Their labels are words of ours, so that this is never reached
/// unless a caller puts names into them.
const FAMILY_LIMIT: usize = 1000;

/// All metrics of a process; shared by its threads.
#[derive(Debug)]
pub struct Meters {
    families: RwLock<BTreeMap<&'static str, Family>>,
    traffic: TrafficSeries,
    limited: Counter,
}

#[derive(Debug)]
struct Family {
    about: &'static About,
    /// By their labels as they are printed.
    series: HashMap<String, Cell>,
}

impl Meters {
    /// Begins counting; `program` names it in `istio_build`, `traffic_limit` bounds the pairs of workloads that are
    /// told apart.
    pub fn new(program: &str, traffic_limit: usize) -> Arc<Self> {
        let limited = Counter::default();
        let limits = Family {
            about: &METRIC_SERIES_LIMITED.about,
            series: HashMap::from([(String::new(), Cell::Counter(limited.clone()))]),
        };
        let meters = Self {
            families: RwLock::new(BTreeMap::from([(limits.about.name, limits)])),
            traffic: TrafficSeries::new(traffic_limit),
            limited,
        };
        meters.gauge(&BUILD, [program, telemetry::VERSION]).set(1);
        Arc::new(meters)
    }

    /// The handle of one counter.
    pub fn counter<const N: usize>(&self, of: &'static CounterOf<N>, labels: [&str; N]) -> Counter {
        match self.resolve(&of.about, &labels) {
            Cell::Counter(counter) => counter,
            Cell::Gauge(_) => Counter::default(),
        }
    }

    /// The handle of one gauge.
    pub fn gauge<const N: usize>(&self, of: &'static GaugeOf<N>, labels: [&str; N]) -> Gauge {
        match self.resolve(&of.about, &labels) {
            Cell::Gauge(gauge) => gauge,
            Cell::Counter(_) => Gauge::default(),
        }
    }

    /// The handle for connections with these labels; keep it as long as the connection is open.
    pub fn traffic(&self, labels: &TrafficLabels) -> Traffic {
        self.traffic.resolve(labels, Instant::now(), &self.limited)
    }

    /// All metrics in Prometheus' text format 0.0.4. Forgets traffic that has been idle for ten minutes.
    pub fn render(&self) -> String {
        let mut out = String::new();
        self.traffic.expire(Instant::now());
        self.traffic.render(&mut out);
        let families = self.families.read().unwrap_or_else(PoisonError::into_inner);
        for family in families.values() {
            text::head(&mut out, family.about);
            let mut lines: Vec<_> = family.series.iter().collect();
            lines.sort_unstable_by_key(|(labels, _)| *labels);
            for (labels, cell) in lines {
                text::line(&mut out, family.about.name, labels, cell.value());
            }
        }
        drop(families);
        process::render(&mut out);
        out
    }

    fn resolve(&self, about: &'static About, values: &[&str]) -> Cell {
        let labels = text::labels(about.labels.iter().copied().zip(values.iter().copied()));
        let families = self.families.read().unwrap_or_else(PoisonError::into_inner);
        let known = families
            .get(about.name)
            .and_then(|family| family.series.get(&labels));
        if let Some(cell) = known {
            return cell.clone();
        }
        drop(families);
        let mut families = self
            .families
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let family = families.entry(about.name).or_insert_with(|| Family {
            about,
            series: HashMap::new(),
        });
        let full = family.series.len() >= FAMILY_LIMIT && !family.series.contains_key(&labels);
        let labels = if full {
            self.limited.increment();
            text::labels(about.labels.iter().map(|name| (*name, UNKNOWN)))
        } else {
            labels
        };
        let cell = family
            .series
            .entry(labels)
            .or_insert_with(|| Cell::new(about.kind));
        cell.clone()
    }
}

/// The metrics of all programs as a Markdown table, for docs/metrics.md.
pub fn table() -> String {
    let mut table =
        String::from("| metric | type | labels | program | meaning |\n|---|---|---|---|---|\n");
    for about in table::all() {
        let labels = match about.labels {
            labels if labels.len() == LABELS.len() => "traffic labels".to_owned(),
            labels => labels.join(", "),
        };
        let kind = about.kind.word();
        let (name, program, help) = (about.name, about.program, about.help);
        table.push_str(&format!(
            "| `{name}` | {kind} | {labels} | {program} | {help} |\n"
        ));
    }
    let names = LABELS.map(|label| format!("`{label}`")).join(", ");
    table.push_str(&format!(
        "\nTraffic labels: {names}. What is not known is `{UNKNOWN}`.\n"
    ));
    table
}

#[cfg(test)]
mod tests;
