//! What the store tells the metrics: certificates by state, requests by answer.
//!
//! Used by the store alone. Without a registry it counts for nobody.

use crate::certs::{CertError, SignError};
use crate::meters::{CERTIFICATE_REQUESTS, CERTIFICATES, Counter, Gauge, Hold, Meters};

/// Handles to the metrics of a store.
#[derive(Debug, Default)]
pub(super) struct Tally {
    valid: Gauge,
    missing: Gauge,
    signed: Counter,
    refused: Counter,
    unreachable: Counter,
    unusable: Counter,
}

impl Tally {
    pub(super) fn new(meters: &Meters) -> Self {
        let state = |word| meters.gauge(&CERTIFICATES, [word]);
        let outcome = |word| meters.counter(&CERTIFICATE_REQUESTS, [word]);
        Self {
            valid: state("valid"),
            missing: state("missing"),
            signed: outcome("signed"),
            refused: outcome("refused"),
            unreachable: outcome("unreachable"),
            unusable: outcome("unusable"),
        }
    }

    /// Counts one identity with or without a valid certificate, as long as the returned value is kept.
    pub(super) fn hold(&self, has_valid: bool) -> Hold {
        match has_valid {
            true => self.valid.hold(),
            false => self.missing.hold(),
        }
    }

    /// Counts one answer of the CA.
    pub(super) fn answered(&self, error: Option<&CertError>) {
        let counter = match error {
            None => &self.signed,
            Some(CertError::Sign(error)) => match **error {
                SignError::Refused(_) => &self.refused,
                SignError::Unreachable(_) => &self.unreachable,
                SignError::Malformed(_) => &self.unusable,
            },
            Some(CertError::SignDeadline(_)) => &self.unreachable,
            Some(_) => &self.unusable,
        };
        counter.increment();
    }
}
