//! Wakes flows at their time. The runtime's own timers are exact to a millisecond, which is many
//! times the latency to be measured here; this one stands on a timer of the kernel, and the thread
//! is awake a little before each time, for waking takes its own.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::net::unix::pipe::Receiver;

/// Shortest setting of the timer, nanoseconds: zero would turn it off.
const SOON: i64 = 1;

/// The timer rings so long before the time, and the thread waits awake for the rest: what it takes
/// to wake a core that sleeps. At 500 calls a second that is five percent of a core.
const EARLY: Duration = Duration::from_micros(100);

/// What whoever is in no hurry is woken by, with all others of that tick: 3,500 wakes a second,
/// each awaited awake, take a tenth of a core from what is measured.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// The alarm of one thread.
pub(super) struct Alarm {
    /// A timer of the kernel is read like a pipe: eight bytes each time it rings.
    timer: Receiver,
    /// When ticks began.
    since: Instant,
    /// One entry for each wait; one that was given up is woken for nothing.
    waiting: RefCell<BinaryHeap<Reverse<Entry>>>,
    armed: Cell<Option<Instant>>,
    ended: Cell<bool>,
    /// Orders entries of the same instant, first come first served.
    next: Cell<u64>,
}

/// Why a wait is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Woken {
    /// Its time has come.
    Due,
    /// No call shall begin any more.
    Ended,
}

struct Entry {
    at: Instant,
    n: u64,
    waker: Rc<RefCell<Option<Waker>>>,
}

impl Alarm {
    /// Must be made on the runtime where it is used.
    pub(super) fn new() -> io::Result<Alarm> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Alarm {
            timer: Receiver::from_owned_fd_unchecked(timerfd_create(
                TimerfdClockId::Monotonic,
                flags,
            )?)?,
            since: Instant::now(),
            waiting: RefCell::default(),
            armed: Cell::new(None),
            ended: Cell::new(false),
            next: Cell::new(0),
        })
    }

    /// The first tick from this instant on.
    pub(super) fn tick_from(&self, at: Instant) -> Instant {
        let since = at.saturating_duration_since(self.since);
        let ticks = since.as_nanos().div_ceil(TICK.as_nanos());
        self.since + TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    /// Waits for this instant, or for [`Alarm::end`].
    pub(super) async fn wait(&self, at: Instant) -> Woken {
        let waker = Rc::new(RefCell::new(None));
        let mut entered = false;
        poll_fn(|context| {
            if self.ended.get() {
                return Poll::Ready(Woken::Ended);
            }
            if Instant::now() >= at {
                return Poll::Ready(Woken::Due);
            }
            waker.replace(Some(context.waker().clone()));
            if !entered {
                entered = true;
                self.enter(at, Rc::clone(&waker));
            }
            Poll::Pending
        })
        .await
    }

    /// Wakes whoever waits, now and from now on.
    pub(super) fn end(&self) {
        self.ended.set(true);
        for Reverse(entry) in self.waiting.take().into_vec() {
            entry.wake();
        }
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Rings for as long as it is polled.
    pub(super) async fn ring(&self) {
        loop {
            if self.timer.readable().await.is_err() {
                return; // The runtime is going down.
            }
            let mut times = [0; 8];
            let _ = self.timer.try_read(&mut times); // "Would block" if it was set anew.
            self.armed.set(None);
            while let Some(first) = self.first() {
                let now = Instant::now();
                if first <= now {
                    let entry = self.waiting.borrow_mut().pop();
                    entry.into_iter().for_each(|Reverse(entry)| entry.wake());
                } else if first - now > EARLY {
                    self.arm(first, now);
                    break;
                } else {
                    // Not a busy wait: what comes meanwhile is served.
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn first(&self) -> Option<Instant> {
        self.waiting.borrow().peek().map(|Reverse(entry)| entry.at)
    }

    fn enter(&self, at: Instant, waker: Rc<RefCell<Option<Waker>>>) {
        let n = self.next.get();
        self.next.set(n + 1);
        self.waiting
            .borrow_mut()
            .push(Reverse(Entry { at, n, waker }));
        if self.armed.get().is_none_or(|armed| at < armed) {
            self.arm(at, Instant::now());
        }
    }

    fn arm(&self, at: Instant, now: Instant) {
        self.armed.set(Some(at));
        let left = at.saturating_duration_since(now + EARLY);
        let value = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()).max(SOON),
        };
        let interval = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let setting = Itimerspec {
            it_interval: interval,
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)
            .expect("the descriptor is a timer, and the setting is a time");
    }
}

impl Entry {
    fn wake(self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.at, self.n).cmp(&(other.at, other.n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    #[test]
    fn waits_end_in_the_order_of_their_times() {
        let order = on_a_runtime(|alarm, order| async move {
            let start = Instant::now();
            let one = |n: u64, after: u64| {
                let (alarm, order) = (Rc::clone(&alarm), Rc::clone(&order));
                async move {
                    let woken = alarm.wait(start + Duration::from_millis(after)).await;
                    order.borrow_mut().push((n, woken));
                    assert!(start.elapsed() >= Duration::from_millis(after));
                }
            };
            tokio::join!(one(0, 30), one(1, 10), one(2, 20), one(3, 0));
        });
        assert_eq!(order, [3, 1, 2, 0].map(|n| (n, Woken::Due)));
    }

    #[test]
    fn ticks_are_the_same_for_all_and_never_early() {
        on_a_runtime(|alarm, _| async move {
            let start = Instant::now();
            let ticks: Vec<_> = (0..30)
                .map(|ms| start + Duration::from_millis(ms))
                .map(|at| (at, alarm.tick_from(at)))
                .collect();
            assert!(
                ticks
                    .iter()
                    .all(|(at, tick)| at <= tick && *tick - *at < TICK)
            );
            let mut different: Vec<_> = ticks.iter().map(|(_, tick)| *tick).collect();
            different.dedup();
            assert!((3..=4).contains(&different.len()), "{different:?}");
        });
    }

    #[test]
    fn an_end_wakes_everyone() {
        let order = on_a_runtime(|alarm, order| async move {
            let far = Instant::now() + Duration::from_secs(3600);
            let waits = async {
                for n in 0..2 {
                    let woken = alarm.wait(far).await;
                    order.borrow_mut().push((n, woken));
                }
            };
            tokio::join!(waits, async { alarm.end() });
        });
        assert_eq!(order, [(0, Woken::Ended), (1, Woken::Ended)]);
    }

    type Order = Rc<RefCell<Vec<(u64, Woken)>>>;

    fn on_a_runtime<F: Future<Output = ()>>(
        test: impl FnOnce(Rc<Alarm>, Order) -> F,
    ) -> Vec<(u64, Woken)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("builds");
        let order = Order::default();
        LocalSet::new().block_on(&runtime, async {
            let alarm = Rc::new(Alarm::new().expect("a timer"));
            let ringing = Rc::clone(&alarm);
            let ringing = tokio::task::spawn_local(async move { ringing.ring().await });
            test(alarm, Rc::clone(&order)).await;
            ringing.abort();
        });
        order.take()
    }
}
