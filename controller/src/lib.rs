//! The mesh's control plane: what the sources say becomes what the proxies see, and pods get their certificates.
//!
//! Events of a source ([`watch`]) go into an [`index`], from which changed objects are translated ([`translate`]) into the
//! store of [`xds`] by one writer ([`publisher`]). The [`ca`] signs for who is in the [`roster`]; nodes say in [`reports`]
//! what they have captured. The order of the modules is the order of layers: a module uses those above it only.

pub mod private_file;
pub mod api_server;
pub mod crds;
pub mod watch;
pub mod index;
pub mod translate;
pub mod verdict;
pub mod roster;
pub mod ca;
pub mod xds;
pub mod reports;
pub mod publisher;
pub mod overview;
pub mod lease;
pub mod configmaps;
pub mod conditions;
pub mod duties;
pub mod config;
pub mod app;

#[cfg(test)]
mod testing;
