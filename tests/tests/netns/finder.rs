//! The agent finds the namespaces of running pods by what a runtime leaves on a node, and none that is not theirs.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ambit_core::names::{NamespacedName, PodUid};
use cni_plugin::agent::netns::find::{FindError, Finder, Sought};
use tests::command::{in_netns, run};
use tests::failure::{Context as _, Failure, Outcome, ensure, ensure_eq};
use tests::netns::{Site, World};
use tests::sandbox::scratch;

use crate::Claim;

pub(crate) const CLAIMS: &[Claim] = &[
    (
        "a_pod_is_found_by_the_runtimes_note",
        a_pod_is_found_by_the_runtimes_note,
    ),
    (
        "a_pod_is_found_by_its_processes",
        a_pod_is_found_by_its_processes,
    ),
    (
        "a_namespace_without_the_pods_address_is_left_alone",
        a_namespace_without_the_pods_address_is_left_alone,
    ),
    (
        "what_is_out_of_date_leads_nobody_astray",
        what_is_out_of_date_leads_nobody_astray,
    ),
    (
        "a_pod_without_a_network_is_told_so",
        a_pod_without_a_network_is_told_so,
    ),
    (
        "the_nodes_own_namespace_is_refused",
        the_nodes_own_namespace_is_refused,
    ),
];

const UID: &str = "5f0c1d2e-3a4b-4c5d-8e6f-7a8b9c0d1e2f";

/// A world with two pods, and the folders of a node as an agent sees them.
struct Scene {
    _world: World,
    pod: Site,
    other: Site,
    proc: PathBuf,
    cache: PathBuf,
    children: Vec<Child>,
}

impl Scene {
    fn new(name: &str) -> Outcome<Self> {
        let world = World::new(name, 1)?;
        let (pod, other) = (world.add_pod(0, "pod")?, world.add_pod(0, "other")?);
        let folder = scratch().join(format!("finder-{name}"));
        let (proc, cache) = (folder.join("proc"), folder.join("cni"));
        fs::create_dir_all(&proc)?;
        fs::create_dir_all(cache.join("results"))?;
        Ok(Self {
            _world: world,
            pod,
            other,
            proc,
            cache,
            children: Vec::new(),
        })
    }

    /// The runtime's note that it put a pod of this uid into a namespace.
    fn note(&self, uid: &str, netns: &Path) -> Outcome {
        let note = format!(
            r#"{{"kind":"cniCacheV1","containerId":"{uid}","ifName":"eth0","networkName":"pods","netns":"{}",
                "cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","zoo"],["K8S_POD_NAME","bear-0"],["K8S_POD_UID","{uid}"]]}}"#,
            netns.display()
        );
        fs::write(
            self.cache.join("results").join(format!("pods-{uid}-eth0")),
            note,
        )?;
        Ok(())
    }

    /// A process in a namespace, whose control group is that of the pod.
    fn process(&mut self, netns: &Path, started: u64) -> Outcome {
        let mut command = in_netns(netns, "sleep");
        command.arg("1000").stdin(Stdio::null());
        let child = command.spawn().context("start a process of the pod")?;
        let pid = child.id();
        self.children.push(child);
        // It is `nsenter` until it has entered.
        tests::poll::until_ok(tests::poll::SOON, || {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
            ensure_eq(name.trim(), "sleep", "the process")
        })?;
        let folder = self.proc.join(pid.to_string());
        fs::create_dir_all(&folder)?;
        symlink(format!("/proc/{pid}/ns"), folder.join("ns"))?;
        fs::write(
            folder.join("cgroup"),
            format!("3:cpu:/node1/kubepods/burstable/pod{UID}/0a1b\n0::/\n"),
        )?;
        let stat = format!("{pid} (sleep) S {}{started} 0\n", "0 ".repeat(18));
        fs::write(folder.join("stat"), stat)?;
        Ok(())
    }

    fn find(
        &self,
        addresses: &[IpAddr],
        known: Option<&Path>,
    ) -> Outcome<Result<PathBuf, FindError>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let finder = Finder::new(self.proc.clone(), self.cache.clone());
        let sought = Sought {
            uid: PodUid::new(UID),
            name: NamespacedName::new("zoo", "bear-0"),
            static_uid: None,
            addresses: addresses.to_vec(),
            known: known.map(Path::to_owned),
        };
        Ok(runtime.block_on(finder.find(&sought)))
    }

    /// Finds the pod, and checks that it is this namespace.
    fn finds(&self, known: Option<&Path>) -> Outcome<PathBuf> {
        let found = self.find(&self.pod.addresses.both(), known)?;
        let found = found.map_err(|error| Failure::new(format!("not found: {error}")))?;
        let same = run(
            "stat",
            [
                "-L".as_ref(),
                "-c%i".as_ref(),
                found.as_os_str(),
                self.pod.netns.as_os_str(),
            ],
        )?;
        let mut inodes = same.lines();
        ensure(
            inodes.next() == inodes.next(),
            format_args!("{} is another namespace", found.display()),
        )?;
        Ok(found)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended; nobody is left to be told.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn a_pod_is_found_by_the_runtimes_note() -> Outcome {
    let scene = Scene::new("noted")?;
    scene.note(UID, &scene.pod.netns)?;
    scene.note("another", &scene.other.netns)?;
    ensure_eq(scene.finds(None)?, scene.pod.netns.clone(), "the path")
}

fn a_pod_is_found_by_its_processes() -> Outcome {
    let mut scene = Scene::new("processes")?;
    let (pod, other) = (scene.pod.netns.clone(), scene.other.netns.clone());
    // A process of the pod may have made itself a network of its own.
    scene.process(&other, 50)?;
    scene.process(&pod, 100)?;
    scene.process(&pod, 10)?;
    let oldest = scene.children.last().context("no process")?.id();
    let expected = scene.proc.join(oldest.to_string()).join("ns/net");
    ensure_eq(scene.finds(None)?, expected, "the path")
}

fn a_namespace_without_the_pods_address_is_left_alone() -> Outcome {
    let mut scene = Scene::new("foreign")?;
    let other = scene.other.netns.clone();
    scene.note(UID, &other)?;
    scene.process(&other, 1)?;
    let found = scene.find(&scene.pod.addresses.both(), Some(&other))?;
    let Err(error @ FindError::Foreign { .. }) = found else {
        return Err(Failure::new(format!("found {found:?}")));
    };
    let said = error.to_string();
    ensure(
        said.contains(&other.display().to_string()) && said.contains("none of its addresses"),
        said,
    )
}

fn what_is_out_of_date_leads_nobody_astray() -> Outcome {
    let mut scene = Scene::new("outdated")?;
    let pod = scene.pod.netns.clone();
    scene.note(UID, Path::new("/run/netns/gone"))?;
    scene.note("the-pod-of-that-name-before", &scene.other.netns)?;
    // What is left when the mount has gone.
    let plain = scratch().join("finder-plain-file");
    fs::write(&plain, "")?;
    scene.process(&pod, 1)?;
    scene.finds(Some(&plain))?;
    scene.finds(Some(&scene.other.netns))?;
    scene.finds(Some(Path::new("/proc/4194305/ns/net")))?;
    Ok(())
}

fn a_pod_without_a_network_is_told_so() -> Outcome {
    let mut scene = Scene::new("networkless")?;
    let empty = scratch().join("finder-networkless/empty");
    fs::write(&empty, "")?;
    let made = Command::new("unshare")
        .arg(format!("--net={}", empty.display()))
        .arg("true")
        .status()?;
    ensure(made.success(), "no namespace could be made")?;
    scene.process(&empty, 1)?;
    let says = |addresses: &[IpAddr], known: Option<&Path>, words: &str| match scene
        .find(addresses, known)?
    {
        Ok(found) => Err(Failure::new(format!("found {}", found.display()))),
        Err(error) => ensure(error.to_string().contains(words), error),
    };
    says(&[], Some(&empty), "has no address yet")?;
    says(
        &scene.pod.addresses.both(),
        Some(&empty),
        "none of its addresses",
    )?;
    says(&scene.pod.addresses.both(), None, "none of its addresses")
}

fn the_nodes_own_namespace_is_refused() -> Outcome {
    let scene = Scene::new("own")?;
    scene.note(UID, Path::new("/proc/self/ns/net"))?;
    let own = Path::new("/proc/thread-self/ns/net");
    symlink("/proc/self", scene.proc.join("self"))?;
    let found = scene.find(
        &["127.0.0.1".parse::<IpAddr>().context("an address")?],
        None,
    )?;
    let Err(FindError::Own(_)) = found else {
        return Err(Failure::new(format!(
            "{} was taken: {found:?}",
            own.display()
        )));
    };
    Ok(())
}
