//! The relay: bindings for applications on one side, sessions of agents on the other. Reads no
//! file: all it knows comes in snapshots.
//!
//! [`run`] is its supervisor: it takes snapshots from the feed, opens sockets, starts its workers
//! and tells them. The workers' own decisions are in `role`.

mod abuse;
mod asked;
mod feed;
mod keys;
mod listeners;
mod peers;
pub(crate) mod plan;
mod pressure;
mod pulses;
mod resources;
pub(crate) mod role;
pub(crate) mod roster;
mod senders;
#[cfg(test)]
pub(crate) mod simulated;
mod states;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select, tick};
use tracing::{info, warn};
use underpass_proto::limits::{REPORT_EVERY, WORKERS_MAX};
use underpass_proto::snapshot::HycoReport;
use underpass_proto::{
    Fault, FeedMessage, Generation, HybridConnection, HycoName, Instance, Report, Snapshot,
};

use self::asked::Asked;
use self::feed::{Answers, Brought};
use self::listeners::Moment;
use self::plan::{Directory, Plan};
use self::role::{Counts, Message, Relay, WorkerReport};
use self::states::{Sessions, States};
use crate::bindings::{self, Bindings};
use crate::io::{Kind, udp};
use crate::quic::{Driver, config};
use crate::worker::{self, Parts, Running};
use crate::{Settings, drain, io};

/// Sessions and hybrid connections that a report names at most; it says when it was cut.
const REPORT_ROWS_MAX: usize = 2_000;

/// How long the workers may take to answer: they answer within a turn.
const ANSWER_DEADLINE: Duration = Duration::from_millis(500);

/// How often the supervisor looks whether its workers live and its bindings are open.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Messages of the feed that may wait: each is a whole snapshot, the last one counts.
const FEED_MAX: usize = 4;

/// What ends a relay early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chosen io backend cannot be had.
    #[error("{0}")]
    Io(String),
    /// The public UDP address cannot be opened.
    #[error("cannot listen on {address} (udp): {source}")]
    Listen {
        /// What was tried.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A worker ended by itself.
    #[error("a worker failed: {0}")]
    Worker(String),
    /// The first snapshot is of no use.
    #[error("the first snapshot cannot be used: {0}")]
    Snapshot(String),
}

/// Runs a relay until it was asked to end and has drained. Dials the feed at `feed` (control's unix
/// socket) and waits for its first snapshot without limit.
///
/// # Errors
/// See [`Error`].
pub fn run(feed: PathBuf, settings: Settings, requests: drain::Requests) -> Result<(), Error> {
    let (kind, why) = io::choose(settings.io).map_err(|why| Error::Io(why.to_string()))?;
    info!(io = %kind, %why, "io backend");
    let (brought, feed_events) = bounded(FEED_MAX);
    feed::spawn(feed, brought).map_err(|error| Error::Io(error.to_string()))?;
    let mut supervisor = Supervisor {
        settings,
        kind,
        why,
        directory: Arc::new(Directory::default()),
        bindings: Bindings::default(),
        running: None,
        answers: None,
        draining: false,
        instance: Instance(rand::random()),
        states: States::default(),
        asked: Asked::default(),
        told: pressure::Told::default(),
    };
    supervisor.supervise(&feed_events, &requests)
}

struct Supervisor {
    settings: Settings,
    kind: Kind,
    why: String,
    directory: Arc<Directory>,
    bindings: Bindings,
    running: Option<Workers>,
    answers: Option<Answers>,
    draining: bool,
    /// Names this process: what it counts, it counts since its start.
    instance: Instance,
    /// How each hybrid connection is.
    states: States,
    /// Probes that control asked for.
    asked: Asked,
    /// What of the turned away was told.
    told: pressure::Told,
}

struct Workers {
    plan: Arc<Plan>,
    workers: Vec<Running<Message>>,
}

impl Supervisor {
    fn supervise(
        &mut self,
        feed: &Receiver<Brought>,
        requests: &drain::Requests,
    ) -> Result<(), Error> {
        let look = tick(LOOK_EVERY);
        let report = tick(REPORT_EVERY);
        let found = self.asked.found.clone();
        loop {
            select! {
                recv(feed) -> brought => match brought {
                    Ok(Brought::Up(answers)) => self.answers = Some(answers),
                    Ok(Brought::Snapshot(snapshot)) => self.snapshot(*snapshot)?,
                    Ok(Brought::Probe { id, hyco }) => self.probe(id, &hyco),
                    Ok(Brought::Down) | Err(_) => {
                        self.answers = None;
                        self.asked.forget();
                    }
                },
                recv(found) -> found => if let Ok((token, listener)) = found {
                    let answer = self.asked.answered(token, listener);
                    answer.into_iter().for_each(|answer| self.say(answer));
                },
                recv(requests.0) -> request => self.asked(request.unwrap_or(drain::Request::Drain)),
                recv(look) -> _ => {
                    io::allocator::release_freed();
                    if self.look()? {
                        return Ok(());
                    }
                }
                recv(report) -> _ => {
                    self.open_bindings();
                    self.report();
                }
            }
        }
    }

    fn asked(&mut self, request: drain::Request) {
        let message = || match request {
            drain::Request::Drain => Message::Drain(Instant::now() + self.settings.grace),
            drain::Request::Stop => Message::Stop,
        };
        if !self.draining {
            info!(grace = ?self.settings.grace, "draining");
        }
        self.draining = true;
        self.running
            .iter()
            .for_each(|running| running.tell(message));
    }

    /// Whether all is over; an error when a worker ended by itself.
    fn look(&mut self) -> Result<bool, Error> {
        let Some(running) = &mut self.running else {
            return Ok(self.draining);
        };
        if !self.draining
            && running
                .workers
                .iter()
                .any(|worker| worker.thread.is_finished())
        {
            let ended = running
                .workers
                .drain(..)
                .find(|worker| worker.thread.is_finished());
            let why = ended.map(|worker| worker.thread.join());
            return Err(Error::Worker(match why {
                Some(Ok(Err(error))) => error.to_string(),
                Some(Err(_)) => "it panicked".into(),
                _ => "it ended".into(),
            }));
        }
        Ok(self.draining
            && running
                .workers
                .iter()
                .all(|worker| worker.thread.is_finished()))
    }

    fn snapshot(&mut self, snapshot: Snapshot) -> Result<(), Error> {
        let generation = snapshot.generation;
        if self.draining {
            return Ok(());
        }
        match self.take(snapshot) {
            Ok(faults) => {
                info!(
                    %generation,
                    faults = faults.len(),
                    "snapshot applied"
                );
                self.say(FeedMessage::Applied { generation, faults });
                Ok(())
            }
            Err(Rejection::Fatal(error)) => {
                self.say(FeedMessage::Rejected {
                    generation,
                    why: error.to_string(),
                });
                Err(error)
            }
            Err(Rejection::Kept(why)) => {
                warn!(%generation, %why, "snapshot rejected; the last one stands");
                self.say(FeedMessage::Rejected { generation, why });
                Ok(())
            }
        }
    }

    /// Control asks whether an endpoint is reached.
    fn probe(&mut self, id: u64, name: &HycoName) {
        let view = self.directory.listeners.view(name);
        match self.asked.begin(Instant::now(), id, name, view.as_ref()) {
            Err(answer) => self.say(answer),
            Ok(orders) => {
                let workers = self.running.iter().flat_map(|running| &running.workers);
                let handles: Vec<_> = workers.map(|worker| &worker.handle).collect();
                for order in orders {
                    let message = Message::Probe(order.pending, order.asker);
                    // Where nobody takes it, the deadline answers.
                    let _ = handles
                        .get(usize::from(order.worker))
                        .map(|worker| worker.try_send(message));
                }
            }
        }
    }

    /// Works by a snapshot from now on; answers what of it does not work.
    fn take(&mut self, snapshot: Snapshot) -> Result<Vec<Fault>, Rejection> {
        let first = self.running.is_none();
        let unusable = |why: String| {
            if first {
                Rejection::Fatal(Error::Snapshot(why))
            } else {
                Rejection::Kept(why)
            }
        };
        snapshot.check().map_err(|why| unusable(why.to_string()))?;
        let server = Arc::new(server(&snapshot).map_err(unusable)?);
        let mut faults = Vec::new();
        let plan = Arc::new(Plan::new(snapshot));
        self.directory.define(Instant::now(), &plan);
        self.states.define(&plan);
        match &mut self.running {
            None => {
                let running = self.start(Arc::clone(&plan), server);
                let running = running.map_err(Rejection::Fatal)?;
                self.look_at_means(&running);
                self.running = Some(running);
            }
            Some(running) => {
                faults.extend(running.needs_restart(&plan.snapshot));
                running.apply(plan, server);
            }
        }
        self.open_bindings();
        faults.extend(self.faults());
        Ok(faults)
    }

    fn start(&self, plan: Arc<Plan>, server: Arc<config::Server>) -> Result<Workers, Error> {
        let address = plan.snapshot.listen;
        let count = self
            .settings
            .workers
            .or(plan.snapshot.workers)
            .unwrap_or_else(worker::usual_count)
            .clamp(1, WORKERS_MAX);
        let listen_error = |source| Error::Listen { address, source };
        let sockets = udp::bind_workers(address, usize::from(count)).map_err(listen_error)?;
        if let Err(error) = udp::steer(&sockets) {
            warn!(%error, "the kernel does not steer datagrams to workers; they are handed over");
        }
        let bound = sockets.first().map_or(address, udp::Udp::address);
        let count = u8::try_from(count).unwrap_or(u8::MAX);
        let keys = endpoint_keys(&plan.snapshot);
        let mut workers = Vec::new();
        for (worker, udp) in (0..count).zip(sockets) {
            let mut quic = Driver::new(
                worker,
                &keys,
                Some(Arc::clone(&server)),
                self.settings.mtu_max,
            );
            quic.share_budget(Arc::clone(&self.directory.resources.budget));
            let parts = Parts {
                worker,
                workers: count,
                udp,
                kind: self.kind,
                quic,
            };
            let (plan, directory) = (Arc::clone(&plan), Arc::clone(&self.directory));
            let running = worker::spawn(parts, move |start| {
                Relay::new((worker, count), plan, directory, start.rng)
            });
            workers.push(running.map_err(|error| Error::Worker(error.to_string()))?);
        }
        info!(listen = %bound, workers = count, "relay listens (udp)");
        let started = Workers { plan, workers };
        let others: Vec<_> = started
            .workers
            .iter()
            .map(|worker| worker.handle.clone())
            .collect();
        started.tell(|| Message::Others(others.clone()));
        Ok(started)
    }

    /// Opens and closes what the plan says; called again while something could not be opened.
    fn open_bindings(&mut self) {
        if self.draining {
            return;
        }
        let Some(running) = &self.running else { return };
        let hycos = running.plan.snapshot.hycos.iter();
        let sound = hycos.filter(|hyco| hyco.fault().is_none());
        let wanted = sound.filter_map(|hyco| Some((&hyco.name, hyco.bind?)));
        let steps = self.bindings.apply(wanted, running.workers.len());
        bindings::tell(steps, &running.workers, Message::Binding);
    }

    /// What of the definitions does not work just now.
    fn faults(&self) -> Vec<Fault> {
        let hycos = self
            .running
            .iter()
            .flat_map(|running| &running.plan.snapshot.hycos);
        let unsound = hycos.filter_map(HybridConnection::fault);
        unsound.chain(self.bindings.faults()).collect()
    }

    fn say(&mut self, message: FeedMessage) {
        if let Some(answers) = &mut self.answers
            && !answers.say(&message)
        {
            self.answers = None;
        }
    }

    /// Looks how all is, which the log tells even where control is gone, and reports it.
    fn report(&mut self) {
        for answer in self.asked.overdue(Instant::now()) {
            self.say(answer);
        }
        let Some(running) = self.running.take() else {
            return;
        };
        self.look_at_means(&running);
        let report = self.collect(&running);
        self.running = Some(running);
        self.say(FeedMessage::Report(Box::new(report)));
    }

    fn look_at_means(&self, running: &Workers) {
        let snapshot = &running.plan.snapshot;
        let memory_max = snapshot
            .limits
            .memory_mib_max
            .map(|mib| u64::from(mib) << 20);
        let bindings = snapshot.hycos.iter().filter(|hyco| hyco.bind.is_some());
        let resources = &self.directory.resources;
        resources.look(memory_max, bindings.count(), running.workers.len());
    }

    fn collect(&mut self, running: &Workers) -> Report {
        let mut whole = running.ask();
        let by_hyco = Sessions::by_hyco(&whole.sessions);
        let moment = Moment::at(Instant::now());
        if whole.complete {
            self.told.look(Instant::now(), whole.pressure);
        }
        let count = whole.sessions.len().max(running.plan.snapshot.hycos.len());
        let truncated = count > REPORT_ROWS_MAX;
        whole.sessions.truncate(REPORT_ROWS_MAX);
        let nobody = Sessions::default();
        let mut hycos = Vec::new();
        for (row, hyco) in running.plan.snapshot.hycos.iter().enumerate() {
            let sessions = by_hyco.get(&hyco.name).unwrap_or(&nobody);
            let counts = whole.counts.remove(&hyco.name).unwrap_or_default();
            let report = self.hyco_report(moment, hyco, sessions, counts, whole.complete);
            if row < REPORT_ROWS_MAX {
                hycos.push(report);
            }
        }
        Report {
            instance: self.instance,
            hycos,
            generation: running.generation(),
            io: self.kind.to_string(),
            io_why: self.why.clone(),
            workers: u16::try_from(running.workers.len()).unwrap_or(u16::MAX),
            sessions: whole.sessions,
            faults: self.faults(),
            pressure: whole.pressure,
            overloaded: whole.overloaded.then(|| overload(&running.plan.snapshot)),
            truncated,
            unix_ms: moment.unix_ms,
        }
    }

    /// `complete`: whether every worker said what its sessions are like; else nothing new is known
    /// of them.
    fn hyco_report(
        &mut self,
        moment: Moment,
        hyco: &HybridConnection,
        sessions: &Sessions,
        counts: Counts,
        complete: bool,
    ) -> HycoReport {
        let view = self.directory.listeners.view(&hyco.name);
        let health = match view.as_ref().filter(|_| complete) {
            Some(view) => self.states.look(moment, &hyco.name, view, sessions),
            None => self.states.last(&hyco.name),
        };
        let keys = &self.directory.keys;
        HycoReport {
            name: hyco.name.clone(),
            bound: self.bindings.bound(&hyco.name),
            listeners: view.as_ref().map_or(0, |view| {
                u32::try_from(view.listeners.len()).unwrap_or(u32::MAX)
            }),
            flows_live: counts.live,
            flows_total: counts.total,
            flows_failed: counts.failed,
            bytes_to_endpoint: counts.to_endpoint,
            bytes_to_application: counts.to_application,
            last_ending: counts.last_ending,
            health,
            agents: view.map_or_else(Vec::new, |view| states::listeners(&view, sessions)),
            keys: keys.report(&hyco.name, &sessions.keys, moment.unix_ms),
        }
    }
}

impl Workers {
    fn generation(&self) -> Generation {
        self.plan.snapshot.generation
    }

    fn tell(&self, message: impl Fn() -> Message) {
        for worker in &self.workers {
            // One that ended is noticed by the next look.
            let _ = worker.handle.send(message());
        }
    }

    /// Hands out a plan and waits until every worker goes by it.
    fn apply(&mut self, plan: Arc<Plan>, server: Arc<config::Server>) {
        let (applied, done) = bounded(self.workers.len());
        self.tell(|| Message::Plan(Arc::clone(&plan), Arc::clone(&server), applied.clone()));
        let deadline = Instant::now() + ANSWER_DEADLINE;
        for _ in &self.workers {
            let _ = done.recv_deadline(deadline);
        }
        self.plan = plan;
    }

    fn ask(&self) -> WorkerReport {
        let (answer, answers) = bounded(self.workers.len());
        self.tell(|| Message::Report(answer.clone()));
        let deadline = Instant::now() + ANSWER_DEADLINE;
        let mut whole = WorkerReport {
            complete: true,
            ..WorkerReport::default()
        };
        for _ in &self.workers {
            match answers.recv_deadline(deadline) {
                Ok(part) => whole.add(part),
                Err(_) => {
                    whole.complete = false;
                    break;
                }
            }
        }
        whole
    }

    /// What a running relay cannot change; it goes on as it is.
    fn needs_restart(&self, new: &Snapshot) -> Vec<Fault> {
        let old = &self.plan.snapshot;
        let changed = [
            (old.listen != new.listen, "listen"),
            (old.workers != new.workers, "[relay] workers"),
            (old.relay_keys != new.relay_keys, "keys/_relay.toml"),
        ];
        let fault = |field| Fault {
            hyco: None,
            what: format!(
                "{field} changed, which a running relay does not take up; restart the relay"
            ),
        };
        changed
            .into_iter()
            .filter(|(changed, _)| *changed)
            .map(|(_, field)| fault(field))
            .collect()
    }
}

impl WorkerReport {
    fn add(&mut self, other: Self) {
        self.sessions.extend(other.sessions);
        self.pressure = self.pressure.plus(&other.pressure);
        self.overloaded |= other.overloaded;
        for (name, counts) in other.counts {
            let sum = self.counts.entry(name).or_default();
            sum.live += counts.live;
            sum.total += counts.total;
            sum.failed += counts.failed;
            sum.to_endpoint += counts.to_endpoint;
            sum.to_application += counts.to_application;
            sum.last_ending = counts.last_ending.or(sum.last_ending.take());
        }
    }
}

/// What an operator can do about a relay that is short of memory.
fn overload(snapshot: &Snapshot) -> String {
    let limit = snapshot.limits.memory_mib_max;
    let limit = limit.map_or_else(
        || "three quarters of this machine's memory".to_owned(),
        |mib| format!("memory_mib_max = {mib}"),
    );
    format!(
        "the relay is at its limit of memory ({limit}): flows that hold most and take nothing are ended, and their sources get no new ones; \
         raise memory_mib_max in [relay] of namespace.toml, or find out who does not read"
    )
}

enum Rejection {
    /// There is nothing to fall back to.
    Fatal(Error),
    /// The last snapshot stands.
    Kept(String),
}

fn server(snapshot: &Snapshot) -> Result<config::Server, String> {
    config::Server::new(
        snapshot.tls.certificates.clone(),
        snapshot.tls.key.expose().to_vec(),
        *snapshot.relay_keys.token.expose(),
    )
}

fn endpoint_keys(snapshot: &Snapshot) -> config::EndpointKeys {
    config::EndpointKeys {
        reset: *snapshot.relay_keys.reset.expose(),
        token: *snapshot.relay_keys.token.expose(),
        connection_id: *snapshot.relay_keys.connection_id.expose(),
    }
}
