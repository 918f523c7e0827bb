//! What peers say to each other: a header that names who speaks, and bytes that depend on who and
//! where. So a receiver knows of each byte whether it is the right one, and a chunk that is lost,
//! said twice or out of its place is noticed at its first byte.

use std::sync::OnceLock;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Bytes of the header: the speaker's number, and the same with every bit turned.
pub(super) const HEADER: u64 = 16;

/// Bytes before the pattern repeats: more than any peer says, and no multiple of any buffer.
const PERIOD: usize = 8 * 1024 * 1024 + 13;

/// The most that one peer says, bytes.
pub(super) const SAYS_MAX: u64 = 8 * 1024 * 1024;

const _: () = assert!(SAYS_MAX < PERIOD as u64);

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut bytes = vec![0; PERIOD];
        StdRng::seed_from_u64(0x7061_7474).fill_bytes(&mut bytes);
        bytes
    })
}

fn header(speaker: u64) -> [u8; HEADER as usize] {
    let mut header = [0; HEADER as usize];
    header[..8].copy_from_slice(&speaker.to_be_bytes());
    header[8..].copy_from_slice(&(!speaker).to_be_bytes());
    header
}

/// What `speaker` says from position `at` on, `len` bytes of it.
pub(super) fn said(speaker: u64, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    if at < HEADER {
        let rest = &header(speaker)[at as usize..];
        bytes.extend_from_slice(&rest[..rest.len().min(len)]);
    }
    let table = table();
    while bytes.len() < len {
        let position = at + bytes.len() as u64;
        let place =
            (speaker.wrapping_mul(1_000_003).wrapping_add(position) % PERIOD as u64) as usize;
        let take = (len - bytes.len()).min(PERIOD - place);
        bytes.extend_from_slice(&table[place..place + take]);
    }
    bytes
}

/// Reads what one speaker says.
#[derive(Default)]
pub(super) struct Listener {
    head: Vec<u8>,
    speaker: Option<u64>,
    heard: u64,
}

impl Listener {
    /// Who speaks, once that is known.
    pub(super) fn speaker(&self) -> Option<u64> {
        self.speaker
    }

    /// Bytes heard so far.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// They are not what that speaker says there.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Result<(), String> {
        let wanted = HEADER as usize - self.head.len();
        let (head, rest) = bytes.split_at(wanted.min(bytes.len()));
        self.head.extend_from_slice(head);
        if self.speaker.is_none() && self.head.len() == HEADER as usize {
            let number = u64::from_be_bytes(self.head[..8].try_into().expect("8 bytes"));
            if self.head[..] != header(number) {
                return Err(format!("the first bytes are no header: {:02x?}", self.head));
            }
            self.speaker = Some(number);
        }
        self.heard += head.len() as u64;
        let Some(speaker) = self.speaker else {
            return Ok(());
        };
        let right = said(speaker, self.heard, rest.len());
        if let Some(at) = (0..rest.len()).find(|at| rest[*at] != right[*at]) {
            let at = self.heard + at as u64;
            return Err(format!("byte {at} of speaker {speaker} is another one"));
        }
        self.heard += rest.len() as u64;
        Ok(())
    }
}
