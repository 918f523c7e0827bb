//! What one file said, read again only when it changed, and its last good content.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::files::{Fault, disk};

/// A file that changed this recently is read again at the next look even if its stamp is the same: clocks of file systems are coarse.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// A file that vanished is gone only after this: some editors save by removing and writing anew.
pub(super) const GONE_AFTER: Duration = Duration::from_millis(200);

/// One file, or a few that belong together.
#[derive(Debug)]
pub(super) struct Cached<T> {
    seen: Option<Seen>,
    missing_since: Option<Instant>,
    good: Option<T>,
    faults: Vec<Fault>,
}

#[derive(Debug)]
struct Seen {
    stamps: Vec<disk::Stamp>,
    settled: bool,
}

/// Whether a file is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    /// It is.
    Here,
    /// It was a moment ago: to be looked at again soon.
    Vanished,
    /// It is not.
    Gone,
}

impl<T> Cached<T> {
    pub(super) fn new() -> Self {
        Self {
            seen: None,
            missing_since: None,
            good: None,
            faults: Vec::new(),
        }
    }

    /// Looks at the files, and reads them with `read` if one changed.
    pub(super) fn look(
        &mut self,
        paths: &[&Path],
        now: Instant,
        read: impl FnOnce() -> Result<T, Vec<Fault>>,
    ) -> Presence {
        let stamps: io::Result<Option<Vec<disk::Stamp>>> =
            paths.iter().map(|path| disk::stamp(path)).collect();
        if matches!(stamps, Ok(None)) {
            return self.miss(now);
        }
        self.missing_since = None;
        let stamps = stamps.ok().flatten();
        if let (Some(seen), Some(stamps)) = (&self.seen, &stamps)
            && seen.settled
            && seen.stamps == *stamps
        {
            return Presence::Here;
        }
        match read() {
            Ok(good) => (self.good, self.faults) = (Some(good), Vec::new()),
            Err(faults) => self.faults = faults,
        }
        // The stamps from before the reading: a change in between shows at the next look. Without any, the next look reads again.
        let stamps = stamps.unwrap_or_default();
        self.seen = Some(Seen {
            settled: !stamps.is_empty() && stamps.iter().all(is_settled),
            stamps,
        });
        Presence::Here
    }

    fn miss(&mut self, now: Instant) -> Presence {
        let ever_seen = self.seen.is_some();
        let since = *self.missing_since.get_or_insert(now);
        if ever_seen && now.duration_since(since) < GONE_AFTER {
            Presence::Vanished
        } else {
            Presence::Gone
        }
    }

    /// The last good content.
    pub(super) fn good(&self) -> Option<&T> {
        self.good.as_ref()
    }

    /// The present content, if it is good.
    pub(super) fn present(&self) -> Option<&T> {
        self.good.as_ref().filter(|_| self.faults.is_empty())
    }

    /// What is wrong with the present content.
    pub(super) fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

fn is_settled(stamp: &disk::Stamp) -> bool {
    let Ok(now) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) else {
        return false;
    };
    let changed = Duration::from_secs(u64::try_from(stamp.changed_ns.0).unwrap_or(0));
    now.checked_sub(changed)
        .is_some_and(|age| age > SETTLED_AFTER)
}
