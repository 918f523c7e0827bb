//! Secret files: nobody but the owner may read one. Says what to do about one that others can read:
//! a command where one helps, else the setting of what mounts it.

use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::Fault;
use super::disk::Stamp;
use crate::shell;

/// What a file may permit its group that root owns and nobody can write: systemd hands out
/// credentials with this mode, and Kubernetes its Secrets to a pod with `fsGroup`.
const CREDENTIAL: u32 = 0o440;

/// How Kubernetes calls the link to the present content of a volume.
const KUBERNETES_LINK: &str = "..data";

/// Refuses a secret that others can read.
///
/// # Errors
/// Who can read it, by its mode, and the next step.
pub(super) fn check(file: &str, path: &Path, stamp: &Stamp) -> Result<(), Fault> {
    let mode = stamp.mode & 0o777;
    let is_credential = stamp.uid == 0 && mode & !CREDENTIAL == 0;
    if mode & 0o077 == 0 || is_credential {
        return Ok(());
    }
    let what = format!(
        "others can read it (mode {mode:03o}), so it is not used; {}, and replace its keys if somebody may have read them",
        next_step(path)
    );
    Err(Fault::whole(file, what))
}

/// The next step.
#[must_use]
pub(super) fn next_step(path: &Path) -> String {
    let folder = path.parent().unwrap_or(Path::new(""));
    if folder.join(KUBERNETES_LINK).is_symlink() {
        return "write `defaultMode: 0400` into the volume of this Secret, or 0440 with `fsGroup` where the process is not root".into();
    }
    if statvfs(path).is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY)) {
        return "it is mounted read-only: give it mode 0400 where it comes from".into();
    }
    format!("run `chmod 600 {}`", shell::word(path))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::files::{disk, keys, strings};

    #[test]
    fn a_credential_of_roots_is_taken_and_what_others_can_read_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        fs::write(&path, "nonsense").expect("written");
        let is_root = rustix::process::geteuid().is_root();
        for (mode, is_private) in [
            (0o600, true),
            (0o400, true),
            (0o440, is_root),
            (0o640, false),
            (0o444, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
            let stamp = disk::stamp(&path).expect("a stamp").expect("a file");
            let checked = check("secret", &path, &stamp);
            assert_eq!(checked.is_ok(), is_private, "{mode:o}");
            // Keys and connection strings go by the same rule.
            let faults = [
                keys::load("secret", &path).expect_err("nonsense").remove(0),
                strings::load(&path, underpass_proto::Rule::Listen).expect_err("nonsense"),
            ];
            for fault in faults {
                let refused = fault.what.starts_with("others can read it");
                assert_eq!(refused, !is_private, "{mode:o}: {fault}");
            }
        }
    }

    #[test]
    fn a_secret_of_kubernetes_is_closed_in_its_volume_and_a_file_by_chmod() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.connection");
        fs::write(&path, "").expect("written");
        assert_eq!(
            next_step(&path),
            format!("run `chmod 600 {}`", path.display())
        );
        symlink("..2026_11_30", folder.path().join("..data")).expect("a link");
        assert!(
            next_step(&path).contains("`defaultMode: 0400`"),
            "{}",
            next_step(&path)
        );
        assert!(next_step(Path::new("/proc/version")).starts_with("run `chmod"));
    }
}
