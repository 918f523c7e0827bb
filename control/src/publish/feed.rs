//! Serves `run/control.sock`: snapshots and questions to relays, the status and their answers to
//! the command line. Everything is bounded, and a slow or broken peer harms only itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tracing::{debug, info, warn};
use underpass_proto::feed::{DialRole, FeedError};
use underpass_proto::limits::REPORT_MAX;
use underpass_proto::{FeedMessage, FeedReader, feed};

use super::live::Live;

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
pub(super) async fn serve(listener: UnixListener, live: Arc<Live>) {
    let room = Arc::new(Semaphore::new(PEERS_MAX));
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
        if !is_ours(&stream) {
            continue;
        }
        next_peer += 1;
        let peer = Peer {
            number: next_peer,
            live: Arc::clone(&live),
        };
        tokio::spawn(async move {
            let _place = place;
            peer.serve(stream).await;
        });
    }
}

/// The folder lets nobody else in; the kernel's word for who dials is the second lock.
pub(crate) fn is_ours(stream: &UnixStream) -> bool {
    let Ok(peer) = stream.peer_cred() else {
        return false;
    };
    let ours = peer.uid() == rustix::process::geteuid().as_raw() || peer.uid() == 0;
    if !ours {
        warn!(
            uid = peer.uid(),
            "a stranger on a socket of control's is turned away"
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
    live: Arc<Live>,
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
        let asked = self.live.begin(self.number);
        let ended = tokio::select! {
            ended = self.tell_relay(write, asked) => ended,
            ended = self.hear_relay(incoming) => ended,
        };
        self.live.end(self.number);
        info!(process_id, "relay gone");
        ended
    }

    /// The newest snapshot whenever there is one, and what it is asked in between.
    async fn tell_relay(
        &self,
        mut write: OwnedWriteHalf,
        mut asked: mpsc::Receiver<FeedMessage>,
    ) -> Result<(), PeerError> {
        let mut published = self.live.published();
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
            tokio::select! {
                changed = published.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                Some(question) = asked.recv() => send(&mut write, &feed::encode(&question)?).await?,
            }
        }
    }

    async fn hear_relay(&self, mut incoming: Incoming) -> Result<(), PeerError> {
        while let Some(message) = incoming.next().await? {
            match message {
                FeedMessage::Applied { generation, faults } => {
                    debug!(%generation, faults = faults.len(), "snapshot applied");
                    self.live.hear_applied(self.number, generation);
                }
                FeedMessage::Rejected { generation, why } => {
                    warn!(%generation, why, "the relay rejected the snapshot and goes on with the one before");
                    self.live.hear_rejected(self.number, generation, why);
                }
                FeedMessage::Report(report) => self.live.hear_report(self.number, *report),
                FeedMessage::Probed { id, report } => {
                    self.live.hear_probed(self.number, id, report);
                }
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
                let told = match message {
                    FeedMessage::StatusRequest => FeedMessage::Status(Box::new(self.live.status())),
                    FeedMessage::Probe { id, hyco } => {
                        let report = self.live.probe(&hyco).await.map(Box::new);
                        let report = report.inspect_err(|error| info!(%hyco, %error, "not probed"));
                        FeedMessage::Probed {
                            id,
                            report: report.ok(),
                        }
                    }
                    _ => return Err(PeerError::Misplaced),
                };
                if answer.send(feed::encode(&told)?).await.is_err() {
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
