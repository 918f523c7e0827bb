//! Serves `run/control.sock`: snapshots to relays, the status to the command line. Everything is bounded, and a slow or broken
//! peer harms only itself.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};
use underpass_proto::feed::{DialRole, FeedError};
use underpass_proto::limits::REPORT_MAX;
use underpass_proto::{FeedMessage, FeedReader, Generation, Report, Status, feed};

use super::publisher::Published;

/// Peers at once: one relay, perhaps its successor, and a few commands.
const PEERS_MAX: usize = 32;

/// From accepting a peer to its first message.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// The longest that a peer may take to read one message.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// One read, bytes.
const READ_SIZE: usize = 64 * 1024;

/// Pause after an accept that failed: the cause (no descriptors) does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers that may wait for a command line that does not read.
const ANSWERS_MAX: usize = 4;

/// Serves until dropped.
pub(super) async fn serve(listener: UnixListener, published: watch::Receiver<Published>) {
    let own_uid = rustix::process::geteuid().as_raw();
    let room = Arc::new(Semaphore::new(PEERS_MAX));
    let view = Arc::new(Mutex::new(View::default()));
    let mut next_peer = 0;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a peer could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            warn!(
                PEERS_MAX,
                "too many peers on the control socket, one is turned away"
            );
            continue;
        };
        if !is_ours(&stream, own_uid) {
            continue;
        }
        next_peer += 1;
        let peer = Peer {
            number: next_peer,
            published: published.clone(),
            view: view.clone(),
        };
        tokio::spawn(async move {
            let _place = place;
            peer.serve(stream).await;
        });
    }
}

/// What is known of the relay that dialled last.
#[derive(Default, Debug)]
struct View {
    relay: Option<u64>,
    report: Option<Report>,
    applied: Option<Generation>,
    rejected: Option<(Generation, String)>,
}

/// The folder lets nobody else in; the kernel's word for who dials is the second lock.
fn is_ours(stream: &UnixStream, own_uid: u32) -> bool {
    let Ok(peer) = stream.peer_cred() else {
        return false;
    };
    let ours = peer.uid() == own_uid || peer.uid() == 0;
    if !ours {
        warn!(
            uid = peer.uid(),
            "a stranger on the control socket is turned away"
        );
    }
    ours
}

#[derive(thiserror::Error, Debug)]
enum PeerError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Feed(#[from] FeedError),
    #[error("it did not say what it is in {DIAL_DEADLINE:?}")]
    Silent,
    #[error("it did not read for {WRITE_DEADLINE:?}")]
    Slow,
    #[error("it sent what it has no business to send")]
    Misplaced,
}

struct Peer {
    number: u64,
    published: watch::Receiver<Published>,
    view: Arc<Mutex<View>>,
}

impl Peer {
    async fn serve(&self, stream: UnixStream) {
        let (read, write) = stream.into_split();
        let mut incoming = Incoming {
            read,
            reader: FeedReader::new(REPORT_MAX),
            chunk: vec![0; READ_SIZE],
        };
        let served = match timeout(DIAL_DEADLINE, incoming.next()).await {
            Ok(Ok(Some(FeedMessage::Dial {
                role: DialRole::Relay,
                process_id,
            }))) => self.relay(process_id, incoming, write).await,
            Ok(Ok(Some(FeedMessage::Dial {
                role: DialRole::CommandLine,
                ..
            }))) => self.command_line(incoming, write).await,
            Ok(Ok(Some(_))) => Err(PeerError::Misplaced),
            Ok(Ok(None)) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(PeerError::Silent),
        };
        if let Err(error) = served {
            warn!(%error, "a peer on the control socket failed");
        }
    }

    /// Sends and receives at once: neither side's full socket keeps the other from reading.
    async fn relay(
        &self,
        process_id: u32,
        incoming: Incoming,
        write: OwnedWriteHalf,
    ) -> Result<(), PeerError> {
        info!(process_id, "relay connected");
        *self.view() = View {
            relay: Some(self.number),
            ..View::default()
        };
        let ended = tokio::select! {
            ended = self.send_snapshots(write) => ended,
            ended = self.hear_relay(incoming) => ended,
        };
        let mut view = self.view();
        if view.relay == Some(self.number) {
            *view = View::default();
        }
        info!(process_id, "relay gone");
        ended
    }

    async fn send_snapshots(&self, mut write: OwnedWriteHalf) -> Result<(), PeerError> {
        let mut published = self.published.clone();
        let mut sent = None;
        loop {
            let (generation, message) = {
                let newest = published.borrow_and_update();
                (newest.generation, newest.message.clone())
            };
            if sent != Some(generation) {
                send(&mut write, &message).await?;
                sent = Some(generation);
            }
            if published.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn hear_relay(&self, mut incoming: Incoming) -> Result<(), PeerError> {
        while let Some(message) = incoming.next().await? {
            let mut view = self.view();
            if view.relay != Some(self.number) {
                continue; // Another relay dialled since; this one is on its way out.
            }
            match message {
                FeedMessage::Applied { generation, faults } => {
                    debug!(%generation, faults = faults.len(), "snapshot applied");
                    view.applied = Some(generation);
                    view.rejected = None;
                }
                FeedMessage::Rejected { generation, why } => {
                    warn!(%generation, why, "the relay rejected the snapshot and goes on with the one before");
                    view.rejected = Some((generation, why));
                }
                FeedMessage::Report(report) => view.report = Some(*report),
                _ => return Err(PeerError::Misplaced),
            }
        }
        Ok(())
    }

    async fn command_line(
        &self,
        mut incoming: Incoming,
        mut write: OwnedWriteHalf,
    ) -> Result<(), PeerError> {
        let (answer, mut answers) = mpsc::channel(ANSWERS_MAX);
        let hear = async {
            while let Some(message) = incoming.next().await? {
                let FeedMessage::StatusRequest = message else {
                    return Err(PeerError::Misplaced);
                };
                let encoded = feed::encode(&FeedMessage::Status(Box::new(self.status())))?;
                if answer.send(encoded).await.is_err() {
                    break;
                }
            }
            drop(answer);
            Ok(())
        };
        let tell = async {
            while let Some(message) = answers.recv().await {
                send(&mut write, &message).await?;
            }
            Ok(())
        };
        tokio::try_join!(hear, tell).map(|((), ())| ())
    }

    fn status(&self) -> Status {
        let published = self.published.borrow();
        let view = self.view();
        let newest = published.generation;
        Status {
            generation: newest,
            relay: view.report.clone(),
            applied: view.applied,
            rejected: view
                .rejected
                .as_ref()
                .filter(|(generation, _)| *generation == newest)
                .map(|(_, why)| why.clone()),
            faults: published.faults.iter().map(Into::into).collect(),
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(write: &mut OwnedWriteHalf, message: &[u8]) -> Result<(), PeerError> {
    match timeout(WRITE_DEADLINE, write.write_all(message)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(PeerError::Slow),
    }
}

struct Incoming {
    read: OwnedReadHalf,
    reader: FeedReader,
    chunk: Vec<u8>,
}

impl Incoming {
    /// The next message; nothing when the peer is gone. Cancel-safe: what was read is kept.
    async fn next(&mut self) -> Result<Option<FeedMessage>, PeerError> {
        loop {
            if let Some(message) = self.reader.next()? {
                return Ok(Some(message));
            }
            let len = self.read.read(&mut self.chunk).await?;
            if len == 0 {
                self.reader.finish()?;
                return Ok(None);
            }
            self.reader.push(&self.chunk[..len]);
        }
    }
}
