//! Tells when files in the directory may have changed: at once where the kernel says so, else each
//! second, or less often where looking takes long.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::warn;

/// Everything is looked at this often even when nothing was heard: watches get lost with folders,
/// and network file systems tell nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where the kernel tells of changes, looking takes at most one part of so many of the time: with
/// 10,000 definitions it would be half a core.
const LOOK_SHARE: u32 = 20;

/// Longest time between two looks: a lost watch is noticed that late.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(10);

const _: () = assert!(LOOK_EVERY.as_millis() <= LOOK_EVERY_MAX.as_millis());

/// After the first word of a change, others are waited for this long: one saving is several events.
const GATHER: Duration = Duration::from_millis(50);

/// All watches of this process: a signal is the process's, and so are they. One or two at a time.
static WATCHES: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// A watch, as long as it is there, with whether it is to look at once, and how to wake it.
type Known = (Weak<AtomicBool>, Sender<()>);

/// The same for those who look by themselves now and then, such as the REST API at its certificate.
pub(crate) static LOOK_NOW: Notify = Notify::const_new();

/// Makes all watches of this process look at once. Answers how many there are.
pub(crate) fn look_now() -> usize {
    LOOK_NOW.notify_one();
    let watches = watches();
    for (look_now, wake) in watches.iter() {
        if let Some(look_now) = look_now.upgrade() {
            look_now.store(true, Ordering::Relaxed);
        }
        let _ = wake.try_send(()); // Full: it is being woken.
    }
    watches.len()
}

/// Those that are there.
fn watches() -> MutexGuard<'static, Vec<Known>> {
    let mut watches = WATCHES.lock().unwrap_or_else(PoisonError::into_inner);
    watches.retain(|(watch, _)| watch.strong_count() > 0);
    watches
}

/// What ended a wait for a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaitEnd {
    /// The channel that was watched beside.
    Stopped,
    /// [`look_now`].
    Requested,
    /// A change, or time.
    Due,
}

/// Watches a few folders, not what is below them.
pub(crate) struct FolderWatch {
    folders: Vec<PathBuf>,
    watcher: Option<notify::RecommendedWatcher>,
    heard: Receiver<()>,
    look_now: Arc<AtomicBool>,
    _wake: Sender<()>,
    watched: HashMap<PathBuf, (u64, u64)>,
    /// What the last look took.
    look_took: Duration,
}

impl FolderWatch {
    /// Starts to watch. Where the kernel's notice cannot be had, looks each second.
    pub(crate) fn new(folders: Vec<PathBuf>) -> Self {
        // One word is enough: it says that something changed, not what.
        let (tell, heard) = bounded(1);
        let look_now = Arc::new(AtomicBool::new(false));
        // Without folders there is nothing to look at.
        if !folders.is_empty() {
            watches().push((Arc::downgrade(&look_now), tell.clone()));
        }
        // Without a notice of the kernel's, the channel stays open all the same.
        let wake = tell.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_change(event.kind)) {
                let _ = tell.try_send(());
            }
        });
        let watcher = watcher
            .inspect_err(
                |error| warn!(%error, "files are looked at once a second: no notice of changes"),
            )
            .ok();
        let mut watch = Self {
            folders,
            watcher,
            heard,
            look_now,
            _wake: wake,
            watched: HashMap::new(),
            look_took: Duration::ZERO,
        };
        watch.renew();
        watch
    }

    /// All was looked at, which took this long.
    pub(crate) fn looked(&mut self, took: Duration) {
        self.look_took = took;
    }

    /// Waits for a change, at most until `until` or the next look.
    pub(crate) fn wait(&mut self, until: Option<Instant>) {
        self.wait_or_stop(until, &never());
    }

    /// The same, until something comes by `stop`.
    pub(crate) fn wait_or_stop(&mut self, until: Option<Instant>, stop: &Receiver<()>) -> WaitEnd {
        self.renew();
        let is_told = self.watcher.is_some() && self.watched.len() == self.folders.len();
        let next_look = Instant::now() + look_every(self.look_took, is_told);
        let until = until.map_or(next_look, |until| until.min(next_look));
        // Without the kernel's notice, only `look_now` wakes it earlier.
        select! {
            recv(stop) -> _ => return WaitEnd::Stopped,
            recv(self.heard) -> _ => {
                std::thread::sleep(GATHER);
                let _ = self.heard.try_recv();
            }
            default(until.saturating_duration_since(Instant::now())) => {}
        }
        match self.look_now.swap(false, Ordering::Relaxed) {
            true => WaitEnd::Requested,
            false => WaitEnd::Due,
        }
    }

    /// Watches what was made, or made anew, since the last time.
    fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for folder in &self.folders {
            let Ok(metadata) = std::fs::metadata(folder) else {
                self.watched.remove(folder);
                continue;
            };
            let identity = (metadata.dev(), metadata.ino());
            if self.watched.get(folder) == Some(&identity) {
                continue;
            }
            let _ = watcher.unwatch(folder);
            if watcher.watch(folder, RecursiveMode::NonRecursive).is_ok() {
                self.watched.insert(folder.clone(), identity);
            }
        }
    }
}

/// Where the kernel does not tell of changes, looking is the only way to notice them.
fn look_every(took: Duration, is_told: bool) -> Duration {
    if is_told {
        (took * LOOK_SHARE).clamp(LOOK_EVERY, LOOK_EVERY_MAX)
    } else {
        LOOK_EVERY
    }
}

/// Reading a file is no change of it: control reads them itself.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_a_look_takes_the_less_often_it_is_taken() {
        let (short, long) = (Duration::from_millis(5), Duration::from_millis(200));
        assert_eq!(look_every(short, true), LOOK_EVERY);
        assert_eq!(look_every(long, true), long * LOOK_SHARE);
        assert_eq!(look_every(long * 100, true), LOOK_EVERY_MAX);
        assert_eq!(look_every(long, false), LOOK_EVERY);
    }
}
