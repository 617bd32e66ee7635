//! Claims about handles, bounds, expiry and the printed text.

use std::collections::BTreeSet;

use ambit_core::names::{ServiceKey, WorkloadUid};
use ambit_core::reason::Reason;
use ambit_core::service::Service;
use ambit_core::workload::Workload;
use tokio::time::{Duration, advance};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn labels(client: &str) -> TrafficLabels {
    let client = Workload::named(WorkloadUid::new(client), "shop", client);
    let server = Workload::named(WorkloadUid::new("s"), "store", "server");
    let service = Service::named(
        ServiceKey::new("store", "server.store.svc.cluster.local"),
        "server",
    );
    TrafficLabels {
        reporter: Reporter::Source,
        source: Arc::new(Party::of(&client, Some(&client.identity()))),
        destination: Arc::new(Party::of(&server, None)),
        service: Arc::new(ServiceParty::of(&service)),
        mutual_tls: true,
    }
}

/// Lines of one metric.
fn lines(meters: &Meters, name: &str) -> Vec<String> {
    let text = meters.render();
    let of_it = |line: &&str| {
        line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} "))
    };
    text.lines().filter(of_it).map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn traffic_has_the_labels_of_istio() {
    let meters = Meters::new("ztunnel", 10);
    let traffic = meters.traffic(&labels("client"));
    traffic.opened();
    traffic.received(7);
    traffic.received(3);
    traffic.sent(500);
    traffic.failed("TLS_FAILURE");
    traffic.failed(Reason::Ok.response_flags());
    traffic.closed();
    let expected = |name: &str, flags: &str, value: u64| {
        format!(
            "istio_tcp_{name}_total{{reporter=\"source\",source_workload=\"client\",source_canonical_service=\"client\",\
             source_canonical_revision=\"latest\",source_workload_namespace=\"shop\",\
             source_principal=\"spiffe://cluster.local/ns/shop/sa/default\",source_app=\"client\",source_version=\"latest\",\
             source_cluster=\"Kubernetes\",destination_service=\"server.store.svc.cluster.local\",\
             destination_service_namespace=\"store\",destination_service_name=\"server\",destination_workload=\"server\",\
             destination_canonical_service=\"server\",destination_canonical_revision=\"latest\",\
             destination_workload_namespace=\"store\",destination_principal=\"unknown\",destination_app=\"server\",\
             destination_version=\"latest\",destination_cluster=\"Kubernetes\",request_protocol=\"tcp\",\
             response_flags=\"{flags}\",connection_security_policy=\"mutual_tls\",source_region=\"unknown\",\
             source_zone=\"unknown\",destination_region=\"unknown\",destination_zone=\"unknown\"}} {value}"
        )
    };
    for (name, flags, value) in [
        ("connections_opened", "-", 1),
        ("connections_closed", "-", 1),
        ("received_bytes", "-", 10),
        ("sent_bytes", "-", 500),
        ("connections_failed", "TLS_FAILURE", 1),
    ] {
        let found = lines(&meters, &format!("istio_tcp_{name}_total"));
        assert_eq!(found, [expected(name, flags, value)]);
    }
}

#[tokio::test(start_paused = true)]
async fn equal_labels_share_a_series_and_handles_work_from_threads() {
    let meters = Meters::new("ztunnel", 10);
    let count = || {
        for _ in 0..100 {
            meters.traffic(&labels("client")).opened();
            meters
                .counter(&CONNECTION_ENDS, ["inbound", "ok"])
                .increment();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(count);
        }
    });
    let [opened] = lines(&meters, "istio_tcp_connections_opened_total")
        .try_into()
        .unwrap();
    assert!(opened.ends_with("} 400"), "{opened}");
    let ends = lines(&meters, "ambit_connection_ends_total");
    assert_eq!(
        ends,
        [r#"ambit_connection_ends_total{direction="inbound",reason="ok"} 400"#]
    );
}

#[tokio::test(start_paused = true)]
async fn over_the_limit_labels_are_unknown_and_a_counter_says_so() {
    let meters = Meters::new("ztunnel", 2);
    let held: Vec<_> = ["a", "b", "c", "d"]
        .map(|name| meters.traffic(&labels(name)))
        .into();
    for traffic in &held {
        traffic.opened();
    }
    let opened = lines(&meters, "istio_tcp_connections_opened_total");
    assert_eq!(opened.len(), 3);
    let unknown = opened
        .iter()
        .find(|line| line.contains(r#"source_workload="unknown""#));
    assert!(unknown.unwrap().ends_with("} 2"), "{opened:#?}");
    assert!(unknown.unwrap().contains(r#"reporter="source""#));
    assert_eq!(
        lines(&meters, "ambit_metric_series_limited_total"),
        ["ambit_metric_series_limited_total 2"]
    );
    // One that is known keeps its series.
    meters.traffic(&labels("a")).opened();
    let opened = lines(&meters, "istio_tcp_connections_opened_total");
    assert!(
        opened
            .iter()
            .any(|line| line.contains(r#"source_workload="a""#) && line.ends_with("} 2"))
    );
}

#[tokio::test(start_paused = true)]
async fn idle_series_go_when_no_flow_holds_them() {
    let meters = Meters::new("ztunnel", 10);
    let held = meters.traffic(&labels("held"));
    held.opened();
    meters.traffic(&labels("idle")).opened();
    let count = || lines(&meters, "istio_tcp_connections_opened_total").len();
    assert_eq!(count(), 2);
    advance(HOUR / 10).await;
    // Between two looks it was used, so it was not idle all the time.
    meters.traffic(&labels("idle")).opened();
    advance(HOUR / 10).await;
    assert_eq!(count(), 2);
    advance(HOUR).await;
    let left = lines(&meters, "istio_tcp_connections_opened_total");
    assert_eq!(left.len(), 1);
    assert!(left[0].contains(r#"source_workload="held""#));
}

#[tokio::test(start_paused = true)]
async fn a_full_registry_makes_room_by_itself() {
    let meters = Meters::new("ztunnel", 1);
    meters.traffic(&labels("old")).opened();
    // The first look finds it unused, the next one finds it idle for long enough.
    meters.traffic(&labels("refused")).opened();
    advance(HOUR).await;
    meters.traffic(&labels("new")).opened();
    let opened = lines(&meters, "istio_tcp_connections_opened_total");
    assert!(
        opened
            .iter()
            .any(|line| line.contains(r#"source_workload="new""#)),
        "{opened:#?}"
    );
    assert!(
        !opened
            .iter()
            .any(|line| line.contains(r#"source_workload="old""#)),
        "{opened:#?}"
    );
}

#[test]
fn a_family_is_bounded_too() {
    let meters = Meters::new("ztunnel", 1);
    for number in 0..FAMILY_LIMIT + 5 {
        meters
            .counter(&XDS_MESSAGES, [&format!("type-{number}")])
            .increment();
    }
    let found = lines(&meters, XDS_MESSAGES.about.name);
    assert_eq!(found.len(), FAMILY_LIMIT + 1);
    assert!(found.contains(&r#"istio_xds_message_total{url="unknown"} 5"#.to_owned()));
}

#[test]
fn gauges_fall_when_their_holds_are_dropped() {
    let meters = Meters::new("ztunnel", 1);
    let gauge = meters.gauge(&TUNNELS_OPEN, ["outbound"]);
    let (one, two) = (gauge.hold(), gauge.hold());
    assert_eq!(gauge.value(), 2);
    drop(one);
    assert_eq!(gauge.value(), 1);
    drop(two);
    assert_eq!(
        lines(&meters, "ambit_tunnels_open"),
        [r#"ambit_tunnels_open{direction="outbound"} 0"#]
    );
}

#[test]
fn label_values_are_escaped() {
    let meters = Meters::new("ztunnel", 1);
    meters.counter(&XDS_MESSAGES, ["a\"b\\c\nd"]).increment();
    assert_eq!(
        lines(&meters, "istio_xds_message_total"),
        [r#"istio_xds_message_total{url="a\"b\\c\nd"} 1"#]
    );
}

#[test]
fn build_process_and_limits_are_always_there() {
    let meters = Meters::new("ztunnel", 1);
    let version = telemetry::VERSION;
    assert_eq!(
        lines(&meters, "istio_build"),
        [format!(
            r#"istio_build{{component="ztunnel",tag="{version}"}} 1"#
        )]
    );
    let figure = |name: &str| -> u64 {
        let [line] = lines(&meters, name).try_into().unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(figure("process_open_fds") >= 3);
    assert!(figure("process_max_fds") >= figure("process_open_fds"));
    assert!(figure("process_resident_memory_bytes") > 100_000);
    assert_eq!(figure("ambit_metric_series_limited_total"), 0);
}

#[test]
fn the_text_says_of_each_metric_once_what_it_is() {
    let meters = Meters::new("ztunnel", 1);
    meters.traffic(&labels("a")).opened();
    let text = meters.render();
    let mut seen = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# TYPE ") {
            let (name, kind) = about.split_once(' ').unwrap();
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            assert!(seen.insert(name.to_owned()), "{name} twice");
            current = name.to_owned();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            assert_eq!(name, current, "{line} stands under another metric");
        }
    }
}

#[test]
fn names_are_unique_and_end_in_their_unit() {
    let mut names = BTreeSet::new();
    for about in table::all() {
        assert!(names.insert(about.name), "{} is there twice", about.name);
        let counts = about.kind == Kind::Counter;
        assert_eq!(about.name.ends_with("_total"), counts, "{}", about.name);
        assert!(about.help.ends_with('.'), "{}", about.name);
    }
}

#[test]
fn every_failing_flag_of_a_reason_is_counted() {
    let meters = Meters::new("ztunnel", 10);
    let traffic = meters.traffic(&labels("a"));
    let mut expected = BTreeSet::new();
    for reason in Reason::ALL {
        traffic.failed(reason.response_flags());
        expected.insert(reason.response_flags());
    }
    expected.remove("-");
    assert_eq!(
        lines(&meters, "istio_tcp_connections_failed_total").len(),
        expected.len()
    );
}

#[test]
fn the_document_lists_every_metric() {
    let document = super::table();
    for about in table::all() {
        assert!(
            document.contains(&format!("| `{}` |", about.name)),
            "{}",
            about.name
        );
    }
    assert!(
        document.contains("| `istio_tcp_sent_bytes_total` | counter | traffic labels | ztunnel |")
    );
    assert!(document.contains("`source_principal`"));
}
