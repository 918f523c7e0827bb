//! Reading and writing of small files: reads are bounded, and a write leaves either the old file or
//! the new one.

mod attributes;
mod system;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown};
use zeroize::Zeroizing;

pub use attributes::Attributes;
pub use system::{FileSystem, System};
use system::{open_folder_of, open_in};

use super::trust;

/// The largest file that is read, bytes: definitions, keys and certificates are far smaller.
pub const FILE_SIZE_MAX: u64 = 64 * 1024;

/// Mode of files that hold secrets.
pub const SECRET: u32 = 0o600;

/// Mode of files that anyone may read, less the process's mask.
pub const OPEN: u32 = 0o644;

/// Mode of folders that anyone may read, less the process's mask.
pub const FOLDER: u32 = 0o755;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Size, bytes.
    pub len: u64,
    /// Permission bits and kind.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    inode: (u64, u64),
    modified_ns: (i64, i64),
    /// Last change of content or permissions, seconds and nanoseconds since 1970.
    pub changed_ns: (i64, i64),
}

/// A file's text, as read.
#[derive(Debug)]
pub struct Text {
    /// The whole content. Wiped when dropped: it may hold keys.
    pub text: Zeroizing<String>,
    /// The state that was read.
    pub stamp: Stamp,
}

/// A file's content, as read.
#[derive(Debug)]
pub struct Bytes {
    /// The whole content. Wiped when dropped: it may hold keys.
    pub bytes: Zeroizing<Vec<u8>>,
    /// The state that was read.
    pub stamp: Stamp,
}

/// The present state of a file; `None` where there is none.
///
/// # Errors
/// The kernel's, but for a missing file.
pub fn stamp(path: &Path) -> io::Result<Option<Stamp>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(Stamp::of(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a small text file that nobody else can change.
///
/// # Errors
/// The kernel's; `InvalidData` where others can change it (see [`trust`]), where it is no plain
/// file, over [`FILE_SIZE_MAX`], or not UTF-8.
pub fn read(path: &Path) -> io::Result<Text> {
    let Bytes { bytes, stamp } = read_bytes(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        invalid(format!("is not UTF-8 text (line {line})"))
    })?;
    Ok(Text {
        text: Zeroizing::new(text.to_owned()),
        stamp,
    })
}

/// Reads a small file that nobody else can change, whatever is in it.
///
/// # Errors
/// The kernel's; `InvalidData` where others can change it (see [`trust`]), where it is no plain
/// file, or over [`FILE_SIZE_MAX`].
pub fn read_bytes(path: &Path) -> io::Result<Bytes> {
    trust::check_file(path)?;
    let (file, metadata) = open_plain(path)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        metadata.len().min(FILE_SIZE_MAX) as usize + 1,
    ));
    file.take(FILE_SIZE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_SIZE_MAX {
        return Err(invalid(format!("is larger than {FILE_SIZE_MAX} bytes")));
    }
    Ok(Bytes {
        bytes,
        stamp: Stamp::of(&metadata),
    })
}

/// Writes a new file, or leaves alone the one that is there.
///
/// # Errors
/// The kernel's; `AlreadyExists` where the file is there.
/// After any error the directory is as it was, or has the new file whole.
pub fn create(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    create_on(&System, path, text, mode)
}

/// The same as [`create`], on a file system.
///
/// # Errors
/// See [`create`].
pub fn create_on(system: &dyn FileSystem, path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let path = &in_followed_folder(path)?;
    let attributes = Attributes::new_in(parent(path), mode)?;
    // A hard link never replaces: of two writers at once, one wins and the other learns it.
    place(system, path, text, &attributes, |from, to| {
        system.link(from, to).and_then(|()| system.remove(from))
    })
}

/// Writes a file in place of the one that is there. Owner, group, mode, extended attributes and the
/// symbolic link that led to it stay. `mode` is for a new one; others lose their rights to a file
/// that gets the mode of secrets.
///
/// # Errors
/// The kernel's; `InvalidData` where the file that is there belongs to another user (see
/// [`trust`]); `PermissionDenied` where owner and group cannot be kept. After any error either the
/// old file is there whole, or the new one.
pub fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    replace_on(&System, path, text, mode)
}

/// The same as [`replace`], on a file system.
///
/// # Errors
/// See [`replace`].
pub fn replace_on(system: &dyn FileSystem, path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let path = &trust::follow(path)?;
    let attributes = match open_plain(path) {
        Ok((old, metadata)) => {
            // Its owner keeps it, and would read what is written.
            trust::check_owner(path, &metadata)?;
            Attributes::kept(path, &old, &metadata, mode)?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Attributes::new_in(parent(path), mode)?
        }
        Err(error) => return Err(error),
    };
    place(system, path, text, &attributes, |from, to| {
        system.rename(from, to)
    })
}

/// Writes a file of this program's own state, which is secret, in place of whatever has its name.
/// The new file has the owner of any file that is made there: one that root left behind in a
/// service's directory is in nobody's way.
///
/// # Errors
/// The kernel's. After any error either the old file is there whole, or the new one.
pub fn replace_own(path: &Path, text: &[u8]) -> io::Result<()> {
    replace_own_on(&System, path, text)
}

/// The same as [`replace_own`], on a file system.
///
/// # Errors
/// See [`replace_own`].
pub fn replace_own_on(system: &dyn FileSystem, path: &Path, text: &[u8]) -> io::Result<()> {
    let path = &in_followed_folder(path)?;
    let attributes = Attributes::new_in(parent(path), SECRET)?;
    place(system, path, text, &attributes, |from, to| {
        system.rename(from, to)
    })
}

/// Gives a file of a folder another name in that folder.
///
/// # Errors
/// The kernel's.
pub fn rename_on(system: &dyn FileSystem, path: &Path, name: &str) -> io::Result<()> {
    let path = &in_followed_folder(path)?;
    system.rename(path, &path.with_file_name(name))?;
    system.sync_folder(parent(path))
}

/// Opens a file that this program alone writes, like a lock or a log:
/// made where it is missing, never through a link.
///
/// # Errors
/// The kernel's; `InvalidData` where there is something else, or a file of another user.
pub fn open_own(path: &Path, flags: OFlags) -> io::Result<File> {
    let path = &in_followed_folder(path)?;
    let (folder, name) = open_folder_of(path)?;
    let flags = flags | OFlags::CREATE;
    let file = open_in(&folder, name, flags, Mode::RUSR | Mode::WUSR).map_err(|error| {
        if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
            trust::is_a_link(path)
        } else {
            error
        }
    })?;
    let metadata = file.metadata()?;
    trust::check_written(path, &metadata)?;
    // Made by root just now, or by an earlier version: its owner could not open it.
    if let Some((uid, gid)) = trust::owner_in(&fs::metadata(parent(path))?)
        && metadata.uid() != uid
    {
        fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(file)
}

/// Removes a file, for good. Whether there was one.
///
/// # Errors
/// The kernel's, but for a missing file.
pub fn remove_on(system: &dyn FileSystem, path: &Path) -> io::Result<bool> {
    let path = &in_followed_folder(path)?;
    match system.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed
            .and_then(|()| system.sync_folder(parent(path)))
            .map(|()| true),
    }
}

/// Makes a folder with a mode, and its parents, which others cannot write; one that is there is
/// left alone.
///
/// # Errors
/// The kernel's.
pub fn folder(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    folder(above, FOLDER)?;
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            return Ok(());
        }
        made => made?,
    }
    match trust::owner_in(&fs::metadata(above)?) {
        Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

/// Whether an error says that there is no room.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether a name in a folder is one of the temporary files of [`create`] and [`replace`].
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

const TEMPORARY: &str = ".underpass-new";

fn place(
    system: &dyn FileSystem,
    path: &Path,
    text: &[u8],
    attributes: &Attributes,
    publish: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary(path)?;
    let written = system
        .write_new(&temporary, text, attributes)
        .and_then(|()| system.sync(&temporary))
        .and_then(|()| publish(&temporary, path));
    if let Err(error) = written {
        let _ = system.remove(&temporary);
        return Err(error);
    }
    // The new name is on disk only when its folder is.
    system.sync_folder(parent(path))
}

fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy();
    let unique: u64 = rand::random();
    Ok(parent(path).join(format!(".{name}.{unique:016x}{TEMPORARY}")))
}

/// A file that replaces nothing, or goes: its folder may be led to by links, and itself is none.
fn in_followed_folder(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(trust::follow(parent(path))?.join(name))
}

/// Opens a file to read it, if it is one; without waiting, as a pipe would hold the reader until
/// somebody writes.
fn open_plain(path: &Path) -> io::Result<(File, fs::Metadata)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(invalid("is not a plain file".into()));
    }
    Ok((file, metadata))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            len: metadata.len(),
            mode: metadata.mode(),
            uid: metadata.uid(),
            inode: (metadata.dev(), metadata.ino()),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn create_never_replaces_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        create(&path, b"one", SECRET).unwrap();
        assert_eq!(
            create(&path, b"two", SECRET).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(read(&path).unwrap().text.as_str(), "one");
        assert_eq!(names(folder.path()), ["a.toml"]);
        assert_eq!(stamp(&path).unwrap().unwrap().mode & 0o777, 0o600);
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_a_secret_one_loses_its_readers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        create(&path, b"one", OPEN).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, b"two", OPEN).unwrap();
        assert_eq!(read(&path).unwrap().text.as_str(), "two");
        assert_eq!(stamp(&path).unwrap().unwrap().mode & 0o7777, 0o640);
        replace(&path, b"three", SECRET).unwrap();
        assert_eq!(stamp(&path).unwrap().unwrap().mode & 0o7777, 0o600);
        assert_eq!(names(folder.path()), ["a.toml"]);
    }

    #[test]
    fn a_replaced_file_keeps_its_extended_attributes_and_the_link_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        let link = folder.path().join("link.toml");
        create(&path, b"one", OPEN).unwrap();
        std::os::unix::fs::symlink("a.toml", &link).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        let has_them = rustix::fs::setxattr(&path, "user.origin", b"ann", flags).is_ok();
        replace(&link, b"two", OPEN).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("a.toml"));
        assert_eq!(fs::read(&path).unwrap(), b"two");
        if has_them {
            let mut value = [0; 8];
            let len = rustix::fs::getxattr(&path, "user.origin", &mut value[..]).unwrap();
            assert_eq!(&value[..len], b"ann");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_of_another_user_is_not_replaced_and_own_state_is() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root has files of two users");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("start");
        create(&path, b"one", SECRET).unwrap();
        std::os::unix::fs::chown(&path, Some(54_711), None).unwrap();
        let error = replace(&path, b"two", SECRET).unwrap_err();
        assert!(error.to_string().contains("belongs to "), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        replace_own(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().text.as_str(), "two");
        let stamp = stamp(&path).unwrap().unwrap();
        assert_eq!((stamp.uid, stamp.mode & 0o7777), (0, 0o600));
        assert_eq!(names(folder.path()), ["start"]);
    }

    #[test]
    fn a_link_in_the_place_of_a_file_of_our_own_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        let lock = folder.path().join("edit.lock");
        std::os::unix::fs::symlink(&victim, &lock).unwrap();
        let error = open_own(&lock, OFlags::WRONLY).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{0} is a symbolic link, and is not written through; run `rm {0}`",
                lock.display()
            )
        );
        fs::remove_file(&lock).unwrap();
        fs::hard_link(&victim, &lock).unwrap();
        let error = open_own(&lock, OFlags::WRONLY).unwrap_err();
        assert!(
            error.to_string().contains("is not a plain file of its own"),
            "{error}"
        );
        assert_eq!(fs::read(&victim).unwrap(), b"kept");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        assert!(replace(&path, b"two", SECRET).is_err());
        assert_eq!(names(folder.path()), ["a.toml"]);
        assert!(path.join("inside").is_file());
    }

    #[test]
    fn what_is_no_small_text_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let big = folder.path().join("big");
        fs::write(&big, vec![b'x'; FILE_SIZE_MAX as usize + 1]).unwrap();
        assert_eq!(
            read(&big).unwrap_err().to_string(),
            "is larger than 65536 bytes"
        );
        let binary = folder.path().join("binary");
        fs::write(&binary, b"a\nb\xff").unwrap();
        assert_eq!(
            read(&binary).unwrap_err().to_string(),
            "is not UTF-8 text (line 2)"
        );
        assert_eq!(
            read(folder.path()).unwrap_err().to_string(),
            "is not a plain file"
        );
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}
