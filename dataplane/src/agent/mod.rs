//! The agent: dials out to relays, registers as listener, and dials endpoints for the flows that come. Never listens.
//!
//! [`run`] starts the workers and watches over them; each keeps its own sessions (`link`) and flows (`role`).

mod dialler;
mod dials;
mod link;
mod opens;
mod role;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select, tick};
use tracing::{info, warn};
use underpass_proto::{
    AgentId, AllowEntry, AllowList, ConnectionString, Endpoint, HycoName, Instance, Rule,
};

use self::dialler::Resolver;
use self::role::{Agent, Message, Said};
use crate::io::{Kind, udp};
use crate::quic::{Driver, config};
use crate::worker::{self, Parts, Running};
use crate::{Settings, drain, io};

/// Workers that an agent has at most: sessions beyond bring a relay no more.
const WORKERS_MAX: u16 = 64;

/// How often the supervisor looks whether its workers live.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Between two attempts to resolve the relays' names at the start.
const RESOLVE_EVERY: Duration = Duration::from_secs(1);

/// What workers say that the supervisor may not have read yet.
const SAID_MAX: usize = 4096;

/// One connection string and how this listener wants to be picked.
#[derive(Clone, Debug)]
pub struct Connect {
    /// File that holds the connection string, for messages and for watching; the string itself is in `string`.
    pub string_file: Option<PathBuf>,
    /// The parsed string (listen rule).
    pub string: ConnectionString,
    /// Share of new flows relative to other listeners (default 100).
    pub weight: u16,
    /// Lower is preferred (default 0).
    pub priority: u8,
}

/// What an agent is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to listen for. Strings of one relay address share sessions.
    pub connects: Vec<Connect>,
    /// Entries beyond the targets of the strings. Empty: only the targets.
    pub allow: AllowList,
    /// Extra CA certificates (PEM already decoded to DER) to trust where a string has no pin; empty: the system's roots.
    pub ca: Vec<Vec<u8>>,
    /// Stable over restarts: hash of machine id, host name and configuration path.
    pub agent_id: AgentId,
}

/// What ends an agent early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chosen io backend cannot be had.
    #[error("{0}")]
    Io(String),
    /// Nothing to listen for, or a string of the wrong rule.
    #[error("{0}")]
    Config(String),
    /// No registration was ever accepted and all were refused.
    #[error("{0}")]
    NotAuthorised(String),
    /// `check` only: no relay answered.
    #[error("{0}")]
    Unreachable(String),
    /// A worker ended by itself.
    #[error("a worker failed: {0}")]
    Worker(String),
}

/// One line of what `check` found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The hybrid connection.
    pub hyco: HycoName,
    /// Its endpoint, as the relay says it.
    pub endpoint: Endpoint,
    /// Smoothed round-trip time to the relay, microseconds.
    pub rtt_us: u64,
}

/// Runs an agent until it was asked to end and has drained. Retries for ever but for [`Error::NotAuthorised`].
///
/// # Errors
/// See [`Error`].
pub fn run(config: Config, settings: Settings, requests: drain::Requests) -> Result<(), Error> {
    let plan = Arc::new(Plan::new(config, false)?);
    let Some(mut agents) = start(&plan, &settings, &requests, None)? else {
        return Ok(());
    };
    agents.supervise(&settings, &requests)
}

/// Connects and registers once, takes no flows, and says what it found.
///
/// # Errors
/// [`Error::Unreachable`] within `deadline`, [`Error::NotAuthorised`] when any registration was refused.
pub fn check(
    mut config: Config,
    settings: Settings,
    deadline: Duration,
) -> Result<Vec<Checked>, Error> {
    // Another identity: the relay must not take the check for a restart of the agent that runs.
    config.agent_id = AgentId(rand::random());
    let settings = Settings {
        workers: Some(1),
        ..settings
    };
    let plan = Arc::new(Plan::new(config, true)?);
    let give_up = Instant::now() + deadline;
    let (_asker, requests) = drain::pair();
    let Some(agents) = start(&plan, &settings, &requests, Some(give_up))? else {
        return Ok(Vec::new());
    };
    let checked = agents.collect_checks(give_up, deadline);
    agents.tell(|| Message::Stop);
    checked
}

/// What all workers of an agent know.
#[derive(Debug)]
struct Plan {
    instance: Instance,
    agent_id: AgentId,
    relays: Vec<Relay>,
    allow: AllowList,
    /// Registers, but asks for no flows.
    check_only: bool,
}

/// One relay and what is listened for there.
#[derive(Debug)]
struct Relay {
    endpoint: Endpoint,
    trust: config::Trust,
    connects: Vec<Connect>,
    /// How many workers it has, once it said so; 1 before.
    workers: AtomicU8,
}

impl Plan {
    fn new(config: Config, check_only: bool) -> Result<Self, Error> {
        if config.connects.is_empty() {
            return Err(Error::Config(
                "no connection string: there is nothing to listen for".into(),
            ));
        }
        let targets = config
            .connects
            .iter()
            .filter_map(|connect| connect.string.target.as_ref())
            .map(AllowEntry::from);
        let allow = if config.allow.0.is_empty() {
            targets.collect()
        } else {
            config.allow.clone()
        };
        let mut relays: Vec<Relay> = Vec::new();
        for connect in config.connects {
            if connect.string.rule != Rule::Listen {
                return Err(Error::Config(format!(
                    "the connection string for {} has a send key: an agent listens; give it the on-premises string",
                    connect.string.name
                )));
            }
            let port = connect
                .string
                .relay_port
                .try_into()
                .map_err(|_| Error::Config("port 0".into()))?;
            let endpoint = Endpoint {
                host: connect.string.relay_host.clone(),
                port,
            };
            let trust = trust(&connect.string, &config.ca);
            match relays
                .iter_mut()
                .find(|relay| relay.endpoint == endpoint && relay.trust == trust)
            {
                Some(relay) => relay.connects.push(connect),
                None => {
                    relays.push(Relay {
                        endpoint,
                        trust,
                        connects: vec![connect],
                        workers: AtomicU8::new(1),
                    });
                }
            }
        }
        let instance = Instance(rand::random());
        Ok(Self {
            instance,
            agent_id: config.agent_id,
            relays,
            allow,
            check_only,
        })
    }

    fn names(&self) -> impl Iterator<Item = &HycoName> {
        self.relays
            .iter()
            .flat_map(|relay| &relay.connects)
            .map(|connect| &connect.string.name)
    }
}

fn trust(string: &ConnectionString, ca: &[Vec<u8>]) -> config::Trust {
    if !string.pins.is_empty() {
        config::Trust::Pins(string.pins.clone())
    } else if !ca.is_empty() {
        config::Trust::Authorities(ca.to_vec())
    } else {
        config::Trust::System
    }
}

/// The workers of an agent.
struct Agents {
    plan: Arc<Plan>,
    workers: Vec<Running<Message>>,
    said: Receiver<Said>,
}

/// Starts the workers. `None` when the process was asked to end before.
fn start(
    plan: &Arc<Plan>,
    settings: &Settings,
    requests: &drain::Requests,
    give_up: Option<Instant>,
) -> Result<Option<Agents>, Error> {
    let (kind, why) = io::choose(settings.io).map_err(|why| Error::Io(why.to_string()))?;
    info!(io = %kind, %why, "io backend");
    for relay in &plan.relays {
        // Wrong CA certificates are a fault of the configuration, told at once.
        config::client(&relay.trust, 0, config::MTU_MIN).map_err(Error::Config)?;
    }
    let Some(family) = first_address(plan, requests, give_up)? else {
        return Ok(None);
    };
    let resolver = Resolver::start().map_err(|error| Error::Worker(error.to_string()))?;
    let cores = std::thread::available_parallelism()
        .map_or(1, |cores| u16::try_from(cores.get()).unwrap_or(u16::MAX));
    let count = settings.workers.unwrap_or(cores).clamp(1, WORKERS_MAX);
    let (say, said) = bounded(SAID_MAX);
    let mut workers = Vec::new();
    for worker in 0..u8::try_from(count).unwrap_or(u8::MAX) {
        let running = start_worker(worker, kind, family, settings, plan, &resolver, &say);
        workers.push(running.map_err(|error| Error::Worker(error.to_string()))?);
    }
    Ok(Some(Agents {
        plan: Arc::clone(plan),
        workers,
        said,
    }))
}

fn start_worker(
    worker: u8,
    kind: Kind,
    family: IpAddr,
    settings: &Settings,
    plan: &Arc<Plan>,
    resolver: &Resolver,
    say: &crossbeam_channel::Sender<Said>,
) -> std::io::Result<Running<Message>> {
    let any = if family.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let udp = udp::bind(SocketAddr::new(any, 0), false)?;
    let quic = Driver::new(
        worker,
        &config::EndpointKeys::ephemeral(),
        None,
        settings.mtu_max,
    );
    // Its own socket: nothing is steered.
    let parts = Parts {
        worker,
        workers: 1,
        udp,
        kind,
        quic,
    };
    let (plan, resolver, say) = (Arc::clone(plan), resolver.clone(), say.clone());
    worker::spawn(parts, move |handle| {
        Agent::new(worker, plan, resolver, handle.clone(), say)
    })
}

/// The address family of the relays: of the first one whose name can be resolved, tried until then.
fn first_address(
    plan: &Plan,
    requests: &drain::Requests,
    give_up: Option<Instant>,
) -> Result<Option<IpAddr>, Error> {
    let mut said = false;
    loop {
        if let Some(found) = plan
            .relays
            .iter()
            .find_map(|relay| dialler::resolve(&relay.endpoint).first().copied())
        {
            return Ok(Some(found.ip));
        }
        let relay = &plan.relays[0].endpoint;
        if give_up.is_some_and(|give_up| Instant::now() + RESOLVE_EVERY > give_up) {
            return Err(Error::Unreachable(format!(
                "cannot reach {relay} (udp): its name is not found"
            )));
        }
        if !std::mem::replace(&mut said, true) {
            warn!(%relay, "the relay's name is not found; trying on");
        }
        if requests.0.recv_timeout(RESOLVE_EVERY).is_ok() {
            return Ok(None);
        }
    }
}

impl Agents {
    fn tell(&self, message: impl Fn() -> Message) {
        for worker in &self.workers {
            let _ = worker.handle.send(message());
        }
    }

    fn supervise(&mut self, settings: &Settings, requests: &drain::Requests) -> Result<(), Error> {
        let look = tick(LOOK_EVERY);
        let mut refused: Vec<HycoName> = Vec::new();
        let mut registered = false;
        let mut draining = false;
        loop {
            select! {
                recv(self.said) -> said => match said {
                    Ok(Said::Registered { .. }) => registered = true,
                    Ok(Said::Refused { hyco, .. }) if !refused.contains(&hyco) => refused.push(hyco),
                    _ => {}
                },
                recv(requests.0) -> request => {
                    info!(grace = ?settings.grace, "draining");
                    draining = true;
                    match request.unwrap_or(drain::Request::Drain) {
                        drain::Request::Drain => self.tell(|| Message::Drain(Instant::now() + settings.grace)),
                        drain::Request::Stop => self.tell(|| Message::Stop),
                    }
                }
                recv(look) -> _ => {
                    if self.workers.iter().all(|worker| worker.thread.is_finished()) && draining {
                        return Ok(());
                    }
                    self.fail_if_one_ended(draining)?;
                }
            }
            if !registered && self.plan.names().all(|name| refused.contains(name)) {
                self.tell(|| Message::Stop);
                return Err(not_authorised(&refused));
            }
        }
    }

    fn fail_if_one_ended(&mut self, draining: bool) -> Result<(), Error> {
        if draining
            || !self
                .workers
                .iter()
                .any(|worker| worker.thread.is_finished())
        {
            return Ok(());
        }
        let ended = self
            .workers
            .drain(..)
            .find(|worker| worker.thread.is_finished());
        Err(Error::Worker(
            match ended.map(|worker| worker.thread.join()) {
                Some(Ok(Err(error))) => error.to_string(),
                Some(Err(_)) => "it panicked".into(),
                _ => "it ended".into(),
            },
        ))
    }

    fn collect_checks(&self, give_up: Instant, deadline: Duration) -> Result<Vec<Checked>, Error> {
        let mut checked: Vec<Checked> = Vec::new();
        let mut refused = Vec::new();
        let mut why = None;
        while checked.len() + refused.len() < self.plan.names().count() {
            match self.said.recv_deadline(give_up) {
                Ok(Said::Registered {
                    hyco,
                    endpoint,
                    rtt,
                }) => {
                    let rtt_us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
                    checked.push(Checked {
                        hyco,
                        endpoint,
                        rtt_us,
                    });
                }
                Ok(Said::Refused { hyco, .. }) => refused.push(hyco),
                Ok(Said::Lost { relay, why: said }) => why = Some((relay, said)),
                Err(_) => return Err(self.unreachable(why, deadline)),
            }
        }
        if refused.is_empty() {
            Ok(checked)
        } else {
            Err(not_authorised(&refused))
        }
    }

    fn unreachable(&self, why: Option<(Endpoint, String)>, deadline: Duration) -> Error {
        let (relay, why) = why.unwrap_or_else(|| {
            let none = format!("no answer in {} s", deadline.as_secs());
            (self.plan.relays[0].endpoint.clone(), none)
        });
        Error::Unreachable(format!("cannot reach {relay} (udp): {why}"))
    }
}

fn not_authorised(refused: &[HycoName]) -> Error {
    let names: Vec<_> = refused.iter().map(ToString::to_string).collect();
    Error::NotAuthorised(format!(
        "the relay refused to register {}: unknown name, or a key that is not one of its listen keys",
        names.join(", ")
    ))
}
