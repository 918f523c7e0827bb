//! io_uring: one ring for TCP and UDP, one system call a turn.
//!
//! Operations are queued as entries and leave together in [`wait`](Io::wait); the kernel works
//! completions out while the worker waits. What the kernel points into (buffers, addresses, message
//! headers) stays in its slot until the operation's last completion came.

#![expect(unsafe_code, reason = "the kernel is given pointers")]

mod alarm;
mod datagrams;
mod outcome;
mod provided;
mod queue;
mod stream;
mod submit;
mod wake;

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_uring::opcode;
use io_uring::types::{CancelBuilder, Fd};
use socket2::{SockAddr, SockRef};

use super::table::Table;
use super::udp::Udp;
use super::{
    Close, Completion, Counters, DatagramBuffer, Io, READ_SIZE, SocketId, Transmit, socket,
};
use alarm::Alarm;
use datagrams::Datagrams;
use provided::Provided;
use queue::{Done, Kind, Queue, Token};
use stream::{Gathers, Stream};

pub use wake::RingWaker;

/// Receive buffers for TCP, [`READ_SIZE`] each: the most that the kernel may fill before the worker
/// looks. A receive that finds none waits for the next turn.
const BUFFERS: u16 = 128;

/// Group of the TCP receive buffers.
const GROUP_STREAMS: u16 = 0;

/// Group of the datagram receive buffers.
const GROUP_DATAGRAMS: u16 = 1;

/// The most completions of one turn. More stay in the queue for the next.
const COMPLETIONS_MAX: usize = 512;

/// How long a ring that ends waits for its cancelled operations.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Receive: arm a poll at once instead of trying first, for a socket that had nothing left
/// (`IORING_RECVSEND_POLL_FIRST`).
const POLL_FIRST: u16 = 1;

/// The backend. Made and used on one thread.
pub struct Ring {
    queue: Queue,
    sockets: Table<Entry>,
    gathers: Gathers,
    provided: Provided,
    /// Receives to arm at the turn's end, behind what the turn sends: what was made for the kernel
    /// is still in the cache then.
    receives: Vec<SocketId>,
    /// Receives that found no buffer, in order.
    starved: VecDeque<SocketId>,
    /// Sockets whose watch is to be armed, unless a receive comes before the turn's end.
    watches: Vec<SocketId>,
    /// Failures noticed outside of a completion.
    hung_up: Vec<SocketId>,
    /// Listeners whose accept ended, and when to accept again.
    paused: Vec<(Instant, SocketId)>,
    datagrams: Datagrams,
    alarm: Alarm,
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
            gathers: Gathers::default(),
            provided,
            receives: Vec::new(),
            starved: VecDeque::new(),
            watches: Vec::new(),
            hung_up: Vec::new(),
            paused: Vec::new(),
            datagrams,
            alarm: Alarm::new(),
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

    fn listen(&mut self, listener: impl Into<socket::Listener>) -> io::Result<SocketId> {
        let listener = listener.into().system()?;
        let id = self.sockets.insert(Entry::Listener(Listener {
            fd: listener.into(),
            accepting: false,
            closing: false,
        }));
        self.accept(id);
        Ok(id)
    }

    fn adopt(&mut self, stream: socket::Stream) -> io::Result<SocketId> {
        let stream = stream.system()?;
        Ok(self.insert(stream.into()))
    }

    fn release(&mut self, socket: SocketId) -> Option<socket::Stream> {
        if self.stream(socket)?.under_way > 0 {
            return None;
        }
        match self.sockets.remove(socket)? {
            Entry::Stream(stream) => Some(socket::Stream::System(stream.fd.into())),
            Entry::Listener(_) => None,
        }
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<SocketId> {
        let outgoing = socket::outgoing(to)?;
        self.counters.system_calls += 4;
        let address = Box::new(SockAddr::from(to));
        let entry = opcode::Connect::new(
            Fd(outgoing.as_raw_fd()),
            address.as_ptr().cast(),
            address.len(),
        )
        .build();
        let id = self.insert(outgoing.into());
        let stream = open(&mut self.sockets, id).expect("inserted above");
        // Whom it connects to has said nothing yet, most of the time.
        stream.drained = true;
        stream.address = Some(address);
        stream.under_way += 1;
        // SAFETY: the address is boxed and kept until the completion.
        unsafe { self.queue.push(Token::of_socket(Kind::Connect, id), entry) };
        Ok(id)
    }

    fn settle(&mut self, socket: SocketId) {
        let Some(stream) = open(&mut self.sockets, socket) else {
            return;
        };
        if let Err(error) = socket::settle(&stream.fd) {
            tracing::debug!(%error, "a connection has no keep-alive");
        }
        self.counters.system_calls += 5;
    }

    fn local_address(&mut self, socket: SocketId) -> Option<SocketAddr> {
        self.counters.system_calls += 1;
        let stream = open(&mut self.sockets, socket)?;
        socket::local_address(&SockRef::from(&stream.fd)).ok()
    }

    fn has_stalled(&mut self, socket: SocketId, length: Duration) -> bool {
        self.counters.system_calls += 1;
        open(&mut self.sockets, socket)
            .is_none_or(|stream| socket::has_stalled(&SockRef::from(&stream.fd), length))
    }

    fn receive(&mut self, socket: SocketId) {
        let Some(stream) = open(&mut self.sockets, socket) else {
            return;
        };
        stream.watching = false;
        if !stream.receiving {
            stream.receiving = true;
            self.receives.push(socket);
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
        self.keep_to_send(socket, chunks);
        self.go_on_sending(socket);
    }

    fn send_quietly(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        self.keep_to_send(socket, chunks);
        self.begin_sending_quietly(socket);
    }

    fn send_last(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        if let Some(stream) = open(&mut self.sockets, socket) {
            stream.last = true;
        }
        self.send(socket, chunks);
    }

    fn shutdown(&mut self, socket: SocketId) {
        let Some(stream) = open(&mut self.sockets, socket) else {
            return;
        };
        // By a call: as an operation of the ring it would go to a thread of the kernel. It fails
        // where the connection has failed, which other operations tell.
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
            self.arm_receives();
            self.resume_listeners();
            self.feed_starved();
            self.arm_wake();
            self.datagrams.arm(&mut self.queue);
            let in_hand = completions.len() > before
                || !self.starved.is_empty()
                || self.datagrams.transmits.has_freed()
                || (self.datagrams.transmits.is_wanted() && self.queue.has_quiet());
            let sleeps = !in_hand && self.set_alarm(deadline);
            self.queue.enter((!sleeps).then_some(Duration::ZERO))?;
            self.collect(completions);
            // Completions that concern nobody outside (cancellations, polls, an alarm that went off
            // early) do not end the wait.
            if completions.len() > before
                || !sleeps
                || deadline.is_some_and(|deadline| deadline <= Instant::now())
            {
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

    /// Arms the watches that are still wanted. One that was armed stays until the socket is closed:
    /// it costs nothing while nothing happens.
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

    fn arm_receives(&mut self) {
        let mut receives = std::mem::take(&mut self.receives);
        for id in receives.drain(..) {
            self.arm_receive(id);
        }
        self.receives = receives;
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
        let event = Fd(self.waker.event());
        let entry = opcode::PollAdd::new(event, libc::POLLIN as u32)
            .multi(true)
            .build();
        // SAFETY: the entry points at nothing.
        unsafe { self.queue.push(Token::of_slot(Kind::Wake, 0), entry) };
    }

    /// Whether there is time to sleep, and if so, sees to waking up.
    fn set_alarm(&mut self, deadline: Option<Instant>) -> bool {
        let resume = self.paused.iter().map(|(at, _)| *at).min();
        let Some(until) = deadline.into_iter().chain(resume).min() else {
            return true;
        };
        let now = Instant::now();
        if until <= now {
            return false;
        }
        self.alarm.set(&mut self.queue, until, now);
        true
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
            Kind::DatagramsOut => {
                return self
                    .datagrams
                    .sent(&mut self.queue, done, &mut self.counters);
            }
            Kind::Wake => return self.woken(done, completions),
            Kind::Alarm => return self.alarm.rang(),
            Kind::Cancel | Kind::AlarmMoved => return,
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
        // Down before the worker looks at its queues: what comes after that look wakes again. The
        // eventfd need not be read: each write is an event.
        self.waker.lower();
        completions.push(Completion::Woken);
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
            self.queue.reap(COMPLETIONS_MAX, &mut self.done);
            for done in self.done.drain(..) {
                if done.token.kind() == Some(Kind::Accept) && done.result >= 0 {
                    // SAFETY: the kernel just made this descriptor for this accept; nobody else has
                    // it.
                    drop(unsafe { OwnedFd::from_raw_fd(done.result) });
                }
            }
        }
        self.provided.unregister(&self.queue);
        self.datagrams.unregister(&self.queue);
    }
}

impl Ring {
    /// Never frees what the kernel may still read or write.
    fn leak(&mut self) {
        self.provided.leak();
        self.datagrams.leak();
        std::mem::forget(std::mem::replace(&mut self.alarm, Alarm::new()));
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
