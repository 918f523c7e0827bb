//! The steps by which files are written, and how the system does them:
//! by handles of folders, and never through a link.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, linkat, openat, openat2, renameat, unlinkat,
};
use rustix::io::Errno;

use super::{Attributes, parent};

/// The steps by which files are written: the seam where a test lets a disk fill up, break or vanish
/// in the middle.
///
/// Paths have no links in them: who calls has followed those that it trusts.
pub trait FileSystem: Send + Sync {
    /// Writes a new file, whole; it need not be on disk yet.
    ///
    /// # Errors
    /// The kernel's; the file may be there in part.
    fn write_new(&self, path: &Path, text: &[u8], attributes: &Attributes) -> io::Result<()>;

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
    fn write_new(&self, path: &Path, text: &[u8], attributes: &Attributes) -> io::Result<()> {
        let (folder, name) = open_folder_of(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = open_in(&folder, name, flags, attributes.first_mode())?;
        attributes.give(&file)?;
        file.write_all(text)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let (folder, name) = open_folder_of(path)?;
        open_in(&folder, name, OFlags::RDONLY, Mode::empty())?.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_folder, from) = open_folder_of(from)?;
        let (to_folder, to) = open_folder_of(to)?;
        Ok(linkat(
            &from_folder,
            from,
            &to_folder,
            to,
            AtFlags::empty(),
        )?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_folder, from) = open_folder_of(from)?;
        let (to_folder, to) = open_folder_of(to)?;
        Ok(renameat(&from_folder, from, &to_folder, to)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (folder, name) = open_folder_of(path)?;
        Ok(unlinkat(&folder, name, AtFlags::empty())?)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// A handle of the folder of a path, and the name in it.
pub(super) fn open_folder_of(path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let folder = parent(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // A link on the way was put there after the path was looked at, by another.
    let opened = match openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        // Kernels before 5.6, and containers that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            openat(CWD, folder, flags | OFlags::NOFOLLOW, Mode::empty())
        }
        opened => opened,
    };
    Ok((opened?, name))
}

/// Opens a file of a folder; never through a link, and without waiting for the other end of a pipe.
pub(super) fn open_in(
    folder: &OwnedFd,
    name: &OsStr,
    flags: OFlags,
    mode: Mode,
) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(openat(folder, name, flags, mode)?.into())
}
