//! What the end of a session means to a person.

use quinn_proto::ConnectionError;
use underpass_proto::{PeerText, SessionCode};

use crate::quic::reason;

/// What every refusal of a certificate begins with: no attempt helps before a person has looked.
pub(crate) const WRONG_CERTIFICATE: &str =
    "the relay's certificate is not the pinned or trusted one";

/// Why a session was lost.
#[must_use]
pub(crate) fn words(why: &ConnectionError) -> String {
    match why {
        ConnectionError::TimedOut => "no answer".into(),
        ConnectionError::Reset => {
            "the relay does not know the session any more (it was restarted)".into()
        }
        ConnectionError::ApplicationClosed(close) => {
            match SessionCode::from_u64(close.error_code.into_inner()) {
                Some(code) => format!("the relay closed the session: {code}"),
                None => "the relay closed the session".into(),
            }
        }
        ConnectionError::TransportError(error) if error.to_string().contains("certificate") => {
            let error = PeerText::of(error);
            format!(
                "{WRONG_CERTIFICATE}; if it was replaced, use a new connection string of that relay ({error})"
            )
        }
        other => reason(other).into_string(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quinn_proto::{ApplicationClose, TransportError, TransportErrorCode, VarInt};

    use super::*;

    #[test]
    fn each_end_of_a_session_is_told_in_words_of_its_own() {
        let closed = |code| {
            let close = ApplicationClose {
                error_code: VarInt::from_u32(code),
                reason: Bytes::new(),
            };
            words(&ConnectionError::ApplicationClosed(close))
        };
        let broken = |reason: &str| {
            let error = TransportError {
                code: TransportErrorCode::crypto(42),
                frame: None,
                reason: reason.into(),
            };
            words(&ConnectionError::TransportError(error))
        };
        let all = [
            words(&ConnectionError::TimedOut),
            words(&ConnectionError::Reset),
            closed(8),
            // Of a relay that is newer than this.
            closed(4_000),
            broken("invalid peer certificate: UnknownIssuer"),
            broken("no protocol in common"),
            words(&ConnectionError::CidsExhausted),
        ];
        let begins = [
            "no answer",
            "the relay does not know the session any more (it was restarted)",
            "the relay closed the session: ",
            "the relay closed the session",
            WRONG_CERTIFICATE,
            "the cryptographic handshake failed",
            "CIDs exhausted",
        ];
        for (told, begins) in all.iter().zip(begins) {
            assert!(told.starts_with(begins), "{told}");
        }
        assert_eq!(all[3], "the relay closed the session");
    }
}
