//! Tells of what a relay turned away to stay within its limits: in the log when it rises, at most now and then. The numbers themselves are in the report.

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
}

impl Told {
    /// Looks at what there is now; tells what is new.
    pub(super) fn look(&mut self, now: Instant, pressure: Pressure) {
        let due = |at| now.saturating_duration_since(at) >= TELL_EVERY;
        if !self.at.is_none_or(due) {
            return;
        }
        let new = pressure.since(&self.last);
        if new.is_trouble() {
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
                panics = new.panics,
                "the relay turned some away to stay within its limits"
            );
        }
    }
}
