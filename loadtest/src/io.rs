//! How the load generator talks to sockets: by io_uring (tokio-uring) or by readiness (tokio),
//! behind one small trait.
//!
//! Connections are opened and accepted by tokio in both: an attempt can then be given up, which
//! tokio-uring cannot do. All bytes travel by the chosen way. One thread is one runtime; nothing is
//! shared between threads but counters.

use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::pin;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio_uring::buf::BoundedBuf;

/// Submission entries of a ring: one turn of the loop seldom starts more operations, and a full
/// queue only costs a system call.
const RING_ENTRIES: u32 = 1024;

/// Completion entries of a ring: two operations for each of 8,000 flows, so that the kernel need
/// not keep an overflow list.
const RING_COMPLETIONS: u32 = 16 * 1024;

/// Which way to take.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    Debug,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Choice {
    /// io_uring where the kernel permits it, else readiness.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Readiness by tokio.
    Tokio,
}

/// The way taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// io_uring.
    Uring,
    /// Readiness by tokio.
    Tokio,
}

impl Choice {
    /// Tries the kernel once where that is needed.
    ///
    /// # Errors
    /// io_uring was asked for and is not to be had.
    pub fn resolve(self) -> io::Result<Kind> {
        match self {
            Choice::Tokio => Ok(Kind::Tokio),
            Choice::Uring => ring().map(|_| Kind::Uring),
            Choice::Auto => Ok(ring().map_or(Kind::Tokio, |_| Kind::Uring)),
        }
    }
}

impl Kind {
    /// The word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Uring => "uring",
            Kind::Tokio => "tokio",
        }
    }
}

/// A connected TCP socket. Reading and writing may go on at the same time; neither is ever
/// cancelled: [`Socket::abort`] ends both.
pub(crate) trait Socket: Sized + 'static {
    /// Takes over a connection.
    fn adopt(stream: TcpStream) -> io::Result<Self>;

    /// Reads into `buffer[from..]`. Zero is the end of the stream, given that there is room.
    async fn read(&self, buffer: Vec<u8>, from: usize) -> (io::Result<usize>, Vec<u8>);

    /// Writes some of `buffer[range]`.
    async fn write(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<usize>, Vec<u8>);

    /// Sends FIN: nothing more will be written.
    fn finish(&self) -> io::Result<()>;

    /// Ends both directions now, with a reset.
    fn abort(&self);

    /// Writes all of `buffer[range]`, and calls `progress` with the length of each part that the
    /// kernel took.
    async fn write_all(
        &self,
        mut buffer: Vec<u8>,
        mut range: Range<usize>,
        progress: &impl Fn(usize),
    ) -> (io::Result<()>, Vec<u8>) {
        while !range.is_empty() {
            let (result, returned) = self.write(buffer, range.clone()).await;
            buffer = returned;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buffer),
                Ok(len) => {
                    range.start += len;
                    progress(len);
                }
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }
}

/// What a thread does, whichever the way.
pub(crate) trait Job {
    /// What it gives back.
    type Output;

    /// Runs on a single-threaded runtime; may use `tokio::task::spawn_local`.
    async fn run<S: Socket>(self) -> Self::Output;
}

/// Runs a job to its end on this thread.
pub(crate) fn drive<J: Job>(kind: Kind, job: J) -> io::Result<J::Output> {
    match kind {
        Kind::Uring => Ok(ring()?.block_on(job.run::<UringSocket>())),
        Kind::Tokio => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(LocalSet::new().block_on(&runtime, job.run::<TokioSocket>()))
        }
    }
}

/// Runs a conversation on a socket to its end. If `trigger` comes first, the socket is aborted and
/// the conversation ends by that: no operation is dropped midway. Gives what the conversation gave,
/// and whether the trigger came.
pub(crate) async fn or_abort<S: Socket, T>(
    socket: &S,
    conversation: impl Future<Output = T>,
    trigger: impl Future<Output = ()>,
) -> (T, bool) {
    let mut conversation = pin!(conversation);
    tokio::select! {
        biased;
        result = &mut conversation => (result, false),
        () = trigger => {
            socket.abort();
            (conversation.await, true)
        }
    }
}

/// Waits before something that failed for want of descriptors or of a listener is tried again.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn ring() -> io::Result<tokio_uring::Runtime> {
    tokio_uring::Runtime::new(
        tokio_uring::builder()
            .entries(RING_ENTRIES)
            .uring_builder(tokio_uring::uring_builder().setup_cqsize(RING_COMPLETIONS)),
    )
}

struct UringSocket {
    stream: tokio_uring::net::TcpStream,
}

impl Socket for UringSocket {
    fn adopt(stream: TcpStream) -> io::Result<UringSocket> {
        let stream = stream.into_std()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(false)?; // Else the ring answers "would block" instead of waiting.
        Ok(UringSocket {
            stream: tokio_uring::net::TcpStream::from_std(stream),
        })
    }

    async fn read(&self, buffer: Vec<u8>, from: usize) -> (io::Result<usize>, Vec<u8>) {
        let len = buffer.len();
        let (result, slice) = self.stream.read(buffer.slice(from..len)).await;
        (result, slice.into_inner())
    }

    async fn write(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<usize>, Vec<u8>) {
        let (result, slice) = self.stream.write(buffer.slice(range)).submit().await;
        (result, slice.into_inner())
    }

    fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    fn abort(&self) {
        #[expect(
            unsafe_code,
            reason = "tokio-uring's sockets offer their descriptor as a number only"
        )]
        // SAFETY: the descriptor is open as long as `self.stream`, which outlives this borrow.
        let descriptor = unsafe { BorrowedFd::borrow_raw(self.stream.as_raw_fd()) };
        reset(descriptor);
    }
}

struct TokioSocket {
    stream: TcpStream,
}

impl Socket for TokioSocket {
    fn adopt(stream: TcpStream) -> io::Result<TokioSocket> {
        stream.set_nodelay(true)?;
        Ok(TokioSocket { stream })
    }

    async fn read(&self, mut buffer: Vec<u8>, from: usize) -> (io::Result<usize>, Vec<u8>) {
        loop {
            match self.stream.try_read(&mut buffer[from..]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return (result, buffer),
            }
            if let Err(error) = self.stream.readable().await {
                return (Err(error), buffer);
            }
        }
    }

    async fn write(&self, buffer: Vec<u8>, range: Range<usize>) -> (io::Result<usize>, Vec<u8>) {
        loop {
            match self.stream.try_write(&buffer[range.clone()]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return (result, buffer),
            }
            if let Err(error) = self.stream.writable().await {
                return (Err(error), buffer);
            }
        }
    }

    fn finish(&self) -> io::Result<()> {
        SockRef::from(&self.stream).shutdown(Shutdown::Write)
    }

    fn abort(&self) {
        reset(&self.stream);
    }
}

/// Sends RST now and wakes whoever reads or writes. Not shutdown: that would send FIN first, which
/// looks like a clean end.
fn reset(socket: impl AsFd) {
    let _ = rustix::net::connect_unspec(&socket); // Fails only on a socket that is gone already.
}
