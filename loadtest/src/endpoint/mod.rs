//! The far end of verified flows: checks what the client sends, returns or makes what the client
//! expects, and says what it found.
//!
//! What a flow shall be is in its header (`wire`). The endpoint sets no deadline: a flow that hangs
//! is the client's to notice.

mod calls;
pub mod faulty;
mod flows;
mod plain;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::io::{self as way, Choice, Job, Kind, Socket, or_abort};
use crate::wire::{Header, Style, Verdict};

/// Bytes per read and per write: what one pipe of the tunnel's other end carries at once, and small
/// enough for thousands of flows.
pub(crate) const CHUNK: usize = 64 * 1024;

/// Connections that the kernel may hold before they are accepted: the burst of the fault plan
/// (4,000 opens in a second), rounded up.
const BACKLOG: i32 = 4096;

/// Which flows an endpoint serves.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum)]
pub enum Serves {
    /// All of them.
    #[default]
    Any,
    /// Those that want their bytes back.
    Echo,
    /// Those that send and want nothing but the verdict.
    Sink,
    /// Those that receive only.
    Source,
    /// Requests and responses.
    Calls,
    /// No flows of this program: whatever comes is returned, for any client.
    PlainEcho,
    /// No flows of this program: whatever comes is swallowed, for any client.
    PlainDiscard,
}

/// A running endpoint. Dropping it ends it: live flows are reset.
pub struct Endpoint {
    address: SocketAddr,
    kind: Kind,
    tally: Arc<Tally>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

/// Where and how an endpoint runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Address to listen on; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Which flows to serve.
    pub serves: Serves,
    /// How to talk to sockets.
    pub io: Choice,
    /// Number of threads; flows are spread as the kernel wakes them.
    pub threads: usize,
}

impl Settings {
    /// Any flow, on one thread, by the best io there is.
    pub fn new(listen: SocketAddr) -> Settings {
        Settings {
            listen,
            serves: Serves::Any,
            io: Choice::Auto,
            threads: 1,
        }
    }
}

/// Counters of an endpoint, while it runs.
#[derive(Default, Debug)]
pub(crate) struct Tally {
    opened: AtomicU64,
    right: AtomicU64,
    failed: AtomicU64,
    corrupt: AtomicU64,
    truncated: AtomicU64,
    not_served: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// What an endpoint has seen so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Seen {
    /// Connections accepted.
    pub opened: u64,
    /// Flows whose bytes all came and were right.
    pub right: u64,
    /// Flows that ended in an error of the socket, or before their header was whole.
    pub failed: u64,
    /// Flows with a wrong byte, a wrong header, or too many bytes.
    pub corrupt: u64,
    /// Flows that ended cleanly before all bytes had come.
    pub truncated: u64,
    /// Flows of a kind that this endpoint does not serve.
    pub not_served: u64,
    /// Bytes received, headers aside.
    pub bytes_received: u64,
    /// Bytes sent, trailers aside.
    pub bytes_sent: u64,
}

impl Endpoint {
    /// Listens, and serves on threads of its own.
    ///
    /// # Errors
    /// The address cannot be had, or the io is not permitted here.
    pub fn start(settings: Settings) -> io::Result<Endpoint> {
        let kind = settings.io.resolve()?;
        let listener = listen(settings.listen)?;
        let mut endpoint = Endpoint {
            address: listener.local_addr()?,
            kind,
            tally: Arc::default(),
            stop: watch::Sender::new(false),
            threads: Vec::new(),
        };
        for _ in 0..settings.threads.max(1) {
            let server = Server {
                listener: listener.try_clone()?,
                serves: settings.serves,
                tally: Arc::clone(&endpoint.tally),
                stop: endpoint.stop.subscribe(),
            };
            let thread = std::thread::Builder::new().name("endpoint".into());
            endpoint
                .threads
                .push(thread.spawn(move || way::drive(kind, server)?)?);
        }
        Ok(endpoint)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it talks to sockets.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        self.tally.read()
    }

    /// Ends it, resets live flows, and says what it has seen.
    pub fn stop(mut self) -> Seen {
        self.end();
        self.seen()
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // A thread that failed has nothing more to say than its missing flows do.
            let _ = thread.join();
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.end();
    }
}

struct Server {
    listener: TcpListener,
    serves: Serves,
    tally: Arc<Tally>,
    stop: watch::Receiver<bool>,
}

impl Job for Server {
    type Output = io::Result<()>;

    async fn run<S: Socket>(mut self) -> io::Result<()> {
        self.listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let mut flows = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = flows.join_next() => continue,
                _ = self.stop.wait_for(|&stop| stop) => break,
            };
            let Ok((stream, _)) = accepted else {
                way::pause().await;
                continue;
            };
            let (tally, serves, stop) = (Arc::clone(&self.tally), self.serves, self.stop.clone());
            flows.spawn_local(async move { flow::<S>(stream, serves, &tally, stop).await });
        }
        while flows.join_next().await.is_some() {}
        Ok(())
    }
}

/// One flow, from accept to close.
async fn flow<S: Socket>(
    stream: tokio::net::TcpStream,
    serves: Serves,
    tally: &Tally,
    mut stop: watch::Receiver<bool>,
) {
    add(&tally.opened, 1);
    let Ok(socket) = S::adopt(stream) else {
        return add(&tally.failed, 1);
    };
    let stopped = async move {
        // An error means that the endpoint is gone: stop as well.
        let _ = stop.wait_for(|&stop| stop).await;
    };
    let conversation = async {
        match serves {
            Serves::PlainEcho => plain::echo(&socket, tally).await,
            Serves::PlainDiscard => plain::discard(&socket, tally).await,
            _ => flows::serve(&socket, serves, tally).await,
        }
    };
    let (result, _) = or_abort(&socket, conversation, stopped).await;
    let counter = match result {
        Ok(Verdict::Right) => &tally.right,
        Ok(Verdict::Corrupt { .. }) => &tally.corrupt,
        Ok(Verdict::Truncated) => &tally.truncated,
        Ok(Verdict::NotServed) => &tally.not_served,
        Err(_) => {
            socket.abort();
            &tally.failed
        }
    };
    add(counter, 1);
}

impl Serves {
    fn permits(self, header: &Header) -> bool {
        match self {
            Serves::Any => true,
            Serves::Echo => header.style == Style::Echo,
            Serves::Sink => header.style == Style::Exchange && header.down == Some(0),
            Serves::Source => header.style == Style::Exchange && header.up == Some(0),
            Serves::Calls => matches!(header.style, Style::Calls { .. }),
            Serves::PlainEcho | Serves::PlainDiscard => false,
        }
    }
}

impl Tally {
    fn read(&self) -> Seen {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Seen {
            opened: read(&self.opened),
            right: read(&self.right),
            failed: read(&self.failed),
            corrupt: read(&self.corrupt),
            truncated: read(&self.truncated),
            not_served: read(&self.not_served),
            bytes_received: read(&self.received),
            bytes_sent: read(&self.sent),
        }
    }
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Bytes that the kernel keeps unsent of each flow: many flows whose readers stand still would
/// otherwise take the memory that all TCP of this machine has, from whatever is measured on it.
#[cfg(target_os = "linux")]
const UNSENT_MAX: u32 = 256 * 1024;

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
