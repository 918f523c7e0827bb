//! The seam between the worker's loop and the operating system: operations go in with owned
//! buffers, completions come out.
//!
//! Every backend offers the same [`Io`]; the loop is generic over it, so the hot path has no
//! dynamic call. `ring` is io_uring, `poll` is readiness by mio that imitates completions, `sim` is
//! a machine that does not exist, for tests. `unsafe` lives in this folder only. Nothing here knows
//! QUIC, sessions or flows.

pub(crate) mod allocator;
mod buffers;
mod choose;
mod chunks;
#[cfg(target_os = "linux")]
mod message;
pub(crate) mod pipe;
mod poll;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(test)]
pub(crate) mod sim;
pub mod socket;
mod table;
pub mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
pub use quinn_proto::EcnCodepoint;

pub use choose::{ChooseError, Kind, choose};
pub use poll::{Poll, PollWaker};
#[cfg(target_os = "linux")]
pub use ring::{Ring, RingWaker};
pub use socket::{Listener, Stream};
pub use udp::Udp;

/// The most that one TCP receive returns, bytes. Streams are served best with chunks of 32 to 64
/// KiB, and this one fits the largest datagram with all that QUIC puts around it: 64 KiB left a
/// rest of some bytes, and a datagram of its own for that.
pub const READ_SIZE: usize = 65_024;

/// A received chunk below this many bytes is copied out, so that it does not pin a whole
/// [`READ_SIZE`] buffer.
pub const COPY_BELOW: usize = 4 * 1024;

/// The most that one datagram send or receive carries, bytes (the UDP payload limit of IPv4).
pub const DATAGRAMS_SIZE: usize = 65_507;

/// The most that the kernel joins to one batch of received datagrams, bytes: what an IP packet of
/// either version carries.
const BATCH_SIZE: usize = 65_535;

/// The most buffers that one [`Io::send`] gathers.
pub const GATHER_MAX: usize = 64;

/// How long a listener rests when descriptors or memory ran out: trying at once would spin, and a
/// second is long for those who wait.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A TCP socket that a backend owns: listening, connecting or connected. Never reused for another
/// socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketId {
    /// Slot in the backend's table.
    pub index: u32,
    /// Tells a socket from an earlier one in the same slot.
    pub generation: u32,
}

/// How [`Io::close`] ends a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    /// RST: what is queued on either side is discarded. Also the way a killed process ends
    /// (SO_LINGER with zero stays set until `Clean`).
    Reset,
    /// Linger is lifted and the socket closed: FIN is sent if it was not, and the kernel goes on
    /// delivering what is queued. Only after the peer's FIN has been read; else the kernel answers
    /// with RST what comes.
    Clean,
}

/// What happened. A socket's completions arrive in the order in which they happened; none arrives
/// after [`Io::close`].
#[derive(Debug)]
pub enum Completion {
    /// A listener took a connection. An error is one that does not end the listener (the descriptor
    /// limit, an aborted connection): the backend goes on accepting, after a pause of about 100 ms
    /// when descriptors or memory ran out.
    Accepted {
        /// From [`Io::listen`].
        listener: SocketId,
        /// The new socket and the peer's address.
        socket: io::Result<(SocketId, SocketAddr)>,
    },
    /// A connection attempt ended. After an error the socket still wants [`Io::close`].
    Connected {
        /// From [`Io::connect`].
        socket: SocketId,
        /// The kernel's verdict.
        result: io::Result<()>,
    },
    /// One receive ended: bytes (1 to [`READ_SIZE`]), or an empty chunk for FIN, or the socket's
    /// error.
    Received {
        /// Given to [`Io::receive`].
        socket: SocketId,
        /// What was read.
        result: io::Result<Bytes>,
    },
    /// One send ended: everything given was taken by the kernel, or the socket failed.
    Sent {
        /// Given to [`Io::send`].
        socket: SocketId,
        /// Bytes of this send: all that was given.
        result: io::Result<usize>,
    },
    /// A socket under [`Io::watch`] failed (RST, keep-alive given up).
    HungUp {
        /// Given to [`Io::watch`].
        socket: SocketId,
        /// Its error; `ConnectionReset` where the kernel names none.
        error: io::Error,
    },
    /// Datagrams of one peer: one receive, cut by `stride`.
    Datagrams(Datagrams),
    /// A [`Io::datagram_buffer`] call returned `None` before; one is free now.
    BufferFree,
    /// [`Waker::wake`] was called at least once since the last of these.
    Woken,
}

impl Completion {
    /// The connection that it is about, where it is about one that was there before.
    #[must_use]
    pub fn socket(&self) -> Option<SocketId> {
        match self {
            Self::Connected { socket, .. }
            | Self::Received { socket, .. }
            | Self::Sent { socket, .. }
            | Self::HungUp { socket, .. } => Some(*socket),
            Self::Accepted { .. } | Self::Datagrams(_) | Self::BufferFree | Self::Woken => None,
        }
    }
}

/// Datagrams of one receive: equal lengths but the last, back to back (GRO).
#[derive(Debug)]
pub struct Datagrams {
    /// Who sent them. An IPv4-mapped address is unmapped.
    pub remote: SocketAddr,
    /// The local address they came to, where the kernel says it.
    pub local_ip: Option<IpAddr>,
    /// Explicit congestion notification of the batch.
    pub ecn: Option<EcnCodepoint>,
    /// Length of each datagram but the last, bytes, at least 1.
    pub stride: usize,
    /// The payloads. A buffer of its own (no other batch shares it), so that packets are decrypted
    /// in place and split without a copy.
    pub data: BytesMut,
}

/// Where and how a filled datagram buffer goes.
#[derive(Clone, Copy, Debug)]
pub struct Transmit {
    /// The peer.
    pub destination: SocketAddr,
    /// ECN bits to set.
    pub ecn: Option<EcnCodepoint>,
    /// Cut the buffer into datagrams of this many bytes (GSO); `None` for one datagram.
    pub segment_size: Option<usize>,
    /// Source address to send from.
    pub src_ip: Option<IpAddr>,
}

/// A buffer for outgoing datagrams, owned by the caller between [`Io::datagram_buffer`] and
/// [`Io::send_datagrams`] or [`Io::return_buffer`].
#[derive(Debug)]
pub struct DatagramBuffer {
    /// Empty when handed out, with at least [`DATAGRAMS_SIZE`] bytes of capacity. Keep the
    /// allocation: do not replace the vector.
    pub data: Vec<u8>,
    /// The backend's own mark.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(dead_code, reason = "poll needs no mark")
    )]
    pub(in crate::io) slot: usize,
}

/// Wakes a worker from another thread: its [`Io::wait`] returns with [`Completion::Woken`]. Cheap
/// when the worker was woken already.
pub trait Waker: Clone + Send + Sync + 'static {
    /// Wakes. Never blocks, never fails.
    fn wake(&self);
}

/// What a worker asks of the operating system. One per worker thread; used by that thread alone.
///
/// Operations are queued and leave together with the next [`wait`](Self::wait); a backend may carry
/// one out at once. No operation blocks but `wait`. An operation on a closed [`SocketId`] is
/// ignored.
pub trait Io {
    /// The way to wake this worker.
    type Waker: Waker;

    /// Name of the backend: `ring`, `poll` or `sim`.
    fn name(&self) -> &'static str;

    /// The way to wake this worker from another thread.
    fn waker(&self) -> Self::Waker;

    /// Takes a bound, listening socket and accepts from now until it is closed. Accepted sockets
    /// inherit its options (see [`crate::io::socket`]): no delay, linger zero, keep-alive.
    ///
    /// # Errors
    /// Where the kernel refuses to watch it.
    fn listen(&mut self, listener: impl Into<Listener>) -> io::Result<SocketId>;

    /// Takes a connected socket that another worker accepted.
    ///
    /// # Errors
    /// Where the kernel refuses to watch it.
    fn adopt(&mut self, stream: Stream) -> io::Result<SocketId>;

    /// Gives up a socket that was accepted and not used since, for another worker to
    /// [`adopt`](Self::adopt).
    fn release(&mut self, socket: SocketId) -> Option<Stream>;

    /// Starts a connection, with those options of an accepted one that it needs from its first
    /// byte; [`settle`](Self::settle) sets the others. One [`Completion::Connected`] follows. No
    /// deadline of its own: close it to give up.
    ///
    /// # Errors
    /// No descriptor or no memory for the socket.
    fn connect(&mut self, to: SocketAddr) -> io::Result<SocketId>;

    /// Gives a connected socket what it needs once it lives on, and an accepted one has from the
    /// start: keep-alive, and a bound of what stands unsent. Half of the calls that a socket costs
    /// set these, and one that is closed after a single request has no use for them.
    fn settle(&mut self, _: SocketId) {}

    /// The own address of a connected socket; `None` where it is not known.
    fn local_address(&mut self, _: SocketId) -> Option<SocketAddr> {
        None
    }

    /// Whether the kernel has sent nothing on a socket for so long, and for two round trips, though
    /// it has something to send: then it is the peer that takes nothing. True where that is not
    /// known.
    fn has_stalled(&mut self, _: SocketId, _: Duration) -> bool {
        true
    }

    /// Arms one receive; one [`Completion::Received`] follows. At most one is armed per socket.
    /// Replaces [`watch`](Self::watch).
    fn receive(&mut self, socket: SocketId);

    /// Without reading, reports [`Completion::HungUp`] when the socket fails, until the next
    /// [`receive`](Self::receive). For a paused or half-closed socket.
    fn watch(&mut self, socket: SocketId);

    /// Writes all of `chunks` (1 to [`GATHER_MAX`], none empty) in order; one [`Completion::Sent`]
    /// follows. At most one send is under way per socket.
    fn send(&mut self, socket: SocketId, chunks: Vec<Bytes>);

    /// The same, for a caller that has nothing to do when it has ended: [`Completion::Sent`] ends
    /// no wait by itself, but comes with what ends the next one. Where the send fails, or the
    /// kernel has no room for all of it, it is told at once, as that of [`send`](Self::send).
    fn send_quietly(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        self.send(socket, chunks);
    }

    /// Writes all of `chunks`, as [`send`](Self::send) does, for a caller that has no more to send
    /// and calls [`shutdown`](Self::shutdown) or [`close`](Self::close) when it has ended: FIN
    /// leaves in one packet with the last bytes, which the kernel may keep back until then.
    fn send_last(&mut self, socket: SocketId, chunks: Vec<Bytes>) {
        self.send(socket, chunks);
    }

    /// Sends FIN. Only while no send is under way.
    fn shutdown(&mut self, socket: SocketId);

    /// Ends a socket or a listener. What is under way is cancelled and its completions are
    /// swallowed; with `Reset` the peer sees RST within a turn.
    fn close(&mut self, socket: SocketId, how: Close);

    /// A buffer for outgoing datagrams, or `None` while all are under way
    /// ([`Completion::BufferFree`] follows).
    fn datagram_buffer(&mut self) -> Option<DatagramBuffer>;

    /// Sends what the buffer holds. Lost on error, as datagrams are; counted in [`Counters`].
    fn send_datagrams(&mut self, buffer: DatagramBuffer, transmit: &Transmit);

    /// Takes an unused buffer back.
    fn return_buffer(&mut self, buffer: DatagramBuffer);

    /// The most datagrams that one [`send_datagrams`](Self::send_datagrams) may carry (GSO); 1
    /// where the kernel cannot.
    fn max_segments(&self) -> usize;

    /// Submits all that is queued and waits for at least one completion, ends of quiet sends not
    /// counted, or the deadline, whichever is first; a deadline in the past only collects what is
    /// there. Appends completions, boundedly many a call; it may return early with none, and later
    /// than the deadline by a quarter of the time until then, 10 ms at most.
    ///
    /// # Errors
    /// Only what ends the worker: the kernel refused to wait.
    fn wait(
        &mut self,
        deadline: Option<Instant>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()>;

    /// The time, as this backend sees it; `sim` has one of its own.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// What was counted so far.
    fn counters(&self) -> Counters;
}

/// What a backend counts, since its start.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counters {
    /// Bytes copied in user space by this backend (small chunks copied out of large buffers).
    pub bytes_copied: u64,
    /// Datagram sends that failed.
    pub datagram_send_errors: u64,
    /// System calls made by the backend's `wait` and operations (an estimate for `poll`).
    pub system_calls: u64,
}

/// Which backend a person asked for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Choice {
    /// io_uring where the kernel permits it, else `poll`.
    #[default]
    Auto,
    /// io_uring, or an error.
    Ring,
    /// Readiness by mio.
    Poll,
}

/// Whether an accept or a connect failed for want of descriptors or memory, so that the next one
/// would fail, too.
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
