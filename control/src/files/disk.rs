//! Reading and writing of small files: reads are bounded, writes leave the old file or the new one, never neither.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// The largest file that is read, bytes: definitions, keys and certificates are far smaller.
pub const FILE_SIZE_MAX: u64 = 64 * 1024;

/// Mode of files that hold secrets.
pub const SECRET: u32 = 0o600;

/// Mode of files that anyone may read, less the process's mask.
pub const OPEN: u32 = 0o644;

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

/// Reads a small text file.
///
/// # Errors
/// The kernel's; `InvalidData` where it is no plain file, over [`FILE_SIZE_MAX`], or not UTF-8.
pub fn read(path: &Path) -> io::Result<Text> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    // Without waiting: a pipe in the place of a file would hold the reader until somebody writes.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(invalid("is not a plain file".into()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        metadata.len().min(FILE_SIZE_MAX) as usize + 1,
    ));
    file.take(FILE_SIZE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_SIZE_MAX {
        return Err(invalid(format!("is larger than {FILE_SIZE_MAX} bytes")));
    }
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
        stamp: Stamp::of(&metadata),
    })
}

/// The steps by which files are written: the seam where a test lets a disk fill up, break or vanish in the middle.
pub trait FileSystem: Send + Sync {
    /// Writes a new file, whole; it need not be on disk yet.
    ///
    /// # Errors
    /// The kernel's; the file may be there in part.
    fn write_new(&self, path: &Path, text: &[u8], mode: u32) -> io::Result<()>;

    /// Brings a file's content to the disk.
    ///
    /// # Errors
    /// The kernel's.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Gives a file a second name, unless that is taken.
    ///
    /// # Errors
    /// The kernel's; `AlreadyExists` where it is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file another name, in place of the file that has it.
    ///
    /// # Errors
    /// The kernel's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The kernel's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Brings the names in a folder to the disk.
    ///
    /// # Errors
    /// The kernel's.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// The system's own.
#[derive(Clone, Copy, Debug)]
pub struct System;

impl FileSystem for System {
    fn write_new(&self, path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(text)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// Writes a new file, or leaves alone the one that is there.
///
/// # Errors
/// The kernel's; `AlreadyExists` where the file is there. After any error the directory is as it was, or has the new file whole.
pub fn create(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    create_on(&System, path, text, mode)
}

/// The same as [`create`], on a file system.
///
/// # Errors
/// See [`create`].
pub fn create_on(system: &dyn FileSystem, path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    // A hard link never replaces: of two writers at once, one wins and the other learns it.
    place(system, path, text, mode, |from, to| {
        system.link(from, to).and_then(|()| system.remove(from))
    })
}

/// Writes a file in place of the one that is there.
///
/// # Errors
/// The kernel's. After any error the old file stands whole, or the new one.
pub fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    replace_on(&System, path, text, mode)
}

/// The same as [`replace`], on a file system.
///
/// # Errors
/// See [`replace`].
pub fn replace_on(system: &dyn FileSystem, path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    place(system, path, text, mode, |from, to| system.rename(from, to))
}

/// Removes a file, for good. Whether there was one.
///
/// # Errors
/// The kernel's, but for a missing file.
pub fn remove_on(system: &dyn FileSystem, path: &Path) -> io::Result<bool> {
    match system.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed
            .and_then(|()| system.sync_folder(parent(path)))
            .map(|()| true),
    }
}

/// Makes a folder with a mode, and its parents; one that is there is left alone.
///
/// # Errors
/// The kernel's.
pub fn folder(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
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
    mode: u32,
    publish: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary(path)?;
    let written = system
        .write_new(&temporary, text, mode)
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
    fn a_replaced_file_is_the_new_one_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        create(&path, b"one", OPEN).unwrap();
        replace(&path, b"two", SECRET).unwrap();
        assert_eq!(read(&path).unwrap().text.as_str(), "two");
        assert_eq!(stamp(&path).unwrap().unwrap().mode & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["a.toml"]);
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
