//! The oracle of every test flow: an endless stream of bytes made from a seed and the position
//! alone.
//!
//! Any part can be made or checked at any offset, so both ends need no more than the seed. Knows no
//! socket and no clock.
//!
//! Byte `p` is byte `p % 8` (little endian) of word `p / 8`, and word `i` is a bijection of `i` for
//! a given seed: no word comes twice in a stream, so a block that was dropped, repeated or moved by
//! any multiple of eight bytes cannot look right in even one of its words; moved by another
//! distance, it looks right by chance alone.

/// Steps of the counter: 2^64 divided by the golden ratio, odd (as in SplitMix64), so that
/// neighbours differ in about half of their bits.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Multiplier of the one mixing round: odd, so that the round stays a bijection (from SplitMix64's
/// second round).
const MIX: u64 = 0xBF58_476D_1CE4_E5B9;

/// Words that are compared before the check looks at the verdict: enough to hide the branch, few
/// enough to find the byte quickly afterwards.
const BLOCK_WORDS: usize = 64;

const WORD: usize = size_of::<u64>();

/// One endless stream of bytes. Copy it freely: it is eight bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    start: u64,
}

/// The first byte that was not what the pattern says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("byte {position} is {got:#04x}, expected {expected:#04x}")]
pub struct Mismatch {
    /// Position in the whole stream, counted from zero.
    pub position: u64,
    /// What the pattern says.
    pub expected: u8,
    /// What was there.
    pub got: u8,
}

impl Pattern {
    /// The stream of a seed. Different seeds give unrelated streams.
    pub fn new(seed: u64) -> Pattern {
        Pattern {
            start: scramble(seed),
        }
    }

    /// Writes the bytes from `offset` on into `out`.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        let (mut index, skip) = split(offset);
        let head = out.len().min((WORD - skip) % WORD);
        let (first, rest) = out.split_at_mut(head);
        if head > 0 {
            first.copy_from_slice(&self.word(index).to_le_bytes()[skip..skip + head]);
            index = index.wrapping_add(1);
        }
        let mut words = rest.chunks_exact_mut(WORD);
        for chunk in &mut words {
            chunk.copy_from_slice(&self.word(index).to_le_bytes());
            index = index.wrapping_add(1);
        }
        let last = words.into_remainder();
        last.copy_from_slice(&self.word(index).to_le_bytes()[..last.len()]);
    }

    /// Compares `bytes` with the stream from `offset` on.
    ///
    /// # Errors
    /// The first byte that differs.
    pub fn check(&self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        let head = bytes.len().min((WORD - split(offset).1) % WORD);
        let (first, rest) = bytes.split_at(head);
        self.check_bytes(offset, first)?;
        let mut position = offset.wrapping_add(first.len() as u64);
        let mut blocks = rest.chunks_exact(BLOCK_WORDS * WORD);
        for block in &mut blocks {
            if self.differs(split(position).0, block) {
                self.check_bytes(position, block)?;
            }
            position = position.wrapping_add(block.len() as u64);
        }
        let last = blocks.remainder();
        let whole = last.len() / WORD * WORD;
        if self.differs(split(position).0, &last[..whole]) {
            self.check_bytes(position, &last[..whole])?;
        }
        self.check_bytes(position.wrapping_add(whole as u64), &last[whole..])
    }

    /// Whether any of these whole words, the first of which has this index, is wrong. No branch per
    /// word, so that it runs at memory speed.
    fn differs(&self, first: u64, words: &[u8]) -> bool {
        let mut index = first;
        let mut difference = 0;
        for chunk in words.chunks_exact(WORD) {
            let mut word = [0; WORD];
            word.copy_from_slice(chunk);
            difference |= u64::from_le_bytes(word) ^ self.word(index);
            index = index.wrapping_add(1);
        }
        difference != 0
    }

    /// Byte by byte: for ragged ends, and to find the byte in a block that is known to be wrong.
    fn check_bytes(&self, offset: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        for (position, &got) in (offset..).zip(bytes) {
            let (index, skip) = split(position);
            let expected = self.word(index).to_le_bytes()[skip];
            if got != expected {
                return Err(Mismatch {
                    position,
                    expected,
                    got,
                });
            }
        }
        Ok(())
    }

    /// Word `index`. Each step is a bijection, hence so is the whole.
    #[inline(always)]
    fn word(&self, index: u64) -> u64 {
        let mut word = self.start.wrapping_add(index.wrapping_mul(STEP));
        word ^= word >> 32;
        word = word.wrapping_mul(MIX);
        word ^ (word >> 29)
    }
}

/// A seed for part `n` of something that has a seed: flow `n` of a run, direction `n` of a flow.
pub fn derive(seed: u64, n: u64) -> u64 {
    scramble(seed ^ scramble(n))
}

/// Word index of a position, and the byte in that word.
#[inline(always)]
fn split(position: u64) -> (u64, usize) {
    (position / WORD as u64, (position % WORD as u64) as usize)
}

/// SplitMix64's finaliser: spreads small seeds over all 64 bits.
fn scramble(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_at_any_offset_is_the_same_stream() {
        let pattern = Pattern::new(7);
        let whole = made(pattern, 0, 2_000);
        for offset in 0..40 {
            for len in [0, 1, 7, 8, 9, 63, 511, 512, 513, 1_100] {
                let part = made(pattern, offset, len);
                assert_eq!(
                    part,
                    whole[offset as usize..offset as usize + len],
                    "{len} bytes at {offset}"
                );
                assert_eq!(
                    pattern.check(offset, &part),
                    Ok(()),
                    "{len} bytes at {offset}"
                );
            }
        }
    }

    #[test]
    fn a_changed_byte_is_found_wherever_it_is() {
        let pattern = Pattern::new(8);
        for offset in [0, 3, 8, 1 << 40] {
            let right = made(pattern, offset, 1_300);
            for at in 0..right.len() {
                let mut wrong = right.clone();
                wrong[at] ^= 0x10;
                let expected = Mismatch {
                    position: offset + at as u64,
                    expected: right[at],
                    got: wrong[at],
                };
                assert_eq!(pattern.check(offset, &wrong), Err(expected));
            }
        }
    }

    #[test]
    fn a_dropped_repeated_or_swapped_part_is_found() {
        let pattern = Pattern::new(9);
        let right = made(pattern, 0, 16_384);
        for len in [1, 2, 8, 100, 1_452, 4_096] {
            let mut dropped = right.clone();
            dropped.drain(5_000..5_000 + len);
            assert!(pattern.check(0, &dropped).is_err(), "{len} dropped");
            let mut repeated = right.clone();
            repeated.splice(5_000..5_000, right[5_000 - len..5_000].iter().copied());
            assert!(pattern.check(0, &repeated).is_err(), "{len} repeated");
        }
        let mut swapped = right.clone();
        swapped[..8_192].copy_from_slice(&right[8_192..]);
        swapped[8_192..].copy_from_slice(&right[..8_192]);
        assert_eq!(pattern.check(0, &swapped).map_err(|m| m.position), Err(0));
    }

    #[test]
    fn seeds_give_unrelated_streams() {
        let one = made(Pattern::new(1), 0, 4_096);
        let two = made(Pattern::new(2), 0, 4_096);
        let alike = one.iter().zip(&two).filter(|(a, b)| a == b).count();
        assert!(
            alike < 64,
            "{alike} of 4096 bytes alike, 16 expected by chance"
        );
        assert_ne!(derive(1, 2), derive(2, 1));
    }

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        assert_eq!(
            made(Pattern::new(0), 0, 8),
            [130, 181, 252, 106, 90, 36, 5, 220]
        );
    }

    fn made(pattern: Pattern, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        pattern.fill(offset, &mut out);
        out
    }
}
