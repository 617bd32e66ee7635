//! The real Kubernetes that `tests/cluster/up` brought up, with the mesh on it: apply, ask, wait; nodes; installing.
//!
//! Called by the tests of `tests/tests/cluster.rs`. What a test owns there (namespaces, pods) is in `cluster/space.rs`. Every command and
//! its answer is kept in a journal (`cluster/journal.rs`), which a failing test shows.

pub mod journal;
pub mod machine;
pub mod space;

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use serde_json::Value;

use crate::command::text;
use crate::failure::{Context as _, Failure, Outcome, ensure};
use crate::poll;

use journal::note;
pub use machine::Machine;
pub use space::{Pod, Space};

/// Namespace of the mesh's own programs.
pub const SYSTEM: &str = "ambit-system";
/// The nodes' names.
pub const NODES: [&str; 2] = ["node1", "node2"];
/// The test image: a shell with small tools, and `ambit-test-app`.
pub const IMAGE: &str = "localhost/cluster/test:1";
/// How long a step of Kubernetes may take (a pod starts, a rollout ends) on a busy machine of two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The cluster. A handle: copies are the same cluster.
#[derive(Debug)]
pub struct Cluster {
    scripts: PathBuf,
    programs: PathBuf,
    folder: PathBuf,
    name: String,
    installed: Mutex<bool>,
    use_of_mesh: RwLock<()>,
}

/// The right to use what all tests share: together with others, or alone to break it.
#[derive(Debug)]
pub enum Turn {
    /// Others use it too.
    Shared(RwLockReadGuard<'static, ()>),
    /// Nobody else uses it.
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Cluster {
    /// The cluster of this run, called `AMBIT_CLUSTER` in `AMBIT_CLUSTER_DIR` as for the scripts.
    ///
    /// # Errors
    /// When it is not up; says how to bring it up.
    pub fn find() -> Outcome<&'static Self> {
        static FOUND: OnceLock<Outcome<Cluster>> = OnceLock::new();
        let found = FOUND.get_or_init(Self::look);
        found
            .as_ref()
            .map_err(|cause| Failure::new(cause.to_string()))
    }

    fn look() -> Outcome<Self> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("no repository")?;
        let name = std::env::var("AMBIT_CLUSTER").unwrap_or_else(|_unset| "ambit".to_owned());
        let base = std::env::var_os("AMBIT_CLUSTER_DIR")
            .map_or_else(|| repository.join("target/cluster"), PathBuf::from);
        let cluster = Self {
            scripts: repository.join("tests/cluster"),
            programs: base.join("bin"),
            folder: base.join(&name),
            name,
            installed: Mutex::new(false),
            use_of_mesh: RwLock::new(()),
        };
        cluster
            .kubectl(&["get", "--raw", "/readyz"])
            .context(format_args!(
                "cluster `{}` is not up: `AMBIT_CLUSTER={} tests/cluster/up`",
                cluster.name, cluster.name
            ))?;
        Ok(cluster)
    }

    /// Where the cluster keeps what is its own: `kubeconfig`, `log`, the nodes' disks.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits for the right to use the mesh beside other tests.
    pub fn share(&'static self) -> Turn {
        Turn::Shared(
            self.use_of_mesh
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Waits for the right to break what all tests share.
    pub fn alone(&'static self) -> Turn {
        Turn::Alone(
            self.use_of_mesh
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Runs `kubectl` and returns what it printed.
    ///
    /// # Errors
    /// When it ends with another status than 0; shows what it said.
    pub fn kubectl<A: AsRef<OsStr>>(&self, args: &[A]) -> Outcome<String> {
        self.kubectl_fed(args, "")
    }

    /// Runs `kubectl` with `input` and returns what it printed.
    ///
    /// # Errors
    /// When it ends with another status than 0; shows what it said.
    pub fn kubectl_fed<A: AsRef<OsStr>>(&self, args: &[A], input: &str) -> Outcome<String> {
        run(self.kubectl_command(args), input)
    }

    /// `kubectl` for this cluster, not yet started.
    pub fn kubectl_command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new(self.programs.join("kubectl"));
        command
            .env("KUBECONFIG", self.folder.join("kubeconfig"))
            .args(args);
        command
    }

    /// `kubectl` that must fail; returns what it said.
    ///
    /// # Errors
    /// When it ends with status 0.
    pub fn kubectl_fails<A: AsRef<OsStr>>(&self, args: &[A]) -> Outcome<String> {
        match self.kubectl(args) {
            Err(said) => Ok(said.to_string()),
            Ok(answer) => Err(Failure::new(format!(
                "kubectl {} ended well: {answer}",
                words(args)
            ))),
        }
    }

    /// Applies YAML or JSON.
    ///
    /// # Errors
    /// What the API server refuses.
    pub fn apply(&self, objects: &str) -> Outcome {
        self.kubectl_fed(&["apply", "-f", "-"], objects).map(drop)
    }

    /// Asks for one object or a list, as JSON.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn read(&self, args: &[&str]) -> Outcome<Value> {
        let args: Vec<&str> = ["get", "-o", "json"].iter().chain(args).copied().collect();
        let output = self
            .kubectl_command(&args)
            .output()
            .context("start kubectl")?;
        let (answer, said) = (text(&output.stdout), text(&output.stderr));
        let command = format!("kubectl {}", words(&args));
        note(
            &command,
            "",
            &format!("an object of {} bytes {said}", answer.len()),
        );
        ensure(output.status.success(), format_args!("`{command}`: {said}"))?;
        serde_json::from_str(&answer).context("kubectl printed no JSON")
    }

    /// One of the nodes, as a machine.
    pub fn machine(&'static self, name: &str) -> Machine {
        Machine::new(self, name)
    }

    /// Runs one of the cluster's own scripts.
    ///
    /// # Errors
    /// When it fails; shows what it said.
    pub fn script(&self, name: &str, args: &[&str]) -> Outcome<String> {
        run(self.script_command(name, args), "")
    }

    /// One of the cluster's own scripts, not yet started.
    pub fn script_command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(self.scripts.join(name));
        command.env("AMBIT_CLUSTER", &self.name).args(args);
        if let Some(base) = self.folder.parent() {
            command.env("AMBIT_CLUSTER_DIR", base);
        }
        command
    }

    /// Installs the mesh unless this run of the tests did already, as the documentation says, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be installed, or is not ready in time.
    pub fn with_mesh(&self) -> Outcome {
        let mut installed = self
            .installed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !*installed {
            self.install()?;
            *installed = true;
        }
        Ok(())
    }

    /// `kubectl apply -k deploy/`, with the CRDs of Istio's policy kinds, until every program is ready.
    ///
    /// # Errors
    /// When something is refused or not ready in time.
    pub fn install(&self) -> Outcome {
        let deploy = self.scripts.join("../../deploy");
        let place = |folder: &Path| folder.display().to_string();
        self.kubectl(&[
            "apply",
            "--server-side",
            "-k",
            &place(&deploy.join("crds-istio")),
        ])?;
        self.kubectl(&["apply", "-k", &place(&deploy)])?;
        self.mesh_ready()
    }

    /// `kubectl delete -k deploy/`, until nothing of it is left in the API server.
    ///
    /// # Errors
    /// When it does not go in time.
    pub fn uninstall(&self) -> Outcome {
        let mut installed = self
            .installed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *installed = false;
        let deploy = self.scripts.join("../../deploy").display().to_string();
        self.kubectl(&[
            "delete",
            "--timeout=90s",
            "--ignore-not-found",
            "-k",
            &deploy,
        ])
        .map(drop)
    }

    /// Waits until every program of the mesh is rolled out and ready.
    ///
    /// # Errors
    /// When one is not in time; shows its pods.
    pub fn mesh_ready(&self) -> Outcome {
        let kinds = ["-n", SYSTEM, "get", "deployments,daemonsets", "-o", "name"];
        for workload in self.kubectl(&kinds)?.lines() {
            let wait = ["-n", SYSTEM, "rollout", "status", workload, "--timeout=90s"];
            self.kubectl(&wait).or_else(|cause| {
                let pods = self.kubectl(&["-n", SYSTEM, "get", "pods", "-o", "wide"])?;
                let events = self.kubectl(&["-n", SYSTEM, "get", "events"])?;
                Err(Failure::new(format!("{cause}\n{pods}{events}")))
            })?;
        }
        Ok(())
    }

    /// The mesh's pods of one program (`controller`, `agent`, `ztunnel`), with the node of each.
    ///
    /// # Errors
    /// When there is none.
    pub fn mesh_pods(&'static self, program: &str) -> Outcome<Vec<Pod>> {
        let label = format!("app.kubernetes.io/component={program}");
        let list = self.read(&["pods", "-n", SYSTEM, "-l", &label])?;
        let pods = list
            .get("items")
            .and_then(Value::as_array)
            .context("no list")?;
        // One that ends has a successor already.
        let stays = |pod: &&Value| pod.pointer("/metadata/deletionTimestamp").is_none();
        let pods: Vec<&Value> = pods.iter().filter(stays).collect();
        ensure(
            !pods.is_empty(),
            format_args!("no pod of {program} in {SYSTEM}"),
        )?;
        let pods = pods.into_iter().map(|pod| Pod::from_object(self, pod));
        pods.collect()
    }

    /// The one pod of a program on a node.
    ///
    /// # Errors
    /// When there is none.
    pub fn mesh_pod_on(&'static self, program: &str, node: &str) -> Outcome<Pod> {
        let found = self
            .mesh_pods(program)?
            .into_iter()
            .find(|pod| pod.node == node);
        found.context(format_args!("no pod of {program} on {node}"))
    }

    /// Polls the API server until `look` finds what it wants in the object; returns what it returned.
    ///
    /// # Errors
    /// When the deadline passes first; shows the object as it was last.
    pub fn until<T>(
        &self,
        what: &str,
        object: &[&str],
        deadline: Duration,
        mut look: impl FnMut(&Value) -> Option<T>,
    ) -> Outcome<T> {
        poll::until_ok(deadline, || {
            let seen = self.read(object)?;
            look(&seen).context(format_args!("not seen: {what}, in {seen}"))
        })
    }
}

fn run(mut command: Command, input: &str) -> Outcome<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let program = program.rsplit('/').next().unwrap_or_default();
    let said = format!(
        "{program} {}",
        words(&command.get_args().collect::<Vec<_>>())
    );
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(format_args!("start {program}"))?;
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let answer = text(&output.stdout);
    let complaint = text(&output.stderr);
    note(&said, input, &format!("{answer}{complaint}"));
    if output.status.success() {
        return Ok(answer);
    }
    Err(Failure::new(format!(
        "`{said}`: {}\n{answer}{complaint}",
        output.status
    )))
}

fn words<A: AsRef<OsStr>>(args: &[A]) -> String {
    let words: Vec<_> = args
        .iter()
        .map(|word| word.as_ref().to_string_lossy())
        .collect();
    words.join(" ")
}
