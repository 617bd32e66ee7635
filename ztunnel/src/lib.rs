//! ztunnel: carries the connections of a node's pods through HBONE, as each pod's own identity.
//!
//! [`run`] is the program. The order of the modules is the order of layers: settings, the connections and threads of the
//! data path, one pod's proxy, all pods, what operators see, and the app that puts them together.

pub mod config;
pub(crate) mod flows;
pub(crate) mod handshakes;
pub(crate) mod workers;
pub(crate) mod proxy;
pub(crate) mod pods;
pub(crate) mod dump;
pub mod app;

pub use app::{AppError, run};
pub use config::Config;
