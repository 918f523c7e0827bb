//! The baseline's agent: dials the relay, and the endpoint for each stream that comes.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::net::TcpStream;

use super::{Settings, pump, transport};

/// Between attempts to reach the relay.
const RETRY: Duration = Duration::from_millis(200);

/// The code of a reset because the endpoint cannot be reached.
const UNREACHABLE: VarInt = VarInt::from_u32(2);

/// Serves until the process ends; a lost session is dialled again.
///
/// # Errors
/// The UDP socket cannot be had.
pub async fn run(
    connect: SocketAddr,
    endpoint: SocketAddr,
    settings: Settings,
) -> anyhow::Result<()> {
    let quic = transport::agent(connect, settings.mtu)?;
    loop {
        if let Ok(session) = quic.connect(connect, "stock")?.await {
            serve(&session, endpoint).await;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve(session: &Connection, endpoint: SocketAddr) {
    while let Ok((send, receive)) = session.accept_bi().await {
        tokio::spawn(flow(send, receive, endpoint));
    }
}

async fn flow(mut send: SendStream, mut receive: RecvStream, endpoint: SocketAddr) {
    let mut first = [0];
    let (opened, dialled) =
        tokio::join!(receive.read_exact(&mut first), TcpStream::connect(endpoint));
    match (opened, dialled) {
        (Ok(()), Ok(tcp)) => pump::run(tcp, send, receive).await,
        _ => {
            let _ = send.reset(UNREACHABLE); // Fails when the session is gone, which says as much.
            let _ = receive.stop(UNREACHABLE);
        }
    }
}
