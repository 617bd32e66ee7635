//! The controller's CA as a signer: `istio.v1.auth.IstioCertificateService/CreateCertificate`.
//!
//! Given to the certificate store by the app. Says for whom and for how long; whether this node may have that identity
//! is for the controller to decide, from the token that the link shows.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ambit_core::identity::SpiffeId;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::{Code, Status};

use super::{Sign, SignError};
use crate::grpc::{Dialer, explain};
use crate::proto::ca::IstioCertificateRequest;
use crate::proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;

/// Key of the request's metadata that names the identity to sign for.
const IMPERSONATED: &str = "ImpersonatedIdentity";
/// A chain has the leaf and the roots at least.
const SHORTEST_CHAIN: usize = 2;

/// Asks the controller to sign.
#[derive(Clone, Debug)]
pub struct CaClient {
    dialer: Arc<Dialer>,
    lifetime: Duration,
}

impl CaClient {
    /// Asks over this way for certificates of this lifetime; the CA may give a shorter one.
    pub const fn new(dialer: Arc<Dialer>, lifetime: Duration) -> Self {
        Self { dialer, lifetime }
    }

    async fn create(&self, identity: &SpiffeId, csr: &str) -> Result<Vec<String>, SignError> {
        let link = self.dialer.link().await;
        let link = link.map_err(|error| SignError::Unreachable(Box::new(error)))?;
        let mut service = IstioCertificateServiceClient::new(link);
        let request = IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonating(identity)),
        };
        let answer = service.create_certificate(request).await;
        let chain = answer
            .map_err(|status| refusal(&status))?
            .into_inner()
            .cert_chain;
        if chain.len() < SHORTEST_CHAIN {
            let what = format!(
                "{} certificate texts where a leaf and roots are needed",
                chain.len()
            );
            return Err(SignError::Malformed(what));
        }
        Ok(chain)
    }
}

impl Sign for CaClient {
    fn sign<'a>(
        &'a self,
        identity: &'a SpiffeId,
        request: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<String>, SignError>> + Send + 'a>> {
        Box::pin(self.create(identity, request))
    }
}

fn impersonating(identity: &SpiffeId) -> Struct {
    let kind = Some(Kind::StringValue(identity.to_string()));
    Struct {
        fields: BTreeMap::from([(IMPERSONATED.to_owned(), Value { kind })]),
    }
}

/// Tells a CA that said no from one that could not say anything.
fn refusal(status: &Status) -> SignError {
    match status.code() {
        Code::PermissionDenied
        | Code::Unauthenticated
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::NotFound => SignError::Refused(explain(status)),
        _ => SignError::Unreachable(explain(status).into()),
    }
}

#[cfg(test)]
mod tests;
