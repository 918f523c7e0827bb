//! The frame at the head of a flow's stream: Open from the side that opened it, the answer from the
//! other. Read chunk by chunk, so that the flow's own bytes behind it are left in the stream.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn_proto::StreamId;
use rustc_hash::FxHashMap;
use underpass_proto::wire::Open;
use underpass_proto::{FlowCode, Frame, FrameReader};

use crate::quic::{Driver, Read, SessionId};

/// What a stream has said so far.
#[derive(Debug)]
pub(crate) enum Head {
    /// The frame, and what came behind it in the same chunk.
    Frame(Frame, Bytes),
    /// Not whole yet.
    Partial,
    /// It was reset before it was whole.
    Reset(FlowCode),
    /// What came is no frame, or ended before it was one.
    Broken,
}

/// Reads on; `reader` keeps what has come of the frame.
pub(crate) fn read_head(
    quic: &mut Driver,
    session: SessionId,
    stream: StreamId,
    reader: &mut FrameReader,
) -> Head {
    loop {
        let mut chunks = Vec::new();
        // One at a time: what is not read stays under the stream's credit.
        let read = quic.read(session, stream, 1, usize::MAX, &mut chunks);
        for chunk in chunks {
            reader.push(chunk);
        }
        return match (reader.next(), read) {
            (Ok(Some(frame)), Ok(_)) => Head::Frame(frame, reader.rest()),
            (Ok(_), Err(code)) => Head::Reset(code),
            (Ok(None), Ok(Read::More)) => continue,
            (Ok(None), Ok(Read::Empty)) => Head::Partial,
            (Err(_), _) | (Ok(None), Ok(Read::End)) => Head::Broken,
        };
    }
}

/// A flow that was asked for: its Open is whole.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Who asks.
    pub(crate) session: SessionId,
    /// On which stream.
    pub(crate) stream: StreamId,
    /// For what.
    pub(crate) open: Open,
    /// What the application said behind it, as far as it came.
    pub(crate) first: Bytes,
}

/// Streams that peers opened, and whose Open has not come whole.
pub(crate) struct Openings {
    most: usize,
    within: Duration,
    partial: FxHashMap<(SessionId, StreamId), (Instant, FrameReader)>,
}

impl Openings {
    /// At most so many, each for so long. An Open fits one datagram, so only what was lost or
    /// reordered is ever here.
    #[must_use]
    pub(crate) fn new(most: usize, within: Duration) -> Self {
        Self {
            most,
            within,
            partial: FxHashMap::default(),
        }
    }

    /// A peer opened a stream.
    pub(crate) fn stream_opened(
        &mut self,
        quic: &mut Driver,
        now: Instant,
        session: SessionId,
        stream: StreamId,
    ) {
        if self.partial.len() >= self.most {
            return quic.abort(session, stream, FlowCode::Overloaded);
        }
        let fresh = (now + self.within, FrameReader::new());
        self.partial.insert((session, stream), fresh);
    }

    /// Whether this stream's Open has not come whole.
    #[must_use]
    pub(crate) fn is_partial(&self, session: SessionId, stream: StreamId) -> bool {
        self.partial.contains_key(&(session, stream))
    }

    /// Reads on. Answers the Open once it is whole; a stream that says anything else is reset.
    pub(crate) fn read(
        &mut self,
        quic: &mut Driver,
        session: SessionId,
        stream: StreamId,
    ) -> Option<Asked> {
        let (_, reader) = self.partial.get_mut(&(session, stream))?;
        let head = read_head(quic, session, stream, reader);
        if matches!(head, Head::Partial) {
            return None;
        }
        self.partial.remove(&(session, stream));
        if let Head::Frame(Frame::Open(open), first) = head {
            return Some(Asked {
                session,
                stream,
                open,
                first,
            });
        }
        quic.abort(session, stream, FlowCode::Protocol);
        None
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.partial.len()
    }

    /// Resets those that never said what they want.
    pub(crate) fn expire(&mut self, quic: &mut Driver, now: Instant) {
        let late = |_: &_, (until, _): &mut (Instant, FrameReader)| *until <= now;
        for ((session, stream), _) in self.partial.extract_if(late) {
            quic.abort(session, stream, FlowCode::Protocol);
        }
    }

    /// Forgets all of a session that is gone.
    pub(crate) fn session_gone(&mut self, session: SessionId) {
        self.partial.retain(|(of, _), _| *of != session);
    }
}
