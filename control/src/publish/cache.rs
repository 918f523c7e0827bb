//! What one file said, read again only when it changed, and its last good content.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::files::{Fault, disk};

/// A file that changed this recently is read again at the next look even if its stamp is the same:
/// clocks of file systems are coarse.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// A file that vanished is gone only after this: some editors save by removing and writing anew.
pub(crate) const GONE_AFTER: Duration = Duration::from_millis(200);

/// One file, or a few that belong together.
#[derive(Debug)]
pub(crate) struct Cached<T> {
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
pub(crate) enum Presence {
    /// It is.
    Here,
    /// It was a moment ago: to be looked at again soon.
    Vanished,
    /// It is not.
    Gone,
}

impl<T> Cached<T> {
    pub(crate) fn new() -> Self {
        Self {
            seen: None,
            missing_since: None,
            good: None,
            faults: Vec::new(),
        }
    }

    /// Looks at the files, and reads them with `read` if one changed.
    pub(crate) fn look(
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
        // The stamps from before the reading: a change in between shows at the next look. Without
        // any, the next look reads again.
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

    /// Whether a file was never there, or is gone for good.
    pub(crate) fn is_gone(&mut self, path: &Path, now: Instant) -> bool {
        matches!(disk::stamp(path), Ok(None)) && self.miss(now) == Presence::Gone
    }

    /// The last good content.
    pub(crate) fn good(&self) -> Option<&T> {
        self.good.as_ref()
    }

    /// The present content, if it is good.
    pub(crate) fn present(&self) -> Option<&T> {
        self.good.as_ref().filter(|_| self.faults.is_empty())
    }

    /// What is wrong with the present content.
    pub(crate) fn faults(&self) -> &[Fault] {
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_saved_by_removing_and_writing_is_never_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        let mut cached = Cached::new();
        let start = Instant::now();
        let mut look = |after: Duration| {
            cached.look(&[&path], start + after, || {
                Ok(fs::read_to_string(&path).unwrap())
            })
        };
        fs::write(&path, "one").unwrap();
        assert_eq!(look(Duration::ZERO), Presence::Here);
        fs::remove_file(&path).unwrap();
        assert_eq!(look(Duration::from_millis(1)), Presence::Vanished);
        fs::write(&path, "two").unwrap();
        assert_eq!(look(GONE_AFTER * 2), Presence::Here);
        fs::remove_file(&path).unwrap();
        assert_eq!(look(GONE_AFTER * 3), Presence::Vanished);
        assert_eq!(look(GONE_AFTER * 4), Presence::Gone);
        assert_eq!(cached.good().map(String::as_str), Some("two"));
    }

    #[test]
    fn a_file_that_was_never_there_is_gone_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut cached = Cached::<()>::new();
        assert_eq!(
            cached.look(&[&folder.path().join("a")], Instant::now(), || Ok(())),
            Presence::Gone
        );
    }

    #[test]
    fn a_file_that_rests_is_read_once_and_a_change_of_mode_is_a_change() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, "one").unwrap();
        let reads = Cell::new(0);
        let mut cached = Cached::new();
        let mut look = || {
            cached.look(&[&path], Instant::now(), || {
                reads.set(reads.get() + 1);
                Ok(())
            });
            // As if time had passed.
            if let Some(seen) = &mut cached.seen {
                seen.settled = true;
            }
            reads.get()
        };
        assert_eq!((look(), look()), (1, 1));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!((look(), look()), (2, 2));
    }

    #[test]
    fn a_bad_content_keeps_the_last_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, "one").unwrap();
        let mut cached = Cached::new();
        cached.look(&[&path], Instant::now(), || Ok(1));
        cached.look(&[&path], Instant::now(), || {
            Err(vec![Fault::whole("a.toml", "bad")])
        });
        assert_eq!(
            (cached.good(), cached.present(), cached.faults().len()),
            (Some(&1), None, 1)
        );
    }
}
