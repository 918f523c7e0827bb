//! Servers without a protocol of ours, for any client: one that returns what it gets, one that
//! swallows it.

use std::io;

use super::{CHUNK, Tally, add};
use crate::io::Socket;
use crate::wire::Verdict;

/// Returns each byte, and ends when the client has.
pub(super) async fn echo<S: Socket>(socket: &S, tally: &Tally) -> io::Result<Verdict> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let (result, returned) = socket.read(buffer, 0).await;
        let len = result?;
        if len == 0 {
            socket.finish()?;
            return Ok(Verdict::Right);
        }
        add(&tally.received, len as u64);
        let progress = |len| add(&tally.sent, len as u64);
        let (result, returned) = socket.write_all(returned, 0..len, &progress).await;
        buffer = returned;
        result?;
    }
}

/// Swallows each byte, and ends when the client has.
pub(super) async fn discard<S: Socket>(socket: &S, tally: &Tally) -> io::Result<Verdict> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let (result, returned) = socket.read(buffer, 0).await;
        buffer = returned;
        let len = result?;
        if len == 0 {
            socket.finish()?;
            return Ok(Verdict::Right);
        }
        add(&tally.received, len as u64);
    }
}
