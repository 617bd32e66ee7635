//! What the container runtime noted when it gave a pod its network: the result cache of the CNI library.
//!
//! Called by `find.rs`. containerd and CRI-O use that library, which keeps one JSON file for each interface that it made in
//! `results/` below `/var/lib/cni` (CNI 1.1, libcni `cachedInfo`). Knows nothing of the kernel; what is said here is checked
//! by the caller.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Folder of the cache's files.
const FOLDER: &str = "results";
/// A file of the cache holds a network's configuration and result, some KiB; what is longer is none.
const LONGEST: u64 = 1 << 20;

/// Which pod a note is about, as the runtime was told it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pod<'a> {
    /// Its uid, and the one that it has on the node if it is a static pod.
    pub(super) uids: &'a [&'a str],
    /// Its namespace.
    pub(super) namespace: &'a str,
    /// Its name.
    pub(super) name: &'a str,
}

/// Paths of network namespaces that the cache has for a pod: those under its uid first, then those under its name, which
/// may be of another pod of that name.
///
/// # Errors
/// When the folder cannot be listed. A file that cannot be read or understood is passed over: it is not ours to judge.
pub(super) fn paths(cache: &Path, pod: Pod<'_>) -> io::Result<Vec<PathBuf>> {
    let (mut by_uid, mut by_name) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(cache.join(FOLDER))? {
        let Ok(text) = read(&entry?.path()) else {
            continue;
        };
        match parse(&text, pod) {
            Some((Match::Uid, path)) => by_uid.push(path),
            Some((Match::Name, path)) => by_name.push(path),
            None => {}
        }
    }
    by_uid.append(&mut by_name);
    Ok(by_uid)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// How a note names the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    Uid,
    Name,
}

/// A file of the cache, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    #[serde(default)]
    if_name: String,
    /// Since CNI 1.1.
    netns: Option<PathBuf>,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: Outcome,
}

#[derive(Default, Deserialize)]
struct Outcome {
    #[serde(default)]
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    sandbox: Option<PathBuf>,
}

/// The namespace's path if the note is about the pod.
fn parse(text: &str, pod: Pod<'_>) -> Option<(Match, PathBuf)> {
    let note: Note = serde_json::from_str(text).ok()?;
    let arg = |key| {
        let found = note.cni_args.iter().find(|(name, _)| name == key);
        found.map_or("", |(_, value)| value.as_str())
    };
    let by = if pod.uids.contains(&arg("K8S_POD_UID")) {
        Match::Uid
    } else if arg("K8S_POD_NAMESPACE") == pod.namespace && arg("K8S_POD_NAME") == pod.name {
        Match::Name
    } else {
        return None;
    };
    let of_interface = || {
        let mut interfaces = note.result.interfaces.iter();
        interfaces
            .find(|found| found.name == note.if_name)?
            .sandbox
            .clone()
    };
    let path = note.netns.clone().or_else(of_interface)?;
    path.is_absolute().then_some((by, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6c1a2b0e-7c2f-4f1e-9f6b-8f2f3a1d0b11";

    fn find(text: &str) -> Option<(Match, PathBuf)> {
        let pod = Pod {
            uids: &[UID],
            namespace: "zoo",
            name: "bear-0",
        };
        parse(text, pod)
    }

    fn note(args: &str, rest: &str) -> String {
        format!(
            r#"{{"kind":"cniCacheV1","containerId":"c1","config":"e30=","ifName":"eth0",{rest},"cniArgs":{args}}}"#
        )
    }

    const BY_UID: &str = r#"[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","zoo"],["K8S_POD_NAME","bear-0"],
        ["K8S_POD_UID","6c1a2b0e-7c2f-4f1e-9f6b-8f2f3a1d0b11"]]"#;

    #[test]
    fn forms_of_all_library_versions_are_read() {
        let newer = note(
            BY_UID,
            r#""networkName":"pods","netns":"/var/run/netns/cni-1""#,
        );
        let older = note(
            BY_UID,
            r#""networkName":"pods","result":{"cniVersion":"1.0.0","interfaces":[{"name":"bridge"},
               {"name":"veth1"},{"name":"eth0","mac":"m","sandbox":"/var/run/netns/cni-2"}],"ips":[]}"#,
        );
        let path = |text: &str| find(text).map(|(by, path)| (by, path.display().to_string()));
        assert_eq!(
            path(&newer),
            Some((Match::Uid, "/var/run/netns/cni-1".into()))
        );
        assert_eq!(
            path(&older),
            Some((Match::Uid, "/var/run/netns/cni-2".into()))
        );
    }

    #[test]
    fn a_pod_is_known_by_uid_and_else_by_name() {
        let netns = r#""netns":"/n""#;
        let other_uid = BY_UID.replace("6c1a", "7d2b");
        assert_eq!(
            find(&note(&other_uid, netns)).map(|(by, _)| by),
            Some(Match::Name)
        );
        let other_name = other_uid.replace("bear-0", "bear-1");
        assert_eq!(find(&note(&other_name, netns)), None);
    }

    #[test]
    fn what_is_no_note_is_passed_over() {
        for text in [
            "",
            "{",
            "[]",
            "null",
            r#"{"ifName":7}"#,
            &note(BY_UID, r#""netns":"relative/path""#),
            &note(BY_UID, r#""result":{"interfaces":[{"name":"eth0"}]}"#),
            &note("[]", r#""netns":"/n""#),
            &note(r#"[["only one"]]"#, r#""netns":"/n""#),
        ] {
            assert_eq!(find(text), None, "{text}");
        }
    }

    #[test]
    fn uid_comes_before_name_and_broken_files_hide_nothing() {
        let cache = std::env::temp_dir().join(format!("ambit-results-{}", std::process::id()));
        let folder = cache.join(FOLDER);
        fs::create_dir_all(&folder).unwrap();
        let other = BY_UID.replace("6c1a", "7d2b");
        fs::write(folder.join("a"), note(&other, r#""netns":"/by/name""#)).unwrap();
        fs::write(folder.join("b"), [0xff, 0xfe]).unwrap();
        fs::write(folder.join("c"), note(BY_UID, r#""netns":"/by/uid""#)).unwrap();
        let pod = Pod {
            uids: &[UID],
            namespace: "zoo",
            name: "bear-0",
        };
        let found = paths(&cache, pod);
        fs::remove_dir_all(&cache).unwrap();
        assert_eq!(
            found.unwrap(),
            [Path::new("/by/uid"), Path::new("/by/name")]
        );
        assert!(paths(&cache, pod).is_err());
    }
}
