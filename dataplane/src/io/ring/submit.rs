//! What the operations on sockets queue for the kernel.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bytes::Bytes;
use io_uring::types::Fd;
use io_uring::{opcode, squeue};
use socket2::SockRef;

use super::queue::{Kind, Token};
use super::stream::{SEND_FLAGS, Stream};
use super::{Entry, POLL_FIRST, Ring, open};
use crate::io::chunks::Chunks;
use crate::io::{Close, SocketId, socket};

impl Ring {
    pub(super) fn insert(&mut self, fd: OwnedFd) -> SocketId {
        self.sockets.insert(Entry::Stream(Stream::new(fd)))
    }

    pub(super) fn stream(&mut self, id: SocketId) -> Option<&mut Stream> {
        open(&mut self.sockets, id)
    }

    pub(super) fn accept(&mut self, id: SocketId) {
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

    pub(super) fn arm_receive(&mut self, id: SocketId) {
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
        // SAFETY: the kernel writes into a provided buffer, which lives as long as the ring's
        // operations.
        unsafe { self.queue.push(Token::of_socket(Kind::Receive, id), entry) };
    }

    pub(super) fn keep_to_send(&mut self, id: SocketId, chunks: Vec<Bytes>) {
        if let Some(stream) = open(&mut self.sockets, id) {
            // The kernel reads from the one that is under way.
            assert!(stream.sending.is_none(), "one send at a time");
            stream.sending = Some(Chunks::new(chunks));
        }
    }

    pub(super) fn go_on_sending(&mut self, id: SocketId) {
        let Some(stream) = open(&mut self.sockets, id) else {
            return;
        };
        let Some(entry) = stream.send_entry(SEND_FLAGS, &mut self.gathers) else {
            return;
        };
        stream.under_way += 1;
        // SAFETY: chunks and message stay in the stream, which stays in its slot, until the
        // completion.
        unsafe { self.queue.push(Token::of_socket(Kind::Send, id), entry) };
    }

    /// Without waiting for room, which [`Self::sent`] does where there is too little.
    pub(super) fn begin_sending_quietly(&mut self, id: SocketId) {
        let Some(stream) = open(&mut self.sockets, id) else {
            return;
        };
        let len = stream.sending.as_ref().map_or(0, Chunks::total);
        let flags = SEND_FLAGS | libc::MSG_DONTWAIT;
        let Some(entry) = stream.send_entry(flags, &mut self.gathers) else {
            return;
        };
        stream.under_way += 1;
        let token = Token::of_socket(Kind::Send, id);
        // SAFETY: chunks and message stay in the stream, which stays in its slot, until the
        // completion.
        unsafe { self.queue.push_quiet(token, entry, Some(len)) };
    }

    pub(super) fn close_listener(&mut self, id: SocketId) {
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

    pub(super) fn close_stream(&mut self, id: SocketId, how: Close) {
        let Some(stream) = open(&mut self.sockets, id) else {
            return;
        };
        stream.closing = true;
        match how {
            Close::Clean => socket::lift_linger(&stream.fd),
            // What is under way holds the socket open beyond close(2): the peer gets its RST now,
            // and the operations end by it.
            Close::Reset if stream.under_way > 0 => disconnect(&stream.fd),
            Close::Reset => {}
        }
        self.counters.system_calls += 2;
        self.cancel_or_remove(id);
    }

    /// Closes a socket, once nothing is under way on it.
    ///
    /// What is under way is cancelled one by one: the kernel finds an operation by its token at
    /// once, and those of a descriptor by a walk over all that wait in the ring.
    fn cancel_or_remove(&mut self, id: SocketId) {
        let kinds = match self.sockets.get(id) {
            Some(Entry::Stream(stream)) if stream.under_way > 0 => stream.kinds_under_way(),
            Some(Entry::Listener(listener)) if listener.accepting => {
                [Some(Kind::Accept), None, None, None]
            }
            Some(_) => {
                self.sockets.remove(id);
                return;
            }
            None => return,
        };
        for kind in kinds.into_iter().flatten() {
            let entry = opcode::AsyncCancel::new(Token::of_socket(kind, id).number()).build();
            // SAFETY: the entry points at nothing.
            unsafe { self.queue.push(Token::of_socket(Kind::Cancel, id), entry) };
        }
    }
}

/// Ends a connection with RST now, even if others still hold the socket.
fn disconnect(fd: &impl AsFd) {
    // SAFETY: all zeroes are a valid address; its family is AF_UNSPEC, which dissolves a
    // connection.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address lives until the call returns and has the length that is told.
    unsafe { libc::connect(fd.as_fd().as_raw_fd(), &raw const nobody, len) };
}
