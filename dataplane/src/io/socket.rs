//! How TCP sockets are made: listeners and outgoing connections, with the options that the outer
//! sockets of a flow need. Knows no backend; refuses to share a port with a stranger.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

/// Connections that the kernel holds until a worker accepts them. A burst of 4,000 opens must fit
/// while a worker is busy; the kernel clamps it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Silence before the first keep-alive probe. Below the idle limits of common firewalls and load
/// balancers (240 s and more), so it also keeps their state alive.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Time between probes that are not answered.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Probes without an answer until the peer is given up: a host that vanished is noticed after 60 +
/// 6 × 10 s.
const KEEPALIVE_PROBES: u32 = 6;

/// Bytes that the kernel takes for a socket beyond what is on its way to the peer. A reader that
/// stands still would have it keep 4 MiB and more (its buffers grow by themselves), and many of
/// them the share of memory that all TCP of the machine has: everybody's connections stand still
/// then. What is on its way is not counted, so a long path is filled all the same.
#[cfg(target_os = "linux")]
const UNSENT_MAX: u32 = 512 * 1024;

/// A listening socket on its way to the worker that accepts on it.
#[derive(Debug)]
pub enum Listener {
    /// The system's.
    System(TcpListener),
    /// One of a simulation, by its address.
    #[cfg(test)]
    Simulated(SocketAddr),
}

/// A connected socket on its way from one worker to another.
#[derive(Debug)]
pub enum Stream {
    /// The system's.
    System(TcpStream),
    /// One of a simulation, which knows it by this number.
    #[cfg(test)]
    Simulated(u64),
}

impl Listener {
    /// The system's socket.
    ///
    /// # Errors
    /// It is one of a simulation.
    pub fn system(self) -> io::Result<TcpListener> {
        match self {
            Self::System(listener) => Ok(listener),
            #[cfg(test)]
            Self::Simulated(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Stream {
    /// The system's socket.
    ///
    /// # Errors
    /// It is one of a simulation.
    pub fn system(self) -> io::Result<TcpStream> {
        match self {
            Self::System(stream) => Ok(stream),
            #[cfg(test)]
            Self::Simulated(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::System(listener)
    }
}

/// A listening TCP socket: non-blocking, not inherited by child processes, and with the options
/// that accepted sockets inherit from it on Linux (no delay, linger zero, keep-alive, urgent bytes
/// in line, a bound of what stands unsent). With `reuse_port`, several may listen on one address
/// and the kernel spreads connections.
///
/// # Errors
/// The address is in use (also by sockets that would share it) or not of this machine.
pub fn listener(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    if !reuse_port {
        return listen(address, false);
    }
    listen(reserve(address)?, true)
}

/// `count` listeners on one address, for as many workers; with port 0 all get the port that the
/// kernel gave the first.
///
/// # Errors
/// As [`listener`].
pub fn listeners(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    if count <= 1 {
        return Ok(vec![listen(address, false)?]);
    }
    let address = reserve(address)?;
    (0..count).map(|_| listen(address, true)).collect()
}

/// A socket for an outgoing connection: non-blocking, with the options of an accepted one that it
/// needs from its first byte; [`settle`] sets the others. Not connected yet.
pub(in crate::io) fn outgoing(to: SocketAddr) -> io::Result<Socket> {
    let socket = stream_socket(to)?;
    prepare(&socket)?;
    Ok(socket)
}

/// Sets what both outer sockets of a flow need from their first byte: no delay, linger zero (a
/// killed process ends with RST, never with a FIN after lost data), and urgent bytes in their place
/// among the others, from where the kernel would take them out.
fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_out_of_band_inline(true)
}

/// Sets what both need once the flow lives on: keep-alive, and a bound of what stands unsent.
pub(in crate::io) fn settle<S: std::os::fd::AsFd>(socket: &S) -> io::Result<()> {
    let socket = SockRef::from(socket);
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// Makes an accepted socket ready where it inherited nothing. On Linux it inherited everything.
pub(in crate::io) fn accepted(stream: &TcpStream) -> io::Result<()> {
    if cfg!(target_os = "linux") {
        return Ok(());
    }
    let socket = Socket::from(stream.try_clone()?);
    socket.set_nonblocking(true)?;
    prepare(&socket)?;
    settle(&socket)
}

/// Lifts linger, so that closing delivers what is queued.
pub(in crate::io) fn lift_linger<S: std::os::fd::AsFd>(socket: &S) {
    // A failure leaves linger at zero: the peer sees RST, an explicit error.
    let _ = SockRef::from(socket).set_linger(None);
}

/// Whether the peer's FIN has come, after `bytes_read` bytes were read to an end that looks like
/// one. The kernel tells an error once: when a send has taken it, a receive returns 0 after an RST,
/// too. It counts FIN as a byte received.
#[cfg(target_os = "linux")]
pub(in crate::io) fn fin_came<S: std::os::fd::AsFd>(socket: &S, bytes_read: u64) -> bool {
    use std::os::fd::AsRawFd;
    /// Offset of `tcpi_bytes_received` in the kernel's `tcp_info`, which the C library declares too
    /// short.
    const BYTES_RECEIVED_AT: usize = 128;
    let mut info = [0_u8; BYTES_RECEIVED_AT + size_of::<u64>()];
    let mut len = info.len() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    #[expect(unsafe_code, reason = "no crate reads this field")]
    // SAFETY: the kernel writes at most `len` bytes into `info`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let received = info[BYTES_RECEIVED_AT..].try_into().map(u64::from_ne_bytes);
    // In doubt it is no FIN: an explicit error is right after a clean end, and a clean end is never
    // right after an error.
    result == 0
        && len as usize == info.len()
        && received.is_ok_and(|received| received > bytes_read)
}

/// Whether this machine has an address to connect from, whatever ports are in use. IPv4 reports the
/// want of one as no route; asked after a failure only.
pub(crate) fn has_source_address(to: SocketAddr) -> bool {
    if to.is_ipv4() {
        return true;
    }
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    // Connecting a datagram socket chooses its source address and sends nothing.
    match UdpSocket::bind(any) {
        Ok(socket) => socket.connect(to).is_ok(),
        Err(_) => false,
    }
}

/// Binds once without SO_REUSEPORT and lets go, so that a port that somebody uses is noticed; tells
/// the address that was free.
fn reserve(address: SocketAddr) -> io::Result<SocketAddr> {
    let socket = stream_socket(address)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(address))?;
    local_address(&socket)
}

fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = stream_socket(address)?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    prepare(&socket)?;
    settle(&socket)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A stream, non-blocking from the start where the system knows that.
#[cfg(target_os = "linux")]
const STREAM: Type = Type::STREAM.nonblocking();
#[cfg(not(target_os = "linux"))]
const STREAM: Type = Type::STREAM;

/// A stream socket of the address's family: non-blocking and not inherited by child processes.
fn stream_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), STREAM, Some(Protocol::TCP))?;
    #[cfg(not(target_os = "linux"))]
    socket.set_nonblocking(true)?;
    Ok(socket)
}

pub(in crate::io) fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    let address = socket.local_addr()?;
    address
        .as_socket()
        .ok_or_else(|| io::Error::other("a socket without an IP address"))
}

/// Whether the kernel has sent nothing for so long, and for two round trips, on a socket that has
/// something to send.
pub(in crate::io) fn has_stalled(socket: &Socket, length: Duration) -> bool {
    let Some((sent_before, rtt)) = last_sent(socket) else {
        return true;
    };
    sent_before >= length.max(2 * rtt)
}

/// How long ago the kernel last sent data, and the smoothed round trip (tcp(7), TCP_INFO).
#[cfg(target_os = "linux")]
fn last_sent(socket: &Socket) -> Option<(Duration, Duration)> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    #[expect(
        unsafe_code,
        reason = "no safe interface of a dependency reads TCP_INFO"
    )]
    // SAFETY: The kernel writes at most `len` bytes, which is the size of `info`, and any bytes are
    // a valid `tcp_info`.
    let info = unsafe {
        let at = info.as_mut_ptr().cast();
        let fd = socket.as_raw_fd();
        if libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, at, &raw mut len) != 0 {
            return None;
        }
        info.assume_init()
    };
    let sent_before = Duration::from_millis(info.tcpi_last_data_sent.into());
    let rtt = Duration::from_micros(info.tcpi_rtt.into());
    Some((sent_before, rtt))
}

#[cfg(not(target_os = "linux"))]
fn last_sent(_: &Socket) -> Option<(Duration, Duration)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "127.0.0.1:0";

    #[test]
    fn accepted_sockets_inherit_the_options_of_the_listener() -> io::Result<()> {
        let listener = listener(LOCAL.parse().expect("an address"), false)?;
        let _client = TcpStream::connect(listener.local_addr()?)?;
        let accepted = accept(&listener)?;
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay()?);
        assert_eq!(socket.linger()?, Some(Duration::ZERO));
        assert!(socket.out_of_band_inline()?);
        assert!(socket.keepalive()?);
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_notsent_lowat()?, UNSENT_MAX);
        assert_eq!(socket.tcp_keepalive_time()?, KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval()?, KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries()?, KEEPALIVE_PROBES);
        Ok(())
    }

    #[test]
    fn a_port_in_use_is_noticed_even_if_it_would_be_shared() -> io::Result<()> {
        let first = listeners(LOCAL.parse().expect("an address"), 2)?;
        let address = first[0].local_addr()?;
        for reuse_port in [false, true] {
            let error = listener(address, reuse_port).expect_err("the port is in use");
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        }
        drop(first);
        listener(address, true).map(drop)
    }

    #[test]
    fn listeners_share_the_port_that_the_kernel_gave() -> io::Result<()> {
        let listeners = listeners(LOCAL.parse().expect("an address"), 3)?;
        let address = listeners[0].local_addr()?;
        assert_ne!(address.port(), 0);
        assert!(
            listeners
                .iter()
                .all(|listener| listener.local_addr().is_ok_and(|its| its == address))
        );
        Ok(())
    }

    fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
        listener.set_nonblocking(false)?;
        Ok(listener.accept()?.0)
    }
}
