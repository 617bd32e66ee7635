//! The CA: signs the public key of a request for an identity that runs on the asking node, and nothing else.
//!
//! Called over gRPC by the nodes' proxies. Of a signing request only the key is used; names, lifetimes and usages are
//! ours. Signing takes a [`Caller`], which only [`authenticate`] can make.

pub mod authenticate;
pub mod root;
pub mod signer;
pub mod issued;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_core::identity::SpiffeId;
use ambit_core::names::Text;
use ambit_net::meters::{CALLS_REFUSED, CERTIFICATES_SIGNED, Meters};
use ambit_net::proto::ca::istio_certificate_service_server::IstioCertificateService;
use ambit_net::proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind as ValueKind;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use self::authenticate::Caller;
use self::issued::Issued;
use self::signer::{SignError, Signer};
use crate::roster::Roster;

/// Metadata field that names the identity to sign for.
const IDENTITY: &str = "ImpersonatedIdentity";
/// Metadata field that asks for another signer than this one.
const OTHER_SIGNER: &str = "CertSigner";

/// The service.
#[derive(Debug)]
pub struct CertificateAuthority {
    signer: Arc<Signer>,
    trust_domain: Text,
    roster: watch::Receiver<Option<Arc<Roster>>>,
    issued: Issued,
    meters: Arc<Meters>,
}

impl CertificateAuthority {
    /// Signs with `signer` for pods in `roster`, and notes in `issued` what it signed.
    pub fn new(
        signer: Arc<Signer>,
        trust_domain: Text,
        roster: watch::Receiver<Option<Arc<Roster>>>,
        (issued, meters): (Issued, Arc<Meters>),
    ) -> Self {
        Self {
            signer,
            trust_domain,
            roster,
            issued,
            meters,
        }
    }

    /// Decides over one request and answers it.
    fn sign(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
    ) -> Result<IstioCertificateResponse, Status> {
        let identity = wanted_identity(request)?;
        self.permit(caller, &identity)?;
        let lifetime = lifetime(request.validity_duration)?;
        let signed = self
            .signer
            .sign(
                caller,
                &request.csr,
                &identity,
                (lifetime, SystemTime::now()),
            )
            .map_err(|error| match error {
                SignError::Request(cause) => Status::invalid_argument(cause),
                error => Status::internal(error.to_string()),
            })?;
        info!(node = caller.node(), %identity, not_after = signed.not_after, "a certificate is signed");
        self.meters.counter(&CERTIFICATES_SIGNED, []).increment();
        self.issued
            .note(identity, caller.node_name(), signed.not_after);
        Ok(IstioCertificateResponse {
            cert_chain: vec![signed.leaf, signed.trusted],
        })
    }

    fn permit(&self, caller: &Caller, identity: &SpiffeId) -> Result<(), Status> {
        let roster = self.roster.borrow().clone();
        let Some(roster) = roster else {
            return Err(Status::unavailable(
                "the controller has not read its sources yet",
            ));
        };
        if identity.trust_domain != self.trust_domain {
            return Err(Status::permission_denied(format!(
                "{identity} is not of trust domain {}",
                self.trust_domain
            )));
        }
        if !roster.runs(caller.node(), identity) {
            return Err(Status::permission_denied(format!(
                "no pod of the mesh with identity {identity} runs on node {}",
                caller.node()
            )));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateAuthority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let answer = self.sign(&caller, request.get_ref());
        if let Err(status) = &answer {
            let (code, reason) = (status.code(), status.message());
            let labels = ["ca", &format!("{code:?}")];
            self.meters.counter(&CALLS_REFUSED, labels).increment();
            warn!(
                node = caller.node(),
                ?code,
                reason,
                "no certificate is signed"
            );
        }
        answer.map(Response::new)
    }
}

fn wanted_identity(request: &IstioCertificateRequest) -> Result<SpiffeId, Status> {
    let fields = request.metadata.as_ref().map(|metadata| &metadata.fields);
    let field = |name: &str| fields.and_then(|fields| fields.get(name)?.kind.as_ref());
    if field(OTHER_SIGNER).is_some() {
        return Err(Status::invalid_argument("CertSigner is not served"));
    }
    let Some(ValueKind::StringValue(identity)) = field(IDENTITY) else {
        return Err(Status::invalid_argument(
            "metadata has to name ImpersonatedIdentity",
        ));
    };
    SpiffeId::parse(identity).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// The lifetime that was asked for; none asks for the longest.
fn lifetime(seconds: i64) -> Result<Option<Duration>, Status> {
    let seconds = u64::try_from(seconds)
        .map_err(|_negative| Status::invalid_argument("validity_duration is negative"))?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}
