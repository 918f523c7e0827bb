//! `usage/MONTH.json`: the figures of a month, written whole. What cannot be read is put aside, never overwritten.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::ledger::{Ledger, Month};
use super::{Data, MONTHS_MAX, Sum};
use crate::files::{Directory, Fault, disk};

/// The largest file that is read, bytes: 50,000 names and eight relays that carried for all of them.
const FILE_SIZE_MAX: u64 = 64 * 1024 * 1024;

/// The files, and the sums of the months that are closed.
pub(super) struct Files {
    directory: Directory,
    sums: BTreeMap<Month, Data>,
}

impl Files {
    /// Reads what is there. What is wrong is told, and put aside.
    pub(super) fn open(directory: &Directory) -> (Self, Vec<Ledger>, Vec<Fault>) {
        let mut files = Self {
            directory: directory.clone(),
            sums: BTreeMap::new(),
        };
        let mut found = Vec::new();
        let mut faults = Vec::new();
        for month in files.months() {
            match files.read(month) {
                Ok(ledger) => found.extend(ledger),
                Err(fault) => faults.push(fault),
            }
        }
        files.sums = found
            .iter()
            .map(|ledger| (ledger.month, ledger.total()))
            .collect();
        (files, found, faults)
    }

    /// The closed months.
    pub(super) fn sums(&self) -> Vec<Sum> {
        let sum = |(month, data): (&Month, &Data)| Sum {
            month: *month,
            data: *data,
        };
        self.sums.iter().map(sum).collect()
    }

    /// Remembers what a month came to.
    pub(super) fn close(&mut self, sum: Sum) {
        if sum.data != Data::default() {
            self.sums.insert(sum.month, sum.data);
        }
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

    pub(super) fn write(&mut self, ledger: &Ledger) -> Result<(), Fault> {
        let path = self.path(ledger.month);
        let is_new = !path.exists();
        let written = serde_json::to_vec(ledger)
            .map_err(io::Error::from)
            .and_then(|text| {
                disk::folder(&self.directory.usage(), 0o700)?;
                disk::replace(&path, &text, disk::SECRET)
            });
        written.map_err(|error| {
            let file = self.directory.shown(&path);
            Fault::whole(file, format!("cannot be written: {error}; data use is kept in memory until it can, so make room or see to the folder's rights"))
        })?;
        if is_new {
            self.prune(ledger.month);
        }
        Ok(())
    }

    /// Removes the oldest months; never the open one, whatever the clock says.
    fn prune(&mut self, open: Month) {
        let mut months = self.months();
        months.retain(|month| *month != open);
        let surplus = (months.len() + 1).saturating_sub(MONTHS_MAX);
        for month in months.into_iter().take(surplus) {
            self.sums.remove(&month);
            let _ = fs::remove_file(self.path(month));
        }
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
