//! Buffers that the kernel picks from when a receive has something to write. Each slot owns its
//! buffer; a large result leaves with it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::BytesMut;
use io_uring::types::BufRingEntry;

use super::queue::Queue;

/// The kernel wants the ring of entries on a page of its own.
const PAGE: usize = 4096;

/// Buffers that the kernel has at the start of a turn, at least: what an idle worker holds.
const STOCK_MIN: usize = 4;

/// Buffers that large results may take in one turn: with 64 KiB each, a megabyte. More would fall
/// out of the processor's cache before the worker has looked at it, which costs more than another
/// turn.
const STOCK_OF_LARGE: usize = 16;

/// Turns after which the stock is fitted to what was used meanwhile.
const FIT_EVERY: u32 = 64;

/// A group of provided buffers. Must be [`unregister`](Self::unregister)ed, after the last
/// operation that uses it, before it is dropped.
///
/// The kernel takes them in turn, so it touches all that it has before it touches the first again.
/// So it has few, more as soon as it ran out, and fewer again when less was used for a while. A
/// slot that the kernel does not have holds no memory.
pub(super) struct Provided {
    group: u16,
    entries: NonNull<BufRingEntry>,
    /// By buffer id.
    buffers: Vec<BytesMut>,
    size: usize,
    head: usize,
    tail: u16,
    /// Ids that the kernel does not have, the one used last on top.
    idle: Vec<u16>,
    stock: Stock,
}

/// How many buffers the kernel should have at the start of a turn.
struct Stock {
    now: usize,
    max: usize,
    /// Buffers that came back in this turn, and those of them that left with a large result.
    used: usize,
    large: usize,
    ran_out: bool,
    /// The most that a turn used since the stock was fitted.
    used_max: usize,
    turns: u32,
}

impl Provided {
    /// Gives the kernel up to `count` (a power of two) buffers of `size` bytes as group `group`. Of
    /// the first `head` bytes the kernel may leave some unwritten before the end of what it wrote.
    pub(super) fn register(
        queue: &Queue,
        group: u16,
        count: u16,
        size: usize,
        head: usize,
    ) -> io::Result<Self> {
        assert!(count.is_power_of_two());
        let layout = layout(count.into());
        // SAFETY: the layout is not empty.
        let Some(entries) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        let mut provided = Self {
            group,
            entries: entries.cast(),
            buffers: vec![BytesMut::new(); count.into()],
            size,
            head,
            tail: 0,
            idle: (0..count).rev().collect(),
            stock: Stock::new(count.into()),
        };
        // SAFETY: page-aligned memory for `count` entries that lives as long as `provided`, which
        // is unregistered before it goes.
        unsafe {
            queue
                .submitter()
                .register_buf_ring_with_flags(entries.as_ptr() as u64, count, group, 0)
        }?;
        provided.restock();
        Ok(provided)
    }

    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// How many buffers a turn may count on.
    pub(super) fn stock(&self) -> usize {
        self.stock.now
    }

    /// The first `len` bytes of a buffer that the kernel filled.
    pub(super) fn filled(&self, id: u16, len: usize) -> &[u8] {
        let buffer = &self.buffers[usize::from(id)];
        assert!(
            len <= buffer.capacity(),
            "the kernel keeps to the size it was told"
        );
        // SAFETY: the kernel wrote `len` bytes from the buffer's start, but for some of its head,
        // which was zeroed; it does not write again before the buffer is given to it again.
        unsafe { std::slice::from_raw_parts(buffer.as_ptr(), len) }
    }

    /// Takes a buffer that the kernel filled with `len` bytes out of its slot.
    pub(super) fn take(&mut self, id: u16, len: usize) -> BytesMut {
        let mut taken = std::mem::take(&mut self.buffers[usize::from(id)]);
        assert!(
            len <= taken.capacity(),
            "the kernel keeps to the size it was told"
        );
        // SAFETY: as in `filled`, and the kernel has no further claim on it.
        unsafe { taken.set_len(len) };
        self.stock.large += 1;
        self.keep(id);
        taken
    }

    /// Takes a buffer back from the kernel, in its slot.
    pub(super) fn keep(&mut self, id: u16) {
        self.idle.push(id);
        self.stock.used += 1;
    }

    /// Notes that a receive found no buffer.
    pub(super) fn ran_out(&mut self) {
        self.stock.ran_out = true;
    }

    /// Ends a turn: gives the kernel what it lacks.
    pub(super) fn restock(&mut self) {
        let fitted = self.stock.end_turn();
        let has = self.buffers.len() - self.idle.len();
        if has < self.stock.now {
            let rest = self.idle.len() - (self.stock.now - has);
            while self.idle.len() > rest
                && let Some(id) = self.idle.pop()
            {
                self.give(id);
            }
            self.publish();
        }
        if fitted {
            // What came back and was not given again.
            for id in &self.idle {
                self.buffers[usize::from(*id)] = BytesMut::new();
            }
        }
    }

    /// Gives a buffer to the kernel, from the next [`publish`](Self::publish) on.
    fn give(&mut self, id: u16) {
        let mask = self.buffers.len() - 1;
        let buffer = &mut self.buffers[usize::from(id)];
        if buffer.capacity() < self.size {
            *buffer = BytesMut::with_capacity(self.size);
            buffer.resize(self.head, 0);
            buffer.clear();
        }
        // SAFETY: masked, the index is within the ring; the kernel does not read entries at or
        // beyond the published tail.
        let entry = unsafe { self.entries.add(usize::from(self.tail) & mask).as_mut() };
        entry.set_addr(buffer.as_mut_ptr() as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Tells the kernel of all that was given since.
    fn publish(&self) {
        // SAFETY: the tail lies within the first entry, is aligned, and is only ever accessed
        // atomically.
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

impl Stock {
    fn new(max: usize) -> Self {
        Self {
            now: STOCK_MIN.min(max),
            max,
            used: 0,
            large: 0,
            ran_out: false,
            used_max: 0,
            turns: 0,
        }
    }

    /// Draws the conclusion from a turn. Tells whether the stock was fitted, which happens once in
    /// a while.
    fn end_turn(&mut self) -> bool {
        let mostly_large = self.large * 2 > self.used;
        if self.ran_out && !(mostly_large && self.now >= STOCK_OF_LARGE) {
            self.now = (self.now * 2).min(self.max);
        }
        self.used_max = self.used_max.max(self.used);
        self.used = 0;
        self.large = 0;
        self.ran_out = false;
        self.turns += 1;
        if self.turns < FIT_EVERY {
            return false;
        }
        if self.used_max * 2 <= self.now {
            self.now = (self.now / 2).max(STOCK_MIN).min(self.max);
        }
        self.used_max = 0;
        self.turns = 0;
        true
    }
}

fn layout(count: usize) -> Layout {
    Layout::from_size_align(count * size_of::<BufRingEntry>(), PAGE).expect("a few pages")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use io_uring::types::Fd;
    use io_uring::{opcode, squeue};

    use super::super::queue::{Kind, Token};
    use super::*;

    #[test]
    fn a_large_result_leaves_in_the_memory_that_the_kernel_wrote_into() -> io::Result<()> {
        let mut queue = Queue::new()?;
        let mut provided = Provided::register(&queue, 0, 8, 65_536, 0)?;
        let (mut near, far) = UnixStream::pair()?;
        for round in 0..20_u8 {
            near.write_all(&[round; 5000])?;
            let entry = opcode::Recv::new(Fd(far.as_raw_fd()), std::ptr::null_mut(), 0)
                .buf_group(0)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT);
            let written: Vec<_> = provided
                .buffers
                .iter()
                .map(|buffer| buffer.as_ptr())
                .collect();
            // SAFETY: the kernel writes into a provided buffer.
            unsafe { queue.push(Token::of_slot(Kind::Receive, 0), entry) };
            queue.enter(Some(Duration::from_secs(10)))?;
            let mut done = Vec::new();
            queue.reap(1, &mut done);
            let id = done[0].buffer.expect("a buffer was taken");
            let chunk = provided.take(id, 5000).freeze();
            assert_eq!(chunk.as_ptr(), written[usize::from(id)]);
            assert_eq!(chunk, [round; 5000][..]);
            provided.restock();
        }
        provided.unregister(&queue);
        Ok(())
    }

    #[test]
    fn the_stock_grows_when_it_ran_out_and_shrinks_when_little_is_used() {
        let mut stock = Stock::new(128);
        assert_eq!(stock.now, STOCK_MIN);
        for _ in 0..10 {
            turn(&mut stock, usize::MAX, false);
        }
        assert_eq!(stock.now, 128);
        for _ in 0..10 * FIT_EVERY {
            turn(&mut stock, 5, false);
        }
        assert_eq!(stock.now, 8);
    }

    #[test]
    fn large_results_do_not_leave_the_cache() {
        let mut stock = Stock::new(128);
        for _ in 0..10 * FIT_EVERY {
            turn(&mut stock, usize::MAX, true);
        }
        assert_eq!(stock.now, STOCK_OF_LARGE);
    }

    /// A turn that wanted so many buffers.
    fn turn(stock: &mut Stock, wanted: usize, large: bool) {
        stock.ran_out = wanted > stock.now;
        stock.used = wanted.min(stock.now);
        stock.large = if large { stock.used } else { 0 };
        stock.end_turn();
    }
}
