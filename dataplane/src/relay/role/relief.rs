//! Ends flows that hold memory which others need: of the hybrid connection that holds most the
//! source that holds most, and of that the flow that holds most. So nobody who holds less than an
//! equal share is touched, whatever others hold.

use std::collections::HashMap;
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
use crate::quic::SessionId;

/// Flows that are ended in one go: each costs a walk over those that are left, 5 ms in all for
/// 10,000.
const ENDED_MAX: usize = 256;

/// A source whose flow was ended gets no new ones of that hybrid connection for so long; it would
/// fill what was freed at once.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// Sources that are remembered so.
const REFUSED_MAX: usize = 1_024;

/// For how long a relay that refused or ended something for want of memory says that it is
/// overloaded.
const OVERLOADED_FOR: Duration = Duration::from_secs(3);

/// Who is answerable for a flow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Source {
    /// An application that connected here.
    Address(IpAddr),
    /// A sender, whatever application it names.
    Sender(SessionId),
}

/// Who was found to hold too much, and whether anybody was lately.
#[derive(Debug, Default)]
pub(super) struct Relief {
    refused: HashMap<(HycoName, Source), Instant>,
    overloaded_until: Option<Instant>,
}

impl Relief {
    /// Whether a source gets no new flows of this hybrid connection just now.
    pub(super) fn refuses(&self, hyco: &HycoName, source: Source) -> bool {
        !self.refused.is_empty() && self.refused.contains_key(&(hyco.clone(), source))
    }

    /// Something was refused or ended for want of memory.
    pub(super) fn note_overload(&mut self, now: Instant) {
        self.overloaded_until = Some(now + OVERLOADED_FOR);
    }

    /// Whether that was lately.
    pub(super) fn is_overloaded(&self, now: Instant) -> bool {
        self.overloaded_until.is_some_and(|until| until > now)
    }

    fn refuse(&mut self, now: Instant, hyco: HycoName, source: Source) {
        if self.refused.len() < REFUSED_MAX {
            self.refused.insert((hyco, source), now + REFUSED_FOR);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        self.refused.retain(|_, until| *until > now);
    }
}

impl Relay {
    /// Looks whether a session is short of credit or too much is in hand here, and ends what is in
    /// the way.
    pub(super) fn relieve<I: Io>(&mut self, core: &mut Core<I, RelayFlow>) {
        self.relief.forget_old(core.now);
        core.in_hand
            .set_max(self.directory.means.budget.in_hand_max());
        core.resume_hungry();
        for (session, need) in core.quic.short_of_credit() {
            let held_up = core.held_up_in(session);
            let all: u64 = held_up.iter().map(|held| held.bytes).sum();
            // Else it is what is on its way that uses the credit up, and comes back as it is read.
            if all >= need / 2 {
                let freed = self.end_largest(core, &held_up, need);
                core.quic.note_freed(session, freed);
            }
        }
        if let Some(need) = core.in_hand.excess() {
            let held_up = core.held_up_in_hand();
            self.end_largest(core, &held_up, need);
        }
    }

    /// How many bytes were freed.
    fn end_largest<I: Io>(
        &mut self,
        core: &mut Core<I, RelayFlow>,
        held_up: &[HeldUp],
        need: u64,
    ) -> u64 {
        let holders: Vec<Holder> = held_up
            .iter()
            .filter_map(|held| holder(core, *held))
            .collect();
        let picked = pick(&holders, need);
        let mut freed = 0;
        for holder in &picked {
            freed += holder.held.bytes;
            self.pressure.flows_ended += 1;
            self.relief
                .refuse(core.now, holder.hyco.clone(), holder.source);
            match holder.held.key {
                Key::Flow(key) => core.fail(key, End::Here(FlowCode::Overloaded)),
                Key::Join(key) => core.fail_join(key, JoinEnd::Here(FlowCode::Overloaded)),
            }
        }
        if let Some(first) = picked.first() {
            self.relief.note_overload(core.now);
            warn!(
                hyco = %first.hyco, flows = picked.len(), kib = freed >> 10,
                "memory is short: flows whose reader takes nothing are ended, those that hold most first"
            );
        }
        freed
    }
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
            (&data.hyco, Source::Address(data.application.ip()))
        }
        Key::Join(key) => {
            let join = core.joins.get(key)?;
            (&join.data.hyco, Source::Sender(join.sender.0))
        }
    };
    let hyco = hyco.clone();
    Some(Holder { held, hyco, source })
}

/// Those to end so that `need` bytes are free; at most half of what all hold, so that who holds
/// little is left when that does not do.
fn pick(holders: &[Holder], need: u64) -> Vec<Holder> {
    let all: u64 = holders.iter().map(|holder| holder.held.bytes).sum();
    let need = need.min(all / 2);
    let mut by_hyco: HashMap<&HycoName, u64> = HashMap::new();
    let mut by_source: HashMap<(&HycoName, Source), u64> = HashMap::new();
    for holder in holders {
        *by_hyco.entry(&holder.hyco).or_default() += holder.held.bytes;
        *by_source.entry((&holder.hyco, holder.source)).or_default() += holder.held.bytes;
    }
    let mut left: Vec<&Holder> = holders.iter().collect();
    let mut picked = Vec::new();
    let mut freed = 0;
    while freed < need && picked.len() < ENDED_MAX {
        let rank = |holder: &&&Holder| {
            let source = (&holder.hyco, holder.source);
            let held = &holder.held;
            // Of equals the one that has stood still for longest.
            let age = std::cmp::Reverse(held.since);
            (by_hyco[source.0], by_source[&source], held.bytes, age)
        };
        let largest = left
            .iter()
            .enumerate()
            .max_by_key(|(_, holder)| rank(holder));
        let Some((at, _)) = largest else { break };
        let holder = left.swap_remove(at);
        let bytes = holder.held.bytes;
        freed += bytes;
        if let Some(sum) = by_hyco.get_mut(&holder.hyco) {
            *sum -= bytes;
        }
        if let Some(sum) = by_source.get_mut(&(&holder.hyco, holder.source)) {
            *sum -= bytes;
        }
        picked.push(holder.clone());
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::FlowKey;

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
                        bytes,
                        since,
                    },
                    hyco: hyco.parse().unwrap(),
                    source: Source::Address([10, 0, 0, address].into()),
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
        let first = Source::Address([10, 0, 0, 1].into());
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
            source == Source::Address([10, 0, 0, 2].into())
                || source == Source::Address([10, 0, 0, 4].into())
        };
        assert_eq!(picked.iter().filter(small).count(), 0);
        assert_eq!(picked.len(), 32);
    }

    #[test]
    fn who_holds_next_to_nothing_is_left_though_more_was_needed_than_all_hold() {
        let rows = [("payroll-sql", 1, 2_000, 10), ("other-way", 2, 8, 1)];
        let picked = pick(&holders(&rows), u64::MAX);
        let first = Source::Address([10, 0, 0, 1].into());
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
