//! The bytes that the demo moves: they depend on their position, cost nothing to make, and both
//! ends know them.
//!
//! Each MiB is its number (eight bytes, little-endian) and the rest of one fixed block, so that a
//! lost, doubled or misplaced piece changes the SHA-256, while serving takes no copy.

use bytes::Bytes;
use sha2::{Digest, Sha256};

/// Bytes of the block.
const BLOCK: usize = 1 << 20;
/// Bytes of the number in front.
const NUMBER: usize = 8;

/// The stream of bytes. A clone costs a reference count.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    block: Bytes,
}

impl Pattern {
    /// Makes the block, a millisecond's work.
    pub(super) fn new() -> Self {
        let words = (1..=BLOCK as u64 / 8).map(mix);
        Self {
            block: words.flat_map(u64::to_le_bytes).collect(),
        }
    }

    /// The bytes from position `from` on, `len` of them, in pieces of at most a MiB that share the
    /// block.
    pub(super) fn pieces(&self, from: u64, len: u64) -> impl Iterator<Item = Bytes> + use<> {
        let block = self.block.clone();
        let (mut at, end) = (from, from.saturating_add(len));
        std::iter::from_fn(move || {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let within = usize::try_from(at % BLOCK as u64).expect("below a MiB");
            let piece = if left == 0 {
                return None;
            } else if within < NUMBER {
                let number = (at / BLOCK as u64).to_le_bytes();
                Bytes::copy_from_slice(&number[within..NUMBER.min(within + left)])
            } else {
                block.slice(within..BLOCK.min(within.saturating_add(left)))
            };
            at += piece.len() as u64;
            Some(piece)
        })
    }

    /// SHA-256 of those bytes.
    pub(super) fn digest(&self, from: u64, len: u64) -> [u8; 32] {
        let mut hash = Sha256::new();
        self.pieces(from, len).for_each(|piece| hash.update(&piece));
        hash.finalize().into()
    }
}

/// Scatters the bits of a counter (the finaliser of SplitMix64).
fn mix(counter: u64) -> u64 {
    let mut word = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Pattern};

    fn bytes(pattern: &Pattern, from: u64, len: u64) -> Vec<u8> {
        pattern.pieces(from, len).flatten().collect()
    }

    #[test]
    fn any_part_is_the_same_as_that_part_of_the_whole() {
        let pattern = Pattern::new();
        let whole = bytes(&pattern, 0, 3 * BLOCK as u64 + 5);
        assert_eq!(whole.len(), 3 * BLOCK + 5);
        for (from, len) in [
            (0, 1),
            (3, 20),
            (BLOCK - 1, 2),
            (BLOCK + 7, 3),
            (2 * BLOCK + 4, BLOCK),
            (9, 0),
        ] {
            assert_eq!(
                bytes(&pattern, from as u64, len as u64),
                whole[from..from + len],
                "{len} bytes from {from}"
            );
        }
    }

    #[test]
    fn no_mebibyte_is_like_another() {
        let pattern = Pattern::new();
        assert_ne!(
            pattern.digest(0, BLOCK as u64),
            pattern.digest(BLOCK as u64, BLOCK as u64)
        );
    }
}
