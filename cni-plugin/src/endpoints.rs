//! What operators can ask the agent: metrics and readiness for machines; the pods, the node's checks and the log's filter
//! for people.
//!
//! Started by `app.rs`. It only shows what the parts report, and keeps the metrics that follow from it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ambit_core::names::{PodUid, Text};
use ambit_net::admin::{self, Answer, Readiness, Routes};
use ambit_net::meters::{self, Meters};
use ambit_net::sockopt::{self, ListenerOptions, SocketError};
use ambit_net::tasks::Tasks;
use ambit_net::telemetry::{Log, VERSION};
use serde::Serialize;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::agent::report::{PodReport, Pods, Stand};
use crate::checks::Checks;

/// Where the endpoints are.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The pods, the checks and the log, for people on this node.
    pub admin: SocketAddr,
    /// Metrics and readiness.
    pub metrics: SocketAddr,
}

/// Why an endpoint cannot be served.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// Its address cannot be used.
    #[error("cannot listen on {addr} (set {setting})")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The setting that says so.
        setting: &'static str,
        /// The cause, with the next step.
        source: SocketError,
    },
    /// The runtime cannot watch the socket.
    #[error("cannot watch the listener on {addr}")]
    Watch {
        /// The address.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// What the endpoints show.
#[derive(Debug)]
pub struct Shown {
    /// The metrics.
    pub meters: Arc<Meters>,
    /// Whether the agent is ready.
    pub readiness: Readiness,
    /// The log.
    pub log: Arc<Log>,
    /// This node's name.
    pub node: Text,
    /// The pods.
    pub pods: watch::Receiver<Pods>,
    /// What was found on this node.
    pub checks: Checks,
    /// Number of connected ztunnels.
    pub ztunnels: watch::Receiver<usize>,
}

/// Serves the endpoints in `tasks`.
///
/// # Errors
/// When an address is taken or not ours.
pub fn start(at: Addresses, shown: Shown, tasks: &Tasks) -> Result<(), EndpointError> {
    let pods = shown.pods.clone();
    let (checks, node) = (shown.checks, shown.node);
    let people = Routes::new()
        .get("/pods", move |_query| Answer::json(&lines(&pods.borrow())))
        .get("/checks", move |_query| {
            Answer::json(&checks.document(&node, VERSION))
        })
        .and(admin::logging(shown.log));
    let machines = admin::metrics(&shown.meters).and(admin::readiness(shown.readiness));
    let endpoints = [
        ("AMBIT_ADMIN_ADDR", at.admin, people),
        ("AMBIT_METRICS_ADDR", at.metrics, machines),
    ];
    for (setting, addr, routes) in endpoints {
        let listener = sockopt::listener(addr, &ListenerOptions::default()).map_err(|source| {
            EndpointError::Listen {
                addr,
                setting,
                source,
            }
        })?;
        let listener = TcpListener::from_std(listener)
            .map_err(|source| EndpointError::Watch { addr, source })?;
        let serving = admin::serve_routes(listener, Arc::new(routes), tasks.spawner());
        tasks.spawn(serving);
    }
    tasks.spawn(count(shown.meters, shown.pods, shown.ztunnels));
    Ok(())
}

/// Keeps the gauges true until the agent ends.
async fn count(
    meters: Arc<Meters>,
    mut pods: watch::Receiver<Pods>,
    mut ztunnels: watch::Receiver<usize>,
) {
    let connected = meters.gauge(&meters::AGENT_ZTUNNELS, []);
    let by_state = Stand::WORDS.map(|word| (word, meters.gauge(&meters::AGENT_PODS, [word])));
    loop {
        connected.set(as_gauge(*ztunnels.borrow_and_update()));
        let mut counts = [0; Stand::WORDS.len()];
        for pod in pods.borrow_and_update().values() {
            let word = pod.stand.word();
            for (count, known) in counts.iter_mut().zip(Stand::WORDS) {
                *count += usize::from(known == word);
            }
        }
        for ((_word, gauge), count) in by_state.iter().zip(counts) {
            gauge.set(as_gauge(count));
        }
        let changed = tokio::select! {
            changed = pods.changed() => changed,
            changed = ztunnels.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn as_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// One pod as `/pods` shows it.
#[derive(Serialize)]
struct Line {
    namespace: String,
    name: String,
    uid: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

fn lines(pods: &Pods) -> Vec<Line> {
    let line = |(uid, pod): (&PodUid, &PodReport)| Line {
        namespace: pod.name.namespace.to_string(),
        name: pod.name.name.to_string(),
        uid: uid.to_string(),
        state: pod.stand.word(),
        why: pod.stand.why().map(str::to_owned),
    };
    pods.iter().map(line).collect()
}
