//! The bytes of frames. Refuses what is not exactly a frame: unknown codes, names that are none,
//! bytes left over.
//!
//! Integers are big-endian. A text is one byte of length and that many bytes; a list is one byte of
//! count and that many items.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use super::{
    AgentId, Codes, Deregister, Elsewhere, Ended, EndedCode, FRAME_MAX, FlowId, Frame, Hello,
    Instance, KeepAlive, Open, Opened, Probe, Probed, RELAYS_MAX, Refused, RefusedCode, Register,
    Registered, Role, VERSION, Welcome,
};
use crate::code::FlowCode;
use crate::endpoint::{Endpoint, Host};
use crate::key::{KeyId, Rule};
use crate::proof::{Nonce, Proof};

/// Types of frames. Control frames are below 0x10, those of flow streams from 0x10.
mod kind {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const WELCOME: u8 = 0x02;
    pub(super) const REGISTER: u8 = 0x03;
    pub(super) const REGISTERED: u8 = 0x04;
    pub(super) const REFUSED: u8 = 0x05;
    pub(super) const ENDED: u8 = 0x06;
    pub(super) const DEREGISTER: u8 = 0x07;
    pub(super) const DRAINING: u8 = 0x08;
    pub(super) const PROBE: u8 = 0x09;
    pub(super) const PROBED: u8 = 0x0a;
    pub(super) const KEEP_ALIVE: u8 = 0x0b;
    pub(super) const CODES: u8 = 0x0c;
    pub(super) const CHECK: u8 = 0x0d;
    pub(super) const OPEN: u8 = 0x10;
    pub(super) const OPENED: u8 = 0x11;
    pub(super) const ELSEWHERE: u8 = 0x12;
}

/// Why bytes are no frame. Answered by closing with the code for a broken protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The header announces more than [`FRAME_MAX`]. Noticed before anything is kept.
    #[error("frame of {len} bytes is over the limit of {FRAME_MAX}")]
    TooLong {
        /// What the header announces.
        len: usize,
    },
    /// A type that this version does not know. On control streams such frames are skipped.
    #[error("frame type {0:#04x} is unknown")]
    UnknownType(u8),
    /// The stream ended within a frame, or the body within a field.
    #[error("frame ends too early")]
    Truncated,
    /// The body goes on after its last field.
    #[error("{frame} frame has bytes left over")]
    LeftOver {
        /// Name of the frame.
        frame: &'static str,
    },
    /// A field has a value that it cannot have.
    #[error("{frame} frame: bad {field}")]
    BadField {
        /// Name of the frame.
        frame: &'static str,
        /// Name of the field.
        field: &'static str,
    },
}

/// Reads the fields of one kind of frame.
type ReadBody = fn(&mut Fields<'_>) -> Result<Frame, FrameError>;

impl Frame {
    /// Appends the frame, header and body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([self.kind(), 0, 0]);
        self.encode_body(out);
        let len = out.len() - start - super::HEADER_LEN;
        debug_assert!(len <= FRAME_MAX, "every field is bounded by its type");
        let len = u16::try_from(len).unwrap_or(u16::MAX);
        out[start + 1..start + super::HEADER_LEN].copy_from_slice(&len.to_be_bytes());
    }

    /// The frame as bytes of its own.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        self.encode(&mut out);
        out
    }

    /// Reads the body of a frame of type `kind`.
    ///
    /// # Errors
    /// See [`FrameError`]; never [`FrameError::TooLong`], which the header tells.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, FrameError> {
        let (name, read): (&'static str, ReadBody) = match kind {
            kind::HELLO => ("Hello", hello),
            kind::WELCOME => ("Welcome", welcome),
            kind::REGISTER => ("Register", register),
            kind::REGISTERED => ("Registered", registered),
            kind::REFUSED => ("Refused", refused),
            kind::ENDED => ("Ended", ended),
            kind::DEREGISTER => ("Deregister", deregister),
            kind::DRAINING => ("Draining", |_| Ok(Self::Draining)),
            kind::PROBE => ("Probe", probe),
            kind::PROBED => ("Probed", probed),
            kind::KEEP_ALIVE => ("KeepAlive", keep_alive),
            kind::CODES => ("Codes", codes),
            kind::CHECK => ("Check", |_| Ok(Self::Check)),
            kind::OPEN => ("Open", open),
            kind::OPENED => ("Opened", opened),
            kind::ELSEWHERE => ("Elsewhere", elsewhere),
            unknown => return Err(FrameError::UnknownType(unknown)),
        };
        let mut fields = Fields {
            frame: name,
            left: body,
        };
        let frame = read(&mut fields)?;
        match &frame {
            // A later version may say more in its Hello; it must still be understood far enough to
            // be told ours.
            Self::Hello(hello) if hello.version != VERSION => Ok(frame),
            _ if fields.left.is_empty() => Ok(frame),
            _ => Err(FrameError::LeftOver { frame: name }),
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => kind::HELLO,
            Self::Welcome(_) => kind::WELCOME,
            Self::Register(_) => kind::REGISTER,
            Self::Registered(_) => kind::REGISTERED,
            Self::Refused(_) => kind::REFUSED,
            Self::Ended(_) => kind::ENDED,
            Self::Deregister(_) => kind::DEREGISTER,
            Self::Draining => kind::DRAINING,
            Self::Probe(_) => kind::PROBE,
            Self::Probed(_) => kind::PROBED,
            Self::KeepAlive(_) => kind::KEEP_ALIVE,
            Self::Codes(_) => kind::CODES,
            Self::Check => kind::CHECK,
            Self::Open(_) => kind::OPEN,
            Self::Opened(_) => kind::OPENED,
            Self::Elsewhere(_) => kind::ELSEWHERE,
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => {
                out.extend(hello.version.to_be_bytes());
                out.push(role_byte(hello.role));
                out.extend(hello.agent_id.0);
                out.extend(hello.instance.0);
            }
            Self::Welcome(welcome) => put_welcome(welcome, out),
            Self::Register(register) => {
                put_text(register.hyco.as_str(), out);
                out.push(rule_byte(register.rule));
                out.extend(register.key_id.0);
                out.extend(register.nonce.0);
                out.extend(register.weight.to_be_bytes());
                out.push(register.priority);
                out.extend(register.proof.0);
            }
            Self::Registered(registered) => {
                put_text(registered.hyco.as_str(), out);
                put_endpoint(&registered.endpoint, out);
                out.extend(registered.relay_proof.0);
            }
            Self::Refused(refused) => {
                put_text(refused.hyco.as_str(), out);
                out.push(refused.code as u8);
            }
            Self::Ended(ended) => {
                put_text(ended.hyco.as_str(), out);
                out.push(ended.code as u8);
            }
            Self::Deregister(deregister) => put_text(deregister.hyco.as_str(), out),
            Self::Draining | Self::Check => {}
            Self::Probe(probe) => {
                put_text(probe.hyco.as_str(), out);
                out.extend(probe.id.to_be_bytes());
                put_endpoint(&probe.endpoint, out);
            }
            Self::Probed(probed) => put_probed(probed, out),
            Self::KeepAlive(keep_alive) => out.extend(keep_alive.every_ms.to_be_bytes()),
            Self::Codes(codes) => out.push(codes.flow_max),
            Self::Open(open) => {
                put_text(open.hyco.as_str(), out);
                out.extend(open.flow.0.to_be_bytes());
                put_endpoint(&open.endpoint, out);
                put_address(open.application, out);
            }
            Self::Opened(opened) => put_address(opened.endpoint, out),
            Self::Elsewhere(elsewhere) => out.push(elsewhere.worker),
        }
    }
}

/// Byte of a role on the wire.
fn role_byte(role: Role) -> u8 {
    match role {
        Role::Agent => 1,
        Role::Sender => 2,
    }
}

/// Byte of a rule, on the wire and in proofs.
pub(crate) fn rule_byte(rule: Rule) -> u8 {
    match rule {
        Rule::Listen => 1,
        Rule::Send => 2,
    }
}

fn put_welcome(welcome: &Welcome, out: &mut Vec<u8>) {
    out.extend([welcome.workers, welcome.worker]);
    out.extend(welcome.relay_time_unix_ms.to_be_bytes());
    let relays = &welcome.relays[..welcome.relays.len().min(RELAYS_MAX)];
    out.extend(u8::try_from(relays.len()));
    for relay in relays {
        put_endpoint(relay, out);
    }
}

fn put_probed(probed: &Probed, out: &mut Vec<u8>) {
    put_text(probed.hyco.as_str(), out);
    out.extend(probed.id.to_be_bytes());
    // Codes of a failed dial are below 256; 0 is none.
    out.push(
        probed
            .failed
            .map_or(0, |code| u8::try_from(code.to_u32()).unwrap_or(u8::MAX)),
    );
    out.extend(probed.resolve_us.to_be_bytes());
    out.extend(probed.dial_us.to_be_bytes());
    match probed.dialled {
        Some(address) => put_address(address, out),
        None => out.push(0),
    }
}

/// Every text here is bounded by its type: names by 50 bytes, hosts by 254.
fn put_text(text: &str, out: &mut Vec<u8>) {
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    out.push(len);
    out.extend(&text.as_bytes()[..usize::from(len)]);
}

fn put_endpoint(endpoint: &Endpoint, out: &mut Vec<u8>) {
    match &endpoint.host {
        Host::Name(name) => put_text(name, out),
        literal => put_text(&literal.to_string(), out),
    }
    out.extend(endpoint.port.get().to_be_bytes());
}

fn put_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(address.port().to_be_bytes());
}

fn hello(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    Ok(Frame::Hello(Hello {
        version: fields.u16()?,
        role: match fields.u8()? {
            1 => Role::Agent,
            2 => Role::Sender,
            _ => return fields.bad("role"),
        },
        agent_id: AgentId(fields.array()?),
        instance: Instance(fields.array()?),
    }))
}

fn welcome(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    let workers = fields.u8()?;
    let worker = fields.u8()?;
    if worker >= workers {
        return fields.bad("worker");
    }
    let relay_time_unix_ms = fields.u64()?;
    let count = usize::from(fields.u8()?);
    if count > RELAYS_MAX {
        return fields.bad("relays");
    }
    let relays = (0..count)
        .map(|_| fields.endpoint("relays"))
        .collect::<Result<_, _>>()?;
    Ok(Frame::Welcome(Welcome {
        workers,
        worker,
        relay_time_unix_ms,
        relays,
    }))
}

fn keep_alive(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    match fields.u32()? {
        0 => fields.bad("every_ms"),
        every_ms => Ok(Frame::KeepAlive(KeepAlive { every_ms })),
    }
}

fn register(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    Ok(Frame::Register(Register {
        hyco: fields.parsed("hyco")?,
        rule: match fields.u8()? {
            1 => Rule::Listen,
            2 => Rule::Send,
            _ => return fields.bad("rule"),
        },
        key_id: KeyId(fields.array()?),
        nonce: Nonce(fields.array()?),
        weight: fields.u16()?,
        priority: fields.u8()?,
        proof: Proof(fields.array()?),
    }))
}

fn registered(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    Ok(Frame::Registered(Registered {
        hyco: fields.parsed("hyco")?,
        endpoint: fields.endpoint("endpoint")?,
        relay_proof: Proof(fields.array()?),
    }))
}

fn refused(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    let hyco = fields.parsed("hyco")?;
    let Some(code) = RefusedCode::from_u8(fields.u8()?) else {
        return fields.bad("code");
    };
    Ok(Frame::Refused(Refused { hyco, code }))
}

fn ended(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    let hyco = fields.parsed("hyco")?;
    let Some(code) = EndedCode::from_u8(fields.u8()?) else {
        return fields.bad("code");
    };
    Ok(Frame::Ended(Ended { hyco, code }))
}

fn deregister(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    Ok(Frame::Deregister(Deregister {
        hyco: fields.parsed("hyco")?,
    }))
}

fn probe(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    Ok(Frame::Probe(Probe {
        hyco: fields.parsed("hyco")?,
        id: fields.u64()?,
        endpoint: fields.endpoint("endpoint")?,
    }))
}

fn probed(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    let hyco = fields.parsed("hyco")?;
    let id = fields.u64()?;
    let failed = match fields.u8()? {
        0 => None,
        // A code of a later version says only that it failed.
        code => Some(FlowCode::from_u64(code.into()).unwrap_or(FlowCode::Aborted)),
    };
    Ok(Frame::Probed(Probed {
        hyco,
        id,
        failed,
        resolve_us: fields.u32()?,
        dial_us: fields.u32()?,
        dialled: fields.maybe_address("dialled")?,
    }))
}

fn codes(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    Ok(Frame::Codes(Codes {
        flow_max: fields.u8()?,
    }))
}

fn open(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    Ok(Frame::Open(Open {
        hyco: fields.parsed("hyco")?,
        flow: FlowId(fields.u64()?),
        endpoint: fields.endpoint("endpoint")?,
        application: fields.address("application")?,
    }))
}

fn opened(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    Ok(Frame::Opened(Opened {
        endpoint: fields.address("endpoint")?,
    }))
}

fn elsewhere(fields: &mut Fields<'_>) -> Result<Frame, FrameError> {
    Ok(Frame::Elsewhere(Elsewhere {
        worker: fields.u8()?,
    }))
}

/// Takes fields off the front of a body.
struct Fields<'a> {
    frame: &'static str,
    left: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FrameError> {
        let (taken, left) = self
            .left
            .split_at_checked(len)
            .ok_or(FrameError::Truncated)?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (taken, left) = self.left.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.left = left;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, FrameError> {
        let len = usize::from(self.u8()?);
        let taken = self.take(len)?;
        std::str::from_utf8(taken).or_else(|_| self.bad(field))
    }

    fn parsed<T: FromStr>(&mut self, field: &'static str) -> Result<T, FrameError> {
        self.text(field)?.parse().or_else(|_| self.bad(field))
    }

    fn endpoint(&mut self, field: &'static str) -> Result<Endpoint, FrameError> {
        let host = self.parsed(field)?;
        match NonZeroU16::new(self.u16()?) {
            Some(port) => Ok(Endpoint { host, port }),
            None => self.bad(field),
        }
    }

    fn address(&mut self, field: &'static str) -> Result<SocketAddr, FrameError> {
        match self.maybe_address(field)? {
            Some(address) => Ok(address),
            None => self.bad(field),
        }
    }

    /// An address, or the byte 0 for none.
    fn maybe_address(&mut self, field: &'static str) -> Result<Option<SocketAddr>, FrameError> {
        let ip = match self.u8()? {
            0 => return Ok(None),
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return self.bad(field),
        };
        Ok(Some(SocketAddr::new(ip, self.u16()?)))
    }

    fn bad<T>(&self, field: &'static str) -> Result<T, FrameError> {
        Err(FrameError::BadField {
            frame: self.frame,
            field,
        })
    }
}
