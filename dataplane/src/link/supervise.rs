//! The supervisor of a process that dials: starts its workers, follows what they say, hands out new
//! configurations, and ends them. Agents and senders are supervised alike; what they register for
//! and what their workers do is theirs.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, at, bounded, never, select, tick, unbounded};
use tracing::{info, warn};
use underpass_proto::wire::RefusedCode;
use underpass_proto::{Endpoint, HycoName, Rule};

use super::links::RESOLVE_MAX;
use super::wants::Relay;
use super::{Message, NO_ANSWER, NOT_FOUND, WRONG_CERTIFICATE};
use crate::io::{Kind, udp};
use crate::quic::{Driver, cid, config};
use crate::resolve::{self, Answer, Asked, Asker, Failure, Resolver};
use crate::worker::{self, Parts, Role, Running, Start};
use crate::{Settings, drain, io};

/// Workers that such a process has at most: sessions beyond bring a relay no more.
const WORKERS_MAX: u16 = 64;

/// How often the supervisor looks whether its workers live.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Between two attempts to resolve the relays' names at the start.
const RESOLVE_EVERY: Duration = Duration::from_secs(1);

/// How long a check waits for its workers to say goodbye: a turn of their loop, on a busy machine.
const LEAVE_MAX: Duration = Duration::from_millis(500);

/// How often it looks whether they have.
const LEAVE_LOOK_EVERY: Duration = Duration::from_millis(2);

/// What workers say that the supervisor may not have read yet.
const SAID_MAX: usize = 4096;

/// What ends an agent or a sender early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chosen io backend cannot be had.
    #[error("{0}")]
    Io(String),
    /// Nothing to register for, or a string of the wrong rule.
    #[error("{0}")]
    Config(String),
    /// A sender's binding cannot be opened.
    #[error("cannot listen on {address} (tcp): {source}")]
    Bind {
        /// What was tried.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// No registration was ever accepted and all were refused.
    #[error("{0}")]
    NotAuthorised(String),
    /// `check` only: the key is right, and the relay does not take the registration now.
    #[error("the relay refused to register {hyco}: {code}")]
    Refused {
        /// For what.
        hyco: HycoName,
        /// Why.
        code: RefusedCode,
    },
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

/// What a worker tells the supervisor.
#[derive(Debug)]
pub(crate) enum Said {
    /// A registration stands.
    Registered {
        /// At which relay.
        relay: Endpoint,
        /// For what.
        hyco: HycoName,
        /// What it leads to.
        endpoint: Endpoint,
        /// Round trip to the relay.
        rtt: Duration,
    },
    /// A registration was refused.
    Refused {
        /// By which relay.
        relay: Endpoint,
        /// For what.
        hyco: HycoName,
        /// Why.
        code: RefusedCode,
    },
    /// A session could not be had, or was lost.
    Lost {
        /// To which relay.
        relay: Endpoint,
        /// Why.
        why: String,
        /// Whether the relay has no other address that an attempt may go to.
        has_one_address: bool,
    },
}

/// What a process goes by, as far as its supervisor must know it.
pub(crate) trait Plan {
    /// The relays, and what is asked for at each.
    fn relays(&self) -> &[Arc<Relay>];

    /// The right that is asked for.
    fn rule(&self) -> Rule;

    /// All that is asked for, and where: one name may be asked for at several relays.
    fn registrations(&self) -> HashSet<(Endpoint, HycoName)> {
        let relays = self.relays().iter();
        relays
            .flat_map(|relay| {
                let names = relay.wants.keys().cloned();
                names.map(move |name| (relay.endpoint.clone(), name))
            })
            .collect()
    }
}

/// What an agent's or a sender's own supervisor does beside following its workers.
pub(crate) trait Steward {
    /// What a new configuration is made of.
    type Config;
    /// What its workers go by.
    type Plan: Plan;
    /// What only its workers are told.
    type Own;

    /// What the workers go by.
    fn plan(&self) -> &Arc<Self::Plan>;

    /// Goes by a new configuration.
    ///
    /// # Errors
    /// It is invalid; the previous one stays in effect.
    fn update(&mut self, config: Self::Config) -> Result<(), Error>;

    /// A worker said something.
    fn heard(&mut self, _: &Said) {}

    /// Called every [`LOOK_EVERY`].
    fn look(&mut self, _: &Workers<Self::Plan, Self::Own>, _draining: bool) {}
}

/// All that is there before the workers are.
pub(crate) struct Environment {
    kind: Kind,
    count: u8,
    mtu_max: Option<u16>,
    /// Names are resolved here.
    pub(crate) resolver: Resolver,
}

impl Environment {
    /// Looks at the machine, the trust and the relays' names. `None` when the process was asked to
    /// end before.
    ///
    /// # Errors
    /// No backend, no thread, wrong CA certificates; with `give_up`, a relay whose name is not
    /// found by then.
    pub(crate) fn find(
        relays: &[Arc<Relay>],
        settings: &Settings,
        requests: &drain::Requests,
        give_up: Option<Instant>,
    ) -> Result<Option<Self>, Error> {
        let (kind, why) = io::choose(settings.io).map_err(|why| Error::Io(why.to_string()))?;
        info!(io = %kind, %why, "io backend");
        check_trust(relays)?;
        let resolver = Resolver::of_system();
        if !await_name(relays, &resolver, requests, give_up)? {
            return Ok(None);
        }
        let count = settings.workers.unwrap_or_else(worker::usual_count);
        let count = count.clamp(1, WORKERS_MAX);
        Ok(Some(Self {
            kind,
            count: u8::try_from(count).unwrap_or(u8::MAX),
            mtu_max: settings.mtu_max,
            resolver,
        }))
    }

    /// How many workers there will be.
    #[must_use]
    pub(crate) fn count(&self) -> u8 {
        self.count
    }

    /// Starts the workers; `make` makes each one's role.
    ///
    /// # Errors
    /// [`Error::Worker`].
    pub(crate) fn start<R, F, P, M>(&self, make: F) -> Result<Workers<P, M>, Error>
    where
        R: Role<Message = Message<P, M>>,
        F: Fn(u8, Start<R::Message>, Sender<Said>) -> R + Clone + Send + 'static,
    {
        let (say, said) = bounded(SAID_MAX);
        let start = |worker| self.start_one(worker, make.clone(), say.clone());
        let running: std::io::Result<_> = (0..self.count).map(start).collect();
        Ok(Workers {
            running: running.map_err(|error| Error::Worker(error.to_string()))?,
            said,
        })
    }

    fn start_one<R, F>(
        &self,
        worker: u8,
        make: F,
        say: Sender<Said>,
    ) -> std::io::Result<Running<R::Message>>
    where
        R: Role,
        F: Fn(u8, Start<R::Message>, Sender<Said>) -> R + Send + 'static,
    {
        let keys = config::EndpointKeys::ephemeral();
        // Its own socket: nothing is steered.
        let parts = Parts {
            worker,
            workers: 1,
            udp: udp::bind_both()?,
            kind: self.kind,
            quic: Driver::new(worker, &keys, None, self.mtu_max),
        };
        worker::spawn(parts, move |start| make(worker, start, say))
    }
}

/// Wrong CA certificates are a fault of the configuration, told at once.
///
/// # Errors
/// [`Error::Config`].
pub(crate) fn check_trust(relays: &[Arc<Relay>]) -> Result<(), Error> {
    for relay in relays {
        config::client(
            &relay.trust,
            cid::towards(0, &mut rand::rng()),
            config::MTU_MIN,
        )
        .map_err(Error::Config)?;
    }
    Ok(())
}

/// Waits until any relay's name can be resolved; all of them are looked up at once. False when the
/// process was asked to end before.
fn await_name(
    relays: &[Arc<Relay>],
    resolver: &Resolver,
    requests: &drain::Requests,
    give_up: Option<Instant>,
) -> Result<bool, Error> {
    let give_up = give_up.map_or_else(never, at);
    let (answer, answers) = unbounded(); // At most one for each relay.
    let mut pending = vec![false; relays.len()];
    let mut warned = false;
    loop {
        for (index, relay) in relays.iter().enumerate() {
            if pending[index] {
                continue;
            }
            let answer = answer.clone();
            let later = move |found| {
                let _ = answer.send((index, found));
            };
            match look_up(relay, resolver, later) {
                Asked::Known(Ok(_)) => return Ok(true),
                Asked::Known(Err(_)) => {}
                Asked::Later => pending[index] = true,
            }
        }
        let again = after(RESOLVE_EVERY);
        loop {
            select! {
                recv(answers) -> answer => match answer {
                    Ok((_, Ok(_))) => return Ok(true),
                    Ok((index, Err(_))) => pending[index] = false,
                    Err(_) => {} // Never: the other end is here.
                },
                recv(requests.0) -> _ => return Ok(false),
                recv(give_up) -> _ => {
                    let relay = &relays[0].endpoint;
                    return Err(Error::Unreachable(format!(
                        "cannot reach {relay} (udp): {NOT_FOUND}"
                    )));
                }
                recv(again) -> _ => break,
            }
        }
        if !std::mem::replace(&mut warned, true) {
            for relay in relays {
                warn!(relay = %relay.endpoint, "cannot resolve relay; retrying");
            }
        }
    }
}

/// Looks up a relay's name. A question that has no place is asked again with the next ones.
fn look_up(
    relay: &Relay,
    resolver: &Resolver,
    later: impl FnOnce(Answer) + Send + 'static,
) -> Asked {
    let name = match resolve::name_or_literal(&relay.endpoint) {
        Ok(name) => name,
        Err(literal) => return Asked::Known(Ok(Arc::new([literal]))),
    };
    let asker = Asker {
        relay: relay.endpoint.clone(),
        hyco: None,
    };
    let now = Instant::now();
    resolver
        .ask(now, name, &asker, now + RESOLVE_MAX, later)
        .unwrap_or(Asked::Known(Err(Failure::Exhausted)))
}

/// The workers of an agent or a sender.
pub(crate) struct Workers<P, M> {
    /// Each of them.
    pub(crate) running: Vec<Running<Message<P, M>>>,
    said: Receiver<Said>,
}

impl<P: Plan, M> Workers<P, M> {
    /// Tells all of them.
    pub(crate) fn tell(&self, message: impl Fn() -> Message<P, M>) {
        for worker in &self.running {
            // One that ended is noticed by the next look.
            let _ = worker.handle.send(message());
        }
    }

    /// Follows them until all is over.
    ///
    /// # Errors
    /// [`Error::NotAuthorised`] when nothing was ever registered and all was refused;
    /// [`Error::Worker`].
    pub(crate) fn supervise<S: Steward<Plan = P, Own = M>>(
        &mut self,
        steward: &mut S,
        settings: &Settings,
        requests: &drain::Requests,
        updates: Receiver<S::Config>,
    ) -> Result<(), Error> {
        let look = tick(LOOK_EVERY);
        let mut updates = updates;
        let mut refused: HashSet<(Endpoint, HycoName)> = HashSet::new();
        let mut registered = false;
        let mut draining = false;
        loop {
            select! {
                recv(self.said) -> said => if let Ok(said) = said {
                    steward.heard(&said);
                    match said {
                        Said::Registered { .. } => registered = true,
                        Said::Refused { relay, hyco, code: RefusedCode::NotAuthorised } => {
                            refused.insert((relay, hyco));
                        }
                        Said::Refused { .. } | Said::Lost { .. } => {}
                    }
                },
                recv(updates) -> config => match config.map(|config| steward.update(config)) {
                    Ok(Ok(())) => {
                        refused.clear();
                        self.tell(|| Message::Plan(Arc::clone(steward.plan())));
                    }
                    Ok(Err(why)) => warn!(%why, "new configuration is invalid; the previous one stays in effect"),
                    Err(_) => updates = never(),
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
                    io::allocator::release_freed();
                    if self.look(draining)? {
                        return Ok(());
                    }
                    steward.look(self, draining);
                }
            }
            let plan = steward.plan();
            if !registered && plan.registrations().is_subset(&refused) {
                self.tell(|| Message::Stop);
                let names = refused.into_iter().map(|(_, hyco)| hyco).collect();
                return Err(not_authorised(&names, plan.rule()));
            }
        }
    }

    /// Whether all is over; an error when a worker ended by itself.
    fn look(&mut self, draining: bool) -> Result<bool, Error> {
        let mut finished = self
            .running
            .iter()
            .map(|worker| worker.thread.is_finished());
        if draining {
            return Ok(finished.all(|finished| finished));
        }
        let Some(ended) = finished.position(|finished| finished) else {
            return Ok(false);
        };
        let why = match self.running.remove(ended).thread.join() {
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".into(),
            Ok(Ok(())) => "it ended".into(),
        };
        Err(Error::Worker(why))
    }

    /// Waits until every registration was answered once.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when not all were by `give_up`; [`Error::NotAuthorised`] when any was
    /// refused.
    pub(crate) fn check(
        &self,
        plan: &P,
        give_up: Instant,
        deadline: Duration,
    ) -> Result<Vec<Checked>, Error> {
        let mut checked: Vec<Checked> = Vec::new();
        let mut refused = BTreeSet::new();
        let mut full = None;
        let mut lost = None;
        let count = plan.registrations().len();
        // The first answer counts: what was refused is asked for again after a while.
        let mut answered = HashSet::new();
        while answered.len() < count {
            match self.said.recv_deadline(give_up) {
                Ok(Said::Registered {
                    relay,
                    hyco,
                    endpoint,
                    rtt,
                }) => {
                    if answered.insert((relay, hyco.clone())) {
                        checked.push(Checked {
                            hyco,
                            endpoint,
                            rtt_us: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
                        });
                    }
                }
                Ok(Said::Refused { relay, hyco, code }) => {
                    if answered.insert((relay, hyco.clone())) {
                        if code != RefusedCode::NotAuthorised {
                            full.get_or_insert((hyco.clone(), code));
                        }
                        refused.insert(hyco);
                    }
                }
                // That one attempt was given up says less than that none was answered in all this
                // time.
                Ok(Said::Lost { why, .. }) if why == NO_ANSWER => {}
                // No further attempt tells more: each would go to the same host.
                Ok(Said::Lost {
                    relay,
                    why,
                    has_one_address: true,
                }) if why.starts_with(WRONG_CERTIFICATE) => {
                    return Err(unreachable(plan.relays(), Some((relay, why)), deadline));
                }
                Ok(Said::Lost { relay, why, .. }) => lost = Some((relay, why)),
                Err(_) => return Err(unreachable(plan.relays(), lost, deadline)),
            }
        }
        match full {
            Some((hyco, code)) => Err(Error::Refused { hyco, code }),
            None if refused.is_empty() => Ok(checked),
            None => Err(not_authorised(&refused, plan.rule())),
        }
    }

    /// Ends them at once, and waits until what they said last has left: the relay is not to wait
    /// for a process that is gone.
    pub(crate) fn leave(self) {
        self.tell(|| Message::Stop);
        let end = Instant::now() + LEAVE_MAX;
        let left = || {
            self.running
                .iter()
                .all(|worker| worker.thread.is_finished())
        };
        while !left() && Instant::now() < end {
            std::thread::sleep(LEAVE_LOOK_EVERY);
        }
    }
}

fn unreachable(
    relays: &[Arc<Relay>],
    lost: Option<(Endpoint, String)>,
    deadline: Duration,
) -> Error {
    let (relay, why) = lost.unwrap_or_else(|| {
        let none = format!("{NO_ANSWER} in {} s", deadline.as_secs());
        (relays[0].endpoint.clone(), none)
    });
    Error::Unreachable(format!("cannot reach {relay} (udp): {why}"))
}

fn not_authorised(refused: &BTreeSet<HycoName>, rule: Rule) -> Error {
    let names: Vec<_> = refused.iter().map(ToString::to_string).collect();
    Error::NotAuthorised(format!(
        "the relay refused to register {}: unknown name, or a key that is not one of its {} keys",
        names.join(", "),
        rule.right()
    ))
}

#[cfg(test)]
mod tests;
