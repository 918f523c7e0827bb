//! Asks control for its status over its socket, as the command line does.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use underpass_proto::feed::{self, DialRole};
use underpass_proto::{FeedMessage, FeedReader, Status, limits};

/// For each read and write; control answers at once or not at all.
const DEADLINE: Duration = Duration::from_secs(2);

/// One question, one answer.
pub(super) fn ask(socket: &Path) -> Result<Status> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot reach {}", socket.display()))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(&feed::encode(&FeedMessage::Dial {
        role: DialRole::CommandLine,
        process_id: std::process::id(),
    })?)?;
    stream.write_all(&feed::encode(&FeedMessage::StatusRequest)?)?;

    let (mut reader, mut chunk) = (FeedReader::new(limits::SNAPSHOT_MAX), [0; 16 * 1024]);
    loop {
        while let Some(message) = reader.next()? {
            if let FeedMessage::Status(status) = message {
                return Ok(*status);
            }
        }
        match stream.read(&mut chunk)? {
            0 => bail!("control closed the connection without an answer"),
            len => reader.push(&chunk[..len]),
        }
    }
}
