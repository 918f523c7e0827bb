//! A worker's loop for tests: asks a backend for one thing at a time, and keeps what else it says.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::SockRef;
use underpass_dataplane::io::{Completion, Datagrams, Io, READ_SIZE, SocketId, Transmit, socket};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing may come, where nothing should.
const SILENCE: Duration = Duration::from_millis(50);

/// A backend, and the completions that nobody asked for yet.
pub(crate) struct Driver<I> {
    pub(crate) io: I,
    pub(crate) udp_address: SocketAddr,
    pub(crate) pending: VecDeque<Completion>,
}

impl<I: Io> Driver<I> {
    pub(crate) fn new(io: I, udp_address: SocketAddr) -> Self {
        Self {
            io,
            udp_address,
            pending: VecDeque::new(),
        }
    }

    pub(crate) fn listen(&mut self) -> SocketAddr {
        let listener = socket::listener(local(), false).unwrap();
        let address = listener.local_addr().unwrap();
        self.io.listen(listener).unwrap();
        address
    }

    pub(crate) fn accept(&mut self) -> (SocketId, SocketAddr) {
        self.until("connection", |completion| match completion {
            Completion::Accepted {
                socket: Ok(accepted),
                ..
            } => Some(*accepted),
            _ => None,
        })
    }

    /// A socket of the worker and its peer.
    pub(crate) fn pair(&mut self) -> (SocketId, TcpStream) {
        let (mut sockets, mut peers) = self.pairs(1);
        (sockets.remove(0), peers.remove(0))
    }

    pub(crate) fn pairs(&mut self, count: usize) -> (Vec<SocketId>, Vec<TcpStream>) {
        let address = self.listen();
        (0..count)
            .map(|_| {
                let peer = connect(address);
                let (socket, from) = self.accept();
                assert_eq!(from, peer.local_addr().unwrap());
                (socket, peer)
            })
            .unzip()
    }

    /// One turn that does not wait.
    pub(crate) fn turn(&mut self) {
        self.wait(Instant::now());
    }

    pub(crate) fn wait(&mut self, deadline: Instant) {
        let mut completions = Vec::new();
        self.io.wait(Some(deadline), &mut completions).unwrap();
        self.pending.extend(completions);
    }

    /// Waits for the first completion that `pick` wants, and keeps all others.
    pub(crate) fn until<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(&mut Completion) -> Option<T>,
    ) -> T {
        let give_up = Instant::now() + PATIENCE;
        let mut looked_at = 0;
        loop {
            for at in looked_at..self.pending.len() {
                if let Some(picked) = pick(&mut self.pending[at]) {
                    self.pending.remove(at);
                    return picked;
                }
            }
            looked_at = self.pending.len();
            let now = Instant::now();
            assert!(
                now < give_up,
                "no {what} in {PATIENCE:?}, only {:?}",
                self.pending
            );
            self.wait(give_up);
        }
    }

    /// Nothing more comes for a while.
    pub(crate) fn quiet(&mut self) {
        let end = Instant::now() + SILENCE;
        while Instant::now() < end {
            self.wait(end);
        }
        assert!(self.pending.is_empty(), "{:?}", self.pending);
    }

    pub(crate) fn receive(&mut self, socket: SocketId) -> io::Result<Bytes> {
        self.io.receive(socket);
        self.received(socket)
    }

    pub(crate) fn received(&mut self, wanted: SocketId) -> io::Result<Bytes> {
        self.until("chunk", |completion| match completion {
            Completion::Received { socket, result } if *socket == wanted => Some(take(result)),
            _ => None,
        })
    }

    pub(crate) fn receive_exactly(&mut self, socket: SocketId, size: usize) -> Vec<u8> {
        let mut received = Vec::with_capacity(size);
        while received.len() < size {
            let chunk = self.receive(socket).unwrap();
            assert!(
                !chunk.is_empty(),
                "ended after {} of {size} bytes",
                received.len()
            );
            assert!(chunk.len() <= READ_SIZE);
            received.extend_from_slice(&chunk);
        }
        received
    }

    pub(crate) fn send_all(&mut self, socket: SocketId, data: &[u8]) {
        self.io.send(socket, vec![Bytes::copy_from_slice(data)]);
        assert_eq!(self.sent(socket).unwrap(), data.len());
    }

    pub(crate) fn sent(&mut self, wanted: SocketId) -> io::Result<usize> {
        self.until("end of a send", |completion| match completion {
            Completion::Sent { socket, result } if *socket == wanted => Some(take(result)),
            _ => None,
        })
    }

    pub(crate) fn connected(&mut self, wanted: SocketId) -> io::Result<()> {
        self.until("verdict on a connection", |completion| match completion {
            Completion::Connected { socket, result } if *socket == wanted => Some(take(result)),
            _ => None,
        })
    }

    pub(crate) fn hung_up(&mut self, wanted: SocketId) -> io::Error {
        self.until("hang-up", |completion| match completion {
            Completion::HungUp { socket, error } if *socket == wanted => Some(error.kind().into()),
            _ => None,
        })
    }

    pub(crate) fn woken(&mut self) {
        self.until("wake", |completion| {
            matches!(completion, Completion::Woken).then_some(())
        });
    }

    pub(crate) fn send_datagrams(&mut self, data: &[u8], transmit: &Transmit) {
        let mut buffer = loop {
            match self.io.datagram_buffer() {
                Some(buffer) => break buffer,
                None => self.turn(),
            }
        };
        buffer.data.extend_from_slice(data);
        self.io.send_datagrams(buffer, transmit);
    }

    pub(crate) fn datagrams(&mut self) -> Datagrams {
        self.until("datagram", |completion| match completion {
            Completion::Datagrams(batch) => {
                let data = std::mem::take(&mut batch.data);
                Some(Datagrams { data, ..*batch })
            }
            _ => None,
        })
    }
}

fn take<T>(result: &mut io::Result<T>) -> io::Result<T> {
    std::mem::replace(result, Err(ErrorKind::Other.into()))
}

pub(crate) fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

pub(crate) fn local_v6() -> SocketAddr {
    SocketAddr::from((Ipv6Addr::LOCALHOST, 0))
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Ends a connection with RST.
pub(crate) fn reset(peer: TcpStream) {
    SockRef::from(&peer)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Reads up to the error that ends a connection.
pub(crate) fn read_to_error(peer: &mut TcpStream) -> ErrorKind {
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        match peer.read(&mut buffer) {
            Ok(0) => panic!("a clean end"),
            Ok(_) => {}
            Err(error) => return error.kind(),
        }
    }
}

/// More than the kernel holds for a peer that does not read.
pub(crate) fn endless() -> Vec<Bytes> {
    vec![Bytes::from(vec![7; 32 * 1024 * 1024])]
}

pub(crate) fn plain(destination: SocketAddr) -> Transmit {
    Transmit {
        destination,
        ecn: None,
        segment_size: None,
        src_ip: None,
    }
}

pub(crate) fn pattern(size: usize) -> Vec<u8> {
    (0..size)
        .map(|n| (n % 251) as u8 ^ (n / 251) as u8)
        .collect()
}

/// Runs the named test in a process of its own and says so, or says that this is that process.
pub(crate) fn in_a_child(test: &str, backend: &str) -> bool {
    const MARK: &str = "UNDERPASS_TEST_CHILD";
    if std::env::var_os(MARK).is_some() {
        return false;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("{backend}::{test}"), "--exact", "--nocapture"])
        .env(MARK, "1")
        .status()
        .unwrap();
    assert!(status.success());
    true
}

#[expect(unsafe_code, reason = "no crate at hand wraps setrlimit")]
pub(crate) fn limit_descriptors(limit: u64) {
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: limit,
    };
    // SAFETY: the structure lives for the time of the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
}
