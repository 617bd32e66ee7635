//! The CNI plugin as a program, called as container runtimes call it, and its place on a node whose disk is full.
//!
//! The requests are those of the specification's examples (CNI 1.1.0, Appendix), with our plugin as the last of the chain.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use ambit_net::admin::Readiness;
use ambit_net::tasks::Tasks;
use cni_plugin::checks::Checks;
use cni_plugin::install::{Installer, Settings, uninstall};
use cni_plugin::socket::Request;
use serde_json::{Value, json};
use tests::command::run;
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::node::program;
use tests::poll::{self, SOON};
use tests::sandbox::scratch;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "the_plugin_answers_every_command_of_the_specification",
        the_plugin_answers_every_command_of_the_specification,
    ),
    (
        "status_and_garbage_collection_wait_for_nobody",
        status_and_garbage_collection_wait_for_nobody,
    ),
    (
        "the_plugin_repeats_the_result_of_the_chain_byte_for_byte",
        the_plugin_repeats_the_result_of_the_chain_byte_for_byte,
    ),
    (
        "the_plugin_refuses_broken_input_and_unknown_versions",
        the_plugin_refuses_broken_input_and_unknown_versions,
    ),
    (
        "a_full_disk_loses_nothing_of_the_configuration",
        a_full_disk_loses_nothing_of_the_configuration,
    ),
    (
        "a_full_disk_puts_no_plugin_without_a_program_into_the_chain",
        a_full_disk_puts_no_plugin_without_a_program_into_the_chain,
    ),
];

/// The result in the specification's example, as it prints it.
const RESULT: &str = r#"{
    "ips": [
        {
          "address": "10.1.0.5/16",
          "gateway": "10.1.0.1",
          "interface": 2
        }
    ],
    "routes": [
      {
        "dst": "0.0.0.0/0"
      }
    ],
    "interfaces": [
        {
            "name": "cni0",
            "mac": "00:11:22:33:44:55"
        },
        {
            "name": "veth3243",
            "mac": "55:44:33:22:11:11"
        },
        {
            "name": "eth0",
            "mac": "00:11:22:33:44:66",
            "sandbox": "/var/run/netns/blue"
        }
    ],
    "dns": {
      "nameservers": [ "10.1.0.1" ]
    }
  }"#;

/// A node agent that says yes to everything and hands on what it was asked.
struct Agent {
    socket: PathBuf,
    asked: mpsc::Receiver<Request>,
}

impl Agent {
    fn start(name: &str) -> Outcome<Self> {
        let socket = scratch().join(format!("{name}.sock"));
        let listener = UnixListener::bind(&socket).context("listen as an agent")?;
        let (sender, asked) = mpsc::channel();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for plugin in listener.incoming() {
                let mut plugin = plugin?;
                let mut words = Vec::new();
                plugin.read_to_end(&mut words)?;
                if sender.send(serde_json::from_slice(&words)?).is_err() {
                    break;
                }
                plugin.write_all(br#"{"Ok":null}"#)?;
            }
            std::io::Result::Ok(())
        });
        Ok(Self { socket, asked })
    }
}

/// Calls the plugin as a runtime does.
fn call(command: &str, namespace: &str, stdin: &str) -> Outcome<Output> {
    let mut plugin = Command::new(program("ambit-cni")?)
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "cnitool-0a1b2c")
        .env("CNI_NETNS", "/var/run/netns/blue")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env(
            "CNI_ARGS",
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=bear-0"),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ambit-cni")?;
    let mut input = plugin.stdin.take().context("its standard input")?;
    input
        .write_all(stdin.as_bytes())
        .context("write to ambit-cni")?;
    drop(input);
    plugin.wait_with_output().context("wait for ambit-cni")
}

fn conf(version: &str, socket: &Path, more: &str) -> String {
    let socket = socket.display();
    format!(
        r#"{{"cniVersion":"{version}","name":"dbnet","type":"ambit-cni","socket":"{socket}"{more}}}"#
    )
}

fn succeeds(output: &Output, stdout: &str, what: &str) -> Outcome {
    let seen = String::from_utf8_lossy(&output.stdout);
    let message = format!(
        "{what}: {} {seen} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    ensure(output.status.success(), message)?;
    ensure_eq(&*seen, stdout, what)
}

fn fails(output: &Output, code: u64, word: &str) -> Outcome {
    let seen = String::from_utf8_lossy(&output.stdout);
    ensure(
        !output.status.success(),
        format_args!("it ended well: {seen}"),
    )?;
    let error: Value = serde_json::from_str(&seen).context(format_args!("no error: {seen}"))?;
    let told = error.get("code").and_then(Value::as_u64);
    ensure_eq(told, Some(code), &seen)?;
    ensure(error.get("cniVersion").is_some_and(Value::is_string), &seen)?;
    ensure(
        seen.contains(word),
        format_args!("it does not say {word:?}: {seen}"),
    )
}

fn the_plugin_answers_every_command_of_the_specification() -> Outcome {
    let agent = Agent::start("commands")?;
    let previous = format!(r#","prevResult":{RESULT}"#);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let full = conf(version, &agent.socket, &previous);
        succeeds(
            &call("ADD", "zoo", &full)?,
            RESULT,
            &format!("ADD in {version}"),
        )?;
        let request = agent
            .asked
            .recv_timeout(SOON)
            .context("the agent is asked")?;
        ensure_eq(
            &*request.pod_name,
            "bear-0",
            "the pod that the agent is asked about",
        )?;
        ensure_eq(request.addresses.len(), 1, "addresses inside the sandbox")?;
        succeeds(
            &call("DEL", "zoo", &full)?,
            "",
            &format!("DEL in {version}"),
        )?;
        let bare = conf(version, &agent.socket, "");
        succeeds(
            &call("DEL", "zoo", &bare)?,
            "",
            &format!("DEL in {version}, nothing known"),
        )?;
        let versions = call(
            "VERSION",
            "zoo",
            &format!(r#"{{"cniVersion":"{version}"}}"#),
        )?;
        let told: Value = serde_json::from_slice(&versions.stdout).context("a version result")?;
        let known = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        ensure_eq(
            told,
            json!({"cniVersion": version, "supportedVersions": known}),
            "VERSION",
        )?;
        let check = call("CHECK", "zoo", &full)?;
        match version.starts_with("0.3") {
            true => fails(&check, 1, "CHECK exists since CNI 0.4.0")?,
            false => succeeds(&check, "", &format!("CHECK in {version}"))?,
        }
        // Each call has ended, so what it asked is there; the next round begins without it.
        while agent.asked.try_recv().is_ok() {}
    }
    Ok(())
}

fn status_and_garbage_collection_wait_for_nobody() -> Outcome {
    let valid = r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]"#;
    // Nobody listens there: neither of the two may depend on the mesh.
    let nowhere = Path::new("/nowhere/cni.sock");
    succeeds(
        &call("GC", "zoo", &conf("1.1.0", nowhere, valid))?,
        "",
        "GC",
    )?;
    succeeds(
        &call("STATUS", "zoo", &conf("1.1.0", nowhere, ""))?,
        "",
        "STATUS",
    )?;
    fails(
        &call("GC", "zoo", &conf("1.0.0", nowhere, valid))?,
        1,
        "1.1.0",
    )?;
    fails(
        &call("STATUS", "zoo", &conf("1.0.0", nowhere, ""))?,
        1,
        "1.1.0",
    )
}

fn the_plugin_repeats_the_result_of_the_chain_byte_for_byte() -> Outcome {
    let agent = Agent::start("bytes")?;
    let odd = "{ \"b\" : 1.50,\t\"a\":[ ],\"u\":\"\\u00e9\\/\", \"n\":1e2,\n\"big\":123456789012345678901234567890 }";
    for result in [odd, RESULT, "{}"] {
        let input = conf(
            "1.0.0",
            &agent.socket,
            &format!(",\"prevResult\":  {result}\n"),
        );
        succeeds(
            &call("ADD", "zoo", &input)?,
            result,
            "a result that a printer would change",
        )?;
    }
    let excluded = conf(
        "1.0.0",
        Path::new("/nowhere"),
        &format!(",\"prevResult\":{odd}"),
    );
    succeeds(
        &call("ADD", "kube-system", &excluded)?,
        odd,
        "a pod that nobody is asked about",
    )
}

fn the_plugin_refuses_broken_input_and_unknown_versions() -> Outcome {
    let nowhere = Path::new("/nowhere/cni.sock");
    let previous = format!(r#","prevResult":{RESULT}"#);
    let table: [(String, u64, &str); 8] = [
        (String::new(), 6, "not JSON"),
        ("{\"cniVersion\":\"1.0.0\"".to_owned(), 6, "not JSON"),
        ("ADD me".to_owned(), 6, "not JSON"),
        ("[1,2]".to_owned(), 7, "cannot be used"),
        (
            conf("0.2.0", nowhere, &previous),
            1,
            "ambit-cni speaks 0.3.0",
        ),
        (
            conf("2.0.0", nowhere, &previous),
            1,
            "ambit-cni speaks 0.3.0",
        ),
        (conf("1.0.0", nowhere, ""), 7, "no prevResult"),
        (conf("1.0.0", nowhere, &previous), 11, "zoo/bear-0"),
    ];
    for (input, code, word) in table {
        fails(&call("ADD", "zoo", &input)?, code, word).context(&input)?;
    }
    fails(&call("DANCE", "zoo", "{}")?, 4, "CNI_COMMAND")
}

/// A node of which one directory is on a small disk of its own.
struct Node {
    settings: Settings,
    checks: Checks,
    tasks: mpsc::Sender<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [ {\"type\": \"ptp\"} ]\n}\n";

impl Node {
    /// `full`: the directory whose disk is full.
    fn start(name: &str, full: &str) -> Outcome<Self> {
        let dir = scratch().join(format!("cni-{name}"));
        let settings = Settings {
            net_dir: dir.join("net.d"),
            bin_dir: dir.join("bin"),
            program: dir.join("image"),
            socket: "/run/x.sock".into(),
            excluded: vec!["kube-system".into()],
        };
        for made in [&settings.net_dir, &settings.bin_dir] {
            fs::create_dir_all(made).context(made.display())?;
        }
        fs::write(&settings.program, vec![b'x'; 16 * 1024]).context("write the program")?;
        let disk = dir.join(full).display().to_string();
        run("mount", ["-t", "tmpfs", "-o", "size=64k", "small", &disk])?;
        fs::write(settings.net_dir.join("10-net.conflist"), LIST).context("write the list")?;
        let mut filler =
            fs::File::create(dir.join(full).join("filler")).context("fill the disk")?;
        while filler.write_all(&[0; 512]).is_ok() {}

        let checks = Checks::default();
        let installer = Installer::new(settings.clone(), checks.clone(), Readiness::new());
        let (stop, stopped) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("make a runtime")?;
        let thread = std::thread::spawn(move || {
            let tasks = Tasks::new("test");
            runtime.block_on(async {
                tasks.spawn(installer.run(tasks.stop_signal()));
                // Blocks a thread of its own, so that the installer goes on.
                let ended = tokio::task::spawn_blocking(move || stopped.recv());
                drop(ended.await);
                tasks.drain(SOON).await;
            });
        });
        Ok(Self {
            settings,
            checks,
            tasks: stop,
            thread: Some(thread),
        })
    }

    /// Waits until a check of the node says something.
    fn says(&self, name: &str, word: &str) -> Outcome {
        let what = format!("{name} says {word:?}");
        poll::until(what, SOON, || {
            let said = self.checks.document("n", "v").checks;
            said.into_iter()
                .find(|check| check.name == name && check.found.contains(word))
        })?;
        Ok(())
    }

    fn list(&self) -> Outcome<String> {
        fs::read_to_string(self.settings.net_dir.join("10-net.conflist")).context("read the list")
    }

    fn names(dir: &Path) -> Outcome<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).context(dir.display())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn stop(&mut self) {
        // Its thread may have ended.
        let _told = self.tasks.send(());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn a_full_disk_loses_nothing_of_the_configuration() -> Outcome {
    let mut node = Node::start("net-full", "net.d")?;
    node.says("cni-configuration", "No space left on device")?;
    poll::stays(Duration::from_secs(1), || {
        let list = node.list()?;
        ensure_eq(&*list, LIST, "the list on a full disk")
    })?;
    fs::remove_file(node.settings.net_dir.join("filler")).context("make room")?;
    node.says("cni-configuration", "ptp, ambit-cni")?;
    node.stop();
    ensure_eq(
        Node::names(&node.settings.net_dir)?,
        vec!["10-net.conflist".to_owned()],
        "files",
    )?;
    uninstall(&node.settings).context("uninstall")?;
    ensure_eq(&*node.list()?, LIST, "the list after all")
}

fn a_full_disk_puts_no_plugin_without_a_program_into_the_chain() -> Outcome {
    let mut node = Node::start("bin-full", "bin")?;
    node.says("cni-binary", "No space left on device")?;
    poll::stays(Duration::from_secs(1), || {
        let list = node.list()?;
        ensure_eq(&*list, LIST, "the list while there is no program")
    })?;
    ensure_eq(
        Node::names(&node.settings.bin_dir)?,
        vec!["filler".to_owned()],
        "programs",
    )?;
    fs::remove_file(node.settings.bin_dir.join("filler")).context("make room")?;
    node.says("cni-configuration", "ptp, ambit-cni")?;
    node.stop();
    uninstall(&node.settings).context("uninstall")?;
    ensure_eq(
        Node::names(&node.settings.bin_dir)?,
        Vec::<String>::new(),
        "programs after all",
    )
}
