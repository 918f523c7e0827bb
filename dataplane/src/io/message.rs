//! The messages of sendmsg and recvmsg for datagrams on Linux: addresses and control data, encoded
//! and decoded. Shared by both backends; does no system call.

#![expect(unsafe_code, reason = "the kernel's structures are C")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::{mem, ptr};

use bytes::BytesMut;
use quinn_proto::EcnCodepoint;
use socket2::SockAddr;

use super::{Datagrams, Transmit};

/// Space for the name of a peer, bytes: a `sockaddr_in6` (28) rounded up, so that control data
/// behind it is aligned.
pub(super) const NAME_SIZE: usize = 32;

/// Space for control data, bytes: a header (16) and its value for traffic class, packet information
/// (20) and segment size come to 24 + 40 + 24; a dual-stack socket may say the traffic class twice.
pub(super) const CONTROL_SIZE: usize = 128;

/// What recvmsg says about a batch beside its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    pub(super) remote: SocketAddr,
    pub(super) local_ip: Option<IpAddr>,
    pub(super) ecn: Option<EcnCodepoint>,
    /// Length of each datagram but the last; `None` where the kernel joined nothing.
    pub(super) stride: Option<usize>,
}

impl Meta {
    /// Reads the peer's name and the control data. `None` if the name is of no IP family.
    pub(super) fn decode(name: &[u8], control: &[u8]) -> Option<Self> {
        let mut meta = Self {
            remote: decode_name(name)?,
            local_ip: None,
            ecn: None,
            stride: None,
        };
        for (level, kind, value) in Items(control) {
            meta.note(level, kind, value);
        }
        Some(meta)
    }

    /// The batch that this describes.
    pub(super) fn of(self, data: BytesMut) -> Datagrams {
        let len = data.len().max(1);
        Datagrams {
            remote: self.remote,
            local_ip: self.local_ip,
            ecn: self.ecn,
            stride: self.stride.unwrap_or(len).min(len),
            data,
        }
    }

    fn note(&mut self, level: libc::c_int, kind: libc::c_int, value: &[u8]) {
        match (level, kind) {
            // One byte by the manual; whole words are seen too, little end first.
            (libc::IPPROTO_IP, libc::IP_TOS) => self.ecn = value.first().and_then(|tos| ecn(*tos)),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                self.ecn = word(value).and_then(|class| ecn(class.to_le_bytes()[0]));
            }
            // in_pktinfo: interface, local address that matched, destination of the header.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                self.local_ip = array::<4>(value, 8).map(|ip| Ipv4Addr::from(ip).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                self.local_ip =
                    array::<16>(value, 0).map(|ip| IpAddr::from(Ipv6Addr::from(ip)).to_canonical());
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                self.stride = word(value)
                    .and_then(|size| usize::try_from(size).ok())
                    .filter(|size| *size > 0);
            }
            _ => {}
        }
    }
}

/// An outgoing message: header, name, control data and the one buffer it points to. The header
/// points into this very value, so it must not move between [`point`](Self::point) and the end of
/// the send.
pub(super) struct Outgoing {
    header: libc::msghdr,
    buffer: libc::iovec,
    name: SockAddr,
    control: Control,
}

impl Outgoing {
    /// Nothing to send yet.
    pub(super) fn new() -> Self {
        Self {
            // SAFETY: msghdr and iovec are plain C structures for which all zeroes (null pointers,
            // zero lengths) are valid.
            header: unsafe { mem::zeroed() },
            // SAFETY: as above.
            buffer: unsafe { mem::zeroed() },
            name: SockAddr::from(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            control: Control::new(),
        }
    }

    /// Says where and how the next payload goes. `dual` on a socket of IPv6, which wants IPv4
    /// addresses mapped.
    pub(super) fn address(&mut self, transmit: &Transmit, len: usize, dual: bool) {
        let destination = match transmit.destination {
            SocketAddr::V4(v4) if dual => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
            other => other,
        };
        self.name = SockAddr::from(destination);
        self.control.clear();
        let v4 = destination.ip().to_canonical().is_ipv4();
        if let Some(ecn) = transmit.ecn {
            let (level, kind) = if v4 {
                (libc::IPPROTO_IP, libc::IP_TOS)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS)
            };
            self.control
                .push(level, kind, &libc::c_int::from(ecn as u8).to_ne_bytes());
        }
        if let Some(source) = transmit.src_ip {
            self.push_source(source.to_canonical());
        }
        // More than one datagram only: a segment as large as the payload is no segmentation.
        if let Some(size) = transmit.segment_size.filter(|size| *size < len) {
            let size = u16::try_from(size).unwrap_or(u16::MAX);
            self.control
                .push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        }
    }

    fn push_source(&mut self, source: IpAddr) {
        match source {
            IpAddr::V4(ip) => {
                // in_pktinfo: any interface, this source, no header destination.
                let mut value = [0; 12];
                value[4..8].copy_from_slice(&ip.octets());
                self.control
                    .push(libc::IPPROTO_IP, libc::IP_PKTINFO, &value);
            }
            IpAddr::V6(ip) => {
                // in6_pktinfo: this source, any interface.
                let mut value = [0; 20];
                value[..16].copy_from_slice(&ip.octets());
                self.control
                    .push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &value);
            }
        }
    }

    /// The header, pointing at this value and at the payload, for the kernel to read.
    pub(super) fn point(&mut self, payload: *const u8, len: usize) -> *const libc::msghdr {
        self.buffer.iov_base = payload.cast_mut().cast();
        self.buffer.iov_len = len;
        self.header.msg_name = self.name.as_ptr().cast_mut().cast();
        self.header.msg_namelen = self.name.len();
        self.header.msg_iov = &raw mut self.buffer;
        self.header.msg_iovlen = 1;
        self.header.msg_control = match self.control.len {
            0 => ptr::null_mut(),
            _ => self.control.bytes.as_mut_ptr().cast(),
        };
        self.header.msg_controllen = self.control.len as _;
        &raw const self.header
    }
}

/// Control data to send.
#[repr(C, align(8))]
struct Control {
    bytes: [u8; CONTROL_SIZE],
    len: usize,
}

impl Control {
    fn new() -> Self {
        Self {
            bytes: [0; CONTROL_SIZE],
            len: 0,
        }
    }

    fn clear(&mut self) {
        self.bytes = [0; CONTROL_SIZE];
        self.len = 0;
    }

    fn push(&mut self, level: libc::c_int, kind: libc::c_int, value: &[u8]) {
        let end = self.len + space(value.len());
        assert!(
            end <= CONTROL_SIZE,
            "CONTROL_SIZE holds every item there is"
        );
        // SAFETY: cmsghdr is a plain C structure for which all zeroes are valid.
        let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
        header.cmsg_len = (HEADER_SIZE + value.len()) as _;
        header.cmsg_level = level;
        header.cmsg_type = kind;
        let item = &mut self.bytes[self.len..end];
        // SAFETY: `item` has room for the header by the assertion above, and unaligned writes are
        // what this call is for.
        unsafe {
            item.as_mut_ptr()
                .cast::<libc::cmsghdr>()
                .write_unaligned(header);
        }
        item[HEADER_SIZE..HEADER_SIZE + value.len()].copy_from_slice(value);
        self.len = end;
    }
}

/// Size of a control item's header with its padding, bytes.
const HEADER_SIZE: usize = align(size_of::<libc::cmsghdr>());

const fn align(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

/// Bytes that an item with a value of `len` bytes takes.
const fn space(len: usize) -> usize {
    HEADER_SIZE + align(len)
}

/// Control items: level, kind, value.
struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = (libc::c_int, libc::c_int, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.len() < HEADER_SIZE {
            return None;
        }
        // SAFETY: the slice has at least the header's bytes, all of them initialised; cmsghdr is
        // valid for any bytes and is read unaligned.
        let header = unsafe { self.0.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        #[allow(
            clippy::unnecessary_cast,
            reason = "the C library decides whether the length is a size_t"
        )]
        let len = header.cmsg_len as usize;
        let value = self.0.get(HEADER_SIZE..len)?;
        self.0 = self.0.get(align(len)..).unwrap_or_default();
        Some((header.cmsg_level, header.cmsg_type, value))
    }
}

/// Reads a `sockaddr_in` or `sockaddr_in6`; IPv4-mapped addresses are unmapped, flow labels dropped
/// (an address must compare equal to itself).
fn decode_name(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(array(name, 0)?);
    let port = u16::from_be_bytes(array(name, 2)?);
    match libc::c_int::from(family) {
        libc::AF_INET => Some(SocketAddr::from((array::<4>(name, 4)?, port))),
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(array::<16>(name, 8)?);
            if let Some(v4) = ip.to_ipv4_mapped() {
                return Some(SocketAddr::from((v4, port)));
            }
            let scope = u32::from_ne_bytes(array(name, 24)?);
            Some(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    }
}

fn ecn(traffic_class: u8) -> Option<EcnCodepoint> {
    EcnCodepoint::from_bits(traffic_class & 0b11)
}

fn word(value: &[u8]) -> Option<libc::c_int> {
    array(value, 0).map(libc::c_int::from_ne_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
