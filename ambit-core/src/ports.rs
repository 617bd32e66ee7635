//! The fixed numbers of ambient mode: ports and packet marks, each with its origin.
//!
//! Shared with istio/ztunnel so that nodes of both can talk; never reuse one for something else.

/// Outbound capture in the pod's namespace (REDIRECT target).
pub const OUTBOUND: u16 = 15001;
/// Plaintext inbound capture in the pod's namespace (REDIRECT target).
pub const INBOUND_PLAINTEXT: u16 = 15006;
/// Inbound HBONE: mutual TLS and HTTP/2 CONNECT, in the pod's namespace.
pub const INBOUND_HBONE: u16 = 15008;
/// Admin endpoint on localhost of ztunnel's own namespace.
pub const ADMIN: u16 = 15000;
/// Prometheus metrics in ztunnel's own namespace.
pub const METRICS: u16 = 15020;
/// Readiness in ztunnel's own namespace.
pub const READINESS: u16 = 15021;
/// xDS and CA of the controller.
pub const CONTROLLER: u16 = 15012;

/// `SO_MARK` on every socket that ztunnel opens in a pod's namespace; the redirect rules let it pass.
pub const PROXY_MARK: u32 = 0x539;
/// Connection mark of flows that ztunnel opened towards the app with the client's address.
pub const CONN_MARK: u32 = 0x111;
/// Mask under which both marks are compared; other bits belong to others.
pub const MARK_MASK: u32 = 0xfff;
/// Routing table that returns replies for marked flows to ztunnel.
pub const ROUTE_TABLE: u32 = 100;
/// Priority of the rule that leads marked packets to [`ROUTE_TABLE`].
pub const ROUTE_RULE_PRIORITY: u32 = 32764;

/// True for the capture ports: they are never an app's, and proxying to them would loop.
pub const fn is_capture_port(port: u16) -> bool {
    matches!(port, OUTBOUND | INBOUND_PLAINTEXT | INBOUND_HBONE)
}
