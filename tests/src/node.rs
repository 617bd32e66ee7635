//! Runs the real programs in a world: one controller, and on each node a node agent and a ztunnel, as an operator would.
//!
//! Called by tests, benchmarks and the demonstration. Knows the programs' settings and nothing of their insides. Every
//! program writes its log to a file below the mesh's folder.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambit_core::ports;
use ambit_core::status::{CaptureState, MeshStatus};

use crate::failure::{Context as _, Failure, Outcome, ensure};
use crate::manifests::Manifests;
use crate::netns::{Site, World};
use crate::poll::{self, SOON};
use crate::process::{Launch, Life, Process};
use crate::scrape::{self, Metrics, log_fields};

/// How a mesh is started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where manifests, tokens, state, sockets and logs are kept.
    pub folder: PathBuf,
    /// How long its programs live.
    pub life: Life,
    /// Settings of every ztunnel beside those that it needs.
    pub ztunnel: Vec<(String, String)>,
    /// Settings of the controller beside those that it needs.
    pub controller: Vec<(String, String)>,
    /// A program, and a capability that it does not have (`man 7 capabilities`, without `CAP_`, in lower case).
    pub lacking: Option<(String, String)>,
}

impl Setup {
    /// A mesh with its files in `folder` that lives as long as its [`Mesh`].
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            life: Life::Owned,
            ztunnel: Vec::new(),
            controller: Vec::new(),
            lacking: None,
        }
    }

    /// With one more setting of every ztunnel.
    #[must_use]
    pub fn ztunnel(mut self, name: &str, value: &str) -> Self {
        self.ztunnel.push((name.to_owned(), value.to_owned()));
        self
    }

    /// This program runs without this capability.
    #[must_use]
    pub fn without_capability(mut self, program: &str, capability: &str) -> Self {
        self.lacking = Some((program.to_owned(), capability.to_owned()));
        self
    }

    /// With one more setting of the controller.
    #[must_use]
    pub fn controller(mut self, name: &str, value: &str) -> Self {
        self.controller.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    /// The directory of YAML that it runs on.
    pub manifests: Manifests,
    /// The controller.
    pub controller: Process,
    /// What runs on each node, in the order of the world's nodes.
    pub nodes: Vec<NodePrograms>,
    setup: Setup,
    control: Site,
}

/// The programs of one node.
#[derive(Debug)]
pub struct NodePrograms {
    /// The node.
    pub site: Site,
    /// The node agent.
    pub agent: Process,
    /// The proxy.
    pub ztunnel: Process,
}

impl Mesh {
    /// Starts controller, node agents and ztunnels, and waits until all say that they are ready.
    ///
    /// The manifests may hold documents already: make them with [`Manifests::new`] in `folder/manifests`.
    ///
    /// # Errors
    /// When a program is not built, does not start, or is not ready in time; shows its log.
    pub fn start(world: &World, setup: Setup) -> Outcome<Self> {
        let mut mesh = Self::launch(world, setup)?;
        for index in 0..mesh.nodes.len() {
            mesh.wait_ready(index)?;
        }
        Ok(mesh)
    }

    /// Starts them and does not wait for the nodes.
    ///
    /// # Errors
    /// When a program is not built or does not start, or the controller makes no root; shows its log.
    pub fn launch(world: &World, setup: Setup) -> Outcome<Self> {
        let manifests = Manifests::new(setup.folder.join("manifests"))?;
        for private in ["tokens", "state"] {
            let mut builder = fs::DirBuilder::new();
            builder
                .recursive(true)
                .mode(0o700)
                .create(setup.folder.join(private))
                .context(private)?;
        }
        for node in world.nodes() {
            write_token(
                &token_file(&setup.folder, &node.site.name),
                Duration::from_secs(86_400),
            )?;
        }
        let control = world.control().clone();
        let mut controller = start_controller(&setup, &control)?;
        wait_for_root(&mut controller, &setup.folder.join("state/root-cert.pem"))?;
        let mut nodes = Vec::new();
        for node in world.nodes() {
            let site = node.site.clone();
            let agent = start_agent(&setup, &site)?;
            let ztunnel = start_ztunnel(&setup, &site, &control)?;
            nodes.push(NodePrograms {
                site,
                agent,
                ztunnel,
            });
        }
        Ok(Self {
            manifests,
            controller,
            nodes,
            setup,
            control,
        })
    }

    /// Starts nothing but the ztunnel of the node with this index: no controller, no agent.
    ///
    /// # Errors
    /// When it is not built or does not start.
    pub fn proxy_alone(world: &World, setup: &Setup, index: usize) -> Outcome<Process> {
        start_ztunnel(setup, &world.node(index)?.site, world.control())
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.setup.folder
    }

    /// The programs of the node with this index, 0 first.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node(&mut self, index: usize) -> Outcome<&mut NodePrograms> {
        self.nodes.get_mut(index).context("no such node")
    }

    /// Starts the controller again after it was ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_controller(&mut self) -> Outcome {
        self.controller = start_controller(&self.setup, &self.control)?;
        poll::until_ok(SOON, || self.status().map(|_status| ()))
    }

    /// Starts a node's ztunnel again after it was ended.
    ///
    /// # Errors
    /// When it does not start or is not ready in time.
    pub fn restart_ztunnel(&mut self, index: usize) -> Outcome {
        let site = self.node(index)?.site.clone();
        let ztunnel = start_ztunnel(&self.setup, &site, &self.control)?;
        self.node(index)?.ztunnel = ztunnel;
        self.wait_ready(index)
    }

    /// Starts a node's agent again after it was ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart_agent(&mut self, index: usize) -> Outcome {
        let site = self.node(index)?.site.clone();
        let agent = start_agent(&self.setup, &site)?;
        self.node(index)?.agent = agent;
        Ok(())
    }

    /// Waits until a node's ztunnel says on its readiness port that it is ready.
    ///
    /// # Errors
    /// When it is not in time; shows what it waits for and its log.
    pub fn wait_ready(&mut self, index: usize) -> Outcome {
        let node = self.node(index)?;
        let address = local(ports::READINESS);
        let ready = poll::until_ok(SOON, || {
            if let Some(status) = node.ztunnel.ended() {
                return Ok(Err(Failure::new(format!("it ended: {status}"))));
            }
            let (status, body) = scrape::get(&node.site.netns, address, "/healthz/ready")?;
            ensure(status == 200, body).map(Ok)
        });
        ready.and_then(|ended| ended).map_err(|cause| {
            let (ztunnel, agent) = (node.ztunnel.log(), node.agent.log());
            let name = &node.site.name;
            Failure::new(format!(
                "ztunnel of {name} is not ready: {cause}\n{ztunnel}\nits agent:\n{agent}"
            ))
        })
    }

    /// What `ambit status` prints, as a value.
    ///
    /// # Errors
    /// When the controller does not answer.
    pub fn status(&self) -> Outcome<MeshStatus> {
        let (status, body) = scrape::get_unix(&self.status_socket(), "/status")?;
        ensure(status == 200, format_args!("status {status}: {body}"))?;
        serde_json::from_str(&body).context(body)
    }

    /// The socket of `ambit status`.
    pub fn status_socket(&self) -> PathBuf {
        self.setup.folder.join("status.sock")
    }

    /// Waits until these pods (`namespace/name`) are captured and every proxy has what the controller has.
    ///
    /// # Errors
    /// When it is not so in time; shows what is missing, and the logs.
    pub fn wait_captured(&self, pods: &[&str]) -> Outcome {
        self.wait_status(|status| {
            let captured: Vec<String> = status
                .pods
                .iter()
                .filter(|pod| pod.capture == CaptureState::Captured)
                .map(|pod| format!("{}/{}", pod.namespace, pod.name))
                .collect();
            let missing: Vec<_> = pods
                .iter()
                .filter(|pod| !captured.iter().any(|has| has == *pod))
                .collect();
            ensure(
                missing.is_empty(),
                format_args!("not captured: {missing:?}; captured: {captured:?}"),
            )
        })?;
        self.wait_in_sync()
    }

    /// Waits until every proxy has acknowledged what the controller has.
    ///
    /// # Errors
    /// When it is not so in time.
    pub fn wait_in_sync(&self) -> Outcome {
        self.wait_status(|status| {
            let connected = status.proxies.iter().filter(|proxy| proxy.connected);
            let ready = connected
                .filter(|p| !p.types.is_empty() && p.types.iter().all(|held| held.is_in_sync()))
                .count();
            ensure(
                ready >= self.nodes.len(),
                format_args!("{ready} proxies in sync: {:?}", status.proxies),
            )
        })
    }

    /// Waits until the controller's status satisfies `wanted`.
    ///
    /// # Errors
    /// When it does not in time; shows `wanted`'s last words and the logs.
    pub fn wait_status(&self, wanted: impl Fn(&MeshStatus) -> Outcome) -> Outcome {
        poll::until_ok(SOON, || self.status().and_then(|status| wanted(&status)))
            .map_err(|cause| Failure::new(format!("{cause}\n{}", self.logs())))
    }

    /// The metrics of a node's ztunnel.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, index: usize) -> Outcome<Metrics> {
        let node = self.nodes.get(index).context("no such node")?;
        Metrics::scrape(&node.site.netns, local(ports::METRICS))
    }

    /// Waits for a line in a node's access log that has all of `fields`.
    ///
    /// # Errors
    /// When there is none in time; shows the log.
    pub fn wait_access(
        &self,
        index: usize,
        fields: &[(&str, &str)],
    ) -> Outcome<BTreeMap<String, String>> {
        let ztunnel = &self.nodes.get(index).context("no such node")?.ztunnel;
        let found = poll::until("the line", SOON, || access(&ztunnel.log(), fields).pop());
        found.map_err(|_none| {
            Failure::new(format!(
                "no access log line with {fields:?}:\n{}",
                ztunnel.log()
            ))
        })
    }

    /// The logs of all programs, for a failure's message.
    pub fn logs(&self) -> String {
        let nodes = self
            .nodes
            .iter()
            .flat_map(|node| [&node.agent, &node.ztunnel]);
        let all = std::iter::once(&self.controller).chain(nodes);
        all.map(|program| format!("--- {}\n{}", program.name(), program.log()))
            .collect()
    }
}

/// The lines of a log that have all of `fields`: a value of `*` is any value, an empty one that the line lacks the field.
pub fn access(log: &str, fields: &[(&str, &str)]) -> Vec<BTreeMap<String, String>> {
    let has = |line: &BTreeMap<String, String>| {
        fields.iter().all(|(key, value)| match line.get(*key) {
            Some(seen) => *value == "*" || seen == value,
            None => value.is_empty(),
        })
    };
    log.lines().map(log_fields).filter(has).collect()
}

/// The file that holds a node's credential.
pub fn token_file(folder: &Path, node: &str) -> PathBuf {
    folder.join("tokens").join(format!("{node}.token"))
}

/// Writes a credential that is valid for `span` from now, readable by its owner alone.
///
/// # Errors
/// When it cannot be written.
pub fn write_token(file: &Path, span: Duration) -> Outcome {
    use std::io::Write as _;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("clock")?;
    let secret = format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..));
    let _older = fs::remove_file(file);
    let mut handle = fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(file)
        .context(file.display())?;
    writeln!(handle, "{}.{secret}", (now + span).as_secs()).context(file.display())
}

/// The path of one of our programs: beside the running one, or in the folder above (tests are in `deps/`).
///
/// # Errors
/// When it is not built.
pub fn program(name: &str) -> Outcome<PathBuf> {
    let own = std::env::current_exe().context("find the own program")?;
    let folders = own.ancestors().skip(1).take(2);
    let mut candidates = folders
        .map(|folder| folder.join(name))
        .filter(|path| path.is_file());
    candidates.next().context(format_args!(
        "{name} is not built: `cargo build --workspace --bins` in the same profile"
    ))
}

/// A port on localhost.
pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn start_controller(setup: &Setup, control: &Site) -> Outcome<Process> {
    let folder = &setup.folder;
    let own = control.addresses.both().map(|ip| ip.to_string()).join(",");
    let settings = [
        ("AMBIT_MANIFESTS", path(folder, "manifests")),
        ("AMBIT_NODE_TOKENS", path(folder, "tokens")),
        ("AMBIT_STATE_DIR", path(folder, "state")),
        ("AMBIT_STATUS_SOCKET", path(folder, "status.sock")),
        ("AMBIT_SERVER_NAMES", own),
    ];
    launch(setup, "controller", control, settings)?
        .envs(&setup.controller)
        .start()
}

/// Waits until the controller has made its root: the nodes' programs read it.
fn wait_for_root(controller: &mut Process, file: &Path) -> Outcome {
    let there = poll::until_ok(SOON, || {
        let over = controller.ended().is_some();
        ensure(
            file.exists() || over,
            "the controller has written no root certificate",
        )
    });
    there
        .and_then(|()| ensure(file.exists(), "the controller ended"))
        .map_err(|cause| Failure::new(format!("{cause}; its log:\n{}", controller.log())))
}

fn start_agent(setup: &Setup, site: &Site) -> Outcome<Process> {
    let folder = &setup.folder;
    let settings = [
        ("NODE_NAME", site.name.clone()),
        ("AMBIT_MANIFESTS", path(folder, "manifests")),
        ("INPOD_UDS", path(folder, &format!("{}.handoff", site.name))),
        (
            "AMBIT_STATE_DIR",
            path(folder, &format!("{}.state", site.name)),
        ),
    ];
    launch(setup, "ambit-cni-agent", site, settings)?.start()
}

fn start_ztunnel(setup: &Setup, site: &Site, control: &Site) -> Outcome<Process> {
    let folder = &setup.folder;
    let controller = format!("https://{}:{}", control.addresses.v4, ports::CONTROLLER);
    let roots = path(folder, "state/root-cert.pem");
    let settings = [
        ("NODE_NAME", site.name.clone()),
        ("INPOD_UDS", path(folder, &format!("{}.handoff", site.name))),
        (
            "AUTH_TOKEN",
            token_file(folder, &site.name).display().to_string(),
        ),
        ("XDS_ADDRESS", controller.clone()),
        ("CA_ADDRESS", controller),
        ("XDS_ROOT_CA", roots.clone()),
        ("CA_ROOT_CA", roots),
    ];
    launch(setup, "ztunnel", site, settings)?
        .envs(&setup.ztunnel)
        .start()
}

fn launch<const N: usize>(
    setup: &Setup,
    name: &str,
    site: &Site,
    settings: [(&str, String); N],
) -> Outcome<Launch> {
    let log = setup
        .folder
        .join("logs")
        .join(format!("{}-{name}.log", site.name));
    let launch = Launch::new(format!("{name} of {}", site.name), program(name)?, log);
    Ok(launch
        .in_netns(&site.netns)
        .for_life(setup.life)
        .lacking(
            setup
                .lacking
                .clone()
                .filter(|(program, _)| program == name)
                .map(|(_, capability)| capability),
        )
        .envs(&settings.map(|(name, value)| (name.to_owned(), value))))
}

fn path(folder: &Path, inside: &str) -> String {
    folder.join(inside).display().to_string()
}
