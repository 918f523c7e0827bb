//! What a file is beside its content: owner, group, mode, extended attributes.
//! A file that replaces another keeps them.

use std::ffi::{CStr, CString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::files::trust;
use crate::shell;

/// The bits by which others than the owner get at a file.
const OTHERS: u32 = 0o077;

/// The most that names of extended attributes take, bytes, and one value (xattr(7),
/// `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTRS_MAX: usize = 64 * 1024;

/// Attributes that the kernel makes of the content: another content has others.
const OF_CONTENT: [&CStr; 3] = [c"security.ima", c"security.evm", c"security.capability"];

/// Owner, mode and extended attributes that a file gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributes {
    mode: u32,
    /// The file that had them, which is replaced. `None` for a new file, whose mode is less the
    /// process's mask.
    replaced: Option<PathBuf>,
    owner: Option<(u32, u32)>,
    extended: Vec<(CString, Vec<u8>)>,
}

impl Attributes {
    /// Of a file that is new in a folder.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new_in(folder: &Path, mode: u32) -> io::Result<Self> {
        Ok(Self {
            mode,
            replaced: None,
            owner: trust::owner_in(&fs::metadata(folder)?),
            extended: Vec::new(),
        })
    }

    /// Of a file that replaces this one. Where `mode` is for secrets, others lose what they were
    /// allowed.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn kept(
        path: &Path,
        old: &File,
        metadata: &Metadata,
        mode: u32,
    ) -> io::Result<Self> {
        let is_secret = mode & OTHERS == 0;
        let kept = metadata.mode() & 0o7777;
        Ok(Self {
            mode: if is_secret { kept & !OTHERS } else { kept },
            replaced: Some(path.to_owned()),
            owner: Some((metadata.uid(), metadata.gid())),
            extended: extended(old)?,
        })
    }

    /// With which a file is made. Its owner's alone, where it is still to become another's.
    pub(super) fn first_mode(&self) -> Mode {
        let mode = match self.replaced {
            Some(_) => 0o600,
            None => self.mode,
        };
        Mode::from_raw_mode(mode)
    }

    /// Gives them to a file that was just made.
    ///
    /// # Errors
    /// The kernel's; `PermissionDenied` where owner or group cannot be kept.
    pub(super) fn give(&self, file: &File) -> io::Result<()> {
        let own = file.metadata()?;
        if let Some((uid, gid)) = self.owner
            && (own.uid(), own.gid()) != (uid, gid)
        {
            self.give_to(file, uid, gid)?;
        }
        for (name, value) in &self.extended {
            match fsetxattr(file, name.as_c_str(), value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                // It may have got the same by itself, as labels of SELinux are given.
                Err(_) if value_of(file, name).as_deref() == Ok(value.as_slice()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.replaced.is_some() {
            // Last: a change of the owner takes bits away, and an access list sets the group's.
            fchmod(file, Mode::from_raw_mode(self.mode))?;
        }
        Ok(())
    }

    fn give_to(&self, file: &File, uid: u32, gid: u32) -> io::Result<()> {
        let given = fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        given.map_err(|error| match (error, &self.replaced) {
            (Errno::PERM, Some(replaced)) => io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "it belongs to user {uid} and group {gid}, and only root can rewrite it and keep that owner; run this as root, or `chown {}:{} {}`",
                    geteuid().as_raw(),
                    getegid().as_raw(),
                    shell::word(replaced)
                ),
            ),
            (error, _) => error.into(),
        })
    }
}

fn extended(file: &File) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0; XATTRS_MAX];
    let len = match flistxattr(file, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    names.truncate(len);
    let mut kept = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if OF_CONTENT.contains(&name) {
            continue;
        }
        match value_of(file, name) {
            Ok(value) => kept.push((name.to_owned(), value)),
            Err(Errno::NODATA) => {} // Taken off since it was listed.
            Err(error) => return Err(error.into()),
        }
    }
    Ok(kept)
}

fn value_of(file: &File, name: &CStr) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; XATTRS_MAX];
    let len = fgetxattr(file, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}
