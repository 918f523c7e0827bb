//! The baseline's relay: takes applications on a TCP binding and hands each to the agent's session
//! as one stream.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use quinn::Connection;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Settings, pump, transport};

/// Connections that the kernel may hold before they are accepted.
const BACKLOG: u32 = 4096;

/// Serves until the process ends. `ready` is told where applications connect, and later each
/// agent's address.
///
/// # Errors
/// An address cannot be had.
pub async fn run(
    listen: SocketAddr,
    bind: SocketAddr,
    settings: Settings,
    ready: impl Fn(&Event),
) -> anyhow::Result<()> {
    let endpoint = transport::relay(listen, settings.mtu)?;
    let binding = binding(bind).with_context(|| format!("cannot bind {bind} (tcp)"))?;
    ready(&Event::Bound {
        udp: endpoint.local_addr()?,
        tcp: binding.local_addr()?,
    });
    let session = Arc::new(watch::Sender::new(None::<Connection>));
    tokio::spawn(applications(binding, session.subscribe()));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else {
            continue;
        };
        let agent = connection.remote_address();
        session.send_replace(Some(connection)); // The newest agent serves.
        // Reported last: the receiver may connect at once.
        ready(&Event::Session { agent });
    }
    Ok(())
}

/// What a relay says while it runs.
#[derive(serde::Serialize, serde::Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// It listens.
    Bound {
        /// For the agent.
        udp: SocketAddr,
        /// For applications.
        tcp: SocketAddr,
    },
    /// An agent is there.
    Session {
        /// Its address.
        agent: SocketAddr,
    },
}

async fn applications(binding: TcpListener, session: watch::Receiver<Option<Connection>>) {
    loop {
        let Ok((tcp, _)) = binding.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await; // Out of descriptors.
            continue;
        };
        let session = session.borrow().clone();
        tokio::spawn(async move {
            match open(session).await {
                Some((send, receive)) => pump::run(tcp, send, receive).await,
                None => reset(tcp),
            }
        });
    }
}

async fn open(session: Option<Connection>) -> Option<(quinn::SendStream, quinn::RecvStream)> {
    let (mut send, receive) = session?.open_bi().await.ok()?;
    // The agent learns of a stream by its first bytes, and a server may have to speak first.
    send.write_all(&[0]).await.ok()?;
    Some((send, receive))
}

fn reset(tcp: TcpStream) {
    let _ = SockRef::from(&tcp).set_linger(Some(std::time::Duration::ZERO));
}

fn binding(bind: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match bind {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(bind)?;
    socket.listen(BACKLOG)
}
