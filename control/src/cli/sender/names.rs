//! Lets applications go on using the original host names: says, or writes, the hosts entries that
//! lead them to the sender's addresses.

use std::collections::{BTreeSet, HashSet};
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::ValueEnum;
use tracing::{info, warn};
use underpass_proto::{AgentId, Endpoint, HostName, HycoName};

use super::permit::Reserved;
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

/// A hybrid connection that applications can use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    pub(super) hyco: HycoName,
    pub(super) endpoint: Endpoint,
    pub(super) bound: SocketAddr,
    /// Whether a hosts entry may lead the endpoint's name here.
    pub(super) may_name: bool,
}

#[derive(Default, Debug)]
struct Known {
    /// In the order of their names.
    shown: Vec<Shown>,
    reserved: Reserved,
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

    /// This is all that applications can use now, in the order of their names.
    pub(super) fn show(&self, shown: Vec<Shown>, relays: Vec<HostName>) {
        let mut known = self.known();
        if known.shown == shown {
            return;
        }
        known.reserved = Reserved::of_this_machine(relays);
        let before = std::mem::replace(&mut known.shown, shown.clone());
        for new in shown.iter().filter(|new| !before.contains(new)) {
            for (level, note) in notes(new, &known.reserved, self.mode) {
                known.say(level, note);
            }
        }
        self.settle(&mut known);
    }

    /// Takes the entries out of the file.
    pub(super) fn end(&self) {
        let mut known = self.known();
        known.shown.clear();
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
        for shown in self.shown.iter().filter(|shown| shown.may_name) {
            let Ok(name) = self.reserved.led_here(&shown.endpoint.host) else {
                continue;
            };
            let (hyco, bound) = (&shown.hyco, shown.bound);
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

/// What a person has to know of one.
fn notes(shown: &Shown, reserved: &Reserved, mode: Option<Mode>) -> Vec<(Level, String)> {
    let Shown {
        hyco,
        endpoint,
        bound,
        may_name,
    } = shown;
    let mut notes = vec![(
        Level::Info,
        format!("{hyco}: applications reach {endpoint} at {bound}"),
    )];
    if !may_name {
        return notes; // The log names the refusal and what to do.
    }
    if let Err(why) = reserved.led_here(&endpoint.host) {
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
        let all = [
            shown("another-sql", "sql01.corp:1434", "127.0.0.9:1434"),
            shown("archive-sql", "10.0.0.5:1433", "127.0.0.3:1433"),
            shown("local-sql", "localhost:1433", "127.0.0.4:1433"),
            shown("local-web", "web.LocalHost.:443", "127.0.0.5:443"),
            shown("payroll-sql", "sql01.corp:1433", "127.0.0.2:1433"),
            shown("payroll-web", "sql01.corp:443", "127.0.0.2:443"),
            shown("proxy-web", "wpad.corp:80", "127.0.0.6:80"),
            shown("the-relay", "relay.corp:80", "127.0.0.7:80"),
            Shown {
                may_name: false,
                ..shown("unasked", "security.debian.org:443", "127.0.0.8:443")
            },
        ];
        let relays = vec!["Relay.corp".parse().unwrap()];
        names.show(all.to_vec(), relays.clone());
        let expected = "127.0.0.1 localhost\n# underpass begin (sender 07070707)\n127.0.0.9 sql01.corp sql01.corp. # by underpass\n# underpass end\n";
        assert_eq!(read(), expected, "the first by name has it");
        names.show(all[4..6].to_vec(), relays.clone());
        assert_eq!(read(), expected.replace("127.0.0.9", "127.0.0.2"));
        let moved = shown("payroll-sql", "sql09.corp:1433", "127.0.0.2:1433");
        names.show(vec![moved], relays.clone());
        assert_eq!(
            read(),
            expected
                .replace("127.0.0.9", "127.0.0.2")
                .replace("sql01", "sql09")
        );
        // As if it had been killed: the next start takes out what is left.
        drop(names);
        let names = start();
        assert_eq!(read(), "127.0.0.1 localhost\n");
        names.show(all[4..5].to_vec(), relays);
        names.end();
        assert_eq!(read(), "127.0.0.1 localhost\n");
    }

    #[test]
    fn what_cannot_be_done_by_a_hosts_entry_is_said() {
        let said = |endpoint: &str, bound: &str| {
            let shown = shown("payroll-sql", endpoint, bound);
            let notes = notes(&shown, &Reserved::default(), Some(Mode::Print));
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

    fn shown(hyco: &str, endpoint: &str, bound: &str) -> Shown {
        Shown {
            hyco: hyco.parse().unwrap(),
            endpoint: endpoint.parse().unwrap(),
            bound: bound.parse().unwrap(),
            may_name: true,
        }
    }
}
