//! When the calls of one flow are due. Knows no clock: times are counted from the start of the run,
//! and "now" is an argument.

use std::time::Duration;

use rand::RngExt;

use super::{Group, Pace, Think};

/// When the next call may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// At this time, whatever has happened: latency counts from here.
    At(Duration),
    /// Not before this time, and then as soon as the flow gets to it: latency counts from the
    /// call's beginning.
    After(Duration),
}

/// The calls of one flow.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    begin: Duration,
    until: Duration,
    next: Next,
}

#[derive(Clone, Debug)]
enum Next {
    Closed {
        think: Think,
        first: bool,
    },
    Rate {
        first: f64,
        step: f64,
        n: u64,
    },
    Burst {
        first: Duration,
        idle: Duration,
        calls: u64,
        n: u64,
    },
}

impl Schedule {
    /// Of flow `index` of a group that ends at `until`.
    pub(super) fn new(group: &Group, index: u64, until: Duration) -> Schedule {
        let begin = group.ramp.mul_f64(index as f64 / group.flows.max(1) as f64);
        let next = match group.pace {
            Pace::Closed { think, .. } => Next::Closed { think, first: true },
            // The flows take turns, so that all calls together are evenly spaced. Each keeps its
            // own list: a flow that hangs does not slow the others.
            Pace::Rate(rate) => {
                let step = group.flows as f64 / rate;
                let turn = index as f64 / rate;
                // The first turn that is not before the flow begins.
                let skipped = ((begin.as_secs_f64() - turn) / step).ceil().max(0.0);
                Next::Rate {
                    first: turn + skipped * step,
                    step,
                    n: 0,
                }
            }
            // All flows at once, hence counted from the end of the ramp.
            Pace::Burst { idle, calls } => Next::Burst {
                first: group.ramp + idle,
                idle,
                calls: calls.max(1),
                n: 0,
            },
        };
        Schedule { begin, until, next }
    }

    /// When the flow connects.
    pub(super) fn begin(&self) -> Duration {
        self.begin
    }

    /// The next call, asked for at `now`. `None`: there is none before the group ends.
    pub(super) fn next(&mut self, now: Duration, rng: &mut impl RngExt) -> Option<Due> {
        let due = match &mut self.next {
            Next::Closed { think, first } => {
                let think = if *first {
                    Duration::ZERO
                } else {
                    think.pick(rng)
                };
                *first = false;
                Due::After(now + think)
            }
            Next::Rate { first, step, n } => {
                // Multiplied, not added up: after a day the last call is still at its time.
                let at = *first + *step * *n as f64;
                *n += 1;
                Due::At(Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX))
            }
            Next::Burst {
                first,
                idle,
                calls,
                n,
            } => {
                let burst = u32::try_from(*n / *calls).unwrap_or(u32::MAX);
                *n += 1;
                Due::At(*first + idle.saturating_mul(burst))
            }
        };
        let (Due::At(at) | Due::After(at)) = due;
        (at < self.until).then_some(due)
    }
}

impl Think {
    fn pick(self, rng: &mut impl RngExt) -> Duration {
        if self.from >= self.to {
            return self.from;
        }
        rng.random_range(self.from..=self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn flows_of_an_open_loop_take_turns_at_even_distances() {
        let group = Group {
            flows: 4,
            pace: Pace::Rate(100.0),
            ..Group::new("open")
        };
        let mut all: Vec<Duration> = (0..4)
            .flat_map(|index| due(&group, index, SECOND))
            .collect();
        all.sort();
        let expected: Vec<Duration> = (0..100).map(|n| Duration::from_millis(10 * n)).collect();
        assert_eq!(rounded(&all), expected);
    }

    #[test]
    fn an_open_loop_does_not_wait_for_whoever_is_late() {
        let group = Group {
            pace: Pace::Rate(10.0),
            ..Group::new("open")
        };
        let mut schedule = Schedule::new(&group, 0, SECOND);
        let mut rng = SmallRng::seed_from_u64(1);
        assert_eq!(
            schedule.next(Duration::ZERO, &mut rng),
            Some(Due::At(Duration::ZERO))
        );
        // The answer took 350 ms: three calls are late, each from its own time.
        for expected in [100, 200, 300] {
            let due = schedule.next(Duration::from_millis(350), &mut rng);
            assert_eq!(due, Some(Due::At(Duration::from_millis(expected))));
        }
    }

    #[test]
    fn a_ramp_brings_flows_in_one_after_another() {
        let group = Group {
            flows: 10,
            pace: Pace::Rate(100.0),
            ramp: SECOND,
            ..Group::new("open")
        };
        for index in 0..10 {
            let begin = Schedule::new(&group, index, 2 * SECOND).begin();
            assert_eq!(rounded(&[begin]), [Duration::from_millis(100 * index)]);
            let due = due(&group, index, 2 * SECOND);
            let first = due[0];
            assert!(
                first >= begin && first < begin + Duration::from_millis(101),
                "flow {index} begins at {begin:?} and calls at {first:?}"
            );
        }
    }

    #[test]
    fn a_closed_loop_thinks_between_calls() {
        let group = Group {
            pace: Pace::Closed {
                concurrency: None,
                think: Think {
                    from: Duration::from_millis(10),
                    to: Duration::from_millis(20),
                },
            },
            ..Group::new("closed")
        };
        let mut schedule = Schedule::new(&group, 0, SECOND);
        let mut rng = SmallRng::seed_from_u64(1);
        assert_eq!(
            schedule.next(Duration::ZERO, &mut rng),
            Some(Due::After(Duration::ZERO))
        );
        let mut seen = Vec::new();
        for now in (0..900).map(Duration::from_millis) {
            match schedule.next(now, &mut rng) {
                Some(Due::After(at)) => seen.push(at - now),
                other => panic!("{other:?}"),
            }
        }
        let (from, to) = (Duration::from_millis(10), Duration::from_millis(20));
        assert!(seen.iter().all(|think| (from..=to).contains(think)));
        assert!(seen.iter().any(|&think| think < from + (to - from) / 10));
        assert!(seen.iter().any(|&think| think > to - (to - from) / 10));
        assert_eq!(schedule.next(SECOND, &mut rng), None);
    }

    #[test]
    fn bursts_come_after_each_silence_for_all_flows_at_once() {
        let group = Group {
            flows: 3,
            pace: Pace::Burst {
                idle: Duration::from_millis(400),
                calls: 2,
            },
            ramp: Duration::from_millis(100),
            ..Group::new("burst")
        };
        for index in 0..3 {
            let expected = [500, 500, 900, 900].map(Duration::from_millis);
            assert_eq!(due(&group, index, SECOND), expected);
        }
    }

    fn due(group: &Group, index: u64, until: Duration) -> Vec<Duration> {
        let mut schedule = Schedule::new(group, index, until);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut all = Vec::new();
        while let Some(due) = schedule.next(Duration::ZERO, &mut rng) {
            let Due::At(at) = due else {
                panic!("{due:?}");
            };
            all.push(at);
        }
        all
    }

    fn rounded(times: &[Duration]) -> Vec<Duration> {
        times
            .iter()
            .map(|time| Duration::from_micros((time.as_secs_f64() * 1e6).round() as u64))
            .collect()
    }
}
