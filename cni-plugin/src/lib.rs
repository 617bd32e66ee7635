//! Ambit's part on the node that touches pods: redirection inside their namespaces, and their handoff to ztunnel.
//!
//! One program today, the node agent (`bin/ambit-cni-agent.rs`, here `app`); the CNI plugin that container runtimes call
//! will ask it to add a pod by the same steps (`agent/pod.rs`). The order of the modules is the order of layers.

use std::error::Error;

pub mod redirect;
pub mod handoff;
pub mod agent;
pub mod endpoints;
pub mod config;
pub mod app;

/// An error and everything that caused it, in one line for operators.
pub fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
