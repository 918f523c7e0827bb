//! Readiness by mio that imitates completions: for every platform, and for containers that forbid
//! io_uring.
//!
//! Sockets are watched by edges: an event sets a flag, an operation that would block clears it. An
//! operation is tried in [`wait`](Io::wait) when its flag is up, so that a turn's operations leave
//! together as they do with `ring`.

mod datagrams;
mod stream;

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mio::unix::SourceFd;
use mio::{Events, Interest, Token, net};
use socket2::SockAddr;

use super::buffers::{ReceiveBuffer, TransmitBuffers};
use super::chunks::Chunks;
use super::table::Table;
use super::udp::Udp;
use super::{
    ACCEPT_PAUSE, Close, Completion, Counters, DatagramBuffer, Io, SocketId, Transmit, Waker,
    is_exhaustion, socket,
};
use stream::{Stream, errno};

/// The most events of one turn.
const EVENTS_MAX: usize = 256;

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

/// Wakes a [`Poll`].
#[derive(Clone)]
pub struct PollWaker {
    waker: Arc<mio::Waker>,
    woken: Arc<AtomicBool>,
}

impl Waker for PollWaker {
    fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            // The eventfd's counter cannot overflow: it is written once for each time that the
            // worker saw it.
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

    fn listen(&mut self, listener: impl Into<socket::Listener>) -> io::Result<SocketId> {
        let listener = listener.into().system()?;
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

    fn adopt(&mut self, stream: socket::Stream) -> io::Result<SocketId> {
        let stream = stream.system()?;
        stream.set_nonblocking(true)?;
        Ok(self.insert(net::TcpStream::from_std(stream)))
    }

    fn release(&mut self, socket: SocketId) -> Option<socket::Stream> {
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
        let stream = TcpStream::from(OwnedFd::from(stream.stream));
        Some(socket::Stream::System(stream))
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<SocketId> {
        let outgoing = socket::outgoing(to)?;
        self.counters.system_calls += 5;
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

    fn settle(&mut self, socket: SocketId) {
        let Some(stream) = self.stream(socket) else {
            return;
        };
        if let Err(error) = socket::settle(&stream.stream) {
            tracing::debug!(%error, "a connection has no keep-alive");
        }
        self.counters.system_calls += 5;
    }

    fn local_address(&mut self, socket: SocketId) -> Option<SocketAddr> {
        self.counters.system_calls += 1;
        let stream = &self.stream(socket)?.stream;
        socket::local_address(&socket2::SockRef::from(stream)).ok()
    }

    fn has_stalled(&mut self, socket: SocketId, length: Duration) -> bool {
        self.counters.system_calls += 1;
        self.stream(socket).is_none_or(|stream| {
            socket::has_stalled(&socket2::SockRef::from(&stream.stream), length)
        })
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

    fn send_quietly(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        if let Some(stream) = self.stream(socket) {
            stream.quiet = true;
            self.send(socket, chunks);
        }
    }

    fn send_last(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        if let Some(stream) = self.stream(socket) {
            stream.last = true;
            self.send(socket, chunks);
        }
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
        let urgent = self.run(completions);
        let timeout = if urgent || self.has_more() {
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
        self.sockets.insert(Entry::Stream(Stream::new(stream)))
    }

    fn stream(&mut self, id: SocketId) -> Option<&mut Stream> {
        match self.sockets.get(id)? {
            Entry::Stream(stream) => Some(stream),
            Entry::Listener(_) => None,
        }
    }

    /// Plans a look at a socket, if any of its operations may succeed; watches it from its first
    /// operation on.
    fn enqueue(&mut self, id: SocketId) {
        let Some(Entry::Stream(stream)) = self.sockets.get(id) else {
            return;
        };
        if !stream.registered {
            stream.registered = true;
            let fd = stream.stream.as_raw_fd();
            self.counters.system_calls += 1;
            if let Err(error) =
                self.poll
                    .registry()
                    .register(&mut SourceFd(&fd), token(id), stream_interest())
            {
                stream.failed = Some(errno(&error));
            }
        }
        if stream.is_runnable() && !stream.queued {
            stream.queued = true;
            self.runnable.push_back(id);
        }
    }

    /// Tries what may succeed. Tells whether anything came of it that is worth a turn.
    fn run(&mut self, completions: &mut Vec<Completion>) -> bool {
        let mut urgent = false;
        for _ in 0..self.runnable.len().min(TRIES_MAX) {
            let Some(id) = self.runnable.pop_front() else {
                break;
            };
            let Some(Entry::Stream(stream)) = self.sockets.get(id) else {
                continue;
            };
            stream.queued = false;
            urgent |= stream.run(
                id,
                &mut self.receive_buffer,
                &mut self.counters,
                completions,
            );
            // A send that came to its end within one try leaves nothing; one that was cut short
            // waits for an edge.
            if stream.is_runnable() {
                stream.queued = true;
                self.runnable.push_back(id);
            }
        }
        urgent
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
                    // Down before the worker looks at its queues: what comes after that look wakes
                    // again.
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
}

/// What is wanted to know of a connection: all that there is.
fn stream_interest() -> Interest {
    let interest = Interest::READABLE | Interest::WRITABLE;
    #[cfg(target_os = "linux")]
    let interest = interest | Interest::PRIORITY;
    interest
}

fn token(id: SocketId) -> Token {
    Token(id.index as usize)
}
