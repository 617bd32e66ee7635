//! The rules of the house, checked by reading the source: who may import whom, the order of layers, sizes, and that
//! product code knows nothing of tests.
//!
//! `docs/architecture.md` shows the table below; `documents.rs` keeps the two equal.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, before_tests, root, sources, text, without_comments};

/// What one crate may name in its manifest.
pub(crate) struct CrateRule {
    /// Folder and package name.
    pub(crate) name: &'static str,
    /// Crates of ours that it may use.
    pub(crate) ours: &'static [&'static str],
    /// Crates of others that it may name.
    pub(crate) others: &'static [&'static str],
    /// What it must not know, for the reader.
    pub(crate) must_not_know: &'static str,
}

/// The one-way rule.
pub(crate) const RULES: &[CrateRule] = &[
    CrateRule {
        name: "ambit-core",
        ours: &[],
        others: &["ipnet", "serde", "thiserror"],
        must_not_know: "runtimes, sockets, files, environment; clock and randomness are arguments",
    },
    CrateRule {
        name: "ambit-net",
        ours: &["ambit-core"],
        others: &[
            "aws-lc-rs",
            "bytes",
            "fastrand",
            "futures-util",
            "h2",
            "http",
            "http-body-util",
            "hyper",
            "hyper-util",
            "ipnet",
            "nix",
            "pin-project-lite",
            "prost",
            "prost-types",
            "rcgen",
            "rustls",
            "rustls-pki-types",
            "rustls-webpki",
            "serde",
            "serde-saphyr",
            "serde_json",
            "socket2",
            "thiserror",
            "tokio",
            "tokio-rustls",
            "tokio-stream",
            "tonic",
            "tonic-prost",
            "tower",
            "tracing",
            "tracing-subscriber",
            "x509-parser",
        ],
        must_not_know: "Kubernetes objects, pods",
    },
    CrateRule {
        name: "ztunnel",
        ours: &["ambit-core", "ambit-net"],
        others: &[
            "bytes",
            "fastrand",
            "mimalloc",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tracing",
        ],
        must_not_know: "Kubernetes, HTTP beyond CONNECT; TLS, h2, xDS and sockets only through ambit-net",
    },
    CrateRule {
        name: "waypoint",
        ours: &["ambit-core", "ambit-net"],
        others: &[],
        must_not_know: "Kubernetes, network namespaces",
    },
    CrateRule {
        name: "controller",
        ours: &["ambit-core", "ambit-net"],
        others: &[
            "fastrand",
            "futures-util",
            "ipnet",
            "k8s-openapi",
            "kube",
            "prost-types",
            "rcgen",
            "rustls-pki-types",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tokio-stream",
            "tonic",
            "tracing",
            "x509-parser",
        ],
        must_not_know: "socket options, h2 streams, network namespaces",
    },
    CrateRule {
        name: "cni-plugin",
        ours: &["ambit-core", "ambit-net"],
        others: &[
            "futures-util",
            "k8s-openapi",
            "kube",
            "netlink-packet-core",
            "netlink-packet-netfilter",
            "netlink-packet-route",
            "netlink-sys",
            "nix",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
            "tracing",
        ],
        must_not_know: "TLS, h2, xDS",
    },
    CrateRule {
        name: "cli",
        ours: &["ambit-core", "ambit-net"],
        others: &[
            "bytes",
            "clap",
            "comfy-table",
            "futures-util",
            "http-body-util",
            "hyper",
            "hyper-util",
            "k8s-openapi",
            "kube",
            "serde_json",
            "thiserror",
            "tokio",
        ],
        must_not_know: "socket options, h2 streams, network namespaces",
    },
];

/// Words of the tests and the demonstration that no product code may know.
const TEST_WORDS: &[&str] = &["ambit-test", "test-app", "ambit-demo", "shop"];

/// Non-test lines that a file may have.
const MAX_LINES: usize = 400;

#[test]
fn crates_import_one_way() {
    let known: BTreeSet<&str> = RULES
        .iter()
        .map(|r| r.name)
        .chain(["tests", "benches"])
        .collect();
    for rule in RULES {
        for dependency in dependencies(rule.name) {
            let dependency = dependency.as_str();
            let allowed = if known.contains(dependency) {
                rule.ours
            } else {
                rule.others
            };
            assert!(
                allowed.contains(&dependency),
                "{} may not depend on {dependency}; the rule is in tests/tests/architecture.rs",
                rule.name
            );
        }
    }
}

#[test]
fn no_rule_allows_what_nobody_uses() {
    for rule in RULES {
        let used = dependencies(rule.name);
        for allowed in rule.others {
            assert!(
                used.contains(*allowed),
                "{} no longer uses {allowed}",
                rule.name
            );
        }
    }
}

#[test]
fn modules_use_layers_above_them_only() {
    for rule in RULES {
        let crate_root = format!("{}/src/lib.rs", rule.name);
        if !root().join(&crate_root).exists() {
            continue;
        }
        let layers = module_order(&before_tests(&text(&crate_root)));
        let level: BTreeMap<&str, usize> = layers
            .iter()
            .enumerate()
            .map(|(i, m)| (m.as_str(), i))
            .collect();
        for file in sources(&format!("{}/src", rule.name)) {
            let Some(own) =
                top_module(rule.name, &file.path).and_then(|m| level.get(m.as_str()).copied())
            else {
                continue;
            };
            for used in used_modules(&without_comments(&file.code)) {
                let Some(&of) = level.get(used.as_str()) else {
                    continue;
                };
                assert!(
                    of <= own,
                    "{} uses `{used}`, which stands below it in {crate_root}",
                    file.path
                );
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for file in all_sources() {
        assert!(
            file.whole.starts_with("//!"),
            "{} does not begin with `//!`",
            file.path
        );
    }
}

#[test]
fn files_stay_short() {
    // Generated files say so in their first line, and who writes them decides on their length.
    let is_exempt = |f: &Source| {
        f.path.starts_with("tests/")
            || f.path.ends_with("/tests.rs")
            || f.whole.starts_with("//! Generated from ")
    };
    for file in all_sources().filter(|f| !is_exempt(f)) {
        let lines = file.code.lines().count();
        assert!(
            lines <= MAX_LINES,
            "{} has {lines} lines before its tests; split it by subject",
            file.path
        );
    }
}

#[test]
fn product_code_knows_no_test() {
    for rule in RULES {
        for file in sources(&format!("{}/src", rule.name)) {
            if file.path.contains("/tests") || file.path.contains("/testing") {
                continue;
            }
            let code = without_comments(&file.code);
            for word in TEST_WORDS {
                assert!(
                    !code.contains(word),
                    "{} names `{word}`, a word of the tests",
                    file.path
                );
            }
        }
    }
}

#[test]
fn unsafe_stands_only_where_the_security_page_lists_it() {
    let page = text("docs/security.md");
    let block = concat!("unsafe", " {");
    for file in all_sources() {
        if without_comments(&file.whole).contains(block) {
            assert!(
                page.contains(&format!("`{}`", file.path)),
                "docs/security.md does not list {}",
                file.path
            );
        }
    }
}

fn all_sources() -> impl Iterator<Item = Source> {
    let folders = RULES.iter().map(|r| format!("{}/src", r.name));
    folders
        .chain([
            "tests/src".to_owned(),
            "tests/tests".to_owned(),
            "benches/src".to_owned(),
        ])
        .flat_map(|folder| sources(&folder))
}

/// Names in a crate's `[dependencies]`; its tests may use more.
fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest = text(&format!("{name}/Cargo.toml"));
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside && !line.trim().is_empty() && !line.starts_with('#') {
            let end = line.find(['.', ' ', '=']).unwrap_or(line.len());
            found.insert(line[..end].to_owned());
        }
    }
    found
}

/// The modules of a crate in the order of their `mod` lines.
fn module_order(lib: &str) -> Vec<String> {
    lib.lines()
        .filter_map(|line| {
            let rest = line
                .strip_prefix("pub mod ")
                .or_else(|| line.strip_prefix("pub(crate) mod "));
            rest.or_else(|| line.strip_prefix("mod "))
                .and_then(|r| r.strip_suffix(';'))
        })
        .map(str::to_owned)
        .collect()
}

/// The module directly under the crate's root to which a file belongs.
fn top_module(name: &str, path: &str) -> Option<String> {
    let inside = path.strip_prefix(&format!("{name}/src/"))?;
    let first = inside.split('/').next()?;
    Some(first.trim_end_matches(".rs").to_owned())
}

/// The modules named by `crate::x` and `use crate::{x, y}`.
fn used_modules(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with('$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group_names(group)),
            None => found.extend(identifier(rest)),
        }
    }
    found
}

/// First identifiers of the members of a braced import.
fn group_names(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut names = Vec::new();
    let mut fresh = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && (c.is_alphabetic() || c == '_') => {
                names.extend(identifier(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> Option<String> {
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

#[test]
fn the_reader_of_imports_sees_groups_and_paths() {
    let code = "use crate::{a::{x, y}, b};\nfn f() { crate::c::d(); $crate::e!() }";
    let found: Vec<_> = used_modules(code).into_iter().collect();
    assert_eq!(found, ["a", "b", "c"]);
}
