//! Ambit's part on the node that touches pods: redirection inside their namespaces, and their handoff to ztunnel.
pub mod redirect;
