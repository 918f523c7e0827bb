//! Applications and endpoints: who says how much, how fast, who reads slowly, half-closes, resets
//! or says nothing. Each checks every byte that it hears.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use super::pattern::{self, HEADER, Listener};
use super::queue::Queue;
use super::tcp::{Found, Tcp};
use super::world::Event;
use crate::io::sim::Wire;

/// How a peer behaves.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    /// Bytes that it says in all, header included.
    pub(super) says: u64,
    /// It says nothing before it heard so many.
    pub(super) after: u64,
    /// Bytes that it says at a time, and the pause between.
    pub(super) burst: usize,
    pub(super) pause: Duration,
    /// Bytes that it reads at a time, and the pause between.
    pub(super) gulp: usize,
    pub(super) rest: Duration,
    /// RST once it said and heard so many.
    pub(super) resets_at: Option<u64>,
    /// RST after so long.
    pub(super) leaves: Option<Duration>,
    /// Says and reads nothing.
    pub(super) silent: bool,
}

/// How a conversation ended for one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Over {
    /// Both ends were passed on, and every byte came.
    Clean,
    /// An explicit error.
    Failed(ErrorKind),
    /// It reset it itself.
    Left,
    /// It was no conversation: a probe.
    Probe,
}

/// An application or an endpoint, in one conversation.
pub(super) struct Peer {
    pub(super) number: u64,
    /// The hybrid connection that it is about.
    pub(super) hyco: usize,
    pub(super) application: bool,
    pub(super) manner: Manner,
    pub(super) wire: Option<Wire>,
    pub(super) said: u64,
    pub(super) finished: bool,
    pub(super) listener: Listener,
    pub(super) heard_end: bool,
    pub(super) over: Option<Over>,
    pub(super) since: Instant,
    next_say: Instant,
    next_read: Instant,
}

/// What a peer's act needs of its world.
pub(super) struct Stage<'a> {
    pub(super) plan: &'a mut Queue<Event>,
    pub(super) rng: &'a mut StdRng,
    pub(super) tcp: &'a mut Tcp,
}

impl Manner {
    /// A friendly one.
    pub(super) fn plain(rng: &mut StdRng) -> Self {
        let says = match rng.random_range(0..20) {
            0..8 => rng.random_range(HEADER..2_000),
            8..16 => rng.random_range(HEADER..60_000),
            16..19 => rng.random_range(HEADER..400_000),
            _ => rng.random_range(400_000..900_000),
        };
        Self {
            says,
            after: 0,
            burst: 1 << rng.random_range(6..17_u32),
            pause: if rng.random_ratio(1, 3) {
                Duration::from_micros(rng.random_range(100..20_000))
            } else {
                Duration::ZERO
            },
            gulp: 1 << rng.random_range(8..17_u32),
            rest: Duration::ZERO,
            resets_at: None,
            leaves: None,
            silent: false,
        }
        .bounded()
    }

    /// Whoever says little at a time takes no longer than some seconds for all of it.
    pub(super) fn bounded(mut self) -> Self {
        let times = |all: u64, at_once: usize| all.div_ceil(at_once as u64);
        while self.pause * u32::try_from(times(self.says, self.burst)).unwrap_or(u32::MAX)
            > Duration::from_secs(4)
            || times(self.says, self.burst) > 400
        {
            self.burst *= 2;
        }
        self
    }

    /// Whether it goes to the end by itself.
    pub(super) fn is_plain(&self) -> bool {
        self.resets_at.is_none() && self.leaves.is_none() && !self.silent
    }
}

impl Peer {
    pub(super) fn new(
        number: u64,
        hyco: usize,
        application: bool,
        manner: Manner,
        now: Instant,
    ) -> Self {
        Self {
            number,
            hyco,
            application,
            manner,
            wire: None,
            said: 0,
            finished: false,
            listener: Listener::default(),
            heard_end: false,
            over: None,
            since: now,
            next_say: now,
            next_read: now,
        }
    }

    /// Does what can be done now.
    ///
    /// # Errors
    /// What it heard is not what was said.
    pub(super) fn act(&mut self, stage: &mut Stage<'_>) -> Result<(), String> {
        let (Some(wire), None) = (self.wire, self.over) else {
            return Ok(());
        };
        let now = stage.plan.now();
        if self
            .manner
            .leaves
            .is_some_and(|after| now >= self.since + after)
        {
            stage.tcp.reset(stage.plan, wire);
            self.over = Some(Over::Left);
            return Ok(());
        }
        // Whoever reads no more notices an error all the same.
        if (self.manner.silent || self.heard_end)
            && let Some(kind) = stage.tcp.failed(wire)
        {
            self.fail(stage, wire, kind);
        }
        if self.manner.silent || self.over.is_some() {
            return Ok(());
        }
        self.read(stage, wire, now)?;
        self.say(stage, wire, now);
        if self.over.is_none()
            && self
                .manner
                .resets_at
                .is_some_and(|at| self.said + self.listener.heard() >= at)
        {
            stage.tcp.reset(stage.plan, wire);
            self.over = Some(Over::Left);
        }
        if self.over.is_none() && self.heard_end && self.finished {
            stage.tcp.close_clean(stage.plan, wire);
            let probe = self.listener.heard() == 0 && !self.application;
            self.over = Some(if probe { Over::Probe } else { Over::Clean });
        }
        Ok(())
    }

    fn read(&mut self, stage: &mut Stage<'_>, wire: Wire, now: Instant) -> Result<(), String> {
        while now >= self.next_read && !self.heard_end {
            match stage
                .tcp
                .read(stage.plan, stage.rng, wire, self.manner.gulp)
            {
                Found::Nothing => return Ok(()),
                Found::Bytes(bytes) => self.listener.hear(&bytes)?,
                Found::End => self.heard_end = true,
                Found::Failed(kind) => {
                    self.fail(stage, wire, kind);
                    return Ok(());
                }
            }
            if self.manner.rest > Duration::ZERO {
                self.next_read = now + self.manner.rest;
                stage.plan.at(self.next_read, Event::Peer(self.number));
            }
        }
        Ok(())
    }

    fn say(&mut self, stage: &mut Stage<'_>, wire: Wire, now: Instant) {
        // An endpoint that hears nothing but an end was probed: it has nothing to say.
        let may = self.listener.heard() >= self.manner.after || self.heard_end;
        while self.over.is_none() && may && now >= self.next_say && self.said < self.manner.says {
            let left = usize::try_from(self.manner.says - self.said).unwrap_or(usize::MAX);
            let len = self.manner.burst.min(left);
            let bytes = pattern::said(self.number, self.said, len);
            let taken = stage.tcp.write(stage.plan, stage.rng, wire, bytes);
            self.said += taken as u64;
            if taken < len {
                return; // Room is told.
            }
            if self.manner.pause > Duration::ZERO {
                self.next_say = now + self.manner.pause;
                stage.plan.at(self.next_say, Event::Peer(self.number));
            }
        }
        if self.said == self.manner.says && !self.finished {
            self.finished = true;
            stage.tcp.shutdown(stage.plan, wire);
        }
    }

    /// The conversation ended in an error.
    pub(super) fn fail(&mut self, stage: &mut Stage<'_>, wire: Wire, kind: ErrorKind) {
        stage.tcp.reset(stage.plan, wire);
        self.over = Some(Over::Failed(kind));
    }
}

/// Where the endpoint of a hybrid connection listens.
pub(super) fn endpoint(hyco: usize) -> SocketAddr {
    let number = u8::try_from(hyco).expect("few hybrid connections");
    SocketAddr::from(([10, 9, 0, number], 5000))
}

/// Where applications connect: at the relay, or beside a sender.
pub(super) fn binding(hyco: usize, sender: bool) -> SocketAddr {
    let port = 7000 + u16::try_from(hyco).expect("few hybrid connections");
    SocketAddr::from(([127, 0, 0, if sender { 2 } else { 1 }], port))
}
