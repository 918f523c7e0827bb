//! The sender: for applications that are not beside the relay. Listens on local addresses, dials
//! the relay with send keys, and opens a flow for each application that connects. Dials no
//! endpoint.
//!
//! [`run`] starts the workers; each keeps a session to the relay's worker of the same number
//! (`link`) and opens flows on it (`role`).

mod role;
#[cfg(test)]
pub(crate) mod simulated;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use tracing::warn;
use underpass_proto::{
    AgentId, AllowList, ConnectionString, Endpoint, HycoName, Instance, Role as PeerRole, Rule,
};

use self::role::{Message, Sender};
use crate::bindings::{self, Bindings, Step};
use crate::link::supervise::{self, Environment, Said, Steward, Workers};
pub use crate::link::supervise::{Checked, Error};
use crate::link::wants::{self, Identity, Relay, Want};
use crate::listening::Change;
use crate::{Settings, drain};

/// Between two attempts to open a binding that could not be opened.
const BIND_EVERY: Duration = Duration::from_secs(1);

/// How long an address that is in use at the start is tried again. Ten times what a killed process
/// was seen to hold it for (50 ms, under load).
const TAKEN_FOR: Duration = Duration::from_millis(500);

/// A hybrid connection and where applications find it on this machine.
#[derive(Clone, Debug)]
pub struct Connect {
    /// File that holds the connection string, for messages and for watching; the string itself is
    /// in `string`.
    pub string_file: Option<PathBuf>,
    /// The parsed string (send rule).
    pub string: ConnectionString,
    /// Where applications connect. Port 0 takes a free one.
    pub bind: SocketAddr,
}

/// What a sender goes by.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to give applications. Strings of one relay address share sessions.
    pub connects: Vec<Connect>,
    /// Extra CA certificates (DER) to trust where a string has no pin; empty: the system's roots.
    pub ca: Vec<Vec<u8>>,
    /// Stable over restarts: hash of machine id, host name and configuration path.
    pub agent_id: AgentId,
}

/// What a sender has to say while it runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// A hybrid connection can be used. Said again when its endpoint or its binding changes, and
    /// after a session was renewed.
    Registered {
        /// Which.
        hyco: HycoName,
        /// The endpoint, as it is defined: its name and port are what applications know.
        endpoint: Endpoint,
        /// Where applications connect on this machine.
        bound: SocketAddr,
    },
    /// It is no longer asked for.
    Gone {
        /// Which.
        hyco: HycoName,
    },
}

/// Runs a sender until it was asked to end and has drained. Retries for ever but for
/// [`Error::NotAuthorised`]; a binding that cannot be opened within half a second of the start is
/// [`Error::Bind`], a later one is told and tried again each second.
///
/// A configuration that comes by `updates` takes the place of the one before: keys that changed are
/// proven on the live sessions, bindings are opened and closed, and no flow is cut.
///
/// # Errors
/// See [`Error`].
pub fn run(
    config: Config,
    settings: Settings,
    requests: drain::Requests,
    updates: Receiver<Config>,
    heard: impl Fn(Heard) + Send + 'static,
) -> Result<(), Error> {
    let identity = identity(config.agent_id, false, &settings);
    let plan = Arc::new(Plan::new(config, identity, &[])?);
    let Some(environment) = Environment::find(&plan.relays, &settings, &requests, None)? else {
        return Ok(());
    };
    let mut keeper = Keeper {
        plan: Arc::clone(&plan),
        bindings: Bindings::default(),
        steps: Vec::new(),
        next_bind: Instant::now(),
        workers: usize::from(environment.count()),
        known: Vec::new(),
        heard: Box::new(heard),
    };
    keeper.bind_at_start()?;
    let mut workers = start(&plan, &environment)?;
    workers.supervise(&mut keeper, &settings, &requests, updates)
}

/// Connects and registers once, takes no connections, and says what it found.
///
/// # Errors
/// [`Error::Unreachable`] within `deadline`, [`Error::NotAuthorised`] and [`Error::Refused`] when
/// any registration was refused.
pub fn check(
    config: Config,
    settings: Settings,
    deadline: Duration,
) -> Result<Vec<Checked>, Error> {
    // Another identity: the relay must not take the check for a restart of the sender that runs.
    let identity = identity(AgentId(rand::random()), true, &settings);
    let settings = Settings {
        workers: Some(1),
        ..settings
    };
    let plan = Arc::new(Plan::new(config, identity, &[])?);
    let give_up = Instant::now() + deadline;
    let (_asker, requests) = drain::pair();
    let Some(environment) = Environment::find(&plan.relays, &settings, &requests, Some(give_up))?
    else {
        return Ok(Vec::new());
    };
    let workers = start(&plan, &environment)?;
    let checked = workers.check(&plan, give_up, deadline);
    workers.leave();
    checked
}

fn identity(agent_id: AgentId, check_only: bool, settings: &Settings) -> Identity {
    Identity {
        role: PeerRole::Sender,
        agent_id,
        instance: Instance(rand::random()),
        check_only,
        keep_alive: settings.keep_alive,
    }
}

fn start(plan: &Arc<Plan>, environment: &Environment) -> Result<Workers<Plan, Change>, Error> {
    let (plan, resolver) = (Arc::clone(plan), environment.resolver.clone());
    let make = move |worker, start, say| {
        Sender::new(worker, Arc::clone(&plan), resolver.clone(), start, say)
    };
    environment.start(make)
}

/// What all workers of a sender know.
#[derive(Debug)]
pub(crate) struct Plan {
    identity: Identity,
    relays: Vec<Arc<Relay>>,
    binds: Vec<(HycoName, SocketAddr)>,
}

impl Plan {
    fn new(config: Config, identity: Identity, before: &[Arc<Relay>]) -> Result<Self, Error> {
        let mut binds: Vec<(HycoName, SocketAddr)> = Vec::new();
        for connect in &config.connects {
            let (name, bind) = (&connect.string.name, connect.bind);
            if binds.iter().any(|(other, _)| other == name) {
                return Err(Error::Config(format!("{name} stands twice")));
            }
            let same = |(_, other): &&(HycoName, SocketAddr)| bind.port() != 0 && *other == bind;
            if let Some((other, _)) = binds.iter().find(same) {
                return Err(Error::Config(format!(
                    "{name} and {other} have one address, {bind}; give each its own, like 127.0.0.3:{}",
                    bind.port()
                )));
            }
            binds.push((name.clone(), bind));
        }
        let want = |connect: Connect| Want {
            string: connect.string,
            weight: 100,
            priority: 0,
            allow: AllowList::default(),
        };
        let all = config.connects.into_iter().map(want).collect();
        let relays = wants::by_relay(all, Rule::Send, &config.ca, before)
            .map_err(|why| Error::Config(why.to_string()))?;
        supervise::check_trust(&relays)?;
        Ok(Self {
            identity,
            relays,
            binds,
        })
    }
}

impl supervise::Plan for Plan {
    fn relays(&self) -> &[Arc<Relay>] {
        &self.relays
    }

    fn rule(&self) -> Rule {
        Rule::Send
    }
}

/// What a sender's supervisor keeps: the bindings, and what it said last.
struct Keeper {
    plan: Arc<Plan>,
    bindings: Bindings,
    /// What the workers have not been told yet.
    steps: Vec<Step>,
    next_bind: Instant,
    workers: usize,
    known: Vec<(HycoName, Endpoint, Option<SocketAddr>)>,
    heard: Box<dyn Fn(Heard) + Send>,
}

impl Keeper {
    /// Opens what is wanted and not open, closes what is no longer wanted.
    fn bind(&mut self) {
        let wanted = self.plan.binds.iter().map(|(name, bind)| (name, *bind));
        let steps = self.bindings.apply(wanted, self.workers);
        self.steps.extend(steps);
        self.next_bind = Instant::now() + BIND_EVERY;
    }

    /// Opens all, or none is of use. A process that was killed may hold its addresses for a moment:
    /// the kernel ends its io_uring behind its back.
    fn bind_at_start(&mut self) -> Result<(), Error> {
        let give_up = Instant::now() + TAKEN_FOR;
        loop {
            self.bind();
            match self.bind_error() {
                None => return Ok(()),
                Some(Error::Bind { source, .. })
                    if source.kind() == ErrorKind::AddrInUse && Instant::now() < give_up =>
                {
                    thread::sleep(TAKEN_FOR / 50);
                }
                Some(error) => return Err(error),
            }
        }
    }

    fn bind_error(&self) -> Option<Error> {
        let failed = |(name, address): &(HycoName, SocketAddr)| {
            let source = self.bindings.error(name)?;
            Some(Error::Bind {
                address: *address,
                source: std::io::Error::new(source.kind(), source.to_string()),
            })
        };
        self.plan.binds.iter().find_map(failed)
    }

    /// Says what can be used, where that changed.
    fn say(&mut self) {
        for (hyco, endpoint, said) in &mut self.known {
            let bound = self.bindings.bound(hyco);
            if let (Some(bound), true) = (bound, bound != *said) {
                (self.heard)(Heard::Registered {
                    hyco: hyco.clone(),
                    endpoint: endpoint.clone(),
                    bound,
                });
            }
            *said = bound;
        }
    }
}

impl Steward for Keeper {
    type Config = Config;
    type Plan = Plan;
    type Own = Change;

    fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    fn update(&mut self, config: Config) -> Result<(), Error> {
        let (identity, before) = (self.plan.identity, &self.plan.relays);
        self.plan = Arc::new(Plan::new(config, identity, before)?);
        self.bind();
        if let Some(error) = self.bind_error() {
            warn!(%error, "trying on");
        }
        let (known, plan) = (std::mem::take(&mut self.known), &self.plan);
        let (stay, gone): (Vec<_>, Vec<_>) = known
            .into_iter()
            .partition(|(hyco, ..)| plan.binds.iter().any(|(name, _)| name == hyco));
        self.known = stay;
        for (hyco, ..) in gone {
            (self.heard)(Heard::Gone { hyco });
        }
        self.say();
        Ok(())
    }

    fn heard(&mut self, said: &Said) {
        let Said::Registered { hyco, endpoint, .. } = said else {
            return;
        };
        let known = self.known.iter_mut().find(|(name, ..)| name == hyco);
        match known {
            Some((_, was, _)) if was == endpoint => return,
            Some((_, was, said)) => {
                *was = endpoint.clone();
                *said = None;
            }
            None => self.known.push((hyco.clone(), endpoint.clone(), None)),
        }
        self.say();
    }

    fn look(&mut self, workers: &Workers<Plan, Change>, draining: bool) {
        if draining {
            return;
        }
        if Instant::now() >= self.next_bind {
            self.bind();
            self.say();
        }
        bindings::tell(self.steps.drain(..), &workers.running, Message::Own);
    }
}
