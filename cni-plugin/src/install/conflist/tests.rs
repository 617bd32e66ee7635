//! Tables: what goes in, what comes out, byte for byte.

use proptest::prelude::*;

use super::*;

const OBJECT: &str = r#"{"type":"ambit-cni","socket":"/s"}"#;
const LIST: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "net",  "unknown": {"b": 1.50, "a": [1,  2]},
  "plugins": [
    { "type": "bridge", "ipam": {"type": "host-local"} },
	{ "type": "portmap" }
  ]
}
"#;

#[test]
fn taking_out_what_was_put_in_gives_the_same_bytes() {
    let with = with_ours(LIST, OBJECT).unwrap();
    assert!(with.contains(OBJECT));
    assert_eq!(
        chain(&with).unwrap().plugins,
        ["bridge", "portmap", "ambit-cni"]
    );
    assert!(chain(&with).unwrap().ends_with_ours());
    assert_eq!(without_ours(&with).unwrap(), LIST);
    assert_eq!(without_ours(LIST).unwrap(), LIST);
}

#[test]
fn what_others_change_beside_our_plugin_stays_when_it_is_taken_out() {
    let with = with_ours(LIST, OBJECT).unwrap();
    let changed = with.replace("\"bridge\"", "\"ptp\"");
    assert_eq!(
        without_ours(&changed).unwrap(),
        LIST.replace("\"bridge\"", "\"ptp\"")
    );
}

#[test]
fn a_list_that_is_right_is_left_as_it_is() {
    let with = with_ours(LIST, OBJECT).unwrap();
    assert_eq!(with_ours(&with, OBJECT).unwrap(), with);
}

#[test]
fn our_plugin_comes_last_once_and_as_it_is_configured_now() {
    let list =
        |plugins: &str| format!(r#"{{"cniVersion":"1.1.0","name":"n","plugins":[{plugins}]}}"#);
    let old = r#"{"type":"ambit-cni","socket":"/old"}"#;
    let (a, b) = (r#"{"type":"a"}"#, r#"{"type":"b"}"#);
    let table = [
        (
            "another plugin came after it",
            format!("{a},{OBJECT} , {b}"),
        ),
        ("it comes first", format!("{OBJECT}, {a},{b}")),
        ("it is configured otherwise", format!("{a},{b},{old}")),
        ("it is there twice", format!("{OBJECT},{a},{b},{OBJECT}")),
        (
            "it is there three times",
            format!("{OBJECT},{OBJECT},{a},{old},{b}"),
        ),
    ];
    for (case, plugins) in table {
        let right = with_ours(&list(&plugins), OBJECT).unwrap();
        assert_eq!(
            chain(&right).unwrap().plugins,
            ["a", "b", "ambit-cni"],
            "{case}"
        );
        assert!(right.contains(OBJECT) && !right.contains("/old"), "{case}");
    }
}

#[test]
fn a_single_configuration_becomes_a_list() {
    let conf = "{\"cniVersion\": \"0.3.1\", \"name\": \"net.1\", \"type\": \"bridge\"}\n";
    let list = list_from_conf(conf, OBJECT).unwrap();
    let found = chain(&list).unwrap();
    assert_eq!(found.network, "net.1");
    assert_eq!(found.plugins, ["bridge", "ambit-cni"]);
}

#[test]
fn refuses_what_our_plugin_could_not_stand_in() {
    let version = |text: &str| Err(Unusable::Version(text.to_owned()));
    let table = [
        (r#"{"name":"n","plugins":[{"type":"a"}]}"#, version("0.1.0")),
        (
            r#"{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#,
            version("0.2.0"),
        ),
        (
            r#"{"cniVersion":"1.2.0","plugins":[{"type":"a"}]}"#,
            version("1.2.0"),
        ),
        (
            r#"{"cniVersion":"1.0.0","cniVersions":["1.10.0","1.9.0"],"plugins":[{"type":"a"}]}"#,
            version("1.10.0"),
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#,
            Err(Unusable::NoPlugins),
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"n"}"#,
            Err(Unusable::NoPlugins),
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"a/b","plugins":[{"type":"a"}]}"#,
            Err(Unusable::Name("a/b".to_owned())),
        ),
    ];
    for (text, expected) in table {
        assert_eq!(with_ours(text, OBJECT), expected, "{text}");
    }
    let broken = [
        "",
        "{",
        "[]",
        r#"{"cniVersion":"1.0.0","plugins":{}}"#,
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"name":"no type"}]}"#,
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]} trailing"#,
    ];
    for text in broken {
        let refused = with_ours(text, OBJECT);
        assert!(
            matches!(refused, Err(Unusable::NotAList(_))),
            "{text}: {refused:?}"
        );
    }
}

#[test]
fn sees_the_plugin_of_another_mesh() {
    let list = r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"},{"type":"istio-cni"}]}"#;
    assert_eq!(chain(list).unwrap().other_mesh(), Some("istio-cni"));
    assert_eq!(chain(LIST).unwrap().other_mesh(), None);
}

proptest! {
    #[test]
    fn no_spacing_of_a_list_loses_a_byte(
        gaps in proptest::collection::vec("[ \t\n\r]{0,4}", 8),
        types in proptest::collection::vec("[a-z]{1,8}", 1..5),
    ) {
        let gap = |at: usize| &gaps[at % gaps.len()];
        let plugins: Vec<String> = types
            .iter()
            .enumerate()
            .map(|(at, kind)| format!("{}{{{}\"type\":\"x{kind}\"}}{}", gap(at), gap(at + 1), gap(at + 2)))
            .collect();
        let list = format!(
            "{{{}\"plugins\":[{}]{},\"name\":\"n\",\"cniVersion\":\"0.4.0\"}}",
            gap(3), plugins.join(","), gap(4)
        );
        let with = with_ours(&list, OBJECT).unwrap();
        prop_assert!(chain(&with).unwrap().ends_with_ours());
        prop_assert_eq!(without_ours(&with).unwrap(), list);
    }
}
