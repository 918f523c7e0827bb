//! Readiness by mio that imitates completions: for every platform, and for containers that forbid io_uring.
//!
//! Sockets are watched by edges: an event sets a flag, an operation that would block clears it. An operation is tried in
//! [`wait`](Io::wait) when its flag is up, so that a turn's operations leave together as they do with `ring`.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Token, net};
use socket2::{SockAddr, SockRef};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::buffers::{ReceiveBuffer, TransmitBuffers};
use super::chunks::Chunks;
use super::table::Table;
use super::udp::Udp;
use super::{
    ACCEPT_PAUSE, Close, Completion, Counters, DATAGRAMS_SIZE, DatagramBuffer, Datagrams,
    GATHER_MAX, Io, READ_SIZE, SocketId, Transmit, Waker, is_exhaustion, socket,
};

/// The most events of one turn.
const EVENTS_MAX: usize = 256;

/// The most datagram batches of one turn, of up to 64 KiB each: enough to fill a turn, few enough to let TCP have its own.
const BATCHES_MAX: usize = 16;

/// The most connections that a listener accepts in one turn.
const ACCEPTS_MAX: usize = 64;

/// The most sockets whose operations are tried in one turn beside those with events.
const TRIES_MAX: usize = 256;

const UDP: Token = Token(usize::MAX);
const WAKE: Token = Token(usize::MAX - 1);

/// The backend.
pub struct Poll {
    poll: mio::Poll,
    events: Events,
    waker: PollWaker,
    sockets: Table<Entry>,
    /// Sockets with an operation that may succeed now. A socket is in here at most once.
    runnable: VecDeque<SocketId>,
    listeners: Listeners,
    udp: Udp,
    udp_readable: bool,
    udp_writable: bool,
    datagram_buffer: BytesMut,
    transmits: TransmitBuffers,
    /// Filled buffers that the kernel had no room for, in order.
    blocked: VecDeque<(DatagramBuffer, Transmit)>,
    receive_buffer: ReceiveBuffer,
    counters: Counters,
}

enum Entry {
    Listener(Listener),
    Stream(Stream),
}

struct Listener {
    listener: net::TcpListener,
    readable: bool,
}

/// Listeners that want a look in the next turn, and those that wait for descriptors.
#[derive(Default)]
struct Listeners {
    ready: Vec<SocketId>,
    paused: Vec<(Instant, SocketId)>,
}

struct Stream {
    stream: net::TcpStream,
    registered: bool,
    queued: bool,
    connecting: bool,
    receiving: bool,
    watching: bool,
    readable: bool,
    writable: bool,
    /// FIN or an error came: there is no further edge to wait for.
    ended: bool,
    errored: bool,
    sending: Option<Chunks>,
    /// The socket's error, once any operation has taken it from the kernel, which tells it only once.
    failed: Option<i32>,
}

/// Wakes a [`Poll`].
#[derive(Clone)]
pub struct PollWaker {
    waker: Arc<mio::Waker>,
    woken: Arc<AtomicBool>,
}

impl Waker for PollWaker {
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            // The eventfd's counter cannot overflow: it is written once for each time that the worker saw it.
            let _ = self.waker.wake();
        }
    }
}

impl Poll {
    /// A backend with this UDP socket.
    ///
    /// # Errors
    /// No descriptors or no memory.
    pub fn new(udp: Udp) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let waker = PollWaker {
            waker: Arc::new(mio::Waker::new(poll.registry(), WAKE)?),
            woken: Arc::new(AtomicBool::new(false)),
        };
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut SourceFd(&udp.socket().as_raw_fd()), UDP, interest)?;
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            waker,
            sockets: Table::new(),
            runnable: VecDeque::new(),
            listeners: Listeners::default(),
            udp,
            udp_readable: false,
            udp_writable: true,
            datagram_buffer: BytesMut::new(),
            transmits: TransmitBuffers::new(),
            blocked: VecDeque::new(),
            receive_buffer: ReceiveBuffer::default(),
            counters: Counters::default(),
        })
    }

    /// Its UDP socket.
    pub fn udp(&self) -> &Udp {
        &self.udp
    }
}

impl Io for Poll {
    type Waker = PollWaker;

    fn name(&self) -> &'static str {
        "poll"
    }

    fn waker(&self) -> PollWaker {
        self.waker.clone()
    }

    fn listen(&mut self, listener: TcpListener) -> io::Result<SocketId> {
        listener.set_nonblocking(true)?;
        let listener = net::TcpListener::from_std(listener);
        let fd = listener.as_raw_fd();
        let id = self.sockets.insert(Entry::Listener(Listener {
            listener,
            readable: false,
        }));
        let registered =
            self.poll
                .registry()
                .register(&mut SourceFd(&fd), token(id), Interest::READABLE);
        if let Err(error) = registered {
            self.sockets.remove(id);
            return Err(error);
        }
        Ok(id)
    }

    fn adopt(&mut self, stream: TcpStream) -> io::Result<SocketId> {
        stream.set_nonblocking(true)?;
        Ok(self.insert(net::TcpStream::from_std(stream)))
    }

    fn release(&mut self, socket: SocketId) -> Option<TcpStream> {
        self.stream(socket)?;
        let Some(Entry::Stream(stream)) = self.sockets.remove(socket) else {
            return None;
        };
        if stream.registered {
            let _ = self
                .poll
                .registry()
                .deregister(&mut SourceFd(&stream.stream.as_raw_fd()));
        }
        Some(TcpStream::from(OwnedFd::from(stream.stream)))
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<SocketId> {
        let outgoing = socket::outgoing(to)?;
        self.counters.system_calls += 6;
        let started = outgoing.connect(&SockAddr::from(to));
        let stream = net::TcpStream::from(OwnedFd::from(outgoing));
        let id = self.insert(stream);
        let stream = self.stream(id).expect("inserted above");
        stream.connecting = true;
        match started {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                stream.writable = false;
            }
            Err(error) => stream.failed = Some(errno(&error)),
        }
        self.enqueue(id);
        Ok(id)
    }

    fn receive(&mut self, socket: SocketId) {
        let Some(stream) = self.stream(socket) else {
            return;
        };
        stream.receiving = true;
        stream.watching = false;
        self.enqueue(socket);
    }

    fn watch(&mut self, socket: SocketId) {
        let Some(stream) = self.stream(socket) else {
            return;
        };
        stream.watching = true;
        self.enqueue(socket);
    }

    fn send(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        let Some(stream) = self.stream(socket) else {
            return;
        };
        stream.sending = Some(Chunks::new(chunks));
        self.enqueue(socket);
    }

    fn shutdown(&mut self, socket: SocketId) {
        let Some(stream) = self.stream(socket) else {
            return;
        };
        // It fails where the connection has failed, which other operations tell.
        let _ = stream.stream.shutdown(Shutdown::Write);
        self.counters.system_calls += 1;
    }

    fn close(&mut self, socket: SocketId, how: Close) {
        let Some(entry) = self.sockets.remove(socket) else {
            return;
        };
        self.counters.system_calls += 1;
        if let (Entry::Stream(stream), Close::Clean) = (&entry, how) {
            socket::lift_linger(&stream.stream);
            self.counters.system_calls += 1;
        }
        // Closing the descriptor takes it out of the watched set, too.
        drop(entry);
    }

    fn datagram_buffer(&mut self) -> Option<DatagramBuffer> {
        self.transmits.take()
    }

    fn send_datagrams(&mut self, buffer: DatagramBuffer, transmit: &Transmit) {
        self.blocked.push_back((buffer, *transmit));
        self.send_blocked();
    }

    fn return_buffer(&mut self, buffer: DatagramBuffer) {
        self.transmits.put(buffer);
    }

    fn max_segments(&self) -> usize {
        self.udp.max_segments()
    }

    fn wait(
        &mut self,
        deadline: Option<Instant>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let before = completions.len();
        self.run(completions);
        let timeout = if completions.len() > before || self.has_more() {
            Some(Duration::ZERO)
        } else {
            self.timeout(deadline)
        };
        self.counters.system_calls += 1;
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        self.take_events(completions);
        self.run(completions);
        self.resume_listeners();
        self.accept(completions);
        self.receive_datagrams(completions);
        if self.transmits.take_freed() {
            completions.push(Completion::BufferFree);
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Poll {
    fn insert(&mut self, stream: net::TcpStream) -> SocketId {
        self.sockets.insert(Entry::Stream(Stream {
            stream,
            registered: false,
            queued: false,
            connecting: false,
            receiving: false,
            watching: false,
            // Tried before the first event: an application often speaks at once.
            readable: true,
            writable: true,
            ended: false,
            errored: false,
            sending: None,
            failed: None,
        }))
    }

    fn stream(&mut self, id: SocketId) -> Option<&mut Stream> {
        match self.sockets.get(id)? {
            Entry::Stream(stream) => Some(stream),
            Entry::Listener(_) => None,
        }
    }

    /// Plans a look at a socket, if any of its operations may succeed; watches it from its first operation on.
    fn enqueue(&mut self, id: SocketId) {
        let Some(Entry::Stream(stream)) = self.sockets.get(id) else {
            return;
        };
        if !stream.registered {
            stream.registered = true;
            let interest = Interest::READABLE | Interest::WRITABLE;
            let fd = stream.stream.as_raw_fd();
            self.counters.system_calls += 1;
            if let Err(error) =
                self.poll
                    .registry()
                    .register(&mut SourceFd(&fd), token(id), interest)
            {
                stream.failed = Some(errno(&error));
            }
        }
        if stream.is_runnable() && !stream.queued {
            stream.queued = true;
            self.runnable.push_back(id);
        }
    }

    fn run(&mut self, completions: &mut Vec<Completion>) {
        for _ in 0..self.runnable.len().min(TRIES_MAX) {
            let Some(id) = self.runnable.pop_front() else {
                return;
            };
            let Some(Entry::Stream(stream)) = self.sockets.get(id) else {
                continue;
            };
            stream.queued = false;
            stream.run(
                id,
                &mut self.receive_buffer,
                &mut self.counters,
                completions,
            );
            // A send that came to its end within one try leaves nothing; one that was cut short waits for an edge.
            if stream.is_runnable() {
                stream.queued = true;
                self.runnable.push_back(id);
            }
        }
    }

    /// Whether the next turn has work without any event.
    fn has_more(&self) -> bool {
        !self.runnable.is_empty()
            || !self.listeners.ready.is_empty()
            || self.udp_readable
            || self.transmits.has_freed()
    }

    fn timeout(&self, deadline: Option<Instant>) -> Option<Duration> {
        let resume = self.listeners.paused.iter().map(|(at, _)| *at).min();
        let until = match (deadline, resume) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn take_events(&mut self, completions: &mut Vec<Completion>) {
        for event in &self.events {
            match event.token() {
                UDP => {
                    self.udp_readable |= event.is_readable() || event.is_error();
                    self.udp_writable |= event.is_writable() || event.is_error();
                }
                WAKE => {
                    // Down before the worker looks at its queues: what comes after that look wakes again.
                    self.waker.woken.store(false, Ordering::SeqCst);
                    completions.push(Completion::Woken);
                }
                Token(index) => {
                    let Some(id) = self.sockets.at(index as u32) else {
                        continue;
                    };
                    match self.sockets.get(id) {
                        Some(Entry::Listener(listener)) if !listener.readable => {
                            listener.readable = true;
                            self.listeners.ready.push(id);
                        }
                        Some(Entry::Stream(stream)) => {
                            stream.note(event);
                            if stream.is_runnable() && !stream.queued {
                                stream.queued = true;
                                self.runnable.push_back(id);
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        if self.udp_writable && !self.blocked.is_empty() {
            self.send_blocked();
        }
    }

    fn resume_listeners(&mut self) {
        if self.listeners.paused.is_empty() {
            return;
        }
        let now = Instant::now();
        let Listeners { ready, paused } = &mut self.listeners;
        paused.retain(|(at, id)| {
            let resumes = *at <= now;
            if resumes {
                ready.push(*id);
            }
            !resumes
        });
    }

    fn accept(&mut self, completions: &mut Vec<Completion>) {
        for id in std::mem::take(&mut self.listeners.ready) {
            if let Some(again) = self.accept_from(id, completions) {
                match again {
                    Duration::ZERO => self.listeners.ready.push(id),
                    pause => self.listeners.paused.push((Instant::now() + pause, id)),
                }
            }
        }
    }

    /// Accepts what is there. Tells when to go on where the kernel did not say "no more".
    fn accept_from(&mut self, id: SocketId, completions: &mut Vec<Completion>) -> Option<Duration> {
        for _ in 0..ACCEPTS_MAX {
            let Some(Entry::Listener(listener)) = self.sockets.get(id) else {
                return None;
            };
            self.counters.system_calls += 1;
            let accepted = listener.listener.accept();
            let failure = match accepted {
                Ok((stream, peer)) => {
                    let stream = TcpStream::from(OwnedFd::from(stream));
                    match socket::accepted(&stream) {
                        Ok(()) => {
                            let socket = self.insert(net::TcpStream::from_std(stream));
                            completions.push(Completion::Accepted {
                                listener: id,
                                socket: Ok((socket, peer)),
                            });
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    listener.readable = false;
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            let pause = is_exhaustion(&failure);
            completions.push(Completion::Accepted {
                listener: id,
                socket: Err(failure),
            });
            if pause {
                return Some(ACCEPT_PAUSE);
            }
        }
        Some(Duration::ZERO)
    }

    fn receive_datagrams(&mut self, completions: &mut Vec<Completion>) {
        let mut batches = 0;
        while self.udp_readable && batches < BATCHES_MAX {
            batches += 1;
            self.counters.system_calls += 1;
            let mut buffer = std::mem::take(&mut self.datagram_buffer);
            if buffer.capacity() < DATAGRAMS_SIZE {
                buffer = BytesMut::with_capacity(DATAGRAMS_SIZE);
            }
            match self.udp.receive(buffer) {
                Ok(batch) => completions.push(Completion::Datagrams(self.compact(batch))),
                Err((buffer, error)) => {
                    self.datagram_buffer = buffer;
                    // Any other error is one of an earlier send, told late: the next receive goes on.
                    self.udp_readable = error.kind() != io::ErrorKind::WouldBlock;
                }
            }
        }
    }

    /// Copies a small batch out, so that it does not pin a large buffer, and keeps the buffer.
    fn compact(&mut self, mut batch: Datagrams) -> Datagrams {
        if batch.data.len() < super::COPY_BELOW {
            let copy = BytesMut::from(&batch.data[..]);
            self.counters.bytes_copied += copy.len() as u64;
            self.datagram_buffer = std::mem::replace(&mut batch.data, copy);
            self.datagram_buffer.clear();
        }
        batch
    }

    fn send_blocked(&mut self) {
        while self.udp_writable {
            let Some((buffer, transmit)) = self.blocked.pop_front() else {
                return;
            };
            self.counters.system_calls += 1;
            match self.udp.send(&buffer.data, &transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.udp_writable = false;
                    self.blocked.push_front((buffer, transmit));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.blocked.push_front((buffer, transmit));
                }
                sent => {
                    if let Err(error) = sent {
                        self.counters.datagram_send_errors += 1;
                        self.udp.note_send_error(errno(&error));
                    }
                    self.transmits.put(buffer);
                }
            }
        }
    }
}

impl Stream {
    fn note(&mut self, event: &Event) {
        let failed = event.is_error();
        self.errored |= failed;
        self.ended |= failed || event.is_read_closed();
        self.readable |= event.is_readable() || self.ended;
        self.writable |= event.is_writable() || failed || event.is_write_closed();
    }

    fn is_runnable(&self) -> bool {
        let failed = self.failed.is_some() || self.errored;
        if self.connecting {
            return failed || self.writable;
        }
        (self.sending.is_some() && (failed || self.writable))
            || (self.receiving && (failed || self.readable))
            || (self.watching && failed)
    }

    /// Tries each operation that may succeed once.
    fn run(
        &mut self,
        id: SocketId,
        buffer: &mut ReceiveBuffer,
        counters: &mut Counters,
        completions: &mut Vec<Completion>,
    ) {
        if self.connecting {
            return self.finish_connect(id, counters, completions);
        }
        if self.sending.is_some() && (self.writable || self.failed.is_some()) {
            counters.system_calls += 1;
            if let Some(result) = self.write() {
                self.sending = None;
                completions.push(Completion::Sent { socket: id, result });
            }
        }
        if self.receiving && (self.readable || self.failed.is_some()) {
            counters.system_calls += 1;
            if let Some(result) = self.read(buffer, counters) {
                self.receiving = false;
                completions.push(Completion::Received { socket: id, result });
            }
        }
        if self.watching && (self.errored || self.failed.is_some()) {
            self.watching = false;
            let error = self.take_error().unwrap_or(libc::ECONNRESET);
            self.failed = Some(error);
            completions.push(Completion::HungUp {
                socket: id,
                error: io::Error::from_raw_os_error(error),
            });
        }
    }

    fn finish_connect(
        &mut self,
        id: SocketId,
        counters: &mut Counters,
        completions: &mut Vec<Completion>,
    ) {
        counters.system_calls += 2;
        let result = match self.take_error() {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            // An event before its time: still on the way.
            None if self.stream.peer_addr().is_err() => {
                self.writable = false;
                self.errored = false;
                return;
            }
            None => Ok(()),
        };
        self.connecting = false;
        completions.push(Completion::Connected { socket: id, result });
    }

    /// The socket's error, kept from now on: the kernel tells it once, and afterwards a receive would look like FIN.
    fn take_error(&mut self) -> Option<i32> {
        if self.failed.is_none() {
            self.failed = match self.stream.take_error() {
                Ok(error) => error.as_ref().map(errno),
                Err(error) => Some(errno(&error)),
            };
        }
        self.failed
    }

    /// Writes what the kernel takes. `None` while there is more.
    fn write(&mut self) -> Option<io::Result<usize>> {
        if let Some(error) = self.failed {
            return Some(Err(io::Error::from_raw_os_error(error)));
        }
        let chunks = self.sending.as_mut()?;
        match send(&self.stream, chunks.rest()) {
            Ok(sent) => {
                chunks.advance(sent);
                if chunks.is_done() {
                    return Some(Ok(chunks.total()));
                }
                // Cut short: the kernel is full and will say when it is not. Others than Linux want to be asked once more.
                self.writable = !cfg!(target_os = "linux");
                None
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) => {
                self.failed = Some(errno(&error));
                Some(Err(error))
            }
        }
    }

    /// Reads what is there. `None` if nothing is.
    fn read(
        &mut self,
        buffer: &mut ReceiveBuffer,
        counters: &mut Counters,
    ) -> Option<io::Result<Bytes>> {
        if let Some(error) = self.failed {
            return Some(Err(io::Error::from_raw_os_error(error)));
        }
        let socket = SockRef::from(&self.stream);
        match buffer.fill(|space| socket.recv(space)) {
            Ok(len) => {
                // Not filled: nothing is left, and the next byte makes an edge. FIN and errors made theirs, so they are remembered.
                if cfg!(target_os = "linux") && len > 0 && len < READ_SIZE {
                    self.readable = self.ended;
                }
                Some(Ok(buffer.take(len, &mut counters.bytes_copied)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            Err(error) => {
                self.failed = Some(errno(&error));
                Some(Err(error))
            }
        }
    }
}

fn send<S: AsFd>(stream: &S, chunks: &[Bytes]) -> io::Result<usize> {
    let socket = SockRef::from(stream);
    #[cfg(target_os = "linux")]
    const FLAGS: i32 = libc::MSG_NOSIGNAL;
    #[cfg(not(target_os = "linux"))]
    const FLAGS: i32 = 0;
    match chunks {
        [chunk] => socket.send_with_flags(chunk, FLAGS),
        chunks => {
            let mut slices = [IoSlice::new(&[]); GATHER_MAX];
            let count = chunks.len().min(GATHER_MAX);
            for (slice, chunk) in slices.iter_mut().zip(chunks) {
                *slice = IoSlice::new(chunk);
            }
            socket.send_vectored_with_flags(&slices[..count], FLAGS)
        }
    }
}

fn token(id: SocketId) -> Token {
    Token(id.index as usize)
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::ECONNRESET)
}
