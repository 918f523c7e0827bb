//! How the endpoint serves verified flows: what a header asks for, and the verdict at the end.

use std::cell::Cell;
use std::io;

use super::{CHUNK, Serves, Tally, add, calls};
use crate::io::Socket;
use crate::pattern::Pattern;
use crate::wire::{HEADER, Header, Style, Trailer, Verdict};

/// The whole conversation, from header to verdict.
pub(super) async fn serve<S: Socket>(
    socket: &S,
    serves: Serves,
    tally: &Tally,
) -> io::Result<Verdict> {
    let Some(header) = read_header(socket).await? else {
        return refuse(socket, Verdict::Corrupt { position: 0 }).await;
    };
    if !serves.permits(&header) {
        return refuse(socket, Verdict::NotServed).await;
    }
    let mut arrivals = Arrivals::new(&header);
    let sent = match header.style {
        Style::Calls { verified } => return calls::serve(socket, &header, verified, tally).await,
        Style::Echo => echo(socket, &mut arrivals, tally).await?,
        Style::Exchange => {
            let ended = Cell::new(false);
            let up = async {
                let result = drain(socket, &mut arrivals, tally).await;
                ended.set(true);
                result
            };
            let (up, down) = tokio::join!(up, make(socket, &header, &ended, tally));
            up?;
            down?
        }
    };
    answer(
        socket,
        Trailer {
            verdict: arrivals.verdict(),
            received: arrivals.received,
            sent,
        },
    )
    .await
}

/// The whole header. `None`: it is corrupt, or the client speaks something else.
async fn read_header<S: Socket>(socket: &S) -> io::Result<Option<Header>> {
    let mut buffer = vec![0; HEADER];
    let mut len = 0;
    while len < HEADER {
        let (result, returned) = socket.read(buffer, len).await;
        buffer = returned;
        match result? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => len += more,
        }
    }
    Ok(buffer.as_array().and_then(Header::decode))
}

/// Returns all that comes, right or wrong: the client sees for itself. Gives the number of bytes
/// returned.
async fn echo<S: Socket>(socket: &S, arrivals: &mut Arrivals, tally: &Tally) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let (result, returned) = socket.read(buffer, 0).await;
        buffer = returned;
        let len = result?;
        if len == 0 {
            return Ok(arrivals.received);
        }
        arrivals.take(&buffer[..len]);
        add(&tally.received, len as u64);
        let (result, returned) = socket
            .write_all(buffer, 0..len, &|len| add(&tally.sent, len as u64))
            .await;
        buffer = returned;
        result?;
    }
}

/// Checks all that comes, to the end.
async fn drain<S: Socket>(socket: &S, arrivals: &mut Arrivals, tally: &Tally) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let (result, returned) = socket.read(buffer, 0).await;
        buffer = returned;
        let len = result?;
        if len == 0 {
            return Ok(());
        }
        arrivals.take(&buffer[..len]);
        add(&tally.received, len as u64);
    }
}

/// Answers at once, for a client may wait for its first message to come back, and then reads to the
/// end, whatever it is.
pub(super) async fn refuse<S: Socket>(socket: &S, verdict: Verdict) -> io::Result<Verdict> {
    let trailer = Trailer {
        verdict,
        received: 0,
        sent: 0,
    };
    answer(socket, trailer).await?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let (result, returned) = socket.read(buffer, 0).await;
        buffer = returned;
        if result.map_or(true, |len| len == 0) {
            return Ok(verdict); // A client that has its answer may end as it likes.
        }
    }
}

/// Sends what the header asks for; where it gives no length, until the client has ended its side.
/// Gives the number of bytes.
async fn make<S: Socket>(
    socket: &S,
    header: &Header,
    ended: &Cell<bool>,
    tally: &Tally,
) -> io::Result<u64> {
    let pattern = header.down_pattern();
    let target = header.down.unwrap_or(u64::MAX);
    let mut buffer = vec![0; CHUNK.min(usize::try_from(target).unwrap_or(CHUNK))];
    let mut sent = 0;
    while sent < target && (header.down.is_some() || !ended.get()) {
        let len = buffer
            .len()
            .min(usize::try_from(target - sent).unwrap_or(CHUNK));
        pattern.fill(sent, &mut buffer[..len]);
        let (result, returned) = socket
            .write_all(buffer, 0..len, &|len| add(&tally.sent, len as u64))
            .await;
        buffer = returned;
        result?;
        sent += len as u64;
    }
    Ok(sent)
}

/// Sends the verdict and ends.
pub(super) async fn answer<S: Socket>(socket: &S, trailer: Trailer) -> io::Result<Verdict> {
    let bytes = trailer.encode().to_vec();
    let len = bytes.len();
    socket.write_all(bytes, 0..len, &|_| ()).await.0?;
    socket.finish()?;
    Ok(trailer.verdict)
}

/// What came from the client so far.
struct Arrivals {
    pattern: Pattern,
    expected: Option<u64>,
    received: u64,
    wrong_at: Option<u64>,
}

impl Arrivals {
    fn new(header: &Header) -> Arrivals {
        Arrivals {
            pattern: header.up_pattern(),
            expected: header.up,
            received: 0,
            wrong_at: None,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.wrong_at.is_none() {
            self.wrong_at = self
                .pattern
                .check(self.received, bytes)
                .err()
                .map(|mismatch| mismatch.position);
        }
        self.received += bytes.len() as u64;
    }

    fn verdict(&self) -> Verdict {
        match (self.wrong_at, self.expected) {
            (Some(position), _) => Verdict::Corrupt { position },
            (None, Some(expected)) if self.received > expected => {
                Verdict::Corrupt { position: expected }
            }
            (None, Some(expected)) if self.received < expected => Verdict::Truncated,
            _ => Verdict::Right,
        }
    }
}
