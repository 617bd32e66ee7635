//! The plugin on the node: a directory to which others write as well.

use std::sync::atomic::{AtomicBool, Ordering};

use ambit_net::tasks::Tasks;
use tokio::time::timeout;

use super::*;

const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"net\",\n  \"plugins\": [\n    {\"type\": \"ptp\"}\n  ]\n}\n";

/// A node's directories.
struct Node {
    dir: PathBuf,
    settings: Settings,
}

impl Node {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("ambit-install-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        let settings = Settings {
            net_dir: dir.join("net.d"),
            bin_dir: dir.join("bin"),
            program: dir.join("image"),
            socket: "/run/x.sock".into(),
            excluded: vec!["kube-system".into()],
        };
        fs::create_dir_all(&settings.net_dir).unwrap();
        fs::create_dir_all(&settings.bin_dir).unwrap();
        fs::write(&settings.program, "a program").unwrap();
        Self { dir, settings }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.settings.net_dir.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.settings.net_dir.join(name)).unwrap()
    }

    /// One look; where the plugin stands, or what is wrong.
    fn look(&self) -> Result<(PathBuf, Chain), InstallError> {
        let look = Look::at(&self.settings, None);
        look.program
            .and_then(|()| look.configuration.expect("it was looked at"))
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.settings.net_dir).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

#[test]
fn what_is_uninstalled_leaves_every_byte_as_it_was() {
    let node = Node::new("round");
    let path = node.write("10-net.conflist", LIST);
    node.write(
        "99-loopback.conf",
        "{\"cniVersion\":\"1.0.0\",\"type\":\"loopback\"}",
    );
    let mut mode = fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
    fs::set_permissions(&path, mode).unwrap();
    let (list, chain) = node.look().unwrap();
    assert_eq!(list, path);
    assert_eq!(chain.plugins, ["ptp", "ambit-cni"]);
    assert!(node.read("10-net.conflist").contains(
        r#"{"type":"ambit-cni","socket":"/run/x.sock","excludeNamespaces":["kube-system"]}"#
    ));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let program = node.settings.bin_dir.join("ambit-cni");
    assert_eq!(fs::read(&program).unwrap(), b"a program");
    assert_eq!(fs::metadata(&program).unwrap().mode() & 0o777, 0o755);
    assert_eq!(node.files(), ["10-net.conflist", "99-loopback.conf"]);

    uninstall(&node.settings).unwrap();
    assert_eq!(node.read("10-net.conflist"), LIST);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(node.files(), ["10-net.conflist", "99-loopback.conf"]);
    assert_eq!(fs::read_dir(&node.settings.bin_dir).unwrap().count(), 0);
    uninstall(&node.settings).expect("nothing is left to do");
}

#[test]
fn what_others_change_is_repaired_and_theirs_is_kept() {
    let node = Node::new("repair");
    node.write("10-net.conflist", LIST);
    node.look().unwrap();
    let theirs = LIST.replace("ptp", "bridge");
    node.write("10-net.conflist", &theirs);
    fs::write(node.settings.bin_dir.join("ambit-cni"), "damaged").unwrap();
    let (_, chain) = node.look().unwrap();
    assert_eq!(chain.plugins, ["bridge", "ambit-cni"]);
    let program = fs::read(node.settings.bin_dir.join("ambit-cni")).unwrap();
    assert_eq!(program, b"a program");
    uninstall(&node.settings).unwrap();
    assert_eq!(node.read("10-net.conflist"), theirs);
}

#[test]
fn a_file_that_is_right_is_not_written_again() {
    let node = Node::new("quiet");
    let path = node.write("10-net.conflist", LIST);
    node.look().unwrap();
    let program = node.settings.bin_dir.join("ambit-cni");
    let before = (stamp(&path).unwrap(), stamp(&program).unwrap());
    node.look().unwrap();
    assert_eq!((stamp(&path).unwrap(), stamp(&program).unwrap()), before);
}

#[test]
fn a_configuration_that_is_no_json_is_left_alone_and_told_of() {
    let node = Node::new("broken");
    node.write("05-first.conflist", "{ \"cniVersion\": ");
    node.write("10-net.conflist", LIST);
    let error = node.look().unwrap_err();
    assert!(
        matches!(&error, InstallError::Unusable { path, .. } if path.ends_with("05-first.conflist"))
    );
    assert!(
        error
            .to_string()
            .contains("05-first.conflist cannot be used: it is no network configuration")
    );
    assert_eq!(node.read("05-first.conflist"), "{ \"cniVersion\": ");
    // A runtime that skips the broken one uses the next.
    assert!(node.read("10-net.conflist").contains("ambit-cni"));
    node.write("05-first.conflist", LIST);
    assert_eq!(node.look().unwrap().1.plugins, ["ptp", "ambit-cni"]);
    uninstall(&node.settings).unwrap();
    assert_eq!(node.read("05-first.conflist"), LIST);
    assert_eq!(node.read("10-net.conflist"), LIST);
}

#[test]
fn our_plugin_in_a_file_that_nobody_can_read_keeps_its_program() {
    let node = Node::new("kept");
    node.write("10-net.conflist", LIST);
    node.look().unwrap();
    let damaged = node.read("10-net.conflist").replace("\"name\"", "name");
    node.write("10-net.conflist", &damaged);
    let error = uninstall(&node.settings).unwrap_err();
    assert!(error.to_string().contains("10-net.conflist"), "{error}");
    assert_eq!(node.read("10-net.conflist"), damaged);
    assert!(node.settings.bin_dir.join("ambit-cni").exists());
}

#[test]
fn a_single_configuration_stays_and_a_list_of_ours_comes_before_it() {
    let node = Node::new("conf");
    let conf = "{\"cniVersion\": \"0.4.0\", \"name\": \"single\", \"type\": \"bridge\"}";
    node.write("00-a.conf", conf);
    let (list, chain) = node.look().unwrap();
    assert!(
        list.ends_with("0-ambit.conflist"),
        "{list:?} comes before 00-a.conf"
    );
    assert_eq!((&*chain.network, chain.plugins.len()), ("single", 2));
    assert_eq!(node.read("00-a.conf"), conf);
    node.write("00-a.conf", &conf.replace("bridge", "ptp"));
    assert_eq!(node.look().unwrap().1.plugins, ["ptp", "ambit-cni"]);
    // Once its owner writes a list, ours is not needed any more.
    fs::remove_file(node.settings.net_dir.join("00-a.conf")).unwrap();
    node.write("10-net.conflist", LIST);
    node.look().unwrap();
    assert_eq!(node.files(), ["10-net.conflist"]);
    node.write("05-b.conf", conf);
    node.look().unwrap();
    uninstall(&node.settings).unwrap();
    assert_eq!(node.files(), ["05-b.conf", "10-net.conflist"]);
    assert_eq!(node.read("10-net.conflist"), LIST);
}

#[test]
fn a_link_to_a_file_elsewhere_is_not_followed_for_writing() {
    let node = Node::new("link");
    let elsewhere = node.dir.join("elsewhere.conflist");
    fs::write(&elsewhere, LIST).unwrap();
    std::os::unix::fs::symlink(&elsewhere, node.settings.net_dir.join("10-net.conflist")).unwrap();
    let (list, chain) = node.look().unwrap();
    assert!(list.ends_with("00-ambit.conflist"));
    assert_eq!(chain.plugins, ["ptp", "ambit-cni"]);
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), LIST);
    uninstall(&node.settings).unwrap();
    assert_eq!(node.files(), ["10-net.conflist"]);
}

#[test]
fn without_its_program_the_plugin_stands_in_no_chain() {
    let node = Node::new("program");
    node.write("10-net.conflist", LIST);
    fs::remove_file(&node.settings.program).unwrap();
    let error = node.look().unwrap_err();
    assert!(error.to_string().contains("image"), "{error}");
    assert_eq!(node.read("10-net.conflist"), LIST);
}

#[test]
fn nothing_that_another_program_writes_meanwhile_is_lost() {
    const WRITES: u32 = 400;
    let node = Node::new("race");
    let path = node.write("10-net.conflist", LIST);
    let version = |number: u32| LIST.replace("\"net\"", &format!("\"net-{number}\""));
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let fresh = node.settings.net_dir.join("theirs.tmp");
            for number in 0..WRITES {
                fs::write(&fresh, version(number)).unwrap();
                fs::rename(&fresh, &path).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            match node.look() {
                Ok(_) | Err(InstallError::Contended(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert_eq!(
        node.look().unwrap().1.network,
        format!("net-{}", WRITES - 1)
    );
    uninstall(&node.settings).unwrap();
    assert_eq!(node.read("10-net.conflist"), version(WRITES - 1));
    assert_eq!(node.files(), ["10-net.conflist"]);
}

#[test]
fn what_was_written_between_reading_and_writing_stays() {
    let node = Node::new("between");
    let path = node.write("10-net.conflist", "newer");
    let done = files::exchange(&path, b"older", b"ours").unwrap();
    assert_eq!(done, Exchanged::Contended);
    assert_eq!(node.read("10-net.conflist"), "newer");
    assert_eq!(
        files::exchange(&path, b"newer", b"ours").unwrap(),
        Exchanged::Done
    );
    assert_eq!(node.read("10-net.conflist"), "ours");
    fs::remove_file(&path).unwrap();
    assert_eq!(
        files::exchange(&path, b"ours", b"x").unwrap(),
        Exchanged::Contended
    );
    assert_eq!(node.files(), [""; 0]);
}

#[tokio::test]
async fn readiness_waits_for_the_clusters_network() {
    let node = Node::new("wait");
    let (checks, readiness) = (Checks::default(), Readiness::new());
    let installer = Installer::new(node.settings.clone(), checks.clone(), readiness.clone());
    let mut beside = installer.beside_another();
    let tasks = Tasks::new("test");
    tasks.spawn(installer.run(tasks.stop_signal()));
    let found = |name: &str| {
        let document = checks.document("n", "v");
        let mut found = document
            .checks
            .into_iter()
            .filter(|check| check.name == name);
        found.next().map(|check| check.found).unwrap_or_default()
    };
    let missing = async {
        while !found("cni-configuration").contains("has no network configuration") {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), missing)
        .await
        .expect("it is said");
    assert!(!readiness.pending().is_empty());
    node.write("10-net.conflist", &LIST.replace("ptp", "istio-cni"));
    let seen = beside.wait_for(|beside| *beside);
    drop(
        timeout(Duration::from_secs(5), seen)
            .await
            .unwrap()
            .unwrap(),
    );
    assert!(found("other-ambient").contains("istio-cni"));
    let ready = async {
        while !readiness.pending().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), ready).await.expect("ready");
    assert!(found("cni-configuration").ends_with("istio-cni, ambit-cni"));
    tasks.drain(Duration::from_secs(5)).await;
    // A mere stop leaves the plugin in place: pods wait instead of starting outside the mesh.
    assert!(node.read("10-net.conflist").contains("ambit-cni"));
}
