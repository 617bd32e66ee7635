//! Claims about settings: which value counts, which mistakes are named, and what the table shows.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn reader(variables: &[(&str, &str)]) -> EnvReader {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    EnvReader::new(variables.iter().map(owned))
}

fn mistakes(env: &EnvReader) -> Vec<String> {
    let error = env.finish().unwrap_err();
    error.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn our_name_counts_before_the_alias_and_both_before_the_default() {
    let read = |variables: &[(&str, &str)]| {
        let mut env = reader(variables);
        let value = env
            .setting("AMBIT_NODE_NAME", "Node.")
            .or("NODE_NAME")
            .text("none");
        env.finish().unwrap();
        value
    };
    assert_eq!(read(&[("AMBIT_NODE_NAME", "a"), ("NODE_NAME", "b")]), "a");
    assert_eq!(read(&[("NODE_NAME", "b")]), "b");
    assert_eq!(read(&[("AMBIT_NODE_NAME", ""), ("NODE_NAME", "b")]), "b");
    assert_eq!(read(&[]), "none");
}

#[test]
fn every_type_reads_its_notation() {
    let mut env = reader(&[
        ("AMBIT_FLAG", "false"),
        ("AMBIT_NUMBER", "7"),
        ("AMBIT_TIME", "3s"),
        ("AMBIT_PATH", "/run/x"),
        ("AMBIT_ADDR", "[::1]:80"),
        ("AMBIT_LIST", "a, b,,c"),
        ("AMBIT_OWN", "50%"),
    ]);
    let percent = |text: &str| text.strip_suffix('%')?.parse::<u8>().ok();
    assert!(!env.setting("AMBIT_FLAG", "").flag(true));
    assert_eq!(
        env.setting("AMBIT_NUMBER", "").number("threads", 1, 0..=64),
        7
    );
    assert_eq!(
        env.setting("AMBIT_TIME", "")
            .duration(SECOND, SECOND..=10 * SECOND),
        3 * SECOND
    );
    assert_eq!(
        env.setting("AMBIT_PATH", "").optional_path(),
        Some("/run/x".into())
    );
    let addr = env
        .setting("AMBIT_ADDR", "")
        .socket_addr("0.0.0.0:1".parse().unwrap());
    assert_eq!(addr, "[::1]:80".parse().unwrap());
    assert_eq!(env.setting("AMBIT_LIST", "").list(), ["a", "b", "c"]);
    assert_eq!(
        env.setting("AMBIT_OWN", "")
            .parsed("percent", "10%", percent),
        Some(50)
    );
    assert_eq!(
        env.setting("AMBIT_OTHER", "")
            .parsed("percent", "10%", percent),
        Some(10)
    );
    assert_eq!(env.setting("AMBIT_ABSENT", "").optional_text(), None);
    env.finish().unwrap();
}

#[test]
fn all_mistakes_are_named_at_once() {
    let mut env = reader(&[
        ("AMBIT_WORKERS", "many"),
        ("KEEPALIVE_TIME", "5 parsecs"),
        ("AMBIT_LIMIT", "70"),
        ("AMBIT_WORKRES", "2"),
    ]);
    assert_eq!(
        env.setting("AMBIT_WORKERS", "Threads.")
            .number("threads", 2, 1..=64),
        2
    );
    let keepalive = env
        .setting("AMBIT_KEEPALIVE", "Keepalive.")
        .or("KEEPALIVE_TIME");
    assert_eq!(keepalive.duration(SECOND, SECOND..=9 * SECOND), SECOND);
    assert_eq!(
        env.setting("AMBIT_LIMIT", "Limit.")
            .number("bytes", 1, 0..=64),
        1
    );
    assert_eq!(
        env.setting("AMBIT_NODE_NAME", "The node's name.")
            .required_text(),
        ""
    );
    assert_eq!(
        mistakes(&env),
        [
            "AMBIT_WORKERS=many cannot be read; expected threads, 1 to 64",
            "KEEPALIVE_TIME=5 parsecs cannot be read; expected time such as `250ms`, `5s` or `1h30m`, 1s to 9s",
            "AMBIT_LIMIT=70 cannot be read; expected bytes, 0 to 64",
            "AMBIT_NODE_NAME is not set: The node's name.",
            "AMBIT_WORKRES is not a setting of this program; is AMBIT_WORKERS meant?",
        ]
    );
}

#[test]
fn unknown_names_of_ours_are_mistakes_except_what_kubernetes_injects() {
    let env = reader(&[
        ("AMBIT_CONTROLLER_SERVICE_HOST", "10.0.0.1"),
        ("AMBIT_CONTROLLER_SERVICE_PORT_GRPC", "15012"),
        ("AMBIT_CONTROLLER_PORT", "tcp://10.0.0.1:15012"),
        ("AMBIT_CONTROLLER_PORT_15012_TCP_ADDR", "10.0.0.1"),
        ("ISTIO_META_SOMETHING", "x"),
        ("PATH", "/bin"),
    ]);
    env.finish().unwrap();
    let env = reader(&[("AMBIT_ZZZ", "1")]);
    assert_eq!(
        mistakes(&env),
        ["AMBIT_ZZZ is not a setting of this program; docs/config.md lists all"]
    );
}

#[test]
fn settings_that_are_not_in_force_are_known_and_leave_a_notice() {
    let mut env = reader(&[("ISTIO_META_DNS_CAPTURE", "true")]);
    env.setting("ISTIO_META_DNS_CAPTURE", "DNS capture comes later.")
        .not_in_force();
    env.finish().unwrap();
    assert_eq!(
        env.notices(),
        ["ISTIO_META_DNS_CAPTURE=true is not in force: DNS capture comes later."]
    );
}

#[test]
fn the_table_shows_each_setting_once_in_the_order_of_asking() {
    let mut env = reader(&[]);
    for _ in 0..2 {
        env.setting("AMBIT_LOG_FORMAT", "Form of log lines.")
            .or("LOG_FORMAT")
            .parsed("`text` or `json`", "text", any);
    }
    env.setting("AMBIT_NODE_NAME", "a|b").required_text();
    env.setting("AMBIT_DRAIN", "Drain.")
        .duration(5 * SECOND, SECOND..=60 * SECOND);
    assert_eq!(
        env.table(),
        "| variable | also read | default | value | meaning |\n\
         |---|---|---|---|---|\n\
         | `AMBIT_LOG_FORMAT` | `LOG_FORMAT` | `text` | `text` or `json` | Form of log lines. |\n\
         | `AMBIT_NODE_NAME` |  | required | text | a\\|b |\n\
         | `AMBIT_DRAIN` |  | `5s` | time such as `250ms`, `5s` or `1h30m`, 1s to 1m | Drain. |\n"
    );
}
