//! Claims about ztunnel's settings.

use super::controller::CONTROLLER;
use super::*;

fn read(pairs: &[(&str, &str)]) -> Result<Config, EnvError> {
    let node = ("NODE_NAME".to_owned(), "node-1".to_owned());
    let given = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::read(&mut EnvReader::new(given.chain([node])))
}

#[test]
fn one_name_is_enough() {
    let config = read(&[]).unwrap();
    assert_eq!(&*config.place.node, "node-1");
    assert_eq!(&*config.place.trust_domain, "cluster.local");
    assert_eq!(config.place.cluster.as_str(), "Kubernetes");
    assert_eq!(config.xds.address, CONTROLLER);
    assert_eq!(config.ca.address, CONTROLLER);
    assert_eq!(
        config.handoff_socket,
        PathBuf::from("/var/run/ztunnel/ztunnel.sock")
    );
    assert_eq!(config.endpoints.admin.to_string(), "127.0.0.1:15000");
    assert_eq!(config.endpoints.metrics.to_string(), "[::]:15020");
    assert_eq!(config.endpoints.readiness.to_string(), "[::]:15021");
    assert_eq!(config.limits.termination, Duration::from_secs(5));
    assert!(config.workers >= 1 && config.ipv6 && config.notices.is_empty());
}

#[test]
fn the_node_has_to_be_named() {
    let error = Config::read(&mut EnvReader::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("AMBIT_NODE_NAME"), "{error}");
}

#[test]
fn names_of_istio_are_read() {
    let config = read(&[
        ("XDS_ADDRESS", "https://172.31.0.2:15012"),
        ("CA_ADDRESS", "https://172.31.0.3:15012"),
        ("XDS_ROOT_CA", "/r/root.pem"),
        ("AUTH_TOKEN", "/r/token"),
        ("INPOD_UDS", "/r/sock"),
        ("ISTIO_META_CLUSTER_ID", "east"),
        ("NETWORK", "n1"),
        ("TRUST_DOMAIN", "example.org"),
        ("ZTUNNEL_WORKER_THREADS", "3"),
        ("IPV6_ENABLED", "false"),
    ])
    .unwrap();
    assert_eq!(config.xds.address, "https://172.31.0.2:15012");
    assert_eq!(config.ca.address, "https://172.31.0.3:15012");
    assert_eq!(config.ca.root_file, PathBuf::from("/r/root.pem"));
    assert_eq!(config.xds.token_file, PathBuf::from("/r/token"));
    assert_eq!(config.handoff_socket, PathBuf::from("/r/sock"));
    assert_eq!(config.place.cluster.as_str(), "east");
    assert_eq!(config.place.network.as_str(), "n1");
    assert_eq!(&*config.place.trust_domain, "example.org");
    assert_eq!(config.workers, 3);
    assert!(!config.ipv6);
}

#[test]
fn our_name_wins_over_istios() {
    let config = read(&[("AMBIT_NODE_NAME", "ours")]).unwrap();
    assert_eq!(&*config.place.node, "ours");
}

#[test]
fn unknown_ambit_names_are_refused_and_those_of_services_are_not() {
    let error = read(&[("AMBIT_WORKER_THREAD", "2"), ("AMBIT_IPV6", "maybe")]).unwrap_err();
    assert_eq!(error.mistakes.len(), 2, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("AMBIT_WORKER_THREADS") && text.contains("maybe"),
        "{text}"
    );
    for injected in [
        "AMBIT_CONTROLLER_SERVICE_HOST",
        "AMBIT_CONTROLLER_PORT_15012_TCP",
    ] {
        assert!(read(&[(injected, "10.0.0.1")]).is_ok(), "{injected}");
    }
}

#[test]
fn dns_capture_is_accepted_and_reported() {
    let config = read(&[("ISTIO_META_DNS_CAPTURE", "true")]).unwrap();
    let [notice] = config.notices.as_slice() else {
        panic!("{:?}", config.notices);
    };
    assert!(notice.contains("ISTIO_META_DNS_CAPTURE") && notice.contains("not in force"));
}

#[test]
fn termination_follows_the_grace_period_unless_it_is_given() {
    let grace = "TERMINATION_GRACE_PERIOD_SECONDS";
    let deadline = "CONNECTION_TERMINATION_DEADLINE";
    for (pairs, seconds) in [
        (vec![], 5),
        (vec![(grace, "30")], 25),
        (vec![(grace, "11")], 6),
        (vec![(grace, "10")], 9),
        (vec![(grace, "1")], 1),
        (vec![(grace, "30"), (deadline, "7s")], 7),
        (
            vec![("AMBIT_TERMINATION_DEADLINE", "2s"), (deadline, "7s")],
            2,
        ),
    ] {
        let limits = read(&pairs).unwrap().limits;
        assert_eq!(
            limits.termination,
            Duration::from_secs(seconds),
            "{pairs:?}"
        );
    }
}

#[test]
fn worker_threads_are_a_number_or_a_share() {
    for (text, threads) in [
        ("0", Some(8)),
        ("1", Some(1)),
        ("25%", Some(2)),
        ("1%", Some(1)),
        ("100%", Some(8)),
        ("0%", None),
        ("101%", None),
        ("2000", None),
        ("-1", None),
        ("two", None),
    ] {
        assert_eq!(worker_threads(text, 8), threads, "{text}");
    }
}

#[test]
fn bounds_are_shared_out_between_workers() {
    let config = read(&[
        ("AMBIT_WORKER_THREADS", "3"),
        ("AMBIT_POD_CONNECTIONS", "10"),
    ])
    .unwrap();
    assert_eq!(config.limits.connections, 4);
}
