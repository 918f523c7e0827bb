//! io_uring: one ring for TCP and UDP, one system call a turn.
//!
//! Operations are queued as entries and leave together in [`wait`](Io::wait); the kernel works completions out while the worker waits.
//! What the kernel points into (buffers, addresses, message headers) stays in its slot until the operation's last completion came.

#![expect(unsafe_code, reason = "the kernel is given pointers")]

mod datagrams;
mod provided;
mod queue;
mod stream;

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{opcode, squeue};
use socket2::{SockAddr, SockRef};

use super::chunks::Chunks;
use super::table::Table;
use super::udp::Udp;
use super::{
    ACCEPT_PAUSE, COPY_BELOW, Close, Completion, Counters, DatagramBuffer, Io, READ_SIZE, SocketId,
    Transmit, Waker, is_exhaustion, socket,
};
use datagrams::Datagrams;
use provided::Provided;
use queue::{Done, Kind, Queue, Token};
use stream::Stream;

/// Receive buffers for TCP, [`READ_SIZE`] each: the most that the kernel may fill before the worker looks. A receive that finds none waits for the next turn.
const BUFFERS: u16 = 128;

/// Group of the TCP receive buffers.
const GROUP_STREAMS: u16 = 0;

/// Group of the datagram receive buffers.
const GROUP_DATAGRAMS: u16 = 1;

/// The most completions of one turn. More stay in the queue for the next.
const COMPLETIONS_MAX: usize = 512;

/// How long a ring that ends waits for its cancelled operations.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Receive: arm a poll at once instead of trying first, for a socket that had nothing left (`IORING_RECVSEND_POLL_FIRST`).
const POLL_FIRST: u16 = 1;

/// The backend. Made and used on one thread.
pub struct Ring {
    queue: Queue,
    sockets: Table<Entry>,
    provided: Provided,
    /// Receives that found no buffer, in order.
    starved: VecDeque<SocketId>,
    /// Sockets whose watch is to be armed, unless a receive comes before the turn's end.
    watches: Vec<SocketId>,
    /// Failures noticed outside of a completion.
    hung_up: Vec<SocketId>,
    /// Listeners whose accept ended, and when to accept again.
    paused: Vec<(Instant, SocketId)>,
    datagrams: Datagrams,
    waker: RingWaker,
    wake_armed: bool,
    done: Vec<Done>,
    counters: Counters,
}

enum Entry {
    Listener(Listener),
    Stream(Stream),
}

struct Listener {
    fd: OwnedFd,
    accepting: bool,
    closing: bool,
}

/// Wakes a [`Ring`].
#[derive(Clone)]
pub struct RingWaker {
    shared: Arc<WakeState>,
}

struct WakeState {
    event: OwnedFd,
    woken: AtomicBool,
}

impl Waker for RingWaker {
    fn wake(&self) {
        if self.shared.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the kernel reads eight bytes of `one`. The counter is written once for each time that the worker saw it, so it never overflows.
        unsafe {
            libc::write(
                self.shared.event.as_raw_fd(),
                one.as_ptr().cast(),
                one.len(),
            )
        };
    }
}

impl Ring {
    /// A backend with this UDP socket, for the thread that calls.
    ///
    /// # Errors
    /// The kernel does not permit io_uring, or lacks what is needed (6.1 has it all).
    pub fn new(udp: Udp) -> io::Result<Self> {
        let queue = Queue::new()?;
        let provided = Provided::register(&queue, GROUP_STREAMS, BUFFERS, READ_SIZE, 0)?;
        let datagrams = Datagrams::new(udp, &queue, GROUP_DATAGRAMS)?;
        Ok(Self {
            queue,
            sockets: Table::new(),
            provided,
            starved: VecDeque::new(),
            watches: Vec::new(),
            hung_up: Vec::new(),
            paused: Vec::new(),
            datagrams,
            waker: RingWaker::new()?,
            wake_armed: false,
            done: Vec::with_capacity(COMPLETIONS_MAX),
            counters: Counters::default(),
        })
    }

    /// Its UDP socket.
    pub fn udp(&self) -> &Udp {
        &self.datagrams.udp
    }
}

impl Io for Ring {
    type Waker = RingWaker;

    fn name(&self) -> &'static str {
        "ring"
    }

    fn waker(&self) -> RingWaker {
        self.waker.clone()
    }

    fn listen(&mut self, listener: TcpListener) -> io::Result<SocketId> {
        let id = self.sockets.insert(Entry::Listener(Listener {
            fd: listener.into(),
            accepting: false,
            closing: false,
        }));
        self.accept(id);
        Ok(id)
    }

    fn adopt(&mut self, stream: TcpStream) -> io::Result<SocketId> {
        Ok(self.insert(stream.into()))
    }

    fn release(&mut self, socket: SocketId) -> Option<TcpStream> {
        if self.stream(socket)?.under_way > 0 {
            return None;
        }
        match self.sockets.remove(socket)? {
            Entry::Stream(stream) => Some(stream.fd.into()),
            Entry::Listener(_) => None,
        }
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<SocketId> {
        let outgoing = socket::outgoing(to)?;
        self.counters.system_calls += 6;
        let address = Box::new(SockAddr::from(to));
        let entry = opcode::Connect::new(
            Fd(outgoing.as_raw_fd()),
            address.as_ptr().cast(),
            address.len(),
        )
        .build();
        let id = self.insert(outgoing.into());
        let stream = open(&mut self.sockets, id).expect("inserted above");
        stream.address = Some(address);
        stream.under_way += 1;
        // SAFETY: the address is boxed and kept until the completion.
        unsafe { self.queue.push(Token::of_socket(Kind::Connect, id), entry) };
        Ok(id)
    }

    fn receive(&mut self, socket: SocketId) {
        let Some(stream) = open(&mut self.sockets, socket) else {
            return;
        };
        stream.watching = false;
        if !stream.receiving {
            self.arm_receive(socket);
        }
    }

    fn watch(&mut self, socket: SocketId) {
        let Some(stream) = open(&mut self.sockets, socket) else {
            return;
        };
        stream.watching = true;
        if stream.errored || stream.failed.is_some() {
            self.hung_up.push(socket);
        } else if !stream.watch_armed {
            self.watches.push(socket);
        }
    }

    fn send(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        let Some(stream) = open(&mut self.sockets, socket) else {
            return;
        };
        stream.sending = Some(Chunks::new(chunks));
        self.go_on_sending(socket);
    }

    fn shutdown(&mut self, socket: SocketId) {
        let Some(stream) = open(&mut self.sockets, socket) else {
            return;
        };
        // By a call: as an operation of the ring it would go to a thread of the kernel. It fails where the connection has failed, which other operations tell.
        let _ = SockRef::from(&stream.fd).shutdown(Shutdown::Write);
        self.counters.system_calls += 1;
    }

    fn close(&mut self, socket: SocketId, how: Close) {
        match self.sockets.get(socket) {
            Some(Entry::Stream(_)) => self.close_stream(socket, how),
            Some(Entry::Listener(_)) => self.close_listener(socket),
            None => {}
        }
    }

    fn datagram_buffer(&mut self) -> Option<DatagramBuffer> {
        self.datagrams.transmits.take()
    }

    fn send_datagrams(&mut self, buffer: DatagramBuffer, transmit: &Transmit) {
        self.datagrams.send(&mut self.queue, buffer, transmit);
    }

    fn return_buffer(&mut self, buffer: DatagramBuffer) {
        self.datagrams.transmits.put(buffer);
    }

    fn max_segments(&self) -> usize {
        self.datagrams.udp.max_segments()
    }

    fn wait(
        &mut self,
        deadline: Option<Instant>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let before = completions.len();
        self.tell_hung_up(completions);
        loop {
            self.arm_watches();
            self.resume_listeners();
            self.feed_starved();
            self.arm_wake();
            self.datagrams.arm(&mut self.queue);
            let in_hand = completions.len() > before
                || !self.starved.is_empty()
                || self.datagrams.transmits.has_freed();
            let timeout = if in_hand {
                Some(Duration::ZERO)
            } else {
                self.timeout(deadline)
            };
            self.queue.enter(timeout)?;
            self.collect(completions);
            // Completions that concern nobody outside (cancellations, polls) do not end the wait.
            if completions.len() > before || timeout == Some(Duration::ZERO) {
                return Ok(());
            }
        }
    }

    fn counters(&self) -> Counters {
        let mut counters = self.counters;
        counters.system_calls += self.queue.system_calls;
        counters
    }
}

/// What the operations above queue.
impl Ring {
    fn insert(&mut self, fd: OwnedFd) -> SocketId {
        self.sockets.insert(Entry::Stream(Stream::new(fd)))
    }

    fn stream(&mut self, id: SocketId) -> Option<&mut Stream> {
        open(&mut self.sockets, id)
    }

    fn accept(&mut self, id: SocketId) {
        let Some(Entry::Listener(listener)) = self.sockets.get(id) else {
            return;
        };
        if listener.closing || listener.accepting {
            return;
        }
        listener.accepting = true;
        let entry = opcode::AcceptMulti::new(Fd(listener.fd.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build();
        // SAFETY: the entry points at nothing.
        unsafe { self.queue.push(Token::of_socket(Kind::Accept, id), entry) };
    }

    fn arm_receive(&mut self, id: SocketId) {
        let Some(stream) = open(&mut self.sockets, id) else {
            return;
        };
        stream.receiving = true;
        stream.under_way += 1;
        let entry = opcode::Recv::new(Fd(stream.fd.as_raw_fd()), std::ptr::null_mut(), 0)
            .buf_group(self.provided.group())
            .ioprio(if stream.drained { POLL_FIRST } else { 0 })
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        // SAFETY: the kernel writes into a provided buffer, which lives as long as the ring's operations.
        unsafe { self.queue.push(Token::of_socket(Kind::Receive, id), entry) };
    }

    fn go_on_sending(&mut self, id: SocketId) {
        let Some(stream) = open(&mut self.sockets, id) else {
            return;
        };
        let Some(entry) = stream.send_entry() else {
            return;
        };
        stream.under_way += 1;
        // SAFETY: chunks and message stay in the stream, which stays in its slot, until the completion.
        unsafe { self.queue.push(Token::of_socket(Kind::Send, id), entry) };
    }

    fn close_listener(&mut self, id: SocketId) {
        let Some(Entry::Listener(listener)) = self.sockets.get(id) else {
            return;
        };
        if listener.closing {
            return;
        }
        listener.closing = true;
        // Ends listening at once, while the accept still holds the socket.
        let _ = SockRef::from(&listener.fd).shutdown(Shutdown::Both);
        self.paused.retain(|(_, paused)| *paused != id);
        self.cancel_or_remove(id);
    }

    fn close_stream(&mut self, id: SocketId, how: Close) {
        let Some(stream) = open(&mut self.sockets, id) else {
            return;
        };
        stream.closing = true;
        match how {
            Close::Clean => socket::lift_linger(&stream.fd),
            // What is under way holds the socket open beyond close(2): the peer gets its RST now, and the operations end by it.
            Close::Reset if stream.under_way > 0 => disconnect(&stream.fd),
            Close::Reset => {}
        }
        self.counters.system_calls += 2;
        self.cancel_or_remove(id);
    }

    /// Closes a socket, once nothing is under way on it.
    fn cancel_or_remove(&mut self, id: SocketId) {
        let (fd, busy) = match self.sockets.get(id) {
            Some(Entry::Stream(stream)) => (stream.fd.as_raw_fd(), stream.under_way > 0),
            Some(Entry::Listener(listener)) => (listener.fd.as_raw_fd(), listener.accepting),
            None => return,
        };
        if !busy {
            self.sockets.remove(id);
            return;
        }
        let entry = opcode::AsyncCancel2::new(CancelBuilder::fd(Fd(fd)).all()).build();
        // SAFETY: the entry points at nothing.
        unsafe { self.queue.push(Token::of_socket(Kind::Cancel, id), entry) };
    }
}

/// What a turn does around its system call.
impl Ring {
    fn tell_hung_up(&mut self, completions: &mut Vec<Completion>) {
        for id in std::mem::take(&mut self.hung_up) {
            if let Some(stream) = open(&mut self.sockets, id)
                && stream.watching
            {
                completions.push(stream.hang_up(id));
            }
        }
    }

    /// Arms the watches that are still wanted. One that was armed stays until the socket is closed: it costs nothing while nothing happens.
    fn arm_watches(&mut self) {
        for id in std::mem::take(&mut self.watches) {
            let Some(stream) = open(&mut self.sockets, id) else {
                continue;
            };
            if !stream.watching || stream.watch_armed {
                continue;
            }
            stream.watch_armed = true;
            stream.under_way += 1;
            let entry = opcode::PollAdd::new(Fd(stream.fd.as_raw_fd()), libc::POLLERR as u32)
                .multi(true)
                .build();
            // SAFETY: the entry points at nothing.
            unsafe { self.queue.push(Token::of_socket(Kind::Watch, id), entry) };
        }
    }

    fn resume_listeners(&mut self) {
        if self.paused.is_empty() {
            return;
        }
        let now = Instant::now();
        let (due, paused): (Vec<_>, _) = std::mem::take(&mut self.paused)
            .into_iter()
            .partition(|(at, _)| *at <= now);
        self.paused = paused;
        for (_, id) in due {
            self.accept(id);
        }
    }

    /// Arms as many of the receives that found no buffer as there are buffers.
    fn feed_starved(&mut self) {
        for _ in 0..self.starved.len().min(self.provided.stock()) {
            if let Some(id) = self.starved.pop_front() {
                self.arm_receive(id);
            }
        }
    }

    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        self.wake_armed = true;
        let event = Fd(self.waker.shared.event.as_raw_fd());
        let entry = opcode::PollAdd::new(event, libc::POLLIN as u32)
            .multi(true)
            .build();
        // SAFETY: the entry points at nothing.
        unsafe { self.queue.push(Token::of_slot(Kind::Wake, 0), entry) };
    }

    fn timeout(&self, deadline: Option<Instant>) -> Option<Duration> {
        let resume = self.paused.iter().map(|(at, _)| *at).min();
        let until = match (deadline, resume) {
            (Some(a), Some(b)) => a.min(b),
            (a, b) => a.or(b)?,
        };
        Some(until.saturating_duration_since(Instant::now()))
    }

    fn collect(&mut self, completions: &mut Vec<Completion>) {
        let mut done = std::mem::take(&mut self.done);
        self.queue.reap(COMPLETIONS_MAX, &mut done);
        for done in done.drain(..) {
            self.take(done, completions);
        }
        self.done = done;
        self.provided.restock();
        self.datagrams.restock();
        if self.datagrams.transmits.take_freed() {
            completions.push(Completion::BufferFree);
        }
    }

    fn take(&mut self, done: Done, completions: &mut Vec<Completion>) {
        let Some(kind) = done.token.kind() else {
            return;
        };
        match kind {
            Kind::DatagramsIn => {
                return self
                    .datagrams
                    .received(done, &mut self.counters, completions);
            }
            Kind::DatagramsOut => return self.datagrams.sent(done, &mut self.counters),
            Kind::Wake => return self.woken(done, completions),
            Kind::Cancel => return,
            Kind::Accept | Kind::Connect | Kind::Receive | Kind::Send | Kind::Watch => {}
        }
        let id = self
            .sockets
            .at(done.token.index())
            .filter(|id| done.token.is_of(*id));
        let id = id.expect("a socket stays in its slot until its last completion");
        match kind {
            Kind::Accept => self.accepted(id, done, completions),
            Kind::Receive => self.received(id, done, completions),
            Kind::Send => self.sent(id, done, completions),
            Kind::Watch => self.watched(id, done, completions),
            _ => self.connected(id, done, completions),
        }
        self.remove_if_closed(id);
    }

    fn woken(&mut self, done: Done, completions: &mut Vec<Completion>) {
        self.wake_armed = done.more;
        // Down before the worker looks at its queues: what comes after that look wakes again. The eventfd need not be read: each write is an event.
        self.waker.shared.woken.store(false, Ordering::SeqCst);
        completions.push(Completion::Woken);
    }
}

/// What completions of sockets mean.
impl Ring {
    fn accepted(&mut self, id: SocketId, done: Done, completions: &mut Vec<Completion>) {
        let Some(Entry::Listener(listener)) = self.sockets.get(id) else {
            return;
        };
        listener.accepting = done.more;
        let closing = listener.closing;
        if done.result < 0 {
            if closing {
                return;
            }
            let error = io::Error::from_raw_os_error(-done.result);
            if is_exhaustion(&error) {
                self.paused.push((Instant::now() + ACCEPT_PAUSE, id));
            } else {
                self.accept(id);
            }
            completions.push(Completion::Accepted {
                listener: id,
                socket: Err(error),
            });
            return;
        }
        // SAFETY: the kernel just made this descriptor for this accept; nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(done.result) };
        if closing {
            return; // Closed with linger zero: the peer sees RST.
        }
        if !done.more {
            self.accept(id);
        }
        self.counters.system_calls += 1;
        let peer = SockRef::from(&fd).peer_addr().map(|peer| peer.as_socket());
        let socket = match peer {
            Ok(Some(peer)) => Ok((self.insert(fd), peer)),
            // It was reset before it was looked at.
            Ok(None) | Err(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        };
        completions.push(Completion::Accepted {
            listener: id,
            socket,
        });
    }

    fn connected(&mut self, id: SocketId, done: Done, completions: &mut Vec<Completion>) {
        let Some(Entry::Stream(stream)) = self.sockets.get(id) else {
            return;
        };
        stream.under_way -= 1;
        stream.address = None;
        if stream.closing {
            return;
        }
        let result = match done.result {
            0.. => Ok(()),
            error => Err(stream.fail(-error)),
        };
        completions.push(Completion::Connected { socket: id, result });
    }

    fn received(&mut self, id: SocketId, done: Done, completions: &mut Vec<Completion>) {
        let Some(Entry::Stream(stream)) = self.sockets.get(id) else {
            return;
        };
        stream.under_way -= 1;
        stream.receiving = false;
        if stream.closing || done.result <= 0 {
            if let Some(buffer) = done.buffer {
                self.provided.keep(buffer);
            }
            if !stream.closing {
                self.received_nothing(id, done.result, completions);
            }
            return;
        }
        let buffer = done.buffer.expect("what was received is in a buffer");
        let len = done.result as usize;
        stream.drained = !done.nonempty;
        stream.bytes_received += len as u64;
        let chunk = if len < COPY_BELOW {
            self.counters.bytes_copied += len as u64;
            let copy = Bytes::copy_from_slice(self.provided.filled(buffer, len));
            self.provided.keep(buffer);
            copy
        } else {
            self.provided.take(buffer, len).freeze()
        };
        completions.push(Completion::Received {
            socket: id,
            result: Ok(chunk),
        });
    }

    /// A receive that brought no bytes: it is tried again, or the stream has ended.
    fn received_nothing(&mut self, id: SocketId, result: i32, completions: &mut Vec<Completion>) {
        let Some(stream) = open(&mut self.sockets, id) else {
            return;
        };
        match -result {
            libc::ENOBUFS => {
                self.provided.ran_out();
                stream.receiving = true;
                stream.drained = false;
                self.starved.push_back(id);
            }
            libc::EAGAIN | libc::EINTR => self.arm_receive(id),
            error => {
                let result = stream.end(error);
                completions.push(Completion::Received { socket: id, result });
            }
        }
    }

    fn sent(&mut self, id: SocketId, done: Done, completions: &mut Vec<Completion>) {
        let Some(Entry::Stream(stream)) = self.sockets.get(id) else {
            return;
        };
        stream.under_way -= 1;
        if stream.closing {
            return;
        }
        let Some(chunks) = &mut stream.sending else {
            return;
        };
        match done.result {
            len @ 0.. => chunks.advance(len as usize),
            error if [-libc::EINTR, -libc::EAGAIN].contains(&error) => {}
            error => {
                stream.sending = None;
                let result = Err(stream.fail(-error));
                completions.push(Completion::Sent { socket: id, result });
                return;
            }
        }
        if !chunks.is_done() {
            return self.go_on_sending(id);
        }
        let result = Ok(chunks.total());
        stream.sending = None;
        completions.push(Completion::Sent { socket: id, result });
    }

    fn watched(&mut self, id: SocketId, done: Done, completions: &mut Vec<Completion>) {
        let Some(Entry::Stream(stream)) = self.sockets.get(id) else {
            return;
        };
        if !done.more {
            stream.under_way -= 1;
            stream.watch_armed = false;
        }
        if stream.closing {
            return;
        }
        // The kernel tells hang-up, too, which a FIN in both directions is; only an error is a failure.
        stream.errored |= done.result < 0 || done.result & i32::from(libc::POLLERR) != 0;
        if stream.watching && stream.errored {
            completions.push(stream.hang_up(id));
        } else if stream.watching && !stream.watch_armed {
            self.watches.push(id);
        }
    }

    fn remove_if_closed(&mut self, id: SocketId) {
        let closed = match self.sockets.get(id) {
            Some(Entry::Stream(stream)) => stream.closing && stream.under_way == 0,
            Some(Entry::Listener(listener)) => listener.closing && !listener.accepting,
            None => false,
        };
        if closed {
            self.sockets.remove(id);
        }
    }
}

impl Drop for Ring {
    /// Cancels everything and waits until the kernel has let go of the memory that it writes into.
    fn drop(&mut self) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
        // SAFETY: the entry points at nothing.
        unsafe { self.queue.push(Token::of_slot(Kind::Cancel, 0), entry) };
        let give_up = Instant::now() + END_PATIENCE;
        while self.queue.under_way() > 0 {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() || self.queue.enter(Some(left)).is_err() {
                tracing::error!(
                    operations = self.queue.under_way(),
                    "io_uring did not end, its buffers are never freed"
                );
                return self.leak();
            }
            self.done.clear();
            self.queue.reap(COMPLETIONS_MAX, &mut self.done);
        }
        self.provided.unregister(&self.queue);
        self.datagrams.unregister(&self.queue);
    }
}

impl RingWaker {
    fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if event < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            shared: Arc::new(WakeState {
                // SAFETY: just made, and nobody else has it.
                event: unsafe { OwnedFd::from_raw_fd(event) },
                woken: AtomicBool::new(false),
            }),
        })
    }
}

impl Ring {
    /// Never frees what the kernel may still read or write.
    fn leak(&mut self) {
        self.provided.leak();
        self.datagrams.leak();
        std::mem::forget(std::mem::replace(&mut self.sockets, Table::new()));
    }
}

/// A stream that is not closed.
fn open(sockets: &mut Table<Entry>, id: SocketId) -> Option<&mut Stream> {
    match sockets.get(id)? {
        Entry::Stream(stream) if !stream.closing => Some(stream),
        _ => None,
    }
}

/// Ends a connection with RST now, whoever still holds the socket.
fn disconnect(fd: &impl AsFd) {
    // SAFETY: all zeroes are a valid address; its family is AF_UNSPEC, which dissolves a connection.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address lives until the call returns and has the length that is told.
    unsafe { libc::connect(fd.as_fd().as_raw_fd(), &raw const nobody, len) };
}
