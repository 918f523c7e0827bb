//! How the endpoint serves calls: reads each request to its end, checks it, and answers with the
//! response that was asked for.

use std::io;

use super::flows::{answer, refuse};
use super::{CHUNK, Tally, add};
use crate::calls::{self, ANSWER, CALL, Call};
use crate::io::Socket;
use crate::pattern::Pattern;
use crate::wire::{Header, Trailer, Verdict};

/// Bytes of the buffer of a flow that waits for a call: most requests whole, and little enough for
/// tens of thousands of flows.
const WAITING: usize = 2048;

const _: () = assert!(WAITING >= CALL && CHUNK >= WAITING);

/// All calls of one flow, and the verdict at its end.
pub(super) async fn serve<S: Socket>(
    socket: &S,
    header: &Header,
    verified: bool,
    tally: &Tally,
) -> io::Result<Verdict> {
    let mut flow = Flow {
        seed: header.seed,
        up: verified.then(|| header.up_pattern()),
        down: verified.then(|| header.down_pattern()),
        received: 0,
        sent: 0,
        verdict: Verdict::Right,
        tally,
    };
    for n in 0.. {
        match flow.request(socket, n).await? {
            Request::Whole(call, buffer) => flow.respond(socket, n, call, buffer).await?,
            Request::NoCall => {
                let position = flow.received;
                return refuse(socket, Verdict::Corrupt { position }).await;
            }
            Request::End => break,
        }
    }
    let trailer = Trailer {
        verdict: flow.verdict,
        received: flow.received,
        sent: flow.sent,
    };
    answer(socket, trailer).await
}

struct Flow<'a> {
    seed: u64,
    /// What requests are made of; `None`: nobody checks.
    up: Option<Pattern>,
    down: Option<Pattern>,
    received: u64,
    sent: u64,
    verdict: Verdict,
    tally: &'a Tally,
}

/// What came where a call could come.
enum Request {
    /// A call and all of its request, and a buffer to use again.
    Whole(Call, Vec<u8>),
    /// The client has ended, between two calls or in the middle of one; the verdict knows which.
    End,
    /// Something else.
    NoCall,
}

impl Flow<'_> {
    async fn request<S: Socket>(&mut self, socket: &S, n: u64) -> io::Result<Request> {
        let mut buffer = vec![0; WAITING];
        let mut have = 0;
        while have < CALL {
            let (result, returned) = socket.read(buffer, have).await;
            buffer = returned;
            match result? {
                0 => {
                    if have > 0 {
                        self.end_early();
                    }
                    return Ok(Request::End);
                }
                len => have += len,
            }
        }
        let call = buffer[..CALL].as_array();
        let Some(call) = call.and_then(|bytes| Call::decode(bytes, self.seed, n)) else {
            return Ok(Request::NoCall);
        };
        let mut left = call.request;
        let first = (have - CALL) as u64;
        if first > left {
            // The client waits for its answer: nothing may follow a request.
            return Ok(Request::NoCall);
        }
        self.take(&buffer[CALL..have]);
        left -= first;
        if left > buffer.len() as u64 {
            buffer = vec![0; CHUNK];
        }
        while left > 0 {
            // A byte too many is then no call.
            buffer.truncate(usize::try_from(left).unwrap_or(CHUNK));
            let (result, returned) = socket.read(buffer, 0).await;
            buffer = returned;
            let len = result?;
            if len == 0 {
                self.end_early();
                return Ok(Request::End);
            }
            self.take(&buffer[..len]);
            left -= len as u64;
        }
        Ok(Request::Whole(call, buffer))
    }

    fn take(&mut self, bytes: &[u8]) {
        if let (Some(pattern), Verdict::Right) = (self.up, self.verdict)
            && let Err(mismatch) = pattern.check(self.received, bytes)
        {
            let position = mismatch.position;
            self.verdict = Verdict::Corrupt { position };
        }
        self.received += bytes.len() as u64;
        add(&self.tally.received, bytes.len() as u64);
    }

    fn end_early(&mut self) {
        if self.verdict == Verdict::Right {
            self.verdict = Verdict::Truncated;
        }
    }

    async fn respond<S: Socket>(
        &mut self,
        socket: &S,
        n: u64,
        call: Call,
        mut buffer: Vec<u8>,
    ) -> io::Result<()> {
        let tally = self.tally;
        let right = self.verdict == Verdict::Right;
        let mut left = call.response;
        // The answer leaves with the first bytes of the response.
        buffer.clear();
        buffer.extend(calls::answer(self.seed, n, right));
        let mut start = ANSWER;
        loop {
            let payload = left.min((CHUNK - start) as u64);
            buffer.resize(start + usize::try_from(payload).unwrap_or(CHUNK), 0);
            if let Some(pattern) = self.down {
                pattern.fill(self.sent, &mut buffer[start..]);
            }
            let len = buffer.len();
            let (result, returned) = socket.write_all(buffer, 0..len, &|_| ()).await;
            buffer = returned;
            result?;
            add(&tally.sent, payload);
            self.sent += payload;
            left -= payload;
            start = 0;
            if left == 0 {
                return Ok(());
            }
        }
    }
}
