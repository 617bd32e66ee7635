//! What the nodes' metrics say of the demonstration's connections.
//!
//! Called by `acts.rs`. Names of metrics and labels are Istio's.

use super::scene::{NAMESPACE, Scene};
use crate::failure::Outcome;

/// How much a metric rose on a node.
pub(super) struct Rise {
    pub(super) node: &'static str,
    pub(super) reporter: &'static str,
    pub(super) opened: f64,
    pub(super) received: f64,
    pub(super) sent: f64,
}

const REPORTERS: [(&str, &str, &str); 2] = [
    ("node1", "source", "outbound"),
    ("node2", "destination", "inbound"),
];

/// The metrics of connections from web to the Service, on both nodes.
pub(super) fn rises(scene: &Scene) -> Outcome<Vec<Rise>> {
    let mut rises = Vec::new();
    for (index, (node, reporter, _)) in REPORTERS.into_iter().enumerate() {
        let metrics = scene.mesh.metrics(index)?;
        let service = format!("orders.{NAMESPACE}.svc.cluster.local");
        let source = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/web");
        let labels = [
            ("reporter", reporter),
            ("destination_service", service.as_str()),
            ("source_principal", source.as_str()),
        ];
        rises.push(Rise {
            node,
            reporter,
            opened: metrics.sum("istio_tcp_connections_opened_total", &labels),
            received: metrics.sum("istio_tcp_received_bytes_total", &labels),
            sent: metrics.sum("istio_tcp_sent_bytes_total", &labels),
        });
    }
    Ok(rises)
}

impl Rise {
    /// The difference to an earlier reading.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            opened: self.opened - before.opened,
            received: self.received - before.received,
            sent: self.sent - before.sent,
            ..*self
        }
    }
}
