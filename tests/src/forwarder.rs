//! A plain TCP forwarder in this process, honest or with one fault on purpose.
//!
//! The honest one proves that the fidelity suite can pass without a tunnel; each faulty one proves
//! that the suite sees that fault.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

/// What an honest forwarder keeps for one direction of a flow before it stops reading, bytes.
const BUFFER_MAX: usize = 256 * 1024;

/// Reads in a row from one socket: a bound for the manner that has no other.
const READS_EACH_TURN: usize = 64;

/// How long a loop waits before it looks whether it should end.
const LOOK_EACH: Duration = Duration::from_millis(20);

/// How long [`Manner::DropsTheTail`] holds bytes back to see whether the end follows: longer than
/// loopback takes, short beside a test.
const HOLD: Duration = Duration::from_millis(5);

/// Where [`Manner::FlipsABit`] does so, byte of each direction.
const FLIPPED: u64 = 50_000;

/// After how many bytes of each direction [`Manner::Stalls`] forwards nothing more.
const STALLED: u64 = 60_000;

/// How a forwarder behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Exact TCP meaning.
    Honest,
    /// Turns a reset into a clean end.
    EndsResetsCleanly,
    /// Loses the last bytes when the end follows them closely.
    DropsTheTail,
    /// Closes both directions when one has ended.
    CutsHalfClosed,
    /// Changes one bit.
    FlipsABit,
    /// Reads without limit, so that a slow reader is never felt.
    Hoards,
    /// Stops forwarding in mid-stream.
    Stalls,
    /// Accepts, but ends cleanly where the endpoint cannot be reached.
    HidesRefusals,
}

/// A forwarder that runs until it is dropped.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    endpoint: SocketAddr,
    manner: Manner,
    ending: AtomicBool,
    /// Counts up when all flows are to be cut.
    cuts: AtomicUsize,
}

impl Forwarder {
    /// Starts to forward from a port of the kernel's choice on loopback to `endpoint`.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(endpoint: SocketAddr, manner: Manner) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            endpoint,
            manner,
            ending: AtomicBool::new(false),
            cuts: AtomicUsize::new(0),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// Where applications connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts all live flows off, as the death of the process would: by a reset, or cleanly where the
    /// manner hides resets.
    pub fn cut(&self) {
        self.shared.cuts.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((application, _)) = listener.accept() {
        if shared.ending.load(Ordering::Relaxed) {
            return;
        }
        // Dialled before the next is accepted, so that the endpoint gets its flows in the order in
        // which they came: a test that opens a second one knows that the first is there.
        match TcpStream::connect(shared.endpoint) {
            Ok(endpoint) => {
                let shared = Arc::clone(shared);
                thread::spawn(move || {
                    Flow::new(application, endpoint, &shared).and_then(|flow| flow.run(&shared))
                });
            }
            Err(_) if shared.manner == Manner::HidesRefusals => {}
            Err(_) => drop(abort(&application)),
        }
    }
}

/// Arranges that the next close is a reset.
fn abort(socket: &TcpStream) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Two sockets and the two ways between them: `ways[0]` from the application to the endpoint,
/// `ways[1]` back.
struct Flow {
    sockets: [TcpStream; 2],
    ways: [Way; 2],
    cuts: usize,
}

/// One direction.
#[derive(Default)]
struct Way {
    buffer: VecDeque<u8>,
    /// Bytes read.
    read: u64,
    last_read: Option<Instant>,
    ended: bool,
    finished: bool,
}

impl Flow {
    fn new(application: TcpStream, endpoint: TcpStream, shared: &Shared) -> io::Result<Self> {
        for socket in [&application, &endpoint] {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
        }
        Ok(Self {
            sockets: [application, endpoint],
            ways: <[Way; 2]>::default(),
            cuts: shared.cuts.load(Ordering::Relaxed),
        })
    }

    fn run(mut self, shared: &Shared) -> io::Result<()> {
        while !self.over(shared) {
            let failed = self.wait(shared.manner)?;
            if let Err(error) = self.turn(shared.manner) {
                return self.fail(shared.manner, error);
            }
            if failed || shared.cuts.load(Ordering::Relaxed) != self.cuts {
                return self.fail(shared.manner, io::ErrorKind::ConnectionReset.into());
            }
        }
        Ok(())
    }

    fn over(&self, shared: &Shared) -> bool {
        let cut_half =
            shared.manner == Manner::CutsHalfClosed && self.ways.iter().any(|way| way.finished);
        cut_half
            || self.ways.iter().all(|way| way.finished)
            || shared.ending.load(Ordering::Relaxed)
    }

    /// Waits for something to do. Says whether a socket has failed.
    fn wait(&self, manner: Manner) -> io::Result<bool> {
        let held = self.ways.iter().any(|way| way.held(manner));
        let mut interests: Vec<PollFd<'_>> = (0..2)
            .filter(|&side| !(self.ways[side].ended && self.ways[1 - side].finished))
            .map(|side| {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, self.ways[side].has_room(manner));
                flags.set(PollFlags::OUT, self.ways[1 - side].has_something(manner));
                PollFd::from_borrowed_fd(self.sockets[side].as_fd(), flags)
            })
            .collect();
        let within = if held { HOLD } else { LOOK_EACH };
        match poll(
            &mut interests,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: within.subsec_nanos().into(),
            }),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(interests
                .iter()
                .any(|interest| interest.revents().contains(PollFlags::ERR))),
            Err(error) => Err(error.into()),
        }
    }

    fn turn(&mut self, manner: Manner) -> io::Result<()> {
        for side in 0..2 {
            let (from, to) = (&self.sockets[side], &self.sockets[1 - side]);
            self.ways[side].take(from, manner)?;
            self.ways[side].give(to, manner)?;
        }
        Ok(())
    }

    fn fail(&self, manner: Manner, error: io::Error) -> io::Result<()> {
        for socket in &self.sockets {
            if manner == Manner::EndsResetsCleanly {
                let _ = socket.shutdown(Shutdown::Write);
            } else {
                abort(socket)?;
            }
        }
        Err(error)
    }
}

impl Way {
    fn held(&self, manner: Manner) -> bool {
        manner == Manner::DropsTheTail
            && !self.ended
            && self.last_read.is_some_and(|at| at.elapsed() < HOLD)
    }

    fn has_room(&self, manner: Manner) -> bool {
        !self.ended && (self.buffer.len() < BUFFER_MAX || manner == Manner::Hoards)
    }

    fn has_something(&self, manner: Manner) -> bool {
        !self.finished
            && (self.ended || !self.buffer.is_empty())
            && !self.held(manner)
            && !self.stalled(manner)
    }

    fn stalled(&self, manner: Manner) -> bool {
        manner == Manner::Stalls && self.read > STALLED
    }

    fn take(&mut self, mut from: &TcpStream, manner: Manner) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        for _ in 0..READS_EACH_TURN {
            if !self.has_room(manner) {
                return Ok(());
            }
            match from.read(&mut chunk) {
                Ok(0) => {
                    if manner == Manner::DropsTheTail && self.held(manner) {
                        self.buffer.clear();
                    }
                    self.ended = true;
                }
                Ok(len) => {
                    let flipped = FLIPPED
                        .checked_sub(self.read)
                        .and_then(|index| usize::try_from(index).ok())
                        .filter(|&index| index < len);
                    if let Some(index) = flipped.filter(|_| manner == Manner::FlipsABit) {
                        chunk[index] ^= 1;
                    }
                    self.buffer.extend(&chunk[..len]);
                    self.read += len as u64;
                    self.last_read = Some(Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn give(&mut self, mut to: &TcpStream, manner: Manner) -> io::Result<()> {
        while self.has_something(manner) {
            if self.buffer.is_empty() {
                // The other side may have closed altogether, which is no fault of this way.
                let _ = to.shutdown(Shutdown::Write);
                self.finished = true;
                return Ok(());
            }
            match to.write(self.buffer.as_slices().0) {
                Ok(len) => drop(self.buffer.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
