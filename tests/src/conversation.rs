//! One end of a TCP conversation, held to a deadline and checked byte by byte.
//!
//! Tells a clean end (FIN) from a reset (RST), and can cause either. Everything a tunnel may do
//! wrong comes out as a [`Fault`].

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
use socket2::SockRef;
use underpass_loadtest::pattern::Pattern;

/// Bytes moved by one call.
const CHUNK: usize = 64 * 1024;

/// What went wrong with a conversation, in the words of the oracle: each is counted apart. The
/// gravest is the least.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    /// A byte is not what was sent.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// A clean end before all bytes came.
    #[error("silently truncated: clean end after {got} of {wanted} bytes")]
    Truncated {
        /// Bytes that came.
        got: u64,
        /// Bytes that were sent, or should have been.
        wanted: u64,
    },
    /// A clean end where the other side was cut off or reset.
    #[error("clean end where a reset was due: {0}")]
    CleanEnd(String),
    /// Something else.
    #[error("{0}")]
    Other(String),
    /// A reset where nothing was wrong.
    #[error("reset where none was due: {0}")]
    Reset(String),
    /// Nothing happened until the deadline.
    #[error("hung: {0}")]
    Hung(String),
}

/// Of the faults at several ends of what was tried at once the gravest: the others are often only
/// its consequence.
///
/// # Errors
/// That fault, if any.
pub fn gravest(results: impl IntoIterator<Item = Result<(), Fault>>) -> Result<(), Fault> {
    results
        .into_iter()
        .filter_map(Result::err)
        .min()
        .map_or(Ok(()), Err)
}

/// How a conversation ended at this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The other side finished cleanly (FIN).
    Finished,
    /// The other side reset (RST), or the connection was refused.
    Reset,
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    until: Instant,
    name: &'static str,
}

impl Conversation {
    /// Takes a connected socket; `name` is for messages.
    ///
    /// # Errors
    /// When the socket refuses its options.
    pub fn new(stream: TcpStream, name: &'static str, until: Instant) -> Result<Self, Fault> {
        stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_nodelay(true))
            .map_err(|error| Fault::Other(format!("{name}: socket options: {error}")))?;
        Ok(Self {
            stream,
            until,
            name,
        })
    }

    /// Connects to `address`.
    ///
    /// # Errors
    /// When that fails or takes longer than the deadline allows.
    pub fn connect(address: SocketAddr, name: &'static str, until: Instant) -> Result<Self, Fault> {
        let left = until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => Self::new(stream, name, until),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(Fault::Hung(format!("{name}: connecting to {address}")))
            }
            Err(error) if is_reset(&error) => Err(Fault::Reset(format!(
                "{name}: connecting to {address}: {error}"
            ))),
            Err(error) => Err(Fault::Other(format!(
                "{name}: connecting to {address}: {error}"
            ))),
        }
    }

    /// A second handle on the same end, to read and write at once.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn share(&self) -> Result<Self, Fault> {
        let stream = self
            .stream
            .try_clone()
            .map_err(|error| Fault::Other(format!("{}: {error}", self.name)))?;
        Ok(Self {
            stream,
            until: self.until,
            name: self.name,
        })
    }

    /// The same end with another deadline.
    #[must_use]
    pub fn until(mut self, until: Instant) -> Self {
        self.until = until;
        self
    }

    /// The address at the other end.
    ///
    /// # Errors
    /// When the conversation is over.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Makes the kernel keep little for this reader, so that a slow reader is felt soon.
    ///
    /// # Errors
    /// When the socket refuses.
    pub fn keep_little(&self) -> Result<(), Fault> {
        SockRef::from(&self.stream)
            .set_recv_buffer_size(CHUNK)
            .map_err(|error| Fault::Other(error.to_string()))
    }

    /// Sends the bytes of `pattern` at `positions`.
    ///
    /// # Errors
    /// [`Fault::Reset`] when the other side has gone, [`Fault::Hung`] when it takes nothing more.
    pub fn send(&mut self, pattern: &Pattern, positions: Range<u64>) -> Result<(), Fault> {
        let mut chunk = vec![0; chunk_len(&positions)];
        let mut position = positions.start;
        while position < positions.end {
            let len = chunk_len(&(position..positions.end));
            pattern.fill(position, &mut chunk[..len]);
            self.send_bytes(&chunk[..len])
                .map_err(|fault| match fault {
                    Fault::Reset(why) => {
                        Fault::Reset(format!("{why}, at byte {position} of {}", positions.end))
                    }
                    Fault::Hung(why) => {
                        Fault::Hung(format!("{why}, at byte {position} of {}", positions.end))
                    }
                    other => other,
                })?;
            position += len as u64;
        }
        Ok(())
    }

    /// Sends bytes of any kind.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_bytes(&mut self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            self.arm()?;
            match self.stream.write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(error) => self.sort(&error, "writing")?,
            }
        }
        Ok(())
    }

    /// Receives exactly the bytes of `pattern` at `positions`.
    ///
    /// # Errors
    /// Any [`Fault`]: a wrong byte, an early end, a reset, silence.
    pub fn receive(&mut self, pattern: &Pattern, positions: Range<u64>) -> Result<(), Fault> {
        let mut chunk = vec![0; chunk_len(&positions)];
        let mut position = positions.start;
        while position < positions.end {
            let len = chunk_len(&(position..positions.end));
            let len = self.read(&mut chunk[..len], &|| {
                format!("reading byte {position} of {}", positions.end)
            })?;
            if len == 0 {
                return Err(Fault::Truncated {
                    got: position - positions.start,
                    wanted: positions.end - positions.start,
                });
            }
            self.check(pattern, position, &chunk[..len])?;
            position += len as u64;
        }
        Ok(())
    }

    /// Receives a clean end and nothing before it.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn receive_end(&mut self) -> Result<(), Fault> {
        let mut more = [0; 256];
        match self.read(&mut more, &|| "waiting for the clean end".to_owned())? {
            0 => Ok(()),
            len => Err(Fault::Corrupt(format!(
                "{}: {len} bytes or more after the end",
                self.name
            ))),
        }
    }

    /// Reads until a reset, checking each byte on the way against `pattern` from `position` on.
    /// Returns how many came.
    ///
    /// # Errors
    /// [`Fault::CleanEnd`] when it ended cleanly instead, and any other [`Fault`].
    pub fn receive_reset(&mut self, pattern: &Pattern, position: u64) -> Result<u64, Fault> {
        match self.receive_all(pattern, position)? {
            (got, End::Reset) => Ok(got),
            (got, End::Finished) => {
                Err(Fault::CleanEnd(format!("{}: after {got} bytes", self.name)))
            }
        }
    }

    /// Reads to the end, whichever it is, checking each byte against `pattern` from `position` on.
    ///
    /// # Errors
    /// A wrong byte or silence.
    pub fn receive_all(
        &mut self,
        pattern: &Pattern,
        mut position: u64,
    ) -> Result<(u64, End), Fault> {
        let mut chunk = vec![0; CHUNK];
        let start = position;
        loop {
            match self.read(&mut chunk, &|| {
                format!("reading to the end, at byte {position}")
            }) {
                Ok(0) => return Ok((position - start, End::Finished)),
                Ok(len) => {
                    self.check(pattern, position, &chunk[..len])?;
                    position += len as u64;
                }
                Err(Fault::Reset(_)) => return Ok((position - start, End::Reset)),
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Writes bytes of `pattern` from `position` on until the other side's reset is felt.
    ///
    /// # Errors
    /// [`Fault::Hung`] when it is not felt by the deadline.
    pub fn send_until_reset(&mut self, pattern: &Pattern, mut position: u64) -> Result<(), Fault> {
        loop {
            match self.send(pattern, position..position + CHUNK as u64) {
                Ok(()) => position += CHUNK as u64,
                Err(Fault::Reset(_)) => return Ok(()),
                Err(fault) => return Err(fault),
            }
            if Instant::now() >= self.until {
                return Err(Fault::Hung(format!(
                    "{}: still taking bytes after a reset, {position} up to now",
                    self.name
                )));
            }
        }
    }

    /// Waits until some bytes lie unread in this end's kernel buffer.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn wait_for_unread(&mut self) -> Result<(), Fault> {
        self.arm()?;
        match self.stream.peek(&mut [0]) {
            Ok(0) => Err(Fault::Truncated { got: 0, wanted: 1 }),
            Ok(_) => Ok(()),
            Err(error) => self.sort(&error, "waiting for bytes"),
        }
    }

    /// Waits until the kernel says that the connection is gone, without reading or writing: what an
    /// application that waits for events would notice.
    ///
    /// # Errors
    /// [`Fault::Hung`] when nothing is noticed by the deadline.
    pub fn wait_for_failure(&self) -> Result<(), Fault> {
        while Instant::now() < self.until {
            if self.failed(Duration::from_millis(50))? {
                return Ok(());
            }
        }
        Err(Fault::Hung(format!(
            "{}: waiting to hear of the reset",
            self.name
        )))
    }

    /// Whether the connection is gone in both directions by now or becomes so `within`. Takes no
    /// error away from a later read.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub fn failed(&self, within: Duration) -> Result<bool, Fault> {
        // No events are asked for: an error or a hang-up of both directions is always reported.
        let mut interests = [PollFd::from_borrowed_fd(
            self.stream.as_fd(),
            PollFlags::empty(),
        )];
        match poll(
            &mut interests,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: within.subsec_nanos().into(),
            }),
        ) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(Fault::Other(format!("{}: {error}", self.name))),
        }
    }

    /// The first bytes that lie unread, at most `N`, without waiting.
    #[must_use]
    pub fn waiting_bytes<const N: usize>(&self) -> Vec<u8> {
        let mut bytes = vec![0; N];
        // Asked for first: looking at a socket that was reset would take the error away, and the
        // next look would see a clean end.
        let waiting = ioctl_fionread(&self.stream).unwrap_or(0);
        let len = if waiting > 0 {
            self.stream.peek(&mut bytes).unwrap_or(0)
        } else {
            0
        };
        bytes.truncate(len);
        bytes
    }

    /// Receives exactly `N` bytes of any kind.
    ///
    /// # Errors
    /// Any [`Fault`].
    pub fn receive_bytes<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        let mut got = 0;
        while got < N {
            let len = self.read(&mut bytes[got..], &|| format!("reading {N} bytes"))?;
            if len == 0 {
                return Err(Fault::Truncated {
                    got: got as u64,
                    wanted: N as u64,
                });
            }
            got += len;
        }
        Ok(bytes)
    }

    /// By when everything must have happened.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.until
    }

    /// Asserts that nothing comes, neither bytes nor an end, for `length`.
    ///
    /// # Errors
    /// When something came.
    pub fn stays_silent(&mut self, length: Duration) -> Result<(), Fault> {
        let until = std::mem::replace(&mut self.until, Instant::now() + length);
        let seen = self.read(&mut [0; 16], &|| "listening to silence".to_owned());
        self.until = until;
        match seen {
            Err(Fault::Hung(_)) => Ok(()),
            Ok(0) => Err(Fault::Truncated { got: 0, wanted: 1 }),
            Ok(len) => Err(Fault::Corrupt(format!(
                "{}: {len} bytes that nobody sent",
                self.name
            ))),
            Err(fault) => Err(fault),
        }
    }

    /// Says that nothing more will be written (FIN). Reading goes on.
    ///
    /// # Errors
    /// When the other side has gone.
    pub fn finish(&mut self) -> Result<(), Fault> {
        self.stream
            .shutdown(Shutdown::Write)
            .map_err(|error| Fault::Reset(format!("{}: finishing: {error}", self.name)))
    }

    /// Cuts the conversation off (RST).
    pub fn reset(self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// Closes as an application does that cares no more: FIN, or RST by the kernel when bytes lie
    /// unread.
    pub fn close(self) {
        drop(self);
    }

    fn read(&mut self, chunk: &mut [u8], doing: &dyn Fn() -> String) -> Result<usize, Fault> {
        loop {
            self.arm()?;
            match self.stream.read(chunk) {
                Ok(len) => return Ok(len),
                Err(error) => self.sort(&error, &doing())?,
            }
        }
    }

    fn check(&self, pattern: &Pattern, position: u64, chunk: &[u8]) -> Result<(), Fault> {
        pattern
            .check(position, chunk)
            .map_err(|mismatch| Fault::Corrupt(format!("{}: {mismatch}", self.name)))
    }

    /// Gives the next call on the socket what is left until the deadline.
    fn arm(&self) -> Result<(), Fault> {
        // A call after the deadline still gets a moment, so that what has already happened is seen
        // as what it is.
        let left = self
            .until
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        self.stream
            .set_read_timeout(Some(left))
            .and_then(|()| self.stream.set_write_timeout(Some(left)))
            .map_err(|error| Fault::Other(format!("{}: {error}", self.name)))
    }

    /// Sorts what a call on the socket said: nothing (try again), or a fault.
    fn sort(&self, error: &io::Error, doing: &str) -> Result<(), Fault> {
        let name = self.name;
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                Err(Fault::Hung(format!("{name}: {doing}")))
            }
            _ if is_reset(error) => Err(Fault::Reset(format!("{name}: {doing}: {error}"))),
            _ => Err(Fault::Other(format!("{name}: {doing}: {error}"))),
        }
    }
}

/// Whether an error of a socket means that the other side cut it off.
#[must_use]
pub fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotConnected,
    };
    matches!(
        error.kind(),
        ConnectionReset | BrokenPipe | ConnectionAborted | ConnectionRefused | NotConnected
    )
}

fn chunk_len(positions: &Range<u64>) -> usize {
    usize::try_from(positions.end.saturating_sub(positions.start))
        .unwrap_or(CHUNK)
        .min(CHUNK)
}
