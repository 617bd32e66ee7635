//! A world of network namespaces: nodes on one network, pods behind each node, IPv4 and IPv6.
//!
//! ```text
//!   pod ─ veth ─ bridge `pods` in node1 ─ eth0 ─┐
//!   pod ─ veth ─┘                               ├─ bridge in the fabric ─ eth0 ─ control
//!   pod ─ veth ─ bridge `pods` in node2 ─ eth0 ─┘
//! ```
//! Called by tests, benchmarks and the demonstration. Service addresses lead nowhere here: only a mesh makes them work.
//! Every namespace is called `ambit-WORLD-…`; the caller's own namespace is not touched. Knows nothing of the mesh.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{ip_batch, run, run_in};
use crate::failure::{Context as _, Outcome};
use crate::poll;

/// Interface that leads out of a node, a pod and the controller's namespace.
pub const UPLINK: &str = "eth0";

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";
/// Host part of the controller's address on the network between the nodes; node N has 10 + N.
const CONTROL: u8 = 2;
/// Host part of the first pod's address on its node; the node itself has 1.
const FIRST_POD: u8 = 10;

/// All namespaces of one world; they are removed when it is dropped.
#[derive(Debug)]
pub struct World {
    name: String,
    nodes: Vec<Node>,
    control: Site,
    keep: bool,
}

/// A namespace with an address of each family: a pod, or the place of the controller.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name in the mesh.
    pub name: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Its own addresses.
    pub addresses: Addresses,
}

/// A namespace with a link to the other nodes and a bridge for its pods.
#[derive(Debug)]
pub struct Node {
    /// Name, namespace and addresses on the network between the nodes.
    pub site: Site,
    number: u8,
    pods: AtomicU8,
}

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Both, IPv4 first.
    pub fn both(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    const fn between_nodes(host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(172, 31, 0, host),
            v6: Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, host as u16),
        }
    }

    const fn of_pod(node: u8, host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(10, 244, node, host),
            v6: Ipv6Addr::new(0xfd44, 0, 0, node as u16, 0, 0, 0, host as u16),
        }
    }

    /// Addresses that a Service may have: in no route of the world.
    pub const fn of_service(number: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(10, 96, 0, number),
            v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, number as u16),
        }
    }
}

impl World {
    /// Makes a world of `nodes` nodes without pods, after removing what a crashed run left under the same name.
    ///
    /// # Errors
    /// When the kernel refuses a namespace or a link.
    pub fn new(name: &str, nodes: u8) -> Outcome<Self> {
        remove(name)?;
        let control = site(name, "control", Addresses::between_nodes(CONTROL));
        let mut world = Self {
            name: name.to_owned(),
            nodes: Vec::new(),
            control,
            keep: false,
        };
        let fabric = make(&site(name, "fabric", Addresses::between_nodes(1)))?;
        ip_batch(
            &fabric,
            "link add fabric type bridge forward_delay 0\nlink set fabric up\n",
        )?;
        make(&world.control)?;
        world.plug_in(&world.control)?;
        for number in 1..=nodes {
            world.nodes.push(world.make_node(number)?);
        }
        Ok(world)
    }

    /// The nodes, `node1` first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node with this index, 0 first.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node(&self, index: usize) -> Outcome<&Node> {
        self.nodes.get(index).context("no such node")
    }

    /// Where the controller runs.
    pub fn control(&self) -> &Site {
        &self.control
    }

    /// Adds a pod on the node with this index, 0 first.
    ///
    /// # Errors
    /// When the kernel refuses the namespace or the link, or there is no such node.
    pub fn add_pod(&self, node: usize, name: &str) -> Outcome<Site> {
        let node = self.node(node)?;
        let count = node.pods.fetch_add(1, Ordering::Relaxed);
        let pod = site(
            &self.name,
            name,
            Addresses::of_pod(node.number, FIRST_POD + count),
        );
        let node_name = netns_name(&node.site.netns);
        let pod_name = make(&pod)?;
        ip_batch(
            &node_name,
            &format!(
                "link add pod{count} netns {node_name} type veth peer name {UPLINK} netns {pod_name}\n\
                 link set pod{count} master pods up\n"
            ),
        )?;
        let gateway = Addresses::of_pod(node.number, 1);
        ip_batch(
            &pod_name,
            &format!(
                "link set {UPLINK} up\naddr add {}/24 dev {UPLINK}\naddr add {}/64 dev {UPLINK} nodad\n\
                 route add default via {}\nroute add default via {}\n",
                pod.addresses.v4, pod.addresses.v6, gateway.v4, gateway.v6
            ),
        )?;
        Ok(pod)
    }

    /// Removes a pod's namespace and with it its link.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_pod(&self, pod: &Site) -> Outcome {
        run("ip", ["netns", "del", &netns_name(&pod.netns)]).map(|_nothing| ())
    }

    /// Leaves the namespaces behind when this value goes; [`remove`] takes them down.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    fn make_node(&self, number: u8) -> Outcome<Node> {
        let site = site(
            &self.name,
            &format!("node{number}"),
            Addresses::between_nodes(10 + number),
        );
        let name = make(&site)?;
        self.plug_in(&site)?;
        run_in(
            &site.netns,
            "sh",
            [
                "-c",
                "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
            ],
        )?;
        let gateway = Addresses::of_pod(number, 1);
        // A bridge without an address of its own takes its lowest port's: a pod that is added would change it, and the
        // other pods would send to the old one until their neighbour entries expire.
        let mut script = format!(
            "link add pods address 02:00:00:00:00:01 type bridge forward_delay 0\nlink set pods up\n\
             addr add {}/24 dev pods\naddr add {}/64 dev pods nodad\n",
            gateway.v4, gateway.v6
        );
        for other in self.nodes.iter() {
            script.push_str(&routes(other.number));
            ip_batch(&netns_name(&other.site.netns), &routes(number))?;
        }
        ip_batch(&name, &script)?;
        ip_batch(&netns_name(&self.control.netns), &routes(number))?;
        Ok(Node {
            site,
            number,
            pods: AtomicU8::new(0),
        })
    }

    /// Joins a namespace to the network between the nodes.
    fn plug_in(&self, site: &Site) -> Outcome {
        let fabric = full_name(&self.name, "fabric");
        let name = netns_name(&site.netns);
        let port = &site.name;
        ip_batch(
            &fabric,
            &format!(
                "link add {port} netns {fabric} type veth peer name {UPLINK} netns {name}\n\
                 link set {port} master fabric up\n"
            ),
        )?;
        let Addresses { v4, v6 } = site.addresses;
        ip_batch(
            &name,
            &format!(
                "link set {UPLINK} up\naddr add {v4}/24 dev {UPLINK}\naddr add {v6}/64 dev {UPLINK} nodad\n"
            ),
        )
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.keep {
            let _removed = remove(&self.name);
        }
    }
}

/// Removes every namespace of the world called `name`, after ending the processes in them.
///
/// # Errors
/// When a process or a namespace does not go.
pub fn remove(name: &str) -> Outcome {
    let prefix = full_name(name, "");
    let Ok(names) = std::fs::read_dir(NAMES) else {
        return Ok(());
    };
    for netns in names
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        if netns.starts_with(&prefix) {
            empty(&netns)?;
            run("ip", ["netns", "del", &netns])?;
        }
    }
    Ok(())
}

/// Ends the processes in a named namespace, each by its id.
fn empty(netns: &str) -> Outcome {
    poll::until_ok(poll::SOON, || {
        let pids = run("ip", ["netns", "pids", netns])?;
        for pid in pids.lines().filter_map(|line| line.trim().parse().ok()) {
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        crate::failure::ensure(
            pids.trim().is_empty(),
            format_args!("processes in {netns}: {pids}"),
        )
    })
}

/// Makes the namespace of a site, without IPv6 address detection; returns its name.
fn make(site: &Site) -> Outcome<String> {
    let name = netns_name(&site.netns);
    run("ip", ["netns", "add", &name])?;
    run_in(
        &site.netns,
        "sh",
        [
            "-c",
            "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; ip link set lo up",
        ],
    )?;
    Ok(name)
}

fn site(world: &str, name: &str, addresses: Addresses) -> Site {
    Site {
        name: name.to_owned(),
        netns: Path::new(NAMES).join(full_name(world, name)),
        addresses,
    }
}

fn full_name(world: &str, part: &str) -> String {
    format!("ambit-{world}-{part}")
}

/// The name by which `ip -n` knows a namespace.
pub fn netns_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Routes to the pods of a node, over the network between the nodes.
fn routes(number: u8) -> String {
    let via = Addresses::between_nodes(10 + number);
    let pods = Addresses::of_pod(number, 0);
    let mut script = String::new();
    let _written = write!(
        script,
        "route add {}/24 via {}\nroute add {}/64 via {}\n",
        pods.v4, via.v4, pods.v6, via.v6
    );
    script
}
