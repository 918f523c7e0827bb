//! The credit of one session (RFC 9000, section 4): what its peer may send before it is read here.
//! It grows when the peer says that it has used it up (DATA_BLOCKED) and shrinks when it was not
//! needed for a while, or when other sessions need it more.
//!
//! Credit that was given cannot be taken back. A smaller window is a debt, which the protocol core
//! pays with what is read from then on; until it is paid the peer has the window and the debt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::{Connection, VarInt};

use crate::budget::Budget;

/// A session that has not used its credit up for so long gives half of what it got beyond its first
/// back.
const UNUSED_AFTER: Duration = Duration::from_secs(10);

/// The credit of a session that was dialled from elsewhere.
#[derive(Debug)]
pub(super) struct Credit {
    budget: Arc<Budget>,
    first: u64,
    window: u64,
    debt: u64,
    /// Bytes read, ever.
    read: u64,
    /// Of those, how many had paid debt when it was last looked at.
    read_settled: u64,
    /// DATA_BLOCKED frames that were answered.
    blocked_frames: u64,
    blocked_at: Instant,
    /// It got less than it wanted when so many bytes had been read.
    short_since: Option<u64>,
}

impl Credit {
    /// Of a session that begins with a window of `first` bytes, which the budget gave.
    pub(super) fn new(budget: Arc<Budget>, first: u64, now: Instant) -> Self {
        Self {
            budget,
            first,
            window: first,
            debt: 0,
            read: 0,
            read_settled: 0,
            blocked_frames: 0,
            blocked_at: now,
            short_since: None,
        }
    }

    /// So many bytes were read.
    pub(super) fn note_read(&mut self, bytes: usize) {
        self.read += bytes as u64;
    }

    /// The most that its session may keep until it is acknowledged.
    pub(super) fn send_window_max(&self) -> u64 {
        self.budget.send_window_max()
    }

    /// Gives more, where the peer has asked since the last look. `blocked_frames` is how often it
    /// ever did.
    pub(super) fn extend(
        &mut self,
        now: Instant,
        blocked_frames: u64,
        connection: &mut Connection,
    ) {
        if blocked_frames == self.blocked_frames {
            return;
        }
        self.blocked_frames = blocked_frames;
        self.blocked_at = now;
        self.settle();
        let granted = self.budget.more(self.window + self.debt);
        self.short_since = granted.short.then_some(self.read);
        if granted.bytes > 0 {
            self.window += granted.bytes;
            connection.set_receive_window(var_int(self.window));
        }
    }

    /// Makes the window smaller where it was not needed for a while, or where it is more than the
    /// session's share by now.
    pub(super) fn shrink(&mut self, now: Instant, connection: &mut Connection) {
        self.settle();
        let unused = now.saturating_duration_since(self.blocked_at) >= UNUSED_AFTER;
        let wanted = if unused {
            self.blocked_at = now;
            self.window / 2
        } else {
            self.window
        };
        let window = wanted.min(self.budget.share()).max(self.first);
        // Small steps are not worth a frame.
        if window < self.window - self.window / 8 {
            self.debt += self.window - window;
            self.window = window;
            connection.set_receive_window(var_int(window));
        }
    }

    /// Whether it got less than it wanted.
    pub(super) fn is_short(&self) -> bool {
        self.short_since.is_some()
    }

    /// So many bytes that nobody read were thrown away, which is credit again. The peer learns of
    /// it at once, however little it is.
    pub(super) fn note_freed(&mut self, bytes: u64, connection: &mut Connection) {
        self.read += bytes;
        self.settle();
        // The core announces a limit that a larger window moves, and no other before it has moved
        // by an eighth of the window.
        connection.set_receive_window(var_int(self.window - 1));
        connection.set_receive_window(var_int(self.window));
    }

    /// How many bytes should be freed for the session to go on, if it is short of credit.
    pub(super) fn shortage(&mut self) -> Option<u64> {
        self.settle();
        let since = self.short_since?;
        let need = self.window / 4 + self.debt;
        // What was read meanwhile is credit again, of which the peer knows; if that does not do, it
        // asks again.
        if self.read - since > need {
            self.short_since = None;
        }
        self.short_since.map(|_| need)
    }

    fn settle(&mut self) {
        let paid = (self.read - self.read_settled).min(self.debt);
        self.read_settled = self.read;
        self.debt -= paid;
        if paid > 0 {
            self.budget.give_back(paid);
        }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.budget.end(self.window + self.debt);
    }
}

fn var_int(bytes: u64) -> VarInt {
    VarInt::from_u64(bytes).unwrap_or(VarInt::MAX)
}
