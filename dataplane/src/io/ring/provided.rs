//! Buffers that the kernel picks from when a receive has something to write. Each slot owns its buffer; a large result leaves with it and a fresh one takes its place.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::BytesMut;
use io_uring::types::BufRingEntry;

use super::queue::Queue;

/// The kernel wants the ring of entries on a page of its own.
const PAGE: usize = 4096;

/// A group of provided buffers. Must be [`unregister`](Self::unregister)ed, after the last operation that uses it, before it is dropped.
pub(super) struct Provided {
    group: u16,
    entries: NonNull<BufRingEntry>,
    buffers: Vec<BytesMut>,
    size: usize,
    tail: u16,
}

impl Provided {
    /// Gives the kernel `count` (a power of two) buffers of `size` bytes as group `group`.
    pub(super) fn register(queue: &Queue, group: u16, count: u16, size: usize) -> io::Result<Self> {
        assert!(count.is_power_of_two());
        let layout = layout(count.into());
        // SAFETY: the layout is not empty.
        let Some(entries) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        let mut provided = Self {
            group,
            entries: entries.cast(),
            buffers: (0..count).map(|_| BytesMut::with_capacity(size)).collect(),
            size,
            tail: 0,
        };
        // SAFETY: page-aligned memory for `count` entries that lives as long as `provided`, which is unregistered before it goes.
        unsafe {
            queue
                .submitter()
                .register_buf_ring_with_flags(entries.as_ptr() as u64, count, group, 0)
        }?;
        for id in 0..count {
            provided.give(id);
        }
        provided.publish();
        Ok(provided)
    }

    pub(super) fn group(&self) -> u16 {
        self.group
    }

    pub(super) fn count(&self) -> usize {
        self.buffers.len()
    }

    /// The first `len` bytes of a buffer that the kernel filled.
    pub(super) fn filled(&self, id: u16, len: usize) -> &[u8] {
        let buffer = &self.buffers[usize::from(id)];
        assert!(
            len <= buffer.capacity(),
            "the kernel keeps to the size it was told"
        );
        // SAFETY: the kernel wrote `len` bytes from the buffer's start and does not write again before it is given back.
        unsafe { std::slice::from_raw_parts(buffer.as_ptr(), len) }
    }

    /// Takes a buffer that the kernel filled with `len` bytes out of its slot, and gives the kernel a fresh one.
    pub(super) fn take(&mut self, id: u16, len: usize) -> BytesMut {
        let fresh = BytesMut::with_capacity(self.size);
        let mut taken = std::mem::replace(&mut self.buffers[usize::from(id)], fresh);
        assert!(
            len <= taken.capacity(),
            "the kernel keeps to the size it was told"
        );
        // SAFETY: the kernel wrote `len` bytes from the buffer's start, and has no further claim on it.
        unsafe { taken.set_len(len) };
        self.give(id);
        taken
    }

    /// Gives a buffer to the kernel (again), from the next [`publish`](Self::publish) on.
    pub(super) fn give(&mut self, id: u16) {
        let mask = self.buffers.len() - 1;
        let buffer = &mut self.buffers[usize::from(id)];
        // SAFETY: masked, the index is within the ring; the kernel does not read entries at or beyond the published tail.
        let entry = unsafe { self.entries.add(usize::from(self.tail) & mask).as_mut() };
        entry.set_addr(buffer.as_mut_ptr() as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Tells the kernel of all that was given since.
    pub(super) fn publish(&self) {
        // SAFETY: the tail lies within the first entry, is aligned, and is only ever accessed atomically.
        let tail = unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail)
        };
        tail.store(self.tail, Ordering::Release);
    }

    /// Never frees the buffers: the kernel may still write into them.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.buffers));
    }

    pub(super) fn unregister(&self, queue: &Queue) {
        // It fails only where it was never registered.
        let _ = queue.submitter().unregister_buf_ring(self.group);
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        if self.buffers.is_empty() {
            return; // Leaked.
        }
        // SAFETY: allocated with this very layout; the kernel was told to forget it.
        unsafe { dealloc(self.entries.as_ptr().cast(), layout(self.buffers.len())) };
    }
}

fn layout(count: usize) -> Layout {
    Layout::from_size_align(count * size_of::<BufRingEntry>(), PAGE).expect("a few pages")
}
