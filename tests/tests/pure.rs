//! Tests that need neither privileges nor namespaces: the house's rules, documents, and in-process pairs.
//!
//! One module per subject; a decision's own table tests stand beside the decision in its crate.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test binary: a broken expectation is a failed test"
)]

mod source;
mod architecture;
mod documents;
mod deploy;
