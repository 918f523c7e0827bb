//! Knows when an answer is written to its socket, which is later than when hyper has taken it: only
//! then is the connection without a request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::places::Place;

/// One connection's place, and how far its answer has come. HTTP/1.1 has one at a time.
#[derive(Clone)]
pub(super) struct AnswerProgress(Arc<CurrentAnswer>);

struct CurrentAnswer {
    place: Place,
    /// Hyper has taken all of the answer; what it has not written yet, it writes before it flushes.
    taken: AtomicBool,
}

impl AnswerProgress {
    pub(super) fn new(place: Place) -> Self {
        let taken = AtomicBool::new(false);
        Self(Arc::new(CurrentAnswer { place, taken }))
    }

    pub(super) fn place(&self) -> &Place {
        &self.0.place
    }

    /// A request came.
    pub(super) fn begin(&self) {
        self.0.taken.store(false, Ordering::Relaxed);
        self.0.place.busy();
    }

    /// The body of its answer.
    pub(super) fn follow(&self, body: Body) -> Body {
        let end = TakenOnDrop(self.clone());
        Body::new(FollowedBody { body, _end: end })
    }

    /// The stream that answers are written to.
    pub(super) fn watch<S>(&self, stream: S) -> ReportsFlushes<S> {
        let progress = self.clone();
        ReportsFlushes { stream, progress }
    }

    fn flushed(&self) {
        if self.0.taken.swap(false, Ordering::Relaxed) {
            self.0.place.idle();
        }
    }
}

struct FollowedBody {
    body: Body,
    _end: TakenOnDrop,
}

struct TakenOnDrop(AnswerProgress);

impl Drop for TakenOnDrop {
    fn drop(&mut self) {
        self.0.0.taken.store(true, Ordering::Relaxed);
    }
}

impl http_body::Body for FollowedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that reports each flush.
pub(super) struct ReportsFlushes<S> {
    stream: S,
    progress: AnswerProgress,
}

impl<S: AsyncRead + Unpin> AsyncRead for ReportsFlushes<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReportsFlushes<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if let Poll::Ready(Ok(())) = flushed {
            self.progress.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
