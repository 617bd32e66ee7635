//! The paths that are compared: the same pods' programs, once as plain TCP and once through the mesh.
//!
//! Called by `main.rs`. Knows how to load a path; not how figures are shown.

use std::net::SocketAddr;
use std::time::Duration;

use tests::app::load::Measured;
use tests::command::run_in;
use tests::failure::{Context as _, Outcome};
use tests::manifests::{PodDocument, documents, namespace};
use tests::netns::{Site, World};
use tests::node::{Mesh, Setup, program};
use tests::poll::SOON;
use tests::process::{Launch, Process};
use tests::sandbox::scratch;

/// Port of the bulk server in each server pod.
const BULK: u16 = 9001;
/// Port of the request server in each server pod.
const REQUESTS: u16 = 9002;

/// One kind of load: what `ambit-test-app load` is told.
struct Load {
    kind: &'static str,
    port: u16,
    connections: Option<usize>,
}

const STREAM: Load = Load {
    kind: "bulk",
    port: BULK,
    connections: None,
};
const KEPT: Load = Load {
    kind: "requests",
    port: REQUESTS,
    connections: Some(32),
};
const SINGLE: Load = Load {
    kind: "requests",
    port: REQUESTS,
    connections: Some(1),
};
/// 8 at once, as in the measurements that set our expectations.
const OPENED: Load = Load {
    kind: "connections",
    port: REQUESTS,
    connections: Some(8),
};

/// Two nodes, pods that are in the mesh and pods that are not, and servers in them.
pub(crate) struct Paths {
    paths: Vec<Path>,
    mesh: Mesh,
    _servers: Vec<Process>,
    _world: World,
}

/// From one pod to another.
struct Path {
    name: &'static str,
    plain: Option<usize>,
    client: Site,
    server: Site,
}

/// Figures of one path in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) gigabits_per_second: f64,
    /// Processor time of both nodes' ztunnels, in seconds a gigabyte.
    pub(crate) cpu_per_gigabyte: f64,
    pub(crate) requests_per_second: f64,
    pub(crate) connections_per_second: f64,
    pub(crate) p50_us: f64,
}

/// Figures of all paths, in their order.
pub(crate) type Round = Vec<Figures>;

impl Paths {
    /// Makes the world and starts mesh and servers.
    pub(crate) fn open() -> Outcome<Self> {
        let world = World::new("bench", 2)?;
        let pod = |node, name: &str| world.add_pod(node, name);
        let plain = [
            pod(0, "plain-client")?,
            pod(1, "plain-far")?,
            pod(0, "plain-near")?,
        ];
        let meshed = [
            pod(0, "mesh-client")?,
            pod(1, "mesh-far")?,
            pod(0, "mesh-near")?,
        ];
        let mut servers = Vec::new();
        for server in plain
            .iter()
            .chain(&meshed)
            .filter(|pod| !pod.name.ends_with("client"))
        {
            servers.push(serve(server, "bulk", BULK)?);
            servers.push(serve(server, "requests", REQUESTS)?);
        }
        let mesh = join(&world, &meshed)?;
        let path = |name, plain, [client, far, near]: &[Site; 3], same_node: bool| Path {
            name,
            plain,
            client: client.clone(),
            server: if same_node { near.clone() } else { far.clone() },
        };
        let paths = vec![
            path("plain TCP, across nodes", None, &plain, false),
            path("mesh, across nodes", Some(0), &meshed, false),
            path("plain TCP, on one node", None, &plain, true),
            path("mesh, on one node", Some(2), &meshed, true),
        ];
        Ok(Self {
            paths,
            mesh,
            _servers: servers,
            _world: world,
        })
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.paths.iter().map(|path| path.name).collect()
    }

    /// Index of the plain path that a path is compared with.
    pub(crate) fn plain_of(&self, index: usize) -> Option<usize> {
        self.paths.get(index)?.plain
    }

    /// Loads each path for a moment: tunnels, certificates and caches are there when it counts.
    pub(crate) fn warm_up(&self) -> Outcome {
        self.round(Duration::from_millis(200)).map(|_figures| ())
    }

    /// Measures every path once, each measurement in turns over the paths.
    pub(crate) fn round(&self, span: Duration) -> Outcome<Round> {
        let each = |load: &Load| -> Outcome<Vec<(Measured, f64)>> {
            self.paths
                .iter()
                .map(|path| self.run(path, load, span))
                .collect()
        };
        let (bulk, kept, opened, single) =
            (each(&STREAM)?, each(&KEPT)?, each(&OPENED)?, each(&SINGLE)?);
        let figures = bulk.iter().zip(&kept).zip(&opened).zip(&single);
        Ok(figures
            .map(
                |((((bulk, cpu), (kept, _)), (opened, _)), (single, _))| Figures {
                    gigabits_per_second: bulk.bytes as f64 * 8e-9 / bulk.seconds,
                    cpu_per_gigabyte: cpu / (bulk.bytes as f64 * 1e-9),
                    requests_per_second: kept.requests as f64 / kept.seconds,
                    connections_per_second: opened.requests as f64 / opened.seconds,
                    p50_us: single.p50_us,
                },
            )
            .collect())
    }

    /// Runs one load over one path; also returns the processor seconds that the ztunnels used meanwhile.
    fn run(&self, path: &Path, load: &Load, span: Duration) -> Outcome<(Measured, f64)> {
        let to: SocketAddr = (path.server.addresses.v4, load.port).into();
        let mut words = vec![
            "load".to_owned(),
            load.kind.to_owned(),
            to.to_string(),
            span.as_secs_f64().to_string(),
        ];
        words.extend(load.connections.map(|count| count.to_string()));
        let before = self.proxy_seconds()?;
        let app = program("ambit-test-app")?;
        let said = run_in(&path.client.netns, &app.display().to_string(), words)
            .context(format_args!("{} over {}", load.kind, path.name))?;
        let used = self.proxy_seconds()? - before;
        Ok((serde_json::from_str(&said).context(said)?, used))
    }

    fn proxy_seconds(&self) -> Outcome<f64> {
        self.mesh
            .nodes
            .iter()
            .map(|node| node.ztunnel.cpu_seconds())
            .sum()
    }
}

fn serve(pod: &Site, kind: &str, port: u16) -> Outcome<Process> {
    let log = scratch()
        .join("logs")
        .join(format!("{}-{kind}.log", pod.name));
    let launch = Launch::new(
        format!("{kind} server of {}", pod.name),
        program("ambit-test-app")?,
        log,
    );
    let mut server = launch
        .in_netns(&pod.netns)
        .args(["serve", kind, &port.to_string()])
        .start()?;
    server.wait_for_line(SOON, |line| line.starts_with("listening"))?;
    Ok(server)
}

/// Starts a mesh on the world with these pods in it.
fn join(world: &World, pods: &[Site; 3]) -> Outcome<Mesh> {
    let mesh = Mesh::start(world, Setup::new(scratch().join("mesh")))?;
    let node_of = |pod: &Site| {
        if pod.name.ends_with("far") {
            "node2"
        } else {
            "node1"
        }
    };
    let pod_documents = pods.iter().map(|site| {
        PodDocument {
            namespace: "bench",
            account: &site.name,
            node: node_of(site),
            site,
        }
        .yaml()
    });
    mesh.manifests.put(
        "bench.yaml",
        &documents(std::iter::once(namespace("bench", true)).chain(pod_documents)),
    )?;
    mesh.wait_captured(&["bench/mesh-client", "bench/mesh-far", "bench/mesh-near"])?;
    Ok(mesh)
}
