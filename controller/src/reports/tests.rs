//! What nodes may say about their pods, and that it is kept.

use ambit_net::proto::node::ServedPod as Reported;

use super::*;
use crate::testing::{Dir, caller};

fn pod(name: &str) -> Reported {
    let (namespace, pod) = name.split_once('/').unwrap();
    Reported {
        namespace: namespace.to_owned(),
        name: pod.to_owned(),
        uid: name.to_owned(),
    }
}

fn open(dir: &Dir) -> (NodeReports, Vec<ServedPods>, mpsc::Receiver<Event>) {
    let (events, queue) = mpsc::channel(8);
    let (service, reports) =
        NodeReports::open(&dir.path("reports"), events, Meters::new("test", 1)).unwrap();
    (service, reports, queue)
}

async fn report(
    service: &NodeReports,
    from: &str,
    node: &str,
    pods: &[&str],
) -> Result<(), Status> {
    let mut request = Request::new(ReportPodsRequest {
        node: node.to_owned(),
        pods: pods.iter().map(|name| pod(name)).collect(),
    });
    request.extensions_mut().insert(caller(from));
    service.report_pods(request).await.map(drop)
}

fn names(report: &ServedPods) -> Vec<String> {
    report.pods.iter().map(|pod| pod.name.to_string()).collect()
}

#[tokio::test]
async fn a_report_takes_effect_and_outlives_a_restart() {
    let dir = Dir::new();
    let (service, before, mut queue) = open(&dir);
    assert_eq!(before, []);
    report(&service, "n1", "n1", &["a/q", "a/p"]).await.unwrap();
    let Some(Event::Served(served)) = queue.recv().await else {
        panic!("no event");
    };
    assert_eq!(
        (&*served.node, names(&served)),
        ("n1", vec!["a/p".to_owned(), "a/q".to_owned()])
    );
    let (service, after, _queue) = open(&dir);
    assert_eq!(after, [served]);
    report(&service, "n1", "n1", &[]).await.unwrap();
    let (_, emptied, _queue) = open(&dir);
    assert_eq!(names(&emptied[0]), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_cannot_speak_for_another() {
    let dir = Dir::new();
    let (service, _, mut queue) = open(&dir);
    for node in ["n2", "", "N1"] {
        let refused = report(&service, "n1", node, &["a/p"]).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{node}");
    }
    assert!(queue.try_recv().is_err());
    assert_eq!(open(&dir).1, []);
}

#[tokio::test]
async fn names_that_are_none_and_endless_lists_are_refused() {
    let dir = Dir::new();
    let (service, ..) = open(&dir);
    for name in ["/p", "a/", "../../x/p", "a/p_q", "A/p"] {
        let refused = report(&service, "n1", "n1", &[name]).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{name}");
    }
    let many: Vec<_> = (0..=MAX_PODS)
        .map(|number| format!("a/p{number}"))
        .collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let refused = report(&service, "n1", "n1", &many).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn what_says_nothing_new_is_not_written_again() {
    let dir = Dir::new();
    let (service, _, mut queue) = open(&dir);
    let file = dir.path("reports/n1.json");
    report(&service, "n1", "n1", &["a/p"]).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    report(&service, "n1", "n1", &["a/p"]).await.unwrap();
    assert!(!file.exists());
    report(&service, "n1", "n1", &["a/q"]).await.unwrap();
    assert!(file.exists());
    for _ in 0..3 {
        assert!(
            matches!(queue.try_recv(), Ok(Event::Served(_))),
            "each is a sign of life"
        );
    }
}

#[tokio::test]
async fn a_report_that_cannot_be_kept_has_no_effect() {
    let dir = Dir::new();
    let (service, _, mut queue) = open(&dir);
    std::fs::remove_dir_all(dir.path("reports")).unwrap();
    let refused = report(&service, "n1", "n1", &["a/p"]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Internal);
    assert!(queue.try_recv().is_err());
}

/// What a node says must not keep the controller from starting again.
#[tokio::test]
async fn a_report_that_could_not_be_read_again_is_refused() {
    let dir = Dir::new();
    let (service, _, mut queue) = open(&dir);
    let swelling = |number: usize| Reported {
        uid: "\u{1}".repeat(MAX_UID),
        ..pod(&format!("a/p{number}"))
    };
    let mut request = Request::new(ReportPodsRequest {
        node: "n1".to_owned(),
        pods: (0..MAX_PODS).map(swelling).collect(),
    });
    request.extensions_mut().insert(caller("n1"));
    assert!(service.report_pods(request).await.is_err());
    assert!(queue.try_recv().is_err());
    assert_eq!(open(&dir).1, []);
}

#[tokio::test]
async fn one_report_of_a_node_is_kept_at_a_time() {
    let dir = Dir::new();
    let (service, _, _queue) = open(&dir);
    let turn = Turn::take(&service.busy, &"n1".into()).unwrap();
    let refused = report(&service, "n1", "n1", &["a/p"]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    report(&service, "n2", "n2", &["a/p"]).await.unwrap();
    drop(turn);
    report(&service, "n1", "n1", &["a/p"]).await.unwrap();
    report(&service, "n1", "n1", &["a/q"]).await.unwrap();
}

#[test]
fn damaged_reports_end_the_start() {
    let dir = Dir::new();
    private_file::make_dir(&dir.path("reports")).unwrap();
    private_file::replace(&dir.path("reports/n1.json"), b"{").unwrap();
    let (events, _queue) = mpsc::channel(1);
    let error = NodeReports::open(&dir.path("reports"), events, Meters::new("test", 1))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("n1.json") && error.contains("Remove it"),
        "{error}"
    );
}
