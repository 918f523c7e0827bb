//! Many flows that are opened and then rest: what memory, bursts and growth are measured with.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use underpass_tests::deadline::MOMENT;

/// Flows that are being opened at once: a tunnel's queue of accepted connections is not what is
/// measured.
const OPENING: usize = 64;

/// Source addresses, each of which has some 28,000 ports.
pub(crate) const SOURCES: u8 = 8;

/// Opens flows, some at a time; with `spoken` each has had one byte returned. Those that fail are
/// not among what it gives.
pub(crate) async fn open(to: SocketAddr, flows: usize, spoken: bool) -> Result<Vec<TcpStream>> {
    let mut opening = JoinSet::new();
    let mut all = Vec::with_capacity(flows);
    for flow in 0..flows {
        if opening.len() >= OPENING
            && let Some(done) = opening.join_next().await
        {
            all.extend(done?);
        }
        opening.spawn(async move { timeout(MOMENT, one(to, flow, spoken)).await.ok()?.ok() });
    }
    while let Some(done) = opening.join_next().await {
        all.extend(done?);
    }
    Ok(all)
}

async fn one(to: SocketAddr, flow: usize, spoken: bool) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let source = u8::try_from(flow % usize::from(SOURCES)).unwrap_or_default() + 2;
    socket.bind(SocketAddr::from(([127, 0, 0, source], 0)))?;
    let mut stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    if spoken {
        ask(&mut stream).await?;
    }
    Ok(stream)
}

/// Says one byte and waits until it is returned.
pub(crate) async fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = *b"?";
    stream.write_all(&byte).await?;
    stream.read_exact(&mut byte).await.map(drop)
}
