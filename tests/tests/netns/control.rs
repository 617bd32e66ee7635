//! What the controller refuses: callers without a good credential, and certificate requests that are not theirs to make.
//!
//! Raw calls show the refusal; a node that runs with such a credential shows that it fails closed: no app gets a byte.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ambit_core::identity::SpiffeId;
use ambit_core::names::ClusterId;
use ambit_net::certs::csr::CertificateRequest;
use ambit_net::grpc::{Dialer, Link, Remote};
use ambit_net::proto::ca::IstioCertificateRequest;
use ambit_net::proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use ambit_net::proto::core::Node;
use ambit_net::proto::discovery::DeltaDiscoveryRequest;
use ambit_net::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use ambit_net::proto::node::ReportPodsRequest;
use ambit_net::proto::node::node_service_client::NodeServiceClient;
use tests::app::{Manner, Server, refused};
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::inside::inside;
use tests::netns::World;
use tests::node::{Mesh, Setup, token_file, write_token};
use tests::peer::{self, Answer, Authority, Validity};
use tests::poll;
use tests::sandbox::scratch;
use tonic::{Code, Status};

use crate::Claim;
use crate::stage::{CAST, Stage, identity, tunnel};

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "no_service_answers_a_wrong_token",
        no_service_answers_a_wrong_token,
    ),
    (
        "no_service_answers_an_expired_token",
        no_service_answers_an_expired_token,
    ),
    (
        "no_service_answers_a_token_of_a_node_that_is_not_known",
        no_service_answers_a_token_of_a_node_that_is_not_known,
    ),
    (
        "refuses_a_certificate_for_an_identity_not_on_that_node",
        refuses_a_certificate_for_an_identity_not_on_that_node,
    ),
    (
        "refuses_a_malformed_certificate_request",
        refuses_a_malformed_certificate_request,
    ),
    (
        "an_unknown_xds_type_yields_nothing_and_is_named",
        an_unknown_xds_type_yields_nothing_and_is_named,
    ),
    (
        "a_node_with_a_wrong_token_lets_nothing_through",
        a_node_with_a_wrong_token_lets_nothing_through,
    ),
    (
        "a_node_with_an_expired_token_lets_nothing_through",
        a_node_with_an_expired_token_lets_nothing_through,
    ),
    (
        "a_node_with_another_nodes_token_lets_nothing_through",
        a_node_with_another_nodes_token_lets_nothing_through,
    ),
];

/// Makes one call from node 1 with the token in `file`.
fn call<T, F>(file: &Path, ask: impl FnOnce(Link) -> F) -> Outcome<Result<T, Status>>
where
    F: Future<Output = Result<T, Status>>,
{
    let stage = Stage::shared()?;
    let remote = Remote {
        address: format!("https://{}:15012", stage.world.control().addresses.v4),
        server_name: None,
        root_file: stage.mesh.folder().join("state/root-cert.pem"),
        token_file: file.to_path_buf(),
        cluster: ClusterId::new("Kubernetes"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    inside(&stage.world.node(0)?.site.netns, || {
        runtime.block_on(async {
            let dialer = Dialer::new(remote).context("the controller's address")?;
            let link = dialer.link().await.context("the controller")?;
            let answer = tokio::time::timeout(Duration::from_secs(10), ask(link)).await;
            answer.context("the controller's answer")
        })
    })
}

async fn report(link: Link) -> Result<(), Status> {
    NodeServiceClient::new(link)
        .report_pods(ReportPodsRequest::default())
        .await
        .map(|_answer| ())
}

/// Asks for the first answer to a subscription of `type_url`; returns how many resources it has.
async fn subscribe(link: Link, type_url: &str) -> Result<usize, Status> {
    let own = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue("node1".to_owned())),
    };
    let node = Node {
        id: "ztunnel~10.0.0.1~test.ambit-system~ambit-system.svc.cluster.local".to_owned(),
        metadata: Some(prost_types::Struct {
            fields: [("NODE_NAME".to_owned(), own)].into(),
        }),
        ..Node::default()
    };
    let request = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut answers = AggregatedDiscoveryServiceClient::new(link)
        .delta_aggregated_resources(requests)
        .await?
        .into_inner();
    match answers.message().await? {
        Some(answer) => Ok(answer.resources.len()),
        None => Err(Status::aborted("the stream ended")),
    }
}

async fn certify(link: Link, identity: &str, csr: &str) -> Result<Vec<String>, Status> {
    let wanted = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(identity.to_owned())),
    };
    let metadata = prost_types::Struct {
        fields: [("ImpersonatedIdentity".to_owned(), wanted)].into(),
    };
    let request = IstioCertificateRequest {
        csr: csr.to_owned(),
        metadata: Some(metadata),
        ..Default::default()
    };
    let answer = IstioCertificateServiceClient::new(link)
        .create_certificate(request)
        .await?;
    Ok(answer.into_inner().cert_chain)
}

/// A good certificate request for an identity.
fn good_request(identity: &str) -> Outcome<String> {
    let identity = SpiffeId::parse(identity).context(identity)?;
    Ok(CertificateRequest::new(&identity)
        .context("a request")?
        .request)
}

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";

/// Sees that every service refuses the token in `file`, and that node 1's own token would do.
fn refused_everywhere(file: &Path) -> Outcome {
    let stage = Stage::shared()?;
    let own = identity(CAST, &stage.client);
    let csr = good_request(&own)?;
    let good = token_file(stage.mesh.folder(), "node1");
    call(&good, |link| subscribe(link, ADDRESS))?.context("xDS with a good token")?;
    call(&good, |link| certify(link, &own, &csr))?.context("a certificate with a good token")?;
    let refusals = [
        ("xDS", call(file, |link| subscribe(link, ADDRESS))?.err()),
        (
            "certificates",
            call(file, |link| certify(link, &own, &csr))?.err(),
        ),
        ("reports", call(file, report)?.err()),
    ];
    for (service, refusal) in refusals {
        let refusal = refusal.context(format_args!("{service} answered"))?;
        ensure_eq(
            refusal.code(),
            Code::Unauthenticated,
            format_args!("{service}: {}", refusal.message()),
        )?;
    }
    Ok(())
}

fn tokens() -> Outcome<PathBuf> {
    Ok(Stage::shared()?.mesh.folder().to_path_buf())
}

fn no_service_answers_a_wrong_token() -> Outcome {
    let file = scratch().join("wrong.token");
    write_token(&file, Duration::from_secs(3600))?;
    refused_everywhere(&file)
}

fn no_service_answers_an_expired_token() -> Outcome {
    // The controller's own copy says that it has ended; nothing else is wrong with it.
    let file = token_file(&tokens()?, "node-expired");
    write_token(&file, Duration::ZERO)?;
    refused_everywhere(&file)
}

fn no_service_answers_a_token_of_a_node_that_is_not_known() -> Outcome {
    let folder = scratch().join("elsewhere");
    std::fs::create_dir_all(folder.join("tokens"))?;
    let file = token_file(&folder, "node9");
    write_token(&file, Duration::from_secs(3600))?;
    refused_everywhere(&file)
}

fn refuses_a_certificate_for_an_identity_not_on_that_node() -> Outcome {
    let stage = Stage::shared()?;
    let server = Server::start(&stage.near, 7401, Manner::Sink)?;
    let far = identity(CAST, &stage.far);
    let csr = good_request(&far)?;
    let refusal = call(&token_file(stage.mesh.folder(), "node1"), |link| {
        certify(link, &far, &csr)
    })?;
    ensure_eq(
        refusal.err().map(|status| status.code()),
        Some(Code::PermissionDenied),
        "the refusal",
    )?;
    // What it could still do is sign for itself; that opens no door.
    let state = stage.mesh.folder().join("state");
    let forged = Authority::foreign()?.credential(&far, Validity::Now, &peer::roots(&state)?)?;
    let asked = http::Request::connect(server.v4().to_string())
        .body(())
        .context("a request")?;
    let to = (tunnel(&stage.near), identity(CAST, &stage.near));
    let answer = peer::send(&stage.outsider, (to.0, &to.1), &forged, asked, b"secret")?;
    ensure(
        matches!(answer, Answer::NoTunnel(_)),
        format_args!("{answer:?}"),
    )?;
    server.untouched_since(0)
}

fn refuses_a_malformed_certificate_request() -> Outcome {
    let stage = Stage::shared()?;
    let own = identity(CAST, &stage.client);
    let token = token_file(stage.mesh.folder(), "node1");
    let good = good_request(&own)?;
    let cut = good.get(..good.len() / 2).unwrap_or_default();
    let torn = good.replace("MI", "MJ");
    for csr in [
        "",
        "not PEM",
        cut,
        &torn,
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ] {
        let refusal = call(&token, |link| certify(link, &own, csr))?;
        ensure_eq(
            refusal.err().map(|status| status.code()),
            Some(Code::InvalidArgument),
            csr,
        )?;
    }
    call(&token, |link| certify(link, &own, &good))?.context("a good request afterwards")?;
    Ok(())
}

/// Istio's proxies ask for types that their control plane may not have, so the stream goes on, with nothing on it.
fn an_unknown_xds_type_yields_nothing_and_is_named() -> Outcome {
    const UNKNOWN: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let stage = Stage::shared()?;
    let token = token_file(stage.mesh.folder(), "node1");
    let resources = call(&token, |link| subscribe(link, UNKNOWN))?.context("the stream")?;
    ensure_eq(resources, 0, "resources of an unknown type")?;
    ensure(
        call(&token, |link| subscribe(link, ADDRESS))?.context("the stream")? > 0,
        "a known type is empty too",
    )?;
    poll::until_ok(poll::SOON, || {
        let log = stage.mesh.controller.log();
        ensure(
            log.lines()
                .any(|line| line.contains("WARN") && line.contains(UNKNOWN)),
            log,
        )
    })
}

/// Runs a mesh of one node whose proxy has the token that `make` writes: its pods are captured, and nothing passes.
/// Its log names the `cause`.
fn fails_closed(name: &str, cause: &str, make: impl FnOnce(&Path) -> Outcome<PathBuf>) -> Outcome {
    let world = World::new(name, 1)?;
    let (client, pod) = (world.add_pod(0, "client")?, world.add_pod(0, "server")?);
    let server = Server::start(&pod, 7402, Manner::Sink)?;
    let folder = scratch().join(name);
    std::fs::create_dir_all(&folder)?;
    let token = make(&folder)?;
    let setup = Setup::new(folder).ztunnel("AUTH_TOKEN", &token.display().to_string());
    let mut stage = Mesh::launch(&world, setup)?;
    let pods = [&client, &pod].map(|site| {
        tests::manifests::PodDocument {
            namespace: CAST,
            account: &site.name,
            node: "node1",
            site,
        }
        .yaml()
    });
    let documents = tests::manifests::documents(
        [tests::manifests::namespace(CAST, true)]
            .into_iter()
            .chain(pods),
    );
    stage.manifests.put("cast.yaml", &documents)?;
    // Both pods are captured: their proxy listens in them.
    for pod in [&client, &pod] {
        poll::until_ok(poll::SOON, || {
            let listening =
                tests::command::run_in(&pod.netns, "ss", ["-Htln", "sport", "=", ":15001"])?;
            ensure(
                !listening.is_empty(),
                format_args!("nothing listens in {}:\n{}", pod.name, stage.logs()),
            )
        })?;
    }
    for to in [server.v4(), server.v6()] {
        refused(&client, to, b"secret")?;
    }
    let ztunnel = &mut stage.node(0)?.ztunnel;
    ztunnel.wait_for_line(poll::SOON, |line| line.contains(cause))?;
    server.untouched_since(0)
}

fn a_node_with_a_wrong_token_lets_nothing_through() -> Outcome {
    fails_closed("wrongtok", "Unauthenticated", |folder| {
        let file = folder.join("wrong.token");
        write_token(&file, Duration::from_secs(3600)).map(|()| file)
    })
}

fn a_node_with_an_expired_token_lets_nothing_through() -> Outcome {
    fails_closed("oldtok", "Unauthenticated", |folder| {
        std::fs::create_dir_all(folder.join("tokens"))?;
        let file = token_file(folder, "node0");
        write_token(&file, Duration::ZERO).map(|()| file)
    })
}

fn a_node_with_another_nodes_token_lets_nothing_through() -> Outcome {
    fails_closed("othertok", "the token names another node", |folder| {
        std::fs::create_dir_all(folder.join("tokens"))?;
        let file = token_file(folder, "node7");
        write_token(&file, Duration::from_secs(3600)).map(|()| file)
    })
}
