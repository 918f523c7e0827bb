//! The UDP half of `poll`: batches in and out, one system call each.

use std::io;

use bytes::BytesMut;

use super::Poll;
use super::stream::errno;
use crate::io::{BATCH_SIZE, COPY_BELOW, Completion, Datagrams};

/// The most datagram batches of one turn, of up to 64 KiB each: enough to fill a turn, few enough
/// to let TCP have its own.
const BATCHES_MAX: usize = 16;

impl Poll {
    pub(super) fn receive_datagrams(&mut self, completions: &mut Vec<Completion>) {
        let mut batches = 0;
        while self.udp_readable && batches < BATCHES_MAX {
            batches += 1;
            self.counters.system_calls += 1;
            let mut buffer = std::mem::take(&mut self.datagram_buffer);
            if buffer.capacity() < BATCH_SIZE {
                buffer = BytesMut::with_capacity(BATCH_SIZE);
            }
            match self.udp.receive(buffer) {
                Ok(batch) => completions.push(Completion::Datagrams(self.compact(batch))),
                Err((buffer, error)) => {
                    self.datagram_buffer = buffer;
                    // Any other error is one of an earlier send, told late: the next receive goes
                    // on.
                    self.udp_readable = error.kind() != io::ErrorKind::WouldBlock;
                }
            }
        }
    }

    /// Copies a small batch out, so that it does not pin a large buffer, and keeps the buffer.
    fn compact(&mut self, mut batch: Datagrams) -> Datagrams {
        if batch.data.len() < COPY_BELOW {
            let copy = BytesMut::from(&batch.data[..]);
            self.counters.bytes_copied += copy.len() as u64;
            self.datagram_buffer = std::mem::replace(&mut batch.data, copy);
            self.datagram_buffer.clear();
        }
        batch
    }

    pub(super) fn send_blocked(&mut self) {
        while self.udp_writable {
            let Some((buffer, transmit)) = self.blocked.pop_front() else {
                return;
            };
            self.counters.system_calls += 1;
            match self.udp.send(&buffer.data, &transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.udp_writable = false;
                    self.blocked.push_front((buffer, transmit));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    self.blocked.push_front((buffer, transmit));
                }
                sent => {
                    if let Err(error) = sent {
                        self.counters.datagram_send_errors += 1;
                        self.udp.note_send_error(errno(&error));
                    }
                    self.transmits.put(buffer);
                }
            }
        }
    }
}
