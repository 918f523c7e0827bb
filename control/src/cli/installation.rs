//! What commands read of the directory by themselves, without control.

use std::io;

use super::Failure;
use crate::files::namespace::Namespace;
use crate::files::tls::{self, Identity};
use crate::files::{Caller, Directory, Lock, LockError, Unmade, agent, disk, trust, unreadable};
use crate::shell;

/// The namespace and the relay's identity; what is missing is made.
pub(super) fn open(
    directory: &Directory,
    caller: Caller,
) -> Result<(Namespace, Identity), Failure> {
    directory.check(caller)?;
    directory.prepare()?;
    let path = directory.namespace();
    let file = directory.shown(&path);
    let text = disk::read(&path).map_err(|error| unreadable(&file, &error))?;
    let namespace = Namespace::parse(&file, &text.text, &agent::host_name())?;
    let identity = tls::load_or_make(directory, &namespace.public_address)?;
    Ok((namespace, identity))
}

/// Makes sure that no other process does the same for this directory: `what` is `up` or `relay`;
/// control has its own.
pub(super) fn lock(directory: &Directory, what: &str) -> Result<Lock, Failure> {
    let run = directory.run();
    disk::folder(&run, 0o700).map_err(|source| Unmade {
        path: run.clone(),
        source,
    })?;
    let path = run.join(format!("{what}.lock"));
    Lock::take(&path).map_err(|error| match error {
        LockError::Held => Failure::configuration(format!(
            "another `underpass {what}` runs on {}",
            directory.root().display()
        ))
        .hint(format!(
            "one per directory; `underpass status --dir {}` shows what it does",
            shell::word(directory.root())
        )),
        LockError::Io(error) => {
            let why = trust::reason(&path, &error);
            let failure = Failure::configuration(format!("cannot lock {}: {why}", path.display()));
            match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => failure.hint(format!(
                    "locks and sockets are made there: `mount -t tmpfs -o mode=700 none {}`, or make it a link to a folder that can be written",
                    shell::word(&run)
                )),
                _ => failure,
            }
        }
    })
}
