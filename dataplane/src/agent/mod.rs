//! The agent: dials the relays of its connection strings, proves its keys, and dials endpoints that
//! its allow-list permits. Never listens.
//!
//! [`run`] starts the workers; each keeps a session to each relay (`link`) and serves the flows
//! that the relay opens on it (`role`).

mod dials;
mod early;
mod manners;
mod own_dials;
mod role;
#[cfg(test)]
pub(crate) mod simulated;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use underpass_proto::{AgentId, AllowList, ConnectionString, Instance, Role as PeerRole, Rule};

use self::manners::{Manners, Visited};
use self::own_dials::OwnDials;
use self::role::{Agent, EndpointFound};
use crate::link::supervise::{self, Environment, Steward, Workers};
pub use crate::link::supervise::{Checked, Error};
use crate::link::wants::{self, Identity, Relay, Want};
use crate::{Settings, drain};

/// One connection string and how this listener wants to be picked.
#[derive(Clone, Debug)]
pub struct Connect {
    /// File that holds the connection string, for messages and for watching; the string itself is
    /// in `string`.
    pub string_file: Option<PathBuf>,
    /// The parsed string (listen rule).
    pub string: ConnectionString,
    /// Share of new flows relative to other listeners (default 100).
    pub weight: u16,
    /// Lower is preferred (default 0).
    pub priority: u8,
    /// What may be dialled for it, beside the entries for all.
    pub allow: AllowList,
}

/// What an agent goes by.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to listen for. Strings of one relay address share sessions.
    pub connects: Vec<Connect>,
    /// What may be dialled for all of them. A string without an entry here and of its own may have
    /// its target dialled, and nothing else.
    pub allow: AllowList,
    /// Extra CA certificates (PEM already decoded to DER) to trust where a string has no pin;
    /// empty: the system's roots.
    pub ca: Vec<Vec<u8>>,
    /// Stable over restarts of this installation.
    pub agent_id: AgentId,
}

/// Runs an agent until it was asked to end and has drained. Retries for ever but for
/// [`Error::NotAuthorised`].
///
/// A configuration that comes by `updates` takes the place of the one before on the live sessions:
/// keys that changed are proven, what is new is registered, what is gone is given back, and no flow
/// is cut. One that is of no use is told, and the one before stands.
///
/// # Errors
/// See [`Error`].
pub fn run(
    config: Config,
    settings: Settings,
    requests: drain::Requests,
    updates: Receiver<Config>,
) -> Result<(), Error> {
    let identity = Identity {
        role: PeerRole::Agent,
        agent_id: config.agent_id,
        instance: Instance(rand::random()),
        check_only: false,
        keep_alive: settings.keep_alive,
    };
    let plan = Arc::new(Plan::new(config, identity, &[])?);
    let Some(mut workers) = start(&plan, &settings, &requests, None)? else {
        return Ok(());
    };
    workers.supervise(&mut Keeper(plan), &settings, &requests, updates)
}

/// Connects and registers once, takes no flows, and says what it found.
///
/// # Errors
/// [`Error::Unreachable`] within `deadline`, [`Error::NotAuthorised`] and [`Error::Refused`] when
/// any registration was refused.
pub fn check(
    config: Config,
    settings: Settings,
    deadline: Duration,
) -> Result<Vec<Checked>, Error> {
    let identity = Identity {
        role: PeerRole::Agent,
        // Another one: the relay must not take the check for a restart of the agent that runs.
        agent_id: AgentId(rand::random()),
        instance: Instance(rand::random()),
        check_only: true,
        keep_alive: settings.keep_alive,
    };
    let settings = Settings {
        workers: Some(1),
        ..settings
    };
    let plan = Arc::new(Plan::new(config, identity, &[])?);
    let give_up = Instant::now() + deadline;
    let (_asker, requests) = drain::pair();
    let Some(workers) = start(&plan, &settings, &requests, Some(give_up))? else {
        return Ok(Vec::new());
    };
    let checked = workers.check(&plan, give_up, deadline);
    workers.leave();
    checked
}

/// What all workers of an agent know.
#[derive(Debug)]
pub(crate) struct Plan {
    identity: Identity,
    relays: Vec<Arc<Relay>>,
    /// Of all workers, whatever the configuration becomes.
    own_dials: Arc<OwnDials>,
}

impl Plan {
    fn new(config: Config, identity: Identity, before: &[Arc<Relay>]) -> Result<Self, Error> {
        let want = |connect: Connect| Want {
            allow: AllowList::of_connection(
                &config.allow,
                &connect.allow,
                connect.string.target.as_ref(),
            ),
            string: connect.string,
            weight: connect.weight,
            priority: connect.priority,
        };
        let all = config.connects.into_iter().map(want).collect();
        let relays = wants::by_relay(all, Rule::Listen, &config.ca, before)
            .map_err(|why| Error::Config(why.to_string()))?;
        supervise::check_trust(&relays)?;
        Ok(Self {
            identity,
            relays,
            own_dials: Arc::default(),
        })
    }
}

impl supervise::Plan for Plan {
    fn relays(&self) -> &[Arc<Relay>] {
        &self.relays
    }

    fn rule(&self) -> Rule {
        Rule::Listen
    }
}

/// What an agent's supervisor keeps.
struct Keeper(Arc<Plan>);

impl Steward for Keeper {
    type Config = Config;
    type Plan = Plan;
    type Own = EndpointFound;

    fn plan(&self) -> &Arc<Plan> {
        &self.0
    }

    fn update(&mut self, config: Config) -> Result<(), Error> {
        let (identity, before) = (self.0.identity, &self.0.relays);
        let plan = Plan::new(config, identity, before)?;
        self.0 = Arc::new(Plan {
            own_dials: Arc::clone(&self.0.own_dials),
            ..plan
        });
        Ok(())
    }
}

/// Starts the workers. `None` when the process was asked to end before.
fn start(
    plan: &Arc<Plan>,
    settings: &Settings,
    requests: &drain::Requests,
    give_up: Option<Instant>,
) -> Result<Option<Workers<Plan, EndpointFound>>, Error> {
    let Some(environment) = Environment::find(&plan.relays, settings, requests, give_up)? else {
        return Ok(None);
    };
    let (plan, resolver) = (Arc::clone(plan), environment.resolver.clone());
    let visited = Visited::default();
    let make = move |worker, start, say| {
        let manners = Manners::new(visited.clone());
        Agent::new(
            worker,
            Arc::clone(&plan),
            resolver.clone(),
            manners,
            start,
            say,
        )
    };
    environment.start(make).map(Some)
}
