//! Which file of `keys/` is that of a name. Reads none of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use underpass_proto::HycoName;

use crate::files::definition::name_of;
use crate::files::{Directory, Fault, unreadable};

/// The key file of a hybrid connection, however it is spelled; where there is none, the one to
/// make.
///
/// # Errors
/// The folder cannot be read, or there are two that differ in case alone.
pub fn find(directory: &Directory, name: &HycoName) -> Result<PathBuf, Fault> {
    KeyFiles::list(directory)?.of(name)
}

/// The key files of all hybrid connections, listed once.
pub struct KeyFiles<'d> {
    directory: &'d Directory,
    /// Several where they differ in case alone.
    by_name: BTreeMap<HycoName, Vec<PathBuf>>,
}

impl<'d> KeyFiles<'d> {
    /// Lists the folder.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn list(directory: &'d Directory) -> Result<Self, Fault> {
        let folder = directory.keys();
        let paths = Directory::toml_files(&folder)
            .map_err(|error| unreadable(&directory.shown(&folder), &error))?;
        let mut by_name: BTreeMap<HycoName, Vec<PathBuf>> = BTreeMap::new();
        for path in paths {
            if let Ok(name) = name_of("", &path) {
                by_name.entry(name).or_default().push(path);
            }
        }
        Ok(Self { directory, by_name })
    }

    /// The file of a name; where there is none, the one to make.
    ///
    /// # Errors
    /// There are two that differ in case alone.
    pub fn of(&self, name: &HycoName) -> Result<PathBuf, Fault> {
        match self.by_name.get(name).map(Vec::as_slice) {
            None | Some([]) => Ok(self.directory.key_file(name)),
            Some([path]) => Ok(path.clone()),
            Some([path, other, ..]) => Err(equal_but_for_case(self.directory, name, path, other)),
        }
    }
}

/// The fault of two key files whose names differ in case alone.
#[must_use]
pub fn equal_but_for_case(
    directory: &Directory,
    name: &HycoName,
    path: &Path,
    other: &Path,
) -> Fault {
    let what = format!(
        "its name is equal to that of {} but for case, so neither is used; delete one of the two",
        directory.shown(other)
    );
    Fault::whole(directory.shown(path), what).of(name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_list_of_key_files_finds_each_name_however_it_is_spelled() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::new(folder.path());
        directory.prepare().unwrap();
        let name = |text: &str| text.parse::<HycoName>().unwrap();
        for file in ["Payroll-SQL", "archive-sql", "ARCHIVE-sql", "_manage"] {
            fs::write(directory.keys().join(format!("{file}.toml")), "").unwrap();
        }
        let files = KeyFiles::list(&directory).unwrap();
        // What comes later is not seen: it is one list for many names.
        fs::write(directory.keys().join("web-sql.toml"), "").unwrap();
        fs::write(directory.keys().join("WEB-sql.toml"), "").unwrap();
        let of = |text: &str| files.of(&name(text));
        assert_eq!(
            of("payroll-sql"),
            Ok(directory.keys().join("Payroll-SQL.toml"))
        );
        assert_eq!(of("web-sql"), Ok(directory.key_file(&name("web-sql"))));
        let fault = of("archive-sql").unwrap_err();
        assert!(fault.what.contains("equal to that of"), "{fault}");
        assert!(find(&directory, &name("web-sql")).is_err());
    }
}
