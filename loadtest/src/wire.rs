//! What the two ends of a test flow say to each other around the pattern. Knows no socket.
//!
//! The client opens the flow and sends a header of 40 bytes, then its bytes, then FIN:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `UPLTv001` |
//! | 8 | mode: 0 echo, 1 exchange, 2 calls, 3 calls whose bytes nobody checks |
//! | 9..12 | zero |
//! | 12..16 | check: see `check` |
//! | 16..24 | seed |
//! | 24..32 | number of bytes that the client will send after the header; all ones: until FIN |
//! | 32..40 | bytes that the endpoint shall send; in echo mode 0; all ones: until it has seen FIN |
//!
//! Upwards go the bytes of `Pattern::new(seed)`. In echo mode the endpoint returns what it gets, as
//! it gets it. In exchange mode it sends `Pattern::new(derive(seed, 1))`. Calls have a shape of
//! their own inside ([`calls`](crate::calls)). When both directions are through, it sends a trailer
//! of 40 bytes, then FIN:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `UPLT_END` |
//! | 8 | verdict: 0 right, 1 truncated, 2 corrupt, 3 not served here |
//! | 9..12 | zero |
//! | 12..16 | check |
//! | 16..24 | number of bytes received after the header |
//! | 24..32 | number of bytes sent before the trailer |
//! | 32..40 | position of the first wrong byte, where corrupt |
//!
//! Integers are unsigned and little-endian. So both ends verify both directions, and neither trusts
//! a clean end alone.

use crate::pattern::{Pattern, derive};

/// Length of a header, bytes.
pub(crate) const HEADER: usize = 40;

/// Length of a trailer, bytes.
pub(crate) const TRAILER: usize = 40;

const HEADER_MAGIC: [u8; 8] = *b"UPLTv001";
const TRAILER_MAGIC: [u8; 8] = *b"UPLT_END";

/// On the wire: no length given.
const OPEN: u64 = u64::MAX;

/// How the endpoint treats a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    Echo,
    Exchange,
    /// Requests and responses, one at a time; both lengths in the header are open.
    Calls {
        /// Whether both ends check every byte.
        verified: bool,
    },
}

/// The start of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) style: Style,
    pub(crate) seed: u64,
    /// Bytes from the client; `None`: until FIN.
    pub(crate) up: Option<u64>,
    /// Bytes from the endpoint; `None`: until it has seen FIN.
    pub(crate) down: Option<u64>,
}

/// What the endpoint found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Right,
    Truncated,
    Corrupt { position: u64 },
    NotServed,
}

/// The end of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Trailer {
    pub(crate) verdict: Verdict,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let style = match self.style {
            Style::Echo => 0,
            Style::Exchange => 1,
            Style::Calls { verified: true } => 2,
            Style::Calls { verified: false } => 3,
        };
        record(
            HEADER_MAGIC,
            style,
            [
                self.seed,
                self.up.unwrap_or(OPEN),
                self.down.unwrap_or(OPEN),
            ],
        )
    }

    /// `None` if this is no header.
    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Option<Header> {
        let (style, [seed, up, down]) = parts(HEADER_MAGIC, bytes)?;
        let style = match style {
            0 if down == 0 => Style::Echo,
            1 => Style::Exchange,
            2 | 3 if up == OPEN && down == OPEN => Style::Calls {
                verified: style == 2,
            },
            _ => return None,
        };
        Some(Header {
            style,
            seed,
            up: length(up),
            down: length(down),
        })
    }

    /// What the client sends.
    pub(crate) fn up_pattern(&self) -> Pattern {
        Pattern::new(self.seed)
    }

    /// What the endpoint sends.
    pub(crate) fn down_pattern(&self) -> Pattern {
        match self.style {
            Style::Echo => self.up_pattern(),
            Style::Exchange | Style::Calls { .. } => Pattern::new(derive(self.seed, 1)),
        }
    }
}

impl Trailer {
    pub(crate) fn encode(&self) -> [u8; TRAILER] {
        let (verdict, position) = match self.verdict {
            Verdict::Right => (0, 0),
            Verdict::Truncated => (1, 0),
            Verdict::Corrupt { position } => (2, position),
            Verdict::NotServed => (3, 0),
        };
        record(TRAILER_MAGIC, verdict, [self.received, self.sent, position])
    }

    /// `None` if this is no trailer.
    pub(crate) fn decode(bytes: &[u8; TRAILER]) -> Option<Trailer> {
        let (verdict, [received, sent, position]) = parts(TRAILER_MAGIC, bytes)?;
        let verdict = match verdict {
            0 => Verdict::Right,
            1 => Verdict::Truncated,
            2 => Verdict::Corrupt { position },
            3 => Verdict::NotServed,
            _ => return None,
        };
        Some(Trailer {
            verdict,
            received,
            sent,
        })
    }

    /// Whether these bytes may be the beginning of a trailer. None at all may.
    pub(crate) fn starts_with(bytes: &[u8]) -> bool {
        let len = bytes.len().min(TRAILER_MAGIC.len());
        bytes[..len] == TRAILER_MAGIC[..len]
    }
}

fn length(raw: u64) -> Option<u64> {
    (raw != OPEN).then_some(raw)
}

/// Lower half of a hash of the whole record: a changed length must not pass for a truncated flow.
pub(crate) fn check(magic: [u8; 8], kind: u8, numbers: [u64; 3]) -> [u8; 4] {
    let start = derive(u64::from_le_bytes(magic), u64::from(kind));
    let hash = numbers.into_iter().fold(start, derive).to_le_bytes();
    [hash[0], hash[1], hash[2], hash[3]]
}

fn record(magic: [u8; 8], kind: u8, numbers: [u64; 3]) -> [u8; 40] {
    let mut out = [0; 40];
    out[..8].copy_from_slice(&magic);
    out[8] = kind;
    out[12..16].copy_from_slice(&check(magic, kind, numbers));
    for (slot, number) in out[16..].chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    out
}

fn parts(magic: [u8; 8], bytes: &[u8; 40]) -> Option<(u8, [u64; 3])> {
    if bytes[..8] != magic || bytes[9..12] != [0; 3] {
        return None;
    }
    let mut numbers = [0; 3];
    for (number, slot) in numbers.iter_mut().zip(bytes[16..].chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(slot);
        *number = u64::from_le_bytes(word);
    }
    (bytes[12..16] == check(magic, bytes[8], numbers)).then_some((bytes[8], numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_went() {
        for style in [Style::Echo, Style::Exchange] {
            for up in [None, Some(0), Some(1 << 40)] {
                let header = Header {
                    style,
                    seed: 99,
                    up,
                    down: Some(0),
                };
                assert_eq!(Header::decode(&header.encode()), Some(header));
            }
        }
        let open = Header {
            style: Style::Exchange,
            seed: 0,
            up: Some(0),
            down: None,
        };
        assert_eq!(Header::decode(&open.encode()), Some(open));
    }

    #[test]
    fn trailers_come_back_as_they_went() {
        for verdict in [
            Verdict::Right,
            Verdict::Truncated,
            Verdict::Corrupt { position: 7 },
            Verdict::NotServed,
        ] {
            let trailer = Trailer {
                verdict,
                received: 5,
                sent: 6,
            };
            assert_eq!(Trailer::decode(&trailer.encode()), Some(trailer));
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let header = Header {
            style: Style::Exchange,
            seed: 1,
            up: Some(2),
            down: Some(3),
        };
        let trailer = Trailer {
            verdict: Verdict::Right,
            received: 1,
            sent: 2,
        };
        for at in 0..HEADER {
            let (mut first, mut last) = (header.encode(), trailer.encode());
            first[at] ^= 0x40;
            last[at] ^= 0x40;
            assert_eq!(Header::decode(&first), None, "byte {at}");
            assert_eq!(Trailer::decode(&last), None, "byte {at}");
        }
    }
}
