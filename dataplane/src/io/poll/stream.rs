//! One TCP connection of `poll`: which operations are wanted, what readiness is known, and the
//! tries.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use bytes::Bytes;
use mio::event::Event;
use mio::net;
use socket2::SockRef;

use crate::io::buffers::ReceiveBuffer;
use crate::io::chunks::Chunks;
use crate::io::{Completion, Counters, GATHER_MAX, READ_SIZE, SocketId};

pub(super) struct Stream {
    pub(super) stream: net::TcpStream,
    pub(super) registered: bool,
    pub(super) queued: bool,
    pub(super) connecting: bool,
    pub(super) receiving: bool,
    pub(super) watching: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// Urgent bytes came: a receive may end before them without having emptied the socket.
    pub(super) urgent: bool,
    /// FIN or an error came: there is no further edge to wait for.
    pub(super) ended: bool,
    pub(super) errored: bool,
    pub(super) sending: Option<Chunks>,
    /// FIN follows the send: the last packet waits for it.
    pub(super) last: bool,
    /// Nobody waits for the end of the send.
    pub(super) quiet: bool,
    /// The socket's error, once any operation has taken it from the kernel, which tells it only
    /// once.
    pub(super) failed: Option<i32>,
}

impl Stream {
    pub(super) fn new(stream: net::TcpStream) -> Self {
        Self {
            stream,
            registered: false,
            queued: false,
            connecting: false,
            receiving: false,
            watching: false,
            // Tried before the first event: an application often speaks at once.
            readable: true,
            writable: true,
            urgent: false,
            ended: false,
            errored: false,
            sending: None,
            last: false,
            quiet: false,
            failed: None,
        }
    }

    pub(super) fn note(&mut self, event: &Event) {
        let failed = event.is_error();
        self.errored |= failed;
        self.ended |= failed || event.is_read_closed();
        self.urgent |= event.is_priority();
        self.readable |= event.is_readable() || self.ended;
        self.writable |= event.is_writable() || failed || event.is_write_closed();
    }

    /// Whether an operation may succeed now. An error raises both flags, so a try that finds
    /// nothing in spite of it waits like any other.
    pub(super) fn is_runnable(&self) -> bool {
        let failed = self.failed.is_some();
        if self.connecting {
            return failed || self.writable;
        }
        (self.sending.is_some() && (failed || self.writable))
            || (self.receiving && (failed || self.readable))
            || (self.watching && (failed || self.errored))
    }

    /// Tries each operation that may succeed once. Tells whether anything came of it that is worth
    /// a turn.
    pub(super) fn run(
        &mut self,
        id: SocketId,
        buffer: &mut ReceiveBuffer,
        counters: &mut Counters,
        completions: &mut Vec<Completion>,
    ) -> bool {
        let mut quiet = completions.len();
        if self.connecting {
            self.finish_connect(id, counters, completions);
            return completions.len() > quiet;
        }
        if self.sending.is_some() && (self.writable || self.failed.is_some()) {
            counters.system_calls += 1;
            if let Some(result) = self.write() {
                self.sending = None;
                quiet += usize::from(self.quiet && result.is_ok());
                completions.push(Completion::Sent { socket: id, result });
            }
            // Where there was no room for all of it, its end is told as soon as it has come.
            self.quiet = false;
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
        completions.len() > quiet
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

    /// The socket's error, kept from now on: the kernel tells it once, and afterwards a receive
    /// would look like FIN.
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
        if let Some(error) = self.failure() {
            return Some(Err(error));
        }
        let chunks = self.sending.as_mut()?;
        match send(&self.stream, chunks.rest(), self.last) {
            Ok(sent) => {
                chunks.advance(sent);
                if chunks.is_done() {
                    return Some(Ok(chunks.total()));
                }
                // Cut short: the kernel is full and will say when it is not. Others than Linux want
                // to be asked once more.
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
        let socket = SockRef::from(&self.stream);
        let error = match buffer.fill(|space| socket.recv(space)) {
            // What came before an error is read before the error is told, although another
            // operation may have taken it from the kernel.
            Ok(0) if self.failed.is_some() => return self.failure().map(Err),
            Ok(len) => {
                // Not filled: nothing is left, and the next byte makes an edge. FIN and errors made
                // theirs, so they are remembered.
                if cfg!(target_os = "linux") && len > 0 && len < READ_SIZE && !self.urgent {
                    self.readable = self.ended;
                }
                return Some(Ok(buffer.take(len, &mut counters.bytes_copied)));
            }
            Err(error) => error,
        };
        match error.kind() {
            io::ErrorKind::WouldBlock if self.failed.is_some() => self.failure().map(Err),
            io::ErrorKind::WouldBlock => {
                self.readable = false;
                None
            }
            io::ErrorKind::Interrupted => None,
            _ => {
                self.failed.get_or_insert(errno(&error));
                self.failure().map(Err)
            }
        }
    }

    fn failure(&self) -> Option<io::Error> {
        self.failed.map(io::Error::from_raw_os_error)
    }
}

/// Writes what the kernel takes; with `last`, FIN follows when all is written.
fn send<S: AsFd>(stream: &S, chunks: &[Bytes], last: bool) -> io::Result<usize> {
    let socket = SockRef::from(stream);
    #[cfg(target_os = "linux")]
    let flags = libc::MSG_NOSIGNAL | if last { libc::MSG_MORE } else { 0 };
    #[cfg(not(target_os = "linux"))]
    let (flags, _) = (0, last);
    match chunks {
        [chunk] => socket.send_with_flags(chunk, flags),
        chunks => {
            let mut slices = [IoSlice::new(&[]); GATHER_MAX];
            let count = chunks.len().min(GATHER_MAX);
            for (slice, chunk) in slices.iter_mut().zip(chunks) {
                *slice = IoSlice::new(chunk);
            }
            socket.send_vectored_with_flags(&slices[..count], flags)
        }
    }
}

pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::ECONNRESET)
}
