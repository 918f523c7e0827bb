//! `usage/MONTH.json`: the figures of a month, written whole. What cannot be read is put aside,
//! never overwritten.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::MONTHS_MAX;
use super::ledger::{Ledger, Month};
use crate::files::disk::{self, FileSystem};
use crate::files::{Directory, Fault};

/// The largest file that is read, bytes: 50,000 names and eight relays that carried for all of
/// them.
const FILE_SIZE_MAX: u64 = 64 * 1024 * 1024;

/// The files. Whoever writes is alone with them.
#[derive(Clone)]
pub(super) struct Files {
    directory: Directory,
    system: Arc<dyn FileSystem>,
}

impl Files {
    /// Reads what is there. What is wrong is told, and put aside.
    pub(super) fn open(
        directory: &Directory,
        system: Arc<dyn FileSystem>,
    ) -> (Self, Vec<Ledger>, Vec<Fault>) {
        let files = Self {
            directory: directory.clone(),
            system,
        };
        let mut found = Vec::new();
        let mut faults = Vec::new();
        for month in files.months() {
            match files.read(month) {
                Ok(ledger) => found.extend(ledger),
                Err(fault) => faults.push(fault),
            }
        }
        (files, found, faults)
    }

    /// Reads a month, if it has a file.
    pub(super) fn read(&self, month: Month) -> Result<Option<Ledger>, Fault> {
        let path = self.path(month);
        let why = match read(&path) {
            Ok(None) => return Ok(None),
            Ok(Some(ledger)) if ledger.month == month => return Ok(Some(ledger)),
            Ok(Some(ledger)) => format!("it is of {}", ledger.month),
            Err(error) => error.to_string(),
        };
        let aside = path.with_extension("json.broken");
        let next = match fs::rename(&path, &aside) {
            Ok(()) => {
                format!("it was put aside as {month}.json.broken, and that month is counted anew")
            }
            Err(error) => format!("and cannot be put aside either: {error}; move it away"),
        };
        let file = self.directory.shown(&path);
        Err(Fault::whole(file, format!("cannot be used: {why}; {next}")))
    }

    /// Writes a month. A new one makes the oldest go: which, it says.
    pub(super) fn write(&self, ledger: &Ledger) -> Result<Vec<Month>, Fault> {
        let path = self.path(ledger.month);
        let is_new = !path.exists();
        let written = serde_json::to_vec(ledger)
            .map_err(io::Error::from)
            .and_then(|text| {
                disk::folder(&self.directory.usage(), 0o700)?;
                disk::replace_own_on(&*self.system, &path, &text)
            });
        written.map_err(|error| {
            let file = self.directory.shown(&path);
            Fault::whole(file, format!("cannot be written: {error}; data use is kept in memory until it can, so make room or see to the folder's rights"))
        })?;
        Ok(if is_new {
            self.prune(ledger.month)
        } else {
            Vec::new()
        })
    }

    /// Removes the oldest months; never the open one, whatever the clock says.
    fn prune(&self, open: Month) -> Vec<Month> {
        let mut months = self.months();
        months.retain(|month| *month != open);
        let surplus = (months.len() + 1).saturating_sub(MONTHS_MAX);
        months.truncate(surplus);
        for month in &months {
            let _ = fs::remove_file(self.path(*month));
        }
        months
    }

    /// The months that have a file, oldest first.
    fn months(&self) -> Vec<Month> {
        let entries = fs::read_dir(self.directory.usage());
        let mut months: Vec<Month> = entries
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".json")?
                    .parse()
                    .ok()
            })
            .collect();
        months.sort();
        months
    }

    fn path(&self, month: Month) -> PathBuf {
        self.directory.usage().join(format!("{month}.json"))
    }
}

fn read(path: &Path) -> io::Result<Option<Ledger>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Vec::new();
    file.take(FILE_SIZE_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_SIZE_MAX {
        return Err(io::Error::other(format!(
            "it is larger than {FILE_SIZE_MAX} bytes"
        )));
    }
    Ok(serde_json::from_slice(&text)?)
}
