//! Reads what an agent or a sender is told, again when a file of it changes, so that a new key is
//! proven on the live session.
//!
//! A file that is wrong keeps its own last good content, and what is wrong with it is said once. At
//! the start nothing may be wrong.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tracing::{info, warn};
use underpass_proto::{AllowList, ConnectionString, Rule};

use super::Failure;
use super::source::Source;
use crate::files::data_plane::DataPlane;
use crate::files::{Fault, disk, strings, unreadable};
use crate::publish::cache::{Cached, Presence};
use crate::publish::watch::{FolderWatch, WaitEnd};

/// `agent.toml` or `sender.toml`.
pub(super) trait RoleFile: Clone + PartialEq + Send + Sized + 'static {
    /// One `[[connect]]`.
    type Entry: Clone + PartialEq + Send;
    /// The rule of its connection strings.
    const RULE: Rule;
    fn load(path: &Path) -> Result<Self, Vec<Fault>>;
    /// Reads the text of the file; relative paths start in the working folder.
    fn parse(file: &str, text: &str) -> Result<Self, Vec<Fault>>;
    /// What the file would say of a single string.
    fn of_one(string_file: PathBuf) -> Self;
    fn entries(&self) -> &[Self::Entry];
    fn string_file(entry: &Self::Entry) -> &Path;
    /// What every string may lead to.
    fn allow(&self) -> &AllowList;
    /// What the string of this entry alone may lead to.
    fn own_allow(entry: &Self::Entry) -> &AllowList;
    fn data_plane(&self) -> &DataPlane;
}

/// What all files say together.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Loaded<F: RoleFile> {
    pub(super) file: F,
    /// Entries whose strings are known, in their order.
    pub(super) connects: Vec<(F::Entry, ConnectionString)>,
    /// CA certificates, DER.
    pub(super) ca: Vec<Vec<u8>>,
}

/// The files, and what each said last.
pub(super) struct Loader<F: RoleFile> {
    source: Source,
    ca_file: Option<PathBuf>,
    config: Cached<F>,
    strings: HashMap<PathBuf, Cached<ConnectionString>>,
    ca: HashMap<PathBuf, Cached<Vec<Vec<u8>>>>,
    loaded: Loaded<F>,
    told: Vec<Fault>,
}

impl<F: RoleFile> Loader<F> {
    /// Reads everything for the first time. `ca_file` of the command line stands before that of the
    /// file.
    pub(super) fn start(source: Source, ca_file: Option<PathBuf>) -> Result<Self, Failure> {
        let mut loader = Self {
            source,
            ca_file,
            config: Cached::new(),
            strings: HashMap::new(),
            ca: HashMap::new(),
            loaded: Loaded {
                file: F::of_one(PathBuf::new()),
                connects: Vec::new(),
                ca: Vec::new(),
            },
            told: Vec::new(),
        };
        let (loaded, faults) = loader.look(Instant::now());
        match loaded {
            Some(loaded) if faults.is_empty() => loader.loaded = loaded,
            _ => return Err(faults.into()),
        }
        Ok(loader)
    }

    /// What was read last.
    pub(super) fn loaded(&self) -> &Loaded<F> {
        &self.loaded
    }

    /// Where it all comes from.
    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Reads what changed. Whether anything of it means something else now.
    fn again(&mut self) -> bool {
        let (loaded, faults) = self.look(Instant::now());
        for fault in faults.iter().filter(|fault| !self.told.contains(fault)) {
            warn!("{fault}; what it said before stays in force");
        }
        self.told = faults;
        match loaded {
            Some(loaded) if loaded != self.loaded => {
                if !loaded
                    .file
                    .data_plane()
                    .works_like(self.loaded.file.data_plane())
                {
                    warn!("workers, io and mtu_max are taken up at the next start");
                }
                self.loaded = loaded;
                true
            }
            _ => false,
        }
    }

    fn look(&mut self, now: Instant) -> (Option<Loaded<F>>, Vec<Fault>) {
        let mut faults = Vec::new();
        let file = match &self.source {
            Source::Config(path) => see(&mut self.config, path, now, F::load, &mut faults),
            Source::File(path) => Some(F::of_one(path.clone())),
            Source::Text(_) => Some(F::of_one(PathBuf::new())),
        };
        let Some(file) = file else {
            return (None, faults);
        };
        let connects = self.look_at_strings(&file, now, &mut faults);
        let ca = self.look_at_ca(&file, now, &mut faults);
        let loaded = Loaded { file, connects, ca };
        // None of the strings is known: what was there before is better.
        let loaded = Some(loaded).filter(|loaded| !loaded.connects.is_empty());
        (loaded, faults)
    }

    fn look_at_strings(
        &mut self,
        file: &F,
        now: Instant,
        faults: &mut Vec<Fault>,
    ) -> Vec<(F::Entry, ConnectionString)> {
        let load = |path: &Path| strings::load(path, F::RULE).map_err(|fault| vec![fault]);
        let mut connects = Vec::new();
        let mut used = HashMap::new();
        for entry in file.entries() {
            let string = match &self.source {
                Source::Text(string) => Some(ConnectionString::clone(string)),
                _ => {
                    let path = F::string_file(entry);
                    let known = self.strings.remove(path);
                    let cached = used
                        .entry(path.to_owned())
                        .or_insert_with(|| known.unwrap_or_else(Cached::new));
                    see(cached, path, now, load, faults)
                }
            };
            connects.extend(string.map(|string| (entry.clone(), string)));
        }
        self.strings = used;
        connects
    }

    fn look_at_ca(&mut self, file: &F, now: Instant, faults: &mut Vec<Fault>) -> Vec<Vec<u8>> {
        let path = self.ca_file.as_ref().or(file.data_plane().ca_file.as_ref());
        let Some(path) = path.cloned() else {
            self.ca.clear();
            return Vec::new();
        };
        self.ca.retain(|known, _| *known == path);
        let cached = self.ca.entry(path.clone()).or_insert_with(Cached::new);
        // Never the system's roots in the place of certificates that cannot be read.
        see(cached, &path, now, load_ca, faults).unwrap_or_else(|| self.loaded.ca.clone())
    }

    /// The folders of all files that count.
    fn folders(&self) -> Vec<PathBuf> {
        let config = match &self.source {
            Source::Config(path) => Some(path),
            Source::File(_) | Source::Text(_) => None,
        };
        let files = config
            .into_iter()
            .chain(self.strings.keys())
            .chain(self.ca.keys());
        let mut folders: Vec<PathBuf> = files
            .map(|file| match file.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
                _ => PathBuf::from("."),
            })
            .collect();
        folders.sort();
        folders.dedup();
        folders
    }
}

/// The files, and their folders, watched: from when it is made, SIGHUP makes it read them again.
pub(super) struct WatchedLoader<F: RoleFile> {
    loader: Loader<F>,
    folders: Vec<PathBuf>,
    watch: FolderWatch,
}

impl<F: RoleFile> WatchedLoader<F> {
    pub(super) fn new(loader: Loader<F>) -> Self {
        let folders = loader.folders();
        Self {
            watch: FolderWatch::new(folders.clone()),
            folders,
            loader,
        }
    }

    /// What was read last.
    pub(super) fn loaded(&self) -> &Loaded<F> {
        self.loader.loaded()
    }

    /// Waits until `until`, or until a file means something else, or for SIGHUP; then the files are
    /// read again. `false`: something came by `stop`.
    pub(super) fn wait(&mut self, until: Instant, stop: &Receiver<()>) -> bool {
        loop {
            let woken = self.watch.wait_or_stop(Some(until), stop);
            if woken == WaitEnd::Stopped {
                return false;
            }
            // A folder may be a busy one: what others write there is no reason.
            if self.again() || woken == WaitEnd::Requested || Instant::now() >= until {
                return true;
            }
        }
    }

    fn again(&mut self) -> bool {
        let changed = self.loader.again();
        let folders = self.loader.folders();
        if self.folders != folders {
            self.watch = FolderWatch::new(folders.clone());
            self.folders = folders;
        }
        changed
    }
}

/// Reads again on a thread of its own, for as long as anybody listens. `assemble` makes of it what
/// the data plane takes, if that is anything new; it is also asked when nothing changed, each
/// second, if `stale` says so.
pub(super) fn watch<F, C>(
    mut loader: WatchedLoader<F>,
    mut stale: impl FnMut() -> bool + Send + 'static,
    mut assemble: impl FnMut(&Loaded<F>) -> Result<Option<C>, Failure> + Send + 'static,
) -> io::Result<Receiver<C>>
where
    F: RoleFile,
    C: Send + 'static,
{
    let (update, updates) = bounded(1);
    let work = move || {
        loop {
            loader.watch.wait(None);
            let changed = loader.again();
            if !changed && !stale() {
                continue;
            }
            match assemble(loader.loaded()) {
                Ok(Some(config)) => {
                    info!("the configuration changed, and is taken up");
                    if update.send(config).is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(failure) => {
                    for error in &failure.errors {
                        warn!("{error}; what was said before stays in force");
                    }
                }
            }
        }
    };
    thread::Builder::new().name("reload".into()).spawn(work)?;
    Ok(updates)
}

/// What a file says, or said last.
fn see<T: Clone>(
    cached: &mut Cached<T>,
    path: &Path,
    now: Instant,
    load: impl Fn(&Path) -> Result<T, Vec<Fault>>,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    match cached.look(&[path], now, || load(path)) {
        Presence::Here => faults.extend_from_slice(cached.faults()),
        Presence::Vanished => {}
        Presence::Gone => faults.extend(load(path).err().unwrap_or_default()),
    }
    cached.good().cloned()
}

fn load_ca(path: &Path) -> Result<Vec<Vec<u8>>, Vec<Fault>> {
    let file = path.display().to_string();
    let pem = disk::read(path).map_err(|error| vec![unreadable(&file, &error)])?;
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem.text.as_bytes()).collect();
    let what = match certificates {
        Ok(certificates) if !certificates.is_empty() => {
            return Ok(certificates.iter().map(|der| der.to_vec()).collect());
        }
        Ok(_) => "holds no certificate; put one there in PEM form (`BEGIN CERTIFICATE`)".to_owned(),
        Err(error) => format!("cannot be used: {error}; put certificates there in PEM form"),
    };
    Err(vec![Fault::whole(file, what)])
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::files::agent::AgentFile;

    const DEADLINE: Duration = Duration::from_secs(20);

    #[test]
    fn a_new_key_in_the_file_is_handed_on_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.connection", &string("one"));
        write(
            folder.path(),
            "agent.toml",
            "[[connect]]\nstring_file = \"a.connection\"\n",
        );
        let updates = start(folder.path());

        write(folder.path(), "a.connection", "garbage");
        write(folder.path(), "a.connection", &string("two"));
        assert_eq!(updates.recv_timeout(DEADLINE).unwrap(), ["two"]);

        // One that is bad leaves the other's change in force.
        write(folder.path(), "a.connection", "garbage");
        write(
            folder.path(),
            "b.connection",
            &string("three").replace("payroll", "archive"),
        );
        write(
            folder.path(),
            "agent.toml",
            "[[connect]]\nstring_file = \"a.connection\"\n[[connect]]\nstring_file = \"b.connection\"\n",
        );
        assert_eq!(updates.recv_timeout(DEADLINE).unwrap(), ["two", "three"]);

        fs::remove_file(folder.path().join("b.connection")).unwrap();
        write(folder.path(), "agent.toml", "[[connect");
        write(folder.path(), "a.connection", &string("four"));
        assert_eq!(updates.recv_timeout(DEADLINE).unwrap(), ["four", "three"]);
    }

    #[test]
    fn at_the_start_nothing_may_be_wrong() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.connection", &string("one"));
        write(
            folder.path(),
            "agent.toml",
            "ca_file = \"ca.pem\"\n[[connect]]\nstring_file = \"a.connection\"\n[[connect]]\nstring_file = \"gone\"\n",
        );
        let source = Source::Config(folder.path().join("agent.toml"));
        let Err(failure) = Loader::<AgentFile>::start(source, None) else {
            panic!("two files are missing")
        };
        assert!(
            failure.errors[0].contains("gone: is not there"),
            "{failure:?}"
        );
        assert!(
            failure.errors[1].contains("ca.pem: is not there"),
            "{failure:?}"
        );
    }

    #[test]
    fn a_wait_is_shortened_by_sighup_and_by_what_changed_and_ended_by_stop() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.connection", &string("one"));
        let source = Source::File(folder.path().join("a.connection"));
        let loader = Loader::<AgentFile>::start(source, None).unwrap();
        let mut loader = WatchedLoader::new(loader);
        let begun = Instant::now();
        let until = begun + 10 * DEADLINE;
        let (stop, stopped) = bounded(1);

        assert!(
            crate::publish::watch::look_now() > 0,
            "it has files to reload"
        );
        assert!(loader.wait(until, &stopped));
        write(folder.path(), "a.connection", &string("two"));
        assert!(loader.wait(until, &stopped));
        assert_eq!(loader.loaded().connects[0].1.key.expose(), "two");
        stop.send(()).unwrap();
        assert!(!loader.wait(until, &stopped));
        assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    }

    /// Tells the keys of each new configuration.
    fn start(folder: &Path) -> Receiver<Vec<String>> {
        let source = Source::Config(folder.join("agent.toml"));
        let loader = Loader::<AgentFile>::start(source, None).unwrap();
        watch(
            WatchedLoader::new(loader),
            || false,
            |loaded| {
                let keys = loaded.connects.iter();
                Ok(Some(
                    keys.map(|(_, string)| string.key.expose().to_owned())
                        .collect(),
                ))
            },
        )
        .unwrap()
    }

    fn string(key: &str) -> String {
        format!(
            "Endpoint=hc://r.example/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey={key}"
        )
    }

    fn write(folder: &Path, name: &str, text: &str) {
        disk::replace(&folder.join(name), text.as_bytes(), disk::SECRET).unwrap();
    }
}
