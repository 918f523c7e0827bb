//! Numbers what a source gives, and offers the newest to whoever serves it.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tracing::{info, warn};
use underpass_proto::{FeedMessage, Generation, Snapshot, feed};
use zeroize::Zeroizing;

use super::{Loaded, Source};
use crate::files::namespace::Namespace;
use crate::files::{Directory, Fault, disk};

/// The most faults that a status carries: a person mends a few at a time.
pub(super) const FAULTS_MAX: usize = 1_000;

/// The newest snapshot, ready to be sent, and what is wrong with the files.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(super) generation: Generation,
    /// The framed message. Shared: it is written to every relay as it is.
    pub(super) message: Arc<Zeroizing<Vec<u8>>>,
    pub(super) faults: Arc<Vec<Fault>>,
    pub(super) namespace: Arc<Namespace>,
}

impl Published {
    /// No snapshot, and no fault.
    pub(super) fn nothing(namespace: Namespace) -> Self {
        Self {
            generation: Generation::default(),
            message: Arc::default(),
            faults: Arc::default(),
            namespace: Arc::new(namespace),
        }
    }
}

/// When this control started, nanoseconds since 1970; later than every start before it on this
/// directory, whatever the clock says.
pub(super) fn next_start(directory: &Directory) -> u64 {
    let path = directory.run().join("start");
    let last = disk::read(&path)
        .ok()
        .and_then(|read| read.text.trim().parse::<u64>().ok());
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(0));
    let start = last.map_or(now, |last| now.max(last.saturating_add(1)));
    // On a full disk the file keeps an older start, and a later one is still later if the clock
    // goes forward.
    if let Err(error) = disk::replace_own(&path, format!("{start}\n").as_bytes()) {
        warn!(%error, "cannot write {}", path.display());
    }
    start
}

/// Publishes the first load, then goes on by itself for as long as somebody listens.
pub(super) fn start(
    mut source: impl Source + 'static,
    first: Loaded,
    start: u64,
) -> io::Result<watch::Receiver<Published>> {
    let mut publisher = Publisher {
        generation: Generation { start, number: 0 },
        current: None,
        faults: Vec::new(),
        namespace: Arc::new(first.namespace.clone()),
    };
    let Some(first) = publisher.take(first) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the definitions together are too large for one snapshot",
        ));
    };
    let (tell, published) = watch::channel(first);
    thread::Builder::new()
        .name("publisher".into())
        .spawn(move || {
            while !tell.is_closed() {
                source.wait();
                let Ok(loaded) = source
                    .load()
                    .inspect_err(|faults| warn!(?faults, "nothing could be loaded"))
                else {
                    continue;
                };
                if let Some(next) = publisher.take(loaded) {
                    tell.send_replace(next);
                }
            }
        })?;
    Ok(published)
}

struct Publisher {
    generation: Generation,
    current: Option<(Snapshot, Arc<Zeroizing<Vec<u8>>>)>,
    faults: Vec<Fault>,
    namespace: Arc<Namespace>,
}

impl Publisher {
    /// What is to be published now, if anything changed.
    fn take(&mut self, loaded: Loaded) -> Option<Published> {
        let Loaded {
            snapshot,
            mut faults,
            namespace,
        } = loaded;
        let changed = self
            .current
            .as_ref()
            .is_none_or(|(current, _)| !is_same(current, &snapshot));
        if changed && let Err(error) = self.renew(snapshot) {
            faults.insert(
                0,
                Fault::whole(
                    "connections/",
                    format!("together do not fit one snapshot: {error}; delete some definitions"),
                ),
            );
        }
        faults.truncate(FAULTS_MAX);
        let news = changed || faults != self.faults || namespace != *self.namespace;
        self.tell_faults(&faults);
        self.faults = faults;
        if namespace != *self.namespace {
            self.namespace = Arc::new(namespace);
        }
        let (_, message) = self.current.as_ref().filter(|_| news)?;
        Some(Published {
            generation: self.generation,
            message: message.clone(),
            faults: Arc::new(self.faults.clone()),
            namespace: self.namespace.clone(),
        })
    }

    fn renew(&mut self, mut snapshot: Snapshot) -> Result<(), feed::FeedError> {
        let generation = Generation {
            number: self.generation.number + 1,
            ..self.generation
        };
        snapshot.generation = generation;
        let message = FeedMessage::Snapshot(Box::new(snapshot));
        let encoded = feed::encode(&message)?;
        let FeedMessage::Snapshot(snapshot) = message else {
            return Ok(());
        };
        info!(%generation, hybrid_connections = snapshot.hycos.len(), "snapshot published");
        self.current = Some((*snapshot, Arc::new(encoded)));
        self.generation = generation;
        Ok(())
    }

    /// Each fault is told once when it comes, and once when the last one is gone.
    fn tell_faults(&self, faults: &[Fault]) {
        for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
            warn!("{fault}");
        }
        if faults.is_empty() && !self.faults.is_empty() {
            info!("all files are good again");
        }
    }
}

/// But for the number.
fn is_same(current: &Snapshot, other: &Snapshot) -> bool {
    let mut numbered = other.clone();
    numbered.generation = current.generation;
    *current == numbered
}
