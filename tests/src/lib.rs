//! The harness: what the namespace tests, the benchmarks and the demonstration are built from.
//!
//! Which power of test to use, least first: a unit test of the decision in its own crate; `tests/pure` for claims that
//! cross crates; namespaces (`tests/netns`) where the kernel is part of the claim. Nothing here is linked into a product.
//!
//! | module | gives |
//! |---|---|
//! | `failure` | one error type, and `ensure` |
//! | `poll` | waiting with a deadline |
//! | `command`, `process` | programs run to their end, programs that run beside the test |
//! | `sandbox` | private namespaces for a whole test program |
//! | `netns` | a world of nodes and pods |
//! | `inside` | sockets in a namespace |
//! | `capture` | what really passed over a link |
//! | `app` | small applications, and load |
//! | `cluster` | the real Kubernetes of `tests/cluster` |
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a harness has a clock, an environment and waits; conventions.md names tests/ as the exception"
)]

pub mod failure;
pub mod poll;
pub mod command;
pub mod process;
pub mod sandbox;
pub mod netns;
pub mod inside;
pub mod capture;
pub mod app;
pub mod scrape;
pub mod manifests;
pub mod node;
pub mod peer;
pub mod demo;
pub mod cluster;
