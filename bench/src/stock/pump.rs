//! One flow of the baseline: a TCP connection and a stream, both directions at once, FIN and RST
//! kept apart.

use std::io::{self, IoSlice};
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// Bytes of one TCP read, which becomes one chunk of the stream.
const READ: usize = 64 * 1024;

/// Room below which a new buffer is taken rather than the rest of the old one filled: a chunk shall
/// not be a sliver.
const READ_MIN: usize = 16 * 1024;

/// Chunks of one gathered write; a chunk is at most a packet long.
const GATHER: usize = 64;

/// The code of a reset in place of an RST.
const RESET: VarInt = VarInt::from_u32(1);

/// Carries both directions to their ends. If either breaks, the other breaks too, with an RST on
/// TCP and a reset on the stream.
pub(super) async fn run(mut tcp: TcpStream, mut send: SendStream, mut receive: RecvStream) {
    // A process that is killed, and a flow that breaks, shall look like an RST; lifted when both
    // directions are through.
    let socket = socket2::SockRef::from(&tcp);
    let _ = socket.set_linger(Some(Duration::ZERO));
    let _ = tcp.set_nodelay(true);
    let (mut reader, mut writer) = tcp.split();
    let both = tokio::try_join!(
        to_stream(&mut reader, &mut send),
        to_tcp(&mut receive, &mut writer)
    );
    if both.is_ok() {
        let _ = socket2::SockRef::from(&tcp).set_linger(None);
        return;
    }
    let _ = send.reset(RESET); // Fails when the peer has all of it already.
    let _ = receive.stop(RESET);
}

async fn to_stream(tcp: &mut ReadHalf<'_>, stream: &mut SendStream) -> io::Result<()> {
    let mut stopped = pin!(stream.stopped());
    let mut buffer = BytesMut::with_capacity(READ);
    loop {
        if buffer.capacity() < READ_MIN {
            buffer = BytesMut::with_capacity(READ);
        }
        let read = tokio::select! {
            read = tcp.read_buf(&mut buffer) => read?,
            stopped = &mut stopped => return Err(io::Error::other(format!("stopped: {stopped:?}"))),
        };
        if read == 0 {
            return stream.finish().map_err(io::Error::other);
        }
        stream.write_chunk(buffer.split().freeze()).await?;
    }
}

async fn to_tcp(stream: &mut RecvStream, tcp: &mut WriteHalf<'_>) -> io::Result<()> {
    let mut chunks = [const { Bytes::new() }; GATHER];
    loop {
        let Some(count) = stream
            .read_chunks(&mut chunks)
            .await
            .map_err(io::Error::other)?
        else {
            return tcp.shutdown().await;
        };
        write_all(tcp, &mut chunks[..count]).await?;
    }
}

async fn write_all(tcp: &mut WriteHalf<'_>, chunks: &mut [Bytes]) -> io::Result<()> {
    let mut first = 0;
    while first < chunks.len() {
        let mut slices = [IoSlice::new(&[]); GATHER];
        let count = chunks.len() - first;
        for (slice, chunk) in slices.iter_mut().zip(&chunks[first..]) {
            *slice = IoSlice::new(chunk);
        }
        let mut written = tcp.write_vectored(&slices[..count]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while first < chunks.len() && written >= chunks[first].len() {
            written -= chunks[first].len();
            chunks[first] = Bytes::new(); // Gives the packet's memory back at once.
            first += 1;
        }
        if written > 0 {
            chunks[first].advance(written);
        }
    }
    Ok(())
}
