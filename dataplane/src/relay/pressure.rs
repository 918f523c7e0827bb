//! Tells of what a relay turned away to stay within its limits: in the log when it rises, at most
//! now and then. The numbers themselves are in the report.

use std::time::{Duration, Instant};

use tracing::warn;
use underpass_proto::snapshot::Pressure;

/// How often it is told while it goes on.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What was told last, and when.
#[derive(Debug, Default)]
pub(super) struct Told {
    last: Pressure,
    at: Option<Instant>,
    /// What the last lines were about.
    kinds: [bool; Pressure::TROUBLES],
}

impl Told {
    /// Looks at what there is now; tells what is new.
    pub(super) fn look(&mut self, now: Instant, pressure: Pressure) {
        let due = |at| now.saturating_duration_since(at) >= TELL_EVERY;
        let new = pressure.since(&self.last);
        // What was not part of the last line is news, and does not wait.
        let is_new_kind = kinds(&new)
            .iter()
            .zip(self.kinds)
            .any(|(new, told)| *new && !told);
        if !self.at.is_none_or(due) && !is_new_kind {
            return;
        }
        if new.is_trouble() {
            self.kinds = if self.at.is_none_or(due) {
                kinds(&new)
            } else {
                std::array::from_fn(|n| self.kinds[n] || kinds(&new)[n])
            };
            self.at = Some(now);
            self.last = pressure;
            warn!(
                handshakes_begun = new.handshakes_begun,
                handshakes_asked = new.handshakes_asked,
                handshakes_ignored = new.handshakes_ignored,
                handshakes_unfinished = new.handshakes_unfinished,
                opens_refused = new.opens_refused,
                sessions_sent_away = new.sessions_sent_away,
                accepts_failed = new.accepts_failed,
                flows_ended = new.flows_ended,
                panics = new.panics,
                "connections or flows refused to stay within limits"
            );
        }
    }
}

/// Which kinds of trouble there are.
fn kinds(pressure: &Pressure) -> [bool; Pressure::TROUBLES] {
    pressure.troubles().map(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_kind_of_trouble_does_not_wait_behind_an_old_one() {
        let (mut told, start) = (Told::default(), Instant::now());
        let mut pressure = Pressure {
            handshakes_asked: 1,
            ..Pressure::default()
        };
        told.look(start, pressure);
        assert_eq!(told.last, pressure);
        pressure.handshakes_asked = 1_000;
        let soon = start + Duration::from_secs(1);
        told.look(soon, pressure);
        assert_eq!(told.last.handshakes_asked, 1, "the same waits");
        pressure.sessions_sent_away = 1;
        told.look(soon, pressure);
        assert_eq!(told.last, pressure);
        pressure.handshakes_asked = 2_000;
        pressure.sessions_sent_away = 2;
        told.look(soon, pressure);
        assert_eq!(told.last.sessions_sent_away, 1, "both are old now");
        told.look(soon + TELL_EVERY, pressure);
        assert_eq!(told.last, pressure);
        pressure.flows_ended = 1;
        told.look(soon + TELL_EVERY, pressure);
        assert_eq!(told.last, pressure, "flows that were ended are news");
    }
}
