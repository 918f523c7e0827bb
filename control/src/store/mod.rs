//! Every change of definitions and keys, as an operation on the files: what the REST API and the
//! command line do is this and nothing else.
//!
//! A change holds `run/edit.lock` from the check to the write, so any number of processes may edit
//! at once, and a condition on an ETag holds. Files that a person writes by hand need no lock: each
//! write replaces one file whole. A crash between the two files of a hybrid connection leaves
//! something sound (see `deletion.rs`), or keys without a definition that nobody was ever given.
//! A read writes nothing but missing keys, under the lock.

mod deletion;
mod described;
mod etag;
mod issuer;
mod probe;
mod refusal;
mod stored;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;
use underpass_proto::key::Which;
use underpass_proto::{ConnectionString, HycoKeys, HycoName, Rule};

use crate::files::definition::{Definition, name_of};
use crate::files::disk::{self, FileSystem, System};
use crate::files::namespace::Namespace;
use crate::files::{Directory, Fault, Lock, LockError, agent, keys, tls, unreadable};

pub use described::Described;
pub use etag::{Condition, ETag};
pub use issuer::Issuer;
pub use refusal::{Code, Refusal};
pub use stored::Stored;

/// How long an edit waits for others: each takes milliseconds.
const EDIT_WAIT: Duration = Duration::from_secs(5);

/// The definitions and keys of one directory.
pub struct Store {
    directory: Directory,
    system: Arc<dyn FileSystem>,
    /// Within the process, before the lock between processes: a wait for that one is a loop.
    own_turn: Mutex<()>,
}

/// What [`Store::put`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// There was none of that name.
    Created,
    /// There was one.
    Replaced,
}

impl Store {
    /// The store of a directory that is prepared.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        Self::on(directory, Arc::new(System))
    }

    /// The same, writing through a file system.
    #[must_use]
    pub fn on(directory: Directory, system: Arc<dyn FileSystem>) -> Self {
        Self {
            directory,
            system,
            own_turn: Mutex::new(()),
        }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// All definitions, good and bad, in the order of their files.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<Stored>, Refusal> {
        let paths = self.definition_files()?;
        Ok(paths
            .into_iter()
            .map(|path| Stored::read(&self.directory, path))
            .collect())
    }

    /// How many hybrid connections there are, as the edition counts them: files whose names are
    /// names.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn count(&self) -> Result<usize, Refusal> {
        Ok(count(&self.definition_files()?))
    }

    /// The definition of a name, however it is spelled.
    ///
    /// # Errors
    /// There is none, with the name that was probably meant.
    pub fn find(&self, name: &HycoName) -> Result<Stored, Refusal> {
        let paths = self.definition_files()?;
        match of_name(&paths, name) {
            Some(path) => Ok(Stored::read(&self.directory, path.clone())),
            None => Err(Refusal::unknown(&self.directory, name, &paths)),
        }
    }

    /// Makes a hybrid connection and its keys, or changes the one that is there to say this.
    ///
    /// # Errors
    /// See [`Code`].
    pub fn put(
        &self,
        definition: &Definition,
        condition: &Condition,
    ) -> Result<(Put, Stored), Refusal> {
        let _turn = self.my_turn()?;
        let paths = self.definition_files()?;
        let Some(path) = of_name(&paths, &definition.name) else {
            condition.check_absent(&self.directory, &definition.name)?;
            return Ok((Put::Created, self.create(definition, &paths)?));
        };
        let stored = Stored::read(&self.directory, path.clone());
        condition.check(&self.directory, &definition.name, &stored)?;
        let definition = Definition {
            name: stored.good()?.name.clone(),
            ..definition.clone()
        };
        Ok((Put::Replaced, self.rewrite(&stored, &definition)?))
    }

    /// Changes a definition in place.
    ///
    /// # Errors
    /// See [`Code`].
    pub fn change(
        &self,
        name: &HycoName,
        change: impl FnOnce(&mut Definition),
    ) -> Result<Stored, Refusal> {
        let _turn = self.my_turn()?;
        let stored = self.find(name)?;
        let mut definition = stored.good()?.clone();
        change(&mut definition);
        self.rewrite(&stored, &definition)
    }

    /// Removes a definition and its keys.
    ///
    /// # Errors
    /// See [`Code`].
    pub fn delete(&self, name: &HycoName, condition: &Condition) -> Result<(), Refusal> {
        let _turn = self.my_turn()?;
        let paths = self.definition_files()?;
        let key_file = keys::find(&self.directory, name)?;
        let definition = of_name(&paths, name);
        match definition {
            Some(path) => {
                let stored = Stored::read(&self.directory, path.clone());
                condition.check(&self.directory, name, &stored)?;
            }
            None if key_file.exists() && *condition == Condition::Any => {}
            None => return Err(Refusal::unknown(&self.directory, name, &paths)),
        }
        self.remove_both(definition, &key_file)
    }

    /// The keys of a hybrid connection, as they are.
    ///
    /// # Errors
    /// There is no such hybrid connection, or its key file is missing or cannot be used.
    pub fn keys(&self, name: &HycoName) -> Result<HycoKeys, Refusal> {
        self.find(name)?;
        self.load_keys(name)
    }

    /// Regenerates one key; the old one is dead as soon as control has read the file.
    ///
    /// # Errors
    /// See [`Code`].
    pub fn regenerate(&self, name: &HycoName, rule: Rule, which: Which) -> Result<(), Refusal> {
        let _turn = self.my_turn()?;
        self.find(name)?;
        let path = keys::find(&self.directory, name)?;
        if !path.exists() {
            self.make_keys(&path)?;
        }
        let file = self.directory.shown(&path);
        let text = keys::secret_text(&file, &path)?;
        let text = keys::regenerated(&file, &text, rule, which, &mut rand::rng())?;
        disk::replace_on(&*self.system, &path, text.as_bytes(), disk::SECRET)
            .map_err(|error| Refusal::storage(&path, &error))
    }

    /// What an agent or an application is given.
    ///
    /// # Errors
    /// The definition, its keys, the namespace or the relay's certificate cannot be used.
    pub fn connection_string(
        &self,
        name: &HycoName,
        rule: Rule,
        which: Which,
    ) -> Result<ConnectionString, Refusal> {
        let issuer = self.issuer(name)?;
        let string = issuer.string(rule, which);
        string.ok_or_else(|| Refusal::no_key(&issuer.definition.name, rule, which))
    }

    /// What makes connection strings; keys are made where they are missing.
    ///
    /// # Errors
    /// The definition, its keys, the namespace or the relay's certificate cannot be used.
    pub fn issuer(&self, name: &HycoName) -> Result<Issuer, Refusal> {
        let definition = self.find(name)?.good()?.clone();
        let namespace = self.namespace()?;
        if !keys::find(&self.directory, name)?.exists() {
            self.make_missing_keys(std::slice::from_ref(name), EDIT_WAIT)?;
        }
        Ok(Issuer {
            identity: tls::load_or_make(&self.directory, &namespace.public_address)?,
            keys: self.load_keys(name)?,
            definition,
            namespace,
        })
    }

    /// What `namespace.toml` says now.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn namespace(&self) -> Result<Namespace, Vec<Fault>> {
        let path = self.directory.namespace();
        let file = self.directory.shown(&path);
        let text = disk::read(&path).map_err(|error| vec![unreadable(&file, &error)])?;
        Namespace::parse(&file, &text.text, &agent::host_name())
    }

    fn create(&self, definition: &Definition, others: &[PathBuf]) -> Result<Stored, Refusal> {
        let quota = self.namespace()?.quota;
        let count = count(others);
        if quota
            .hybrid_connections
            .is_some_and(|limit| count >= limit as usize)
        {
            return Err(Refusal::edition_limit(&self.directory, &quota, count));
        }
        let path = self.directory.definition(&definition.name);
        let text = definition.text();
        check(definition, &text)?;
        self.check_binding(definition, others)?;
        let key_file = keys::find(&self.directory, &definition.name)?;
        if key_file.exists() {
            let file = self.directory.shown(&key_file);
            warn!(hyco = %definition.name, "{file} was there before: its old keys give access to the new hybrid connection; run `underpass key regenerate {} --rule … --key …` to replace them", definition.name);
        }
        // Keys first: a definition is never seen without them.
        self.make_keys(&key_file)?;
        disk::create_on(&*self.system, &path, text.as_bytes(), disk::OPEN).map_err(|error| {
            match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    Refusal::exists(&self.directory, &definition.name, &path)
                }
                _ => Refusal::storage(&path, &error),
            }
        })?;
        Ok(Stored::read(&self.directory, path))
    }

    fn rewrite(&self, stored: &Stored, definition: &Definition) -> Result<Stored, Refusal> {
        let before = stored.good()?;
        let text = definition
            .edited(&stored.file, stored.text())
            .map_err(Refusal::invalid)?;
        if before.bind != definition.bind {
            let mut others = self.definition_files()?;
            others.retain(|path| *path != stored.path);
            self.check_binding(definition, &others)?;
        }
        if text != stored.text() {
            disk::replace_on(&*self.system, &stored.path, text.as_bytes(), stored.mode())
                .map_err(|error| Refusal::storage(&stored.path, &error))?;
        }
        Ok(Stored::read(&self.directory, stored.path.clone()))
    }

    /// What would be a fault beside the others is said before it is there.
    fn check_binding(&self, definition: &Definition, others: &[PathBuf]) -> Result<(), Refusal> {
        if definition.bind.is_none_or(|bind| bind.port() == 0) {
            return Ok(());
        }
        let other = others
            .iter()
            .filter_map(|path| Stored::read(&self.directory, path.clone()).definition.ok())
            .find(|other| other.contends_with(definition));
        other.map_or(Ok(()), |other| {
            Err(Refusal::binding_taken(definition, &other))
        })
    }

    fn load_keys(&self, name: &HycoName) -> Result<HycoKeys, Refusal> {
        let path = keys::find(&self.directory, name)?;
        Ok(keys::load(&self.directory.shown(&path), &path)?)
    }

    /// Makes the keys of definitions that a person put there without any. Under the lock: a
    /// deletion takes the keys before the definition, and nothing may make them again between the
    /// two.
    ///
    /// # Errors
    /// The disk did not take it, or another edits for longer than `wait`.
    pub fn make_missing_keys(&self, names: &[HycoName], wait: Duration) -> Result<(), Refusal> {
        let _turn = self.my_turn_within(wait)?;
        let definitions = self.definition_files()?;
        let here: BTreeSet<HycoName> = definitions
            .iter()
            .filter_map(|path| name_of("", path).ok())
            .collect();
        let key_files = keys::KeyFiles::list(&self.directory)?;
        for name in names.iter().filter(|name| here.contains(name)) {
            self.make_keys(&key_files.of(name)?)?;
        }
        Ok(())
    }

    /// Makes the namespace's own keys where they are missing: the manage keys and the relay's.
    ///
    /// # Errors
    /// The disk did not take it, or another edits for longer than `wait`.
    pub fn make_namespace_keys(&self, wait: Duration) -> Result<(), Refusal> {
        let _turn = self.my_turn_within(wait)?;
        keys::make_relay(&self.directory, &mut rand::rng())
            .and_then(|()| keys::make_manage(&self.directory, &mut rand::rng()))
            .map_err(|unmade| Refusal::storage(&unmade.path, &unmade.source))
    }

    fn make_keys(&self, path: &Path) -> Result<(), Refusal> {
        keys::make_on(&*self.system, path, &mut rand::rng())
            .map_err(|unmade| Refusal::storage(&unmade.path, &unmade.source))
    }

    fn remove(&self, path: &Path) -> Result<(), Refusal> {
        disk::remove_on(&*self.system, path)
            .map(|_| ())
            .map_err(|error| Refusal::storage(path, &error))
    }

    fn definition_files(&self) -> Result<Vec<PathBuf>, Refusal> {
        let folder = self.directory.connections();
        Directory::toml_files(&folder)
            .map_err(|error| unreadable(&self.directory.shown(&folder), &error).into())
    }

    fn my_turn(&self) -> Result<Turn<'_>, Refusal> {
        self.my_turn_within(EDIT_WAIT)
    }

    fn my_turn_within(&self, wait: Duration) -> Result<Turn<'_>, Refusal> {
        let own = self.own_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory.run().join("edit.lock");
        let lock = match Lock::take_within(&path, wait) {
            // No room for the file: then nobody can make it, and all lock its folder.
            Err(LockError::Io(error)) if disk::is_full(&error) => {
                Lock::folder_within(&self.directory.run(), wait)
            }
            taken => taken,
        };
        let lock = lock.map_err(|error| match error {
            LockError::Held => Refusal::busy(&path, wait),
            LockError::Io(error) => Refusal::storage(&path, &error),
        })?;
        let turn = Turn {
            _lock: lock,
            _own: own,
        };
        self.finish_deletions_in_turn()?;
        Ok(turn)
    }
}

/// Held while something is edited. The lock between processes goes first.
struct Turn<'a> {
    _lock: Lock,
    _own: MutexGuard<'a, ()>,
}

fn count(paths: &[PathBuf]) -> usize {
    let is_name = |path: &&PathBuf| name_of("", path).is_ok();
    paths.iter().filter(is_name).count()
}

fn of_name<'a>(paths: &'a [PathBuf], name: &HycoName) -> Option<&'a PathBuf> {
    paths
        .iter()
        .find(|path| name_of("", path).is_ok_and(|found| found == *name))
}

fn check(definition: &Definition, text: &str) -> Result<(), Refusal> {
    Definition::parse(definition.name.clone(), "", text)
        .map(|_| ())
        .map_err(Refusal::invalid)
}
