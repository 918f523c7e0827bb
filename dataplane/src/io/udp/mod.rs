//! How UDP sockets are made, shared among workers, and used one datagram batch at a time.
//! Knows no backend and no QUIC, but for the one byte of a connection ID that names the worker.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_udp::UdpSocketState;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::{DATAGRAMS_SIZE, Datagrams, Transmit, socket::local_address};

#[cfg(target_os = "linux")]
use linux::{attach_program, interface_mtu};
#[cfg(not(target_os = "linux"))]
use portable::{attach_program, interface_mtu};

/// What is asked for in each direction, bytes: at 10 Gbit/s this holds 6 ms, more than a worker's
/// longest turn. Where the process has no right to force it, the kernel gives what
/// `net.core.rmem_max` and `wmem_max` allow.
const BUFFER_SIZE: u32 = 8 * 1024 * 1024;

/// How long a taken port is tried again: a killed ring frees its sockets late.
const BIND_PATIENCE: Duration = Duration::from_secs(1);

/// Pause between two such tries.
const BIND_PAUSE: Duration = Duration::from_millis(20);

/// The smallest datagram payload that QUIC demands of a path, bytes (RFC 9000, section 14).
const PATH_MTU_MIN: u16 = 1200;

/// Headers of IPv4 and UDP, bytes.
const HEADERS_V4: u32 = 20 + 8;

/// Headers of IPv6 and UDP, bytes.
const HEADERS_V6: u32 = 40 + 8;

/// A UDP socket of one worker, set up for QUIC: receive and send offload, the local address of each
/// datagram, ECN, no fragmentation, large buffers.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    #[cfg(not(target_os = "linux"))]
    state: UdpSocketState,
    address: SocketAddr,
    receive_buffer: usize,
    send_buffer: usize,
    max_segments: Cell<usize>,
}

impl Udp {
    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the kernel holds of datagrams that nobody received yet, bytes, as it granted it.
    pub fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// What the kernel holds of datagrams that did not leave yet, bytes, as it granted it.
    pub fn send_buffer(&self) -> usize {
        self.send_buffer
    }

    /// The most datagrams that one send may carry; falls to 1 when the network interface turns out
    /// not to segment.
    pub fn max_segments(&self) -> usize {
        self.max_segments.get()
    }

    /// Whether it speaks IPv6, and IPv4 by mapped addresses.
    #[cfg(target_os = "linux")]
    pub(in crate::io) fn is_dual(&self) -> bool {
        self.address.is_ipv6()
    }

    /// The socket itself.
    pub(in crate::io) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Draws the conclusion from a failed send: an interface that does not segment says EIO or
    /// EINVAL.
    pub(in crate::io) fn note_send_error(&self, error: i32) {
        if matches!(error, libc::EIO | libc::EINVAL) && self.max_segments.get() > 1 {
            tracing::info!(
                error,
                "segmentation offload refused, sending one datagram at a time"
            );
            self.max_segments.set(1);
        }
    }

    fn new(socket: Socket) -> io::Result<Self> {
        let address = local_address(&socket)?;
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        let (receive_buffer, send_buffer) = enlarge(&socket)?;
        Ok(Self {
            max_segments: Cell::new(state.max_gso_segments()),
            socket,
            #[cfg(not(target_os = "linux"))]
            state,
            address,
            receive_buffer,
            send_buffer,
        })
    }
}

/// A UDP socket of its own. With `reuse_port`, more may be bound to the same address.
///
/// # Errors
/// The address is in use (also by sockets that would share it) or not of this machine.
pub fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Udp> {
    if !reuse_port {
        return Udp::new(bound(address, false)?);
    }
    Udp::new(bound(reserve(address)?, true)?)
}

/// A UDP socket of its own for both families, on a port of the kernel's choice; for IPv4 alone
/// where this machine has no IPv6.
///
/// # Errors
/// No socket can be had.
pub fn bind_both() -> io::Result<Udp> {
    let both = || {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let socket = datagram_socket(any)?;
        socket.set_only_v6(false)?;
        socket.bind(&SockAddr::from(any))?;
        Udp::new(socket)
    };
    both().or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), false))
}

/// `count` sockets on one address, in the order of the workers that take them. A port that is still
/// in use is tried again for up to a second.
///
/// # Errors
/// As [`bind`].
pub fn bind_workers(address: SocketAddr, count: usize) -> io::Result<Vec<Udp>> {
    let give_up = Instant::now() + BIND_PATIENCE;
    loop {
        match try_bind_workers(address, count) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                std::thread::sleep(BIND_PAUSE);
            }
            done => return done,
        }
    }
}

fn try_bind_workers(address: SocketAddr, count: usize) -> io::Result<Vec<Udp>> {
    if count <= 1 {
        return Ok(vec![bind(address, false)?]);
    }
    let address = reserve(address)?;
    (0..count)
        .map(|_| Udp::new(bound(address, true)?))
        .collect()
}

/// Makes the kernel place each datagram of a shared port by the first byte of its destination
/// connection ID, modulo the number of workers: byte 6 of a long header, byte 1 of a short one (RFC
/// 9000, section 17). `workers` are all sockets of [`bind_workers`], in its order. A datagram too
/// short for that goes to the first worker.
///
/// # Errors
/// Where the kernel cannot; then datagrams come to any worker and must be handed over.
pub fn steer(workers: &[Udp]) -> io::Result<()> {
    match workers {
        [] | [_] => Ok(()),
        [first, ..] => attach_program(first, workers.len()),
    }
}

/// The largest UDP payload that the interface towards `peer` takes: what an upper bound for path
/// MTU discovery is. 1200 where nothing is known.
pub fn path_mtu(peer: SocketAddr) -> u16 {
    let largest = interface_mtu(peer).map_or(0, |mtu| {
        mtu.saturating_sub(if peer.ip().to_canonical().is_ipv4() {
            HEADERS_V4
        } else {
            HEADERS_V6
        })
    });
    const LARGEST: u32 = DATAGRAMS_SIZE as u32;
    u16::try_from(largest.min(LARGEST))
        .unwrap_or(u16::MAX)
        .max(PATH_MTU_MIN)
}

/// Binds once without SO_REUSEPORT and lets go, so that a port that somebody uses is noticed; tells
/// the address that was free.
fn reserve(address: SocketAddr) -> io::Result<SocketAddr> {
    local_address(&bound(address, false)?)
}

fn bound(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = datagram_socket(address)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

fn datagram_socket(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))
}

/// Asks for large buffers and tells what was granted.
fn enlarge(socket: &UdpSocket) -> io::Result<(usize, usize)> {
    #[cfg(target_os = "linux")]
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // Needs CAP_NET_ADMIN; without it the plain request below takes what the system's limit
        // allows.
        let _ = linux::set_option(socket, libc::SOL_SOCKET, option, BUFFER_SIZE);
    }
    let socket = SockRef::from(socket);
    let wanted = BUFFER_SIZE as usize;
    // Linux doubles the figure for its own bookkeeping and tells the doubled one.
    let overhead = if cfg!(target_os = "linux") { 2 } else { 1 };
    if socket.recv_buffer_size()? / overhead < wanted {
        let _ = socket.set_recv_buffer_size(wanted);
    }
    if socket.send_buffer_size()? / overhead < wanted {
        let _ = socket.set_send_buffer_size(wanted);
    }
    Ok((
        socket.recv_buffer_size()? / overhead,
        socket.send_buffer_size()? / overhead,
    ))
}
