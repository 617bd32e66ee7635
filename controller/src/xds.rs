//! xDS, the controller's side: what there is ([`store`]), what a proxy lacks ([`session`]), how it gets it ([`server`]).
//!
//! Delta xDS over one aggregated stream as istio/ztunnel speaks it (Envoy xDS protocol, incremental variant). A version is
//! a hash of content: equal after a restart and on every replica, so that a proxy that reconnects gets only what changed.

pub mod store;
pub mod session;
pub mod proxies;
pub mod places;
pub mod server;
