//! Why the store does not do something, in the same words for the REST API and for the command
//! line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use underpass_proto::key::Which;
use underpass_proto::{HycoName, Rule};

use super::Stored;
use crate::files::definition::Definition;
use crate::files::quota::Quota;
use crate::files::wording::nearest;
use crate::files::{Directory, Fault, trust};

/// What kind of refusal it is. Stable: programs go by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// There is no such hybrid connection.
    UnknownName,
    /// There is one already.
    Exists,
    /// It is not what it was when it was looked at.
    Changed,
    /// What is asked for cannot be.
    Invalid,
    /// Another one has the binding.
    BindingTaken,
    /// The edition permits no more.
    EditionLimit,
    /// A file has to be put right by hand first.
    FaultyFile,
    /// Somebody else edits for too long.
    Busy,
    /// The disk did not take it.
    Storage,
}

/// A refusal: nothing was changed, but where a disk failed at the last step.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", .errors.join("; "))]
pub struct Refusal {
    /// What kind.
    pub code: Code,
    /// One line each; usually one. Never a key.
    pub errors: Vec<String>,
    /// The next step.
    pub hint: Option<String>,
}

impl Refusal {
    fn new(code: Code, error: String, hint: impl Into<String>) -> Self {
        Self {
            code,
            errors: vec![error],
            hint: Some(hint.into()),
        }
    }

    pub(super) fn unknown(directory: &Directory, name: &HycoName, all: &[PathBuf]) -> Self {
        let error = format!(
            "there is no hybrid connection {name} in {}",
            directory.connections().display()
        );
        let names = all.iter().filter_map(|path| path.file_stem()?.to_str());
        let hint = match nearest(name.as_str(), names) {
            Some(meant) => format!("did you mean `{meant}`? `underpass connection list` shows all"),
            None if all.is_empty() => {
                "make one with `underpass connection create`; `--dir DIR` names another directory"
                    .into()
            }
            None => {
                "`underpass connection list` shows all; `--dir DIR` names another directory".into()
            }
        };
        Self::new(Code::UnknownName, error, hint)
    }

    /// It was demanded that it be there.
    pub(super) fn gone(directory: &Directory, name: &HycoName) -> Self {
        let error = format!(
            "there is no hybrid connection {name} in {} any more",
            directory.connections().display()
        );
        Self::new(
            Code::Changed,
            error,
            "somebody has deleted it; to make it anew, leave out If-Match",
        )
    }

    pub(super) fn exists(directory: &Directory, name: &HycoName, path: &Path) -> Self {
        let file = directory.shown(path);
        Self::new(
            Code::Exists,
            format!("{name} exists already in {}", directory.root().display()),
            format!("edit {file}, or choose another name"),
        )
    }

    pub(super) fn changed(stored: &Stored) -> Self {
        Self::new(
            Code::Changed,
            format!(
                "{} was changed since it was read: it is {} now",
                stored.name,
                stored.etag()
            ),
            "read it again, and make the change on what it says now",
        )
    }

    /// Faults of what was asked for: without a file, because there is none yet.
    pub(super) fn invalid(faults: Vec<Fault>) -> Self {
        let open_door = faults.iter().any(|fault| fault.what.contains("allow_from"));
        Self {
            code: Code::Invalid,
            errors: faults.into_iter().map(|fault| fault.what).collect(),
            hint: open_door.then(|| "`--allow-from CIDR` says who may connect".into()),
        }
    }

    pub(super) fn binding_taken(wanted: &Definition, other: &Definition) -> Self {
        let shown = |definition: &Definition| {
            definition
                .bind
                .map_or_else(String::new, |bind| bind.to_string())
        };
        let (bind, others) = (shown(wanted), shown(other));
        let with = if bind == others {
            String::new()
        } else {
            format!(" (it has {others})")
        };
        Self::new(
            Code::BindingTaken,
            format!("the binding {bind} is taken by {}{with}", other.name),
            "choose another address or port for `--bind`",
        )
    }

    pub(super) fn edition_limit(directory: &Directory, quota: &Quota, count: usize) -> Self {
        let limit = quota.hybrid_connections.unwrap_or_default();
        Self::new(
            Code::EditionLimit,
            format!(
                "the limit of {limit} hybrid connections (edition {}) is reached: there are {count}",
                quota.edition
            ),
            format!(
                "delete one, or set `edition` or `hybrid_connections` in {}",
                directory.namespace().display()
            ),
        )
    }

    /// A rule has no such key: there may be no secondary one.
    pub(crate) fn no_key(name: &HycoName, rule: Rule, which: Which) -> Self {
        let right = rule.right();
        Self::new(
            Code::FaultyFile,
            format!("{name} has no {which} key of {rule}"),
            format!("make one by `underpass key regenerate {name} --rule {right} --key {which}`"),
        )
    }

    pub(super) fn busy(lock: &Path, waited: Duration) -> Self {
        Self::new(
            Code::Busy,
            format!("another process has held {} for {waited:?}", lock.display()),
            "try again; its number stands in that file",
        )
    }

    pub(crate) fn storage(path: &Path, error: &io::Error) -> Self {
        let hint = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "make room on that disk and do it again; what was there before still stands"
            }
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::NotFound => {
                "the directory must be one that this user can write; `--dir DIR` names another"
            }
            _ => {
                "look at the disk and the system's log, then do it again; what was there before still stands, or the new is there whole"
            }
        };
        Self::new(
            Code::Storage,
            format!(
                "cannot write {}: {}",
                path.display(),
                trust::reason(path, error)
            ),
            hint,
        )
    }
}

impl From<Vec<Fault>> for Refusal {
    fn from(faults: Vec<Fault>) -> Self {
        Self {
            code: Code::FaultyFile,
            errors: faults.iter().map(Fault::to_string).collect(),
            hint: None,
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        vec![fault].into()
    }
}
