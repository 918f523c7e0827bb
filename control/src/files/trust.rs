//! Decides whether a path can be trusted: nobody but root and the user of this process can change
//! what it leads to.
//!
//! Every folder on the way counts, and every symbolic link: who can change one of them can put a
//! file of his own in the place of ours. Links to files of root or of the link's own user are
//! followed, as Kubernetes mounts its volumes by such links.

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

/// The owner of the directory that a command works on. Root acts for him: what root makes there
/// belongs to him.
static ACTING_FOR: OnceLock<u32> = OnceLock::new();

/// Why a path is not used, with the command that mends it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{} {what}; {next}", path.display())]
pub struct Untrusted {
    path: PathBuf,
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
            check_folder_on_the_way(seen, metadata)
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
            check_folder_on_the_way(seen, metadata)
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

/// Notes the user that root works for: the owner of the directory, for a command or by `sudo`.
/// Another user needs him for messages alone.
pub fn act_for_owner_of(directory: &Path, caller: Caller) {
    let Ok(metadata) = fs::metadata(directory) else {
        return;
    };
    let owner = metadata.uid();
    let may = caller == Caller::Command || users::caller_of_sudo() == Some(owner);
    if owner != ROOT && may {
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
            path,
            "is not a plain file of its own",
            format!("run `rm {}`", shell(path)),
        ));
    }
    check_owner(path, metadata)
}

/// Refuses what belongs to another user.
pub(super) fn check_owner(path: &Path, metadata: &Metadata) -> io::Result<()> {
    let owner = metadata.uid();
    if is_trusted(owner) {
        return Ok(());
    }
    Err(untrusted(
        path,
        format!("belongs to {}, so it is not used", shown(owner)),
        next_for_foreign(path, owner),
    ))
}

/// The error of a link in the place of a file that is written.
pub(super) fn is_a_link(path: &Path) -> io::Error {
    untrusted(
        path,
        "is a symbolic link, and is not written through",
        format!("run `rm {}`", shell(path)),
    )
}

/// Whether an error says that a path is not trusted.
#[must_use]
pub fn is_untrusted(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Untrusted>())
}

/// The words of an error, for a message that has named the path already.
#[must_use]
pub fn reason(path: &Path, error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Untrusted {
            path: refused,
            what,
            next,
        }) if refused.ends_with(path) => format!("{what}; {next}"),
        _ => error.to_string(),
    }
}

/// Where a path leads.
struct Walked {
    path: PathBuf,
    /// The links on the way and their owners.
    links: Vec<(PathBuf, u32)>,
    /// Of what is there, or else of the folder that it would be in.
    owner: u32,
}

/// Goes from `/` to the end of a path and along its links. `see` is shown each folder, and the file
/// at the end.
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
            metadata = fs::symlink_metadata(&at)?;
            // Seen on the way down, but perhaps the end of the path is here.
            see(&at, &metadata, pending.is_empty())?;
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
            link,
            format!(
                "is a symbolic link of {} to {}, which belongs to {}, so it is not followed",
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
fn check_folder_on_the_way(folder: &Path, metadata: &Metadata) -> io::Result<()> {
    let owner = metadata.uid();
    if !is_trusted(owner) {
        return Err(untrusted(
            folder,
            format!("belongs to {}, who can replace what is in it", shown(owner)),
            run_as(owner).unwrap_or_else(|| {
                "move what is used there below a folder that root owns".to_owned()
            }),
        ));
    }
    if metadata.mode() & STICKY != 0 {
        return Ok(());
    }
    check_mode(folder, metadata)
}

fn check_own(path: &Path, metadata: &Metadata) -> io::Result<()> {
    check_owner(path, metadata)?;
    check_mode(path, metadata)
}

fn check_mode(path: &Path, metadata: &Metadata) -> io::Result<()> {
    let mode = metadata.mode();
    let by_group = mode & WRITABLE_BY_GROUP != 0 && !is_private_group(path, metadata);
    if (mode & WRITABLE_BY_ALL == 0 && !by_group) || is_read_only(path) {
        return Ok(());
    }
    Err(untrusted(
        path,
        format!(
            "can be changed by others (mode {:03o}), so it is not used",
            mode & 0o7777
        ),
        next_for_mode(path, metadata, geteuid().as_raw()),
    ))
}

/// What this user can do about a mode: `chmod` is for the owner and root alone.
fn next_for_mode(path: &Path, metadata: &Metadata, euid: u32) -> String {
    let (owner, path) = (metadata.uid(), shell(path));
    if [ROOT, owner].contains(&euid) {
        return format!("run `chmod go-w {path}`");
    }
    let who = match owner {
        ROOT => "root".to_owned(),
        owner => format!("root or {}", shown(owner)),
    };
    if !metadata.is_dir() {
        return format!("only {who} can run `chmod go-w {path}`");
    }
    // An emptyDir on disk is root's and has mode 777, with `fsGroup` 2777.
    format!(
        "only {who} can run `chmod go-w {path}`; in Kubernetes, give it a persistent volume with `fsGroup`, or let an init container of root run `chown {euid} {path} && chmod 755 {path}`"
    )
}

/// What to do about a file or directory of another user. That may be a service's, which would lose
/// it by a `chown`.
fn next_for_foreign(path: &Path, owner: u32) -> String {
    let euid = geteuid();
    if let Some(next) = run_as(owner) {
        next
    } else if is_read_only(path) {
        format!(
            "it is mounted read-only: give it to {} where it comes from",
            shown(euid.as_raw())
        )
    } else if euid.is_root() {
        format!(
            "if what is in it is right, run `chown {} {}`",
            users::word(ROOT),
            shell(path)
        )
    } else {
        format!("run this as {}", shown(owner))
    }
}

/// For a command of another user on this one's directory.
fn run_as(owner: u32) -> Option<String> {
    let is_needed = !geteuid().is_root() && ACTING_FOR.get() == Some(&owner);
    is_needed.then(|| format!("run this as root or as {}", shown(owner)))
}

fn is_trusted(uid: u32) -> bool {
    let euid = geteuid().as_raw();
    uid == ROOT
        || uid == euid
        || (euid == ROOT
            && (ACTING_FOR.get() == Some(&uid) || users::caller_of_sudo() == Some(uid)))
}

/// Whether nobody but root and this process's user is in the group of a file. Many systems give
/// each user a group of his own, and a mask that lets it write; Kubernetes gives volumes the
/// `fsGroup`.
pub(super) fn is_private_group(path: &Path, metadata: &Metadata) -> bool {
    let mut none: [u8; 0] = [];
    let has_access_list = rustix::fs::getxattr(path, ACCESS_LIST, &mut none[..]).is_ok();
    !has_access_list && users::is_private_group(metadata.gid(), is_trusted)
}

/// What is mounted read-only cannot be changed here: Secret volumes of Kubernetes have mode 1777.
fn is_read_only(path: &Path) -> bool {
    rustix::fs::statvfs(path)
        .is_ok_and(|mounted| mounted.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn untrusted(path: &Path, what: impl Into<String>, next: String) -> io::Error {
    let untrusted = Untrusted {
        path: path.to_owned(),
        what: what.into(),
        next,
    };
    io::Error::new(io::ErrorKind::InvalidData, untrusted)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_link_that_leads_up_is_judged_by_where_it_ends() {
        let place = tempfile::tempdir().unwrap();
        let open = place.path().join("open");
        let own = open.join("own");
        fs::create_dir(&open).unwrap();
        fs::create_dir(&own).unwrap();
        // On the way the sticky bit is enough. As the folder of keys it is not.
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        check_folder(&own).unwrap();
        for (name, target) in [("keys", ".."), ("tls", "../own/..")] {
            let link = own.join(name);
            symlink(target, &link).unwrap();
            let error = check_folder(&link).unwrap_err().to_string();
            assert!(
                error.contains("can be changed by others (mode 1777)"),
                "{error}"
            );
        }
        let file = own.join("file");
        fs::write(&file, "").unwrap();
        symlink("../own/file", own.join("link")).unwrap();
        check_file(&own.join("link")).unwrap();
    }

    #[test]
    fn a_mode_that_only_root_can_mend_is_not_for_this_user_to_mend() {
        let place = tempfile::tempdir().unwrap();
        let metadata = fs::metadata(place.path()).unwrap();
        let volume = Path::new("/var/lib/underpass");
        let owner = metadata.uid();
        for able in [ROOT, owner] {
            assert_eq!(
                next_for_mode(volume, &metadata, able),
                "run `chmod go-w /var/lib/underpass`"
            );
        }
        let next = next_for_mode(volume, &metadata, owner + 54_711);
        assert!(next.starts_with("only root"), "{next}");
        for way in [
            "a persistent volume with `fsGroup`",
            "chmod 755 /var/lib/underpass`",
        ] {
            assert!(next.contains(way), "{next}");
        }
    }

    #[test]
    fn a_path_is_named_once() {
        let path = Path::new("/etc/underpass/keys");
        let error = is_a_link(path);
        let words = "is a symbolic link, and is not written through; run `rm /etc/underpass/keys`";
        for shown in [path, Path::new("keys")] {
            assert_eq!(reason(shown, &error), words);
        }
        assert_eq!(
            reason(Path::new("/etc/underpass/tls"), &error),
            format!("/etc/underpass/keys {words}")
        );
    }
}
