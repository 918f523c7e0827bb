//! What is fuzzed: one function for each kind of bytes that a stranger or a file may bring. Each
//! panics where something must hold and does not; what is merely wrong input it takes without a
//! word. Run by an ordinary test, and fit for libFuzzer.

mod live;
mod texts;

use bytes::Bytes;
use underpass_proto::{Frame, FrameReader};

pub use live::{datagrams, sessions};
pub use texts::{connection_strings, files, sas_tokens};

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const ALL: [(&str, Target); 6] = [
    ("frames", frames),
    ("connection_strings", connection_strings),
    ("sas_tokens", sas_tokens),
    ("files", files),
    ("sessions", sessions),
    ("datagrams", datagrams),
];

/// Frames of a stream that comes in pieces: the first byte is the length of a piece. A frame that
/// is read is written as the same bytes again.
pub fn frames(data: &[u8]) {
    let Some((&piece, stream)) = data.split_first() else {
        return;
    };
    let mut reader = FrameReader::new();
    let mut whole = FrameReader::new();
    whole.push(Bytes::copy_from_slice(stream));
    for piece in stream.chunks(usize::from(piece).max(1)) {
        reader.push(Bytes::copy_from_slice(piece));
        loop {
            match reader.next() {
                Ok(Some(frame)) => {
                    same_again(&frame);
                    assert_eq!(whole.next(), Ok(Some(frame)), "pieces matter");
                }
                Ok(None) => break,
                Err(error) => return assert_eq!(whole.next(), Err(error), "pieces matter"),
            }
        }
    }
}

fn same_again(frame: &Frame) {
    let mut reader = FrameReader::new();
    reader.push(Bytes::from(frame.to_vec()));
    assert_eq!(reader.next().ok().flatten().as_ref(), Some(frame));
}
