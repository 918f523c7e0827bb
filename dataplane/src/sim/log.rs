//! What happened, event by event: a sum over all of it, by which two runs are compared, and the
//! last lines, to find the cause.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::hash::Hasher as _;
use std::time::Duration;

use rustc_hash::FxHasher;

/// Lines that are kept.
const KEPT: usize = 400;

/// The log of one run.
#[derive(Default)]
pub(super) struct Log {
    lines: VecDeque<String>,
    sum: FxHasher,
    count: u64,
    /// Says every line at once.
    pub(super) loud: bool,
}

impl Log {
    /// One more event.
    pub(super) fn note(&mut self, age: Duration, event: fmt::Arguments<'_>) {
        let mut line = if self.lines.len() == KEPT {
            let mut line = self.lines.pop_front().unwrap_or_default();
            line.clear();
            line
        } else {
            String::new()
        };
        let _ = write!(line, "{:>13.6} {event}", age.as_secs_f64());
        if self.loud {
            println!("{line}");
        }
        self.sum.write(line.as_bytes());
        self.count += 1;
        self.lines.push_back(line);
    }

    /// Says the same of two runs that did the same: how many events, and their sum.
    pub(super) fn sum(&self) -> (u64, u64) {
        (self.count, self.sum.finish())
    }

    /// The last `count` lines.
    pub(super) fn tail(&self, count: usize) -> String {
        let skip = self.lines.len().saturating_sub(count);
        let lines: Vec<&str> = self.lines.iter().skip(skip).map(String::as_str).collect();
        lines.join("\n")
    }
}
