//! Flows that senders ask for: their Opens are read, judged, and their streams joined to a listener's. The joining itself is in `join`.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::StreamId;
use underpass_proto::limits::HELLO_DEADLINE;
use underpass_proto::wire::Open;
use underpass_proto::{FlowCode, Frame, FrameReader};

use crate::quic::{Driver, Read, SessionId};

/// Flows of one worker whose Open has not come whole. An Open fits one datagram, so few are ever here.
const PARTIAL_MAX: usize = 4096;

/// Flows that a sender may open at first. Doubled whenever half of them are in use, because each place costs memory, used or not.
pub(crate) const FLOWS_FIRST: u32 = 256;

/// How many flows a sender may have from now on, that has `live` of the `allowed` ones; `None`: as before.
#[must_use]
pub(crate) fn more_flows(allowed: u32, live: usize, most: u32) -> Option<u32> {
    let roomier = allowed.saturating_mul(2).min(most);
    (live >= allowed as usize / 2 && roomier > allowed).then_some(roomier)
}

/// A sender's flow whose Open is whole.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) session: SessionId,
    pub(crate) stream: StreamId,
    pub(crate) open: Open,
    /// What the application said behind it.
    pub(crate) first: Bytes,
}

/// Streams of senders whose Open has not come whole.
#[derive(Default)]
pub(crate) struct Senders {
    partial: HashMap<(SessionId, StreamId), (Instant, FrameReader)>,
}

impl Senders {
    /// A sender opened a stream.
    pub(crate) fn stream_opened(
        &mut self,
        quic: &mut Driver,
        now: Instant,
        session: SessionId,
        stream: StreamId,
    ) {
        if self.partial.len() >= PARTIAL_MAX {
            return quic.abort(session, stream, FlowCode::Overloaded);
        }
        let fresh = (now + HELLO_DEADLINE, FrameReader::new());
        self.partial.insert((session, stream), fresh);
    }

    /// Reads on. Answers the Open once it is whole.
    pub(crate) fn read(
        &mut self,
        quic: &mut Driver,
        session: SessionId,
        stream: StreamId,
    ) -> Option<Asked> {
        let (_, reader) = self.partial.get_mut(&(session, stream))?;
        loop {
            let mut chunks = Vec::new();
            // One chunk at a time: what follows Open stays where it is until a listener has it.
            let read = quic.read(session, stream, 1, usize::MAX, &mut chunks);
            for chunk in chunks {
                reader.push(chunk);
            }
            match (reader.next(), read) {
                (Ok(Some(Frame::Open(open))), Ok(_)) => {
                    let first = reader.rest();
                    self.partial.remove(&(session, stream));
                    return Some(Asked {
                        session,
                        stream,
                        open,
                        first,
                    });
                }
                (Ok(None), Ok(Read::More)) => {}
                (Ok(None), Ok(Read::Empty)) => return None,
                (Ok(Some(_)) | Err(_), _) | (_, Ok(Read::End) | Err(_)) => {
                    self.partial.remove(&(session, stream));
                    quic.abort(session, stream, FlowCode::Protocol);
                    return None;
                }
            }
        }
    }

    /// Resets those that never said what they want.
    pub(crate) fn expire(&mut self, quic: &mut Driver, now: Instant) {
        let late = |(&stream, (until, _)): (&(SessionId, StreamId), &(Instant, FrameReader))| {
            (*until <= now).then_some(stream)
        };
        for (session, stream) in self.partial.iter().filter_map(late).collect::<Vec<_>>() {
            self.partial.remove(&(session, stream));
            quic.abort(session, stream, FlowCode::Protocol);
        }
    }

    /// Forgets all of a session that is gone.
    pub(crate) fn session_gone(&mut self, session: SessionId) {
        self.partial.retain(|(of, _), _| *of != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_gets_more_flows_when_it_uses_half_up_to_the_limit() {
        assert_eq!(more_flows(256, 127, 16_384), None);
        assert_eq!(more_flows(256, 128, 16_384), Some(512));
        assert_eq!(more_flows(8_192, 5_000, 10_000), Some(10_000));
        assert_eq!(more_flows(10_000, 9_999, 10_000), None);
    }
}
