//! Links prove the controller before they show it the token, and follow the files.

use std::sync::Mutex as StdMutex;

use tonic::service::Routes;
use tonic::{Code, Response};

use super::testing::{Scratch, TOKEN, TestServer};
use super::*;
use crate::proto::node::node_service_client::NodeServiceClient;
use crate::proto::node::node_service_server::{NodeService, NodeServiceServer};
use crate::proto::node::{ReportPodsRequest, ReportPodsResponse};
use crate::tls::testing::TestAuthority;

/// Remembers what credentials each call showed.
#[derive(Clone, Default)]
struct Witness(Arc<StdMutex<Vec<String>>>);

impl Witness {
    fn seen(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    async fn server(&self) -> TestServer {
        TestServer::start(Routes::new(NodeServiceServer::new(self.clone()))).await
    }
}

#[tonic::async_trait]
impl NodeService for Witness {
    async fn report_pods(
        &self,
        request: Request<ReportPodsRequest>,
    ) -> Result<Response<ReportPodsResponse>, Status> {
        let shown = ["authorization", "clusterid"].map(|key| {
            let value = request.metadata().get(key).unwrap();
            value.to_str().unwrap().to_owned()
        });
        self.0.lock().unwrap().push(shown.join(" "));
        Ok(Response::new(ReportPodsResponse {}))
    }
}

async fn call(dialer: &Dialer) -> Result<(), Status> {
    let mut client = NodeServiceClient::new(dialer.link().await.unwrap());
    client.report_pods(ReportPodsRequest::default()).await?;
    Ok(())
}

#[tokio::test]
async fn each_call_shows_token_and_cluster() {
    let witness = Witness::default();
    let server = witness.server().await;
    let dialer = Dialer::new(server.remote()).unwrap();
    call(&dialer).await.unwrap();
    assert_eq!(witness.seen(), [format!("Bearer {TOKEN} Kubernetes")]);
}

#[tokio::test]
async fn a_renewed_token_counts_from_the_next_call_on() {
    let witness = Witness::default();
    let server = witness.server().await;
    let dialer = Dialer::new(server.remote()).unwrap();
    call(&dialer).await.unwrap();
    server.files.write("token", "renewed");
    call(&dialer).await.unwrap();
    assert_eq!(witness.seen()[1], "Bearer renewed Kubernetes");
}

#[tokio::test]
async fn a_server_of_another_root_gets_no_token() {
    let witness = Witness::default();
    let server = witness.server().await;
    let root = std::fs::read_to_string(server.files.path("root.pem")).unwrap();
    server.files.write("root.pem", TestAuthority::new().root());
    let dialer = Dialer::new(server.remote()).unwrap();
    let status = call(&dialer).await.unwrap_err();
    assert!(
        explain(&status).contains("invalid peer certificate"),
        "{}",
        explain(&status)
    );
    assert!(witness.seen().is_empty());
    // The same dialer follows the file once it is right.
    server.files.write("root.pem", &root);
    call(&dialer).await.unwrap();
}

#[tokio::test]
async fn a_server_of_another_name_gets_no_token() {
    let witness = Witness::default();
    let server = witness.server().await;
    let remote = Remote {
        server_name: None,
        ..server.remote()
    };
    let status = call(&Dialer::new(remote).unwrap()).await.unwrap_err();
    assert!(
        explain(&status).contains("not valid for name"),
        "{}",
        explain(&status)
    );
    assert!(witness.seen().is_empty());
}

#[tokio::test]
async fn a_closed_port_is_explained() {
    let witness = Witness::default();
    let server = witness.server().await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = closed.local_addr().unwrap();
    drop(closed);
    let remote = Remote {
        address: format!("https://{free}"),
        ..server.remote()
    };
    let status = call(&Dialer::new(remote).unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(explain(&status).contains("refused"), "{}", explain(&status));
}

#[tokio::test]
async fn files_that_cannot_serve_are_named() {
    let files = Scratch::new();
    let remote = Remote {
        address: "https://localhost:15012".to_owned(),
        server_name: None,
        root_file: files.path("root.pem"),
        token_file: files.path("token"),
        cluster: ClusterId::default(),
    };
    let dialer = Dialer::new(remote).unwrap();
    let error = dialer.link().await.unwrap_err().to_string();
    assert!(error.contains("root.pem"), "{error}");
    files.write("root.pem", "no certificate");
    files.write("token", "t");
    let error = dialer.link().await.unwrap_err();
    assert!(matches!(error, LinkError::Root(_)), "{error}");
    files.write("root.pem", TestAuthority::new().root());
    for bad in ["", "\n", "two\nlines"] {
        files.write("token", bad);
        let error = dialer.link().await.unwrap_err();
        assert!(matches!(error, LinkError::Token(_)), "{bad:?}: {error}");
    }
}

#[test]
fn addresses_without_tls_or_port_are_refused() {
    for (address, name) in [
        ("http://localhost:15012", None),
        ("https://localhost", None),
        ("localhost:15012", None),
        ("https://:1", None),
        ("", None),
        ("https://localhost:15012", Some("not a name")),
    ] {
        let remote = Remote {
            address: address.to_owned(),
            server_name: name.map(str::to_owned),
            root_file: PathBuf::new(),
            token_file: PathBuf::new(),
            cluster: ClusterId::default(),
        };
        assert!(Dialer::new(remote).is_err(), "{address} {name:?}");
    }
}

#[test]
fn addresses_may_be_ipv6() {
    let remote = Remote {
        address: "https://[::1]:15012".to_owned(),
        server_name: None,
        root_file: PathBuf::new(),
        token_file: PathBuf::new(),
        cluster: ClusterId::default(),
    };
    let dialer = Dialer::new(remote).unwrap();
    assert_eq!((dialer.host.as_str(), dialer.port), ("::1", 15012));
}
