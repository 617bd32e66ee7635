//! The mesh as pure data and decisions.
//!
//! Every question of the form "what should happen to this connection, request or pod?" is answered here by a
//! synchronous function from plain values. No I/O, no lock, no await; the clock and randomness are arguments. The order
//! of the modules is the order of layers: a module uses those above it only.

pub mod names;
pub mod ports;
pub mod identity;
pub mod reason;
pub mod workload;
pub mod service;
pub mod policy;
pub mod enrollment;
pub mod status;
pub mod checks;
pub mod hbone;
pub mod view;
pub mod balance;
mod gateway;
pub mod next_hop;
pub mod delivery;

#[cfg(test)]
mod testing;
