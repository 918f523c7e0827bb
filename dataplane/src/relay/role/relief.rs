//! Ends flows that hold memory which others need: of the hybrid connection that holds most the
//! source that holds most, and of that the flow that holds most. So of those that share a session's
//! credit nobody who holds less than an equal share is touched, whatever others hold.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::warn;
use underpass_proto::{FlowCode, HycoName};

use super::{Key, Relay, RelayFlow};
use crate::core::Core;
use crate::flow::End;
use crate::held::HeldUp;
use crate::io::Io;
use crate::join::JoinEnd;
use crate::log_limit::{LogCause, Permit};
use crate::network::Network;
use crate::quic::SessionId;
use crate::quic::config::STREAM_WINDOW;

/// Flows that are ended in one go: each costs a walk over all sources.
const ENDED_MAX: usize = 256;

/// How often in one go flows are picked again because some of those picked move on: each time up to
/// [`ENDED_MAX`] system calls.
const ROUNDS_MAX: usize = 4;

/// A session that is short of credit and got some back is checked again after this time rather than
/// at the next tick: all its flows wait for credit.
const RECHECK_AFTER: Duration = Duration::from_millis(20);

/// Between two looks at the memory of the process: what was freed has gone back by then.
const PROCESS_EVERY: Duration = Duration::from_secs(2);

/// A source whose flow was ended would fill what was freed at once: until none of its flows of that
/// hybrid connection was ended or refused for so long, it gets new ones only while it has few.
const WATCHED_FOR: Duration = Duration::from_secs(10);

/// Few are as many as can hold this share of all credit.
const WATCHED_SHARE: u64 = 8;

/// Sources that are watched.
const WATCHED_MAX: usize = 1_024;

/// For how long a relay that refused or ended something for want of memory says that it is
/// overloaded.
const OVERLOADED_FOR: Duration = Duration::from_secs(3);

/// Who is answerable for a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Source {
    /// Applications that connected here from one network.
    Address(Network),
    /// A sender, whatever application it names.
    Sender(SessionId),
}

impl Source {
    /// An application that connected here.
    pub(super) fn of(address: IpAddr) -> Self {
        Self::Address(Network::of(address))
    }
}

/// Who was found to hold too much, and whether anybody was lately.
#[derive(Debug, Default)]
pub(super) struct Relief {
    watched: HashMap<(HycoName, Source), Watched>,
    overloaded_until: Option<Instant>,
    /// When sessions are checked again, if the last check has freed something.
    next_recheck: Option<Instant>,
    /// When memory of the whole process is looked at again.
    next_of_process: Option<Instant>,
}

/// A source that held too much of a hybrid connection.
#[derive(Debug)]
struct Watched {
    until: Instant,
    /// Flows that it has.
    live: usize,
}

impl Relief {
    /// Whether a source gets no new flow of this hybrid connection just now. `credit_max` is what
    /// all sessions may have.
    pub(super) fn refuses(
        &mut self,
        now: Instant,
        hyco: &HycoName,
        source: Source,
        credit_max: u64,
    ) -> bool {
        let Some(watched) = self.watched(hyco, source) else {
            return false;
        };
        let few = credit_max / WATCHED_SHARE / u64::from(STREAM_WINDOW);
        if watched.live as u64 <= few {
            return false;
        }
        watched.until = now + WATCHED_FOR;
        true
    }

    /// A flow of a source began.
    pub(super) fn note_begun(&mut self, hyco: &HycoName, source: Source) {
        if let Some(watched) = self.watched(hyco, source) {
            watched.live += 1;
        }
    }

    /// A flow of a source is over.
    pub(super) fn note_over(&mut self, hyco: &HycoName, source: Source) {
        if let Some(watched) = self.watched(hyco, source) {
            watched.live = watched.live.saturating_sub(1);
        }
    }

    fn watched(&mut self, hyco: &HycoName, source: Source) -> Option<&mut Watched> {
        if self.watched.is_empty() {
            return None;
        }
        self.watched.get_mut(&(hyco.clone(), source))
    }

    /// Something was refused or ended for want of memory.
    pub(super) fn note_overload(&mut self, now: Instant) {
        self.overloaded_until = Some(now + OVERLOADED_FOR);
    }

    /// When [`Relay::relieve`] is due before the next tick.
    pub(super) fn next_recheck(&self) -> Option<Instant> {
        self.next_recheck
    }

    /// Whether that was lately.
    pub(super) fn is_overloaded(&self, now: Instant) -> bool {
        self.overloaded_until.is_some_and(|until| until > now)
    }

    /// Watches a source from now on; `live` counts its flows, where it is new.
    fn watch(&mut self, now: Instant, holder: &Holder, live: impl FnOnce() -> usize) {
        let until = now + WATCHED_FOR;
        if let Some(watched) = self.watched(&holder.hyco, holder.source) {
            watched.until = until;
        } else if self.watched.len() < WATCHED_MAX {
            let live = live();
            let key = (holder.hyco.clone(), holder.source);
            self.watched.insert(key, Watched { until, live });
        }
    }

    fn forget_old(&mut self, now: Instant) {
        self.watched.retain(|_, watched| watched.until > now);
    }
}

impl Relay {
    /// Ends what is in the way where a session is short of credit, where too much is in hand here,
    /// or where the process takes more memory than it may.
    pub(super) fn relieve<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        self.relief.forget_old(core.now);
        core.in_hand
            .set_max(self.directory.resources.budget.in_hand_max());
        core.resume_hungry();
        self.relieve_sessions(core);
        if let Some(need) = core.in_hand.excess() {
            let held_up = core.held_up_in_hand();
            self.end_largest(core, held_up, need);
        }
        self.relieve_process(core);
    }

    fn relieve_sessions<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        let mut blocked_by_others = 0;
        self.relief.next_recheck = None;
        for (session, need) in core.quic.short_of_credit() {
            let held_up = core.held_up_in(session);
            // Else it is what is on its way that uses the credit up, and comes back as it is read.
            if sum(&held_up) >= need / 2 {
                if self.end_largest(core, held_up, need) {
                    self.relief.next_recheck = Some(core.now + RECHECK_AFTER);
                }
            } else {
                blocked_by_others = need.max(blocked_by_others);
            }
        }
        if blocked_by_others > 0 {
            let held_up = core.held_up_anywhere();
            if sum(&held_up) >= self.directory.resources.budget.credit_max() / 2 {
                self.end_largest(core, held_up, blocked_by_others);
            }
        }
    }

    /// Bytes take more memory than is counted where a few of a large block are all that is left of
    /// it.
    fn relieve_process<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        let is_due = self.relief.next_of_process.is_none_or(|at| at <= core.now);
        if !self.directory.resources.is_tight() || !is_due {
            return;
        }
        self.relief.next_of_process = Some(core.now + PROCESS_EVERY);
        let mut held_up = core.held_up_anywhere();
        held_up.extend(core.held_up_in_hand());
        let need = sum(&held_up) / 4;
        self.end_largest(core, held_up, need);
    }

    /// Ends flows until `need` bytes are free, and gives their sessions that credit again. Whether
    /// any was ended.
    fn end_largest<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        held_up: Vec<HeldUp>,
        need: u64,
    ) -> bool {
        let holders = held_up.into_iter();
        let mut holders: Vec<Holder> = holders.filter_map(|held| holder(core, held)).collect();
        let mut stalled = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let picked = pick(&holders, need);
            let mut moving = picked.clone();
            moving.retain(|holder| !core.has_stalled(&holder.held));
            if moving.is_empty() {
                stalled = picked;
                break;
            }
            holders.retain(|holder| !moving.iter().any(|it| it.held.key == holder.held.key));
        }
        for holder in &stalled {
            self.pressure.flows_ended += 1;
            self.relief
                .watch(core.now, holder, || count_of(core, holder));
            match holder.held.key {
                Key::Flow(key) => core.fail(key, End::Here(FlowCode::Overloaded)),
                Key::Join(key) => core.fail_join(key, JoinEnd::Here(FlowCode::Overloaded)),
            }
        }
        if let Some(first) = stalled.first() {
            self.relief.note_overload(core.now);
            let cause = LogCause::new("memory is short", ());
            let log = &mut self.peers.log;
            if let Some(Permit { left_out }) = log.permits(core.now, cause, Some(&first.hyco), None)
            {
                let bytes: u64 = stalled.iter().map(|holder| holder.held.bytes).sum();
                warn!(
                    hyco = %first.hyco, flows = stalled.len(), kib = bytes >> 10, left_out,
                    "memory is short: stalled flows are ended, largest first"
                );
            }
        }
        // The sessions may go on with what the flows held.
        let sessions: HashSet<SessionId> = stalled.iter().map(|it| it.held.session).collect();
        for &session in &sessions {
            core.quic.announce_credit(core.now, session);
        }
        !sessions.is_empty()
    }
}

/// How many flows a holder's source has of its hybrid connection.
fn count_of<I: Io>(core: &Core<I, RelayFlow>, holder: &Holder) -> usize {
    let (hyco, source) = (&holder.hyco, holder.source);
    let is_its = |data: &RelayFlow, of: Source| data.hyco == *hyco && of == source;
    let flows = core.flows.iter().filter(|(_, flow)| {
        let data = &flow.data;
        is_its(data, Source::of(data.application.ip()))
    });
    let joins = core
        .joins
        .iter()
        .filter(|(_, join)| is_its(&join.data, Source::Sender(join.sender.0)));
    flows.count() + joins.count()
}

fn sum(held_up: &[HeldUp]) -> u64 {
    held_up.iter().map(|held| held.bytes).sum()
}

/// A flow that is held up, and who it belongs to.
#[derive(Clone, Debug)]
struct Holder {
    held: HeldUp,
    hyco: HycoName,
    source: Source,
}

fn holder<I: Io>(core: &Core<I, RelayFlow>, held: HeldUp) -> Option<Holder> {
    let (hyco, source) = match held.key {
        Key::Flow(key) => {
            let data = &core.flows.get(key)?.data;
            (&data.hyco, Source::of(data.application.ip()))
        }
        Key::Join(key) => {
            let join = core.joins.get(key)?;
            (&join.data.hyco, Source::Sender(join.sender.0))
        }
    };
    let hyco = hyco.clone();
    Some(Holder { held, hyco, source })
}

/// What one source holds of one hybrid connection.
struct Group {
    hyco: usize,
    bytes: u64,
    /// The one to end first is the last: the largest, of equals the one that has stood still for
    /// longest.
    holders: Vec<usize>,
}

/// Those to end so that `need` bytes are free; at most half of what all hold, so that who holds
/// little is left when that does not do.
fn pick(holders: &[Holder], need: u64) -> Vec<Holder> {
    let all: u64 = holders.iter().map(|holder| holder.held.bytes).sum();
    let need = need.min(all / 2);
    let order = |at: usize| {
        let held = &holders[at].held;
        (held.bytes, Reverse(held.since))
    };
    let (mut hyco_bytes, mut groups) = grouped(holders);
    for group in &mut groups {
        group.holders.sort_by_key(|at| order(*at));
    }
    let mut picked = Vec::new();
    let mut freed = 0;
    while freed < need && picked.len() < ENDED_MAX {
        let largest = groups
            .iter_mut()
            .filter(|group| !group.holders.is_empty())
            .max_by_key(|group| {
                let last = group.holders.last().map(|at| order(*at));
                (hyco_bytes[group.hyco], group.bytes, last)
            });
        let Some(group) = largest else { break };
        let Some(holder) = group.holders.pop().map(|at| &holders[at]) else {
            break;
        };
        let bytes = holder.held.bytes;
        freed += bytes;
        group.bytes -= bytes;
        hyco_bytes[group.hyco] -= bytes;
        picked.push(holder.clone());
    }
    picked
}

/// What each hybrid connection holds, and each source of it.
fn grouped(holders: &[Holder]) -> (Vec<u64>, Vec<Group>) {
    let mut hycos: HashMap<&HycoName, usize> = HashMap::new();
    let mut hyco_bytes = Vec::new();
    let mut by_source: HashMap<(usize, Source), usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (at, holder) in holders.iter().enumerate() {
        let hyco = *hycos.entry(&holder.hyco).or_insert_with(|| {
            hyco_bytes.push(0);
            hyco_bytes.len() - 1
        });
        let group = *by_source.entry((hyco, holder.source)).or_insert_with(|| {
            groups.push(Group {
                hyco,
                bytes: 0,
                holders: Vec::new(),
            });
            groups.len() - 1
        });
        hyco_bytes[hyco] += holder.held.bytes;
        groups[group].bytes += holder.held.bytes;
        groups[group].holders.push(at);
    }
    (hyco_bytes, groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowKey;

    #[test]
    fn a_watched_source_gets_new_flows_only_while_it_has_few() {
        let now = Instant::now();
        let mut relief = Relief::default();
        let credit_max = 8 * 3 * u64::from(STREAM_WINDOW);
        let greedy = holders(&[("payroll-sql", 1, 2_000, 1)]).remove(0);
        let (hyco, source) = (greedy.hyco.clone(), greedy.source);
        assert!(!relief.refuses(now, &hyco, source, credit_max));
        relief.watch(now, &greedy, || 5);
        assert!(relief.refuses(now, &hyco, source, credit_max));
        let other = Source::of([10, 0, 0, 2].into());
        assert!(!relief.refuses(now, &hyco, other, credit_max));
        relief.note_over(&hyco, source);
        relief.note_over(&hyco, source);
        assert!(!relief.refuses(now, &hyco, source, credit_max));
        relief.note_begun(&hyco, source);
        assert!(relief.refuses(now, &hyco, source, credit_max));
        // Who is refused stays watched, who is quiet does not.
        relief.forget_old(now + WATCHED_FOR / 2);
        let later = now + WATCHED_FOR / 2;
        assert!(relief.refuses(later, &hyco, source, credit_max));
        relief.forget_old(now + WATCHED_FOR);
        assert!(relief.refuses(now + WATCHED_FOR, &hyco, source, credit_max));
        relief.forget_old(now + 2 * WATCHED_FOR);
        assert!(!relief.refuses(now + 2 * WATCHED_FOR, &hyco, source, credit_max));
    }

    fn holders(rows: &[(&str, u8, u64, usize)]) -> Vec<Holder> {
        let since = Instant::now();
        let mut holders = Vec::new();
        for &(hyco, address, bytes, count) in rows {
            for _ in 0..count {
                let index = u32::try_from(holders.len()).unwrap();
                let generation = 1;
                holders.push(Holder {
                    held: HeldUp {
                        key: Key::Flow(FlowKey { index, generation }),
                        session: SessionId::of_test(1),
                        socket: None,
                        bytes,
                        since,
                    },
                    hyco: hyco.parse().unwrap(),
                    source: Source::of([10, 0, 0, address].into()),
                });
            }
        }
        holders
    }

    fn counts(picked: &[Holder]) -> Vec<(String, Source, usize)> {
        let mut counts: Vec<(String, Source, usize)> = Vec::new();
        for holder in picked {
            let name = holder.hyco.to_string();
            let row = counts
                .iter_mut()
                .find(|row| row.0 == name && row.1 == holder.source);
            match row {
                Some(row) => row.2 += 1,
                None => counts.push((name, holder.source, 1)),
            }
        }
        counts
    }

    #[test]
    fn the_source_that_holds_most_of_the_hybrid_connection_that_holds_most_pays() {
        let rows = [
            ("payroll-sql", 1, 2_000, 100),
            ("payroll-sql", 2, 2_000, 5),
            ("other-way", 1, 2_000, 20),
        ];
        let picked = pick(&holders(&rows), 100_000);
        let first = Source::of([10, 0, 0, 1].into());
        assert_eq!(counts(&picked), [("payroll-sql".to_owned(), first, 50)]);
    }

    #[test]
    fn who_holds_less_than_an_equal_share_is_never_picked() {
        let rows = [
            ("payroll-sql", 1, 2_000, 30),
            ("payroll-sql", 2, 500, 1),
            ("other-way", 3, 2_000, 30),
            ("third-way", 4, 2_000, 3),
        ];
        // Half of all.
        let picked = pick(&holders(&rows), 63_000);
        let small = |holder: &&Holder| {
            let source = holder.source;
            source == Source::of([10, 0, 0, 2].into()) || source == Source::of([10, 0, 0, 4].into())
        };
        assert_eq!(picked.iter().filter(small).count(), 0);
        assert_eq!(picked.len(), 32);
    }

    #[test]
    fn who_holds_next_to_nothing_is_left_though_more_was_needed_than_all_hold() {
        let rows = [("payroll-sql", 1, 2_000, 10), ("other-way", 2, 8, 1)];
        let picked = pick(&holders(&rows), u64::MAX);
        let first = Source::of([10, 0, 0, 1].into());
        assert_eq!(counts(&picked), [("payroll-sql".to_owned(), first, 6)]);
    }

    #[test]
    fn of_one_source_the_flow_that_holds_most_goes_first_and_no_more_than_needed() {
        let rows = [("payroll-sql", 1, 500, 10), ("payroll-sql", 1, 2_000, 2)];
        let picked = pick(&holders(&rows), 3_000);
        let bytes: Vec<u64> = picked.iter().map(|holder| holder.held.bytes).collect();
        assert_eq!(bytes, [2_000, 2_000]);
    }
}
