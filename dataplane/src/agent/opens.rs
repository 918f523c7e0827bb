//! Flows that ask for an endpoint and cannot be dialled yet: their Open has not come whole, or it came before the registration that it stands on was
//! proven, for streams have no order among each other. Dials nothing.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::StreamId;
use underpass_proto::limits::DIAL_DEADLINE;
use underpass_proto::wire::Open;
use underpass_proto::{FlowCode, Frame, FrameReader, HycoName};

use crate::quic::{Driver, Read, SessionId};

/// Opens that may wait for their registration on one worker. They are there for one round trip at most; beyond, they are refused.
const EARLY_MAX: usize = 1024;

/// A flow whose Open is whole.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) session: SessionId,
    pub(crate) stream: StreamId,
    pub(crate) open: Open,
    /// What came behind it.
    pub(crate) first: Bytes,
}

/// The flows of a worker that cannot be dialled yet.
#[derive(Default)]
pub(crate) struct Opens {
    partial: HashMap<(SessionId, StreamId), FrameReader>,
    /// In the order in which they came.
    early: Vec<(Instant, Asked)>,
}

impl Opens {
    /// The relay opened a stream.
    pub(crate) fn stream_opened(&mut self, session: SessionId, stream: StreamId) {
        self.partial.insert((session, stream), FrameReader::new());
    }

    /// Whether this stream's Open has not come whole.
    #[must_use]
    pub(crate) fn is_partial(&self, session: SessionId, stream: StreamId) -> bool {
        self.partial.contains_key(&(session, stream))
    }

    /// Reads on. Answers the Open once it is whole.
    pub(crate) fn read(
        &mut self,
        quic: &mut Driver,
        session: SessionId,
        stream: StreamId,
    ) -> Option<Asked> {
        let reader = self.partial.get_mut(&(session, stream))?;
        loop {
            let mut chunks = Vec::new();
            // One chunk at a time: what follows Open stays where it is until the endpoint is there.
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

    /// Whether no more may wait.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        self.early.len() >= EARLY_MAX
    }

    /// Keeps one until its registration is proven.
    pub(crate) fn wait(&mut self, now: Instant, asked: Asked) {
        self.early.push((now + DIAL_DEADLINE, asked));
    }

    /// Those that waited for this registration, in the order in which they came.
    pub(crate) fn ready(&mut self, session: SessionId, hyco: &HycoName) -> Vec<Asked> {
        self.take(|_, asked| asked.session == session && asked.open.hyco == *hyco)
    }

    /// Those that waited for too long.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<Asked> {
        self.take(|deadline, _| deadline <= now)
    }

    /// Forgets a flow that the relay took back. Whether it waited.
    pub(crate) fn forget(&mut self, session: SessionId, stream: StreamId) -> bool {
        let is_it = |_, asked: &Asked| asked.session == session && asked.stream == stream;
        !self.take(is_it).is_empty()
    }

    /// Whether this stream's flow waits for its registration.
    #[must_use]
    pub(crate) fn is_early(&self, session: SessionId, stream: StreamId) -> bool {
        self.early
            .iter()
            .any(|(_, asked)| asked.session == session && asked.stream == stream)
    }

    /// Forgets all of a session that is gone.
    pub(crate) fn session_gone(&mut self, session: SessionId) {
        self.partial.retain(|(of, _), _| *of != session);
        self.early.retain(|(_, asked)| asked.session != session);
    }

    fn take(&mut self, wanted: impl Fn(Instant, &Asked) -> bool) -> Vec<Asked> {
        if self.early.is_empty() {
            return Vec::new();
        }
        let (taken, left) = std::mem::take(&mut self.early)
            .into_iter()
            .partition(|(deadline, asked)| wanted(*deadline, asked));
        self.early = left;
        let taken: Vec<(Instant, Asked)> = taken;
        taken.into_iter().map(|(_, asked)| asked).collect()
    }
}
