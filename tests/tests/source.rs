//! Reads this repository's own files for the tests that check its structure.

use std::fs;
use std::path::{Path, PathBuf};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the repository")
        .to_path_buf()
}

/// The text of a file, by its path from the root.
pub(crate) fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// One Rust file of ours.
pub(crate) struct Source {
    /// Path from the repository's root.
    pub(crate) path: String,
    /// Everything before the file's tests.
    pub(crate) code: String,
    /// The whole file.
    pub(crate) whole: String,
}

/// Every Rust file under a folder, in order of path; generated code is left out.
pub(crate) fn sources(folder: &str) -> Vec<Source> {
    let mut files = Vec::new();
    walk(&root().join(folder), &mut files);
    files.sort();
    let base = root();
    let relative = |file: &PathBuf| {
        file.strip_prefix(&base)
            .expect("under the root")
            .display()
            .to_string()
    };
    files
        .iter()
        .map(|file| {
            (
                relative(file),
                fs::read_to_string(file).expect("a Rust file is text"),
            )
        })
        .filter(|(path, _)| !path.contains("/src/proto/"))
        .map(|(path, whole)| Source {
            code: before_tests(&whole),
            path,
            whole,
        })
        .collect()
}

fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.map(|e| e.expect("a readable folder").path()) {
        if entry.is_dir() {
            if !entry.ends_with("target") {
                walk(&entry, into);
            }
        } else if entry.extension().is_some_and(|e| e == "rs") {
            into.push(entry);
        }
    }
}

/// Cuts a file at its tests, which stand last.
pub(crate) fn before_tests(whole: &str) -> String {
    match whole.find("\n#[cfg(test)]\nmod ") {
        Some(at) => whole[..=at].to_owned(),
        None => whole.to_owned(),
    }
}

/// The code without comments, so that words in prose are no finding.
pub(crate) fn without_comments(code: &str) -> String {
    code.lines()
        .map(|line| line.find("//").map_or(line, |at| &line[..at]))
        .collect::<Vec<_>>()
        .join("\n")
}
