//! What one [`Io::send`](super::Io::send) still has to write.

use bytes::{Buf, Bytes};

/// Chunks in order, the first ones gone already.
#[derive(Default)]
pub(super) struct Chunks {
    chunks: Vec<Bytes>,
    next: usize,
    total: usize,
}

impl Chunks {
    pub(super) fn new(chunks: Vec<Bytes>) -> Self {
        let total = chunks.iter().map(Bytes::len).sum();
        Self {
            chunks,
            next: 0,
            total,
        }
    }

    /// All bytes that were given.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// What is left.
    pub(super) fn rest(&self) -> &[Bytes] {
        &self.chunks[self.next..]
    }

    /// Notes that the kernel took `len` bytes more.
    pub(super) fn advance(&mut self, mut len: usize) {
        while let Some(chunk) = self.chunks.get_mut(self.next) {
            if len < chunk.len() {
                chunk.advance(len);
                return;
            }
            len -= chunk.len();
            // Freed now, not with the last: what is gone must not pin memory.
            *chunk = Bytes::new();
            self.next += 1;
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.next == self.chunks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_writes_go_on_where_they_ended() {
        let mut chunks = Chunks::new(vec!["ab".into(), "cde".into(), "f".into()]);
        assert_eq!(chunks.total(), 6);
        chunks.advance(1);
        assert_eq!(chunks.rest(), ["b", "cde", "f"]);
        chunks.advance(3);
        assert_eq!(chunks.rest(), ["e", "f"]);
        chunks.advance(2);
        assert!(chunks.is_done());
        assert_eq!(chunks.total(), 6);
    }
}
