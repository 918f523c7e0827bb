//! Lets applications go on using the original host names: says, or writes, the hosts entries that lead them to the sender's addresses.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::ValueEnum;
use tracing::{info, warn};
use underpass_proto::{AgentId, Endpoint, Host, HostName, HycoName};

use crate::cli::{Failure, print};
use crate::files::hosts::{self, Entry};

/// What becomes of the entries.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// Print each on stdout as soon as it is known.
    Print,
    /// Keep them in the hosts file while the sender runs.
    Write,
}

/// The entries of this sender.
#[derive(Debug)]
pub(super) struct Names {
    mode: Option<Mode>,
    path: PathBuf,
    /// Marks our section of the file.
    sender: String,
    known: Mutex<Known>,
}

#[derive(Default, Debug)]
struct Known {
    endpoints: BTreeMap<(HycoName, SocketAddr), Endpoint>,
    printed: BTreeSet<Entry>,
    /// What was said once is not said again.
    said: HashSet<String>,
}

impl Names {
    /// Takes out what an earlier run left in the file, and makes sure that it can be written.
    pub(super) fn start(mode: Option<Mode>, path: PathBuf, id: AgentId) -> Result<Self, Failure> {
        let short: String = id.to_string().chars().take(8).collect();
        let names = Self {
            mode,
            path,
            sender: format!("sender {short}"),
            known: Mutex::default(),
        };
        if mode == Some(Mode::Write) {
            OpenOptions::new()
                .write(true)
                .open(&names.path)
                .and_then(|_| hosts::update(&names.path, &names.sender, &BTreeSet::new()))
                .map_err(|error| {
                    Failure::configuration(format!("cannot write {}: {error}", names.path.display()))
                        .hint("run the sender as a user that can write there, or take `--hosts print` and put the lines there by hand")
                })?;
        }
        Ok(names)
    }

    /// A hybrid connection is registered, or its endpoint changed.
    pub(super) fn registered(&self, hyco: HycoName, endpoint: Endpoint, bound: SocketAddr) {
        let mut known = self.known();
        let key = (hyco, bound);
        if known.endpoints.get(&key) == Some(&endpoint) {
            return;
        }
        for (level, note) in notes(&key.0, &endpoint, bound, self.mode) {
            known.say(level, note);
        }
        known.endpoints.insert(key, endpoint);
        self.settle(&mut known);
    }

    /// Nothing else is bound any more.
    pub(super) fn keep(&self, bound: &HashSet<SocketAddr>) {
        let mut known = self.known();
        let before = known.endpoints.len();
        // A free port was asked for: which one it became is known only by what was heard.
        let any_of: HashSet<_> = bound
            .iter()
            .filter(|bind| bind.port() == 0)
            .map(SocketAddr::ip)
            .collect();
        known
            .endpoints
            .retain(|(_, at), _| bound.contains(at) || any_of.contains(&at.ip()));
        if known.endpoints.len() != before {
            self.settle(&mut known);
        }
    }

    /// Takes the entries out of the file.
    pub(super) fn end(&self) {
        let mut known = self.known();
        known.endpoints.clear();
        self.settle(&mut known);
    }

    fn settle(&self, known: &mut Known) {
        let entries = known.entries();
        match self.mode {
            None => {}
            Some(Mode::Print) => {
                let new: Vec<Entry> = entries.difference(&known.printed).cloned().collect();
                for entry in new {
                    // Nobody reads any more: then nobody wants them.
                    let _ = print(&format!("{entry}\n"));
                    known.printed.insert(entry);
                }
            }
            Some(Mode::Write) => match hosts::update(&self.path, &self.sender, &entries) {
                Ok(conflicts) => {
                    for conflict in conflicts {
                        let note = format!(
                            "{} leads to {} by line {} of {}, and that line counts: take it out, and applications come here",
                            conflict.name,
                            conflict.ip,
                            conflict.line,
                            self.path.display()
                        );
                        known.say(Level::Warn, note);
                    }
                }
                Err(error) => {
                    known.say(
                        Level::Warn,
                        format!("cannot write {}: {error}", self.path.display()),
                    );
                }
            },
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    Info,
    Warn,
}

impl Known {
    /// One line for each name. Of two addresses for one name, only the first can be reached by it.
    fn entries(&mut self) -> BTreeSet<Entry> {
        let mut entries: BTreeSet<Entry> = BTreeSet::new();
        let mut notes = Vec::new();
        for ((hyco, bound), endpoint) in &self.endpoints {
            let Ok(name) = led_here(&endpoint.host) else {
                continue;
            };
            let other = entries
                .iter()
                .find(|entry| entry.name.matches(name) && entry.ip != bound.ip());
            match other {
                Some(other) => notes.push(format!(
                    "{name} leads to {} already: {hyco} is reached at {bound} only; give both the same address, or leave bind out",
                    other.ip
                )),
                None => {
                    entries.insert(Entry {
                        ip: bound.ip(),
                        name: name.clone(),
                    });
                }
            }
        }
        for note in notes {
            self.say(Level::Warn, note);
        }
        entries
    }

    fn say(&mut self, level: Level, note: String) {
        if self.said.contains(&note) {
            return;
        }
        match level {
            Level::Info => info!("{note}"),
            Level::Warn => warn!("{note}"),
        }
        self.said.insert(note);
    }
}

/// The name that a hosts entry can lead to this sender, or what is in its way.
fn led_here(host: &Host) -> Result<&HostName, &'static str> {
    match host {
        Host::Name(name) if name.is_localhost() => Err("is this machine itself to everybody here"),
        Host::Name(name) => Ok(name),
        Host::V4(_) | Host::V6(_) => Err("is an address"),
    }
}

/// What a person has to know of one.
fn notes(
    hyco: &HycoName,
    endpoint: &Endpoint,
    bound: SocketAddr,
    mode: Option<Mode>,
) -> Vec<(Level, String)> {
    let mut notes = vec![(
        Level::Info,
        format!("{hyco}: applications reach {endpoint} at {bound}"),
    )];
    if let Err(why) = led_here(&endpoint.host) {
        notes.push((
            Level::Info,
            format!(
                "{hyco}: {} {why}, and no hosts entry leads it here: applications connect to {bound}",
                endpoint.host
            ),
        ));
    } else if mode.is_some() && bound.port() != endpoint.port.get() {
        notes.push((
            Level::Warn,
            format!(
                "{hyco}: applications must use port {} instead of {}; leave bind out to keep the original one",
                bound.port(),
                endpoint.port
            ),
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_follows_what_is_registered_and_is_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        fs::write(&path, "127.0.0.1 localhost\n").unwrap();
        let start = || Names::start(Some(Mode::Write), path.clone(), AgentId([7; 16])).unwrap();
        let read = || fs::read_to_string(&path).unwrap();
        let names = start();
        register(&names, "payroll-sql", "sql01.corp:1433", "127.0.0.2:1433");
        register(&names, "payroll-web", "sql01.corp:443", "127.0.0.2:443");
        register(&names, "archive-sql", "10.0.0.5:1433", "127.0.0.3:1433");
        register(&names, "another-sql", "sql01.corp:1434", "127.0.0.9:1434");
        register(&names, "local-sql", "localhost:1433", "127.0.0.4:1433");
        register(&names, "local-web", "web.LocalHost.:443", "127.0.0.5:443");
        let expected = "127.0.0.1 localhost\n# underpass begin (sender 07070707)\n127.0.0.9 sql01.corp sql01.corp. # by underpass\n# underpass end\n";
        assert_eq!(read(), expected, "the first by name has it");
        names.keep(&HashSet::from([
            "127.0.0.2:443".parse().unwrap(),
            "127.0.0.2:1433".parse().unwrap(),
        ]));
        assert_eq!(read(), expected.replace("127.0.0.9", "127.0.0.2"));
        register(&names, "payroll-sql", "sql09.corp.:1433", "127.0.0.2:1433");
        assert!(read().contains("127.0.0.2 sql09.corp sql09.corp. #"));
        // As if it had been killed: the next start takes out what is left.
        drop(names);
        let names = start();
        assert_eq!(read(), "127.0.0.1 localhost\n");
        register(&names, "payroll-sql", "sql01.corp:1433", "127.0.0.2:1433");
        names.end();
        assert_eq!(read(), "127.0.0.1 localhost\n");
    }

    #[test]
    fn what_cannot_be_done_by_a_hosts_entry_is_said() {
        let said = |endpoint: &str, bound: &str| {
            let notes = notes(
                &"payroll-sql".parse().unwrap(),
                &endpoint.parse().unwrap(),
                bound.parse().unwrap(),
                Some(Mode::Print),
            );
            notes.into_iter().map(|(_, note)| note).collect::<Vec<_>>()
        };
        assert_eq!(said("sql01:1433", "127.0.0.2:1433").len(), 1);
        assert_eq!(
            said("10.0.0.5:1433", "127.0.0.2:1433")[1],
            "payroll-sql: 10.0.0.5 is an address, and no hosts entry leads it here: applications connect to 127.0.0.2:1433"
        );
        for name in ["localhost", "sql01.localhost"] {
            assert_eq!(
                said(&format!("{name}:1433"), "127.0.0.2:1433")[1],
                format!(
                    "payroll-sql: {name} is this machine itself to everybody here, and no hosts entry leads it here: applications connect to 127.0.0.2:1433"
                )
            );
        }
        assert_eq!(
            said("sql01:1433", "127.0.0.1:5000")[1],
            "payroll-sql: applications must use port 5000 instead of 1433; leave bind out to keep the original one"
        );
    }

    fn register(names: &Names, hyco: &str, endpoint: &str, bound: &str) {
        names.registered(
            hyco.parse().unwrap(),
            endpoint.parse().unwrap(),
            bound.parse().unwrap(),
        );
    }
}
