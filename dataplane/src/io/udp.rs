//! How UDP sockets are made, shared among workers, and used one datagram batch at a time.
//! Knows no backend and no QUIC, but for the one byte of a connection ID that names the worker.

#![expect(unsafe_code, reason = "options and messages that no crate wraps")]

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn_udp::UdpSocketState;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::{DATAGRAMS_SIZE, Datagrams, Transmit, socket::local_address};

/// What is asked for in each direction, bytes: at 10 Gbit/s this holds 6 ms, more than a worker's longest turn. Where the process has no right to
/// force it, the kernel gives what `net.core.rmem_max` and `wmem_max` allow.
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

/// A UDP socket of one worker, set up for QUIC: receive and send offload, the local address of each datagram, ECN, no fragmentation, large buffers.
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

    /// The most datagrams that one send may carry; falls to 1 when the network interface turns out not to segment.
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

    /// Draws the conclusion from a failed send: an interface that does not segment says EIO or EINVAL.
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

/// `count` sockets on one address, in the order of the workers that take them. A port that is still in use is tried again for up to a second.
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

/// Makes the kernel place each datagram of a shared port by the first byte of its destination connection ID, modulo the number of workers:
/// byte 6 of a long header, byte 1 of a short one (RFC 9000, section 17). `workers` are all sockets of [`bind_workers`], in its order.
/// A datagram too short for that goes to the first worker.
///
/// # Errors
/// Where the kernel cannot; then datagrams come to any worker and must be handed over.
pub fn steer(workers: &[Udp]) -> io::Result<()> {
    match workers {
        [] | [_] => Ok(()),
        [first, ..] => attach_program(first, workers.len()),
    }
}

/// The largest UDP payload that the interface towards `peer` takes: what an upper bound for path MTU discovery is. 1200 where nothing is known.
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

/// Binds once without SO_REUSEPORT and lets go, so that a port that somebody uses is noticed; tells the address that was free.
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
        // Needs CAP_NET_ADMIN; without it the plain request below takes what the system's limit allows.
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

#[cfg(target_os = "linux")]
use linux::{attach_program, interface_mtu};

#[cfg(target_os = "linux")]
mod linux {
    //! What only Linux offers, and receiving and sending by hand, which costs less there than by `quinn-udp`: no 32 message headers
    //! to clear for one batch, no buffer to zero before the kernel writes into it.

    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, AsRawFd};

    use super::*;
    use crate::io::message::{CONTROL_SIZE, Meta, NAME_SIZE, Outgoing};

    impl Udp {
        /// Receives one batch into the spare capacity of an empty buffer (at least [`DATAGRAMS_SIZE`] bytes).
        pub(in crate::io) fn receive(
            &self,
            mut data: BytesMut,
        ) -> Result<Datagrams, (BytesMut, io::Error)> {
            let mut name = [MaybeUninit::<u8>::zeroed(); NAME_SIZE];
            let mut control = Aligned([0; CONTROL_SIZE]);
            let spare = data.spare_capacity_mut();
            let mut buffer = libc::iovec {
                iov_base: spare.as_mut_ptr().cast(),
                iov_len: spare.len(),
            };
            // SAFETY: a plain C structure for which all zeroes are valid.
            let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
            header.msg_name = name.as_mut_ptr().cast();
            header.msg_namelen = NAME_SIZE as libc::socklen_t;
            header.msg_iov = &raw mut buffer;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_SIZE as _;
            // SAFETY: the header points at live memory of the lengths it names, for the time of the call.
            let received = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, 0) };
            let Ok(len) = usize::try_from(received) else {
                return Err((data, io::Error::last_os_error()));
            };
            // SAFETY: the kernel wrote `len` bytes into the spare capacity.
            unsafe { data.set_len(len) };
            let name = name.map(|byte| {
                // SAFETY: zeroed above.
                unsafe { byte.assume_init() }
            });
            let control = &control.0[..(header.msg_controllen as usize).min(CONTROL_SIZE)];
            match Meta::decode(&name, control) {
                Some(meta) => Ok(meta.of(data)),
                None => Err((data, io::ErrorKind::InvalidData.into())),
            }
        }

        /// Sends a batch now.
        pub(in crate::io) fn send(&self, payload: &[u8], transmit: &Transmit) -> io::Result<()> {
            let mut message = Outgoing::new();
            message.address(transmit, payload.len(), self.is_dual());
            let header = message.point(payload.as_ptr(), payload.len());
            // SAFETY: the header points into `message` and at `payload`, both both alive for the time of the call.
            match unsafe { libc::sendmsg(self.socket.as_raw_fd(), header, libc::MSG_NOSIGNAL) } {
                0.. => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    #[repr(align(8))]
    struct Aligned([u8; CONTROL_SIZE]);

    /// `sk_reuseport` sees the UDP payload from offset 0.
    pub(super) fn attach_program(socket: &Udp, workers: usize) -> io::Result<()> {
        const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
        const JUMP_IF_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
        const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
        const MODULO: u16 = (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_A) as u16;
        const LONG_HEADER: u32 = 0x80;
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
        let mut program = [
            step(LOAD_BYTE, 0, 0, 0),
            step(JUMP_IF_SET, LONG_HEADER, 0, 2),
            step(LOAD_BYTE, 6, 0, 0),
            step(JUMP, 1, 0, 0),
            step(LOAD_BYTE, 1, 0, 0),
            step(MODULO, workers, 0, 0),
            step(RETURN, 0, 0, 0),
        ];
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        set_option(
            socket.socket(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            program,
        )
    }

    pub(super) fn interface_mtu(peer: SocketAddr) -> Option<u32> {
        let socket = datagram_socket(peer).ok()?;
        socket.connect(&SockAddr::from(peer)).ok()?;
        let v4 = option(&socket, libc::IPPROTO_IP, libc::IP_MTU);
        let mtu = if peer.is_ipv4() {
            v4
        } else {
            option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU).or(v4)
        };
        mtu.and_then(|mtu| u32::try_from(mtu).ok())
    }

    pub(super) fn set_option<S: AsFd, T>(
        socket: &S,
        level: libc::c_int,
        name: libc::c_int,
        value: T,
    ) -> io::Result<()> {
        // SAFETY: the kernel reads `size_of::<T>()` bytes at `value`, which lives until the call returns.
        let result = unsafe {
            libc::setsockopt(
                socket.as_fd().as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn option<S: AsFd>(socket: &S, level: libc::c_int, name: libc::c_int) -> Option<libc::c_int> {
        let mut value: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes at `value`, which is that large.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                level,
                name,
                (&raw mut value).cast(),
                &raw mut len,
            )
        };
        (result == 0).then_some(value)
    }
}

#[cfg(not(target_os = "linux"))]
use portable::{attach_program, interface_mtu};

#[cfg(not(target_os = "linux"))]
mod portable {
    //! Other systems: `quinn-udp` receives and sends, datagrams are not steered, and the interface's MTU is not asked for.

    use std::io::IoSliceMut;

    use quinn_udp::RecvMeta;

    use super::*;

    impl Udp {
        /// Receives one batch into an empty buffer (at least [`DATAGRAMS_SIZE`] bytes).
        pub(in crate::io) fn receive(
            &self,
            mut data: BytesMut,
        ) -> Result<Datagrams, (BytesMut, io::Error)> {
            data.resize(data.capacity(), 0);
            let mut meta = [RecvMeta::default()];
            let received = self.state.recv(
                (&self.socket).into(),
                &mut [IoSliceMut::new(&mut data)],
                &mut meta,
            );
            let meta = &meta[0];
            data.truncate(if received.is_ok() { meta.len } else { 0 });
            if let Err(error) = received {
                return Err((data, error));
            }
            Ok(Datagrams {
                remote: SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port()),
                local_ip: meta.dst_ip.map(|ip| ip.to_canonical()),
                ecn: meta
                    .ecn
                    .and_then(|ecn| quinn_proto::EcnCodepoint::from_bits(ecn as u8)),
                stride: meta.stride.max(1),
                data,
            })
        }

        /// Sends a batch now.
        pub(in crate::io) fn send(&self, payload: &[u8], transmit: &Transmit) -> io::Result<()> {
            let destination = match transmit.destination {
                SocketAddr::V4(v4) if self.address.is_ipv6() => {
                    SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
                }
                other => other,
            };
            let transmit = quinn_udp::Transmit {
                destination,
                ecn: transmit
                    .ecn
                    .and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
                contents: payload,
                segment_size: transmit.segment_size,
                src_ip: transmit.src_ip,
            };
            self.state.try_send((&self.socket).into(), &transmit)
        }
    }

    pub(super) fn attach_program(_: &Udp, _: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn interface_mtu(_: SocketAddr) -> Option<u32> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use quinn_proto::EcnCodepoint;

    use super::*;

    const LOCAL: &str = "127.0.0.1:0";
    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn buffers_are_large_and_read_back() -> io::Result<()> {
        let udp = bind(local(), false)?;
        assert!(udp.receive_buffer() >= 208 * 1024 / 2);
        assert!(udp.send_buffer() >= 208 * 1024 / 2);
        let granted = SockRef::from(udp.socket()).recv_buffer_size()?;
        assert!(granted >= udp.receive_buffer());
        Ok(())
    }

    #[test]
    fn workers_share_one_port_and_a_stranger_is_noticed() -> io::Result<()> {
        let workers = bind_workers(local(), 3)?;
        let address = workers[0].address();
        assert!(workers.iter().all(|udp| udp.address() == address));
        let began = Instant::now();
        let error = bind_workers(address, 3).expect_err("the port is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(began.elapsed() >= BIND_PATIENCE);
        let error = bind(address, true).expect_err("the port is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        Ok(())
    }

    #[test]
    fn a_batch_arrives_with_stride_ecn_and_local_address() -> io::Result<()> {
        let (from, to) = (bind(local(), false)?, bind(local(), false)?);
        let payload: Vec<u8> = (0..1452 * 9 + 7).map(|n| (n % 251) as u8).collect();
        let transmit = Transmit {
            destination: to.address(),
            ecn: Some(EcnCodepoint::Ect0),
            segment_size: Some(1452),
            src_ip: Some(Ipv4Addr::LOCALHOST.into()),
        };
        from.send(&payload, &transmit)?;
        let batch = receive(&to)?;
        assert_eq!(batch.stride, 1452);
        assert_eq!(batch.ecn, Some(EcnCodepoint::Ect0));
        assert_eq!(batch.local_ip, Some(IpAddr::from(Ipv4Addr::LOCALHOST)));
        assert_eq!(batch.remote, from.address());
        assert_eq!(batch.data, payload);
        Ok(())
    }

    #[test]
    fn a_dual_stack_socket_speaks_ipv4_unmapped() -> io::Result<()> {
        let Ok(dual) = bind("[::]:0".parse().expect("an address"), false) else {
            return Ok(()); // A machine without IPv6.
        };
        let four = bind(local(), false)?;
        let to_dual = SocketAddr::from((Ipv4Addr::LOCALHOST, dual.address().port()));
        let transmit = |destination, src_ip| Transmit {
            destination,
            ecn: Some(EcnCodepoint::Ce),
            segment_size: None,
            src_ip,
        };
        four.send(b"there", &transmit(to_dual, None))?;
        let there = receive(&dual)?;
        assert_eq!(there.remote, four.address());
        assert_eq!(there.local_ip, Some(IpAddr::from(Ipv4Addr::LOCALHOST)));
        assert_eq!(there.ecn, Some(EcnCodepoint::Ce));
        assert_eq!(there.stride, 5);
        dual.send(b"back", &transmit(there.remote, there.local_ip))?;
        let back = receive(&four)?;
        assert_eq!((back.remote, &back.data[..]), (to_dual, &b"back"[..]));
        assert_eq!(back.ecn, Some(EcnCodepoint::Ce));
        Ok(())
    }

    #[test]
    fn the_first_byte_of_a_connection_id_names_the_worker() -> io::Result<()> {
        const WORKERS: usize = 3;
        let workers = bind_workers(local(), WORKERS)?;
        steer(&workers)?;
        let from = bind(local(), false)?;
        let transmit = Transmit {
            destination: workers[0].address(),
            ecn: None,
            segment_size: None,
            src_ip: None,
        };
        for id in 0..200_u8 {
            let long = [0xc0, 0, 0, 0, 1, 8, id, 9, 9];
            let short = [0x40, id, 9, 9, 9, 9, 9, 9, 9];
            for packet in [long, short] {
                from.send(&packet, &transmit)?;
                let batch = receive(&workers[usize::from(id) % WORKERS])?;
                assert_eq!(batch.data, packet[..], "connection ID {id}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_path_mtu_is_the_interfaces_less_headers() {
        // Loopback: 65536 by default, over what IPv4 can carry.
        assert_eq!(
            path_mtu("127.0.0.1:4433".parse().expect("an address")),
            65_507
        );
        assert!(path_mtu("192.0.2.1:4433".parse().expect("an address")) >= PATH_MTU_MIN);
    }

    fn local() -> SocketAddr {
        LOCAL.parse().expect("an address")
    }

    /// Waits for one batch.
    fn receive(udp: &Udp) -> io::Result<Datagrams> {
        udp.socket().set_nonblocking(false)?;
        udp.socket().set_read_timeout(Some(PATIENCE))?;
        udp.receive(BytesMut::with_capacity(DATAGRAMS_SIZE))
            .map_err(|(_, error)| error)
    }
}
