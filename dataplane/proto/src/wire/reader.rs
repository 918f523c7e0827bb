//! Finds frames in the chunks of a stream, and hands on what follows them. Keeps at most one frame;
//! copies payload never.

use bytes::{Buf, Bytes, BytesMut};

use super::{FRAME_MAX, Frame, FrameError, HEADER_LEN};

/// Collects chunks and yields frames.
///
/// Push a chunk, then call [`next`](Self::next) (flow streams) or [`next_known`](Self::next_known)
/// (control streams) until it yields nothing, then push the next one. After the last frame of a
/// flow stream, [`rest`](Self::rest) is the payload that came in the same chunk. Memory: one chunk
/// of the caller's, and at most [`HEADER_LEN`] + [`FRAME_MAX`] bytes of a frame that came in
/// pieces. After an error other than [`FrameError::UnknownType`] the stream is of no more use.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// A frame of which a part has come.
    partial: BytesMut,
    /// What has come and was not looked at.
    unread: Bytes,
}

impl FrameReader {
    /// An empty one. Allocates nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        if self.unread.is_empty() {
            self.unread = chunk;
        } else {
            // Only when the caller did not read to the end before.
            let mut both = BytesMut::with_capacity(self.unread.len() + chunk.len());
            both.extend_from_slice(&self.unread);
            both.extend_from_slice(&chunk);
            self.unread = both.freeze();
        }
    }

    /// The next frame, or nothing until more has come.
    ///
    /// # Errors
    /// See [`FrameError`]. [`FrameError::UnknownType`] has taken the frame off the stream.
    #[expect(
        clippy::should_implement_trait,
        reason = "not an iterator: it yields again after it yielded nothing"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.partial.is_empty() {
            let Some(len) = frame_len(&self.unread)? else {
                return Ok(self.keep_partial());
            };
            if self.unread.len() < len {
                return Ok(self.keep_partial());
            }
            let frame = self.unread.split_to(len);
            return Frame::decode(frame[0], &frame[HEADER_LEN..]).map(Some);
        }
        self.fill_to(HEADER_LEN);
        let Some(len) = frame_len(&self.partial)? else {
            return Ok(None);
        };
        self.fill_to(len);
        if self.partial.len() < len {
            return Ok(None);
        }
        let frame = std::mem::take(&mut self.partial);
        Frame::decode(frame[0], &frame[HEADER_LEN..]).map(Some)
    }

    /// Like [`next`](Self::next), but skips frames of unknown type, so that a later version may say
    /// more.
    ///
    /// # Errors
    /// See [`FrameError`], never [`FrameError::UnknownType`].
    pub fn next_known(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            match self.next() {
                Err(FrameError::UnknownType(_)) => {}
                other => return other,
            }
        }
    }

    /// What followed the last frame, without a copy. Empty while a frame is incomplete.
    pub fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.unread)
    }

    /// Whether the stream may end here: no frame is incomplete.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] otherwise.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.partial.is_empty() {
            Ok(())
        } else {
            Err(FrameError::Truncated)
        }
    }

    fn keep_partial(&mut self) -> Option<Frame> {
        self.partial.extend_from_slice(&self.unread);
        self.unread = Bytes::new();
        None
    }

    /// Moves bytes over until the partial frame has `len`, as far as there are any.
    fn fill_to(&mut self, len: usize) {
        let missing = len
            .saturating_sub(self.partial.len())
            .min(self.unread.len());
        self.partial.extend_from_slice(&self.unread[..missing]);
        self.unread.advance(missing);
    }
}

/// Length of the frame that starts here, header and all, once its header is there.
fn frame_len(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some([_, high, low]) = bytes.first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    if len > FRAME_MAX {
        return Err(FrameError::TooLong { len });
    }
    Ok(Some(HEADER_LEN + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_comes_byte_by_byte_is_there_with_its_last_one() {
        let frame = Frame::Draining;
        let bytes = [frame.to_vec(), frame.to_vec()].concat();
        let mut reader = FrameReader::new();
        let mut found = Vec::new();
        for (at, byte) in bytes.iter().enumerate() {
            reader.push(Bytes::copy_from_slice(&[*byte]));
            if let Some(frame) = reader.next().expect("frames") {
                found.push((at, frame));
            }
        }
        let half = bytes.len() / 2;
        assert_eq!(
            found,
            [(half - 1, Frame::Draining), (bytes.len() - 1, frame)]
        );
        assert_eq!(reader.finish(), Ok(()));
    }
}
