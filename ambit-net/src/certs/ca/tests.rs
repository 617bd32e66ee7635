//! The CA client against a service on loopback that signs, refuses or answers nonsense.

use std::sync::Mutex;

use tonic::service::Routes;
use tonic::{Request, Response};

use super::*;
use crate::certs::csr::CertificateRequest;
use crate::grpc::testing::TestServer;
use crate::proto::ca::IstioCertificateResponse;
use crate::proto::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::tls::Credential;
use crate::tls::testing::{Leaf, TestAuthority};

const WEB: &str = "spiffe://cluster.local/ns/a/sa/web";

/// What the service answers; none is a signature as asked for.
#[derive(Clone, Default)]
struct Ca {
    answer: Option<Result<Vec<String>, Code>>,
    asked: Arc<Mutex<Vec<IstioCertificateRequest>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Ca {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        self.asked.lock().unwrap().push(request.clone());
        let cert_chain = match &self.answer {
            None => TestAuthority::new().sign(&request.csr, &Leaf::new([WEB])),
            Some(Ok(chain)) => chain.clone(),
            Some(Err(code)) => return Err(Status::new(*code, "no such pod on node-1")),
        };
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

async fn ask(ca: &Ca) -> (Result<Vec<String>, SignError>, CertificateRequest) {
    let service = IstioCertificateServiceServer::new(ca.clone());
    let server = TestServer::start(Routes::new(service)).await;
    let dialer = Arc::new(Dialer::new(server.remote()).unwrap());
    let client = CaClient::new(dialer, Duration::from_secs(3600));
    let identity = SpiffeId::parse(WEB).unwrap();
    let request = CertificateRequest::new(&identity).unwrap();
    (client.sign(&identity, &request.request).await, request)
}

#[tokio::test]
async fn a_signed_chain_makes_a_credential() {
    let ca = Ca::default();
    let (chain, request) = ask(&ca).await;
    let identity = SpiffeId::parse(WEB).unwrap();
    let credential = Credential::from_pem(&identity, &chain.unwrap(), &request.key);
    assert!(credential.is_ok(), "{credential:?}");
}

#[tokio::test]
async fn asks_for_the_identity_and_the_lifetime() {
    let ca = Ca::default();
    let (_, request) = ask(&ca).await;
    let asked = ca.asked.lock().unwrap();
    let expected = IstioCertificateRequest {
        csr: request.request,
        validity_duration: 3600,
        metadata: Some(impersonating(&SpiffeId::parse(WEB).unwrap())),
    };
    assert_eq!(*asked, [expected]);
    let fields = &asked[0].metadata.as_ref().unwrap().fields;
    let kind = fields["ImpersonatedIdentity"].kind.clone();
    assert_eq!(kind, Some(Kind::StringValue(WEB.to_owned())));
}

#[tokio::test]
async fn tells_a_refusal_from_a_failure() {
    for code in [
        Code::PermissionDenied,
        Code::Unauthenticated,
        Code::InvalidArgument,
    ] {
        let answer = Some(Err(code));
        let (result, _) = ask(&Ca {
            answer,
            ..Ca::default()
        })
        .await;
        let Err(SignError::Refused(why)) = result else {
            panic!("{code:?}: {result:?}");
        };
        assert!(why.contains("no such pod on node-1"), "{why}");
    }
    for code in [Code::Unavailable, Code::Internal, Code::ResourceExhausted] {
        let answer = Some(Err(code));
        let (result, _) = ask(&Ca {
            answer,
            ..Ca::default()
        })
        .await;
        assert!(
            matches!(result, Err(SignError::Unreachable(_))),
            "{code:?}: {result:?}"
        );
    }
}

#[tokio::test]
async fn a_chain_without_roots_is_malformed() {
    for chain in [Vec::new(), vec!["leaf".to_owned()]] {
        let answer = Some(Ok(chain));
        let (result, _) = ask(&Ca {
            answer,
            ..Ca::default()
        })
        .await;
        assert!(matches!(result, Err(SignError::Malformed(_))), "{result:?}");
    }
}
