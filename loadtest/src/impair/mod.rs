//! A bad network for UDP: a proxy that delays, loses, reorders, doubles, changes and limits
//! datagrams, by a seed.
//!
//! Each client has an address of its own towards the server, as behind a NAT, which can be changed
//! under way. One thread carries all: what happens to the datagrams of a client and direction
//! depends on the seed and on their number alone.

mod link;
mod profile;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use socket2::SockRef;

use link::Way;
pub use link::{Counts, Link};
pub use profile::{PROFILES, Profile};

use crate::pattern::derive;

/// Clients at once: as many sockets, and a poll of each per turn. A datagram of one more client is
/// dropped.
const CLIENTS_MAX: usize = 1_024;

/// Datagrams that are read from one socket before the others have their turn.
const READS_EACH_TURN: usize = 64;

/// Largest datagram, bytes.
const DATAGRAM_MAX: usize = 65_535;

/// Buffers of each socket, bytes, as far as the kernel permits: several times what arrives while
/// the thread is not scheduled.
const SOCKET_BUFFER: usize = 8 << 20;

/// The longest wait for a datagram: how soon an order of another thread is noticed.
const LOOK_EACH: Duration = Duration::from_millis(5);

/// A running proxy. Dropping it ends it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What happened in all.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Seen {
    /// Addresses that sent something.
    pub clients: u64,
    /// How often all of them were given new addresses towards the server.
    pub rebinds: u64,
    /// Datagrams of clients that were one too many.
    pub refused: u64,
    /// From the clients to the server.
    pub up: Counts,
    /// From the server to the clients.
    pub down: Counts,
}

/// What other threads say and see.
struct Shared {
    link: Mutex<Link>,
    black_hole: AtomicBool,
    rebinds: AtomicU64,
    ending: AtomicBool,
    seen: Mutex<Seen>,
}

impl Proxy {
    /// Listens for clients, and carries what they send to a server and back.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn start(listen: SocketAddr, to: SocketAddr, link: Link, seed: u64) -> io::Result<Proxy> {
        let socket = open(listen)?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared {
            link: Mutex::new(link),
            black_hole: AtomicBool::new(false),
            rebinds: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            seen: Mutex::default(),
        });
        let carrier = Carrier {
            socket,
            to,
            seed,
            clients: Vec::new(),
            by_address: HashMap::new(),
            rebinds: 0,
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new()
            .name("impair".into())
            .spawn(move || carrier.run())?;
        Ok(Proxy {
            address,
            shared,
            thread: Some(thread),
        })
    }

    /// Where clients send to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another network from now on, for what comes from now on.
    pub fn set(&self, link: Link) {
        *lock(&self.shared.link) = link;
    }

    /// Swallows all, or no more.
    pub fn black_hole(&self, on: bool) {
        self.shared.black_hole.store(on, Ordering::SeqCst);
    }

    /// Gives every client a new address towards the server.
    pub fn rebind(&self) {
        self.shared.rebinds.fetch_add(1, Ordering::SeqCst);
    }

    /// What happened so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        *lock(&self.shared.seen)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // It never panics; were it so, nothing is left to end.
        }
    }
}

/// The thread's own.
struct Carrier {
    socket: UdpSocket,
    to: SocketAddr,
    seed: u64,
    clients: Vec<Client>,
    by_address: HashMap<SocketAddr, usize>,
    rebinds: u64,
    shared: Arc<Shared>,
}

struct Client {
    address: SocketAddr,
    /// Its address towards the server.
    socket: UdpSocket,
    up: Way,
    down: Way,
}

impl Carrier {
    fn run(mut self) {
        let mut buffer = vec![0; DATAGRAM_MAX];
        let mut readable = Vec::new();
        while !self.shared.ending.load(Ordering::SeqCst) {
            self.wait(&mut readable);
            self.rebind();
            let link = *lock(&self.shared.link);
            let hole = self.shared.black_hole.load(Ordering::SeqCst);
            let mut seen = Seen::default();
            if readable.first() == Some(&true) {
                self.read_clients(&mut buffer, &link, hole, &mut seen);
            }
            for (client, readable) in self.clients.iter_mut().zip(readable.iter().skip(1)) {
                if *readable {
                    client.read_server(&mut buffer, &link, hole, &mut seen.down);
                }
            }
            let now = Instant::now();
            for client in &mut self.clients {
                client.send_due(now, &self.socket, &mut seen);
            }
            self.tell(&seen);
        }
    }

    /// Until a datagram comes, one is due, or it is time to look for orders. Says of each socket
    /// whether it is readable.
    fn wait(&self, readable: &mut Vec<bool>) {
        let now = Instant::now();
        let due = self
            .clients
            .iter()
            .flat_map(|client| [&client.up, &client.down]);
        let next = due.filter_map(Way::next_due).min();
        let within = next.map_or(LOOK_EACH, |next| {
            next.saturating_duration_since(now).min(LOOK_EACH)
        });
        let within = Timespec {
            tv_sec: 0,
            tv_nsec: within.subsec_nanos().into(),
        };
        let sockets =
            std::iter::once(&self.socket).chain(self.clients.iter().map(|client| &client.socket));
        let mut interests: Vec<PollFd<'_>> = sockets
            .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
            .collect();
        readable.clear();
        // An interrupted wait is a short one.
        let _ = poll(&mut interests, Some(&within));
        readable.extend(
            interests
                .iter()
                .map(|interest| !interest.revents().is_empty()),
        );
    }

    fn rebind(&mut self) {
        let wanted = self.shared.rebinds.load(Ordering::SeqCst);
        if wanted == self.rebinds {
            return;
        }
        self.rebinds = wanted;
        for client in &mut self.clients {
            // Without a free port the old address stays: the next order tries again.
            if let Ok(socket) = towards(self.to) {
                client.socket = socket;
            }
        }
        lock(&self.shared.seen).rebinds += 1;
    }

    fn read_clients(&mut self, buffer: &mut [u8], link: &Link, hole: bool, seen: &mut Seen) {
        for _ in 0..READS_EACH_TURN {
            let Ok((len, address)) = self.socket.recv_from(buffer) else {
                return; // Nothing more, or news of a client that is gone.
            };
            let Some(client) = self.client(address, seen) else {
                seen.refused += 1;
                continue;
            };
            take(&mut client.up, &buffer[..len], link, hole, &mut seen.up);
        }
    }

    fn client(&mut self, address: SocketAddr, seen: &mut Seen) -> Option<&mut Client> {
        if let Some(&at) = self.by_address.get(&address) {
            return self.clients.get_mut(at);
        }
        if self.clients.len() >= CLIENTS_MAX {
            return None;
        }
        let socket = towards(self.to).ok()?;
        let at = self.clients.len();
        let seed = derive(self.seed, at as u64);
        self.clients.push(Client {
            address,
            socket,
            up: Way::new(derive(seed, 0)),
            down: Way::new(derive(seed, 1)),
        });
        self.by_address.insert(address, at);
        seen.clients += 1;
        self.clients.last_mut()
    }

    fn tell(&self, new: &Seen) {
        let mut seen = lock(&self.shared.seen);
        seen.clients += new.clients;
        seen.refused += new.refused;
        seen.up.add(&new.up);
        seen.down.add(&new.down);
    }
}

impl Client {
    fn read_server(&mut self, buffer: &mut [u8], link: &Link, hole: bool, counts: &mut Counts) {
        for _ in 0..READS_EACH_TURN {
            match self.socket.recv(buffer) {
                Ok(len) => take(&mut self.down, &buffer[..len], link, hole, counts),
                Err(_) => return, // Nothing more, or news of a server that is gone.
            }
        }
    }

    fn send_due(&mut self, now: Instant, socket: &UdpSocket, seen: &mut Seen) {
        // What the kernel does not take is lost, as on any way.
        while let Some(datagram) = self.up.give(now) {
            seen.up.forwarded += u64::from(self.socket.send(&datagram).is_ok());
        }
        while let Some(datagram) = self.down.give(now) {
            seen.down.forwarded += u64::from(socket.send_to(&datagram, self.address).is_ok());
        }
    }
}

fn take(way: &mut Way, datagram: &[u8], link: &Link, hole: bool, counts: &mut Counts) {
    if hole {
        counts.received += 1;
        counts.bytes += datagram.len() as u64;
        counts.swallowed += 1;
        return;
    }
    way.take(Instant::now(), datagram, link, counts);
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let buffers = SockRef::from(&socket);
    buffers.set_recv_buffer_size(SOCKET_BUFFER)?;
    buffers.set_send_buffer_size(SOCKET_BUFFER)?;
    Ok(socket)
}

fn towards(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = open(SocketAddr::new(any, 0))?;
    socket.connect(server)?;
    Ok(socket)
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_go_there_and_back_and_a_rebinding_changes_their_sender() {
        let scene = Scene::open(Link::CLEAN);
        let first = scene.ask(b"one").expect("arrives");
        assert_eq!(scene.ask(b"two"), Some(first));
        scene.proxy.rebind();
        let deadline = Instant::now() + Duration::from_secs(10);
        // An answer to the old address is on its way when that closes, and is lost.
        while scene.ask(b"three").is_none_or(|sender| sender == first) {
            assert!(Instant::now() < deadline, "the address stays");
        }
        // What arrived may not be counted yet.
        let seen = loop {
            let seen = scene.proxy.seen();
            if seen.up.forwarded >= 3 && seen.down.forwarded >= 3 {
                break seen;
            }
            assert!(Instant::now() < deadline, "{seen:?}");
            std::thread::yield_now();
        };
        assert_eq!((seen.clients, seen.rebinds, seen.up.lost), (1, 1, 0));
    }

    #[test]
    fn a_black_hole_swallows_all_until_it_heals() {
        let scene = Scene::open(Link::CLEAN);
        scene.ask(b"before").expect("arrives");
        scene.proxy.black_hole(true);
        assert_eq!(scene.ask(b"within"), None);
        scene.proxy.black_hole(false);
        scene.ask(b"after").expect("arrives");
        assert_eq!(scene.proxy.seen().up.swallowed, 1);
    }

    #[test]
    fn a_delay_counts_in_each_direction() {
        let delay = Duration::from_millis(30);
        let scene = Scene::open(Link {
            delay,
            ..Link::CLEAN
        });
        let asked = Instant::now();
        scene.ask(b"slow").expect("arrives");
        let took = asked.elapsed();
        assert!(took >= 2 * delay && took < 20 * delay, "{took:?}");
    }

    struct Scene {
        server: UdpSocket,
        client: UdpSocket,
        proxy: Proxy,
    }

    impl Scene {
        fn open(link: Link) -> Scene {
            let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let bind = || {
                let socket = UdpSocket::bind(local).expect("a port");
                let patience = Duration::from_millis(500);
                socket.set_read_timeout(Some(patience)).expect("is set");
                socket
            };
            let (server, client) = (bind(), bind());
            let to = server.local_addr().expect("is bound");
            let proxy = Proxy::start(local, to, link, 1).expect("starts");
            client.connect(proxy.address()).expect("is connected");
            Scene {
                server,
                client,
                proxy,
            }
        }

        /// Sends a word, has the server return it, and says where the server saw it come from.
        fn ask(&self, word: &[u8]) -> Option<SocketAddr> {
            let mut buffer = [0; 64];
            self.client.send(word).expect("is sent");
            let (len, from) = self.server.recv_from(&mut buffer).ok()?;
            assert_eq!(&buffer[..len], word);
            self.server.send_to(word, from).expect("is sent");
            let len = self.client.recv(&mut buffer).ok()?;
            assert_eq!(&buffer[..len], word);
            Some(from)
        }
    }
}
