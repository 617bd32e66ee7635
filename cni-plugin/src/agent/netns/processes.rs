//! The processes of a pod, told by their control groups: the last resort to find its network namespace.
//!
//! Called by `find.rs`. kubelet puts every container below a group that bears the pod's uid; how that looks depends on the
//! version of cgroups, on the driver and on who reads. Knows nothing of namespaces' content; the caller checks it.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// A line for each hierarchy, each at most a path long; what is longer is cut.
const LONGEST: u64 = 64 << 10;
/// Field of the start time in `/proc/PID/stat`, counted from the one after the command's name (`man 5 proc`: 22 of 52).
const START_TIME: usize = 19;

/// Paths of the network namespaces of a pod's processes below `proc`, the oldest process first: that is the sandbox's, which
/// lives as long as the pod. Each namespace is named once.
///
/// # Errors
/// When `proc` cannot be listed. Processes that end meanwhile, or that we may not look at, are passed over.
pub(super) fn paths(proc: &Path, uids: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let folder = entry.path();
        let ours = read(&folder.join("cgroup"))
            .is_ok_and(|text| uids.iter().any(|uid| is_in_pod(&text, uid)));
        if ours {
            let started = read(&folder.join("stat"))
                .ok()
                .and_then(|text| start_time(&text));
            processes.push((started.unwrap_or(u64::MAX), pid, folder));
        }
    }
    processes.sort();
    let mut seen = Vec::new();
    let mut paths = Vec::new();
    for (_, _, folder) in processes {
        let path = folder.join("ns/net");
        match fs::read_link(&path) {
            Ok(namespace) if seen.contains(&namespace) => {}
            Ok(namespace) => {
                seen.push(namespace);
                paths.push(path);
            }
            // It has ended, or the caller will be told why it cannot be opened.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => paths.push(path),
        }
    }
    Ok(paths)
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    // Names of processes and groups are any bytes.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// True when `/proc/PID/cgroup` says that the process belongs to the pod.
///
/// A line is `HIERARCHY:CONTROLLERS:PATH` (man 7 cgroups). In the path, one group is the pod's: `podUID` with kubelet's
/// cgroupfs driver, `…-podU_I_D.slice` with its systemd driver, with `:…` behind it where the runtime was told of systemd and
/// does not use it.
fn is_in_pod(text: &str, uid: &str) -> bool {
    // The uid of a static pod is a hash without dashes.
    let escaped = uid.replace('-', "_");
    let is_pods = |group: &str| {
        let name = group.split(':').next().unwrap_or_default();
        let name = name.strip_suffix(".slice").unwrap_or(name);
        [uid, &escaped].into_iter().any(|uid| {
            let kind = name
                .strip_suffix(uid)
                .and_then(|rest| rest.strip_suffix("pod"));
            kind.is_some_and(|kind| kind.is_empty() || kind.ends_with('-'))
        })
    };
    let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    !uid.is_empty() && paths.any(|path| path.split('/').any(is_pods))
}

/// When a process was started, in ticks since the node was, from `/proc/PID/stat`. The command's name may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(START_TIME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6c1a2b0e-7c2f-4f1e-9f6b-8f2f3a1d0b11";

    /// What is about the reader, driver and version, and the file's text with `UID` and `U_I_D` for the pod's uid.
    const FORMS: &[(&str, &str)] = &[
        ("v1, cgroupfs", "12:memory:/kubepods/burstable/podUID/0a1b"),
        ("v1, guaranteed", "3:cpu,cpuacct:/kubepods/podUID/0a1b"),
        (
            "v1, systemd",
            "4:pids:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/cri-containerd-0a.scope",
        ),
        (
            "v1, systemd, guaranteed",
            "4:pids:/kubepods.slice/kubepods-podU_I_D.slice/crio-0a.scope",
        ),
        ("v2, cgroupfs", "0::/kubepods/besteffort/podUID/0a1b"),
        (
            "v2, systemd",
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_I_D.slice/cri-containerd-0a.scope",
        ),
        (
            "v2, CRI-O's conmon",
            "0::/kubepods.slice/kubepods-podU_I_D.slice/crio-conmon-0a.scope",
        ),
        (
            "v2, read from inside a group of its own",
            "0::/../../podUID/0a1b",
        ),
        (
            "v2, systemd, read from inside a group of its own",
            "0::/../../../kubepods-besteffort.slice/kubepods-besteffort-podU_I_D.slice/cri-containerd-0a.scope",
        ),
        (
            "runtime without systemd below a kubelet with it",
            "0::/system.slice/containerd.service/kubepods-burstable-podU_I_D.slice:cri-containerd:0a1b",
        ),
        (
            "node in a container",
            "0::/docker/77/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_I_D.slice/cri-containerd-0a.scope",
        ),
        (
            "cgroup root of its own",
            "5:freezer:/node1/kubepods/burstable/podUID/0a1b",
        ),
        (
            "groups that the pod made",
            "0::/kubepods/podUID/0a1b/init.scope",
        ),
        (
            "hybrid",
            "2:cpu:/kubepods/podUID/0a\n1:name=systemd:/\n0::/\n",
        ),
    ];

    #[test]
    fn all_forms_of_a_pods_group_are_known() {
        for (form, text) in FORMS {
            let text = text
                .replace("UID", UID)
                .replace("U_I_D", &UID.replace('-', "_"));
            assert!(is_in_pod(&text, UID), "{form}: {text}");
            assert!(
                !is_in_pod(&text, "00000000-7c2f-4f1e-9f6b-8f2f3a1d0b11"),
                "{form}"
            );
        }
        let hash = "0123456789abcdef0123456789abcdef";
        let text = format!("0::/kubepods/burstable/pod{hash}/0a");
        assert!(is_in_pod(&text, hash), "static pod");
    }

    #[test]
    fn other_groups_are_not_a_pods() {
        for text in [
            "".to_owned(),
            "0::/".to_owned(),
            "no line of this file".to_owned(),
            format!("0::/user.slice/{UID}"),
            format!("0::/kubepods/tripod{UID}/0a"),
            format!("0::/kubepods/pod{UID}0/0a"),
            format!("0::/kubepods/pod0{UID}/0a"),
            format!("0::/kubepods/burstable/pod{UID}.mount/0a"),
            format!("1:pod{UID}:/"),
        ] {
            assert!(!is_in_pod(&text, UID), "{text}");
        }
        assert!(!is_in_pod("0::/kubepods/pod/0a", ""));
    }

    #[test]
    fn start_times_are_read_behind_any_name() {
        let stat = |name| {
            format!("17 ({name}) S 1 17 17 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 8642 1 2 3")
        };
        assert_eq!(start_time(&stat("pause")), Some(8642));
        assert_eq!(start_time(&stat("a) S 9 (b")), Some(8642));
        assert_eq!(start_time("17 (pause) S 1"), None);
    }

    #[test]
    fn the_oldest_process_is_first_and_each_namespace_once() {
        let proc = std::env::temp_dir().join(format!("ambit-processes-{}", std::process::id()));
        let process = |pid: &str, uid: &str, started: u64, namespace: &str| {
            let folder = proc.join(pid);
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("cgroup"), format!("0::/kubepods/pod{uid}/0a\n")).unwrap();
            let stat = format!("{pid} (app) S {}{started} 0", "0 ".repeat(18));
            fs::write(folder.join("stat"), stat).unwrap();
            std::os::unix::fs::symlink(namespace, folder.join("ns/net")).unwrap();
        };
        process("31", UID, 300, "net:[1]");
        process("40", UID, 100, "net:[1]");
        process("50", UID, 200, "net:[2]");
        process("60", "another", 1, "net:[3]");
        fs::create_dir_all(proc.join("self/ns")).unwrap();
        let found = paths(&proc, &[UID]);
        fs::remove_dir_all(&proc).unwrap();
        assert_eq!(
            found.unwrap(),
            [proc.join("40/ns/net"), proc.join("50/ns/net")]
        );
        assert!(paths(&proc, &[UID]).is_err());
    }
}
