//! The source that reads the directory's files. Each file keeps its own last good content; a bad
//! one stops no other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;
use underpass_proto::snapshot::RelayKeys;
use underpass_proto::{Generation, HybridConnection, HycoKeys, HycoName, Snapshot};

use super::cache::{Cached, GONE_AFTER, Presence};
use super::limit::Stood;
use super::resolve::{Candidate, Resolved, resolve};
use super::watch::FolderWatch;
use super::{Loaded, Source};
use crate::files::definition::{Definition, Probe, name_of};
use crate::files::namespace::Namespace;
use crate::files::quota::Quota;
use crate::files::tls::{self, Identity};
use crate::files::{Caller, Directory, Fault, agent, disk, keys, unreadable};
use crate::store::{Code, Store};
use crate::usage::Meter;

/// The most definitions of one directory: their snapshot is under the feed's limit of 64 MiB with
/// room to spare.
const DEFINITIONS_MAX: usize = 20_000;

/// How long missing keys wait for somebody who edits: they are looked for again soon.
const KEYS_WAIT: Duration = Duration::from_millis(200);

/// The files of a directory, as far as they are known.
pub struct Folder {
    directory: Directory,
    watch: FolderWatch,
    namespace: Cached<Namespace>,
    identity: Cached<Identity>,
    relay_keys: Cached<RelayKeys>,
    passing_relay_keys: RelayKeys,
    definitions: BTreeMap<PathBuf, Cached<Definition>>,
    keys: BTreeMap<PathBuf, Cached<HycoKeys>>,
    resolved: Resolved,
    stood: Stood,
    store: Store,
    meter: Arc<Meter>,
    noted: Option<String>,
    look_again: bool,
}

impl Folder {
    /// Starts to watch the directory, which is prepared already.
    /// `meter` says how much of the month's data is used.
    #[must_use]
    pub fn open(directory: Directory, meter: Arc<Meter>) -> Self {
        let folders = vec![
            directory.root().to_owned(),
            directory.connections(),
            directory.keys(),
            directory.tls(),
        ];
        Self {
            watch: FolderWatch::new(folders),
            stood: Stood::open(&directory),
            store: Store::new(directory.clone()),
            meter,
            directory,
            namespace: Cached::new(),
            identity: Cached::new(),
            relay_keys: Cached::new(),
            passing_relay_keys: keys::passing_relay_keys(&mut rand::rng()),
            definitions: BTreeMap::new(),
            keys: BTreeMap::new(),
            resolved: Resolved::default(),
            noted: None,
            look_again: false,
        }
    }
}

impl Source for Folder {
    fn load(&mut self) -> Result<Loaded, Vec<Fault>> {
        let now = Instant::now();
        self.look_again = false;
        let mut faults = Vec::from_iter(self.directory.check(Caller::Process).err());
        let namespace = self.load_namespace(now, &mut faults)?;
        let identity = self.load_identity(&namespace, now, &mut faults)?;
        self.note(&namespace);
        self.make_namespace_keys(&mut faults);
        let relay_keys = self.load_relay_keys(now, &mut faults);
        let hycos = self.load_hycos(now, &namespace.quota, &mut faults);
        faults.extend(self.meter.faults(&namespace.quota));
        self.watch.looked(now.elapsed());
        let snapshot = Snapshot {
            generation: Generation::default(),
            namespace: namespace.name.clone(),
            listen: namespace.listen,
            public_address: namespace.public_address.clone(),
            workers: namespace.workers,
            tls: identity.tls,
            relay_keys,
            limits: namespace.limits.clone(),
            hycos,
        };
        Ok(Loaded {
            snapshot,
            faults,
            namespace,
        })
    }

    fn wait(&mut self) {
        let until = self.look_again.then(|| Instant::now() + GONE_AFTER);
        self.watch.wait(until);
    }
}

impl Folder {
    fn load_namespace(
        &mut self,
        now: Instant,
        faults: &mut Vec<Fault>,
    ) -> Result<Namespace, Vec<Fault>> {
        let path = self.directory.namespace();
        let file = self.directory.shown(&path);
        let presence = self.namespace.look(&[&path], now, || {
            let text = disk::read(&path).map_err(|error| vec![unreadable(&file, &error)])?;
            Namespace::parse(&file, &text.text, &agent::host_name())
        });
        if presence == Presence::Gone {
            faults.push(Fault::whole(
                &file,
                "is gone; what it said stays in force until control is started again",
            ));
        }
        faults.extend_from_slice(self.namespace.faults());
        self.namespace
            .good()
            .cloned()
            .ok_or_else(|| std::mem::take(faults))
    }

    fn load_identity(
        &mut self,
        namespace: &Namespace,
        now: Instant,
        faults: &mut Vec<Fault>,
    ) -> Result<Identity, Vec<Fault>> {
        if self.identity.good().is_none() {
            tls::make_missing(&self.directory, &namespace.public_address)
                .map_err(|fault| vec![fault])?;
        }
        let [key, certificate] = tls::paths(&self.directory);
        let presence = self.identity.look(&[&key, &certificate], now, || {
            tls::load(&self.directory).map_err(|fault| vec![fault])
        });
        if presence == Presence::Gone {
            faults.push(Fault::whole("tls/", "the certificate or its key is gone; the last ones stay in use until control is started again"));
        }
        faults.extend_from_slice(self.identity.faults());
        self.identity
            .good()
            .cloned()
            .ok_or_else(|| std::mem::take(faults))
    }

    /// Written to the log once, and again when it changed.
    fn note(&mut self, namespace: &Namespace) {
        let note = namespace.port_note();
        if let Some(note) = note.as_ref().filter(|_| note != self.noted) {
            warn!("{note}");
        }
        self.noted = note;
    }

    /// Makes the manage keys and the relay's where they are missing, under the lock of all edits.
    fn make_namespace_keys(&mut self, faults: &mut Vec<Fault>) {
        let mut files = [
            keys::relay_file(&self.directory),
            keys::manage_file(&self.directory),
        ]
        .into_iter();
        if files.all(|file| file.exists()) {
            return;
        }
        match self.store.make_namespace_keys(KEYS_WAIT) {
            Ok(()) => {}
            Err(refusal) if refusal.code == Code::Busy => self.look_again = true,
            Err(refusal) => faults.push(Fault::whole("keys/", refusal.to_string())),
        }
    }

    /// Without the file's keys the relay still runs, with keys of this start.
    fn load_relay_keys(&mut self, now: Instant, faults: &mut Vec<Fault>) -> RelayKeys {
        let path = keys::relay_file(&self.directory);
        let file = self.directory.shown(&path);
        self.relay_keys
            .look(&[&path], now, || keys::load_relay(&file, &path));
        faults.extend_from_slice(self.relay_keys.faults());
        self.relay_keys
            .good()
            .unwrap_or(&self.passing_relay_keys)
            .clone()
    }

    fn load_hycos(
        &mut self,
        now: Instant,
        quota: &Quota,
        faults: &mut Vec<Fault>,
    ) -> Vec<HybridConnection> {
        let candidates = self.load_definitions(now, faults);
        self.resolved = resolve(candidates, &self.resolved);
        faults.append(&mut self.resolved.faults);
        faults.extend(self.stood.limit(&mut self.resolved, quota));
        let over_quota = quota.enforce_data && self.meter.is_used_up(quota);
        let key_files = self.key_files(faults);
        let definitions: Vec<Definition> = self
            .resolved
            .by_name
            .values()
            .map(|(_, definition)| definition.clone())
            .collect();
        self.make_missing_keys(&definitions, &key_files, now, faults);
        let mut hycos = Vec::with_capacity(definitions.len());
        for definition in definitions {
            let keys = self.load_keys(&definition.name, &key_files, now, faults);
            hycos.push(HybridConnection {
                name: definition.name,
                endpoint: definition.endpoint,
                bind: definition.bind,
                allow_from: definition.allow_from,
                keys,
                limits: definition.limits,
                probe: definition.probe != Probe::Off,
                probe_always: definition.probe == Probe::On,
                over_quota,
            });
        }
        self.forget_keys_without_a_definition();
        hycos
    }

    fn load_definitions(&mut self, now: Instant, faults: &mut Vec<Fault>) -> Vec<Candidate> {
        let folder = self.directory.connections();
        let mut paths = match Directory::toml_files(&folder) {
            Ok(paths) => paths,
            Err(error) => {
                // Nothing is known of what is there: all stays as it was.
                faults.push(unreadable(&self.directory.shown(&folder), &error));
                self.definitions.keys().cloned().collect()
            }
        };
        if paths.len() > DEFINITIONS_MAX {
            faults.push(Fault::whole("connections/", format!("has {} definitions, and only the first {DEFINITIONS_MAX} are used; delete some", paths.len())));
            paths.truncate(DEFINITIONS_MAX);
        }
        for path in paths {
            self.definitions.entry(path).or_insert_with(Cached::new);
        }
        let (directory, resolved) = (&self.directory, &self.resolved);
        let mut candidates = Vec::new();
        let mut look_again = false;
        self.definitions.retain(|path, cached| {
            let file = directory.shown(path);
            match cached.look(&[path], now, || read_definition(&file, path)) {
                Presence::Gone => return false,
                Presence::Vanished => look_again = true,
                Presence::Here => {}
            }
            faults.extend_from_slice(cached.faults());
            // What is in force, before what was merely read: the text may be good and its binding
            // taken.
            let name = name_of(&file, path).ok();
            let in_force = name.and_then(|name| resolved.by_file(&name, &file));
            let last_good = in_force.or(cached.good()).cloned();
            candidates.push(Candidate {
                present: cached.present().cloned(),
                last_good,
                file,
            });
            true
        });
        self.look_again |= look_again;
        candidates
    }

    /// Key files by name, with those that were there a moment ago; several where they differ in
    /// case alone.
    fn key_files(&self, faults: &mut Vec<Fault>) -> BTreeMap<HycoName, Vec<PathBuf>> {
        let folder = self.directory.keys();
        let paths = Directory::toml_files(&folder).unwrap_or_else(|error| {
            faults.push(unreadable(&self.directory.shown(&folder), &error));
            Vec::new()
        });
        let mut by_name: BTreeMap<HycoName, Vec<PathBuf>> = BTreeMap::new();
        for path in paths.into_iter().filter(|path| !keys::is_reserved(path)) {
            match name_of(&self.directory.shown(&path), &path) {
                Ok(name) => by_name.entry(name).or_default().push(path),
                Err(fault) => faults.push(fault),
            }
        }
        for path in self.keys.keys() {
            if let Ok(name) = name_of("", path) {
                by_name.entry(name).or_insert_with(|| vec![path.clone()]);
            }
        }
        by_name
    }

    /// Makes the keys of definitions that have none, all under one lock.
    fn make_missing_keys(
        &mut self,
        definitions: &[Definition],
        files: &BTreeMap<HycoName, Vec<PathBuf>>,
        now: Instant,
        faults: &mut Vec<Fault>,
    ) {
        let mut missing = Vec::new();
        for Definition { name, .. } in definitions {
            let path = match files.get(name).map(Vec::as_slice) {
                None | Some([]) => self.directory.key_file(name),
                Some([path]) => path.clone(),
                Some(_) => continue,
            };
            let cached = self.keys.entry(path.clone()).or_insert_with(Cached::new);
            if cached.is_gone(&path, now) {
                missing.push(name.clone());
            }
        }
        if missing.is_empty() {
            return;
        }
        match self.store.make_missing_keys(&missing, KEYS_WAIT) {
            Ok(()) => {}
            Err(refusal) if refusal.code == Code::Busy => self.look_again = true,
            Err(refusal) => {
                let faulty = missing.iter().map(|name| {
                    let file = self.directory.shown(&self.directory.key_file(name));
                    Fault::whole(file, refusal.to_string()).of(name)
                });
                faults.extend(faulty);
            }
        }
    }

    fn load_keys(
        &mut self,
        name: &HycoName,
        files: &BTreeMap<HycoName, Vec<PathBuf>>,
        now: Instant,
        faults: &mut Vec<Fault>,
    ) -> HycoKeys {
        let of_name = files.get(name).map_or(&[][..], Vec::as_slice);
        let path = match of_name {
            [] => self.directory.key_file(name),
            [path] => path.clone(),
            [path, other, ..] => {
                faults.push(keys::equal_but_for_case(&self.directory, name, path, other));
                return HycoKeys::default();
            }
        };
        let file = self.directory.shown(&path);
        let cached = self.keys.entry(path.clone()).or_insert_with(Cached::new);
        let presence = cached.look(&[&path], now, || keys::load(&file, &path));
        if presence == Presence::Gone {
            // Not made, and so said already; or gone since, as in a deletion.
            *cached = Cached::new();
            return HycoKeys::default();
        }
        self.look_again |= presence == Presence::Vanished;
        faults.extend(cached.faults().iter().cloned().map(|fault| fault.of(name)));
        cached.present().cloned().unwrap_or_default()
    }

    fn forget_keys_without_a_definition(&mut self) {
        let resolved = &self.resolved.by_name;
        self.keys
            .retain(|path, _| name_of("", path).is_ok_and(|name| resolved.contains_key(&name)));
    }
}

fn read_definition(file: &str, path: &Path) -> Result<Definition, Vec<Fault>> {
    let name = name_of(file, path).map_err(|fault| vec![fault])?;
    let text = disk::read(path).map_err(|error| vec![unreadable(file, &error).of(&name)])?;
    Definition::parse(name, file, &text.text)
}
