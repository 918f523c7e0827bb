//! The command line's side of control's socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use underpass_proto::feed::{DialRole, FeedError};
use underpass_proto::limits::SNAPSHOT_MAX;
use underpass_proto::snapshot::ProbeReport;
use underpass_proto::{FeedMessage, FeedReader, HycoName, Status, feed};

use crate::files::Directory;

/// The longest that control may take to answer: it answers from memory.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// The longest that a probe may take: control answers when its own wait for the relay is over.
const PROBE_DEADLINE: Duration = super::PROBE_DEADLINE.saturating_add(ANSWER_DEADLINE);

/// One read, bytes.
const READ_SIZE: usize = 64 * 1024;

/// Why control did not answer.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No control process runs there, or it cannot be reached.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is no answer.
    #[error("{0}")]
    Feed(#[from] FeedError),
    /// It closed the connection, or answered something else.
    #[error("control gave no answer")]
    NoAnswer,
}

/// Asks the control process of a directory for the status.
///
/// # Errors
/// See [`DialError`].
pub fn status(directory: &Directory) -> Result<Status, DialError> {
    match ask(directory, &FeedMessage::StatusRequest, ANSWER_DEADLINE)? {
        FeedMessage::Status(status) => Ok(*status),
        _ => Err(DialError::NoAnswer),
    }
}

/// Has the endpoint of a hybrid connection dialled now, by every agent. `None`: no relay is there.
///
/// # Errors
/// See [`DialError`].
pub fn probe(directory: &Directory, name: &HycoName) -> Result<Option<ProbeReport>, DialError> {
    let asked: u64 = rand::random();
    let probe = FeedMessage::Probe {
        id: asked,
        hyco: name.clone(),
    };
    match ask(directory, &probe, PROBE_DEADLINE)? {
        FeedMessage::Probed { id, report } if id == asked => Ok(report.map(|report| *report)),
        _ => Err(DialError::NoAnswer),
    }
}

fn ask(
    directory: &Directory,
    question: &FeedMessage,
    deadline: Duration,
) -> Result<FeedMessage, DialError> {
    let mut stream = UnixStream::connect(directory.control_socket())?;
    stream.set_read_timeout(Some(deadline))?;
    stream.set_write_timeout(Some(deadline))?;
    let dial = FeedMessage::Dial {
        role: DialRole::CommandLine,
        process_id: std::process::id(),
    };
    stream.write_all(&feed::encode(&dial)?)?;
    stream.write_all(&feed::encode(question)?)?;
    answer(&mut stream)
}

fn answer(stream: &mut UnixStream) -> Result<FeedMessage, DialError> {
    let mut reader = FeedReader::new(SNAPSHOT_MAX);
    let mut chunk = vec![0; READ_SIZE];
    loop {
        if let Some(message) = reader.next()? {
            return Ok(message);
        }
        match stream.read(&mut chunk)? {
            0 => return Err(DialError::NoAnswer),
            len => reader.push(&chunk[..len]),
        }
    }
}
