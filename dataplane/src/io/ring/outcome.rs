//! What the completions of sockets mean, for the socket and for the worker.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Instant;

use bytes::Bytes;
use socket2::SockRef;

use super::queue::Done;
use super::{Entry, Ring, open};
use crate::io::{ACCEPT_PAUSE, COPY_BELOW, Completion, SocketId, is_exhaustion};

impl Ring {
    pub(super) fn accepted(&mut self, id: SocketId, done: Done, completions: &mut Vec<Completion>) {
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

    pub(super) fn connected(
        &mut self,
        id: SocketId,
        done: Done,
        completions: &mut Vec<Completion>,
    ) {
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

    pub(super) fn received(&mut self, id: SocketId, done: Done, completions: &mut Vec<Completion>) {
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

    pub(super) fn sent(&mut self, id: SocketId, done: Done, completions: &mut Vec<Completion>) {
        let Some(Entry::Stream(stream)) = self.sockets.get(id) else {
            return;
        };
        stream.under_way -= 1;
        if stream.closing {
            return;
        }
        stream.return_gather(&mut self.gathers);
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

    pub(super) fn watched(&mut self, id: SocketId, done: Done, completions: &mut Vec<Completion>) {
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
        // The kernel tells hang-up, too, which a FIN in both directions is; only an error is a
        // failure.
        stream.errored |= done.result < 0 || done.result & i32::from(libc::POLLERR) != 0;
        if stream.watching && stream.errored {
            completions.push(stream.hang_up(id));
        } else if stream.watching && !stream.watch_armed {
            self.watches.push(id);
        }
    }

    pub(super) fn remove_if_closed(&mut self, id: SocketId) {
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
