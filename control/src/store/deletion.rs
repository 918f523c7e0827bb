//! Deletes a hybrid connection so that its keys never work again, wherever a crash cuts it short.
//!
//! First the key file is renamed to a name that is never read; then the definition is removed, then
//! the renamed file. A deletion that was killed between two of these is finished by the next edit,
//! or by control when it starts.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use underpass_proto::HycoName;

use super::{Refusal, Store, of_name};
use crate::files::definition::name_of;
use crate::files::{disk, unreadable};

/// Ends the name of a key file that is out of use.
const DELETED: &str = ".underpass-deleted";

impl Store {
    /// Removes a key file, and before it the definition, if there is one.
    pub(super) fn remove_both(
        &self,
        definition: Option<&PathBuf>,
        key_file: &Path,
    ) -> Result<(), Refusal> {
        let Some(definition) = definition else {
            return self.remove(key_file);
        };
        let Some(name) = key_file.file_name().filter(|_| key_file.exists()) else {
            return self.remove(definition);
        };
        let name = name.to_string_lossy();
        let marked = key_file.with_file_name(format!(".{name}{DELETED}"));
        let renamed = disk::rename_on(&*self.system, key_file, &format!(".{name}{DELETED}"));
        if let Err(error) = &renamed
            && disk::is_full(error)
            && !marked.exists()
        {
            // No room for the longer name. What is removed needs none.
            self.remove(definition)?;
            return self.remove(key_file);
        }
        let removed = renamed
            .map_err(|error| Refusal::storage(key_file, &error))
            .and_then(|()| self.remove(definition));
        if let Err(refusal) = removed {
            // Nothing was deleted: its keys work on.
            if definition.exists() {
                let _ = disk::rename_on(&*self.system, &marked, &name);
            }
            return Err(refusal);
        }
        self.remove(&marked)
    }

    /// Finishes deletions that were cut short.
    ///
    /// # Errors
    /// The disk did not take it, or another edits for too long.
    pub fn finish_deletions(&self) -> Result<(), Refusal> {
        let folder = self.directory.keys();
        let marked =
            marked(&folder).map_err(|error| unreadable(&self.directory.shown(&folder), &error))?;
        if marked.is_empty() {
            return Ok(());
        }
        // Looked at again under the lock, which finishes them.
        self.my_turn().map(drop)
    }

    /// The same, by who holds the lock.
    pub(super) fn finish_deletions_in_turn(&self) -> Result<(), Refusal> {
        let folder = self.directory.keys();
        let marked =
            marked(&folder).map_err(|error| unreadable(&self.directory.shown(&folder), &error))?;
        for (path, name) in marked {
            let definitions = self.definition_files()?;
            let key_file = crate::files::keys::find(&self.directory, &name)?;
            // With new keys it was taken into use again since; so was one that a person put back.
            if let Some(definition) = of_name(&definitions, &name)
                && !key_file.exists()
                && !is_later(definition, &path)
            {
                self.remove(definition)?;
            }
            self.remove(&path)?;
        }
        Ok(())
    }
}

/// Whether a definition came after the deletion began. By the time of the last change of the file
/// itself (inode(7), `ctime`): a rename sets it, and a copy of an old file cannot carry an older
/// one.
fn is_later(definition: &Path, marked: &Path) -> bool {
    let changed = |path: &Path| {
        let metadata = std::fs::symlink_metadata(path).ok()?;
        Some((metadata.ctime(), metadata.ctime_nsec()))
    };
    changed(definition) > changed(marked)
}

/// Key files that are out of use.
fn marked(folder: &Path) -> io::Result<Vec<(PathBuf, HycoName)>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let file_name = entry.file_name();
        let name = file_name
            .to_str()
            .and_then(|name| name.strip_prefix('.')?.strip_suffix(DELETED))
            .and_then(|name| name_of("", Path::new(name)).ok());
        found.extend(name.map(|name| (entry.path(), name)));
    }
    Ok(found)
}
