//! One TCP connection of the ring: what is under way on it, and the memory that the kernel reads
//! meanwhile.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use bytes::Bytes;
use io_uring::{opcode, squeue, types::Fd};
use socket2::{SockAddr, SockRef};

use super::queue::Kind;
use crate::io::chunks::Chunks;
use crate::io::{Completion, GATHER_MAX, SocketId, socket};

/// Sends go on in the kernel until all is written, without a signal where the peer is gone.
pub(super) const SEND_FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// Messages kept for later sends, of a kilobyte each: as many as one turn uses when it is busy.
const GATHERS_MAX: usize = 64;

pub(super) struct Stream {
    pub(super) fd: OwnedFd,
    /// Operations whose last completion has not come; the descriptor stays open until then.
    pub(super) under_way: u32,
    pub(super) closing: bool,
    pub(super) receiving: bool,
    pub(super) watching: bool,
    pub(super) watch_armed: bool,
    /// The last receive left nothing behind.
    pub(super) drained: bool,
    /// The watch saw an error that nobody has taken yet.
    pub(super) errored: bool,
    /// The socket's error, once any operation has taken it from the kernel, which tells it only
    /// once.
    pub(super) failed: Option<i32>,
    pub(super) bytes_received: u64,
    pub(super) sending: Option<Chunks>,
    /// FIN follows the send: the last packet waits for it.
    pub(super) last: bool,
    /// The message of the send under way, where it has several chunks.
    gather: Option<Box<Gather>>,
    /// Where it connects to, while it does.
    pub(super) address: Option<Box<SockAddr>>,
}

/// Messages that no send uses, so that an idle connection holds none.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "the kernel has pointers into each")]
pub(super) struct Gathers(Vec<Box<Gather>>);

/// A message of several chunks.
pub(super) struct Gather {
    header: libc::msghdr,
    chunks: [libc::iovec; GATHER_MAX],
}

impl Stream {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            under_way: 0,
            closing: false,
            receiving: false,
            watching: false,
            watch_armed: false,
            drained: false,
            errored: false,
            failed: None,
            bytes_received: 0,
            sending: None,
            last: false,
            gather: None,
            address: None,
        }
    }

    /// Kinds of the operations that may be under way: one of each at most.
    pub(super) fn kinds_under_way(&self) -> [Option<Kind>; 4] {
        [
            self.address.is_some().then_some(Kind::Connect),
            self.receiving.then_some(Kind::Receive),
            self.sending.is_some().then_some(Kind::Send),
            self.watch_armed.then_some(Kind::Watch),
        ]
    }

    /// The operation that writes what is left of the send.
    pub(super) fn send_entry(
        &mut self,
        flags: i32,
        gathers: &mut Gathers,
    ) -> Option<squeue::Entry> {
        let fd = Fd(self.fd.as_raw_fd());
        let flags = flags | if self.last { libc::MSG_MORE } else { 0 };
        Some(match self.sending.as_ref()?.rest() {
            [chunk] => opcode::Send::new(fd, chunk.as_ptr(), chunk.len() as u32)
                .flags(flags)
                .build(),
            chunks => {
                let gather = self.gather.get_or_insert_with(|| gathers.take());
                opcode::SendMsg::new(fd, gather.point(chunks))
                    .flags(flags as u32)
                    .build()
            }
        })
    }

    /// Ends the use of a message, once the kernel has no use for it.
    pub(super) fn return_gather(&mut self, gathers: &mut Gathers) {
        if let Some(gather) = self.gather.take() {
            gathers.put(gather);
        }
    }

    /// Notes that an operation took this error from the kernel.
    pub(super) fn fail(&mut self, error: i32) -> io::Error {
        io::Error::from_raw_os_error(*self.failed.get_or_insert(error))
    }

    /// How a receive without bytes ended: 0 is FIN, unless the error that was due went to a send.
    pub(super) fn end(&mut self, error: i32) -> io::Result<Bytes> {
        if error != 0 {
            return Err(self.fail(error));
        }
        if let Some(error) = self.failed {
            return Err(self.fail(error));
        }
        // A send that is under way may have taken the error and kept it to itself, because it had
        // written something before.
        if self.sending.is_some() && !socket::fin_came(&self.fd, self.bytes_received) {
            return Err(self.fail(libc::ECONNRESET));
        }
        Ok(Bytes::new())
    }

    pub(super) fn hang_up(&mut self, id: SocketId) -> Completion {
        self.watching = false;
        let taken = SockRef::from(&self.fd).take_error().ok().flatten();
        let error = taken.and_then(|error| error.raw_os_error());
        Completion::HungUp {
            socket: id,
            error: self.fail(error.unwrap_or(libc::ECONNRESET)),
        }
    }
}

impl Gathers {
    fn take(&mut self) -> Box<Gather> {
        self.0.pop().unwrap_or_else(Gather::new)
    }

    fn put(&mut self, gather: Box<Gather>) {
        if self.0.len() < GATHERS_MAX {
            self.0.push(gather);
        }
    }
}

impl Gather {
    fn new() -> Box<Self> {
        // SAFETY: plain C structures for which all zeroes (null pointers, zero lengths) are valid.
        Box::new(unsafe { std::mem::zeroed() })
    }

    /// The header of a message of these chunks. Valid while `self` and the chunks stay where they
    /// are.
    fn point(&mut self, chunks: &[Bytes]) -> *const libc::msghdr {
        let count = chunks.len().min(GATHER_MAX);
        for (slot, chunk) in self.chunks.iter_mut().zip(chunks) {
            slot.iov_base = chunk.as_ptr().cast_mut().cast();
            slot.iov_len = chunk.len();
        }
        self.header.msg_iov = self.chunks.as_mut_ptr();
        self.header.msg_iovlen = count as _;
        &raw const self.header
    }
}
