//! When the set of served pods is told, and what of it arrives.

use std::sync::Mutex;

use tokio::time::Instant;
use tonic::service::Routes;
use tonic::{Request, Response};

use super::*;
use crate::grpc::testing::TestServer;
use crate::proto::node::ReportPodsResponse;
use crate::proto::node::node_service_server::{NodeService, NodeServiceServer};
use crate::tasks::Tasks;

fn pod(name: &str) -> ServedPod {
    ServedPod {
        name: NamespacedName::new("a", name),
        uid: PodUid::new(format!("uid-of-{name}")),
    }
}

/// What was sent, and after how many seconds.
type Log = Arc<Mutex<Vec<(u64, Vec<ServedPod>)>>>;

/// Runs the reporter for as long as `acts` takes, with the first `failures` reports failing.
async fn reported(
    failures: usize,
    acts: impl AsyncFnOnce(watch::Sender<ServedPods>),
) -> Vec<(u64, Vec<ServedPod>)> {
    let log = Log::default();
    let began = Instant::now();
    let send = |pods| {
        let mut log = log.lock().unwrap();
        log.push((began.elapsed().as_secs(), pods));
        let failed = log.len() <= failures;
        std::future::ready(if failed {
            Err(ReportError::Deadline)
        } else {
            Ok(())
        })
    };
    let (sender, receiver) = watch::channel(None);
    tokio::join!(keep_reporting(receiver, send), acts(sender));
    let log = log.lock().unwrap();
    log.clone()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_told_before_the_first_snapshot() {
    let log = reported(0, async |_sender| sleep(Duration::from_secs(100)).await).await;
    assert_eq!(log, []);
}

#[tokio::test(start_paused = true)]
async fn an_empty_snapshot_is_told_too() {
    let log = reported(0, async |sender| {
        sender.send(Some(Vec::new())).unwrap();
        sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(log.await, [(0, Vec::new())]);
}

#[tokio::test(start_paused = true)]
async fn the_whole_set_is_told_on_each_change_and_every_half_minute() {
    let log = reported(0, async |sender| {
        sender.send(Some(vec![pod("web")])).unwrap();
        sleep(Duration::from_secs(5)).await;
        sender.send(Some(vec![pod("web"), pod("db")])).unwrap();
        sleep(Duration::from_secs(40)).await;
    });
    let both = vec![pod("web"), pod("db")];
    assert_eq!(
        log.await,
        [(0, vec![pod("web")]), (5, both.clone()), (35, both)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_report_is_repeated_with_what_holds_then() {
    let log = reported(2, async |sender| {
        sender.send(Some(vec![pod("web")])).unwrap();
        tokio::task::yield_now().await;
        sender.send(Some(vec![pod("db")])).unwrap();
        sleep(Duration::from_secs(20)).await;
    });
    let log = log.await;
    assert_eq!(log.len(), 3, "{log:?}");
    assert_eq!(log[2], (0, vec![pod("db")]));
}

/// Remembers reports.
#[derive(Clone, Default)]
struct Controller(Arc<Mutex<Vec<ReportPodsRequest>>>);

#[tonic::async_trait]
impl NodeService for Controller {
    async fn report_pods(
        &self,
        request: Request<ReportPodsRequest>,
    ) -> Result<Response<ReportPodsResponse>, Status> {
        let mut seen = self.0.lock().unwrap();
        seen.push(request.into_inner());
        match seen.len() {
            1 => Err(Status::permission_denied("the token is of another node")),
            _ => Ok(Response::new(ReportPodsResponse {})),
        }
    }
}

#[tokio::test]
async fn reports_arrive_at_the_controller_also_after_a_refusal() {
    let controller = Controller::default();
    let server = TestServer::start(Routes::new(NodeServiceServer::new(controller.clone()))).await;
    let dialer = Arc::new(Dialer::new(server.remote()).unwrap());
    let (_sender, receiver) = watch::channel(Some(vec![pod("web")]));
    let tasks = Tasks::new("report test");
    tasks.spawn(run(dialer, "node-1".into(), receiver, tasks.stop_signal()));
    let seen = async || {
        while controller.0.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), seen()).await.unwrap();
    let drained = tasks.drain(Duration::from_secs(10)).await;
    assert_eq!(drained.cut, 0);
    let web = PodMessage {
        namespace: "a".into(),
        name: "web".into(),
        uid: "uid-of-web".into(),
    };
    let expected = ReportPodsRequest {
        node: "node-1".into(),
        pods: vec![web],
    };
    let seen = controller.0.lock().unwrap();
    assert_eq!(*seen, [expected.clone(), expected]);
}
