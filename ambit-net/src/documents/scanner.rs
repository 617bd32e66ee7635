//! The state behind a watched directory: one look compares, reads what has settled and keeps what was good.
//!
//! Called by [`super::Directory`] off the async threads; blocks on files. A file is read once two looks in a row found
//! it the same, so one that is being written is left alone; only the very first look reads at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::split;
use super::{Document, Limits, Problem, Snapshot};

/// Everything that changes when a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug, Default)]
struct FileState {
    /// What the last look found.
    seen: Option<Signature>,
    /// What was last read after it had settled.
    read: Option<Signature>,
    /// True once the whole file was good.
    good: bool,
    documents: Vec<Arc<Document>>,
    problems: Vec<Problem>,
}

/// What is known of a directory.
#[derive(Debug)]
pub(super) struct Scanner {
    dir: Arc<Path>,
    limits: Limits,
    first_look: bool,
    generation: u64,
    files: BTreeMap<PathBuf, FileState>,
    /// Why the directory could not be looked at.
    unreadable: Option<Problem>,
}

impl Scanner {
    /// Knows nothing yet.
    pub(super) fn new(dir: Arc<Path>, limits: Limits) -> Self {
        Self {
            dir,
            limits,
            first_look: true,
            generation: 0,
            files: BTreeMap::new(),
            unreadable: None,
        }
    }

    /// A number that is another one whenever the snapshot is another one.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// What is in force now.
    pub(super) fn snapshot(&self) -> Snapshot {
        let files = self.files.values();
        Snapshot {
            complete: !self.first_look,
            documents: files.clone().flat_map(|f| &f.documents).cloned().collect(),
            problems: self
                .unreadable
                .iter()
                .chain(files.flat_map(|f| &f.problems))
                .cloned()
                .collect(),
        }
    }

    /// Looks at the directory once.
    pub(super) fn look(&mut self) {
        let before = (self.first_look, self.unreadable.take());
        let found = match self.list() {
            Ok(found) => found,
            Err(cause) => {
                self.unreadable = Some(problem(&self.dir, cause, !self.files.is_empty()));
                if self.unreadable != before.1 {
                    self.generation += 1;
                    self.unreadable.iter().for_each(log);
                }
                return;
            }
        };
        if before.1.is_some() {
            self.generation += 1;
        }
        self.first_look = false;
        let known: BTreeSet<_> = found.keys().chain(self.files.keys()).cloned().collect();
        for path in known {
            let changed = self.look_at(&path, found.get(&path).copied(), before.0);
            self.generation += u64::from(changed);
        }
    }

    /// Looks at one file; true when what it says has changed.
    fn look_at(&mut self, path: &Path, now: Option<Signature>, at_once: bool) -> bool {
        let limits = self.limits;
        let state = self.files.entry(path.to_owned()).or_default();
        let settled = at_once || state.seen == now;
        state.seen = now;
        let Some(now) = now else {
            let gone = settled.then(|| self.files.remove(path)).flatten();
            return gone.is_some_and(|was| !was.documents.is_empty() || !was.problems.is_empty());
        };
        if !settled || state.read == Some(now) {
            return false;
        }
        // What was read on the first look may have been half of it: it is read again when it has settled.
        state.read = (!at_once).then_some(now);
        match read(path, now, limits) {
            Ok(None) => {
                state.read = None;
                false
            }
            Ok(Some(text)) => state.take_text(path, &text),
            Err(cause) => {
                let problem = problem(&path.into(), cause, state.good);
                state.replace(None, vec![problem])
            }
        }
    }

    /// The files that count.
    fn list(&self) -> Result<BTreeMap<PathBuf, Signature>, String> {
        let unreadable = |error: io::Error| format!("the directory cannot be read: {error}");
        let mut found = BTreeMap::new();
        let mut bytes = 0_u64;
        for entry in fs::read_dir(&self.dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if !counts(&path) {
                continue;
            }
            // A name that is gone again, or a link that leads nowhere, is a file that is not there.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if !metadata.is_file() {
                continue;
            }
            bytes = bytes.saturating_add(metadata.len());
            found.insert(path, Signature::of(&metadata));
            if found.len() > self.limits.files {
                return Err(format!(
                    "more than {} files; what was read before stays",
                    self.limits.files
                ));
            }
        }
        if bytes > self.limits.total_bytes {
            return Err(format!(
                "its files have {bytes} bytes, more than {}; what was read before stays",
                self.limits.total_bytes
            ));
        }
        Ok(found)
    }
}

impl FileState {
    /// Takes what the file says now; true when that is a change.
    fn take_text(&mut self, path: &Path, text: &str) -> bool {
        let file: Arc<Path> = path.into();
        if text.trim().is_empty() && !self.documents.is_empty() {
            let cause = "the file is empty; remove it to withdraw its documents".to_owned();
            return self.replace(None, vec![problem(&file, cause, true)]);
        }
        let (mut documents, mut problems) = (Vec::new(), Vec::new());
        for piece in split::documents(text) {
            let document = |value| Document {
                file: Arc::clone(&file),
                line: piece.line,
                value,
            };
            match piece.parsed {
                Ok(value) => documents.push(Arc::new(document(value))),
                Err(fault) => problems.push(Problem {
                    file: Arc::clone(&file),
                    line: Some(fault.line),
                    cause: fault.cause,
                    previous_in_force: self.good,
                    head: fault.head.map(document),
                }),
            }
        }
        if problems.is_empty() {
            self.good = true;
        } else if self.good {
            return self.replace(None, problems);
        }
        // A file that never was whole gives what can be read of it.
        self.replace(Some(documents), problems)
    }

    fn replace(&mut self, documents: Option<Vec<Arc<Document>>>, problems: Vec<Problem>) -> bool {
        let mut changed = false;
        if self.problems != problems {
            problems.iter().for_each(log);
            self.problems = problems;
            changed = true;
        }
        if let Some(documents) = documents.filter(|new| *new != self.documents) {
            self.documents = documents;
            changed = true;
        }
        changed
    }
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The file's text; none when it is no longer the one that was looked at.
fn read(path: &Path, expected: Signature, limits: Limits) -> Result<Option<String>, String> {
    if expected.bytes > limits.file_bytes {
        return Err(format!(
            "the file has {} bytes, more than {}",
            expected.bytes, limits.file_bytes
        ));
    }
    let attempt = || -> io::Result<Option<Vec<u8>>> {
        let mut file = File::open(path)?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(limits.file_bytes + 1)
            .read_to_end(&mut bytes)?;
        let same = Signature::of(&file.metadata()?) == expected;
        Ok(same.then_some(bytes))
    };
    let bytes = match attempt() {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("the file cannot be read: {error}")),
    };
    bytes
        .map(String::from_utf8)
        .transpose()
        .map_err(|error| format!("the file is not UTF-8: {error}"))
}

fn counts(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let extension = path.extension().and_then(|extension| extension.to_str());
    name.is_some_and(|name| !name.starts_with(['.', '#']))
        && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn problem(file: &Arc<Path>, cause: String, previous_in_force: bool) -> Problem {
    Problem {
        file: Arc::clone(file),
        line: None,
        cause,
        previous_in_force,
        head: None,
    }
}

fn log(problem: &Problem) {
    tracing::warn!(
        file = %problem.file.display(),
        line = problem.line,
        cause = problem.cause,
        previous_in_force = problem.previous_in_force,
        "manifests have an error"
    );
}
