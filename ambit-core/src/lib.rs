//! The mesh as pure data and decisions.
//!
//! Every question of the form "what should happen to this connection, request or pod?" is answered here by a
//! synchronous function from plain values. No I/O, no lock, no await; the clock and randomness are arguments. The order
//! of the modules is the order of layers: a module uses those above it only.
#![cfg_attr(
    test,
    expect(
        clippy::let_underscore_must_use,
        reason = "tests probe results they do not need"
    )
)]

pub mod names;
pub mod ports;
pub mod identity;
pub mod reason;
pub mod workload;
pub mod service;
pub mod policy;
