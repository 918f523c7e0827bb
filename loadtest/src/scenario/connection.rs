//! One connection of a scenario's flow, as a client speaks it: calls one after another, each
//! checked to its last byte, and a proper end.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use super::Protocol;
use super::alarm::{Alarm, TICK};
use crate::calls::{ANSWER, CALL, Call, read_answer};
use crate::endpoint::CHUNK;
use crate::flow::Fault;
use crate::incoming::{Wrong, corrupt};
use crate::io::Socket;
use crate::pattern::Pattern;
use crate::wire::{HEADER, Header, Style, TRAILER, Trailer, Verdict};

/// A slow reader takes its bytes in this many parts a second, so that it is slow and not just late.
const SIPS_PER_SECOND: u64 = 20;

/// Or in parts of this many bytes, one packet's, where those would be smaller.
const SIP_MIN: u64 = 1_448;

/// What a connection tells while it works.
pub(super) trait Observer {
    /// Bytes of a request that the kernel took.
    fn moved_up(&self, len: usize);
    /// Bytes of a response that came.
    fn moved_down(&self, len: usize);
    /// Still alive, though by its own will no byte moves.
    fn paused(&self);
}

/// The state of one connection; its socket is an argument.
pub(super) struct Connection<'a, O> {
    protocol: Protocol,
    seed: u64,
    up: Pattern,
    down: Pattern,
    verify: bool,
    /// The header, until it has left with the first request.
    greeting: Option<[u8; HEADER]>,
    calls: u64,
    sent: u64,
    received: u64,
    throttle: Option<Throttle<'a>>,
    observer: O,
    buffer: Vec<u8>,
}

/// How fast a slow reader reads.
pub(super) struct Throttle<'a> {
    rate: u64,
    alarm: &'a Alarm,
    next: Cell<Instant>,
}

impl<'a, O: Observer> Connection<'a, O> {
    /// Before its first call. Both ends make its bytes from the seed.
    pub(super) fn new(
        protocol: Protocol,
        seed: u64,
        verify: bool,
        throttle: Option<Throttle<'a>>,
        observer: O,
    ) -> Connection<'a, O> {
        let header = Header {
            style: Style::Calls { verified: verify },
            seed,
            up: None,
            down: None,
        };
        let up = header.up_pattern();
        let (greeting, down) = match protocol {
            Protocol::Call => (Some(header.encode()), header.down_pattern()),
            Protocol::Echo | Protocol::Discard => (None, up),
        };
        Connection {
            protocol,
            seed,
            up,
            down,
            verify,
            greeting,
            calls: 0,
            sent: 0,
            received: 0,
            throttle,
            observer,
            buffer: Vec::new(),
        }
    }

    /// One request, and all of its response.
    pub(super) async fn call<S: Socket>(
        &mut self,
        socket: &S,
        request: u64,
        response: u64,
    ) -> Result<(), Fault> {
        let n = self.calls;
        self.calls += 1;
        match self.protocol {
            Protocol::Call => {
                self.send(socket, Some(Call { request, response }), n, request)
                    .await?;
                let first = self.answer(socket, n, response).await?;
                self.receive(socket, response - first).await
            }
            // In parts, for an echo server need not take more than it has returned.
            Protocol::Echo => {
                let mut left = request;
                while left > 0 {
                    let part = left.min(CHUNK as u64);
                    self.send(socket, None, n, part).await?;
                    self.receive(socket, part).await?;
                    left -= part;
                }
                Ok(())
            }
            Protocol::Discard => self.send(socket, None, n, request).await,
        }
    }

    /// The end that both sides agree on: FIN, then the endpoint's verdict, then its FIN.
    pub(super) async fn close<S: Socket>(mut self, socket: &S) -> Result<(), Fault> {
        if let Some(greeting) = self.greeting.take() {
            self.buffer = greeting.to_vec();
            self.write(socket, HEADER).await?;
        }
        socket.finish().map_err(|error| failed("end", error))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(TRAILER + 1, 0);
        let mut have = 0;
        loop {
            if have == buffer.len() {
                return Err(too_many("the end"));
            }
            let (result, returned) = socket.read(buffer, have).await;
            buffer = returned;
            match result.map_err(|error| failed("receive", error))? {
                0 => break,
                len => have += len,
            }
        }
        match (self.protocol, buffer[..have].as_array()) {
            (Protocol::Call, Some(bytes)) => match Trailer::decode(bytes) {
                Some(trailer) => self.judge(&trailer),
                None => Err(corrupt_text("the endpoint's verdict is none")),
            },
            (Protocol::Call, None) => Err(truncated(format!(
                "clean end after {have} bytes of the endpoint's verdict"
            ))),
            (_, _) if have == 0 => Ok(()),
            _ => Err(too_many("the end")),
        }
    }

    /// The call, if there is one, and the request.
    async fn send<S: Socket>(
        &mut self,
        socket: &S,
        call: Option<Call>,
        n: u64,
        len: u64,
    ) -> Result<(), Fault> {
        self.buffer.clear();
        self.buffer
            .extend(self.greeting.take().into_iter().flatten());
        if let Some(call) = call {
            self.buffer.extend(call.encode(self.seed, n));
        }
        let mut start = self.buffer.len();
        let mut left = len;
        loop {
            let payload = left.min((CHUNK - start) as u64);
            self.buffer
                .resize(start + usize::try_from(payload).unwrap_or(CHUNK), 0);
            if self.verify {
                self.up.fill(self.sent, &mut self.buffer[start..]);
            }
            self.write(socket, start).await?;
            self.sent += payload;
            left -= payload;
            start = 0;
            if left == 0 {
                return Ok(());
            }
        }
    }

    /// All of the buffer; what follows `overhead` is the request's.
    async fn write<S: Socket>(&mut self, socket: &S, overhead: usize) -> Result<(), Fault> {
        let buffer = std::mem::take(&mut self.buffer);
        let len = buffer.len();
        let taken = Cell::new(0);
        let progress = |part: usize| {
            let before = taken.get().max(overhead);
            taken.set(taken.get() + part);
            self.observer.moved_up(taken.get().max(overhead) - before);
        };
        let (result, returned) = socket.write_all(buffer, 0..len, &progress).await;
        self.buffer = returned;
        result.map_err(|error| failed("send", error))
    }

    /// The endpoint's answer, and the bytes of the response that came with it.
    async fn answer<S: Socket>(&mut self, socket: &S, n: u64, response: u64) -> Result<u64, Fault> {
        let room = ANSWER as u64 + response;
        let mut have = 0;
        self.room(room);
        while have < ANSWER {
            let len = self.read(socket, have).await?;
            if len == 0 {
                return Err(truncated(format!(
                    "clean end after {have} bytes of answer {n}"
                )));
            }
            have += len;
        }
        let bytes: Option<&[u8; ANSWER]> = self.buffer[..ANSWER].as_array();
        match bytes.and_then(|bytes| read_answer(bytes, self.seed, n)) {
            Some(true) => {}
            Some(false) => return Err(corrupt_text("the request was wrong at the endpoint")),
            None if Trailer::starts_with(&self.buffer[..ANSWER]) => {
                return Err(self.verdict_instead(socket, have).await);
            }
            None => {
                return Err(Wrong::Corrupt(format!("answer {n} is none")).into());
            }
        }
        let first = have - ANSWER;
        self.check(ANSWER, first)?;
        Ok(first as u64)
    }

    /// The rest of a response.
    async fn receive<S: Socket>(&mut self, socket: &S, mut left: u64) -> Result<(), Fault> {
        while left > 0 {
            self.room(left);
            self.sip().await;
            let len = self.read(socket, 0).await?;
            if len == 0 {
                return Err(truncated(format!(
                    "clean end at byte {} of a response, {left} missing",
                    self.received
                )));
            }
            self.check(0, len)?;
            left -= len as u64;
        }
        Ok(())
    }

    /// Checks `len` bytes of the response.
    fn check(&mut self, from: usize, len: usize) -> Result<(), Fault> {
        if self.verify {
            self.down
                .check(self.received, &self.buffer[from..from + len])
                .map_err(corrupt)?;
        }
        self.received += len as u64;
        self.observer.moved_down(len);
        if let Some(throttle) = &self.throttle {
            throttle.took(len);
        }
        Ok(())
    }

    /// Makes the buffer as long as what may come, at most a chunk: so nothing beyond is read.
    fn room(&mut self, wanted: u64) {
        let most = self
            .throttle
            .as_ref()
            .map_or(CHUNK, |throttle| throttle.sip());
        let len = usize::try_from(wanted)
            .unwrap_or(most)
            .min(most.max(ANSWER));
        self.buffer.resize(len, 0);
    }

    async fn read<S: Socket>(&mut self, socket: &S, from: usize) -> Result<usize, Fault> {
        let buffer = std::mem::take(&mut self.buffer);
        let (result, returned) = socket.read(buffer, from).await;
        self.buffer = returned;
        result.map_err(|error| failed("receive", error))
    }

    /// A slow reader's pause.
    async fn sip(&self) {
        if let Some(throttle) = &self.throttle {
            let next = throttle.alarm.tick_from(throttle.next.get());
            throttle.alarm.wait(next).await;
            self.observer.paused();
        }
    }

    /// An endpoint that ends the conversation in the place of an answer says why.
    async fn verdict_instead<S: Socket>(&mut self, socket: &S, mut have: usize) -> Fault {
        self.buffer.resize(TRAILER.max(have), 0);
        while have < TRAILER {
            match self.read(socket, have).await {
                Ok(0) => return truncated("clean end in the endpoint's verdict".into()),
                Ok(len) => have += len,
                Err(fault) => return fault,
            }
        }
        let trailer = self.buffer[..TRAILER].as_array().and_then(Trailer::decode);
        match trailer.map(|trailer| trailer.verdict) {
            Some(Verdict::NotServed) => Fault::Failed("the endpoint does not serve calls".into()),
            Some(Verdict::Truncated) => truncated("clean end in a request at the endpoint".into()),
            _ => corrupt_text("the endpoint could not read the call"),
        }
    }

    /// Both ends' counts beside each other.
    fn judge(&self, trailer: &Trailer) -> Result<(), Fault> {
        let (sent, received) = (self.sent, self.received);
        match trailer.verdict {
            Verdict::Right if (trailer.received, trailer.sent) == (sent, received) => Ok(()),
            Verdict::Right => Err(Wrong::Corrupt(format!(
                "{} bytes up and {} down at the endpoint, {sent} and {received} here",
                trailer.received, trailer.sent
            ))
            .into()),
            Verdict::Corrupt { position } => {
                Err(Wrong::Corrupt(format!("byte {position} was wrong at the endpoint")).into())
            }
            Verdict::Truncated => Err(truncated(format!(
                "clean end at byte {} of {sent} at the endpoint",
                trailer.received
            ))),
            Verdict::NotServed => Err(Fault::Failed("the endpoint does not serve calls".into())),
        }
    }
}

impl<'a> Throttle<'a> {
    /// At most `rate` bytes a second.
    pub(super) fn new(rate: u64, alarm: &'a Alarm) -> Throttle<'a> {
        Throttle {
            rate: rate.max(1),
            alarm,
            next: Cell::new(Instant::now()),
        }
    }

    /// Bytes that are read at once.
    fn sip(&self) -> usize {
        let sip = (self.rate / SIPS_PER_SECOND).max(SIP_MIN.min(self.rate));
        usize::try_from(sip).unwrap_or(CHUNK).min(CHUNK)
    }

    /// The next bytes may be read when these would have been through. What a tick came late is made
    /// good, and nothing more.
    fn took(&self, len: usize) {
        let time = Duration::from_secs_f64(len as f64 / self.rate as f64);
        let now = Instant::now();
        let earliest = now.checked_sub(TICK).unwrap_or(now);
        self.next.set(self.next.get().max(earliest) + time);
    }
}

fn failed(what: &str, error: io::Error) -> Fault {
    Fault::Failed(format!("{what}: {error}"))
}

fn truncated(what: String) -> Fault {
    Wrong::Truncated(what).into()
}

fn corrupt_text(what: &str) -> Fault {
    Wrong::Corrupt(what.into()).into()
}

fn too_many(at: &str) -> Fault {
    Wrong::Corrupt(format!("more bytes at {at} than were asked for")).into()
}

const _: () = assert!(HEADER + CALL < CHUNK && ANSWER < TRAILER);
