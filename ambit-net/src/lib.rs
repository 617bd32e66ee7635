//! The async machinery that Ambit's proxies share.
//!
//! The order of the modules is the order of layers: a module uses those above it only.

pub mod proto;
pub mod documents;
