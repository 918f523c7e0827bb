//! What a bad network does to the datagrams of one direction: which are lost, held back, doubled or
//! changed, and when the others leave. Knows no socket; time and seed are arguments, so the same
//! seed does the same to the same datagrams.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;

/// Datagrams under way in one direction; what comes above is dropped. More than 100 Mbit/s put into
/// a path of 600 ms.
const UNDER_WAY_MAX: usize = 64 * 1024;

/// How much later than its turn a datagram that changes its place leaves, at most; at least a
/// quarter of it.
const HELD_BACK: Duration = Duration::from_millis(8);

/// One direction of a network. Chances are from 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Link {
    /// One-way delay.
    pub delay: Duration,
    /// Added to the delay, evenly between none and this; order is kept.
    pub jitter: Duration,
    /// Lost, of all datagrams.
    pub loss: f64,
    /// Lost ones come in runs of this mean length (Gilbert-Elliott: all of a bad time is lost); 1:
    /// each by itself.
    pub burst: f64,
    /// Held back, so that others pass.
    pub reorder: f64,
    /// Sent twice.
    pub duplicate: f64,
    /// One bit changed.
    pub flip: f64,
    /// Bits per second; `None`: as fast as they come.
    pub rate: Option<u64>,
    /// Bytes that wait for the rate; what does not fit is lost.
    pub queue: usize,
    /// Largest datagram (UDP payload) that passes, bytes; `None`: any.
    pub mtu: Option<usize>,
}

impl Link {
    /// A network that does nothing.
    pub const CLEAN: Link = Link {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        burst: 1.0,
        reorder: 0.0,
        duplicate: 0.0,
        flip: 0.0,
        rate: None,
        queue: 256 * 1024,
        mtu: None,
    };

    /// What makes no sense, in words; `None`: all does.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let chances = [
            ("loss", self.loss),
            ("reorder", self.reorder),
            ("duplicate", self.duplicate),
            ("flip", self.flip),
        ];
        let wrong = chances
            .into_iter()
            .find(|(_, chance)| !(0.0..=1.0).contains(chance));
        if let Some((name, chance)) = wrong {
            return Some(format!(
                "{name} is {chance}, and a chance is from 0 to 1 (or 0% to 100%)"
            ));
        }
        if !(1.0..=1e6).contains(&self.burst) {
            return Some(format!(
                "burst is {}, and a mean run is 1 or longer",
                self.burst
            ));
        }
        if self.rate == Some(0) || self.mtu == Some(0) {
            return Some("rate and mtu are above zero; leave them out for no limit".into());
        }
        None
    }
}

/// What happened to the datagrams of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Counts {
    /// Came in.
    pub received: u64,
    /// Bytes that came in.
    pub bytes: u64,
    /// Went on, doubles included.
    pub forwarded: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost because the queue before the rate was full.
    pub queue_full: u64,
    /// Lost because they were too large.
    pub too_large: u64,
    /// Lost in a black hole.
    pub swallowed: u64,
    /// Held back.
    pub reordered: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Changed.
    pub flipped: u64,
}

/// The datagrams of one direction that are under way.
pub(super) struct Way {
    rng: StdRng,
    in_bad_time: bool,
    /// When the rate has let all go that came so far.
    free_at: Option<Instant>,
    last_due: Option<Instant>,
    under_way: BinaryHeap<Reverse<Held>>,
    order: u64,
}

/// Ordered by when it leaves, then by when it came.
struct Held {
    due: Instant,
    order: u64,
    datagram: Vec<u8>,
}

impl Way {
    pub(super) fn new(seed: u64) -> Way {
        Way {
            rng: StdRng::seed_from_u64(seed),
            in_bad_time: false,
            free_at: None,
            last_due: None,
            under_way: BinaryHeap::new(),
            order: 0,
        }
    }

    /// A datagram comes in.
    pub(super) fn take(&mut self, now: Instant, datagram: &[u8], link: &Link, counts: &mut Counts) {
        counts.received += 1;
        counts.bytes += datagram.len() as u64;
        // Every chance is drawn for every datagram, so that one that is lost does not move the
        // chances of those behind it.
        let [lost, turn, late, double, flip] = [(); 5].map(|()| self.rng.random::<f64>());
        let (jitter, bit) = (self.rng.random::<f64>(), self.rng.random::<u64>());
        if self.is_lost(lost, link) {
            counts.lost += 1;
            return;
        }
        if link.mtu.is_some_and(|most| datagram.len() > most) {
            counts.too_large += 1;
            return;
        }
        let Some(sent) = self.passes(now, datagram.len(), link) else {
            counts.queue_full += 1;
            return;
        };
        let mut due = sent + link.delay + link.jitter.mul_f64(jitter);
        if turn < link.reorder {
            counts.reordered += 1;
            due += HELD_BACK.mul_f64(0.25 + 0.75 * late);
        } else {
            due = self.last_due.map_or(due, |last| due.max(last));
            self.last_due = Some(due);
        }
        let mut datagram = datagram.to_vec();
        if double < link.duplicate {
            counts.duplicated += 1;
            self.hold(due, datagram.clone());
        }
        if flip < link.flip && !datagram.is_empty() {
            counts.flipped += 1;
            let at = (bit % (datagram.len() as u64 * 8)) as usize;
            datagram[at / 8] ^= 1 << (at % 8);
        }
        self.hold(due, datagram);
    }

    /// The next datagram whose time has come.
    pub(super) fn give(&mut self, now: Instant) -> Option<Vec<u8>> {
        let due = self
            .under_way
            .peek()
            .is_some_and(|Reverse(held)| held.due <= now);
        let held = due.then(|| self.under_way.pop()).flatten()?;
        Some(held.0.datagram)
    }

    /// When the next one leaves.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse(held)| held.due)
    }

    /// Gilbert-Elliott with nothing lost in good times and all in bad ones; a mean run of 1 is each
    /// by itself.
    fn is_lost(&mut self, chance: f64, link: &Link) -> bool {
        if link.burst <= 1.0 || link.loss <= 0.0 || link.loss >= 1.0 {
            return chance < link.loss;
        }
        let leaves = 1.0 / link.burst;
        let enters = leaves * link.loss / (1.0 - link.loss);
        self.in_bad_time = if self.in_bad_time {
            chance >= leaves
        } else {
            chance < enters
        };
        self.in_bad_time
    }

    /// When the rate has let it through; `None`: the queue is full.
    fn passes(&mut self, now: Instant, len: usize, link: &Link) -> Option<Instant> {
        if self.under_way.len() >= UNDER_WAY_MAX {
            return None;
        }
        let Some(rate) = link.rate else {
            return Some(now);
        };
        let begins = self.free_at.map_or(now, |free| free.max(now));
        let waiting = (begins - now).as_secs_f64() * rate as f64 / 8.0;
        if waiting + len as f64 > (link.queue.max(len)) as f64 {
            return None;
        }
        let ends = begins + Duration::from_secs_f64(len as f64 * 8.0 / rate as f64);
        self.free_at = Some(ends);
        Some(ends)
    }

    fn hold(&mut self, due: Instant, datagram: Vec<u8>) {
        let order = self.order;
        self.order += 1;
        self.under_way.push(Reverse(Held {
            due,
            order,
            datagram,
        }));
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Held) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl Counts {
    pub(super) fn add(&mut self, other: &Counts) {
        self.received += other.received;
        self.bytes += other.bytes;
        self.forwarded += other.forwarded;
        self.lost += other.lost;
        self.queue_full += other.queue_full;
        self.too_large += other.too_large;
        self.swallowed += other.swallowed;
        self.reordered += other.reordered;
        self.duplicated += other.duplicated;
        self.flipped += other.flipped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: u64 = 20_000;

    #[test]
    fn the_same_seed_loses_the_same_datagrams_and_another_others() {
        let link = Link {
            loss: 0.1,
            burst: 4.0,
            duplicate: 0.1,
            flip: 0.1,
            ..Link::CLEAN
        };
        let first = through(&link, 7, MANY);
        assert_eq!(first, through(&link, 7, MANY));
        assert_ne!(first.1, through(&link, 8, MANY).1);
    }

    #[test]
    fn losses_are_as_many_as_said_in_runs_as_long_as_said() {
        for (loss, burst) in [(0.01, 1.0), (0.2, 1.0), (0.02, 5.0), (0.2, 10.0)] {
            let link = Link {
                loss,
                burst,
                ..Link::CLEAN
            };
            let (counts, out) = through(&link, 1, MANY * 10);
            let share = counts.lost as f64 / counts.received as f64;
            assert!((share / loss - 1.0).abs() < 0.15, "{share} of {loss}");
            let came: Vec<u64> = out.iter().map(|datagram| number(datagram)).collect();
            let runs = came.windows(2).filter(|pair| pair[1] > pair[0] + 1).count();
            let mean = counts.lost as f64 / runs as f64;
            // Runs of single losses touch each other by chance: 1 / (1 - loss).
            let expected = if burst > 1.0 {
                burst
            } else {
                1.0 / (1.0 - loss)
            };
            assert!(
                (mean / expected - 1.0).abs() < 0.15,
                "runs of {mean}, not {expected}"
            );
        }
    }

    #[test]
    fn a_rate_is_kept_and_its_queue_is_finite() {
        let link = Link {
            rate: Some(8_000_000),
            queue: 10_000,
            ..Link::CLEAN
        };
        let (mut way, mut counts, start) = (Way::new(1), Counts::default(), Instant::now());
        for _ in 0..50 {
            way.take(start, &[0; 1_000], &link, &mut counts);
        }
        assert_eq!((counts.received, counts.queue_full), (50, 40));
        assert!(way.give(start).is_none());
        let out = |way: &mut Way, ms| {
            std::iter::from_fn(|| way.give(start + Duration::from_millis(ms))).count()
        };
        assert_eq!(
            (out(&mut way, 1), out(&mut way, 5), out(&mut way, 10)),
            (1, 4, 5)
        );
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let jitter = Link {
            jitter: Duration::from_millis(20),
            ..Link::CLEAN
        };
        let (_, out) = through(&jitter, 3, 1_000);
        assert!(out.is_sorted_by_key(|datagram| number(datagram)));
        let (counts, out) = through(
            &Link {
                reorder: 0.3,
                ..Link::CLEAN
            },
            3,
            1_000,
        );
        assert!(!out.is_sorted_by_key(|datagram| number(datagram)));
        assert!((200..400).contains(&counts.reordered) && out.len() == 1_000);
    }

    #[test]
    fn what_is_too_large_or_changed_is_counted_and_nothing_else_is_touched() {
        let (counts, out) = through(
            &Link {
                mtu: Some(7),
                ..Link::CLEAN
            },
            1,
            10,
        );
        assert_eq!((counts.too_large, out.len()), (10, 0));
        let (counts, out) = through(
            &Link {
                flip: 1.0,
                ..Link::CLEAN
            },
            1,
            100,
        );
        assert_eq!(counts.flipped, 100);
        for (n, datagram) in out.iter().enumerate() {
            assert_eq!((number(datagram) ^ n as u64).count_ones(), 1);
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        assert_eq!(Link::CLEAN.fault(), None);
        for wrong in [
            Link {
                loss: 1.5,
                ..Link::CLEAN
            },
            Link {
                flip: -0.1,
                ..Link::CLEAN
            },
            Link {
                burst: 0.5,
                ..Link::CLEAN
            },
            Link {
                rate: Some(0),
                ..Link::CLEAN
            },
        ] {
            assert!(wrong.fault().is_some(), "{wrong:?}");
        }
    }

    /// Numbered datagrams, one each 0.1 ms, and what of them comes out.
    fn through(link: &Link, seed: u64, many: u64) -> (Counts, Vec<Vec<u8>>) {
        let (mut way, mut counts, start) = (Way::new(seed), Counts::default(), Instant::now());
        let mut out = Vec::new();
        for n in 0..many {
            let now = start + Duration::from_micros(100) * u32::try_from(n).expect("small");
            way.take(now, &n.to_le_bytes(), link, &mut counts);
            out.extend(std::iter::from_fn(|| way.give(now)));
        }
        let end = start + Duration::from_secs(3_600);
        out.extend(std::iter::from_fn(|| way.give(end)));
        (counts, out)
    }

    fn number(datagram: &[u8]) -> u64 {
        u64::from_le_bytes(datagram.try_into().expect("eight bytes"))
    }
}
