//! The one timer of a ring. It stays armed from one wait to the next and is moved only where
//! something is due well before it: a deadline that the kernel is given with each wait has the
//! processor's timer programmed twice, when the wait begins and when it ends
//! (docs/design/choices.md has what that costs).

use std::time::{Duration, Instant};

use io_uring::opcode;
use io_uring::types::Timespec;

use super::queue::{Kind, Queue, Token};

/// The part of the time until a deadline by which it may be told late.
const LATE: u32 = 4;

/// The most that a deadline is told late.
const LATE_MAX: Duration = Duration::from_millis(10);

/// The timer.
pub(super) struct Alarm {
    /// When it goes off.
    armed: Option<Instant>,
    /// What the kernel reads when it takes the operation.
    after: Box<Timespec>,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self {
            armed: None,
            after: Box::new(Timespec::new()),
        }
    }

    /// Sees to it that the worker wakes at `deadline`, or not much later. It may wake before.
    pub(super) fn set(&mut self, queue: &mut Queue, deadline: Instant, now: Instant) {
        let after = deadline.saturating_duration_since(now);
        let late = (after / LATE).min(LATE_MAX);
        let token = Token::of_slot(Kind::Alarm, 0);
        match self.armed {
            Some(armed) if armed <= deadline + late => return,
            Some(_) => {
                *self.after = Timespec::from(after);
                let entry = opcode::TimeoutUpdate::new(token.number(), &raw const *self.after);
                let moved = Token::of_slot(Kind::AlarmMoved, 0);
                // Where it fails the alarm has gone off, which is told by its own completion.
                // SAFETY: the time is boxed and outlives the ring's operations.
                unsafe { queue.push_quiet(moved, entry.build(), None) };
            }
            None => {
                *self.after = Timespec::from(after);
                let entry = opcode::Timeout::new(&raw const *self.after).build();
                // SAFETY: the time is boxed and outlives the ring's operations.
                unsafe { queue.push(token, entry) };
            }
        }
        self.armed = Some(deadline);
    }

    /// It went off.
    pub(super) fn rang(&mut self) {
        self.armed = None;
    }
}
