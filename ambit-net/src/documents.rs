//! A watched directory of YAML documents: what is in its files now, and what is wrong with them.
//!
//! Called by the controller's and the node agent's file sources, which give the documents a meaning. Knows no kinds
//! and no schema. A file that cannot be read or parsed never takes away what it said before.

mod scanner;
mod split;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use self::scanner::Scanner;

/// Time between two looks at the directory. A change counts once two looks agree, so it is seen after 250 to 500 ms.
pub const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Bounds of what is read from one directory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most files.
    pub files: usize,
    /// Most bytes in one file.
    pub file_bytes: u64,
    /// Most bytes in all files.
    pub total_bytes: u64,
}

impl Default for Limits {
    /// 4096 files, 4 MiB in one, 64 MiB in all: some hundred times what a large mesh needs.
    fn default() -> Self {
        Self {
            files: 4096,
            file_bytes: 4 << 20,
            total_bytes: 64 << 20,
        }
    }
}

/// One YAML document.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The file that it is from.
    pub file: Arc<Path>,
    /// Line of the file on which its content begins, counted from 1.
    pub line: usize,
    /// Its content; never null.
    pub value: Value,
}

/// What is wrong with the directory, a file or a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The file, or the directory itself.
    pub file: Arc<Path>,
    /// Line of the fault, counted from 1, where there is one.
    pub line: Option<usize>,
    /// The fault in one line.
    pub cause: String,
    /// True when what the file said before stays in force.
    pub previous_in_force: bool,
    /// What can be read of a document that cannot be parsed: its top-level fields above the fault.
    pub head: Option<Document>,
}

/// What a directory says at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// False until the directory could be read for the first time.
    pub complete: bool,
    /// Documents in force, by file name and line.
    pub documents: Vec<Arc<Document>>,
    /// What is wrong now, by file name and line. Each is logged once, when it appears.
    pub problems: Vec<Problem>,
}

/// A directory that is looked at four times a second.
///
/// Files named `*.yaml`, `*.yml` and `*.json` count, unless hidden; directories in it do not. Symbolic links are
/// followed.
#[derive(Debug)]
pub struct Directory {
    scanner: Arc<Mutex<Scanner>>,
    taken: Option<u64>,
}

impl Directory {
    /// Prepares to watch `dir`; nothing is read yet and it need not exist.
    pub fn new(dir: impl Into<PathBuf>, limits: Limits) -> Self {
        let scanner = Scanner::new(dir.into().into(), limits);
        Self {
            scanner: Arc::new(Mutex::new(scanner)),
            taken: None,
        }
    }

    /// Waits for a state that differs from the last one returned; the first call returns what is there.
    ///
    /// # Cancel safety
    /// Cancel safe: a change that was seen but not returned is returned by the next call.
    pub async fn next(&mut self) -> Snapshot {
        if self.taken.is_some() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        loop {
            let scanner = Arc::clone(&self.scanner);
            let look = tokio::task::spawn_blocking(move || {
                let mut scanner = scanner.lock().unwrap_or_else(PoisonError::into_inner);
                scanner.look();
                (scanner.generation(), scanner.snapshot())
            });
            match look.await {
                Ok((generation, snapshot)) if self.taken != Some(generation) => {
                    self.taken = Some(generation);
                    return snapshot;
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "a look at the manifests failed"),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests;
