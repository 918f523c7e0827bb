//! The near end of one verified flow: opens it, sends, receives, and judges how it ended.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use crate::endpoint::CHUNK;
use crate::incoming::{self, Incoming, Wrong, corrupt};
use crate::io::{Socket, or_abort};
use crate::pattern::Mismatch;
use crate::run::Counters;
use crate::scenario::Stop;
use crate::wire::{Header, Style, TRAILER, Trailer, Verdict};

/// How soon a wish to stop is noticed by a flow that only receives.
const LOOK_EACH: Duration = Duration::from_millis(20);

/// How a flow ended; what was seen is told in words where it is not plain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Every byte came, in both directions, and both ends say so.
    Right,
    /// An explicit error: a failed connect, a reset.
    Failed(String),
    /// A byte was wrong, missing in the middle, or too many.
    Corrupt(String),
    /// A clean end after missing bytes.
    Truncated(String),
    /// No byte moved within the deadline.
    Hung(String),
}

impl Ending {
    /// In a word, as in reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Ending::Right => "ok",
            Ending::Failed(_) => "error",
            Ending::Corrupt(_) => "corrupt",
            Ending::Truncated(_) => "truncated",
            Ending::Hung(_) => "hung",
        }
    }
}

/// What one flow shall do.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) target: SocketAddr,
    pub(crate) header: Header,
    /// Send in messages of this length and wait for each one to come back.
    pub(crate) ping_pong: Option<usize>,
    /// When to end what has no length.
    pub(crate) until: Option<Instant>,
    /// Ends what has no length before that.
    pub(crate) stop: Stop,
    /// The longest time without a byte, connecting included.
    pub(crate) stall: Duration,
}

impl Task {
    /// Whether what has no length shall end now.
    fn is_over(&self) -> bool {
        self.stop.is_stopped() || self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Ends when it is.
    async fn over(&self) {
        while !self.is_over() {
            let next = Instant::now() + LOOK_EACH;
            sleep_until(self.until.map_or(next, |until| until.min(next))).await;
        }
    }
}

/// Times of one flow.
#[derive(Default, Debug)]
pub(crate) struct Times {
    pub(crate) connect: Option<Duration>,
    /// From the start of the connect to the first byte from the endpoint.
    pub(crate) first_byte: Option<Duration>,
    pub(crate) whole: Duration,
    /// The longest time without a byte, once connected.
    pub(crate) silence: Option<Duration>,
}

/// Runs one flow to its end. `round_trip` is told the time of each message that came back.
pub(crate) async fn run<S: Socket>(
    task: &Task,
    counters: &Counters,
    round_trip: impl FnMut(Duration),
) -> (Ending, Times) {
    let start = Instant::now();
    let mut times = Times::default();
    let ending = match timeout(task.stall, TcpStream::connect(task.target)).await {
        Err(_) => Ending::Hung(format!("no connection within {:?}", task.stall)),
        Ok(Err(error)) => Ending::Failed(format!("connect: {error}")),
        Ok(Ok(stream)) => {
            times.connect = Some(start.elapsed());
            let pulse = Pulse::new(start, counters);
            let ending = connected::<S>(stream, task, &pulse, round_trip).await;
            times.first_byte = pulse.first_byte.get();
            times.silence = Some(pulse.silence.get().max(pulse.last.get().elapsed()));
            ending
        }
    };
    times.whole = start.elapsed();
    (ending, times)
}

async fn connected<S: Socket>(
    stream: TcpStream,
    task: &Task,
    pulse: &Pulse<'_>,
    round_trip: impl FnMut(Duration),
) -> Ending {
    let socket = match S::adopt(stream) {
        Ok(socket) => socket,
        Err(error) => return Ending::Failed(format!("socket: {error}")),
    };
    let conversation = async {
        match task.ping_pong {
            Some(message) => ping_pong(&socket, task, message, pulse, round_trip).await,
            None => both_ways(&socket, task, pulse).await,
        }
    };
    let (result, stalled) = or_abort(&socket, conversation, pulse.stalled(task.stall)).await;
    if stalled {
        return Ending::Hung(format!(
            "no byte for {:?}, after {} up and {} down",
            task.stall,
            pulse.up.get(),
            pulse.down.get()
        ));
    }
    match result {
        Ok(()) => Ending::Right,
        Err(fault) => {
            socket.abort();
            fault.into()
        }
    }
}

/// Why a conversation is not right.
#[derive(Debug)]
pub(crate) enum Fault {
    Failed(String),
    Wrong(Wrong),
}

impl From<Fault> for Ending {
    fn from(fault: Fault) -> Ending {
        match fault {
            Fault::Failed(why) => Ending::Failed(why),
            Fault::Wrong(Wrong::Corrupt(why)) => Ending::Corrupt(why),
            Fault::Wrong(Wrong::Truncated(why)) => Ending::Truncated(why),
        }
    }
}

impl From<Wrong> for Fault {
    fn from(wrong: Wrong) -> Fault {
        Fault::Wrong(wrong)
    }
}

/// Sends and receives at once.
async fn both_ways<S: Socket>(socket: &S, task: &Task, pulse: &Pulse<'_>) -> Result<(), Fault> {
    let ended = Notify::new();
    let up = send(socket, task, &ended, pulse);
    let down = async {
        let result = receive(
            socket,
            Incoming::new(task.header.down_pattern(), 0),
            Vec::new(),
            pulse,
        )
        .await;
        if result.is_err() {
            // Frees a sender that waits for a peer that reads no more. Not by a reset: the sender
            // shall see one that comes from outside.
            let _ = socket.finish();
        }
        ended.notify_one();
        result
    };
    let (sent, received) = tokio::join!(up, down);
    let sent = match sent {
        // Linux tells a reset once: the sender got the error, so the receiver got an end that looks
        // clean but is none. (After a true end from the peer, a reset is a broken pipe to the
        // sender.)
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !is_corrupt(&received) => {
            return Err(Fault::Failed(format!("send: {error}")));
        }
        sent => sent,
    };
    let (received, trailer) = received?;
    let sent = sent.map_err(|error| Fault::Failed(format!("send: {error}")))?;
    judge(&task.header, sent, received, trailer)
}

fn is_corrupt<T>(result: &Result<T, Fault>) -> bool {
    matches!(result, Err(Fault::Wrong(Wrong::Corrupt(_))))
}

/// Header, pattern, FIN. Gives the number of bytes after the header.
async fn send<S: Socket>(
    socket: &S,
    task: &Task,
    ended: &Notify,
    pulse: &Pulse<'_>,
) -> io::Result<u64> {
    send_header(socket, &task.header).await?;
    let pattern = task.header.up_pattern();
    let target = task.header.up.unwrap_or(u64::MAX);
    let expired = || task.is_over();
    let mut buffer = vec![0; CHUNK.min(usize::try_from(target).unwrap_or(CHUNK))];
    let mut sent = 0;
    while sent < target && (task.header.up.is_some() || !expired()) {
        let len = buffer
            .len()
            .min(usize::try_from(target - sent).unwrap_or(CHUNK));
        pattern.fill(sent, &mut buffer[..len]);
        let (result, returned) = socket
            .write_all(buffer, 0..len, &|len| pulse.moved_up(len))
            .await;
        buffer = returned;
        result?;
        sent += len as u64;
    }
    if task.header.down.is_none() && task.until.is_some() {
        // FIN is what asks the endpoint to end.
        tokio::select! {
            () = task.over() => {}
            () = ended.notified() => {}
        }
    }
    socket.finish()?;
    Ok(sent)
}

/// One message at a time, there and back.
async fn ping_pong<S: Socket>(
    socket: &S,
    task: &Task,
    message: usize,
    pulse: &Pulse<'_>,
    mut round_trip: impl FnMut(Duration),
) -> Result<(), Fault> {
    let failed = |what: &str, error: io::Error| Fault::Failed(format!("{what}: {error}"));
    send_header(socket, &task.header)
        .await
        .map_err(|error| failed("send", error))?;
    let pattern = task.header.up_pattern();
    let target = task.header.up.unwrap_or(u64::MAX);
    let mut buffer = vec![0; message];
    let mut moved = 0;
    while moved < target && (task.header.up.is_some() || !task.is_over()) {
        buffer.truncate(usize::try_from(target - moved).unwrap_or(message));
        let len = buffer.len();
        pattern.fill(moved, &mut buffer);
        let start = Instant::now();
        let (result, returned) = socket
            .write_all(buffer, 0..len, &|len| pulse.moved_up(len))
            .await;
        buffer = returned;
        result.map_err(|error| failed("send", error))?;
        let mut back = 0;
        while back < len {
            let (result, returned) = socket.read(buffer, back).await;
            buffer = returned;
            let more = result.map_err(|error| failed("receive", error))?;
            pulse.moved_down(more);
            let wrong = pattern
                .check(moved + back as u64, &buffer[back..back + more])
                .err();
            back += more;
            if more == 0 || wrong.is_some() {
                return broken_off(socket, task, moved, &buffer[..back], wrong, pulse).await;
            }
        }
        round_trip(start.elapsed());
        moved += len as u64;
    }
    socket.finish().map_err(|error| failed("send", error))?;
    let (received, trailer) =
        receive(socket, Incoming::new(pattern, moved), Vec::new(), pulse).await?;
    judge(&task.header, moved, received, trailer)
}

/// An answer to the message at `moved` that is wrong or ended: perhaps it is the endpoint's verdict
/// that came early.
async fn broken_off<S: Socket>(
    socket: &S,
    task: &Task,
    moved: u64,
    answer: &[u8],
    wrong: Option<Mismatch>,
    pulse: &Pulse<'_>,
) -> Result<(), Fault> {
    let pattern = task.header.up_pattern();
    if let Some(mismatch) = wrong
        && !incoming::may_end_here(pattern, moved, answer)
    {
        return Err(corrupt(mismatch).into());
    }
    // The endpoint reads to our end; if the socket is gone, receiving tells why.
    let _ = socket.finish();
    let (received, trailer) = receive(
        socket,
        Incoming::new(pattern, moved),
        answer.to_vec(),
        pulse,
    )
    .await?;
    // The message that was sent whole counts as sent.
    let sent = moved + task.ping_pong.unwrap_or(0) as u64;
    judge(
        &task.header,
        task.header.up.map_or(sent, |up| sent.min(up)),
        received,
        trailer,
    )
}

async fn send_header<S: Socket>(socket: &S, header: &Header) -> io::Result<()> {
    let bytes = header.encode().to_vec();
    let len = bytes.len();
    socket.write_all(bytes, 0..len, &|_| ()).await.0
}

/// Checks what has come and all that comes, to the end. Gives the number of bytes before the
/// trailer, and the trailer.
async fn receive<S: Socket>(
    socket: &S,
    mut incoming: Incoming,
    mut buffer: Vec<u8>,
    pulse: &Pulse<'_>,
) -> Result<(u64, Trailer), Fault> {
    let len = buffer.len();
    buffer.resize(len + CHUNK + TRAILER, 0);
    incoming.take(&mut buffer, len)?;
    loop {
        let (result, returned) = socket.read(buffer, incoming.held()).await;
        buffer = returned;
        match result {
            Ok(0) => return Ok(incoming.end(&buffer)?),
            Ok(len) => {
                pulse.moved_down(len);
                incoming.take(&mut buffer, len)?;
            }
            Err(error) => return Err(Fault::Failed(format!("receive: {error}"))),
        }
    }
}

/// Puts both ends' counts and the endpoint's verdict together.
fn judge(header: &Header, sent: u64, received: u64, trailer: Trailer) -> Result<(), Fault> {
    let expected = match header.style {
        Style::Echo => sent,
        Style::Exchange | Style::Calls { .. } => header.down.unwrap_or(trailer.sent),
    };
    match trailer.verdict {
        Verdict::NotServed => Err(Fault::Failed(
            "the endpoint does not serve such flows".into(),
        )),
        Verdict::Corrupt { position } => {
            Err(Wrong::Corrupt(format!("byte {position} was wrong at the endpoint")).into())
        }
        Verdict::Truncated => Err(Wrong::Truncated(format!(
            "clean end at byte {} of {sent} at the endpoint",
            trailer.received
        ))
        .into()),
        Verdict::Right if trailer.received < sent => Err(Wrong::Truncated(format!(
            "clean end at byte {} of {sent} at the endpoint",
            trailer.received
        ))
        .into()),
        Verdict::Right if trailer.received > sent => Err(Wrong::Corrupt(format!(
            "{} bytes at the endpoint of {sent} sent",
            trailer.received
        ))
        .into()),
        Verdict::Right if received != expected || trailer.sent != expected => Err(Wrong::Corrupt(
            format!("{received} bytes of {expected} before the endpoint's verdict"),
        )
        .into()),
        Verdict::Right => Ok(()),
    }
}

/// Life signs of a flow.
struct Pulse<'a> {
    start: Instant,
    last: Cell<Instant>,
    silence: Cell<Duration>,
    first_byte: Cell<Option<Duration>>,
    up: Cell<u64>,
    down: Cell<u64>,
    counters: &'a Counters,
}

impl Pulse<'_> {
    fn new(start: Instant, counters: &Counters) -> Pulse<'_> {
        Pulse {
            start,
            last: Cell::new(Instant::now()),
            silence: Cell::default(),
            first_byte: Cell::new(None),
            up: Cell::new(0),
            down: Cell::new(0),
            counters,
        }
    }

    fn moved_up(&self, len: usize) {
        self.beats(Instant::now());
        self.up.set(self.up.get() + len as u64);
        self.counters.moved_up(len);
    }

    fn moved_down(&self, len: usize) {
        let now = Instant::now();
        self.beats(now);
        if self.first_byte.get().is_none() {
            self.first_byte.set(Some(now - self.start));
        }
        self.down.set(self.down.get() + len as u64);
        self.counters.moved_down(len);
    }

    fn beats(&self, now: Instant) {
        let silent = now - self.last.replace(now);
        self.silence.set(self.silence.get().max(silent));
    }

    /// Ends when no byte has moved for `limit`.
    async fn stalled(&self, limit: Duration) {
        loop {
            let due = self.last.get() + limit;
            if Instant::now() >= due {
                return;
            }
            sleep_until(due).await;
        }
    }
}
