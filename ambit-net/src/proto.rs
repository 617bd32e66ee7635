//! Protobuf messages and services as generated from `ambit-net/proto/*.proto`; nothing in here is written by hand.
//!
//! Used by `wire` (which turns them into ambit-core's types), by the xDS and CA clients, by the handoff and by the
//! controller's servers. After a change to a `.proto` file: `make protos`.
#![expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    clippy::excessive_nesting,
    clippy::missing_errors_doc,
    clippy::too_many_lines,
    clippy::clone_on_ref_ptr,
    reason = "generated code; its comments and limits are those of the generator"
)]

#[rustfmt::skip]
pub mod rpc;
#[rustfmt::skip]
pub mod core;
#[rustfmt::skip]
pub mod discovery;
#[rustfmt::skip]
pub mod workload;
#[rustfmt::skip]
pub mod security;
#[rustfmt::skip]
pub mod facts;
#[rustfmt::skip]
pub mod ca;
#[rustfmt::skip]
pub mod zds;
#[rustfmt::skip]
pub mod node;

#[cfg(test)]
mod generate;
#[cfg(test)]
mod tests;
