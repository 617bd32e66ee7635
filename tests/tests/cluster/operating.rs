//! What an operator asks: `ambit status` and `ambit check`, against real controllers and agents, with an operator's rights.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use tests::cluster::{Cluster, NODES, PATIENCE, SYSTEM, Space, journal};
use tests::command::text;
use tests::failure::{Context as _, Outcome, ensure, ensure_eq};
use tests::node::program;
use tests::poll;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "status_merges_what_all_controllers_say",
        status_merges_all_controllers,
    ),
    (
        "status_and_check_name_a_controller_that_does_not_answer",
        silent_controller_is_named,
    ),
    (
        "check_fails_nothing_where_the_mesh_works",
        check_fails_nothing,
    ),
    (
        "check_says_why_a_pod_is_not_captured",
        check_says_why_not_captured,
    ),
    (
        "an_operators_role_is_enough_and_without_it_the_missing_right_is_named",
        operators_role_is_enough,
    ),
    (
        "check_says_that_the_api_server_is_away",
        check_without_api_server,
    ),
    ("wrong_use_ends_with_2", wrong_use),
];

/// What `ambit` printed, and its exit code.
struct Said {
    code: i32,
    answer: String,
    complaint: String,
}

impl Said {
    /// The answer as JSON.
    fn json(&self) -> Outcome<Value> {
        serde_json::from_str(&self.answer).context(format_args!("no JSON: {}", self.answer))
    }

    fn everything(&self) -> String {
        format!("exit {}\n{}{}", self.code, self.answer, self.complaint)
    }
}

/// Runs `ambit` as the cluster's administrator.
fn ambit(cluster: &Cluster, args: &[&str]) -> Outcome<Said> {
    ambit_with(cluster.folder().join("kubeconfig").as_os_str(), args)
}

fn ambit_with(kubeconfig: &OsStr, args: &[&str]) -> Outcome<Said> {
    let mut command = Command::new(program("ambit")?);
    let output = command
        .args(args)
        .env("KUBECONFIG", kubeconfig)
        .output()
        .context("start ambit")?;
    let said = Said {
        code: output.status.code().context("ambit was killed")?,
        answer: text(&output.stdout),
        complaint: text(&output.stderr),
    };
    let command = format!("ambit {}", args.join(" "));
    journal::note(&command, "", &said.everything());
    Ok(said)
}

/// The status as JSON, once `look` finds in it what it wants.
fn status_until(cluster: &Cluster, mut look: impl FnMut(&Value) -> Outcome) -> Outcome<Value> {
    poll::until_ok(PATIENCE, || {
        let said = ambit(cluster, &["status", "--json"])?;
        ensure_eq(said.code, 0, format_args!("exit code: {}", said.complaint))?;
        let status = said.json()?;
        look(&status)?;
        Ok::<_, tests::failure::Failure>(status)
    })
}

fn list<'a>(document: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    let list = document.get(key).and_then(Value::as_array);
    list.into_iter().flatten()
}

fn word<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The check of this name in the list that `ambit check --json` prints.
fn check_named<'a>(checks: &'a Value, name: &str) -> Outcome<&'a Value> {
    let mut checks = checks.as_array().into_iter().flatten();
    let found = checks.find(|check| word(check, "name") == name);
    found.context(format_args!("no check {name}"))
}

fn status_merges_all_controllers() -> Outcome {
    let space = Space::joined("status")?;
    for (name, node) in [("first", NODES[0]), ("second", NODES[1])] {
        space.pod(name, node)?.wait_captured(PATIENCE)?;
    }
    let controllers = space.cluster.mesh_pods("controller")?;
    ensure(
        controllers.len() > 1,
        "there is one controller only, so nothing is merged",
    )?;
    // No controller knows both proxies unless both have chosen it; the merged answer always does.
    let status = status_until(space.cluster, |status| {
        for name in ["first", "second"] {
            let pod = list(status, "pods")
                .find(|pod| word(pod, "namespace") == space.name && word(pod, "name") == name)
                .context(format_args!("{name} is not in the status"))?;
            ensure_eq(word(pod, "capture"), "captured", name)?;
        }
        for node in NODES {
            let proxy = list(status, "proxies").find(|proxy| word(proxy, "node") == node);
            let proxy = proxy.context(format_args!("no proxy on {node}"))?;
            ensure_eq(&proxy["connected"], &json!(true), node)?;
            let known = list(status, "nodes").find(|known| word(known, "name") == node);
            ensure_eq(&known.context(node)?["connected"], &json!(true), node)?;
        }
        Ok(())
    })?;
    let mut answered: Vec<_> = list(&status, "replicas").map(|r| word(r, "name")).collect();
    let mut there: Vec<_> = controllers.iter().map(|pod| pod.name.as_str()).collect();
    answered.sort_unstable();
    there.sort_unstable();
    ensure_eq(answered, there, "the replicas")?;
    ensure(
        list(&status, "replicas").all(|replica| replica.get("unanswered").is_none()),
        format_args!("not all answered: {status}"),
    )?;
    let printed = ambit(space.cluster, &["status"])?.answer;
    for line in [
        format!("{}/first", space.name),
        format!("{}/second", space.name),
    ] {
        let line = printed
            .lines()
            .find(|l| l.contains(&line))
            .context(format_args!("no {line} in:\n{printed}"))?;
        ensure(line.contains("captured"), line)?;
    }
    Ok(())
}

/// A pod that looks like a controller and never starts. Deleted when the test ends.
struct Mute(&'static Cluster);

impl Mute {
    const NAME: &str = "mute-controller";

    fn start(cluster: &'static Cluster) -> Outcome<Self> {
        let labels = json!({"app.kubernetes.io/part-of": "ambit", "app.kubernetes.io/component": "controller"});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": Self::NAME, "namespace": SYSTEM, "labels": labels},
            "spec": {"containers": [{"name": "mute", "image": "ambit.mesh/none:0", "imagePullPolicy": "Never"}]},
        });
        cluster.apply(&pod.to_string())?;
        Ok(Self(cluster))
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        let delete = ["-n", SYSTEM, "delete", "pod", Self::NAME, "--now"];
        if let Err(cause) = self.0.kubectl(&delete) {
            eprintln!("{} stays: {cause}", Self::NAME);
        }
    }
}

fn silent_controller_is_named() -> Outcome {
    let space = Space::alone("mute")?;
    let _mute = Mute::start(space.cluster)?;
    let why = "ErrImageNeverPull";
    let said = poll::until_ok(PATIENCE, || {
        let said = ambit(space.cluster, &["status"])?;
        ensure(said.answer.contains(why), said.everything())?;
        Ok::<_, tests::failure::Failure>(said)
    })?;
    ensure_eq(said.code, 1, "exit code of status")?;
    ensure(
        said.complaint.contains("1 of 3 replicas"),
        said.everything(),
    )?;
    ensure(
        said.answer.matches("answered").count() >= 2,
        "what the others know is not printed",
    )?;
    let said = ambit(space.cluster, &["check", "--json"])?;
    ensure_eq(said.code, 1, "exit code of check")?;
    let checks = said.json()?;
    let check = check_named(&checks, "status")?;
    ensure_eq(word(check, "grade"), "bad", check)?;
    let told = check["details"].to_string();
    ensure(told.contains(Mute::NAME) && told.contains(why), told)
}

fn check_fails_nothing() -> Outcome {
    let space = Space::alone("checked")?;
    space.join()?;
    space.pod("first", NODES[0])?.wait_captured(PATIENCE)?;
    // Pods of tests before may still be going.
    let said = poll::until_ok(PATIENCE, || {
        let said = ambit(space.cluster, &["check", "--installed", "--json"])?;
        ensure_eq(said.code, 0, said.everything())?;
        Ok::<_, tests::failure::Failure>(said)
    })?;
    let checks = said.json()?;
    // The nodes' own findings have come from the agents.
    for name in [
        "api-server",
        "nodes",
        "controllers",
        "agents",
        "ztunnels",
        "proxies",
        "captured",
        "kernel",
    ] {
        let check = check_named(&checks, name)?;
        ensure(word(check, "grade") != "bad", check)?;
    }
    let kernel = check_named(&checks, "kernel")?;
    ensure(word(kernel, "found").starts_with("on 2 nodes"), kernel)?;
    let printed = ambit(space.cluster, &["check"])?;
    ensure_eq(printed.code, 0, printed.everything())?;
    ensure(printed.answer.contains(" 0 failed"), printed.everything())
}

/// All ztunnels away until this is dropped.
struct NoZtunnel(&'static Cluster);

impl NoZtunnel {
    fn begin(cluster: &'static Cluster) -> Outcome<Self> {
        select(cluster, "never")?;
        let gone = Self(cluster);
        poll::until_ok(PATIENCE, || {
            ensure(
                cluster.mesh_pods("ztunnel").is_err(),
                "a ztunnel is still there",
            )
        })?;
        Ok(gone)
    }
}

impl Drop for NoZtunnel {
    fn drop(&mut self) {
        let back = select(self.0, "").and_then(|()| self.0.mesh_ready());
        if let Err(cause) = back {
            eprintln!("the ztunnels do not come back: {cause}");
        }
    }
}

/// Asks for a label on the nodes of ztunnels; an empty one takes the wish back.
fn select(cluster: &Cluster, label: &str) -> Outcome {
    let label = if label.is_empty() {
        Value::Null
    } else {
        json!(label)
    };
    let spec =
        json!({"spec": {"template": {"spec": {"nodeSelector": {"test.example/ztunnel": label}}}}});
    let patch = spec.to_string();
    cluster
        .kubectl(&["-n", SYSTEM, "patch", "daemonset", "ztunnel", "-p", &patch])
        .map(drop)
}

fn check_says_why_not_captured() -> Outcome {
    let space = Space::alone("uncaptured")?;
    space.pod("waits", NODES[0])?;
    let gone = NoZtunnel::begin(space.cluster)?;
    space.join()?;
    let pod = format!("{}/waits on {}: ", space.name, NODES[0]);
    poll::until_ok(PATIENCE, || {
        let said = ambit(space.cluster, &["check", "--json"])?;
        ensure_eq(said.code, 1, said.everything())?;
        let checks = said.json()?;
        let ztunnels = check_named(&checks, "ztunnels")?;
        let where_not = ztunnels["details"].to_string();
        ensure(where_not.contains("node1: there is none"), ztunnels)?;
        let captured = check_named(&checks, "captured")?;
        let line = list(captured, "details")
            .filter_map(Value::as_str)
            .find_map(|line| line.strip_prefix(&pod))
            .context(format_args!("the pod is not named: {captured}"))?;
        ensure(
            line.contains("no ztunnel"),
            format_args!("no cause: {line}"),
        )
    })?;
    drop(gone);
    space.found("waits")?.wait_captured(PATIENCE)
}

fn operators_role_is_enough() -> Outcome {
    let space = Space::new("operator")?;
    let cluster = space.cluster;
    space.kubectl(&["create", "serviceaccount", "operator"])?;
    let kubeconfig = of_account(&space, "operator")?;
    let refused = ambit_with(kubeconfig.as_os_str(), &["status"])?;
    ensure_eq(refused.code, 1, refused.everything())?;
    ensure(
        refused.complaint.contains("cannot list resource \"pods\"")
            && refused.complaint.contains("ask whoever administers"),
        refused.everything(),
    )?;
    let refused = ambit_with(kubeconfig.as_os_str(), &["check", "--json"])?;
    ensure_eq(refused.code, 1, "exit code of check without rights")?;
    let checks = refused.json()?;
    let missing = check_named(&checks, "permissions")?["details"].to_string();
    ensure(missing.contains("list pods in ambit-system"), &missing)?;

    let account = format!("--serviceaccount={}:operator", space.name);
    let name = space.name.as_str();
    cluster.kubectl(&[
        "-n",
        SYSTEM,
        "create",
        "rolebinding",
        name,
        "--role=ambit-operator",
        &account,
    ])?;
    cluster.kubectl(&[
        "create",
        "clusterrolebinding",
        name,
        "--clusterrole=ambit-operator",
        &account,
    ])?;
    let answered = poll::until_ok(PATIENCE, || {
        let said = ambit_with(kubeconfig.as_os_str(), &["status"])?;
        ensure_eq(said.code, 0, said.everything())
    });
    let checked = ambit_with(kubeconfig.as_os_str(), &["check", "--json"]);
    cluster.kubectl(&["-n", SYSTEM, "delete", "rolebinding", name])?;
    cluster.kubectl(&["delete", "clusterrolebinding", name])?;
    answered?;
    let checks = checked?.json()?;
    let rights = check_named(&checks, "permissions")?;
    ensure_eq(word(rights, "grade"), "good", rights)
}

/// A kubeconfig of a ServiceAccount of the test's namespace; it is in the cluster's folder and goes with it.
fn of_account(space: &Space, account: &str) -> Outcome<PathBuf> {
    let token = space.kubectl(&["create", "token", account])?;
    let folder = space.cluster.folder();
    let admin = std::fs::read_to_string(folder.join("kubeconfig")).context("the kubeconfig")?;
    let clusters = admin
        .lines()
        .find(|line| line.starts_with("clusters:"))
        .context("no clusters in the kubeconfig")?;
    let name = clusters
        .split_once("name: ")
        .and_then(|(_, rest)| rest.split([',', '}']).next())
        .context("the cluster has no name")?;
    let file = format!(
        "apiVersion: v1\nkind: Config\n{clusters}\nusers: [{{name: u, user: {{token: {}}}}}]\n\
         contexts: [{{name: c, context: {{cluster: {name}, user: u}}}}]\ncurrent-context: c\n",
        token.trim()
    );
    let path = folder.join(format!("{}.kubeconfig", space.name));
    std::fs::write(&path, file)?;
    Ok(path)
}

fn check_without_api_server() -> Outcome {
    let space = Space::without_mesh("away")?;
    let path = space.cluster.folder().join("nobody.kubeconfig");
    let nobody = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"https://127.0.0.1:1\"}}]\n\
                  users: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\n";
    std::fs::write(&path, nobody)?;
    let said = ambit_with(path.as_os_str(), &["check"])?;
    ensure_eq(said.code, 1, said.everything())?;
    ensure(
        said.answer.contains("FAIL  api-server") && said.answer.contains("https://127.0.0.1:1"),
        said.everything(),
    )?;
    ensure(
        said.answer.contains("1 check: 0 good"),
        format_args!("more was judged than is known: {}", said.everything()),
    )?;
    let said = ambit_with(path.as_os_str(), &["status"])?;
    ensure_eq(said.code, 1, said.everything())?;
    ensure(
        said.complaint
            .contains("cannot reach the API server at https://127.0.0.1:1"),
        said.everything(),
    )
}

fn wrong_use() -> Outcome {
    let space = Space::without_mesh("wrong-use")?;
    for args in [
        &["check", "--nonsense"][..],
        &["status", "extra"],
        &["stratus"],
        &[],
    ] {
        let said = ambit(space.cluster, args)?;
        ensure_eq(
            said.code,
            2,
            format_args!("ambit {args:?}: {}", said.everything()),
        )?;
    }
    let said = ambit_with(OsStr::new("/nowhere"), &["check"])?;
    ensure_eq(said.code, 1, said.everything())?;
    ensure(
        said.complaint.contains("KUBECONFIG"),
        format_args!("it does not say what to do: {}", said.everything()),
    )
}
