//! An endpoint that is at fault: refuses, drops, dribbles, resets, ends one side first, or says
//! nothing. For any client.
//!
//! What it sends and expects is the pattern of its seed, so that a client can tell how far it came.
//! A thread for each connection: such an endpoint has few.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Socket, Type};

use super::CHUNK;
use crate::pattern::{Pattern, derive};

/// Bytes that come before a reset in mid-stream.
pub const BEFORE_RESET: u64 = 256 * 1024;

/// Time for those bytes to arrive.
const BEFORE_RESET_REACHES: Duration = Duration::from_millis(200);

/// Bytes of each direction of a flow one side of which ends first.
pub const HALF: u64 = 1024 * 1024;

/// Connections at once; more are closed at once. Each is a thread.
const CONNECTIONS_MAX: usize = 256;

/// How soon the end of the endpoint is noticed by a connection that waits.
const LOOK_EACH: Duration = Duration::from_millis(20);

/// Connections that fill a backlog of one: the kernel holds one more than asked for.
const FILLERS: usize = 2;

/// What is wrong with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ill {
    /// Nobody listens: connections are refused.
    Refuses,
    /// The kernel answers no connection at all: its backlog is full.
    DropsSyn,
    /// One byte each second.
    Dribbles,
    /// A reset in mid-stream.
    Resets,
    /// It sends all it has and ends its side, then takes what the client sends.
    EndsFirst,
    /// It takes all that the client sends until the client ends its side, then sends.
    EndsSecond,
    /// It accepts and says nothing.
    Silent,
}

/// A running endpoint at fault. Dropping it ends it.
pub struct Faulty {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    /// What keeps the address, where nobody accepts.
    _holds: (Option<Socket>, Vec<TcpStream>),
}

/// What it has seen.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct SeenByFaulty {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections from which everything came that should, to a clean end.
    pub whole: u64,
    /// Connections from which a byte came that is not the pattern's.
    pub wrong: u64,
    /// Bytes that came and were right.
    pub bytes: u64,
}

struct Shared {
    ill: Ill,
    seed: u64,
    ending: AtomicBool,
    live: AtomicU64,
    seen: Mutex<SeenByFaulty>,
}

impl Faulty {
    /// Takes the address, and does what it is for.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn start(listen: SocketAddr, ill: Ill, seed: u64) -> io::Result<Faulty> {
        let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
        socket.bind(&listen.into())?;
        let address = socket
            .local_addr()?
            .as_socket()
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut faulty = Faulty {
            address,
            shared: Arc::new(Shared {
                ill,
                seed,
                ending: AtomicBool::new(false),
                live: AtomicU64::new(0),
                seen: Mutex::default(),
            }),
            acceptor: None,
            _holds: (None, Vec::new()),
        };
        match ill {
            Ill::Refuses => faulty._holds.0 = Some(socket),
            Ill::DropsSyn => {
                socket.listen(0)?;
                faulty._holds.1 = fill(address)?;
                faulty._holds.0 = Some(socket);
            }
            _ => {
                socket.listen(128)?;
                let (listener, shared) = (TcpListener::from(socket), Arc::clone(&faulty.shared));
                faulty.acceptor = Some(thread::spawn(move || accept(&listener, &shared)));
            }
        }
        Ok(faulty)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has seen so far.
    #[must_use]
    pub fn seen(&self) -> SeenByFaulty {
        *self.shared.lock()
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = TcpStream::connect(self.address); // Wakes it.
            let _ = acceptor.join();
        }
    }
}

/// What such an endpoint sends.
#[must_use]
pub fn says(seed: u64) -> Pattern {
    Pattern::new(derive(seed, 1))
}

/// What it expects to be sent.
#[must_use]
pub fn hears(seed: u64) -> Pattern {
    Pattern::new(derive(seed, 2))
}

/// Connections that nobody accepts, until the kernel takes no more.
fn fill(address: SocketAddr) -> io::Result<Vec<TcpStream>> {
    let mut fillers = Vec::new();
    for _ in 0..FILLERS {
        match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            Ok(filler) => fillers.push(filler),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(fillers),
            Err(error) => return Err(error),
        }
    }
    Ok(fillers)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.ending.load(Ordering::SeqCst) {
            return;
        }
        shared.lock().accepted += 1;
        if shared.live.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX as u64 {
            shared.live.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // A client that went away is its own business; what came from it is counted.
            let _ = shared.serve(&stream);
            shared.live.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

impl Shared {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        match self.ill {
            Ill::Dribbles => self.dribble(stream),
            Ill::Resets => {
                self.send(stream, BEFORE_RESET)?;
                // What is sent shall arrive first: a reset discards what the kernel still holds.
                thread::sleep(BEFORE_RESET_REACHES);
                SockRef::from(stream).set_linger(Some(Duration::ZERO))
            }
            Ill::EndsFirst => {
                self.send(stream, HALF)?;
                stream.shutdown(Shutdown::Write)?;
                self.take(stream, HALF)
            }
            Ill::EndsSecond => {
                self.take(stream, HALF)?;
                self.send(stream, HALF)?;
                stream.shutdown(Shutdown::Write)
            }
            Ill::Silent | Ill::Refuses | Ill::DropsSyn => self.wait(stream),
        }
    }

    fn dribble(&self, mut stream: &TcpStream) -> io::Result<()> {
        for position in 0.. {
            let mut byte = [0];
            says(self.seed).fill(position, &mut byte);
            stream.write_all(&byte)?;
            for _ in 0..50 {
                if self.ending.load(Ordering::SeqCst) {
                    return Ok(());
                }
                thread::sleep(LOOK_EACH);
            }
        }
        Ok(())
    }

    fn send(&self, mut stream: &TcpStream, len: u64) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut sent = 0;
        while sent < len {
            let part = buffer.len().min((len - sent) as usize);
            says(self.seed).fill(sent, &mut buffer[..part]);
            stream.write_all(&buffer[..part])?;
            sent += part as u64;
        }
        Ok(())
    }

    /// To the client's end, which shall come after so many bytes.
    fn take(&self, mut stream: &TcpStream, len: u64) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut taken = 0;
        loop {
            let part = stream.read(&mut buffer)?;
            if part == 0 {
                self.lock().whole += u64::from(taken == len);
                return Ok(());
            }
            if hears(self.seed).check(taken, &buffer[..part]).is_err() {
                self.lock().wrong += 1;
                return Err(io::ErrorKind::InvalidData.into());
            }
            taken += part as u64;
            self.lock().bytes += part as u64;
        }
    }

    fn wait(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(LOOK_EACH))?;
        let mut buffer = vec![0; CHUNK];
        while !self.ending.load(Ordering::SeqCst) {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SeenByFaulty> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_does_what_it_is_for() {
        assert_eq!(
            connect(&start(Ill::Refuses)).err(),
            Some(io::ErrorKind::ConnectionRefused)
        );
        assert_eq!(
            connect(&start(Ill::DropsSyn)).err(),
            Some(io::ErrorKind::TimedOut)
        );

        let resets = start(Ill::Resets);
        let (bytes, end) = read(&connect(&resets).expect("accepts"));
        assert_eq!(
            (bytes, end),
            (BEFORE_RESET, Some(io::ErrorKind::ConnectionReset))
        );

        let silent = start(Ill::Silent);
        let (bytes, end) = read(&connect(&silent).expect("accepts"));
        assert_eq!((bytes, end), (0, Some(io::ErrorKind::WouldBlock)));

        let dribbles = start(Ill::Dribbles);
        let (bytes, end) = read(&connect(&dribbles).expect("accepts"));
        assert_eq!((bytes, end), (1, Some(io::ErrorKind::WouldBlock)));
    }

    #[test]
    fn either_side_may_end_first_and_all_bytes_come() {
        for ill in [Ill::EndsFirst, Ill::EndsSecond] {
            let endpoint = start(ill);
            let mut stream = connect(&endpoint).expect("accepts");
            let mut bytes = vec![0; HALF as usize];
            hears(SEED).fill(0, &mut bytes);
            let down = if ill == Ill::EndsFirst {
                let down = read(&stream);
                stream.write_all(&bytes).expect("is taken");
                stream.shutdown(Shutdown::Write).expect("ends");
                down
            } else {
                stream.write_all(&bytes).expect("is taken");
                stream.shutdown(Shutdown::Write).expect("ends");
                read(&stream)
            };
            assert_eq!(down, (HALF, None), "{ill:?}");
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while endpoint.seen().whole == 0 {
                assert!(
                    std::time::Instant::now() < deadline,
                    "{:?}",
                    endpoint.seen()
                );
                thread::yield_now();
            }
            let seen = endpoint.seen();
            assert_eq!((seen.bytes, seen.wrong), (HALF, 0), "{ill:?}");
        }
    }

    const SEED: u64 = 5;

    fn start(ill: Ill) -> Faulty {
        Faulty::start(SocketAddr::from(([127, 0, 0, 1], 0)), ill, SEED).expect("an address")
    }

    fn connect(endpoint: &Faulty) -> Result<TcpStream, io::ErrorKind> {
        let patience = Duration::from_millis(600);
        let connected = TcpStream::connect_timeout(&endpoint.address(), patience);
        let stream = connected.map_err(|error| error.kind())?;
        stream
            .set_read_timeout(Some(patience))
            .map_err(|error| error.kind())?;
        Ok(stream)
    }

    /// All that comes, and why no more does.
    fn read(mut stream: &TcpStream) -> (u64, Option<io::ErrorKind>) {
        let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return (bytes, None),
                Ok(len) => {
                    assert_eq!(says(SEED).check(bytes, &buffer[..len]), Ok(()));
                    bytes += len as u64;
                }
                Err(error) => return (bytes, Some(error.kind())),
            }
        }
    }
}
