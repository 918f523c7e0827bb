//! What happened to a session or a stream, in this project's words.

use std::collections::VecDeque;

use quinn_proto::{ConnectionError, StreamEvent, StreamId};
use underpass_proto::FlowCode;

use super::streams::flow_code;
use super::{Session, SessionId};

/// What happened to a session or to one of its streams.
#[derive(Debug)]
pub enum Event {
    /// The TLS handshake is done; nobody is authorised yet.
    Connected,
    /// The session is over; its streams are gone.
    Lost(ConnectionError),
    /// The peer opened this stream.
    Opened(StreamId),
    /// A stream may have data, its end or a reset.
    Readable(StreamId),
    /// A stream that was blocked may be written.
    Writable(StreamId),
    /// All of a finished stream was acknowledged.
    Finished(StreamId),
    /// The peer wants no more of this stream.
    Stopped(StreamId, FlowCode),
    /// The peer allows more streams.
    Available,
    /// The peer, which owed an answer, sent something.
    Answered,
}

impl Event {
    /// The stream that it is about.
    #[must_use]
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Opened(stream)
            | Self::Readable(stream)
            | Self::Writable(stream)
            | Self::Finished(stream)
            | Self::Stopped(stream, _) => Some(*stream),
            Self::Connected | Self::Lost(_) | Self::Available | Self::Answered => None,
        }
    }
}

pub(super) fn translate(
    session: &mut Session,
    id: SessionId,
    event: quinn_proto::Event,
    events: &mut VecDeque<(SessionId, Event)>,
) {
    use quinn_proto::Event as Core;
    match event {
        Core::Connected => events.push_back((id, Event::Connected)),
        Core::ConnectionLost { reason } => {
            if !std::mem::replace(&mut session.lost, true) {
                events.push_back((id, Event::Lost(reason)));
            }
        }
        Core::Stream(StreamEvent::Opened { dir }) => {
            while let Some(stream) = session.connection.streams().accept(dir) {
                events.push_back((id, Event::Opened(stream)));
            }
        }
        Core::Stream(StreamEvent::Readable { id: stream }) => {
            events.push_back((id, Event::Readable(stream)));
        }
        Core::Stream(StreamEvent::Writable { id: stream }) => {
            if !session.scheduler.take_notice(stream) {
                events.push_back((id, Event::Writable(stream)));
            }
        }
        Core::Stream(StreamEvent::Finished { id: stream }) => {
            events.push_back((id, Event::Finished(stream)));
        }
        Core::Stream(StreamEvent::Stopped {
            id: stream,
            error_code,
        }) => {
            events.push_back((id, Event::Stopped(stream, flow_code(error_code))));
        }
        Core::Stream(StreamEvent::Available { .. }) => events.push_back((id, Event::Available)),
        Core::HandshakeDataReady | Core::DatagramReceived | Core::DatagramsUnblocked => {}
    }
}
