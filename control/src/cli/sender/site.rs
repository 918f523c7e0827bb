//! What a sender's configuration becomes on this machine: each hybrid connection with its binding. Those whose endpoint must be known first wait until
//! the relay has said it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use underpass_dataplane::Settings;
use underpass_dataplane::sender::{self, Checked, Config, Connect, Error};
use underpass_proto::{AgentId, ConnectionString, Endpoint, HycoName};

use super::CHECK_DEADLINE;
use super::places::{Id, Places, id};
use crate::cli::reload::Loaded;
use crate::files::sender::SenderFile;

/// Between two questions for endpoints that are not known yet, while others are served.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// What stays the same while the sender runs, and what is known so far.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) agent_id: AgentId,
    /// Of the command line.
    pub(super) bind: Option<SocketAddr>,
    pub(super) settings: Settings,
    known: Mutex<Known>,
    /// An endpoint changed: the bindings are to be decided again.
    moved: AtomicBool,
}

#[derive(Default, Debug)]
struct Known {
    places: Places,
    /// What the data plane was told last.
    sent: Sent,
    waiting: bool,
    asked: Option<Instant>,
}

#[derive(Default, PartialEq, Debug)]
struct Sent {
    connects: Vec<(ConnectionString, SocketAddr)>,
    ca: Vec<Vec<u8>>,
}

/// The configuration as far as it can be had.
pub(super) struct Sited {
    pub(super) config: Config,
    /// Those whose endpoint is not known.
    pub(super) waiting: Vec<ConnectionString>,
}

impl Site {
    pub(super) fn new(agent_id: AgentId, bind: Option<SocketAddr>, settings: Settings) -> Self {
        Self {
            agent_id,
            bind,
            settings,
            known: Mutex::default(),
            moved: AtomicBool::new(false),
        }
    }

    /// Decides the bindings.
    pub(super) fn sited(&self, loaded: &Loaded<SenderFile>) -> Sited {
        let wanted: Vec<(Id, Option<SocketAddr>)> = loaded
            .connects
            .iter()
            .map(|(entry, string)| (id(string), self.bind.or(entry.bind)))
            .collect();
        let mut known = self.known();
        let places = known.places.of(&wanted);
        let mut config = self.config(&loaded.ca);
        let mut waiting = Vec::new();
        for ((entry, string), place) in loaded.connects.iter().zip(places) {
            match place {
                None => waiting.push(string.clone()),
                Some(bind) => config.connects.push(Connect {
                    string_file: Some(entry.string_file.clone())
                        .filter(|path| !path.as_os_str().is_empty()),
                    string: string.clone(),
                    bind,
                }),
            }
        }
        known.waiting = !waiting.is_empty();
        Sited { config, waiting }
    }

    /// Asks the relays where these lead. How many said it; an error when none did: the one that may pass, if there is one.
    pub(super) fn ask(&self, strings: &[ConnectionString], ca: &[Vec<u8>]) -> Result<usize, Error> {
        self.known().asked = Some(Instant::now());
        let mut relays: Vec<(String, Vec<ConnectionString>)> = Vec::new();
        for string in strings {
            let relay = string.relay();
            match relays.iter_mut().find(|(known, _)| *known == relay) {
                Some((_, strings)) => strings.push(string.clone()),
                None => relays.push((relay, vec![string.clone()])),
            }
        }
        let mut answers = Vec::new();
        for (_, strings) in &relays {
            match self.ask_relay(strings, ca) {
                // One of them is refused: which one shows when they are asked for one by one.
                Err(Error::NotAuthorised(_)) if strings.len() > 1 => {
                    answers.extend(strings.chunks(1).map(|one| self.ask_relay(one, ca)));
                }
                answer => answers.push(answer),
            }
        }
        let learned = answers
            .iter()
            .filter_map(|answer| answer.as_ref().ok())
            .sum();
        if learned > 0 {
            return Ok(learned);
        }
        let mut errors: Vec<Error> = answers.into_iter().filter_map(Result::err).collect();
        errors.sort_by_key(|error| matches!(error, Error::NotAuthorised(_)));
        errors.into_iter().next().map_or(Ok(0), Err)
    }

    fn ask_relay(&self, strings: &[ConnectionString], ca: &[Vec<u8>]) -> Result<usize, Error> {
        let connects = strings.iter().map(|string| Connect {
            string_file: None,
            string: string.clone(),
            // Nothing is bound to learn where it leads.
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        });
        let config = Config {
            connects: connects.collect(),
            ..self.config(ca)
        };
        let checked = sender::check(config, self.settings.clone(), CHECK_DEADLINE)?;
        self.learn(strings.iter(), &checked);
        Ok(checked.len())
    }

    /// Notes what was found of these.
    pub(super) fn learn<'a>(
        &self,
        strings: impl Iterator<Item = &'a ConnectionString> + Clone,
        checked: &[Checked],
    ) {
        let mut known = self.known();
        for found in checked {
            if let Some(string) = strings.clone().find(|string| string.name == found.hyco) {
                known.places.learn(id(string), found.endpoint.clone());
            }
        }
    }

    /// The relay said where one leads: that may move its binding.
    pub(super) fn heard(&self, hyco: &HycoName, endpoint: &Endpoint, bound: SocketAddr) {
        let mut known = self.known();
        let id = known
            .sent
            .connects
            .iter()
            .filter(|(string, bind)| string.name == *hyco && *bind == bound)
            .map(|(string, _)| id(string))
            .next();
        if let Some(id) = id
            && known.places.learn(id, endpoint.clone())
        {
            self.moved.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the bindings are to be decided again though no file changed.
    pub(super) fn is_stale(&self) -> bool {
        let known = self.known();
        let ask_again =
            known.waiting && known.asked.is_none_or(|asked| asked.elapsed() > ASK_EVERY);
        self.moved.swap(false, Ordering::Relaxed) || ask_again
    }

    /// Notes what the data plane is told. Whether it is anything new.
    pub(super) fn is_news(&self, config: &Config) -> bool {
        let connects = config.connects.iter();
        let connects = connects.map(|connect| (connect.string.clone(), connect.bind));
        let new = Sent {
            connects: connects.collect(),
            ca: config.ca.clone(),
        };
        let mut known = self.known();
        let is_news = known.sent != new;
        known.sent = new;
        is_news
    }

    fn config(&self, ca: &[Vec<u8>]) -> Config {
        Config {
            connects: Vec::new(),
            ca: ca.to_vec(),
            agent_id: self.agent_id,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
