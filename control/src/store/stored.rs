//! One file of `connections/`, as it was read: good or not, with the tag of its content.

use std::path::PathBuf;

use super::{ETag, Refusal};
use crate::files::definition::{Definition, name_of};
use crate::files::{Directory, Fault, disk, unreadable};

/// One definition file.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Where it is.
    pub path: PathBuf,
    /// The same, as people name it.
    pub file: String,
    /// The file's name, which need not be a name.
    pub name: String,
    /// What it says, or what is wrong with it.
    pub definition: Result<Definition, Vec<Fault>>,
    text: String,
    mode: u32,
}

impl Stored {
    pub(super) fn read(directory: &Directory, path: PathBuf) -> Self {
        let file = directory.shown(&path);
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let (text, mode, unread) = match disk::read(&path) {
            Ok(read) => (read.text.to_string(), read.stamp.mode & 0o777, None),
            Err(error) => (String::new(), disk::OPEN, Some(unreadable(&file, &error))),
        };
        let definition = match (name_of(&file, &path), unread) {
            (Err(fault), _) | (_, Some(fault)) => Err(vec![fault]),
            (Ok(name), None) => Definition::parse(name, &file, &text),
        };
        Self {
            path,
            file,
            name,
            definition,
            text,
            mode,
        }
    }

    /// The definition, if it is good.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn good(&self) -> Result<&Definition, Refusal> {
        self.definition
            .as_ref()
            .map_err(|faults| faults.clone().into())
    }

    /// Names its content.
    #[must_use]
    pub fn etag(&self) -> ETag {
        ETag::of(&self.text)
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn mode(&self) -> u32 {
        self.mode
    }
}
