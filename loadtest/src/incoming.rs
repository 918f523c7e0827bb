//! The receiving side of a direction that ends with a trailer: checks each byte as it comes and
//! tells the ways to end apart. Knows no socket.

use std::fmt;

use crate::pattern::Pattern;
use crate::wire::{TRAILER, Trailer};

/// Why received bytes are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Wrong {
    /// Bytes differ, or there are too many.
    Corrupt(String),
    /// A clean end after missing bytes.
    Truncated(String),
}

/// The bytes of a direction so far. The last [`TRAILER`] of them are held back, for they may be the
/// trailer.
pub(crate) struct Incoming {
    pattern: Pattern,
    checked: u64,
    held: usize,
}

impl Incoming {
    /// `checked` bytes were received and found right before.
    pub(crate) fn new(pattern: Pattern, checked: u64) -> Incoming {
        Incoming {
            pattern,
            checked,
            held: 0,
        }
    }

    /// Where in the buffer the next read goes; before it are the bytes held back.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Takes `len` bytes that were read into `buffer[held..]`.
    pub(crate) fn take(&mut self, buffer: &mut [u8], len: usize) -> Result<(), Wrong> {
        let total = self.held + len;
        let payload = total.saturating_sub(TRAILER);
        self.pattern
            .check(self.checked, &buffer[..payload])
            .map_err(corrupt)?;
        buffer.copy_within(payload..total, 0);
        self.checked += payload as u64;
        self.held = total - payload;
        Ok(())
    }

    /// The clean end of the stream: gives the number of bytes before the trailer, and the trailer.
    pub(crate) fn end(self, buffer: &[u8]) -> Result<(u64, Trailer), Wrong> {
        let held = &buffer[..self.held];
        if let Some(trailer) = held.as_array().and_then(Trailer::decode) {
            return Ok((self.checked, trailer));
        }
        match cut(self.pattern, self.checked, held) {
            Some(position) => Err(Wrong::Truncated(format!(
                "clean end at byte {position}, without the endpoint's verdict"
            ))),
            None => {
                let position = self.checked;
                Err(Wrong::Corrupt(format!(
                    "neither pattern nor verdict in the last bytes, from {position} on"
                )))
            }
        }
    }
}

/// Whether these bytes from position `checked` on may be the pattern's last ones and the beginning
/// of a trailer.
pub(crate) fn may_end_here(pattern: Pattern, checked: u64, bytes: &[u8]) -> bool {
    cut(pattern, checked, bytes).is_some()
}

/// Where the pattern's bytes end and a trailer begins, whole or not: what came is right as far as
/// it goes.
fn cut(pattern: Pattern, checked: u64, bytes: &[u8]) -> Option<u64> {
    let first = bytes.len().saturating_sub(TRAILER);
    pattern.check(checked, &bytes[..first]).ok()?;
    (first..=bytes.len())
        .find(|&cut| {
            Trailer::starts_with(&bytes[cut..]) && pattern.check(checked, &bytes[..cut]).is_ok()
        })
        .map(|cut| checked + cut as u64)
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Corrupt(what) | Wrong::Truncated(what) => f.write_str(what),
        }
    }
}

/// A direction whose bytes differ.
pub(crate) fn corrupt(mismatch: crate::Mismatch) -> Wrong {
    Wrong::Corrupt(mismatch.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Verdict;

    const LEN: usize = 300;

    #[test]
    fn a_whole_stream_is_right_in_chunks_of_any_size() {
        for chunk in 1..LEN + TRAILER {
            let (len, trailer) = receive(&whole(), chunk).expect("right");
            assert_eq!(
                (len, trailer.sent),
                (LEN as u64, LEN as u64),
                "chunks of {chunk}"
            );
        }
    }

    #[test]
    fn a_stream_cut_anywhere_is_truncated() {
        for cut in 0..LEN + TRAILER {
            let result = receive(&whole()[..cut], 50);
            assert!(
                matches!(result, Err(Wrong::Truncated(_))),
                "cut at {cut}: {result:?}"
            );
        }
    }

    #[test]
    fn a_byte_changed_anywhere_in_the_pattern_is_corrupt() {
        for at in 0..LEN {
            let mut bytes = whole();
            bytes[at] ^= 1;
            let result = receive(&bytes, 64);
            assert!(
                matches!(result, Err(Wrong::Corrupt(_))),
                "changed at {at}: {result:?}"
            );
        }
    }

    #[test]
    fn a_changed_verdict_is_corrupt() {
        let mut bytes = whole();
        bytes[LEN] ^= 1;
        assert!(matches!(receive(&bytes, 64), Err(Wrong::Corrupt(_))));
    }

    fn whole() -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        Pattern::new(3).fill(0, &mut bytes);
        bytes.extend(
            Trailer {
                verdict: Verdict::Right,
                received: 0,
                sent: LEN as u64,
            }
            .encode(),
        );
        bytes
    }

    fn receive(bytes: &[u8], chunk: usize) -> Result<(u64, Trailer), Wrong> {
        let mut incoming = Incoming::new(Pattern::new(3), 0);
        let mut buffer = vec![0; TRAILER + chunk];
        for part in bytes.chunks(chunk) {
            let held = incoming.held();
            buffer[held..held + part.len()].copy_from_slice(part);
            incoming.take(&mut buffer, part.len())?;
        }
        incoming.end(&buffer)
    }
}
