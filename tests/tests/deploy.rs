//! The manifests in deploy/ agree with the programs, and give no more than they say.
//!
//! Read as text; that a cluster takes them is shown by the tests on one.

use std::fs;

use crate::source::{root, text};

/// The files that `kubectl apply -k deploy/` applies.
const BASE: [&str; 7] = [
    "namespace",
    "agent",
    "ztunnel",
    "controller",
    "rbac-operator",
    "rbac-controller",
    "rbac-agent",
];

/// Who has pods.
const PROGRAMS: [&str; 3] = ["agent", "ztunnel", "controller"];

fn base(name: &str) -> String {
    text(&format!("deploy/base/{name}.yaml"))
}

/// The lines of `text` that begin with `key`, without it.
fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let line = move |line: &'a str| line.trim_start_matches([' ', '-']).strip_prefix(key);
    text.lines().filter_map(line).map(str::trim)
}

#[test]
fn every_manifest_is_listed() {
    let listed = text("deploy/base/kustomization.yaml");
    let folder = root().join("deploy/base");
    let files = fs::read_dir(folder).expect("deploy/base is there");
    let mut files: Vec<_> = files
        .map(|file| file.expect("readable").file_name())
        .filter_map(|file| Some(file.to_str()?.strip_suffix(".yaml")?.to_owned()))
        .filter(|name| name != "kustomization")
        .collect();
    files.sort();
    let mut expected = BASE;
    expected.sort_unstable();
    assert_eq!(files, expected);
    for name in BASE {
        let line = format!("  - {name}.yaml\n");
        assert!(listed.contains(&line), "{name} is not applied");
    }
}

#[test]
fn manifests_name_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    for name in PROGRAMS {
        let manifest = base(name);
        let image = format!("ambit.mesh/{name}:{version}");
        assert_eq!(values(&manifest, "image:").collect::<Vec<_>>(), [image]);
        let labels: Vec<_> = values(&manifest, "app.kubernetes.io/version:").collect();
        assert_eq!(labels, [version], "{name}");
    }
}

#[test]
fn manifests_set_what_programs_know() {
    let known = text("docs/config.md");
    for name in PROGRAMS {
        let section = match name {
            "agent" => "## ambit-cni-agent",
            "ztunnel" => "## ztunnel",
            _ => "## controller",
        };
        let at = known.find(section).expect("a section for each program");
        let section = known[at + 3..].split("\n## ").next().unwrap_or_default();
        let manifest = base(name);
        let env = manifest
            .split_once("env:\n")
            .expect("each has variables")
            .1
            .split_once("ports:\n")
            .expect("ports stand after them")
            .0;
        // ztunnel's allocator has variables of its own.
        let ours = |variable: &&str| !variable.starts_with("MIMALLOC_");
        for variable in values(env, "name:").filter(ours) {
            assert!(
                section.contains(&format!("`{variable}`")),
                "{name} knows no {variable}"
            );
        }
    }
}

#[test]
fn pods_are_locked_down() {
    let needed = [
        "enableServiceLinks: false",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "drop: [ALL]",
        "type: RuntimeDefault",
        "imagePullPolicy: IfNotPresent",
    ];
    for name in PROGRAMS {
        let manifest = base(name);
        for line in needed {
            assert!(manifest.contains(line), "{name} lacks `{line}`");
        }
        for word in ["privileged:", "hostPID:", "hostIPC:"] {
            assert!(!manifest.contains(word), "{name} has `{word}`");
        }
        // A reason beside every capability.
        let capabilities: Vec<_> = manifest
            .lines()
            .skip_while(|line| line.trim() != "add:")
            .skip(1)
            .take_while(|line| line.trim_start().starts_with("- "))
            .collect();
        assert!(
            capabilities.iter().all(|line| line.contains(" # ")),
            "{name}"
        );
        assert_eq!(capabilities.is_empty(), name == "controller", "{name}");
    }
}

#[test]
fn every_right_has_its_reason() {
    for name in BASE.iter().filter(|name| name.starts_with("rbac-")) {
        let rules = base(name);
        assert!(!rules.contains('*'), "{name} grants a wildcard");
        let mut explained = false;
        for line in rules.lines() {
            match line {
                "rules:" => explained = false,
                line if line.starts_with("  # ") => explained = true,
                line if line.starts_with("  - apiGroups:") => {
                    assert!(explained, "{name}: no reason before {line}");
                }
                _ => {}
            }
        }
        for rule in rules.split("  - apiGroups:").skip(1) {
            let reads = rule.contains("[secrets]") && rule.contains("get");
            assert!(
                !reads || rule.contains("resourceNames: [ambit-ca]"),
                "{name} reads any Secret"
            );
        }
    }
}
