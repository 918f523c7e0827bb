//! What the two ends say around each call of a flow of calls (`wire`, modes 2 and 3). Knows no
//! socket.
//!
//! The client sends a call of 24 bytes and its request; the endpoint reads both, then sends an
//! answer of 8 bytes and its response. One call at a time; FIN from the client between two calls
//! ends the flow, with the trailer of `wire`.
//!
//! | call | what | answer | what |
//! |---|---|---|---|
//! | 0..4 | `CALL` | 0..4 | check, of seed, number and verdict |
//! | 4..8 | check, of seed, number and lengths | 4 | verdict on the request: 0 right, 1 corrupt |
//! | 8..16 | length of the request that follows | 5..8 | zero |
//! | 16..24 | length of the response wanted | | |
//!
//! Requests are the flow's pattern upwards, one behind the other; responses the one downwards. As
//! the number of the call is in both checks, a call that was lost, repeated or moved shows even
//! where request and response are empty.

use crate::pattern::derive;

/// Length of a call, bytes.
pub(crate) const CALL: usize = 24;

/// Length of an answer, bytes.
pub(crate) const ANSWER: usize = 8;

const MAGIC: [u8; 4] = *b"CALL";

/// One request, and the response wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) request: u64,
    pub(crate) response: u64,
}

impl Call {
    /// As call number `n` of the flow with this seed.
    pub(crate) fn encode(&self, seed: u64, n: u64) -> [u8; CALL] {
        let mut out = [0; CALL];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&check([seed, n, self.request, self.response]));
        out[8..16].copy_from_slice(&self.request.to_le_bytes());
        out[16..].copy_from_slice(&self.response.to_le_bytes());
        out
    }

    /// `None` if this is not call number `n` of that flow.
    pub(crate) fn decode(bytes: &[u8; CALL], seed: u64, n: u64) -> Option<Call> {
        let number = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let call = Call {
            request: number(8),
            response: number(16),
        };
        (*bytes == call.encode(seed, n)).then_some(call)
    }
}

/// The answer to call number `n`: whether the request was right.
pub(crate) fn answer(seed: u64, n: u64, right: bool) -> [u8; ANSWER] {
    let mut out = [0; ANSWER];
    out[..4].copy_from_slice(&check([seed, n, u64::from(!right), 0]));
    out[4] = u8::from(!right);
    out
}

/// Whether the request was right; `None` if this is no answer to call number `n`.
pub(crate) fn read_answer(bytes: &[u8; ANSWER], seed: u64, n: u64) -> Option<bool> {
    let right = bytes[4] == 0;
    (*bytes == answer(seed, n, right)).then_some(right)
}

fn check(numbers: [u64; 4]) -> [u8; 4] {
    let start = u64::from(u32::from_le_bytes(MAGIC));
    let hash = numbers.into_iter().fold(start, derive).to_le_bytes();
    [hash[0], hash[1], hash[2], hash[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLED: Call = Call {
        request: 5,
        response: 1 << 40,
    };

    #[test]
    fn calls_and_answers_come_back_as_they_went() {
        assert_eq!(Call::decode(&CALLED.encode(7, 3), 7, 3), Some(CALLED));
        for right in [true, false] {
            assert_eq!(read_answer(&answer(7, 3, right), 7, 3), Some(right));
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        for at in 0..CALL {
            let mut bytes = CALLED.encode(7, 3);
            bytes[at] ^= 1;
            assert_eq!(Call::decode(&bytes, 7, 3), None, "byte {at}");
        }
        for at in 0..ANSWER {
            let mut bytes = answer(7, 3, true);
            bytes[at] ^= 1;
            assert_eq!(read_answer(&bytes, 7, 3), None, "byte {at}");
        }
    }

    #[test]
    fn a_call_of_another_flow_or_number_is_none() {
        let bytes = CALLED.encode(7, 3);
        assert_eq!(Call::decode(&bytes, 7, 4), None);
        assert_eq!(Call::decode(&bytes, 8, 3), None);
        assert_eq!(read_answer(&answer(7, 3, true), 7, 4), None);
    }
}
