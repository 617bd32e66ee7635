//! Certificates of the workloads on this node: one credential per identity, fetched once and renewed in time.
//!
//! Called by the tunnels for every handshake and by the pods' owner ahead of it. How a certificate is asked for is in
//! [`csr`], whom it is asked of is behind [`Sign`]. Istio's rules: half of the lifetime, then again.

pub mod csr;
mod tally;
mod entry;
pub mod store;
pub mod ca;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::identity::SpiffeId;
use ambit_core::reason::Reason;
use thiserror::Error;

use crate::tls::CredentialError;

pub use entry::Held;
pub use store::{CertStore, CertStoreSettings};

/// A signer of certificates: the controller's CA, or a test's own.
pub trait Sign: Send + Sync + 'static {
    /// Has the PEM certificate request signed for `identity`: PEM texts, the leaf first, the roots last.
    ///
    /// The store sets the deadline. Dropping the future ends the attempt.
    fn sign<'a>(
        &'a self,
        identity: &'a SpiffeId,
        request: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, SignError>> + Send + 'a>>;
}

/// Why a signer gave no certificate.
#[derive(Debug, Error)]
pub enum SignError {
    /// The signer refuses this identity to us; its log says why.
    #[error("the CA refuses: {0}")]
    Refused(String),
    /// The signer cannot be reached or failed.
    #[error("the CA cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer cannot be understood.
    #[error("the CA's answer is malformed: {0}")]
    Malformed(String),
}

/// Why there is no usable certificate. Cheap to clone, since all who wait for one get the same answer.
#[derive(Clone, Debug, Error)]
pub enum CertError {
    /// The CA has not answered within the time that a connection waits.
    #[error("the CA has not answered yet")]
    Deadline,
    /// No request could be made; ours.
    #[error("no certificate request could be made: {0}")]
    Request(#[source] Arc<rcgen::Error>),
    /// The CA did not sign.
    #[error("{0}")]
    Sign(#[source] Arc<SignError>),
    /// The CA took longer than this.
    #[error("the CA has not answered within {0:?}")]
    SignDeadline(Duration),
    /// What the CA signed is not what was asked for.
    #[error("the CA's certificate cannot be used: {0}")]
    Unusable(#[source] Arc<CredentialError>),
    /// The certificate is not valid at this time; compare the clocks.
    #[error("the certificate is valid from {not_before} to {not_after}, and now it is {now}")]
    OutOfTime {
        /// First second of validity, in seconds since the epoch.
        not_before: u64,
        /// Last second of validity, in seconds since the epoch.
        not_after: u64,
        /// Our clock, in seconds since the epoch.
        now: u64,
    },
    /// The store holds as many identities as it may.
    #[error("the node holds certificates for as many identities as it may ({0})")]
    TooMany(usize),
}

impl CertError {
    /// The stable word for this failure.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::TooMany(_) => Reason::LimitReached,
            _ => Reason::NoCertificate,
        }
    }
}
