//! `sim`: a machine that does not exist, for tests. Operations become [`Op`]s that a simulated
//! world carries out; what the world answers comes back as completions. Time is what the world says
//! it is. Refuses whatever breaks the contract of [`Io`]: two receives on one socket, a send behind
//! a FIN.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;

use super::buffers::TransmitBuffers;
use super::socket::{Listener, Stream};
use super::table::Table;
use super::{
    Close, Completion, Counters, DatagramBuffer, GATHER_MAX, Io, READ_SIZE, SocketId, Transmit,
    Waker,
};

/// The most completions of one turn, as the other backends have a bound.
const COMPLETIONS_MAX: usize = 256;

/// One end of a connection, as the world numbers it.
pub(crate) type Wire = u64;

/// What a worker asked for, in its order.
#[derive(Debug)]
pub(crate) enum Op {
    /// Accept here.
    Listen(SocketId, SocketAddr),
    /// Accept here no more.
    Unlisten(SocketId, SocketAddr),
    /// Connect.
    Connect(SocketId, SocketAddr),
    /// Give up a connection that has no end yet.
    Abandon(SocketId),
    /// This socket has this end now.
    Adopt(SocketId, Wire),
    /// No socket has this end until one adopts it.
    Release(Wire),
    /// Read once.
    Receive(Wire),
    /// Tell when it fails.
    Watch(Wire),
    /// Write all of it.
    Send(Wire, Vec<Bytes>),
    /// Send FIN.
    Shutdown(Wire),
    /// End it.
    Close(Wire, Close),
    /// Send datagrams; the buffer goes back by [`Sim::sent`].
    Datagrams(DatagramBuffer, Transmit),
}

/// The backend.
pub(crate) struct Sim {
    now: Instant,
    sockets: Table<Socket>,
    ops: Vec<Op>,
    completions: VecDeque<Completion>,
    /// Ends of quiet sends, told with what ends a wait next.
    quiet: Vec<Completion>,
    /// Sockets with quiet sends of this turn.
    quietly: Vec<SocketId>,
    transmits: TransmitBuffers,
    waker: SimWaker,
    segments: usize,
    streams: usize,
}

enum Socket {
    Listener(SocketAddr),
    /// Not connected yet.
    Connecting,
    Stream(Doing),
}

/// A connected socket and what is under way on it.
struct Doing {
    wire: Wire,
    receiving: bool,
    sending: usize,
    /// Nobody waits for the end of the send.
    quiet: bool,
    shut: bool,
}

/// Wakes a [`Sim`]: the world looks at it between two turns.
#[derive(Clone)]
pub(crate) struct SimWaker(Arc<AtomicBool>);

impl Waker for SimWaker {
    fn wake(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Sim {
    /// A machine whose kernel cuts a send into up to `segments` datagrams.
    pub(crate) fn new(now: Instant, segments: usize) -> Self {
        Self {
            now,
            sockets: Table::new(),
            ops: Vec::new(),
            completions: VecDeque::new(),
            quiet: Vec::new(),
            quietly: Vec::new(),
            transmits: TransmitBuffers::new(),
            waker: SimWaker(Arc::new(AtomicBool::new(false))),
            segments,
            streams: 0,
        }
    }

    /// Time goes on.
    pub(crate) fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// What was asked for since the last call.
    pub(crate) fn take_ops(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.ops)
    }

    /// Whether a turn would find something.
    pub(crate) fn is_runnable(&self) -> bool {
        !self.completions.is_empty()
            || self.waker.0.load(Ordering::Relaxed)
            || self.transmits.has_freed()
    }

    /// Datagrams that wait to be received.
    pub(crate) fn waiting(&self) -> usize {
        self.completions.len()
    }

    /// Sockets that exist, listeners not counted.
    pub(crate) fn streams(&self) -> usize {
        self.streams
    }

    /// Datagrams came.
    pub(crate) fn arrived(&mut self, datagrams: super::Datagrams) {
        self.completions.push_back(Completion::Datagrams(datagrams));
    }

    /// A transmit buffer has left.
    pub(crate) fn sent(&mut self, buffer: DatagramBuffer) {
        self.transmits.put(buffer);
    }

    /// A connection came to a listener; `None` where that was closed meanwhile.
    pub(crate) fn accepted(
        &mut self,
        listener: SocketId,
        wire: Wire,
        peer: SocketAddr,
    ) -> Option<SocketId> {
        self.sockets.get(listener)?;
        self.streams += 1;
        let socket = self.sockets.insert(Socket::Stream(Doing::new(wire)));
        self.completions.push_back(Completion::Accepted {
            listener,
            socket: Ok((socket, peer)),
        });
        Some(socket)
    }

    /// A connection attempt ended. False where nobody waits for it.
    pub(crate) fn connected(&mut self, socket: SocketId, result: io::Result<Wire>) -> bool {
        let Some(entry) = self.sockets.get(socket) else {
            return false;
        };
        let result = result.map(|wire| *entry = Socket::Stream(Doing::new(wire)));
        self.completions
            .push_back(Completion::Connected { socket, result });
        true
    }

    /// The armed receive ended.
    pub(crate) fn received(&mut self, socket: SocketId, result: io::Result<Bytes>) {
        let Some(doing) = self.doing(socket) else {
            return;
        };
        assert!(doing.receiving, "a receive ended that was not armed");
        doing.receiving = false;
        assert!(
            result.as_ref().is_ok_and(|chunk| chunk.len() <= READ_SIZE) || result.is_err(),
            "a chunk over READ_SIZE"
        );
        self.completions
            .push_back(Completion::Received { socket, result });
    }

    /// The send under way ended.
    pub(crate) fn sent_all(&mut self, socket: SocketId, result: io::Result<()>) {
        let Some(doing) = self.doing(socket) else {
            return;
        };
        let len = std::mem::take(&mut doing.sending);
        assert!(len > 0, "a send ended that was not under way");
        let quiet = std::mem::take(&mut doing.quiet) && result.is_ok();
        let result = result.map(|()| len);
        let sent = Completion::Sent { socket, result };
        if quiet {
            self.quiet.push(sent);
        } else {
            self.completions.push_back(sent);
        }
    }

    /// A watched socket failed.
    pub(crate) fn hung_up(&mut self, socket: SocketId, error: io::Error) {
        if self.doing(socket).is_some() {
            self.completions
                .push_back(Completion::HungUp { socket, error });
        }
    }

    fn doing(&mut self, socket: SocketId) -> Option<&mut Doing> {
        match self.sockets.get(socket)? {
            Socket::Stream(doing) => Some(doing),
            Socket::Listener(_) | Socket::Connecting => None,
        }
    }
}

impl Doing {
    fn new(wire: Wire) -> Self {
        Self {
            wire,
            receiving: false,
            sending: 0,
            quiet: false,
            shut: false,
        }
    }
}

impl Io for Sim {
    type Waker = SimWaker;

    fn name(&self) -> &'static str {
        "sim"
    }

    fn waker(&self) -> SimWaker {
        self.waker.clone()
    }

    fn listen(&mut self, listener: impl Into<Listener>) -> io::Result<SocketId> {
        let Listener::Simulated(address) = listener.into() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let socket = self.sockets.insert(Socket::Listener(address));
        self.ops.push(Op::Listen(socket, address));
        Ok(socket)
    }

    fn adopt(&mut self, stream: Stream) -> io::Result<SocketId> {
        let Stream::Simulated(wire) = stream else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        self.streams += 1;
        let socket = self.sockets.insert(Socket::Stream(Doing::new(wire)));
        self.ops.push(Op::Adopt(socket, wire));
        Ok(socket)
    }

    fn release(&mut self, socket: SocketId) -> Option<Stream> {
        let doing = self.doing(socket)?;
        assert!(
            !doing.receiving && doing.sending == 0 && !doing.shut,
            "a release of a socket that was used"
        );
        let wire = doing.wire;
        self.sockets.remove(socket);
        self.streams -= 1;
        self.ops.push(Op::Release(wire));
        Some(Stream::Simulated(wire))
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<SocketId> {
        self.streams += 1;
        let socket = self.sockets.insert(Socket::Connecting);
        self.ops.push(Op::Connect(socket, to));
        Ok(socket)
    }

    fn receive(&mut self, socket: SocketId) {
        let Some(doing) = self.doing(socket) else {
            return;
        };
        assert!(!doing.receiving, "two receives on one socket");
        doing.receiving = true;
        let op = Op::Receive(doing.wire);
        self.ops.push(op);
    }

    fn watch(&mut self, socket: SocketId) {
        let Some(doing) = self.doing(socket) else {
            return;
        };
        assert!(!doing.receiving, "a watch beside a receive");
        let op = Op::Watch(doing.wire);
        self.ops.push(op);
    }

    fn send(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        let Some(doing) = self.doing(socket) else {
            return;
        };
        assert!(!doing.shut, "a send behind a FIN");
        assert_eq!(doing.sending, 0, "two sends on one socket");
        assert!(
            (1..=GATHER_MAX).contains(&chunks.len())
                && chunks.iter().all(|chunk| !chunk.is_empty()),
            "1 to {GATHER_MAX} chunks, none empty"
        );
        doing.sending = chunks.iter().map(Bytes::len).sum();
        let op = Op::Send(doing.wire, chunks);
        self.ops.push(op);
    }

    fn send_quietly(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        self.send(socket, chunks);
        if let Some(doing) = self.doing(socket) {
            doing.quiet = true;
            self.quietly.push(socket);
        }
    }

    fn shutdown(&mut self, socket: SocketId) {
        let Some(doing) = self.doing(socket) else {
            return;
        };
        assert_eq!(doing.sending, 0, "a FIN while a send is under way");
        doing.shut = true;
        let op = Op::Shutdown(doing.wire);
        self.ops.push(op);
    }

    fn close(&mut self, socket: SocketId, how: Close) {
        let op = match self.sockets.remove(socket) {
            None => return,
            Some(Socket::Listener(address)) => Op::Unlisten(socket, address),
            Some(Socket::Connecting) => Op::Abandon(socket),
            Some(Socket::Stream(doing)) => Op::Close(doing.wire, how),
        };
        self.streams -= usize::from(!matches!(op, Op::Unlisten(..)));
        // What was told of it and not taken yet is swallowed, as the contract says.
        let stays = |completion: &Completion| completion.socket() != Some(socket);
        self.completions.retain(stays);
        self.quiet.retain(stays);
        self.ops.push(op);
    }

    fn datagram_buffer(&mut self) -> Option<DatagramBuffer> {
        self.transmits.take()
    }

    fn send_datagrams(&mut self, buffer: DatagramBuffer, transmit: &Transmit) {
        let len = buffer.data.len();
        let datagrams = transmit
            .segment_size
            .map_or(1, |size| len.div_ceil(size.max(1)));
        assert!(
            len > 0 && datagrams <= self.segments,
            "{datagrams} datagrams in a send of {len} bytes, of {} at most",
            self.segments
        );
        self.ops.push(Op::Datagrams(buffer, *transmit));
    }

    fn return_buffer(&mut self, buffer: DatagramBuffer) {
        self.transmits.put(buffer);
    }

    fn max_segments(&self) -> usize {
        self.segments
    }

    fn wait(
        &mut self,
        _deadline: Option<Instant>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        if self.waker.0.swap(false, Ordering::Relaxed) {
            completions.push(Completion::Woken);
        }
        completions.append(&mut self.quiet);
        for socket in std::mem::take(&mut self.quietly) {
            // There was no room for all of it: told at once when it ends.
            if let Some(doing) = self.doing(socket) {
                doing.quiet = false;
            }
        }
        let count = self.completions.len().min(COMPLETIONS_MAX);
        completions.extend(self.completions.drain(..count));
        if self.transmits.take_freed() {
            completions.push(Completion::BufferFree);
        }
        Ok(())
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}
