//! What commands read of the directory by themselves, without control.

use std::path::PathBuf;

use underpass_proto::HycoName;

use super::Failure;
use crate::files::definition::{Definition, name_of};
use crate::files::namespace::Namespace;
use crate::files::tls::{self, Identity};
use crate::files::wording::nearest;
use crate::files::{Directory, Fault, Lock, LockError, Unmade, agent, disk, unreadable};

/// The namespace and the relay's identity; what is missing is made.
pub(super) fn open(directory: &Directory) -> Result<(Namespace, Identity), Failure> {
    directory.prepare()?;
    let path = directory.namespace();
    let file = directory.shown(&path);
    let text = disk::read(&path).map_err(|error| unreadable(&file, &error))?;
    let namespace = Namespace::parse(&file, &text.text, &agent::host_name())?;
    let identity = tls::load_or_make(directory, &namespace.public_address)?;
    Ok((namespace, identity))
}

/// Makes sure that no other process does the same for this directory: `what` is `up` or `relay`; control has its own.
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
            directory.root().display()
        )),
        LockError::Io(error) => {
            Failure::configuration(format!("cannot lock {}: {error}", path.display()))
        }
    })
}

/// One file of `connections/`.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) file: String,
    pub(super) name: String,
    pub(super) definition: Result<Definition, Vec<Fault>>,
}

/// All definitions, good and bad, in the order of their files.
pub(super) fn definitions(directory: &Directory) -> Result<Vec<Found>, Failure> {
    let folder = directory.connections();
    let paths = Directory::toml_files(&folder)
        .map_err(|error| unreadable(&directory.shown(&folder), &error))?;
    Ok(paths
        .into_iter()
        .map(|path| read(directory, path))
        .collect())
}

/// The definition of a name, however it is spelled.
pub(super) fn definition(directory: &Directory, name: &HycoName) -> Result<Definition, Failure> {
    let all = definitions(directory)?;
    match all.iter().find(|found| found.is(name)) {
        Some(found) => Ok(found.definition.clone()?),
        None => Err(unknown(directory, name, &all)),
    }
}

impl Found {
    /// Whether it is that of `name`.
    pub(super) fn is(&self, name: &HycoName) -> bool {
        name_of("", &self.path).is_ok_and(|found| found == *name)
    }
}

fn read(directory: &Directory, path: PathBuf) -> Found {
    let file = directory.shown(&path);
    let name = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let definition = name_of(&file, &path)
        .map_err(|fault| vec![fault])
        .and_then(|name| {
            let text = disk::read(&path).map_err(|error| vec![unreadable(&file, &error)])?;
            Definition::parse(name, &file, &text.text)
        });
    Found {
        path,
        file,
        name,
        definition,
    }
}

fn unknown(directory: &Directory, name: &HycoName, all: &[Found]) -> Failure {
    let failure = Failure::configuration(format!(
        "there is no hybrid connection {name} in {}",
        directory.connections().display()
    ));
    match nearest(name.as_str(), all.iter().map(|found| found.name.as_str())) {
        Some(meant) => failure.hint(format!(
            "did you mean `{meant}`? `underpass connection list` shows all"
        )),
        None if all.is_empty() => failure.hint(
            "make one with `underpass connection create`; `--dir DIR` names another directory",
        ),
        None => failure
            .hint("`underpass connection list` shows all; `--dir DIR` names another directory"),
    }
}
