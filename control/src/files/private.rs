//! What to do about a secret file that others can read: a command where one helps, else the setting
//! of what mounts it.

use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::shell;

/// How Kubernetes calls the link to the present content of a volume.
const KUBERNETES_LINK: &str = "..data";

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
    use std::os::unix::fs::symlink;

    use super::*;

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
