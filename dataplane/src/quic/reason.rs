//! Why a session ended, as text that is safe to keep and to show: a peer that closes may send any
//! bytes as its reason.

use std::mem::Discriminant;

use quinn_proto::ConnectionError;
use underpass_proto::PeerText;

/// The text of an end. Nothing else may display a [`ConnectionError`].
#[must_use]
pub(crate) fn reason(why: &ConnectionError) -> PeerText {
    PeerText::of(why)
}

/// Codes of a peer that are told apart: those of QUIC itself (RFC 9000, section 20.1). It may
/// choose among 2^62.
const CODES_MAX: u64 = 0x20;

/// What tells one cause from another. A peer cannot make more than a few dozen of them, whatever
/// words and codes it chooses.
#[must_use]
pub(crate) fn kind(why: &ConnectionError) -> (Discriminant<ConnectionError>, u64) {
    let code = match why {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        ConnectionError::ConnectionClosed(close) => close.error_code.into(),
        ConnectionError::TransportError(error) => error.code.into(),
        _ => 0,
    };
    (std::mem::discriminant(why), code.min(CODES_MAX))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quinn_proto::{ApplicationClose, ConnectionClose, TransportErrorCode, VarInt};

    use super::*;

    #[test]
    fn the_reason_of_a_peer_is_one_line_of_bounded_length() {
        let nasty = Bytes::from("bye\n2026-01-01 INFO registered\x1b[2J".repeat(100));
        let application = ConnectionError::ApplicationClosed(ApplicationClose {
            error_code: VarInt::from_u32(4_000),
            reason: nasty.clone(),
        });
        let transport = ConnectionError::ConnectionClosed(ConnectionClose {
            error_code: TransportErrorCode::INTERNAL_ERROR,
            frame_type: None,
            reason: nasty,
        });
        for why in [application, transport] {
            let shown = reason(&why).into_string();
            assert!(
                shown.contains(r"bye\u{a}2026-01-01 INFO registered\u{1b}[2J"),
                "{shown}"
            );
            assert!(!shown.contains(char::is_control), "{shown}");
            assert!(shown.len() < 1_000, "{} bytes", shown.len());
        }
    }
}
