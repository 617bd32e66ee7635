//! What a proxy says of itself, and how others learn that it is in sync.

use std::time::Duration;

use tokio::time::timeout;

use super::*;

#[test]
fn kinds_are_found_by_their_type() {
    for kind in Kind::ALL {
        assert_eq!(Kind::of(kind.type_url()), Some(kind));
    }
    assert_eq!(
        Kind::of("type.googleapis.com/istio.workload.Workload"),
        None
    );
}

#[test]
fn the_node_id_has_the_form_that_istio_takes_apart() {
    let info = NodeInfo {
        ip: "10.0.0.1".into(),
        pod_name: "ztunnel-a".into(),
        pod_namespace: "ambit-system".into(),
        node_name: "node-1".into(),
        cluster: ClusterId::new("Kubernetes"),
        network: NetworkId::default(),
        metadata: BTreeMap::from([
            ("DNS_CAPTURE".into(), "true".into()),
            ("NODE_NAME".into(), "another".into()),
        ]),
    };
    let node = info.message();
    let id = "ztunnel~10.0.0.1~ztunnel-a.ambit-system~ambit-system.svc.cluster.local";
    assert_eq!(node.id, id);
    let fields = node.metadata.unwrap().fields;
    let text = |key: &str| match &fields[key].kind {
        Some(ValueKind::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(text("DNS_CAPTURE"), "true");
    assert_eq!(text("NODE_NAME"), "node-1", "cannot be claimed by metadata");
}

#[tokio::test(start_paused = true)]
async fn waiters_go_on_once_every_kind_has_arrived() {
    let synced = Synced::new();
    assert_eq!(synced.waits_for().len(), 2);
    synced.mark(Kind::Policy);
    assert!(synced.policies() && !synced.addresses());
    assert_eq!(synced.waits_for(), ["addresses from the controller"]);
    let waiting = timeout(Duration::from_secs(1), synced.wait()).await;
    assert!(waiting.is_err(), "one kind is not all");
    let (waited, ()) = tokio::join!(timeout(Duration::from_secs(1), synced.wait()), async {
        synced.clone().mark(Kind::Address);
    });
    assert!(waited.is_ok());
    assert!(synced.is_complete() && synced.waits_for().is_empty());
}
