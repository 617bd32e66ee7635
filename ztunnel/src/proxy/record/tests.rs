//! Claims about what is reported of a connection: labels, figures and the log line.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Mutex;

use ambit_core::names::{ServiceKey, WorkloadUid};
use tracing::subscriber::with_default;

use super::super::admission::Denied;
use super::super::error::{InboundError, OutboundError};
use super::*;
use crate::proxy::Mesh;
use crate::proxy::testing::{context, mesh};

fn workload(name: &str) -> Arc<Workload> {
    let mut workload = Workload::named(WorkloadUid::new(name), "shop", name);
    workload.service_account = name.into();
    workload.canonical_revision = "v2".into();
    Arc::new(workload)
}

fn service() -> Arc<Service> {
    let key = ServiceKey::new("shop", "api.shop.svc.cluster.local");
    Arc::new(Service::named(key, "api"))
}

fn addr(last: u8, port: u16) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, last), port).into()
}

fn decision(hop: NextHop) -> Decision {
    Decision {
        hop,
        service: Some(service()),
        workload: Some(workload("api")),
    }
}

fn tunnel() -> NextHop {
    NextHop::Tunnel {
        via: addr(2, 15008),
        target: ConnectTarget::Address(addr(2, 8080)),
        expect: vec![workload("api").identity()],
        kind: ambit_core::next_hop::TunnelKind::Workload,
    }
}

/// What was logged while `act` ran.
fn logged(act: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let sink = Sink::default();
    let writer = sink.clone();
    let lines = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .finish();
    with_default(lines, act);
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

/// The value of the series of a metric whose labels have all of `parts`.
fn figure(mesh: &Mesh, metric: &str, parts: &[&str]) -> Option<String> {
    let text = mesh.meters.render();
    let mut lines = text
        .lines()
        .filter(|line| line.starts_with(metric) && parts.iter().all(|part| line.contains(part)));
    Some(lines.next()?.rsplit_once(' ')?.1.to_owned())
}

#[tokio::test]
async fn outbound_line_names_both_ends_and_the_service() {
    let mesh = mesh();
    let pod = context("web", &mesh);
    let line = logged(|| {
        let mut record = ConnectionRecord::outbound(&pod, addr(1, 40000));
        record.wanted(addr(9, 80));
        record.decided(workload("web"), &decision(tunnel()));
        record.opened();
        record.finish(Ok::<(), OutboundError>(()));
    });
    for part in [
        " INFO access: connection complete",
        "src.addr=10.0.0.1:40000",
        "src.workload=\"web\"",
        "src.namespace=\"shop\"",
        "src.identity=spiffe://cluster.local/ns/shop/sa/web",
        "src.cluster=\"Kubernetes\"",
        "dst.addr=10.0.0.2:15008",
        "dst.hbone_addr=10.0.0.2:8080",
        "dst.service=\"api.shop.svc.cluster.local\"",
        "dst.workload=\"api\"",
        "dst.identity=spiffe://cluster.local/ns/shop/sa/api",
        "direction=\"outbound\"",
        "bytes_sent=0",
        "bytes_recv=0",
        " duration=",
        "ms reason=\"ok\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(
        !line.contains("error=") && !line.contains("policy="),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
}

#[tokio::test]
async fn labels_are_istios_and_principals_are_proved() {
    let mesh = mesh();
    let pod = context("web", &mesh);
    for (hop, principal, security) in [
        (
            tunnel(),
            "spiffe://cluster.local/ns/shop/sa/web",
            "mutual_tls",
        ),
        (NextHop::Plain { to: addr(2, 80) }, "unknown", "unknown"),
    ] {
        let mut record = ConnectionRecord::outbound(&pod, addr(1, 40000));
        record.decided(workload("web"), &decision(hop));
        record.opened();
        record.finish(Ok::<(), OutboundError>(()));
        let labels = [
            "reporter=\"source\"",
            "source_workload=\"web\"",
            &format!("source_principal=\"{principal}\""),
            "destination_service=\"api.shop.svc.cluster.local\"",
            "destination_service_name=\"api\"",
            "destination_version=\"v2\"",
            &format!("connection_security_policy=\"{security}\""),
            "response_flags=\"-\"",
        ];
        for metric in [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
        ] {
            assert_eq!(
                figure(&mesh, metric, &labels).as_deref(),
                Some("1"),
                "{metric} {labels:?}"
            );
        }
    }
    let ends = ["direction=\"outbound\"", "reason=\"ok\""];
    assert_eq!(
        figure(&mesh, "ambit_connection_ends_total", &ends).as_deref(),
        Some("2")
    );
}

#[tokio::test]
async fn refusal_names_policy_and_reason_and_is_counted_as_denied() {
    let mesh = mesh();
    let pod = context("api", &mesh);
    let line = logged(|| {
        let peer = workload("web").identity();
        let mut record = ConnectionRecord::inbound(&pod, addr(1, 40000), Some(peer));
        record.wanted(addr(2, 15008));
        record.target(&ConnectTarget::Address(addr(2, 8080)));
        record.delivered(Delivered {
            own: workload("api"),
            source: Some(workload("web")),
            service: None,
        });
        record.finish(Err(InboundError::Denied(Denied {
            reason: Reason::PolicyDenied,
            policies: vec![NamespacedName::new("shop", "no-web")],
        })));
    });
    for part in [
        " WARN access: connection complete",
        "dst.identity=spiffe://cluster.local/ns/shop/sa/api",
        "direction=\"inbound\"",
        "reason=\"policy_denied\"",
        "policy=\"shop/no-web\"",
        "error=\"connection closed due to policy rejection: explicitly denied by: shop/no-web\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let labels = ["reporter=\"destination\"", "response_flags=\"DENY\""];
    assert_eq!(
        figure(&mesh, "istio_tcp_connections_failed_total", &labels).as_deref(),
        Some("1")
    );
    let opened = figure(
        &mesh,
        "istio_tcp_connections_opened_total",
        &["reporter=\"destination\""],
    );
    assert!(
        opened.is_none_or(|opened| opened == "0"),
        "it was never opened"
    );
}

#[tokio::test]
async fn cut_connection_is_reported_with_what_ended_it() {
    let mesh = mesh();
    let pod = context("web", &mesh);
    pod.ending.set(Reason::PodRemoved).unwrap();
    let line = logged(|| {
        let mut record = ConnectionRecord::outbound(&pod, addr(1, 40000));
        record.decided(workload("web"), &decision(tunnel()));
        record.opened();
        drop(record);
    });
    assert!(
        line.contains("reason=\"pod_removed\"") && line.contains("was cut"),
        "{line}"
    );
    let closed = figure(
        &mesh,
        "istio_tcp_connections_closed_total",
        &["reporter=\"source\""],
    );
    assert_eq!(closed.as_deref(), Some("1"));
    assert_eq!(pod.flows.routes(), []);
}

#[tokio::test]
async fn another_try_replaces_what_was_decided_before() {
    let mesh = mesh();
    let pod = context("web", &mesh);
    let line = logged(|| {
        let mut record = ConnectionRecord::outbound(&pod, addr(1, 40000));
        record.decided(workload("web"), &decision(tunnel()));
        record.decided(
            workload("web"),
            &decision(NextHop::Plain { to: addr(3, 80) }),
        );
        record.finish(Ok::<(), OutboundError>(()));
    });
    assert!(line.contains("dst.addr=10.0.0.3:80"), "{line}");
    assert!(
        !line.contains("hbone_addr") && !line.contains("identity"),
        "{line}"
    );
}

#[tokio::test]
async fn request_speaks_for_the_client() {
    let pod = context("web", &mesh());
    let mut record = ConnectionRecord::outbound(&pod, addr(1, 40000));
    record.decided(workload("web"), &decision(tunnel()));
    let head = record.connect_head(&ConnectTarget::Address(addr(2, 8080)));
    let forwarded = head.forwarded.unwrap().to_string();
    assert_eq!(
        forwarded,
        "for=\"10.0.0.1:40000\";host=api.shop.svc.cluster.local"
    );
    assert_eq!(head.baggage.unwrap().service_name, "web".into());
    assert!(head.traceparent.is_some());
}
