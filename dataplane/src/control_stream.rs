//! A session's control stream: frames in, frames out, each bounded. Both relay and agent speak over
//! it; what they say is theirs.

use std::collections::VecDeque;

use bytes::Bytes;
use quinn_proto::StreamId;
use underpass_proto::{Frame, FrameError, FrameReader};

use crate::quic::{Amount, Driver, Read, SessionId};

/// Frames that may wait for credit: a peer that reads none of so many is not worth more memory.
const OUTBOX_MAX: usize = 10_000;

/// Bytes taken in one turn, frames of unknown type among them.
const READ_MAX: usize = 64 * 1024;

/// Frames handled in one turn; the others wait, so that a peer that sends without end holds up
/// nobody. A Register costs about 20 µs.
const FRAMES_PER_TURN: usize = 64;

/// One end of a control stream.
#[derive(Debug)]
pub(crate) struct ControlStream {
    /// The stream.
    pub(crate) stream: StreamId,
    reader: FrameReader,
    outbox: VecDeque<Bytes>,
}

/// Why a control stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// Bytes that are no frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The peer ended or reset it.
    #[error("the control stream ended")]
    Ended,
    /// The peer does not read.
    #[error("the peer does not read its control stream")]
    Unread,
}

impl ControlStream {
    /// On this stream.
    #[must_use]
    pub(crate) fn new(stream: StreamId) -> Self {
        Self {
            stream,
            reader: FrameReader::new(),
            outbox: VecDeque::new(),
        }
    }

    /// Says something; it leaves when the peer has credit.
    ///
    /// # Errors
    /// [`Broken::Unread`] when too much waits already.
    pub(crate) fn say(
        &mut self,
        quic: &mut Driver,
        session: SessionId,
        frame: &Frame,
    ) -> Result<(), Broken> {
        if self.outbox.len() >= OUTBOX_MAX {
            return Err(Broken::Unread);
        }
        self.outbox.push_back(Bytes::from(frame.to_vec()));
        self.write(quic, session);
        Ok(())
    }

    /// Sends what waits, as far as there is credit.
    pub(crate) fn write(&mut self, quic: &mut Driver, session: SessionId) {
        while !self.outbox.is_empty() {
            match quic.write(
                session,
                self.stream,
                self.outbox.make_contiguous(),
                Amount::Little,
            ) {
                Ok(_) => self.outbox.retain(|frame| !frame.is_empty()),
                Err(_) => return,
            }
        }
    }

    /// The next frames that have come, [`FRAMES_PER_TURN`] at most. Call at every readable event;
    /// where more has come, another one follows.
    ///
    /// # Errors
    /// See [`Broken`].
    pub(crate) fn read(
        &mut self,
        quic: &mut Driver,
        session: SessionId,
    ) -> Result<Vec<Frame>, Broken> {
        let (mut frames, mut bytes) = (Vec::new(), 0);
        loop {
            while let Some(frame) = self.reader.next_known()? {
                frames.push(frame);
                if frames.len() == FRAMES_PER_TURN {
                    quic.read_later(session, self.stream);
                    return Ok(frames);
                }
            }
            if bytes >= READ_MAX {
                quic.read_later(session, self.stream);
                return Ok(frames);
            }
            let mut chunks = Vec::new();
            // One by one: a reader that has read to the end takes the next without a copy.
            let read = quic.read(session, self.stream, 1, READ_MAX, &mut chunks);
            for chunk in chunks {
                bytes += chunk.len();
                self.reader.push(chunk);
            }
            match read {
                Ok(Read::More) => {}
                Ok(Read::Empty) => return Ok(frames),
                Ok(Read::End) | Err(_) => return Err(Broken::Ended),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::Event;
    use crate::quic::pair::Pair;

    #[test]
    fn what_is_said_is_heard_in_order_and_an_end_breaks_it() {
        let mut pair = Pair::new();
        let (mut near, mut far) = streams(&mut pair);
        let said = [Frame::Draining, Frame::Draining];
        for frame in &said {
            let told = near.say(&mut pair.here.quic, pair.session, frame);
            assert!(told.is_ok());
        }
        let mut heard = Vec::new();
        pair.carry_until(|pair| {
            heard.extend(far.read(&mut pair.there.quic, pair.far).expect("frames"));
            heard.len() == said.len()
        });
        assert_eq!(heard, said);
        pair.here.quic.finish(pair.session, near.stream);
        let mut read = Ok(Vec::new());
        pair.carry_until(|pair| {
            read = far.read(&mut pair.there.quic, pair.far);
            read.is_err()
        });
        assert!(matches!(read, Err(Broken::Ended)), "{read:?}");
    }

    #[test]
    fn a_peer_that_reads_nothing_is_not_waited_for_for_ever() {
        let mut pair = Pair::new();
        let (mut near, _far) = streams(&mut pair);
        let mut said = 0;
        let why = loop {
            match near.say(&mut pair.here.quic, pair.session, &Frame::Draining) {
                Ok(()) => said += 1,
                Err(why) => break why,
            }
        };
        assert!(matches!(why, Broken::Unread), "{why}");
        assert!(said > OUTBOX_MAX, "{said} frames, the window's among them");
    }

    /// Both ends of the session's first stream.
    fn streams(pair: &mut Pair) -> (ControlStream, ControlStream) {
        let stream = pair.here.quic.open(pair.session).expect("a stream");
        let mut near = ControlStream::new(stream);
        // A stream is there once something is said on it.
        let told = near.say(&mut pair.here.quic, pair.session, &Frame::Draining);
        assert!(told.is_ok());
        let mut far = None;
        pair.carry_until(|pair| {
            for (_, event) in pair.there.events.drain(..) {
                if let Event::Opened(stream) = event {
                    far = Some(ControlStream::new(stream));
                }
            }
            far.is_some()
        });
        let mut far = far.expect("it was opened");
        let first = far.read(&mut pair.there.quic, pair.far).expect("a frame");
        assert_eq!(first, [Frame::Draining]);
        (near, far)
    }
}
