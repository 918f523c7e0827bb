//! Decides whether a path can be trusted: nobody but root and the user of this process can change
//! what it leads to.
//!
//! Every folder on the way counts, and every symbolic link:
//! who can change one of them can put a file of his own in the place
//! of ours. Links to files of root or of the link's own user are followed, as Kubernetes mounts its
//! volumes by such links.

mod users;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::StatVfsMountFlags;
use rustix::process::geteuid;

use crate::shell::word as shell;
use users::shown;

/// Links that are followed on one way; as many as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// May change every file anyway.
const ROOT: u32 = 0;

/// Mode bits of those who are not the owner.
const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_ALL: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// The extended attribute of access lists: with one, the group's bits are those of every entry
/// (acl(5)).
const ACCESS_LIST: &str = "system.posix_acl_access";

/// The user whose directory root works on; what root makes there belongs to him.
static ACTING_FOR: OnceLock<u32> = OnceLock::new();

/// Why a path is not used, with the command that mends it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}; {next}")]
pub struct Untrusted {
    what: String,
    next: String,
}

/// Who goes by a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// A command that reads or changes files once. Root may run it on the directory of any user,
    /// and acts for that user.
    Command,
    /// A process that goes on. It trusts root and its own user alone.
    Process,
}

/// Refuses a file that others can change, by itself or by what is on the way to it.
///
/// # Errors
/// The kernel's, but for a missing file; `InvalidData` with [`Untrusted`] where others can change
/// it.
pub fn check_file(path: &Path) -> io::Result<()> {
    let walked = walk(path, |seen, metadata, is_last| {
        if metadata.is_dir() {
            check_folder_on_the_way(seen, metadata, path)
        } else if is_last {
            check_own(seen, metadata)
        } else {
            Ok(())
        }
    })?;
    check_links(&walked)
}

/// Refuses a folder that others can change, by itself or by what is on the way to it.
/// One that is not there is trusted if its parents are.
///
/// # Errors
/// See [`check_file`].
pub fn check_folder(path: &Path) -> io::Result<()> {
    let walked = walk(path, |seen, metadata, is_last| {
        if is_last {
            check_own(seen, metadata)
        } else {
            check_folder_on_the_way(seen, metadata, path)
        }
    })?;
    check_links(&walked)
}

/// Where a file is written that is named by this path: links are followed if their users may lead
/// there.
///
/// # Errors
/// The kernel's; `InvalidData` with [`Untrusted`] for a link that is not followed.
pub fn follow(path: &Path) -> io::Result<PathBuf> {
    let walked = walk(path, |_, _, _| Ok(()))?;
    check_links(&walked)?;
    Ok(walked.path)
}

/// Sets the user that root works for: the owner of the directory, for a command or by `sudo`.
pub fn act_for_owner_of(directory: &Path, caller: Caller) {
    let Ok(metadata) = fs::metadata(directory) else {
        return;
    };
    let owner = metadata.uid();
    let may = caller == Caller::Command || users::caller_of_sudo() == Some(owner);
    if geteuid().is_root() && owner != ROOT && may {
        // The first directory stays: a process works on one.
        let _ = ACTING_FOR.set(owner);
    }
}

/// Owner and group of what is made in a folder, where that is not this process's user:
/// root makes it for the folder's owner.
#[must_use]
pub(super) fn owner_in(folder: &Metadata) -> Option<(u32, u32)> {
    let acting = ACTING_FOR.get() == Some(&folder.uid()) && geteuid().is_root();
    acting.then(|| (folder.uid(), folder.gid()))
}

/// Refuses a file that is about to be written and was put there by another.
pub(super) fn check_written(path: &Path, metadata: &Metadata) -> io::Result<()> {
    if !metadata.is_file() || metadata.nlink() > 1 {
        return Err(untrusted(
            format!("{} is not a plain file of its own", path.display()),
            format!("run `rm {}`", shell(path)),
        ));
    }
    if is_trusted(metadata.uid()) {
        return Ok(());
    }
    Err(foreign(path, metadata))
}

/// The error of a link in the place of a file that is written.
pub(super) fn is_a_link(path: &Path) -> io::Error {
    untrusted(
        format!(
            "{} is a symbolic link, and is not written through",
            path.display()
        ),
        format!("run `rm {}`", shell(path)),
    )
}

/// Whether an error says that a path is not trusted.
#[must_use]
pub fn is_untrusted(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Untrusted>())
}

/// Where a path leads.
struct Walked {
    path: PathBuf,
    /// The links on the way and their owners.
    links: Vec<(PathBuf, u32)>,
    /// Of what is there, or else of the folder that it would be in.
    owner: u32,
}

/// Goes from `/` to the end of a path and along its links.
/// `see` is shown each folder, and the file at the end.
fn walk(
    path: &Path,
    mut see: impl FnMut(&Path, &Metadata, bool) -> io::Result<()>,
) -> io::Result<Walked> {
    let mut pending: VecDeque<OsString> = VecDeque::new();
    lead(&mut pending, &std::path::absolute(path)?);
    let root = Path::new("/");
    let mut at = root.to_owned();
    let mut metadata = fs::symlink_metadata(root)?;
    see(root, &metadata, pending.is_empty())?;
    let mut links = Vec::new();
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        metadata = match fs::symlink_metadata(&next) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let owner = metadata.uid();
                let path = std::iter::once(name)
                    .chain(pending)
                    .fold(at, |at, name| at.join(name));
                return Ok(Walked { path, links, owner });
            }
            Err(error) => return Err(error),
        };
        if !metadata.is_symlink() {
            see(&next, &metadata, pending.is_empty())?;
            at = next;
            continue;
        }
        links.push((next.clone(), metadata.uid()));
        if links.len() > LINKS_MAX {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let target = fs::read_link(&next)?;
        if target.is_absolute() {
            root.clone_into(&mut at);
        }
        lead(&mut pending, &target);
        metadata = fs::symlink_metadata(&at)?;
    }
    Ok(Walked {
        path: at,
        links,
        owner: metadata.uid(),
    })
}

/// Puts the parts of a path before those that are still to go.
fn lead(pending: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => pending.push_front(name.to_owned()),
            Component::ParentDir => pending.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

/// Nobody is led by another's link to what that one could not change himself.
fn check_links(walked: &Walked) -> io::Result<()> {
    let euid = geteuid().as_raw();
    for (link, owner) in &walked.links {
        if [ROOT, euid, walked.owner].contains(owner) {
            continue;
        }
        return Err(untrusted(
            format!(
                "{} is a symbolic link of {} to {}, which belongs to {}, so it is not followed",
                link.display(),
                shown(*owner),
                walked.path.display(),
                shown(walked.owner)
            ),
            format!(
                "run `rm {0}`, or, if it is meant, `chown -h {1} {0}`",
                shell(link),
                users::word(euid)
            ),
        ));
    }
    Ok(())
}

/// A sticky folder like `/tmp` is good enough on the way: nobody can replace another's files there.
fn check_folder_on_the_way(folder: &Path, metadata: &Metadata, used: &Path) -> io::Result<()> {
    if !is_trusted(metadata.uid()) {
        return Err(untrusted(
            format!(
                "{} belongs to {}, who can put another file in the place of {}",
                folder.display(),
                shown(metadata.uid()),
                used.display()
            ),
            format!(
                "run `chown {} {}`, or move it to a folder of root or of {}",
                users::word(geteuid().as_raw()),
                shell(folder),
                shown(geteuid().as_raw())
            ),
        ));
    }
    if metadata.mode() & STICKY != 0 {
        return Ok(());
    }
    check_mode(folder, metadata)
}

fn check_own(path: &Path, metadata: &Metadata) -> io::Result<()> {
    if !is_trusted(metadata.uid()) {
        return Err(foreign(path, metadata));
    }
    check_mode(path, metadata)
}

fn check_mode(path: &Path, metadata: &Metadata) -> io::Result<()> {
    let mode = metadata.mode();
    let by_group = mode & WRITABLE_BY_GROUP != 0 && !is_private_group(path, metadata);
    if (mode & WRITABLE_BY_ALL == 0 && !by_group) || is_read_only(path) {
        return Ok(());
    }
    Err(untrusted(
        format!(
            "{} can be changed by others (mode {:03o}), so it is not used",
            path.display(),
            mode & 0o7777
        ),
        format!("run `chmod go-w {}`", shell(path)),
    ))
}

fn foreign(path: &Path, metadata: &Metadata) -> io::Error {
    untrusted(
        format!(
            "{} belongs to {}, so it is not used",
            path.display(),
            shown(metadata.uid())
        ),
        format!(
            "if what is in it is right, run `chown {} {}`",
            users::word(geteuid().as_raw()),
            shell(path)
        ),
    )
}

fn is_trusted(uid: u32) -> bool {
    let euid = geteuid().as_raw();
    uid == ROOT
        || uid == euid
        || (euid == ROOT
            && (ACTING_FOR.get() == Some(&uid) || users::caller_of_sudo() == Some(uid)))
}

/// Many systems give each user a group of his own, and a mask that lets it write.
fn is_private_group(path: &Path, metadata: &Metadata) -> bool {
    let mut none: [u8; 0] = [];
    let has_access_list = rustix::fs::getxattr(path, ACCESS_LIST, &mut none[..]).is_ok();
    !has_access_list && users::is_private_group(metadata.uid(), metadata.gid())
}

/// What is mounted read-only cannot be changed here: Secret volumes of Kubernetes have mode 1777.
fn is_read_only(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|mounted| mounted.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn untrusted(what: String, next: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Untrusted { what, next })
}
