//! The services as callers see them: every call without, with a wrong, an expired and a foreign token, and what a good
//! token is good for. Then the whole program once, over TLS, with the clients that the nodes have.

use std::fs;

use ambit_core::identity::SpiffeId;
use ambit_net::certs::Sign as _;
use ambit_net::certs::ca::CaClient;
use ambit_net::grpc::{Dialer, Remote};
use ambit_net::proto::ca::IstioCertificateRequest;
use ambit_net::proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use ambit_net::proto::core::Node;
use ambit_net::proto::discovery::DeltaDiscoveryRequest;
use ambit_net::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use ambit_net::proto::node::node_service_client::NodeServiceClient;
use ambit_net::proto::node::{ReportPodsRequest, ServedPod};
use ambit_net::xds::Kind;
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, KeyPair};
use tokio::time::timeout;
use tonic::{Code, Request, Status};

use super::*;
use crate::testing::{Dir, applied, mesh, objects, root, token, write_token};

const DEADLINE: Duration = Duration::from_secs(20);

const MANIFESTS: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: mine, namespace: a}, spec: {nodeName: n1, serviceAccountName: mine}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: theirs, namespace: a}, spec: {nodeName: n2, serviceAccountName: theirs}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: out, namespace: a, labels: {istio.io/dataplane-mode: none}}, spec: {nodeName: n1, serviceAccountName: out}, status: {podIP: 10.0.0.3}}
";

/// All services behind the authenticator, with nodes `n1` (token a), `n2` (b) and `late` (an expired one, e).
struct Bench {
    routes: Routes,
    issued: Issued,
    tasks: Tasks,
    _dir: Dir,
    publisher: Option<Publisher>,
    _events: mpsc::Receiver<Event>,
}

impl Bench {
    fn new(synced: bool) -> Self {
        let dir = Dir::new();
        write_token(&dir.0, "n1", &token('a'));
        write_token(&dir.0, "n2", &token('b'));
        write_token(&dir.0, "late", &expired());
        let meters = Meters::new("test", 1);
        let authenticator = Authenticator::open(&dir.0, Arc::clone(&meters)).unwrap();
        let root = root(SystemTime::now());
        let signer = Arc::new(Signer::new(root, Duration::from_secs(3600)));
        let (snapshots, published) = watch::channel(None);
        let (roster, read_roster) = watch::channel(None);
        let verdicts = watch::channel(Arc::default()).0;
        let publisher = Publisher::new(
            mesh(),
            CaptureSource::Reports,
            Outputs {
                snapshots,
                roster,
                verdicts,
            },
            Arc::clone(&meters),
        );
        let publisher = synced.then_some(publisher).map(publish);
        let tasks = Tasks::new("test");
        let issued = Issued::default();
        let discovery = Discovery::new(
            published,
            Proxies::default(),
            (tasks.spawner(), 9),
            Arc::clone(&meters),
        );
        let authority = CertificateAuthority::new(
            signer,
            "cluster.local".into(),
            read_roster,
            (issued.clone(), Arc::clone(&meters)),
        );
        let (to_publisher, events) = mpsc::channel(8);
        let (reports, _) =
            NodeReports::open(&dir.path("reports"), to_publisher, Arc::clone(&meters)).unwrap();
        Self {
            routes: routes(discovery, authority, reports, &authenticator),
            issued,
            tasks,
            _dir: dir,
            publisher,
            _events: events,
        }
    }

    /// Opens an xDS stream and waits for its first response.
    async fn xds(&self, header: Option<&str>, node: Option<&str>) -> Result<String, Status> {
        let mut client = AggregatedDiscoveryServiceClient::new(self.routes.clone());
        let first = DeltaDiscoveryRequest {
            node: node.map(node_named),
            type_url: Kind::Address.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        let (requests, stream) = mpsc::channel(1);
        requests.send(first).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let request = with(header, stream);
        let call = async {
            let mut responses = client
                .delta_aggregated_resources(request)
                .await?
                .into_inner();
            let response = responses.message().await?;
            let response = response.ok_or_else(|| Status::unknown("the stream ended"))?;
            let names = response
                .resources
                .iter()
                .map(|resource| resource.name.as_str());
            Ok(names.collect::<Vec<_>>().join(" "))
        };
        let answer = timeout(DEADLINE, call).await.unwrap();
        drop(requests);
        answer
    }

    /// Asks for a certificate.
    async fn certificate(
        &self,
        header: Option<&str>,
        request: IstioCertificateRequest,
    ) -> Result<Vec<String>, Status> {
        let mut client = IstioCertificateServiceClient::new(self.routes.clone());
        let answer = client.create_certificate(with(header, request)).await?;
        Ok(answer.into_inner().cert_chain)
    }

    /// Reports no pods.
    async fn report(&self, header: Option<&str>, node: &str) -> Result<(), Status> {
        let mut client = NodeServiceClient::new(self.routes.clone());
        let request = ReportPodsRequest {
            node: node.to_owned(),
            pods: Vec::new(),
        };
        client.report_pods(with(header, request)).await.map(drop)
    }
}

/// Lets a publisher see the manifests.
fn publish(mut publisher: Publisher) -> Publisher {
    let events = objects(MANIFESTS).into_iter();
    let events = events.map(|(key, object)| applied(key, object));
    publisher.take(events.chain([Event::Synced]));
    publisher
}

fn expired() -> String {
    token('e').replace("1999999999", "1700000000")
}

fn bearer(token: &str) -> Option<String> {
    Some(format!("Bearer {token}"))
}

fn with<T>(header: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(header) = header {
        request
            .metadata_mut()
            .insert("authorization", header.parse().unwrap());
    }
    request
}

fn text(text: &str) -> Value {
    Value {
        kind: Some(ValueKind::StringValue(text.to_owned())),
    }
}

fn node_named(name: &str) -> Node {
    Node {
        id: "ztunnel~10.0.0.9~z.ns~ns.svc.cluster.local".to_owned(),
        metadata: Some(Struct {
            fields: [("NODE_NAME".to_owned(), text(name))].into(),
        }),
        ..Node::default()
    }
}

fn request_for(identity: &str) -> IstioCertificateRequest {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    IstioCertificateRequest {
        csr: request.pem().unwrap(),
        validity_duration: 600,
        metadata: Some(Struct {
            fields: [("ImpersonatedIdentity".to_owned(), text(identity))].into(),
        }),
    }
}

const MINE: &str = "spiffe://cluster.local/ns/a/sa/mine";

#[tokio::test]
async fn no_call_is_served_without_a_good_token() {
    let bench = Bench::new(true);
    let headers = [
        ("none", None),
        ("empty", Some(String::new())),
        ("no bearer", Some(token('a'))),
        ("other scheme", Some(format!("Basic {}", token('a')))),
        ("unknown", bearer(&token('c'))),
        ("cut short", bearer(&token('a')[..40])),
        ("expired", bearer(&expired())),
        (
            "prolonged",
            bearer(&expired().replace("1700000000", "1999999999")),
        ),
    ];
    for (name, header) in headers {
        let header = header.as_deref();
        let xds = bench.xds(header, Some("n1")).await.unwrap_err();
        let ca = bench
            .certificate(header, request_for(MINE))
            .await
            .unwrap_err();
        let report = bench.report(header, "n1").await.unwrap_err();
        for status in [xds, ca, report] {
            assert_eq!(status.code(), Code::Unauthenticated, "{name}: {status:?}");
        }
    }
    assert_eq!(bench.issued.status(0), [], "nothing was signed");
    assert_eq!(bench.tasks.live(), 0, "no stream was opened");
}

#[tokio::test]
async fn a_token_is_good_for_its_own_node_only() {
    let bench = Bench::new(true);
    let (own, foreign) = (bearer(&token('a')), bearer(&token('b')));
    bench.xds(own.as_deref(), Some("n1")).await.unwrap();
    bench
        .certificate(own.as_deref(), request_for(MINE))
        .await
        .unwrap();
    bench.report(own.as_deref(), "n1").await.unwrap();
    let foreign = foreign.as_deref();
    let refusals = [
        bench.xds(foreign, Some("n1")).await.unwrap_err(),
        bench.xds(own.as_deref(), None).await.unwrap_err(),
        bench.xds(own.as_deref(), Some("")).await.unwrap_err(),
        bench
            .certificate(foreign, request_for(MINE))
            .await
            .unwrap_err(),
        bench.report(foreign, "n1").await.unwrap_err(),
    ];
    for status in refusals {
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    }
}

#[tokio::test]
async fn nothing_is_served_before_the_sources_have_been_read() {
    let bench = Bench::new(false);
    let header = bearer(&token('a'));
    let header = header.as_deref();
    let xds = bench.xds(header, Some("n1")).await.unwrap_err();
    let ca = bench
        .certificate(header, request_for(MINE))
        .await
        .unwrap_err();
    assert_eq!(
        (xds.code(), ca.code()),
        (Code::Unavailable, Code::Unavailable)
    );
}

#[tokio::test]
async fn a_subscriber_gets_the_mesh() {
    let bench = Bench::new(true);
    let names = bench
        .xds(bearer(&token('a')).as_deref(), Some("n1"))
        .await
        .unwrap();
    let uid = |name| format!("Kubernetes//Pod/a/{name}");
    assert_eq!(names, ["mine", "out", "theirs"].map(uid).join(" "));
}

#[tokio::test]
async fn certificates_are_signed_for_pods_of_the_asking_node_only() {
    let bench = Bench::new(true);
    let header = bearer(&token('a'));
    let chain = bench
        .certificate(header.as_deref(), request_for(MINE))
        .await
        .unwrap();
    assert_eq!(chain.len(), 2, "leaf and roots");
    let identities = [
        "spiffe://cluster.local/ns/a/sa/theirs",
        "spiffe://cluster.local/ns/a/sa/out",
        "spiffe://cluster.local/ns/a/sa/default",
        "spiffe://cluster.local/ns/b/sa/mine",
        "spiffe://example.org/ns/a/sa/mine",
    ];
    for identity in identities {
        let refused = bench
            .certificate(header.as_deref(), request_for(identity))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{identity}");
    }
    assert_eq!(bench.issued.status(0).len(), 1);
}

/// A request with this metadata instead of the identity.
fn request_with(name: &str, value: Value) -> IstioCertificateRequest {
    IstioCertificateRequest {
        metadata: Some(Struct {
            fields: [(name.to_owned(), value)].into(),
        }),
        ..request_for(MINE)
    }
}

/// A request with one thing changed.
fn changed(change: impl FnOnce(&mut IstioCertificateRequest)) -> IstioCertificateRequest {
    let mut request = request_for(MINE);
    change(&mut request);
    request
}

#[tokio::test]
async fn requests_that_make_no_sense_are_invalid() {
    let bench = Bench::new(true);
    let number = Value {
        kind: Some(ValueKind::NumberValue(1.0)),
    };
    let no_request =
        "-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n";
    let other_signer = |request: &mut IstioCertificateRequest| {
        let metadata = request.metadata.as_mut().unwrap();
        metadata
            .fields
            .insert("CertSigner".to_owned(), text("other"));
    };
    let cases = [
        ("no csr", changed(|request| request.csr.clear())),
        (
            "malformed csr",
            changed(|request| request.csr = no_request.to_owned()),
        ),
        (
            "negative lifetime",
            changed(|request| request.validity_duration = -1),
        ),
        ("no metadata", changed(|request| request.metadata = None)),
        ("no identity", request_with("Other", text(MINE))),
        ("a number", request_with("ImpersonatedIdentity", number)),
        ("no SPIFFE ID", request_for("cluster.local/ns/a/sa/mine")),
        ("another signer", changed(other_signer)),
    ];
    let header = bearer(&token('a'));
    for (name, request) in cases {
        let refused = bench
            .certificate(header.as_deref(), request)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name}: {refused:?}");
    }
    assert_eq!(bench.issued.status(0), []);
}

#[tokio::test]
async fn no_more_streams_are_served_than_allowed() {
    let bench = Bench::new(true);
    let (header, other) = (bearer(&token('a')), bearer(&token('b')));
    let mut open = Vec::new();
    for header in [&header; 8].into_iter().chain([&other]) {
        let mut client = AggregatedDiscoveryServiceClient::new(bench.routes.clone());
        let (requests, stream) = mpsc::channel::<DeltaDiscoveryRequest>(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let responses = client
            .delta_aggregated_resources(with(header.as_deref(), stream))
            .await;
        open.push((requests, responses.unwrap()));
    }
    // One node has eight, all together nine.
    for (header, node) in [(&header, "n1"), (&other, "n2")] {
        let refused = bench.xds(header.as_deref(), Some(node)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{node}");
    }
    open.remove(0);
    let served = async {
        while bench.xds(header.as_deref(), Some("n1")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, served).await.unwrap();
}

/// The time for an answer counts from what is to be answered, not from what was answered long ago.
#[tokio::test(start_paused = true)]
async fn a_stream_that_was_quiet_for_long_gets_what_changes() {
    let mut bench = Bench::new(true);
    let mut client = AggregatedDiscoveryServiceClient::new(bench.routes.clone());
    let (requests, stream) = mpsc::channel(4);
    let ask = |nonce: &str| DeltaDiscoveryRequest {
        node: Some(node_named("n1")),
        type_url: Kind::Address.type_url().to_owned(),
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(ask("")).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let request = with(bearer(&token('a')).as_deref(), stream);
    let answer = client.delta_aggregated_resources(request).await;
    let mut responses = answer.unwrap().into_inner();
    for round in 0..20 {
        let response = responses.message().await.unwrap().unwrap();
        requests.send(ask(&response.nonce)).await.unwrap();
        sleep(Duration::from_secs(3600)).await;
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: mine, namespace: a}}, spec: {{nodeName: n1}}, \
             status: {{podIP: 10.0.1.{round}}}}}"
        );
        let events = objects(&pod).into_iter();
        let events = events.map(|(key, object)| applied(key, object));
        bench.publisher.as_mut().unwrap().take(events);
    }
}

#[tokio::test]
async fn a_stop_ends_streams_and_says_so() {
    let bench = Bench::new(true);
    let mut client = AggregatedDiscoveryServiceClient::new(bench.routes.clone());
    let (_requests, stream) = mpsc::channel::<DeltaDiscoveryRequest>(1);
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let request = with(bearer(&token('a')).as_deref(), stream);
    let mut responses = client
        .delta_aggregated_resources(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(bench.tasks.drain(DEADLINE).await.cut, 0);
    let ended = timeout(DEADLINE, responses.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
}

/// A configuration over directories of a test's own, on free ports of loopback.
fn config(dir: &Dir, more: &[(&str, &str)]) -> Config {
    let place = |name: &str| dir.path(name).display().to_string();
    for name in ["manifests", "tokens"] {
        fs::create_dir_all(dir.path(name)).unwrap();
    }
    let variables = [
        ("AMBIT_MANIFESTS", place("manifests")),
        ("AMBIT_NODE_TOKENS", place("tokens")),
        ("AMBIT_STATE_DIR", place("state")),
        ("AMBIT_STATUS_SOCKET", place("status.sock")),
        ("AMBIT_LISTEN_ADDR", "127.0.0.1:0".to_owned()),
        ("AMBIT_METRICS_ADDR", "127.0.0.1:0".to_owned()),
    ];
    let given = more
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    let variables = variables.into_iter().chain(given);
    let variables = variables.map(|(name, value)| (name.to_owned(), value));
    Config::read(&mut ambit_net::env::EnvReader::new(variables)).unwrap()
}

async fn start_error(config: &Config) -> String {
    let outcome = async { App::open(config, &Running::new(config)?).await };
    outcome.await.err().expect("it does not start").to_string()
}

#[tokio::test]
async fn what_keeps_it_from_starting_names_the_setting() {
    let dir = Dir::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken
        .local_addr()
        .map(|addr| (taken, addr.to_string()))
        .unwrap();
    for name in ["AMBIT_LISTEN_ADDR", "AMBIT_METRICS_ADDR"] {
        let error = start_error(&config(&dir, &[(name, &taken.1)])).await;
        assert!(
            error.contains(name) && error.contains(&taken.1) && error.contains("in use"),
            "{error}"
        );
    }
    for name in ["AMBIT_MANIFESTS", "AMBIT_NODE_TOKENS"] {
        let error = start_error(&config(&dir, &[(name, "/nowhere")])).await;
        assert!(
            error.contains(name) && error.contains("/nowhere"),
            "{error}"
        );
    }
    let error = start_error(&config(&dir, &[("AMBIT_SERVER_NAMES", "not a name")])).await;
    assert!(
        error.contains("AMBIT_SERVER_NAMES") && error.contains("not a name"),
        "{error}"
    );
    fs::write(dir.path("file"), "").unwrap();
    let file = dir.path("file").display().to_string();
    let error = start_error(&config(&dir, &[("AMBIT_STATE_DIR", &file)])).await;
    assert!(error.contains("AMBIT_STATE_DIR"), "{error}");
    fs::write(dir.path("state/ca-root.pem"), "garbage").unwrap();
    let error = start_error(&config(&dir, &[])).await;
    assert!(
        error.contains("ca-root.pem") && error.contains("damaged"),
        "{error}"
    );
}

/// How node `n1` reaches a controller.
fn dialer(dir: &Dir, addr: SocketAddr) -> Arc<Dialer> {
    let remote = Remote {
        address: format!("https://localhost:{}", addr.port()),
        server_name: None,
        root_file: dir.path("state/root-cert.pem"),
        token_file: dir.path("tokens/n1.token"),
        cluster: mesh().cluster,
    };
    Arc::new(Dialer::new(remote).unwrap())
}

#[tokio::test]
async fn the_whole_program_serves_a_node_over_tls() {
    let dir = Dir::new();
    let config = config(&dir, &[]);
    write_token(&dir.path("tokens"), "n1", &token('a'));
    fs::write(dir.path("manifests/mesh.yaml"), MANIFESTS).unwrap();
    let running = Running::new(&config).unwrap();
    let app = App::open(&config, &running).await.unwrap();
    let addr = app.grpc.local_addr().unwrap();
    let overview = app.overview.clone();
    app.start(&config, &running);
    let synced = overview
        .roster
        .clone()
        .wait_for(Option::is_some)
        .await
        .is_ok();
    assert!(synced);

    let dialer = dialer(&dir, addr);
    let authority = CaClient::new(Arc::clone(&dialer), Duration::from_secs(600));
    let request = request_for(MINE).csr;
    let identity = SpiffeId::parse(MINE).unwrap();
    let chain = timeout(DEADLINE, authority.sign(&identity, &request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        chain.last().unwrap(),
        &fs::read_to_string(dir.path("state/root-cert.pem")).unwrap()
    );

    let mut reports = NodeServiceClient::new(dialer.link().await.unwrap());
    let pod = ServedPod {
        namespace: "a".to_owned(),
        name: "mine".to_owned(),
        uid: "a/mine".to_owned(),
    };
    let report = ReportPodsRequest {
        node: "n1".to_owned(),
        pods: vec![pod],
    };
    reports.report_pods(report).await.unwrap();
    let captured = |roster: &Option<Arc<crate::roster::Roster>>| {
        let pods = roster.iter().flat_map(|roster| &roster.pods);
        let mut captured =
            pods.filter(|pod| pod.capture == ambit_core::status::CaptureState::Captured);
        captured.any(|pod| pod.name == "mine")
    };
    let mut roster = overview.roster.clone();
    timeout(DEADLINE, roster.wait_for(captured))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(overview.status(0).identities[0].identity, MINE);

    assert_eq!(running.serving.drain(DEADLINE).await.cut, 0);
    running.control.drain(CONTROL_DEADLINE).await;
}
