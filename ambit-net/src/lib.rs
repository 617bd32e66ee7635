//! The async machinery that Ambit's proxies share.
//!
//! The order of the modules is the order of layers: a module uses those above it only. Only `memory`, `sockopt`, `netns` and
//! `handoff` touch the kernel beyond what tokio does; `serve` merely names its error numbers.

pub mod memory;
pub mod env;
pub mod telemetry;
pub mod meters;
pub(crate) mod blocks;
pub mod backoff;
pub mod tasks;
pub mod shares;
pub mod serve;
pub mod sockopt;
pub mod netns;
pub mod handoff;
pub mod shared_view;
pub mod proto;
pub mod wire;
pub mod documents;
pub mod tls;
pub mod grpc;
pub mod certs;
pub mod hbone;
pub mod relay;
pub mod xds;
pub mod node_report;
pub mod admin;
