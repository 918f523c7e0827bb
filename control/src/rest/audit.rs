//! Reading and regenerating keys is recorded: a line in the log and one in `run/audit.log`.
//! Never a key.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::OFlags;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::info;
use underpass_proto::HycoName;

use crate::clock::Clock;
use crate::files::{Directory, Lock, LockError, disk};

/// A file this large becomes `audit.log.1`, bytes: some 100,000 lines are kept, and twice as many
/// at most.
const FILE_SIZE_MAX: u64 = 16 * 1024 * 1024;

/// Who did it, as the log has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Actor {
    /// The rule of the key that was shown, or `files` where somebody worked on the files
    /// themselves.
    pub rule: &'static str,
    /// From where.
    pub remote: String,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    action: &'a str,
    name: &'a str,
    key: Option<&'a str>,
    rule: &'a str,
    remote: &'a str,
}

/// Notes an action before it is done, in the log and in the file.
///
/// # Errors
/// It could not be noted: then it must not be done.
pub(super) fn record(
    directory: &Directory,
    clock: &Clock,
    actor: &Actor,
    action: &str,
    name: &HycoName,
    key: Option<&str>,
) -> io::Result<()> {
    let Actor { rule, remote } = actor;
    info!(target: "audit", action, hyco = %name, key, rule, remote);
    note(directory, clock, actor, action, name, key)
}

/// Notes an action before it is done, in the file alone: for commands, whose log is what a person
/// reads.
///
/// # Errors
/// See [`record`].
pub fn note(
    directory: &Directory,
    clock: &Clock,
    actor: &Actor,
    action: &str,
    name: &HycoName,
    key: Option<&str>,
) -> io::Result<()> {
    let Actor { rule, remote } = actor;
    let line = Line {
        time: shown(clock()),
        action,
        name: name.as_str(),
        key,
        rule,
        remote,
    };
    let mut line = serde_json::to_vec(&line)?;
    line.push(b'\n');
    append(&directory.run().join("audit.log"), &line)
}

/// One write: lines of two processes never mix.
fn append(path: &Path, line: &[u8]) -> io::Result<()> {
    make_room(path)?;
    let mut file = disk::open_own(path, OFlags::WRONLY | OFlags::APPEND)?;
    file.write_all(line)?;
    file.sync_data()
}

/// Under a lock: of two who find the file too large, the second would put a new one in the place of
/// what the first has kept.
fn make_room(path: &Path) -> io::Result<()> {
    let is_large = || fs::metadata(path).is_ok_and(|metadata| metadata.len() > FILE_SIZE_MAX);
    if !is_large() {
        return Ok(());
    }
    let _lock = Lock::take(&path.with_extension("lock")).map_err(|error| match error {
        LockError::Held => io::ErrorKind::WouldBlock.into(),
        LockError::Io(error) => error,
    })?;
    if is_large() {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    Ok(())
}

fn shown(unix_secs: u64) -> String {
    i64::try_from(unix_secs)
        .ok()
        .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| unix_secs.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn each_action_is_one_line_of_a_file_that_only_its_owner_reads() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        directory.prepare().unwrap();
        let clock: Clock = Arc::new(|| 1_795_392_000);
        let actor = Actor {
            rule: "manage",
            remote: "192.0.2.1:5".into(),
        };
        let name = "payroll-sql".parse().unwrap();
        record(&directory, &clock, &actor, "listKeys", &name, None).unwrap();
        record(
            &directory,
            &clock,
            &actor,
            "regenerateKey",
            &name,
            Some("listen primary"),
        )
        .unwrap();
        let path = directory.run().join("audit.log");
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"time\":\"2026-11-23T00:00:00Z\",\"action\":\"listKeys\",\"name\":\"payroll-sql\",\"key\":null,\"rule\":\"manage\",\"remote\":\"192.0.2.1:5\"}\n\
             {\"time\":\"2026-11-23T00:00:00Z\",\"action\":\"regenerateKey\",\"name\":\"payroll-sql\",\"key\":\"listen primary\",\"rule\":\"manage\",\"remote\":\"192.0.2.1:5\"}\n"
        );
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_large_file_makes_room_for_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        fs::write(&path, vec![b'x'; FILE_SIZE_MAX as usize + 1]).unwrap();
        append(&path, b"one\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n");
        assert_eq!(
            fs::metadata(folder.path().join("audit.log.1"))
                .unwrap()
                .len(),
            FILE_SIZE_MAX + 1
        );
    }
}
