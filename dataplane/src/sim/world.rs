//! The world: who acts when, who is told what, and what must hold while it runs.

mod carry;
mod look;
mod talk;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use underpass_proto::Instance;

use super::faults::{self, Fault};
use super::log::Log;
use super::machine::{Kind, Machine, Site};
use super::net::{Flight, Net, Path};
use super::peer::{Manner, Peer, endpoint};
use super::queue::Queue;
use super::scene::Scene;
use super::tcp::{Owner, Passing, Tcp};
use super::{Made, Summary};
use crate::quic::config::STREAM_WINDOW;
use crate::{agent, relay, sender};

/// How often it is looked whether all holds.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// From the end of the last fault until everything is over, everybody is back and nothing is left:
/// what a session that fell silent takes (15 s), an Open without an answer (15 s), and the longest
/// pause before a refused registration is asked for again (30 s).
const QUIET_WITHIN: Duration = Duration::from_secs(75);

/// Whoever hears something goes on after that time, however slowly: a conversation hangs when
/// nobody heard a byte for so long.
const SILENT_MAX: Duration = Duration::from_secs(20);

/// How long sessions and registrations take at the start.
const REGISTERED_WITHIN: Duration = Duration::from_secs(2);

/// How long the flows of the end may take: nothing disturbs them.
const LAST_WITHIN: Duration = Duration::from_secs(60);

/// The most that is under way over one hop from one who speaks to one who hears: the stream's
/// window, and what kernels on both sides and workers have in their hands. Below what the longest
/// conversation says, so that it can be passed.
pub(super) const UNDER_WAY_MAX: u64 = STREAM_WINDOW as u64 + 2 * 1024 * 1024;

/// Datagrams that wait for a worker at most, in batches: what a socket's buffer holds.
const WAITING_MAX: usize = 4_000;

/// Numbers of the listeners of endpoints, beyond those of peers.
const ENDPOINTS: u64 = 1 << 40;

/// Who listens at the endpoint of a hybrid connection.
pub(super) fn listener(hyco: usize) -> Owner {
    Owner::Peer(ENDPOINTS + hyco as u64)
}

/// A worker of a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) machine: usize,
    pub(super) life: u32,
    pub(super) worker: u8,
}

impl Place {
    /// Whether it is of the same process.
    pub(super) fn is_same(self, other: Self) -> bool {
        (self.machine, self.life) == (other.machine, other.life)
    }
}

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    /// A worker's turn, if it is still planned for then.
    Turn(Place, Instant),
    /// Datagrams arrive.
    Flight(Flight),
    /// Something of TCP arrives.
    Tcp(Passing),
    /// A peer may act.
    Peer(u64),
    /// An application connects.
    Begin(usize, bool),
    /// Something breaks, or is mended.
    Fault(Fault),
    /// Time to look whether all holds.
    Look,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Flows and faults, until then.
    Storm(Duration),
    /// Everything was mended; what is under way ends, until then.
    Quiet(Duration),
    /// Flows that nothing disturbs.
    Last(Duration),
}

/// A world of one seed.
pub(super) struct World {
    pub(super) queue: Queue<Event>,
    pub(super) rng: StdRng,
    pub(super) log: Log,
    pub(super) tcp: Tcp,
    pub(super) net: Net,
    pub(super) machines: Vec<Machine>,
    pub(super) scene: Scene,
    peers: BTreeMap<u64, Peer>,
    last: Vec<u64>,
    next_peer: u64,
    pub(super) workers: u8,
    phase: Phase,
    pub(super) faults: usize,
    /// Nobody resets, leaves or dawdles, and nothing breaks.
    pub(super) friendly: bool,
    /// How applications and endpoints behave, where that is given.
    pub(super) manners: Option<(Manner, Manner)>,
    under_way: u64,
    /// Bytes that were heard in all, and since when no more.
    heard: (u64, Duration),
    /// The longest time in which nobody heard anything, while somebody was waiting to; and since
    /// when it is so.
    silence: Duration,
    silent_since: Duration,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let hycos = rng.random_range(1..=3);
        let agents = rng.random_range(1..=3);
        let senders = rng.random_range(0..=1);
        let kinds = [Kind::Relay].into_iter();
        let kinds = kinds
            .chain((0..agents).map(|_| Kind::Agent))
            .chain((0..senders).map(|_| Kind::Sender));
        let machines = kinds
            .enumerate()
            .map(|(number, kind)| Machine::new(kind, number))
            .collect();
        let storm = Duration::from_millis(rng.random_range(4_000..15_000));
        Self {
            queue: Queue::new(),
            log: Log::default(),
            tcp: Tcp::new(),
            net: Net::new(),
            machines,
            scene: Scene::new(hycos, &mut rng),
            peers: BTreeMap::new(),
            last: Vec::new(),
            next_peer: 0,
            workers: if rng.random_ratio(1, 3) { 2 } else { 1 },
            phase: Phase::Storm(storm),
            faults: 0,
            friendly: rng.random_ratio(1, 8),
            manners: None,
            under_way: 0,
            heard: (0, Duration::ZERO),
            silence: Duration::ZERO,
            silent_since: Duration::ZERO,
            rng,
        }
    }

    /// Lets everything be mended at this time.
    pub(super) fn storm_until(&mut self, age: Duration) {
        self.phase = Phase::Storm(age);
    }

    /// The last of what happened.
    pub(super) fn tail(&self) -> String {
        self.log.tail(120)
    }

    /// Runs until all is over.
    pub(super) fn run(&mut self) -> Result<Summary, String> {
        self.begin();
        while let Some(event) = self.queue.next() {
            if matches!(event, Event::Look) {
                if self.look()? {
                    return Ok(self.summary());
                }
                self.queue.after(LOOK_EVERY, Event::Look);
            } else {
                self.happen(event)?;
            }
            self.tell()?;
            self.wake();
        }
        Err("nothing happens any more".to_owned())
    }

    fn begin(&mut self) {
        for hyco in 0..self.scene.definitions.len() {
            self.tcp.listen(endpoint(hyco), listener(hyco));
        }
        for number in 0..self.machines.len() {
            if number > 0 {
                let path = Path::good(&mut self.rng);
                self.net.paths.insert(number, path);
            }
            self.start(number);
        }
        let Phase::Storm(storm) = self.phase else {
            return;
        };
        for _ in 0..self.rng.random_range(4..20) {
            let mut at = storm.mul_f64(self.rng.random());
            if self.friendly {
                at += REGISTERED_WITHIN; // Whoever comes sooner finds no listener.
            }
            let hyco = self.rng.random_range(0..self.scene.definitions.len());
            let beside_sender = self.has_sender() && self.rng.random();
            self.queue.after(at, Event::Begin(hyco, beside_sender));
        }
        if !self.friendly {
            faults::plan(self, storm);
        }
        self.queue.after(LOOK_EVERY, Event::Look);
    }

    pub(super) fn note(&mut self, event: std::fmt::Arguments<'_>) {
        self.log.note(self.queue.age(), event);
    }

    fn has_sender(&self) -> bool {
        self.machines
            .iter()
            .any(|machine| machine.kind == Kind::Sender)
    }

    /// Starts a machine's process.
    pub(super) fn start(&mut self, number: usize) {
        let made = Made {
            now: self.queue.now(),
            rng: StdRng::from_rng(&mut self.rng),
            segments: 1 << self.rng.random_range(0..5_u32),
        };
        let instance = Instance(self.rng.random());
        let machine = &mut self.machines[number];
        if machine.is_up() {
            return;
        }
        machine.life += 1;
        machine.instance = instance;
        let id = u8::try_from(number).expect("few machines");
        let (site, turns) = match machine.kind {
            Kind::Relay => {
                let (site, turns) =
                    relay::simulated::start(self.scene.snapshot(), self.workers, made);
                (Site::Relay(site), turns)
            }
            Kind::Agent => {
                let config = self.scene.agent(id);
                let (site, turns) = agent::simulated::start(config, instance, self.workers, made);
                (Site::Agent(site), turns)
            }
            Kind::Sender => {
                let config = self.scene.sender(id);
                let (site, turns) = sender::simulated::start(config, instance, self.workers, made);
                (Site::Sender(site), turns)
            }
        };
        let count = turns.len();
        machine.lives(site, turns);
        let (kind, life) = (machine.kind, machine.life);
        let places: Vec<Place> = (0..count).map(|worker| machine.place(worker)).collect();
        self.note(format_args!("{kind:?} {number} starts, life {life}"));
        for place in places {
            if kind != Kind::Relay {
                self.net.attach(place);
            }
            self.plan_turn(place, self.queue.now());
        }
    }

    /// Ends a machine's process at once.
    pub(super) fn kill(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let (kind, place) = (machine.kind, machine.place(0));
        if !machine.is_up() {
            return;
        }
        machine.dies();
        self.tcp.gone(&mut self.queue, place);
        self.net.detach(number);
        self.note(format_args!("{kind:?} {number} is gone"));
    }

    /// A machine that was stopped is turned again.
    pub(super) fn go_on(&mut self, number: usize) {
        for worker in 0..self.machines[number].slots.len() {
            let place = self.machines[number].place(worker);
            self.plan_turn(place, self.queue.now());
        }
    }

    fn plan_turn(&mut self, place: Place, at: Instant) {
        let machine = &mut self.machines[place.machine];
        let at = machine.asleep.map_or(at, |until| at.max(until));
        let Some(slot) = machine.slots.get_mut(usize::from(place.worker)) else {
            return;
        };
        if place.life == machine.life
            && !slot.done
            && slot.planned.is_none_or(|planned| at < planned)
        {
            slot.planned = Some(at);
            self.queue.at(at, Event::Turn(place, at));
        }
    }

    /// Whoever has something to do has a turn soon.
    fn wake(&mut self) {
        for number in 0..self.machines.len() {
            for worker in 0..self.machines[number].slots.len() {
                let machine = &mut self.machines[number];
                let slot = &mut machine.slots[worker];
                let now = self.queue.now();
                let soon = now + Duration::from_micros(50);
                if slot.done
                    || !slot.turn.sim().is_runnable()
                    || slot.planned.is_some_and(|at| at <= soon)
                {
                    continue;
                }
                let place = machine.place(worker);
                let lag = Duration::from_micros(self.rng.random_range(1..50));
                self.plan_turn(place, now + lag);
            }
        }
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Turn(place, at) => self.turn(place, at),
            Event::Flight(flight) => {
                self.land(flight);
                Ok(())
            }
            Event::Tcp(passing) => {
                self.log_passing(&passing);
                self.tcp.pass(&mut self.queue, &mut self.rng, passing);
                Ok(())
            }
            Event::Peer(number) => self.act(number),
            Event::Begin(hyco, beside_sender) => {
                let manner = self.manner(true);
                self.connect(hyco, beside_sender, manner);
                Ok(())
            }
            Event::Fault(fault) => {
                faults::strike(self, fault);
                Ok(())
            }
            Event::Look => Ok(()),
        }
    }

    fn log_passing(&mut self, passing: &Passing) {
        match passing {
            Passing::Bytes(wire, bytes) => {
                self.note(format_args!("tcp {wire}: {} bytes", bytes.len()));
            }
            Passing::Syn(number) => self.note(format_args!("tcp syn {number}")),
            other => self.note(format_args!("tcp {other:?}")),
        }
    }

    fn turn(&mut self, place: Place, at: Instant) -> Result<(), String> {
        let machine = &mut self.machines[place.machine];
        if place.life != machine.life {
            return Ok(());
        }
        let asleep = machine.asleep;
        let Some(slot) = machine.slots.get_mut(usize::from(place.worker)) else {
            return Ok(());
        };
        if slot.planned != Some(at) {
            return Ok(());
        }
        slot.planned = None;
        let now = self.queue.now();
        if let Some(until) = asleep.filter(|until| *until > now) {
            self.plan_turn(place, until);
            return Ok(());
        }
        slot.turn.sim().set_now(now);
        slot.turn.turn().map_err(|error| error.to_string())?;
        let done = slot.turn.is_done();
        if done {
            slot.turn.finish().map_err(|error| error.to_string())?;
        }
        let seen = slot.turn.seen();
        let (news, wrong) = (
            std::mem::take(&mut seen.news),
            std::mem::take(&mut seen.wrong),
        );
        let ops = slot.turn.sim().take_ops();
        slot.done = done;
        let deadline = slot.turn.deadline().max(now + Duration::from_micros(5));
        let kind = machine.kind;
        for op in ops {
            self.carry_out(place, kind, op);
        }
        for line in news {
            self.note(format_args!("{kind:?} {}: {line}", place.machine));
        }
        if let Some(wrong) = wrong.into_iter().next() {
            return Err(wrong);
        }
        if !done {
            self.plan_turn(place, deadline);
        } else if self.machines[place.machine]
            .slots
            .iter()
            .all(|slot| slot.done)
        {
            self.kill(place.machine);
        }
        Ok(())
    }
}
