//! What runtimes send, right and wrong.

use proptest::prelude::*;

use super::*;

const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=a-0;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=u-1";

fn env(command: &str, changed: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "0a1b"),
        ("CNI_NETNS", "/var/run/netns/cni-1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", ARGS),
        ("CNI_PATH", "/opt/cni/bin"),
    ]);
    env.extend(changed.iter().copied());
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    env.into_iter().map(owned).collect()
}

fn conf(version: &str) -> String {
    format!(r#"{{"cniVersion":"{version}","name":"net","type":"ambit-cni","prevResult":{{}}}}"#)
}

fn refused(command: &str, changed: &[(&str, &str)], stdin: &[u8]) -> Failure {
    Invocation::read(&env(command, changed), stdin).expect_err("a refusal")
}

#[test]
fn names_the_pod_and_its_sandbox() {
    let read = Invocation::read(&env("ADD", &[]), conf("1.0.0").as_bytes());
    let Ok(Invocation::Add(_, attachment)) = read else {
        panic!("{read:?}");
    };
    let expected = Attachment {
        container_id: "0a1b".into(),
        netns: Some("/var/run/netns/cni-1".into()),
        ifname: "eth0".into(),
        pod: Some(Pod {
            namespace: "web".into(),
            name: "a-0".into(),
            uid: Some("u-1".into()),
        }),
    };
    assert_eq!(attachment, expected);
}

#[test]
fn a_command_exists_from_its_version_on() {
    let table = [
        ("ADD", "0.3.0"),
        ("DEL", "0.3.0"),
        ("CHECK", "0.4.0"),
        ("GC", "1.1.0"),
        ("STATUS", "1.1.0"),
    ];
    for (command, since) in table {
        for version in VERSIONS {
            let read = Invocation::read(&env(command, &[]), conf(version).as_bytes());
            let level = |wanted| VERSIONS.iter().position(|known| *known == wanted);
            assert_eq!(
                read.is_ok(),
                level(version) >= level(since),
                "{command} in {version}"
            );
            if let Err(failure) = read {
                assert_eq!(failure.code, 1, "{command} in {version}");
            }
        }
    }
}

#[test]
fn refuses_versions_that_it_does_not_speak_and_says_which_it_does() {
    for version in ["", "0.1.0", "0.2.0", "1.2.0", "2.0.0", "1.1", "newest"] {
        let failure = refused("ADD", &[], conf(version).as_bytes());
        assert_eq!(failure.code, 1, "{version}");
        assert!(
            failure.details.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            "{failure}"
        );
    }
    let failure = refused("ADD", &[], br#"{"name":"net"}"#);
    assert_eq!(failure.code, 1);
    assert!(failure.details.contains("no cniVersion"), "{failure}");
}

#[test]
fn refuses_input_that_is_no_configuration() {
    let table: [(&[u8], u32); 9] = [
        (b"", 6),
        (b"{", 6),
        (b"not json", 6),
        (b"{\"name\":\"\xff\"}", 6),
        (b"{} {}", 6),
        (b"[]", 7),
        (br#"{"cniVersion":1,"name":"net"}"#, 7),
        (br#"{"cniVersion":"1.0.0","name":"a/b"}"#, 7),
        (
            br#"{"cniVersion":"1.0.0","name":"net","excludeNamespaces":"kube-system"}"#,
            7,
        ),
    ];
    for (input, code) in table {
        let failure = refused("ADD", &[], input);
        let shown = String::from_utf8_lossy(input);
        assert_eq!(failure.code, code, "{shown}: {failure}");
        assert!(!failure.details.is_empty(), "{shown}");
    }
}

#[test]
fn names_every_variable_that_is_wrong() {
    let all = [
        ("CNI_CONTAINERID", "../x"),
        ("CNI_NETNS", ""),
        ("CNI_IFNAME", "a/b"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE"),
    ];
    let failure = refused("ADD", &all, conf("1.0.0").as_bytes());
    assert_eq!(failure.code, 4);
    assert_eq!(
        failure.msg,
        "missing or invalid: CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS, CNI_ARGS"
    );
    let table = [
        ("CNI_COMMAND", ""),
        ("CNI_COMMAND", "add"),
        ("CNI_COMMAND", "REMOVE"),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "-a"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "sixteen-letters-"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_NETNS", ""),
        ("CNI_ARGS", "K8S_POD_NAME=a-0"),
    ];
    for (name, value) in table {
        let failure = refused("ADD", &[(name, value)], conf("1.0.0").as_bytes());
        assert_eq!(failure.code, 4, "{name}={value}");
        assert!(failure.msg.contains(name), "{name}={value}: {failure}");
    }
}

#[test]
fn a_sandbox_ends_without_its_namespace() {
    let read = Invocation::read(&env("DEL", &[("CNI_NETNS", "")]), conf("1.0.0").as_bytes());
    assert!(matches!(
        read,
        Ok(Invocation::Del(_, Attachment { netns: None, .. }))
    ));
}

#[test]
fn the_question_for_versions_needs_nothing_else() {
    let env = BTreeMap::from([("CNI_COMMAND".to_owned(), "VERSION".to_owned())]);
    let table: [(&[u8], &str); 4] = [
        (br#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (br#"{"cniVersion":"9.9.9"}"#, "9.9.9"),
        (b"", "1.1.0"),
        (b"{}", "1.1.0"),
    ];
    for (input, expected) in table {
        let read = Invocation::read(&env, input);
        assert!(
            matches!(&read, Ok(Invocation::Version(v)) if v == expected),
            "{read:?}"
        );
    }
    assert_eq!(Invocation::read(&env, b"{").unwrap_err().code, 6);
}

fn addresses(result: &str) -> Result<Vec<String>, u32> {
    let conf = format!(r#"{{"cniVersion":"1.0.0","name":"net","prevResult":{result}}}"#);
    let found = NetConf::read(conf.as_bytes()).unwrap().addresses();
    let shown = found.map(|all| all.iter().map(ToString::to_string).collect());
    shown.map_err(|failure| failure.code)
}

#[test]
fn the_addresses_are_those_inside_the_sandbox() {
    let table: [(&str, &[&str]); 5] = [
        (
            r#"{"interfaces":[{"name":"br"},{"name":"veth","sandbox":""},{"name":"eth0","sandbox":"/n"}],
                "ips":[{"address":"10.1.0.1/16","interface":0},{"address":"10.1.0.5/16","interface":2},
                       {"version":"6","address":"fd00::5/64","interface":2},{"address":"10.9.0.1/32","interface":1}]}"#,
            &["10.1.0.5", "fd00::5"],
        ),
        (r#"{"ips":[{"address":"10.1.0.5/16"}]}"#, &["10.1.0.5"]),
        (
            r#"{"ips":[{"address":"10.1.0.5/16","interface":7}]}"#,
            &["10.1.0.5"],
        ),
        (r#"{"ips":null,"interfaces":null}"#, &[]),
        ("{}", &[]),
    ];
    for (result, expected) in table {
        assert_eq!(addresses(result).unwrap(), expected, "{result}");
    }
    for result in [r#"{"ips":[{"address":"ten"}]}"#, r#"{"ips":{}}"#, "[]", "7"] {
        assert_eq!(addresses(result), Err(7), "{result}");
    }
}

proptest! {
    #[test]
    fn no_input_is_too_odd_to_be_refused(
        command in "ADD|DEL|CHECK|GC|STATUS|VERSION|[a-zA-Z]{0,6}",
        args in "(K8S_POD_NAME=?|K8S_POD_NAMESPACE=|;|[a-z=;]{0,8}){0,4}",
        stdin in "(\\{|\\}|\"cniVersion\":\"1.0.0\"|\"name\":\"n\"|,|\"prevResult\":|[\\[\\]0-9]|[ -~]){0,12}",
    ) {
        let env = env(&command, &[("CNI_ARGS", args.as_str())]);
        if let Err(failure) = Invocation::read(&env, stdin.as_bytes()) {
            prop_assert!(failure.code > 0 && !failure.msg.is_empty());
        }
    }
}
