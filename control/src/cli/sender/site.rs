//! What a sender's configuration becomes on this machine: each hybrid connection with its binding.
//! Those whose endpoint must be known first wait until the relay has named it, and those whose
//! endpoint nothing permits until the operator allows it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;
use underpass_dataplane::Settings;
use underpass_dataplane::sender::{self, Checked, Config, Connect, Error};
use underpass_proto::{AgentId, AllowList, ConnectionString, Endpoint, Host, HostName, HycoName};

use super::CHECK_DEADLINE;
use super::names::Shown;
use super::permit::{NextStep, Refused};
use super::places::{Id, Places, id};
use crate::cli::reload::Loaded;
use crate::files::sender::{ConnectEntry, SenderFile};

/// Between two questions for endpoints that are not known yet, while others are served.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// Between two questions whether the relay still names an endpoint that may not be taken: it
/// changes by a person's hand.
const ASK_REFUSED_EVERY: Duration = Duration::from_secs(60);

/// What stays the same while the sender runs, and what is known so far.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) agent_id: AgentId,
    /// Of the command line.
    pub(super) bind: Option<SocketAddr>,
    /// Of the command line: what may be taken here.
    pub(super) allow: AllowList,
    /// Whether hosts entries are wanted: then a binding that is given does not make the endpoint's
    /// name harmless.
    pub(super) takes_names: bool,
    pub(super) next_step: NextStep,
    pub(super) settings: Settings,
    known: Mutex<Known>,
    /// An endpoint changed: the bindings are to be decided again.
    moved: AtomicBool,
}

#[derive(Default, Debug)]
struct Known {
    /// Places of endpoints that are permitted.
    places: Places,
    /// What each hybrid connection may take.
    lists: HashMap<Id, AllowList>,
    /// What the relays name.
    reported: HashMap<Id, Endpoint>,
    /// What the data plane reported last, and where applications connect.
    registered: BTreeMap<HycoName, (Endpoint, SocketAddr)>,
    /// Refusals that the log has.
    warned: HashSet<(HycoName, Endpoint)>,
    /// What the data plane was told last.
    sent: Sent,
    waiting: bool,
    refused: bool,
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
    /// Those whose endpoint the relay is to be asked for now.
    pub(super) waiting: Vec<ConnectionString>,
    /// Those whose endpoint may not be taken.
    pub(super) refused: Vec<Refused>,
}

impl Site {
    pub(super) fn new(agent_id: AgentId, settings: Settings, next_step: NextStep) -> Self {
        Self {
            agent_id,
            bind: None,
            allow: AllowList::default(),
            takes_names: false,
            next_step,
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
        known.lists = self.lists(loaded);
        let ids: Vec<Id> = known.reported.keys().cloned().collect();
        ids.iter().for_each(|id| known.judge(id));
        let refused = self.refused(&known, loaded);
        known.warn_once(&refused, &self.next_step);
        let places = known.places.of(&wanted);
        let mut config = self.config(&loaded.ca);
        let mut waiting = Vec::new();
        let ask_refused = known.is_time(ASK_REFUSED_EVERY);
        for ((entry, string), place) in loaded.connects.iter().zip(places) {
            let is_known = known.reported.contains_key(&id(string));
            match place {
                None if is_known && !ask_refused => {}
                None => waiting.push(string.clone()),
                Some(bind) => config.connects.push(Connect {
                    string_file: Some(entry.string_file.clone())
                        .filter(|path| !path.as_os_str().is_empty()),
                    string: string.clone(),
                    bind,
                }),
            }
        }
        let unknown = |string: &ConnectionString| !known.reported.contains_key(&id(string));
        known.waiting = waiting.iter().any(unknown);
        known.refused = !refused.is_empty();
        Sited {
            config,
            waiting,
            refused,
        }
    }

    fn lists(&self, loaded: &Loaded<SenderFile>) -> HashMap<Id, AllowList> {
        let for_all = match self.allow.0.is_empty() {
            true => &loaded.file.allow,
            false => &self.allow,
        };
        let connects = loaded.connects.iter();
        let list = |(entry, string): &(ConnectEntry, ConnectionString)| {
            let list = AllowList::of_connection(for_all, &entry.allow, string.target.as_ref());
            (id(string), list)
        };
        connects.map(list).collect()
    }

    /// Those whose endpoint may not be taken. A binding that the operator chose takes nothing of
    /// the endpoint but, by a hosts entry, its name.
    fn refused(&self, known: &Known, loaded: &Loaded<SenderFile>) -> Vec<Refused> {
        let refused = |(entry, string): &(ConnectEntry, ConnectionString)| {
            let id = id(string);
            let endpoint = known.reported.get(&id)?;
            let takes = self.takes_names || self.bind.or(entry.bind).is_none();
            (takes && !known.permits(&id, endpoint)).then(|| Refused {
                hyco: string.name.clone(),
                endpoint: endpoint.clone(),
                kept: known.places.endpoint(&id).cloned(),
            })
        };
        loaded.connects.iter().filter_map(refused).collect()
    }

    /// What applications find where, for the hosts entries; and the names of the relays, which are
    /// none of them.
    pub(super) fn shown(&self) -> (Vec<Shown>, Vec<HostName>) {
        let known = self.known();
        let shown = |(hyco, (reported, bound)): (&HycoName, &(Endpoint, SocketAddr))| {
            let id = known.sent_as(hyco, *bound)?;
            let taken = known.places.endpoint(&id);
            Some(Shown {
                hyco: hyco.clone(),
                endpoint: taken.unwrap_or(reported).clone(),
                bound: *bound,
                may_name: taken.is_some(),
            })
        };
        let relay = |(string, _): &(ConnectionString, SocketAddr)| match &string.relay_host {
            Host::Name(name) => Some(name.clone()),
            Host::V4(_) | Host::V6(_) => None,
        };
        (
            known.registered.iter().filter_map(shown).collect(),
            known.sent.connects.iter().filter_map(relay).collect(),
        )
    }

    /// Asks the relays where these lead. How many said it; an error when none did: the one that may
    /// pass, if there is one.
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
                known.report(id(string), found.endpoint.clone());
            }
        }
    }

    /// The relay said where one leads: that may move its binding.
    pub(super) fn heard(&self, hyco: &HycoName, endpoint: &Endpoint, bound: SocketAddr) {
        let mut known = self.known();
        known
            .registered
            .insert(hyco.clone(), (endpoint.clone(), bound));
        if let Some(id) = known.sent_as(hyco, bound)
            && known.report(id, endpoint.clone())
        {
            self.moved.store(true, Ordering::Relaxed);
        }
    }

    /// It is no longer asked for.
    pub(super) fn gone(&self, hyco: &HycoName) {
        self.known().registered.remove(hyco);
    }

    /// Whether the bindings are to be decided again though no file changed.
    pub(super) fn is_stale(&self) -> bool {
        let known = self.known();
        let ask_again = known.waiting && known.is_time(ASK_EVERY)
            || known.refused && known.is_time(ASK_REFUSED_EVERY);
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

impl Known {
    /// A relay named an endpoint. Whether that is news.
    fn report(&mut self, id: Id, endpoint: Endpoint) -> bool {
        let is_news = self.reported.insert(id.clone(), endpoint.clone()) != Some(endpoint);
        self.judge(&id);
        is_news
    }

    /// Gives a hybrid connection the place of the endpoint that its relay names, where that is
    /// permitted; else it keeps the one that it has, where that still is.
    fn judge(&mut self, id: &Id) {
        let reported = self.reported.get(id);
        let permitted = reported.filter(|endpoint| self.permits(id, endpoint));
        if let Some(endpoint) = permitted.cloned() {
            self.places.learn(id.clone(), endpoint);
        } else if !self
            .places
            .endpoint(id)
            .is_some_and(|kept| self.permits(id, kept))
        {
            self.places.forget(id);
        }
    }

    fn permits(&self, id: &Id, endpoint: &Endpoint) -> bool {
        self.lists.get(id).is_some_and(|list| list.names(endpoint))
    }

    /// Which hybrid connection of which relay the data plane has at this address.
    fn sent_as(&self, hyco: &HycoName, bound: SocketAddr) -> Option<Id> {
        let is_at = |bind: SocketAddr| bind == bound || bind.port() == 0 && bind.ip() == bound.ip();
        let mut connects = self.sent.connects.iter();
        let (string, _) = connects.find(|(string, bind)| string.name == *hyco && is_at(*bind))?;
        Some(id(string))
    }

    fn is_time(&self, pause: Duration) -> bool {
        self.asked.is_none_or(|asked| asked.elapsed() > pause)
    }

    /// Each refusal is logged when it begins.
    fn warn_once(&mut self, refused: &[Refused], next_step: &NextStep) {
        let key = |refused: &Refused| (refused.hyco.clone(), refused.endpoint.clone());
        for refused in refused.iter().filter(|it| !self.warned.contains(&key(it))) {
            warn!("{}; {}", refused.words(), next_step.words(refused));
        }
        self.warned = refused.iter().map(key).collect();
    }
}
