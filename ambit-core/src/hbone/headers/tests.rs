//! Tables and properties of the HBONE headers.

use proptest::prelude::*;

use super::*;
use crate::names::WorkloadUid;

fn full() -> Baggage {
    Baggage {
        cluster: "Kubernetes".into(),
        namespace: "shop".into(),
        workload_type: WorkloadType::Deployment,
        workload_name: "web".into(),
        service_name: "web".into(),
        service_version: "v1".into(),
        region: "r1".into(),
        zone: "z1".into(),
    }
}

#[test]
fn baggage_is_printed_as_ztunnel_does() {
    let want = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,\
                service.name=web,service.version=v1,cloud.region=r1,cloud.availability_zone=z1";
    assert_eq!(full().to_string(), want);
    assert_eq!(Baggage::parse(want), full());
    let keys = [
        (WorkloadType::CronJob, "k8s.cronjob.name=web"),
        (WorkloadType::Pod, "k8s.pod.name=web"),
        (WorkloadType::Job, "k8s.job.name=web"),
    ];
    for (workload_type, want) in keys {
        let one = Baggage {
            workload_type,
            workload_name: "web".into(),
            ..Baggage::default()
        };
        assert_eq!(one.to_string(), want);
        assert_eq!(Baggage::parse(want), one);
    }
    assert_eq!(Baggage::default().to_string(), "");
}

#[test]
fn baggage_of_a_workload_says_what_the_workload_says() {
    let mut workload = Workload::named(WorkloadUid::new("u"), "shop", "web-1");
    workload.workload_name = "web".into();
    workload.canonical_name = "store".into();
    workload.locality.zone = "z1".into();
    let want = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=web,\
                service.name=store,service.version=latest,cloud.availability_zone=z1";
    assert_eq!(Baggage::of(&workload).to_string(), want);
}

#[test]
fn baggage_that_would_break_the_header_is_left_out() {
    for bad in ["a b", "a,b", "a;b", "a\"", "a\r\nx: y", "ü", "a\\"] {
        let one = Baggage {
            region: bad.into(),
            zone: "z".into(),
            ..Baggage::default()
        };
        assert_eq!(one.to_string(), "cloud.availability_zone=z", "{bad:?}");
    }
}

#[test]
fn baggage_skips_what_it_does_not_know() {
    let read = Baggage::parse(
        " x=1 , k8s.namespace.name = shop ;p=1,junk,=,k8s.namespace.name=other,service.name=",
    );
    assert_eq!(
        read,
        Baggage {
            namespace: "shop".into(),
            ..Baggage::default()
        }
    );
    let long = format!("k8s.namespace.name=shop,x={}", "y".repeat(MAX_LEN));
    assert_eq!(Baggage::parse(&long), Baggage::default());
}

#[test]
fn forwarded_is_printed_as_ztunnel_does() {
    let cases = [
        (
            Some("10.0.0.1:5"),
            Some("web.shop"),
            "for=\"10.0.0.1:5\";host=web.shop",
        ),
        (Some("[fd00::1]:5"), None, "for=\"[fd00::1]:5\""),
        (None, Some("web.shop"), "host=web.shop"),
        (None, None, ""),
    ];
    for (client, host, want) in cases {
        let value = Forwarded {
            client: client.map(|c| c.parse().unwrap()),
            host: host.map(Hostname::new),
        };
        assert_eq!(value.to_string(), want);
        assert_eq!(Forwarded::parse(want), value, "{want}");
    }
}

#[test]
fn forwarded_takes_what_is_well_formed_in_the_first_element() {
    let cases = [
        (
            "For=\"10.0.0.1:5\"; HOST=\"Web.Shop\" ;proto=http",
            Some("10.0.0.1:5"),
            Some("web.shop"),
        ),
        (
            "for=10.0.0.1:5, for=10.0.0.2:6;host=b",
            Some("10.0.0.1:5"),
            None,
        ),
        ("for=_hidden;host=a", None, Some("a")),
        ("for=10.0.0.1;host=a", None, Some("a")),
        ("host=a b", None, None),
        ("host=\"a\r\n\"", None, None),
        ("host=", None, None),
        ("for", None, None),
        ("", None, None),
    ];
    for (header, client, host) in cases {
        let want = Forwarded {
            client: client.map(|c| c.parse().unwrap()),
            host: host.map(Hostname::new),
        };
        assert_eq!(Forwarded::parse(header), want, "{header:?}");
    }
}

#[test]
fn traceparent_is_version_00_and_not_sampled() {
    let new = Traceparent::new(0xab, 0xcd);
    assert_eq!(
        new.to_string(),
        "00-000000000000000000000000000000ab-00000000000000cd-00"
    );
    assert_eq!(
        new.child(7).to_string(),
        "00-000000000000000000000000000000ab-0000000000000007-00"
    );
    assert_eq!(Traceparent::new(0, 0), Traceparent::new(1, 1));
    assert_eq!(new.child(0), new.child(1));
}

#[test]
fn traceparent_refuses_other_forms() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = "00f067aa0ba902b7";
    let good = format!("00-{trace}-{parent}-01");
    assert_eq!(Traceparent::parse(&good).map(|t| t.to_string()), Some(good));
    assert!(Traceparent::parse(&format!("cc-{trace}-{parent}-01-more")).is_some());
    let zeros = "0".repeat(32);
    let bad = [
        String::new(),
        "00".to_owned(),
        format!("ff-{trace}-{parent}-01"),
        format!("0-{trace}-{parent}-01"),
        format!("00-{trace}-{parent}"),
        format!("00-{trace}-{parent}-1"),
        format!("00-{trace}-{parent}-01-more"),
        format!("00-{zeros}-{parent}-01"),
        format!("00-{trace}-0000000000000000-01"),
        format!("00-{}-{parent}-01", trace.to_uppercase()),
        format!("00-+{}-{parent}-01", &trace[1..]),
    ];
    for header in bad {
        assert_eq!(Traceparent::parse(&header), None, "{header}");
    }
}

proptest! {
    #[test]
    fn baggage_prints_what_it_reads(texts in prop::array::uniform7("[!-+--:<-\\[\\]-~]{0,12}"), kind in 0..4usize) {
        let [cluster, namespace, workload_name, service_name, service_version, region, zone] = texts.map(Text::from);
        let workload_type = if workload_name.is_empty() { WorkloadType::default() } else { WORKLOAD_KEYS[kind].1 };
        let value = Baggage { cluster, namespace, workload_type, workload_name, service_name, service_version, region, zone };
        let printed = value.to_string();
        let good = Baggage::parse(&printed);
        prop_assert_eq!(good.to_string(), printed);
        let clean = |t: &Text| if is_baggage_value(t) { Text::clone(t) } else { Text::from("") };
        prop_assert_eq!(good.zone, clean(&value.zone));
    }

    #[test]
    fn traceparent_prints_what_it_reads(trace: u128, parent: u64) {
        let value = Traceparent::new(trace, parent);
        prop_assert_eq!(Traceparent::parse(&value.to_string()), Some(value));
    }

    #[test]
    fn nothing_panics_and_nothing_foreign_is_passed_on(header in "[ -~\\r\\n]{0,120}") {
        let printed = [Baggage::parse(&header).to_string(), Forwarded::parse(&header).to_string()];
        prop_assert!(printed.iter().all(|p| p.bytes().all(|b| (b' '..=b'~').contains(&b))));
        Traceparent::parse(&header);
    }
}
