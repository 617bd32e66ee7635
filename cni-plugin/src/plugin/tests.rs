//! Each command against an agent that the test plays, and against none.

use std::io::{self, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::socket::Answer;

/// A result with spacing, order and numbers that a printer would change.
const RESULT: &str = "{ \"cniVersion\" : \"1.0.0\",\n\t\"ips\": [ {\"address\":\"10.1.0.5/16\"} ],\"x\":1.50, \"a\":\"\\u0041\" }";

fn env(command: &str, namespace: &str) -> BTreeMap<String, String> {
    let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=a-0");
    let env = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "0a1b"),
        ("CNI_NETNS", "/n"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", &args),
    ];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    env.into_iter().map(owned).collect()
}

fn conf(socket: &Path) -> String {
    format!(
        r#"{{"cniVersion":"1.1.0","name":"net","socket":"{}","excludeNamespaces":["quiet"],"prevResult":{RESULT}}}"#,
        socket.display()
    )
}

/// A directory for the sockets of one test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ambit-plugin-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("cni.sock")
    }

    /// An agent that answers once; what it was asked can be had from the receiver.
    fn agent(&self, answer: &'static [u8]) -> mpsc::Receiver<Request> {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (sender, asked) = mpsc::channel();
        thread::spawn(move || {
            let (mut plugin, _) = listener.accept().unwrap();
            let mut words = Vec::new();
            plugin.read_to_end(&mut words).unwrap();
            // Not every test wants to know.
            drop(sender.send(serde_json::from_slice(&words).unwrap()));
            plugin.write_all(answer).unwrap();
        });
        asked
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn yes() -> &'static [u8] {
    let yes: Answer = Ok(());
    serde_json::to_vec(&yes).unwrap().leak()
}

fn error(output: &Output) -> (u64, String) {
    assert!(!output.success, "{output:?}");
    let error: serde_json::Value = serde_json::from_str(&output.text).unwrap();
    assert_eq!(error["cniVersion"], "1.1.0");
    let text = format!(
        "{}; {}",
        error["msg"].as_str().unwrap(),
        error["details"].as_str().unwrap()
    );
    (error["code"].as_u64().unwrap(), text)
}

#[test]
fn the_result_of_the_plugins_before_passes_byte_for_byte() {
    let place = Place::new("bytes");
    let asked = place.agent(yes());
    let output = run(&env("ADD", "web"), conf(&place.socket()).as_bytes());
    assert!(output.success, "{output:?}");
    assert_eq!(output.text, RESULT);
    let request = asked.recv().unwrap();
    assert_eq!(request.command, Command::Add);
    assert_eq!(
        (&*request.pod_namespace, &*request.pod_name),
        ("web", "a-0")
    );
    assert_eq!(
        request.addresses,
        ["10.1.0.5".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(request.netns.unwrap(), Path::new("/n"));
}

#[test]
fn pods_that_the_mesh_needs_pass_without_an_agent() {
    let place = Place::new("excluded");
    for namespace in ["kube-system", "ambit-system", "quiet"] {
        for (command, expected) in [("ADD", RESULT), ("CHECK", ""), ("DEL", "")] {
            let output = run(&env(command, namespace), conf(&place.socket()).as_bytes());
            assert!(output.success, "{command} in {namespace}: {output:?}");
            assert_eq!(output.text, expected, "{command} in {namespace}");
        }
    }
}

#[test]
fn a_pod_does_not_start_while_nobody_can_say_whether_it_is_in_the_mesh() {
    let place = Place::new("away");
    let output = run(&env("ADD", "web"), conf(&place.socket()).as_bytes());
    let (code, text) = error(&output);
    assert_eq!(code, 11);
    for part in ["web/a-0", "cni.sock", "cannot be reached", "ambit-system"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(
        !output.text.contains("10.1.0.5"),
        "no result goes with an error"
    );
}

#[test]
fn what_the_agent_refuses_is_said_in_its_words() {
    let place = Place::new("refused");
    place.agent(br#"{"Err":{"code":100,"msg":"no","details":"because"}}"#);
    let output = run(&env("ADD", "web"), conf(&place.socket()).as_bytes());
    assert_eq!(error(&output), (100, "no; because".to_owned()));
}

#[test]
fn half_an_answer_is_none() {
    for (name, answer) in [
        ("empty", &b""[..]),
        ("half", b"{\"Ok\""),
        ("other", b"\"fine\""),
    ] {
        let place = Place::new(name);
        place.agent(answer);
        let output = run(&env("ADD", "web"), conf(&place.socket()).as_bytes());
        assert_eq!(error(&output).0, 11, "{name}");
    }
}

#[test]
fn a_sandbox_ends_without_the_agent_and_however_often() {
    let place = Place::new("del");
    for _ in 0..2 {
        let output = run(&env("DEL", "web"), conf(&place.socket()).as_bytes());
        assert!(output.success && output.text.is_empty(), "{output:?}");
    }
    let nameless = BTreeMap::from_iter(
        env("DEL", "web")
            .into_iter()
            .filter(|(k, _)| k != "CNI_ARGS"),
    );
    assert!(run(&nameless, conf(&place.socket()).as_bytes()).success);
    let bare = br#"{"cniVersion":"0.3.1","name":"net"}"#;
    assert!(
        run(&env("DEL", "web"), &bare[..]).success,
        "without prevResult"
    );
}

#[test]
fn a_check_is_the_agents() {
    let place = Place::new("check");
    let asked = place.agent(yes());
    let output = run(&env("CHECK", "web"), conf(&place.socket()).as_bytes());
    assert!(output.success && output.text.is_empty(), "{output:?}");
    assert_eq!(asked.recv().unwrap().command, Command::Check);
    std::fs::remove_file(place.socket()).unwrap();
    assert_eq!(
        error(&run(&env("CHECK", "web"), conf(&place.socket()).as_bytes())).0,
        11
    );
}

#[test]
fn refuses_to_stand_first_in_a_chain() {
    let bare = br#"{"cniVersion":"1.1.0","name":"net"}"#;
    for namespace in ["web", "kube-system"] {
        let (code, text) = error(&run(&env("ADD", namespace), &bare[..]));
        assert_eq!(code, 7);
        assert!(text.contains("conflist"), "{text}");
    }
}

#[test]
fn a_container_of_no_pod_is_not_let_through() {
    let place = Place::new("nameless");
    let nameless = BTreeMap::from_iter(
        env("ADD", "web")
            .into_iter()
            .filter(|(k, _)| k != "CNI_ARGS"),
    );
    let (code, text) = error(&run(&nameless, conf(&place.socket()).as_bytes()));
    assert_eq!(code, 4);
    assert!(text.contains("K8S_POD_NAMESPACE"), "{text}");
}

#[test]
fn versions_are_told() {
    let output = run(&env("VERSION", "web"), &br#"{"cniVersion":"1.0.0"}"#[..]);
    assert!(output.success);
    assert_eq!(
        output.text,
        r#"{"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
    );
}

#[test]
fn status_and_collection_of_garbage_wait_for_nobody() {
    let place = Place::new("status");
    let conf = format!(
        r#"{{"cniVersion":"1.1.0","name":"net","socket":"{}","cni.dev/valid-attachments":[{{"containerID":"a","ifname":"eth0"}}]}}"#,
        place.socket().display()
    );
    for command in ["STATUS", "GC"] {
        let env = BTreeMap::from([("CNI_COMMAND".to_owned(), command.to_owned())]);
        let output = run(&env, conf.as_bytes());
        assert!(
            output.success && output.text.is_empty(),
            "{command}: {output:?}"
        );
    }
}

#[test]
fn an_error_is_told_in_the_version_of_the_runtime() {
    let told = |input: &[u8]| {
        let output = run(&env("ADD", "web"), input);
        let error: serde_json::Value = serde_json::from_str(&output.text).unwrap();
        error["cniVersion"].as_str().unwrap().to_owned()
    };
    assert_eq!(told(br#"{"cniVersion":"0.4.0","name":"a/b"}"#), "0.4.0");
    assert_eq!(told(br#"{"cniVersion":"7.0.0","name":"net"}"#), "1.1.0");
    assert_eq!(told(b"garbage"), "1.1.0");
}

#[test]
fn input_that_breaks_off_is_an_error_of_reading() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let (code, text) = error(&run(&env("ADD", "web"), Broken));
    assert_eq!(code, 5);
    assert!(text.contains("standard input"), "{text}");
}

#[test]
fn an_agent_that_says_nothing_is_given_up() {
    let place = Place::new("silent");
    // Accepts nothing: the kernel lets the plugin connect and write, and no answer comes.
    let _silent = UnixListener::bind(place.socket()).unwrap();
    let request = Request {
        command: Command::Del,
        container_id: "a".into(),
        netns: None,
        ifname: "eth0".into(),
        pod_namespace: "web".into(),
        pod_name: "a-0".into(),
        pod_uid: None,
        addresses: Vec::new(),
    };
    let whole = Duration::from_millis(20);
    let patience = Patience {
        absent: Duration::ZERO,
        whole,
    };
    let asked = socket::ask(&place.socket(), &request, patience);
    assert!(matches!(asked, Err(AskError::TimedOut(after)) if after == whole));
}

#[test]
fn a_pod_waits_for_an_agent_that_is_about_to_start() {
    let place = Place::new("late");
    let (env, conf) = (env("ADD", "web"), conf(&place.socket()));
    let added = thread::spawn(move || run(&env, conf.as_bytes()));
    assert!(!added.is_finished());
    let asked = place.agent(yes());
    assert_eq!(added.join().unwrap().text, RESULT);
    assert_eq!(asked.recv().unwrap().command, Command::Add);
}
