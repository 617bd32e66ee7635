//! Files that only this program's user may read: written whole or not at all, refused when others own or may read them.
//!
//! Called by whoever keeps keys, tokens and reports. Blocks; callers on async threads move it off them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// Largest file that is read or written, in bytes: a report of all pods of a node.
const MAX_BYTES: u64 = 4 << 20;
/// Bits of a file's mode that let others than its user in.
const OTHERS: u32 = 0o077;
/// Bits of a directory's mode that let others exchange the files in it.
const OTHERS_WRITE: u32 = 0o022;
/// The super-user, who may do everything anyway.
const ROOT: u32 = 0;
/// Owned by the user that this process runs as (`man 5 proc`).
const OWN_PROCESS: &str = "/proc/self";

/// Why a private file cannot be used.
#[derive(Debug, Error)]
pub enum PrivateFileError {
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others may read or write it.
    #[error(
        "{path} is open to others (mode {mode:04o}): it may be known to them; replace it, or `chmod 600 {path}` if it is not"
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is somebody else's, who can change it at any time.
    #[error(
        "{path} belongs to user {owner}, who may change it at any time; `chown` it to the user of this program"
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its user.
        owner: u32,
    },
    /// Others may exchange the files in it.
    #[error(
        "others may write to {path} (mode {mode:04o}) and so exchange what is in it; `chmod go-w {path}`"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is larger than anything that is written there, or no file.
    #[error("{0} is no file of ours: it is not a regular file, or larger than 4 MiB")]
    Form(PathBuf),
}

impl PrivateFileError {
    /// True when the file is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Makes a directory, with those above it, that only its user may enter. One that is there is left as it is.
///
/// # Errors
/// When the system refuses.
pub fn make_dir(path: &Path) -> Result<(), PrivateFileError> {
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(at(path))
}

/// Checks that nobody else can exchange the files in a directory.
///
/// # Errors
/// When it is another user's, others may write to it, or it cannot be looked at.
pub fn check_dir(path: &Path) -> Result<(), PrivateFileError> {
    let metadata = fs::metadata(path).map_err(at(path))?;
    check_owner(path, &metadata)?;
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS_WRITE == 0 {
        return Ok(());
    }
    Err(PrivateFileError::Directory {
        path: path.to_owned(),
        mode,
    })
}

/// Reads a file that nobody else may read.
///
/// # Errors
/// When it cannot be read, is another user's or open to others, or is no regular file.
pub fn read(path: &Path) -> Result<Vec<u8>, PrivateFileError> {
    let file = File::open(path).map_err(at(path))?;
    let metadata = file.metadata().map_err(at(path))?;
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(PrivateFileError::Form(path.to_owned()));
    }
    check_owner(path, &metadata)?;
    if mode & OTHERS != 0 {
        return Err(PrivateFileError::Permissions {
            path: path.to_owned(),
            mode,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(at(path))?;
    Ok(bytes)
}

/// Writes a file anew, in place of one that may be there; after a crash there is the old one or the new one.
///
/// # Errors
/// When the system refuses; the old file stays.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), PrivateFileError> {
    write(path, bytes, 0o600, |temporary| fs::rename(temporary, path))
}

/// Writes a file that everybody may read, in place of one that may be there.
///
/// # Errors
/// When the system refuses; the old file stays.
pub fn replace_public(path: &Path, bytes: &[u8]) -> Result<(), PrivateFileError> {
    write(path, bytes, 0o644, |temporary| fs::rename(temporary, path))
}

/// Writes a file that must not be there yet; false when it is, and then nothing has changed.
///
/// # Errors
/// When the system refuses.
pub fn create(path: &Path, bytes: &[u8]) -> Result<bool, PrivateFileError> {
    // A link to a name that is taken fails, unlike a rename.
    let link = |temporary: &Path| {
        let linked = fs::hard_link(temporary, path);
        fs::remove_file(temporary)?;
        linked
    };
    match write(path, bytes, 0o600, link) {
        Ok(()) => Ok(true),
        Err(PrivateFileError::Io { source, .. })
            if source.kind() == io::ErrorKind::AlreadyExists =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Refuses what neither we nor the super-user own: its owner may write it whatever the mode says.
fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), PrivateFileError> {
    let process = Path::new(OWN_PROCESS);
    let own = fs::metadata(process).map_err(at(process))?.uid();
    let owner = metadata.uid();
    if owner == own || owner == ROOT {
        return Ok(());
    }
    let path = path.to_owned();
    Err(PrivateFileError::Owner { path, owner })
}

/// Writes a temporary file beside `path` and lets `publish` give it its name.
fn write(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    publish: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), PrivateFileError> {
    // Two writers at once do not meet.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    if bytes.len() as u64 > MAX_BYTES {
        // It could not be read again.
        return Err(PrivateFileError::Form(path.to_owned()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id()));
    let written = || -> io::Result<()> {
        // Left behind by a crash of a process with our number, if at all.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        publish(&temporary)?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PrivateFileError + '_ {
    |source| PrivateFileError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::testing::Dir;

    #[test]
    fn what_is_written_is_read_and_ours_alone() {
        let dir = Dir::new();
        let file = dir.path("a");
        replace(&file, b"one").unwrap();
        replace(&file, b"two").unwrap();
        assert_eq!(read(&file).unwrap(), b"two");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(&dir.0).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn a_file_that_is_there_is_not_created_again() {
        let dir = Dir::new();
        let file = dir.path("a");
        assert!(create(&file, b"one").unwrap());
        assert!(!create(&file, b"two").unwrap());
        assert_eq!(read(&file).unwrap(), b"one");
        assert_eq!(
            fs::read_dir(&dir.0).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = Dir::new();
        let file = dir.path("a");
        replace(&file, b"one").unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let refused = read(&file);
            assert!(
                matches!(refused, Err(PrivateFileError::Permissions { .. })),
                "{mode:o}"
            );
        }
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = Dir::new();
        for (mode, refused) in [(0o755, false), (0o700, false), (0o775, true), (0o757, true)] {
            fs::set_permissions(&dir.0, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_dir(&dir.0).is_err(), refused, "{mode:o}");
        }
    }

    #[test]
    fn what_another_user_owns_is_refused() {
        let dir = Dir::new();
        let file = dir.path("a");
        replace(&file, b"one").unwrap();
        let theirs = Some(65_534);
        if std::os::unix::fs::chown(&file, theirs, None).is_err() {
            // Only the super-user can give a file away, and only he can read one that is not his.
            return;
        }
        let refused = [read(&file).map(drop), {
            std::os::unix::fs::chown(&dir.0, theirs, None).unwrap();
            check_dir(&dir.0)
        }];
        for refused in refused {
            assert!(
                matches!(refused, Err(PrivateFileError::Owner { owner: 65_534, .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn what_could_not_be_read_again_is_not_written() {
        let dir = Dir::new();
        let file = dir.path("a");
        let large = vec![b'x'; 4 << 20];
        replace(&file, &large).unwrap();
        assert!(replace(&file, &[large, vec![b'x']].concat()).is_err());
        assert_eq!(read(&file).unwrap().len(), 4 << 20);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = Dir::new();
        assert!(matches!(read(&dir.0), Err(PrivateFileError::Form(_))));
        assert!(read(&dir.path("none")).unwrap_err().is_not_found());
    }
}
