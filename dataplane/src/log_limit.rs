//! Decides which lines of the log are written, so that no peer, application or stranger can fill
//! it: each cause of each kind of line is limited for itself, by hybrid connection and source, and
//! what is left out is counted and reported. Writes only that report; asks for no time.
//!
//! Two limits hold at once. The first is by kind, cause, hybrid connection and source: one that
//! floods hides nobody else's line. The second is by kind and cause alone: many sources together
//! cannot fill the log either. A new cause has limits of its own, so it is never hidden behind an
//! old one.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustc_hash::FxHasher;
use tracing::field::display;
use tracing::info;
use underpass_proto::HycoName;

use crate::network::Network;

/// Lines of one subject at once, and then one in each [`SUBJECT_EVERY`].
const SUBJECT_BURST: u32 = 20;
const SUBJECT_EVERY: Duration = Duration::from_secs(2);

/// Lines of one cause at once: the flows of a lost session, the registrations of a large agent.
const CAUSE_BURST: u32 = 1_000;
/// After that burst: 5 lines a second, 1 kB.
const CAUSE_EVERY: Duration = Duration::from_millis(200);

/// Subjects that are remembered; more share one limit for each cause. 512 take about 60 kB.
const SUBJECTS_MAX: usize = 512;

/// Causes that are remembered: some 20 kinds of lines with a few codes each. More share the limits
/// of their kind.
const CAUSES_MAX: usize = 256;

/// How often left out lines are reported, and subjects that are quiet are forgotten.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Subjects that are named in one report; the others are one sum for each cause.
const REPORTED_MAX: usize = 8;

/// What a line says: its kind, and whatever makes two lines of a kind different news.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct LogCause {
    /// The message of the line.
    kind: &'static str,
    detail: u64,
}

/// Whom a line is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Subject {
    cause: LogCause,
    hyco: Option<HycoName>,
    /// An IPv6 host has a whole /64 to choose from.
    source: Option<Network>,
}

/// A line may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Permit {
    /// Lines of the same subject that were left out since the last one; goes into the line as
    /// `left_out`.
    pub(crate) left_out: Option<u64>,
}

/// The limits of one worker's lines.
#[derive(Default, Debug)]
pub(crate) struct LogLimit {
    causes: HashMap<LogCause, Allowance>,
    subjects: HashMap<Subject, Allowance>,
    next_report: Option<Instant>,
}

#[derive(Debug)]
struct Allowance {
    bucket: Bucket,
    left_out: u64,
}

impl LogCause {
    /// Lines with this message are news when `detail` (a code, a text) is another one.
    #[must_use]
    pub(crate) fn new(kind: &'static str, detail: impl Hash) -> Self {
        let mut hasher = FxHasher::default();
        detail.hash(&mut hasher);
        Self {
            kind,
            detail: hasher.finish(),
        }
    }
}

impl LogLimit {
    /// Whether a line is written now. One that is not is counted, and costs no formatting.
    pub(crate) fn permits(
        &mut self,
        now: Instant,
        cause: LogCause,
        hyco: Option<&HycoName>,
        source: Option<IpAddr>,
    ) -> Option<Permit> {
        self.next_report.get_or_insert(now + REPORT_EVERY);
        let cause = self.known(cause);
        let of_cause = self
            .causes
            .entry(cause)
            .or_insert_with(|| Allowance::new(now, CAUSE_BURST));
        let subject = Subject {
            cause,
            hyco: hyco.cloned(),
            source: source.map(Network::of),
        };
        let room = self.subjects.len() < SUBJECTS_MAX;
        let of_subject = match self.subjects.get_mut(&subject) {
            Some(state) => state,
            None if room => self
                .subjects
                .entry(subject)
                .or_insert_with(|| Allowance::new(now, SUBJECT_BURST)),
            // One too many to remember: what it shares with others decides alone.
            None => return of_cause.take(now, CAUSE_BURST, CAUSE_EVERY),
        };
        if !of_subject.bucket.has(now, SUBJECT_BURST, SUBJECT_EVERY)
            || !of_cause.bucket.has(now, CAUSE_BURST, CAUSE_EVERY)
        {
            of_subject.left_out += 1;
            return None;
        }
        of_cause.bucket.take();
        of_subject.take(now, SUBJECT_BURST, SUBJECT_EVERY)
    }

    /// A cause that is one too many to remember counts as its kind.
    fn known(&self, cause: LogCause) -> LogCause {
        if self.causes.len() < CAUSES_MAX || self.causes.contains_key(&cause) {
            return cause;
        }
        LogCause { detail: 0, ..cause }
    }

    /// Reports lines that were left out and forgets who is quiet. Called at each tick; does
    /// something each [`REPORT_EVERY`].
    pub(crate) fn report(&mut self, now: Instant) {
        if self.next_report.is_none_or(|at| at > now) {
            return;
        }
        self.next_report = Some(now + REPORT_EVERY);
        for LeftOut {
            line,
            hyco,
            source,
            count,
        } in self.take_left_out()
        {
            let (hyco, source) = (hyco.map(display), source.map(display));
            info!(line, hyco, source, left_out = count, "log lines left out");
        }
        self.subjects
            .retain(|_, state| !state.bucket.is_full(now, SUBJECT_BURST, SUBJECT_EVERY));
        self.causes
            .retain(|_, state| !state.bucket.is_full(now, CAUSE_BURST, CAUSE_EVERY));
        if self.subjects.is_empty() && self.causes.is_empty() {
            self.next_report = None;
        }
    }

    /// What was left out since the last report: the subjects with most of it, and a sum for each
    /// kind of the others.
    fn take_left_out(&mut self) -> Vec<LeftOut> {
        let mut all: Vec<(&Subject, u64)> = Vec::new();
        let mut sums: HashMap<&'static str, u64> = HashMap::new();
        for (subject, state) in &mut self.subjects {
            match std::mem::take(&mut state.left_out) {
                0 => {}
                count => all.push((subject, count)),
            }
        }
        for (cause, state) in &mut self.causes {
            match std::mem::take(&mut state.left_out) {
                0 => {}
                count => *sums.entry(cause.kind).or_default() += count,
            }
        }
        all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let rest = all.split_off(all.len().min(REPORTED_MAX));
        for (subject, count) in rest {
            *sums.entry(subject.cause.kind).or_default() += count;
        }
        let named = all.into_iter().map(|(subject, count)| LeftOut {
            line: subject.cause.kind,
            hyco: subject.hyco.clone(),
            source: subject.source,
            count,
        });
        let summed = sums.into_iter().map(|(line, count)| LeftOut {
            line,
            hyco: None,
            source: None,
            count,
        });
        named.chain(summed).collect()
    }
}

/// One line of a report.
struct LeftOut {
    line: &'static str,
    hyco: Option<HycoName>,
    source: Option<Network>,
    count: u64,
}

impl Allowance {
    fn new(now: Instant, burst: u32) -> Self {
        Self {
            bucket: Bucket {
                tokens: burst,
                refilled: now,
            },
            left_out: 0,
        }
    }

    fn take(&mut self, now: Instant, burst: u32, every: Duration) -> Option<Permit> {
        if !self.bucket.has(now, burst, every) {
            self.left_out += 1;
            return None;
        }
        self.bucket.take();
        let left_out = std::mem::take(&mut self.left_out);
        Some(Permit {
            left_out: (left_out > 0).then_some(left_out),
        })
    }
}

/// So many at once, and one more in each interval.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    refilled: Instant,
}

impl Bucket {
    fn has(&mut self, now: Instant, burst: u32, every: Duration) -> bool {
        let passed = now.saturating_duration_since(self.refilled);
        let more = u32::try_from(passed.as_nanos() / every.as_nanos()).unwrap_or(u32::MAX);
        if more > 0 {
            self.tokens = self.tokens.saturating_add(more).min(burst);
            // What is left of an interval counts towards the next token.
            self.refilled = every
                .checked_mul(more)
                .and_then(|spent| self.refilled.checked_add(spent))
                .unwrap_or(now);
        }
        self.tokens > 0
    }

    fn take(&mut self) {
        self.tokens = self.tokens.saturating_sub(1);
    }

    fn is_full(&mut self, now: Instant, burst: u32, every: Duration) -> bool {
        self.has(now, burst, every) && self.tokens == burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = "flow refused";

    #[test]
    fn a_flood_leaves_few_lines_and_says_how_many_are_missing() {
        let (mut log, mut now) = (LogLimit::default(), Instant::now());
        let cause = LogCause::new(REFUSED, "no listener");
        let (mut written, mut reported) = (0, 0);
        // 2,000 a second for a minute.
        for _ in 0..120_000 {
            if let Some(permit) = log.permits(now, cause, Some(&name("payroll-sql")), Some(ip(1))) {
                written += 1;
                reported += permit.left_out.unwrap_or(0);
            }
            now += Duration::from_micros(500);
        }
        assert!((45..=55).contains(&written), "{written} lines");
        let rest: u64 = log.take_left_out().iter().map(|part| part.count).sum();
        assert_eq!(written + reported + rest, 120_000);
    }

    #[test]
    fn one_that_floods_hides_neither_others_nor_a_new_cause() {
        let (mut log, now) = (LogLimit::default(), Instant::now());
        let cause = LogCause::new(REFUSED, "no listener");
        let (hyco, other) = (name("payroll-sql"), name("wages-sql"));
        for _ in 0..1_000_000 {
            let _ = log.permits(now, cause, Some(&hyco), Some(ip(1)));
        }
        let mut written = |cause, hyco, source| log.permits(now, cause, Some(hyco), source);
        let fresh = Some(Permit { left_out: None });
        assert_eq!(written(cause, &hyco, Some(ip(1))), None);
        assert_eq!(written(cause, &hyco, Some(ip(2))), fresh);
        assert_eq!(written(cause, &other, Some(ip(1))), fresh);
        let new_cause = LogCause::new(REFUSED, "too many flows");
        assert_eq!(written(new_cause, &hyco, Some(ip(1))), fresh);
        let new_kind = LogCause::new("flow failed", "no listener");
        assert_eq!(written(new_kind, &hyco, Some(ip(1))), fresh);
    }

    #[test]
    fn many_sources_together_fill_neither_the_log_nor_memory() {
        let (mut log, mut now) = (LogLimit::default(), Instant::now());
        let (mut written, mut missing) = (0, 0);
        for n in 0..100_000 {
            let permit = log.permits(now, LogCause::new("session lost", n % 3), None, Some(ip(n)));
            written += u64::from(permit.is_some());
            missing += permit.and_then(|permit| permit.left_out).unwrap_or(0);
            now += Duration::from_micros(100);
        }
        assert!(log.subjects.len() <= SUBJECTS_MAX);
        // A burst of each cause, and 10 s of 5 lines a second.
        assert!((3_000..=3_150).contains(&written), "{written} lines");
        let parts = log.take_left_out();
        assert!(parts.len() <= REPORTED_MAX + 1, "{} lines", parts.len());
        missing += parts.iter().map(|part| part.count).sum::<u64>();
        assert_eq!(written + missing, 100_000);
    }

    #[test]
    fn causes_without_end_are_as_many_as_are_remembered() {
        let (mut log, now) = (LogLimit::default(), Instant::now());
        let mut written = 0;
        for n in 0..100_000 {
            let cause = LogCause::new("no session; trying on", n);
            written += usize::from(log.permits(now, cause, None, None).is_some());
        }
        assert!(log.causes.len() <= CAUSES_MAX + 1);
        assert!(written <= CAUSES_MAX + SUBJECT_BURST as usize, "{written}");
    }

    #[test]
    fn who_is_quiet_is_forgotten() {
        let (mut log, now) = (LogLimit::default(), Instant::now());
        for n in 0..600 {
            let _ = log.permits(now, LogCause::new(REFUSED, n % 5), None, Some(ip(n)));
        }
        log.report(now + REPORT_EVERY);
        assert_eq!(log.subjects.len(), 0, "one token is back after 2 s");
        log.report(now + 60 * REPORT_EVERY);
        assert_eq!(log.causes.len(), 0);
        assert_eq!(log.next_report, None);
    }

    fn name(text: &str) -> HycoName {
        text.parse().unwrap()
    }

    fn ip(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }
}
