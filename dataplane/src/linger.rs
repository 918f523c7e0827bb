//! When a worker stays awake, and when it gives way: to wake a thread on a core that sleeps costs
//! more than most of what a worker does.
//!
//! After something happened it stays awake for a moment, for the answer to what it just sent is
//! often on its way. Only while much happens and nobody else wants the core: signs of life of a
//! thousand idle sessions are not worth a core that never sleeps. And not for one flow that asks
//! and waits for its answer: there, spinning keeps the next process of the path from running on
//! this core without a wake-up.
//!
//! Otherwise it lets the thread that woke it finish first. That is mostly a thread of the same core
//! that sends and then has next to nothing to do before it sleeps. If it is preempted there, it
//! still wants the core when the worker wakes the next thread of the path, which the kernel then
//! puts on a sleeping core. Only as long as it costs little: a thread that goes on computing is not
//! given the core for nothing.

use std::time::{Duration, Instant};

use crate::io::{Completion, SocketId};

/// How long a worker stays awake after the last thing that happened.
const LINGER: Duration = Duration::from_micros(50);

/// A core that was given away for longer than this is wanted by somebody else.
const WANTED: Duration = Duration::from_micros(4);

/// What happens further apart than this, in the mean, is slept through.
const BUSY: Duration = Duration::from_micros(200);

/// A longer silence says no more than this one.
const SILENCE: Duration = Duration::from_millis(1);

/// Weight of the past in the mean against what just happened.
const MEMORY: u32 = 32;

/// Several flows talk when the socket that something came of is another one than before this often,
/// of [`ALWAYS`], in the mean.
const SEVERAL: u32 = ALWAYS / 4;

/// Each time.
const ALWAYS: u32 = 1 << 16;

/// Bytes of a turn, in the mean, from which on even one flow is one that sends and not one that
/// asks.
const BULK: usize = 4 * 1024;

/// A turn with more says no more than one with so many.
const BULK_MAX: usize = 64 * 1024;

/// The most that it may cost to let others finish, in the mean: less than half of what a wake
/// across cores costs.
const REST: Duration = Duration::from_micros(20);

/// One that takes longer says no more than this.
const REST_MAX: Duration = Duration::from_micros(200);

/// Wakes without giving way, once it has cost too much.
const IN_A_ROW: u32 = 1024;

/// Whether a worker stays awake, and whether it gives way.
#[derive(Debug)]
pub(crate) struct Linger {
    last: Instant,
    /// Time between things that happened, mean.
    apart: Duration,
    /// The socket that something came of last.
    heard: Option<SocketId>,
    /// How often it is another one than before, mean: 0 to [`ALWAYS`].
    others: u32,
    /// Bytes of this turn.
    bytes: usize,
    /// Bytes of a turn in which something happened, mean.
    weight: usize,
    wanted: bool,
    /// What others took to finish, mean.
    rest: Duration,
    /// Wakes left without giving way.
    without: u32,
}

impl Linger {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last: now,
            apart: SILENCE,
            heard: None,
            others: 0,
            bytes: 0,
            weight: 0,
            wanted: false,
            rest: REST / 2,
            without: 0,
        }
    }

    /// What happened in this turn, one thing after the other.
    pub(crate) fn saw(&mut self, completion: &Completion) {
        self.bytes += match completion {
            Completion::Received {
                result: Ok(bytes), ..
            } => bytes.len(),
            Completion::Datagrams(batch) => batch.data.len(),
            _ => 0,
        };
        if let Some(socket) = completion.socket() {
            let other = self.heard.replace(socket) != Some(socket);
            let now = if other { ALWAYS } else { 0 };
            self.others = (self.others * (MEMORY - 1) + now) / MEMORY;
        }
    }

    /// Something happened, and that was all of it for this turn.
    pub(crate) fn happened(&mut self, now: Instant) {
        let apart = now.saturating_duration_since(self.last).min(SILENCE);
        self.apart = (self.apart * (MEMORY - 1) + apart) / MEMORY;
        let bytes = std::mem::take(&mut self.bytes).min(BULK_MAX);
        self.weight = (self.weight * (MEMORY as usize - 1) + bytes) / MEMORY as usize;
        self.last = now;
        self.wanted = false;
    }

    /// Whether to look again in place of sleeping.
    pub(crate) fn goes_on(&self, now: Instant) -> bool {
        !self.wanted && self.is_worth_it() && now < self.last + LINGER
    }

    /// Whether much happens, and not to one flow alone that asks and waits.
    fn is_worth_it(&self) -> bool {
        self.apart < BUSY && (self.others > SEVERAL || self.weight > BULK)
    }

    /// Nothing happened: lets others have the core. Ends where somebody took it, for then there is
    /// better use for it than waiting.
    pub(crate) fn give_way(&mut self, clock: impl Fn() -> Instant) {
        self.wanted = yield_core(clock) > WANTED;
    }

    /// Something ended the worker's sleep: lets that thread finish.
    pub(crate) fn woke(&mut self, clock: impl Fn() -> Instant) {
        if self.is_worth_it() {
            return;
        }
        if self.without > 0 {
            self.without -= 1;
            return;
        }
        let took = yield_core(clock).min(REST_MAX);
        self.rest = (self.rest * (MEMORY - 1) + took) / MEMORY;
        if self.rest > REST {
            self.rest = REST / 2;
            self.without = IN_A_ROW;
        }
    }
}

/// Lets others have the core, and tells for how long they had it.
fn yield_core(clock: impl Fn() -> Instant) -> Duration {
    let gave = clock();
    std::thread::yield_now();
    clock().saturating_duration_since(gave)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Things happen `times` times, `apart` from each other; the time of the last.
    fn happen(linger: &mut Linger, from: Instant, times: usize, apart: Duration) -> Instant {
        (0..times).fold(from, |now, _| {
            linger.happened(now + apart);
            now + apart
        })
    }

    fn socket(index: u32) -> SocketId {
        SocketId {
            index,
            generation: 0,
        }
    }

    /// Flows `0..flows` talk, one after the other, and say so many bytes each time.
    fn talk(linger: &mut Linger, flows: u32, bytes: usize) {
        for n in 0..200 {
            linger.saw(&Completion::Received {
                socket: socket(n % flows),
                result: Ok(vec![0; bytes].into()),
            });
        }
    }

    fn busy() -> (Linger, Instant) {
        let start = Instant::now();
        let mut linger = Linger::new(start);
        talk(&mut linger, 2, 1);
        let now = happen(&mut linger, start, 100, BUSY / 4);
        (linger, now)
    }

    #[test]
    fn a_busy_worker_stays_awake_for_a_moment() {
        let (linger, now) = busy();
        assert!(linger.goes_on(now));
        assert!(linger.goes_on(now + LINGER - Duration::from_nanos(1)));
        assert!(!linger.goes_on(now + LINGER));
    }

    #[test]
    fn a_worker_with_little_to_do_sleeps_at_once() {
        let start = Instant::now();
        let mut linger = Linger::new(start);
        assert!(!linger.goes_on(start));
        let now = happen(&mut linger, start, 100, 2 * BUSY);
        assert!(!linger.goes_on(now));
        let (mut linger, now) = busy();
        let now = happen(&mut linger, now, 100, 2 * BUSY);
        assert!(!linger.goes_on(now), "it was busy, and is no more");
    }

    #[test]
    fn a_worker_whose_one_flow_talks_sleeps_at_once_and_lets_others_finish() {
        let (mut linger, now) = busy();
        talk(&mut linger, 1, 1);
        assert!(!linger.goes_on(now), "however often");
        let asked = Cell::new(0);
        linger.woke(|| {
            asked.set(asked.get() + 1);
            now
        });
        assert_eq!(asked.get(), 2, "others had the core");
        talk(&mut linger, 3, 1);
        assert!(linger.goes_on(now));
    }

    #[test]
    fn a_flow_in_bulk_is_stayed_awake_for_though_it_is_alone() {
        let (mut linger, mut now) = busy();
        talk(&mut linger, 1, 1);
        for _ in 0..100 {
            talk(&mut linger, 1, 2 * BULK / 200 + 1);
            now = happen(&mut linger, now, 1, BUSY / 4);
        }
        assert!(linger.goes_on(now));
        let now = happen(&mut linger, now, 200, BUSY / 4);
        assert!(!linger.goes_on(now), "it says nothing any more");
    }

    #[test]
    fn an_hour_of_silence_is_forgotten_as_soon_as_a_millisecond() {
        let (mut linger, now) = busy();
        linger.happened(now + Duration::from_secs(3600));
        let now = happen(&mut linger, now + Duration::from_secs(3600), 10, BUSY / 4);
        assert!(linger.goes_on(now));
    }

    #[test]
    fn a_core_that_is_wanted_is_left_until_something_happens() {
        let (mut linger, now) = busy();
        linger.give_way(|| now);
        assert!(linger.goes_on(now));
        let clock = Cell::new(now);
        linger.give_way(|| clock.replace(clock.get() + 2 * WANTED));
        assert!(!linger.goes_on(now));
        linger.happened(now + WANTED);
        assert!(linger.goes_on(now + WANTED));
    }

    /// A clock that goes on by so much between two looks.
    fn clock(step: Duration) -> impl Fn() -> Instant {
        let now = Cell::new(Instant::now());
        move || now.replace(now.get() + step)
    }

    #[test]
    fn others_may_finish_as_long_as_they_take_little() {
        let mut linger = Linger::new(Instant::now());
        let quick = clock(REST / 2);
        for _ in 0..1000 {
            linger.woke(&quick);
            assert_eq!(linger.without, 0);
        }
        // Once in a while may take long, but nothing is given to one who computes.
        let mut times = 0;
        while linger.without == 0 {
            linger.woke(clock(Duration::from_millis(3)));
            times += 1;
        }
        assert!((2..=3).contains(&times), "given {times} times");
        for _ in 0..IN_A_ROW {
            linger.woke(|| panic!("it gave way"));
        }
        linger.woke(&quick);
        assert_eq!(linger.without, 0);
    }

    #[test]
    fn a_busy_worker_gives_no_way_when_it_wakes() {
        let (mut linger, _) = busy();
        linger.woke(|| panic!("it gave way"));
    }
}
