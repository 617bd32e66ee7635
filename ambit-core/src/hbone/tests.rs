//! Tables and properties of CONNECT targets.

use proptest::prelude::*;

use super::*;

#[test]
fn reads_the_three_forms() {
    let cases = [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("10.0.0.1:65535", "10.0.0.1:65535"),
        ("[fd00::1]:8080", "[fd00::1]:8080"),
        ("[FD00:0:0::1]:8080", "[fd00::1]:8080"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        (
            "web.shop.svc.cluster.local:80",
            "web.shop.svc.cluster.local:80",
        ),
        ("Web.Shop.:1", "web.shop:1"),
        ("_http.1a:443", "_http.1a:443"),
        ("xn--mnchen-3ya.example:443", "xn--mnchen-3ya.example:443"),
    ];
    for (text, printed) in cases {
        assert_eq!(
            ConnectTarget::parse(text).map(|t| t.to_string()),
            Ok(printed.to_owned()),
            "{text}"
        );
    }
}

#[test]
fn refuses_everything_else() {
    use TargetError::{Host, Port, TooLong};
    let cases = [
        ("", Port),
        ("web", Port),
        ("10.0.0.1", Port),
        ("10.0.0.1:", Port),
        ("10.0.0.1:0", Port),
        ("10.0.0.1:080", Port),
        ("10.0.0.1:+80", Port),
        ("10.0.0.1:-1", Port),
        ("10.0.0.1:65536", Port),
        ("10.0.0.1:99999999999999999999", Port),
        ("10.0.0.1:80 ", Port),
        ("10.0.0.1:80/", Port),
        ("10.0.0.1:８０", Port),
        ("[fd00::1]", Port),
        (":80", Host),
        (" 10.0.0.1:80", Host),
        ("fd00::1:80", Host),
        ("[10.0.0.1]:80", Host),
        ("[fe80::1%eth0]:80", Host),
        ("[fd00::1:80", Host),
        ("fd00::1]:80", Host),
        ("[]:80", Host),
        ("[[fd00::1]]:80", Host),
        ("user@10.0.0.1:80", Host),
        ("user:secret@web:80", Host),
        ("http://web:80", Host),
        ("we b:80", Host),
        ("web\r\n:80", Host),
        ("web\0:80", Host),
        ("wéb:80", Host),
        ("*.shop:80", Host),
        (".:80", Host),
        ("..:80", Host),
        ("web..shop:80", Host),
        (".web:80", Host),
        ("-web:80", Host),
        ("web-:80", Host),
        ("10.0.0.256:80", Host),
        ("10.0.0:80", Host),
        ("010.0.0.1:80", Host),
        ("10.0.0.1.:80", Host),
        ("2130706433:80", Host),
    ];
    for (text, error) in cases {
        assert_eq!(ConnectTarget::parse(text), Err(error), "{text:?}");
    }
    let label = "a".repeat(64);
    assert_eq!(ConnectTarget::parse(&format!("{label}:80")), Err(Host));
    let name = ["a"; 127].join(".");
    assert!(ConnectTarget::parse(&format!("{name}:65535")).is_ok());
    assert_eq!(ConnectTarget::parse(&format!("{name}bb:1")), Err(Host));
    assert_eq!(
        ConnectTarget::parse(&format!("{name}bb:65535")),
        Err(TooLong)
    );
}

#[test]
fn a_zone_is_never_printed() {
    let zoned = SocketAddr::V6(std::net::SocketAddrV6::new(
        "fe80::1".parse().unwrap(),
        80,
        0,
        3,
    ));
    assert_eq!(ConnectTarget::Address(zoned).to_string(), "[fe80::1]:80");
}

proptest! {
    #[test]
    fn prints_what_it_reads_for_addresses(ip: IpAddr, port in 1..=u16::MAX) {
        let target = ConnectTarget::Address(SocketAddr::new(ip.to_canonical(), port));
        prop_assert_eq!(ConnectTarget::parse(&target.to_string()), Ok(target));
    }

    #[test]
    fn prints_what_it_reads_for_names(host in "[a-z][a-z0-9]{0,9}(\\.[a-z][a-z0-9-]{0,9}[a-z]){0,4}", port in 1..=u16::MAX) {
        let target = ConnectTarget::Hostname(Hostname::new(&host), port);
        prop_assert_eq!(ConnectTarget::parse(&target.to_string()), Ok(target));
    }

    /// Text near the grammar, so that a good part of it is accepted.
    #[test]
    fn what_is_accepted_prints_to_itself(text in "[\\[a-c0-2.:\\]_-]{0,12}:[0-9]{0,6}") {
        if let Ok(target) = ConnectTarget::parse(&text) {
            prop_assert_eq!(ConnectTarget::parse(&target.to_string()), Ok(target));
        }
    }

    #[test]
    fn never_panics(text in ".{0,300}") {
        ConnectTarget::parse(&text).ok();
    }
}
