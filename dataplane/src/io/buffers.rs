//! Buffers that both backends use: the transmit buffers that a worker fills, and the receive buffer
//! of `poll`.

#![expect(
    unsafe_code,
    reason = "buffers are not cleared before the kernel writes into them"
)]

use std::io;
use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};

use super::{COPY_BELOW, DATAGRAMS_SIZE, DatagramBuffer, READ_SIZE};

/// Transmit buffers of a worker, 64 KiB each. Beyond these, what QUIC wants to send waits in its
/// streams: the kernel has a megabyte then.
pub(super) const TRANSMITS: usize = 16;

/// The transmit buffers that nobody has.
pub(super) struct TransmitBuffers {
    free: Vec<DatagramBuffer>,
    made: usize,
    /// A worker went away empty-handed.
    wanted: bool,
    /// … and one has come back since.
    freed: bool,
}

impl TransmitBuffers {
    pub(super) fn new() -> Self {
        Self {
            free: Vec::with_capacity(TRANSMITS),
            made: 0,
            wanted: false,
            freed: false,
        }
    }

    /// An empty buffer, the one used last first: its memory is in the cache. Made on first need.
    pub(super) fn take(&mut self) -> Option<DatagramBuffer> {
        if let Some(mut buffer) = self.free.pop() {
            buffer.data.clear();
            return Some(buffer);
        }
        if self.made == TRANSMITS {
            self.wanted = true;
            return None;
        }
        self.made += 1;
        Some(DatagramBuffer {
            data: Vec::with_capacity(DATAGRAMS_SIZE),
            slot: self.made - 1,
        })
    }

    pub(super) fn put(&mut self, buffer: DatagramBuffer) {
        self.free.push(buffer);
        if self.wanted {
            self.wanted = false;
            self.freed = true;
        }
    }

    /// Whether somebody waits for a buffer, and none has come back.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Whether somebody waits for a buffer that has come back.
    pub(super) fn has_freed(&self) -> bool {
        self.freed
    }

    /// The same, said once.
    pub(super) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }
}

/// A buffer that the kernel writes into and that large chunks leave.
#[derive(Default)]
pub(super) struct ReceiveBuffer {
    buffer: BytesMut,
}

impl ReceiveBuffer {
    /// Offers [`READ_SIZE`] bytes of space to `read`, which tells how much it wrote.
    pub(super) fn fill(
        &mut self,
        read: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.buffer.capacity() < READ_SIZE {
            self.buffer = BytesMut::with_capacity(READ_SIZE);
        }
        read(&mut self.buffer.spare_capacity_mut()[..READ_SIZE])
    }

    /// The `len` bytes that the last [`fill`](Self::fill) wrote: a large chunk leaves with the
    /// buffer, a small one is copied out.
    pub(super) fn take(&mut self, len: usize, copied: &mut u64) -> Bytes {
        let mut data = std::mem::take(&mut self.buffer);
        // SAFETY: `fill` offered at least `len` bytes of spare capacity, and its reader wrote them.
        unsafe { data.set_len(len) };
        if len >= COPY_BELOW {
            return data.freeze();
        }
        let copy = Bytes::copy_from_slice(&data);
        *copied += len as u64;
        data.clear();
        self.buffer = data;
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_chunk_leaves_with_its_buffer_and_a_small_one_is_copied() -> io::Result<()> {
        let mut receive = ReceiveBuffer::default();
        let mut copied = 0;
        for len in [COPY_BELOW, READ_SIZE] {
            let mut written = std::ptr::null();
            receive.fill(|space| {
                space[..len].fill(MaybeUninit::new(7));
                written = space.as_ptr().cast();
                Ok(len)
            })?;
            let chunk = receive.take(len, &mut copied);
            assert_eq!((chunk.as_ptr(), chunk.len(), copied), (written, len, 0));
        }
        receive.fill(|space| {
            space[0] = MaybeUninit::new(7);
            Ok(1)
        })?;
        assert_eq!(receive.take(1, &mut copied), [7][..]);
        assert_eq!(copied, 1);
        Ok(())
    }
}
