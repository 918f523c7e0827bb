//! The relay's end of control's socket: dials it for ever, reads snapshots, writes answers and
//! reports. Decides nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::Sender;
use tracing::{info, warn};
use underpass_proto::feed::{DialRole, encode};
use underpass_proto::limits::SNAPSHOT_MAX;
use underpass_proto::{FeedMessage, FeedReader, HycoName, Snapshot};

/// Between two attempts to reach control: a restart of it is noticed well within a second.
const REDIAL_AFTER: Duration = Duration::from_millis(100);

/// Attempts that may fail before it is said, once: control and relay start together.
const MISSES_UNTOLD: u32 = 20;

/// How long control may take to read what the relay says, before it is dialled anew.
const WRITE_DEADLINE: Duration = Duration::from_secs(1);

/// What the feed brings.
#[derive(Debug)]
pub(crate) enum Brought {
    /// Control is there; answers go here.
    Up(Answers),
    /// A snapshot, not yet checked.
    Snapshot(Box<Snapshot>),
    /// A question: is this one's endpoint reached?
    Probe {
        /// Comes back in the answer.
        id: u64,
        /// Which hybrid connection.
        hyco: HycoName,
    },
    /// Control is gone. The last snapshot stands.
    Down,
}

/// Where answers go.
#[derive(Debug)]
pub(crate) struct Answers(UnixStream);

impl Answers {
    /// Says something to control. False when it is gone: the feed dials anew.
    pub(crate) fn say(&mut self, message: &FeedMessage) -> bool {
        let Ok(bytes) = encode(message) else {
            return true;
        };
        if self.0.write_all(&bytes).is_ok() {
            return true;
        }
        let _ = self.0.shutdown(std::net::Shutdown::Both);
        false
    }
}

/// Dials control's socket on a thread of its own, for as long as somebody takes what it brings.
///
/// # Errors
/// No thread can be had.
pub(crate) fn spawn(socket: PathBuf, brought: Sender<Brought>) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("feed".into())
        .spawn(move || follow(&socket, &brought))?;
    Ok(())
}

fn follow(socket: &Path, brought: &Sender<Brought>) {
    let mut missed = 0;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                missed = 0;
                info!(socket = %socket.display(), "control reached");
                match listen(&stream, brought) {
                    Ok(()) => info!("control is gone; the last snapshot stands"),
                    Err(why) => warn!(%why, "feed broken; the last snapshot stands"),
                }
                if brought.send(Brought::Down).is_err() {
                    return;
                }
            }
            Err(error) => {
                missed += 1;
                if missed == MISSES_UNTOLD {
                    warn!(socket = %socket.display(), %error, "control cannot be reached; trying on");
                }
            }
        }
        std::thread::sleep(REDIAL_AFTER);
    }
}

/// Reads until control goes away. Errors are of what it said.
fn listen(stream: &UnixStream, brought: &Sender<Brought>) -> Result<(), String> {
    let mut answers = Answers(stream.try_clone().map_err(|error| error.to_string())?);
    answers
        .0
        .set_write_timeout(Some(WRITE_DEADLINE))
        .map_err(|error| error.to_string())?;
    let dial = FeedMessage::Dial {
        role: DialRole::Relay,
        process_id: std::process::id(),
    };
    if !answers.say(&dial) || brought.send(Brought::Up(answers)).is_err() {
        return Ok(());
    }
    let mut reader = FeedReader::new(SNAPSHOT_MAX);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let len = match (&mut &*stream).read(&mut chunk) {
            Ok(0) => return reader.finish().map_err(|why| why.to_string()),
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.to_string()),
        };
        reader.push(&chunk[..len]);
        while let Some(message) = reader.next().map_err(|why| why.to_string())? {
            let bring = match message {
                FeedMessage::Snapshot(snapshot) => Brought::Snapshot(snapshot),
                FeedMessage::Probe { id, hyco } => Brought::Probe { id, hyco },
                _ => continue, // A newer control may say more.
            };
            if brought.send(bring).is_err() {
                return Ok(());
            }
        }
    }
}
