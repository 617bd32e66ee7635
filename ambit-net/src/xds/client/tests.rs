//! The client against a controller on loopback that the test plays by hand.

use ambit_core::names::{ClusterId, NamespacedName, NetworkId, WorkloadUid};
use ambit_core::next_hop::{NextHop, next_hop};
use ambit_core::policy::{Authorization, PolicyAction, PolicyScope};
use ambit_core::reason::Reason;
use ambit_core::view::MeshView;
use ambit_core::workload::Workload;
use prost::Message;
use prost_types::Any;
use tokio::sync::Mutex;
use tonic::service::Routes;
use tonic::{Request, Response, Streaming};

use super::*;
use crate::grpc::testing::TestServer;
use crate::proto::discovery::Resource;
use crate::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::workload as pb;
use crate::tasks::Tasks;
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE, pack_policy, pack_workload};

const PATIENCE: Duration = Duration::from_secs(10);

/// One stream as the controller sees it.
struct Served {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Served {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let message = timeout(PATIENCE, self.requests.message()).await;
        message.expect("a request in time").unwrap().unwrap()
    }

    async fn send(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }

    /// Takes both subscriptions and answers the one for policies with nothing.
    async fn opened(&mut self) -> [DeltaDiscoveryRequest; 2] {
        let requests = [self.request().await, self.request().await];
        let nothing = response(AUTHORIZATION_TYPE, "p0", Vec::new(), &[]);
        self.send(nothing).await;
        let ack = self.request().await;
        assert_eq!((&*ack.response_nonce, ack.error_detail), ("p0", None));
        requests
    }
}

/// A controller that hands each stream to the test.
struct Script(Mutex<mpsc::Sender<Served>>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(8);
        let requests = request.into_inner();
        let served = Served {
            requests,
            responses,
        };
        self.0.lock().await.send(served).await.unwrap();
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// A client that runs against a script.
struct Setup {
    streams: mpsc::Receiver<Served>,
    view: SharedView,
    synced: Synced,
    meters: Arc<Meters>,
    tasks: Tasks,
    _server: TestServer,
}

impl Setup {
    async fn start() -> Self {
        let (sender, streams) = mpsc::channel(8);
        let script = AggregatedDiscoveryServiceServer::new(Script(Mutex::new(sender)));
        let server = TestServer::start(Routes::new(script)).await;
        let view = MeshView::new(NetworkId::default(), ClusterId::new("c"));
        let meters = Meters::new("test", 1);
        let (view, synced) = (SharedView::new(view), Synced::new());
        let config = XdsConfig {
            dialer: Arc::new(Dialer::new(server.remote()).unwrap()),
            node: node(),
            root_namespace: "ambit-system".into(),
            meters: Arc::clone(&meters),
        };
        let tasks = Tasks::new("xds test");
        let stop = tasks.stop_signal();
        tasks.spawn(run(config, view.clone(), synced.clone(), stop));
        Self {
            streams,
            view,
            synced,
            meters,
            tasks,
            _server: server,
        }
    }

    async fn stream(&mut self) -> Served {
        let stream = timeout(PATIENCE, self.streams.recv()).await;
        stream.expect("a stream in time").unwrap()
    }

    fn knows(&self, name: &str) -> bool {
        self.view.read(|view| view.pod("ns", name).is_some())
    }
}

/// A client without a controller, for what needs a clock that can be turned.
fn alone() -> Client {
    let remote = crate::grpc::Remote {
        address: "https://localhost:1".into(),
        server_name: None,
        root_file: "none".into(),
        token_file: "none".into(),
        cluster: ClusterId::new("c"),
    };
    let config = XdsConfig {
        dialer: Arc::new(Dialer::new(remote).unwrap()),
        node: node(),
        root_namespace: "ambit-system".into(),
        meters: Meters::new("test", 1),
    };
    Client {
        session: Session::new(config.node.message()),
        config,
        view: SharedView::new(MeshView::new(NetworkId::default(), ClusterId::new("c"))),
        synced: Synced::new(),
    }
}

/// How a stream ends that brings these responses and then nothing, and after how long.
async fn end_after(responses: Vec<DeltaDiscoveryResponse>) -> (StreamEnd, Duration) {
    let (requests, _answers) = mpsc::channel(8);
    let responses = futures_util::stream::iter(responses.into_iter().map(Ok));
    let responses = responses.chain(futures_util::stream::pending()).boxed();
    let began = Instant::now();
    let end = alone()
        .exchange(Stream {
            requests,
            responses,
        })
        .await;
    (end, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_owes_an_answer_is_left_after_a_while() {
    let (end, after) = end_after(vec![addresses("a1", &[], &[])]).await;
    assert!(matches!(end, StreamEnd::Silent), "{end}");
    assert!(
        after >= FIRST_PUSH_TIMEOUT && after < 2 * FIRST_PUSH_TIMEOUT,
        "{after:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_is_kept_until_it_is_old() {
    let policies = response(AUTHORIZATION_TYPE, "p1", Vec::new(), &[]);
    let (end, after) = end_after(vec![addresses("a1", &[], &[]), policies]).await;
    assert!(matches!(end, StreamEnd::Aged), "{end}");
    assert!(
        after >= MAX_AGE && after < MAX_AGE + Duration::from_secs(61),
        "{after:?}"
    );
}

fn node() -> NodeInfo {
    NodeInfo {
        ip: "127.0.0.1".into(),
        pod_name: "ztunnel".into(),
        pod_namespace: "ambit-system".into(),
        node_name: "node-1".into(),
        cluster: ClusterId::new("c"),
        network: NetworkId::default(),
        metadata: std::collections::BTreeMap::new(),
    }
}

fn uid(name: &str) -> String {
    format!("c//Pod/ns/{name}")
}

fn workload(name: &str) -> Resource {
    let workload = Workload::named(WorkloadUid::new(uid(name)), "ns", name);
    resource(&uid(name), pack_workload(&workload))
}

fn resource(name: &str, body: Any) -> Resource {
    Resource {
        version: format!("{name}@1"),
        resource: Some(body),
        name: name.to_owned(),
        aliases: Vec::new(),
    }
}

fn response(
    type_url: &str,
    nonce: &str,
    resources: Vec<Resource>,
    removed: &[String],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        system_version_info: String::new(),
        resources,
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        removed_resources: removed.to_vec(),
    }
}

fn addresses(nonce: &str, names: &[&str], removed: &[&str]) -> DeltaDiscoveryResponse {
    let resources = names.iter().map(|name| workload(name)).collect();
    let removed: Vec<_> = removed.iter().map(|name| uid(name)).collect();
    response(ADDRESS_TYPE, nonce, resources, &removed)
}

#[tokio::test]
async fn applies_before_it_acknowledges_and_is_synced_after_both_types() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    let [policies, _] = stream.opened().await;
    assert!(policies.node.unwrap().id.starts_with("ztunnel~127.0.0.1~"));
    assert!(setup.synced.policies() && !setup.synced.addresses());
    stream.send(addresses("a1", &["one"], &[])).await;
    let ack = stream.request().await;
    assert_eq!((&*ack.response_nonce, ack.error_detail), ("a1", None));
    assert!(setup.knows("one"));
    assert!(setup.synced.is_complete());
}

#[tokio::test]
async fn a_reconnect_resumes_with_versions_and_the_view_stays() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opened().await;
    stream.send(addresses("a1", &["one", "two"], &[])).await;
    stream.request().await;
    drop(stream);
    let mut stream = setup.stream().await;
    assert!(setup.knows("one") && setup.knows("two"));
    let [policies, resumed] = stream.opened().await;
    assert!(policies.node.is_some(), "each stream says who opens it");
    let versions: Vec<_> = resumed.initial_resource_versions.into_iter().collect();
    let held = ["one", "two"].map(|name| (uid(name), format!("{}@1", uid(name))));
    assert_eq!(versions, held);
    // What went while there was no stream is named as removed.
    stream.send(addresses("a2", &["three"], &["one"])).await;
    stream.request().await;
    assert_eq!(
        ["one", "two", "three"].map(|n| setup.knows(n)),
        [false, true, true]
    );
}

#[tokio::test]
async fn one_bad_resource_is_refused_by_name_and_the_rest_is_kept() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opened().await;
    let mut sent = addresses("a1", &["good"], &[]);
    let bad = Any {
        type_url: ADDRESS_TYPE.into(),
        value: vec![0xff],
    };
    sent.resources.insert(0, resource(&uid("bad"), bad));
    stream.send(sent).await;
    let nack = stream.request().await;
    assert_eq!(nack.response_nonce, "a1");
    let message = nack.error_detail.unwrap().message;
    assert!(message.starts_with("c//Pod/ns/bad: "), "{message}");
    assert!(!message.contains("good"), "{message}");
    assert!(setup.knows("good") && !setup.knows("bad"));
    let rejected = setup.meters.counter(&meters::XDS_REJECTED, [ADDRESS_TYPE]);
    assert_eq!(rejected.value(), 1);
    drop(stream);
    let [_, resumed] = setup.stream().await.opened().await;
    let versions: Vec<_> = resumed.initial_resource_versions.into_iter().collect();
    let good = format!("{}@1", uid("good"));
    assert_eq!(versions, [(uid("bad"), String::new()), (uid("good"), good)]);
}

#[tokio::test]
async fn the_addresses_of_what_is_refused_are_closed_until_it_is_readable_or_gone() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opened().await;
    let newer = |name: &str, ip: u8, protocol: i32| {
        let workload = pb::Workload {
            uid: uid(name),
            addresses: vec![vec![10, 0, 0, ip], vec![1]],
            tunnel_protocol: protocol,
            ..pb::Workload::default()
        };
        let address = pb::Address {
            r#type: Some(pb::address::Type::Workload(Box::new(workload))),
        };
        let body = Any {
            type_url: ADDRESS_TYPE.into(),
            value: address.encode_to_vec(),
        };
        resource(&uid(name), body)
    };
    let source = Workload::named(WorkloadUid::new("source"), "ns", "source");
    let hop = |view: &SharedView, to: &str| {
        let wanted = to.parse().unwrap();
        view.read(|view| next_hop(view, &source, wanted, &[], 0).hop)
    };
    let refused = NextHop::Refuse(Reason::ResourceUnreadable);

    let sent = vec![newer("one", 1, 77), newer("two", 2, 77)];
    stream.send(response(ADDRESS_TYPE, "a1", sent, &[])).await;
    let nack = stream.request().await.error_detail.unwrap().message;
    assert!(
        nack.contains(&uid("one")) && nack.contains(&uid("two")),
        "{nack}"
    );
    assert!(setup.synced.is_complete());
    assert_eq!(hop(&setup.view, "10.0.0.1:80"), refused);
    assert_eq!(hop(&setup.view, "10.0.0.2:80"), refused);
    let why = setup.view.read(|view| view.why_no_pod("ns", "one"));
    assert_eq!(why, Reason::ResourceUnreadable);

    // After a reconnect one is gone, the other is as it should be.
    drop(stream);
    let mut stream = setup.stream().await;
    stream.opened().await;
    assert_eq!(hop(&setup.view, "10.0.0.1:80"), refused);
    stream.send(addresses("a2", &["one"], &["two"])).await;
    stream.request().await;
    for to in ["10.0.0.1:80", "10.0.0.2:80"] {
        let to: std::net::SocketAddr = to.parse().unwrap();
        assert_eq!(
            hop(&setup.view, &to.to_string()),
            NextHop::Passthrough { to }
        );
    }
}

#[tokio::test]
async fn an_unreadable_policy_is_refused_by_name_and_refuses_what_it_selects() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opened().await;
    let name = NamespacedName::new("ns", "p");
    let policy = Authorization {
        name: name.clone(),
        scope: PolicyScope::Namespace,
        action: PolicyAction::Allow,
        rules: Vec::new(),
        dry_run: false,
        unreadable: None,
    };
    let mut body = pack_policy(&policy);
    // Field 77, varint 1: from a newer controller.
    body.value.extend([0xe8, 0x04, 0x01]);
    let sent = response(AUTHORIZATION_TYPE, "p1", vec![resource("ns/p", body)], &[]);
    stream.send(sent).await;
    let message = stream.request().await.error_detail.unwrap().message;
    assert!(
        message.contains("ns/p: ") && message.contains("field 77"),
        "{message}"
    );
    let held = setup.view.read(|view| view.policy(&name).cloned()).unwrap();
    assert!(held.unreadable.is_some());
    drop(stream);
    let [resumed, _] = setup.stream().await.opened().await;
    assert_eq!(resumed.initial_resource_versions["ns/p"], "");
}

#[tokio::test]
async fn removed_resources_leave_the_view() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opened().await;
    stream.send(addresses("a1", &["one", "two"], &[])).await;
    stream.request().await;
    stream
        .send(addresses("a2", &[], &["one", "never-was"]))
        .await;
    let ack = stream.request().await;
    assert_eq!((&*ack.response_nonce, ack.error_detail), ("a2", None));
    assert_eq!(["one", "two"].map(|n| setup.knows(n)), [false, true]);
}

#[tokio::test]
async fn an_unknown_type_is_acknowledged_and_changes_nothing() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opened().await;
    let type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let sent = response(type_url, "x1", vec![workload("one")], &[]);
    stream.send(sent).await;
    let ack = stream.request().await;
    let expected = DeltaDiscoveryRequest {
        type_url: type_url.into(),
        response_nonce: "x1".into(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(ack, expected);
    assert!(!setup.knows("one") && !setup.synced.addresses());
}

#[tokio::test]
async fn a_stream_that_is_refused_is_tried_again() {
    let mut setup = Setup::start().await;
    for _ in 0..3 {
        let stream = setup.stream().await;
        let refusal = Status::unauthenticated("the token is expired");
        stream.responses.send(Err(refusal)).await.unwrap();
    }
    setup.stream().await.opened().await;
    let ended = setup.meters.counter(&meters::XDS_TERMINATIONS, ["Error"]);
    assert_eq!(ended.value(), 3);
}

#[tokio::test]
async fn stop_ends_it_and_the_view_stays() {
    let mut setup = Setup::start().await;
    let mut stream = setup.stream().await;
    stream.opened().await;
    stream.send(addresses("a1", &["one"], &[])).await;
    stream.request().await;
    let drained = setup.tasks.drain(PATIENCE).await;
    assert_eq!((drained.finished, drained.cut), (1, 0));
    assert!(setup.knows("one"));
}
