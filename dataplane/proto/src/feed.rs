//! The bytes between control, relay and command line: a length (four bytes, big-endian) and JSON.
//! Knows no socket.
//!
//! A message may hold keys: what is encoded is wiped when dropped, and no error repeats what was
//! read.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::limits::{REPORT_MAX, SNAPSHOT_MAX};
use crate::name::HycoName;
use crate::snapshot::{Fault, Generation, ProbeReport, Report, Snapshot, Status};

/// All that passes over control's socket. Relay and command line dial it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeedMessage {
    /// First, from the side that dialled.
    Dial {
        /// What it is.
        role: DialRole,
        /// Its process, for the log; the kernel's word for it counts.
        process_id: u32,
    },
    /// Control to relay: everything, anew.
    Snapshot(Box<Snapshot>),
    /// Relay to control: works by it now.
    Applied {
        /// Which.
        generation: Generation,
        /// What of it did not work; the rest does.
        faults: Vec<Fault>,
    },
    /// Relay to control: goes on with the one before.
    Rejected {
        /// Which.
        generation: Generation,
        /// Why.
        why: String,
    },
    /// Relay to control, each second.
    Report(Box<Report>),
    /// Command line to control.
    StatusRequest,
    /// The answer to it.
    Status(Box<Status>),
    /// Control to relay, and command line to control: dial this one's endpoint now, from every
    /// listener.
    Probe {
        /// Comes back in the answer.
        id: u64,
        /// Which hybrid connection.
        hyco: HycoName,
    },
    /// The answer to it.
    Probed {
        /// That of the question.
        id: u64,
        /// What was found; `None`: there is no relay to ask.
        report: Option<Box<ProbeReport>>,
    },
}

/// Who dials control's socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DialRole {
    /// The relay: gets snapshots, sends reports.
    Relay,
    /// The command line: asks for the status.
    CommandLine,
}

/// Why bytes are no message, or a message cannot be sent. Does not repeat what was read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FeedError {
    /// Over the limit. Noticed before anything is kept.
    #[error("message of {len} bytes is over the limit of {limit}")]
    TooLong {
        /// What the length says.
        len: usize,
        /// The reader's limit.
        limit: usize,
    },
    /// Not JSON, or not a message of this version.
    #[error("message is not understood (line {line}, column {column})")]
    Json {
        /// Line within the JSON, from 1.
        line: usize,
        /// Column within the line, from 1.
        column: usize,
    },
    /// The stream ended within a message.
    #[error("message ends too early")]
    Truncated,
}

/// Bytes of the length.
const LEN: usize = 4;

/// One message, length and all. Wiped when dropped. A report is cut until it has at most
/// [`REPORT_MAX`] bytes, and says so.
///
/// # Errors
/// [`FeedError::TooLong`] beyond [`SNAPSHOT_MAX`], or for a report of which nothing is left to cut.
pub fn encode(message: &FeedMessage) -> Result<Zeroizing<Vec<u8>>, FeedError> {
    let encoded = encode_whole(message)?;
    let FeedMessage::Report(report) = message else {
        return Ok(encoded);
    };
    let len = encoded.len() - LEN;
    if len <= REPORT_MAX {
        return Ok(encoded);
    }
    if report.sessions.is_empty() && report.hycos.is_empty() && report.faults.is_empty() {
        return Err(FeedError::TooLong {
            len,
            limit: REPORT_MAX,
        });
    }
    let shorter = Report {
        truncated: true,
        ..report.halved()
    };
    encode(&FeedMessage::Report(Box::new(shorter)))
}

fn encode_whole(message: &FeedMessage) -> Result<Zeroizing<Vec<u8>>, FeedError> {
    let mut out = Wiping(vec![0; LEN]);
    serde_json::to_writer(&mut out, message).map_err(|error| json_error(&error))?;
    let mut out = Zeroizing::new(std::mem::take(&mut out.0));
    let len = out.len() - LEN;
    let too_long = FeedError::TooLong {
        len,
        limit: SNAPSHOT_MAX,
    };
    if len > SNAPSHOT_MAX {
        return Err(too_long);
    }
    let prefix = u32::try_from(len).map_err(|_| too_long)?.to_be_bytes();
    out[..LEN].copy_from_slice(&prefix);
    Ok(out)
}

impl Report {
    /// The first half of each list, and of each session's; all else as it is.
    fn halved(&self) -> Self {
        let mut sessions = self.sessions[..self.sessions.len() / 2].to_vec();
        for session in &mut sessions {
            session.hycos.truncate(session.hycos.len().div_ceil(2));
        }
        let hycos = self.hycos[..self.hycos.len() / 2].to_vec();
        let faults = self.faults[..self.faults.len() / 2].to_vec();
        Self {
            sessions,
            hycos,
            faults,
            io: self.io.clone(),
            io_why: self.io_why.clone(),
            overloaded: self.overloaded.clone(),
            ..*self
        }
    }
}

/// Collects chunks of a stream and yields messages. Keeps at most one message and what came in the
/// same chunk after it.
#[derive(Debug)]
pub struct FeedReader {
    limit: usize,
    held: Wiping,
}

impl FeedReader {
    /// One that refuses messages over `limit` bytes: [`SNAPSHOT_MAX`] where snapshots are read,
    /// [`REPORT_MAX`] elsewhere.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            held: Wiping(Vec::new()),
        }
    }

    /// Takes the next chunk of the stream. Read all messages before the next.
    pub fn push(&mut self, chunk: &[u8]) {
        self.held.extend(chunk);
    }

    /// The next message, or nothing until more has come.
    ///
    /// # Errors
    /// See [`FeedError`]. After one the stream is of no more use.
    #[expect(
        clippy::should_implement_trait,
        reason = "not an iterator: it yields again after it yielded nothing"
    )]
    pub fn next(&mut self) -> Result<Option<FeedMessage>, FeedError> {
        let Some(prefix) = self.held.0.first_chunk::<LEN>() else {
            return Ok(None);
        };
        let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if len > self.limit {
            return Err(FeedError::TooLong {
                len,
                limit: self.limit,
            });
        }
        let Some(json) = self.held.0.get(LEN..LEN + len) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(json).map_err(|error| json_error(&error))?;
        self.held.discard(LEN + len);
        Ok(Some(message))
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// [`FeedError::Truncated`] within a message.
    pub fn finish(&self) -> Result<(), FeedError> {
        if self.held.0.is_empty() {
            Ok(())
        } else {
            Err(FeedError::Truncated)
        }
    }
}

fn json_error(error: &serde_json::Error) -> FeedError {
    FeedError::Json {
        line: error.line(),
        column: error.column(),
    }
}

/// A buffer that wipes what it leaves behind: when it grows, when it shrinks, when it is dropped.
struct Wiping(Vec<u8>);

impl Wiping {
    fn extend(&mut self, bytes: &[u8]) {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            let mut roomier = Vec::with_capacity(needed.max(2 * self.0.capacity()));
            roomier.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = roomier;
        }
        self.0.extend_from_slice(bytes);
    }

    /// Forgets the first `len` bytes. What remains moves to a buffer of its own size, so that one
    /// snapshot does not hold its memory for ever.
    fn discard(&mut self, len: usize) {
        let left = self.0[len..].to_vec();
        self.0.zeroize();
        self.0 = left;
    }
}

impl std::io::Write for Wiping {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Wiping {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Wiping {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_buffer_that_wipes_keeps_what_was_written_as_it_grows_and_shrinks() -> std::io::Result<()> {
        let mut buffer = Wiping(Vec::new());
        for word in [b"abc".as_slice(), b"def", b"ghi"] {
            buffer.write_all(word)?;
        }
        buffer.flush()?;
        buffer.discard(4);
        assert_eq!(buffer.0, b"efghi");
        Ok(())
    }
}
