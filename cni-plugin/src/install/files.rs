//! Files that other programs read and write too: exchanged whole, and never at the price of what another one wrote.
//!
//! Called by `install.rs`. Blocking. Knows nothing of what is in them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Endings of files that container runtimes read as network configurations, in the order of their names.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// Times that another program may write a file while we put back what it wrote before.
const ATTEMPTS: usize = 8;

/// What became of [`exchange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchanged {
    /// The file is as it should be.
    Done,
    /// Another program wrote it at the same time, or took it away: what that one did stands.
    Contended,
}

/// The names of network configurations in a directory, in the order in which runtimes try them.
pub(super) fn configurations(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| ENDINGS.contains(&ending)) && !entry.file_type()?.is_dir() {
            found.push(path);
        }
    }
    found.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(found)
}

/// Puts `bytes` in the place of a file, so that a crash leaves the old or the new one. Nobody else writes that file.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let fresh = Fresh::write(path, bytes, mode)?;
    fs::rename(&fresh.0, path)?;
    sync_directory(path)
}

/// Puts `bytes` in the place of a file that was read as `seen`, keeping its mode and owner. If another program has written it
/// meanwhile, that stays.
pub(super) fn exchange(path: &Path, seen: &[u8], bytes: &[u8]) -> io::Result<Exchanged> {
    let old = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Exchanged::Contended),
        old => old?,
    };
    let fresh = Fresh::write(path, bytes, old.mode() & 0o7777)?;
    fresh.give_to(&old)?;
    let mut found = match fresh.swap(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Exchanged::Contended),
        found => found?,
    };
    if found == seen {
        sync_directory(path)?;
        return Ok(Exchanged::Done);
    }
    // Theirs goes back; that takes no room on the disk. What comes out then should be what we have put there: anything else is
    // newer still.
    let mut put = bytes.to_vec();
    for _ in 0..ATTEMPTS {
        let came = fresh.swap(path)?;
        if came == put {
            break;
        }
        put = std::mem::replace(&mut found, came);
    }
    Ok(Exchanged::Contended)
}

/// A file beside the one that it is to replace; removed on drop, whatever it is by then.
struct Fresh(PathBuf);

impl Fresh {
    fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default();
        // No runtime reads files of this ending.
        let name = format!(".{}.ambit", name.to_string_lossy());
        let fresh = Self(path.with_file_name(name));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        let mut file = options.open(&fresh.0)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(fresh)
    }

    /// Gives the file the owner of another one. Without the privilege for that it stays ours, which runtimes can read too.
    fn give_to(&self, old: &Metadata) -> io::Result<()> {
        let file = File::open(&self.0)?;
        let own = file.metadata()?;
        if (own.uid(), own.gid()) == (old.uid(), old.gid()) {
            return Ok(());
        }
        match fchown(file, Some(old.uid()), Some(old.gid())) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            done => done,
        }
    }

    /// Exchanges the two in one step of the kernel; returns what was in the other's place.
    fn swap(&self, path: &Path) -> io::Result<Vec<u8>> {
        let flags = RenameFlags::RENAME_EXCHANGE;
        match renameat2(AT_FDCWD, &self.0, AT_FDCWD, path, flags) {
            Ok(()) => fs::read(&self.0),
            // A file system that cannot exchange: there, what is written between these two lines is lost.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                let found = fs::read(path)?;
                fs::rename(&self.0, path)?;
                Ok(found)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // After a rename it is gone already.
        drop(fs::remove_file(&self.0));
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
