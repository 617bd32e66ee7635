//! Ambit's part on the node that touches pods: redirection inside their namespaces, and their handoff to ztunnel.
//!
//! Two programs: the CNI plugin that container runtimes call (`bin/ambit-cni.rs`, here `plugin`), and the node agent that it
//! asks (`bin/ambit-cni-agent.rs`, here `app`). What they say to each other is in `socket`. Without the feature `agent` only
//! the plugin is built, with nothing below it but std. The order of the modules is the order of layers.

pub mod spec;
pub mod socket;
pub mod plugin;
#[cfg(feature = "agent")]
pub mod checks;
#[cfg(feature = "agent")]
pub mod redirect;
#[cfg(feature = "agent")]
pub mod host;
#[cfg(feature = "agent")]
pub mod handoff;
#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "agent")]
pub mod install;
#[cfg(feature = "agent")]
pub mod endpoints;
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod app;

#[cfg(feature = "agent")]
pub use ambit_net::telemetry::with_causes;
