//! A live relay and what a stranger says to it: datagrams at its door, and a session from Hello on.
//! No panic, not even one that a guard caught; nothing of a session is left once it is over; and an
//! address that nobody proved is told at most three times what it said.

use std::cell::RefCell;
use std::time::Duration;

use underpass_dataplane::parts::Strangers;
use underpass_proto::{Key, Rule};

/// What a server may send to an address that it does not know (RFC 9000, section 8).
const AMPLIFICATION_MAX: usize = 3;

/// Steps of one input.
const STEPS_MAX: usize = 64;

thread_local! {
    static RELAY: RefCell<Option<(Strangers, Vec<Vec<u8>>)>> = const { RefCell::new(None) };
}

fn with_relay(act: impl FnOnce(&mut Strangers, &[Vec<u8>])) {
    RELAY.with_borrow_mut(|relay| {
        let (relay, words) = relay.get_or_insert_with(|| {
            let mut relay = open();
            let words = relay.first_words();
            (relay, words)
        });
        act(relay, words);
        let panics = relay.panics();
        assert_eq!(panics, 0, "a guard caught a panic");
    });
}

fn open() -> Strangers {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (certificate, key) = (made.cert.der(), made.signing_key.serialize_der());
    Strangers::new(certificate, &key, Key::from_random([7; 32])).expect("a relay")
}

/// Datagrams at the door. Each is two bytes of length and its bytes; length 0xffff takes the next
/// byte as a number of those with which a handshake begins, and the three after it as a place in it
/// and what stands there instead.
pub fn datagrams(data: &[u8]) {
    with_relay(|relay, words| {
        let mut input = Input(data);
        for _ in 0..STEPS_MAX {
            let Some(length) = input.number() else { break };
            if length == u16::MAX {
                let Some(word) = input.byte() else { break };
                let mut word = words[usize::from(word) % words.len()].clone();
                while let (Some(place), Some(byte)) = (input.number(), input.byte()) {
                    if place == u16::MAX {
                        break;
                    }
                    let len = word.len();
                    word[usize::from(place) % len] = byte;
                }
                relay.datagram(&word);
            } else {
                relay.datagram(input.bytes(usize::from(length)));
            }
        }
        let (heard, said) = relay.amplification();
        assert!(
            said <= heard * AMPLIFICATION_MAX,
            "{said} bytes for {heard}"
        );
        relay.leave();
        assert_eq!(relay.sessions(), 0, "a session is left");
    });
}

/// A session, step by step: a byte says what, the rest how.
pub fn sessions(data: &[u8]) {
    with_relay(|relay, _| {
        relay.meet();
        let mut input = Input(data);
        for _ in 0..STEPS_MAX {
            let Some(step) = input.byte() else { break };
            let nth = usize::from(step >> 3);
            match step & 7 {
                0..=2 => {
                    let length = input.number().unwrap_or_default();
                    relay.say(nth, input.bytes(usize::from(length)));
                }
                3 => relay.open(),
                4 => relay.end(nth, true),
                5 => relay.end(nth, false),
                6 => relay.register(if nth % 2 == 0 {
                    Rule::Listen
                } else {
                    Rule::Send
                }),
                _ => relay.pass(Duration::from_millis(100) * u32::from(step >> 3)),
            }
        }
        relay.leave();
        assert_eq!(relay.sessions(), 0, "a session is left");
    });
}

/// What is left of an input.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn number(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}
