//! Stands between control and the relay: passes on what both say, changes snapshots on the way, and
//! asks questions of its own. For what a relay does with messages that control has a reason for
//! only seldom.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::{Context, Result};
use tempfile::TempDir;
use underpass_proto::limits::SNAPSHOT_MAX;
use underpass_proto::snapshot::ProbeReport;
use underpass_proto::{FeedMessage, FeedReader, Snapshot, feed};

use crate::deadline::MOMENT;
use crate::process::lock;

/// What stands there.
#[derive(Debug)]
pub struct FeedBetween {
    folder: TempDir,
    shared: Arc<Mutex<Shared>>,
    answers: Mutex<Receiver<(u64, Option<Box<ProbeReport>>)>>,
}

/// What is done to each snapshot.
type Change = Box<dyn Fn(&mut Snapshot) + Send>;

#[derive(Default)]
struct Shared {
    relay: Option<UnixStream>,
    last: Option<Box<Snapshot>>,
    change: Option<Change>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl FeedBetween {
    /// Stands in front of the control process that serves this socket.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn start(control: &Path) -> Result<Self> {
        let folder = TempDir::with_prefix("underpass-feed-")?;
        let socket = folder.path().join("run").join("control.sock");
        std::fs::create_dir_all(folder.path().join("run"))?;
        let listener = UnixListener::bind(&socket)?;
        let shared = Arc::<Mutex<Shared>>::default();
        let (say, answers) = channel();
        let (of_thread, control) = (Arc::clone(&shared), control.to_owned());
        thread::spawn(move || {
            for relay in listener.incoming().map_while(Result::ok) {
                // A relay that is turned away dials again.
                let _ = join(relay, &control, &of_thread, &say);
            }
        });
        Ok(Self {
            folder,
            shared,
            answers: Mutex::new(answers),
        })
    }

    /// The directory to start the relay on.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Changes the last snapshot and all that come.
    ///
    /// # Errors
    /// When no relay is there to hear it.
    pub fn change(&self, change: impl Fn(&mut Snapshot) + Send + 'static) -> Result<()> {
        let mut shared = lock(&self.shared);
        shared.change = Some(Box::new(change));
        let last = shared.last.clone().context("control sent no snapshot")?;
        shared.send(last)
    }

    /// Asks the relay to probe, and waits for its answer.
    ///
    /// # Errors
    /// When it does not answer this question.
    pub fn probe(&self, id: u64, hyco: &str) -> Result<ProbeReport> {
        let hyco = hyco.parse()?;
        let relay = lock(&self.shared)
            .relay
            .as_ref()
            .context("no relay")?
            .try_clone()?;
        say(&relay, &FeedMessage::Probe { id, hyco })?;
        let (answered, report) = lock(&self.answers).recv_timeout(MOMENT)?;
        anyhow::ensure!(answered == id, "asked {id}, and {answered} was answered");
        Ok(*report.context("the relay says that there is no relay")?)
    }
}

impl Shared {
    fn send(&self, mut snapshot: Box<Snapshot>) -> Result<()> {
        if let Some(change) = &self.change {
            change(&mut snapshot);
        }
        let relay = self.relay.as_ref().context("no relay")?;
        say(relay, &FeedMessage::Snapshot(snapshot))
    }
}

type Answered = Sender<(u64, Option<Box<ProbeReport>>)>;

fn join(
    relay: UnixStream,
    control: &Path,
    shared: &Arc<Mutex<Shared>>,
    answered: &Answered,
) -> Result<()> {
    let control = UnixStream::connect(control)?;
    lock(shared).relay = Some(relay.try_clone()?);
    let (to_control, answered) = (control.try_clone()?, answered.clone());
    thread::spawn(move || {
        let _ = hear(relay, |message| match message {
            FeedMessage::Probed { id, report } => Ok(answered.send((id, report))?),
            message => say(&to_control, &message),
        });
        let _ = to_control.shutdown(std::net::Shutdown::Both);
    });
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let _ = hear(control, |message| {
            let FeedMessage::Snapshot(snapshot) = message else {
                return Ok(());
            };
            let mut shared = lock(&shared);
            shared.last = Some(snapshot.clone());
            shared.send(snapshot)
        });
    });
    Ok(())
}

fn hear(mut from: UnixStream, mut to: impl FnMut(FeedMessage) -> Result<()>) -> Result<()> {
    let mut reader = FeedReader::new(SNAPSHOT_MAX);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        while let Some(message) = reader.next()? {
            to(message)?;
        }
        match from.read(&mut chunk)? {
            0 => return Ok(()),
            len => reader.push(&chunk[..len]),
        }
    }
}

fn say(mut to: &UnixStream, message: &FeedMessage) -> Result<()> {
    Ok(to.write_all(&feed::encode(message)?)?)
}
