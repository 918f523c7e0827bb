//! What only Linux offers, and receiving and sending by hand, which costs less there than by
//! `quinn-udp`: no 32 message headers to clear for one batch, no buffer to zero before the kernel
//! writes into it.

#![expect(unsafe_code, reason = "options and messages that no crate wraps")]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use super::*;
use crate::io::message::{CONTROL_SIZE, Meta, NAME_SIZE, Outgoing};

impl Udp {
    /// Receives one batch into the spare capacity of an empty buffer of at least `BATCH_SIZE`
    /// bytes.
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
        // SAFETY: the header points at live memory of the lengths it names, for the time of the
        // call.
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
        // SAFETY: the header points into `message` and at `payload`, both both alive for the time
        // of the call.
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
    // SAFETY: the kernel reads `size_of::<T>()` bytes at `value`, which lives until the call
    // returns.
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
