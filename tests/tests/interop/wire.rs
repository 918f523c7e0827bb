//! The wire, written from `dataplane/proto/WIRE.md` alone. Takes nothing from the crates of the
//! project, so that a mistake there is not made here too.

use std::net::SocketAddr;

use sha2::{Digest, Sha256};

/// Registers as listener.
pub(crate) const LISTEN: u8 = 1;
/// Registers as sender.
pub(crate) const SEND: u8 = 2;

pub(crate) const HELLO: u8 = 0x01;
pub(crate) const WELCOME: u8 = 0x02;
pub(crate) const REGISTER: u8 = 0x03;
pub(crate) const REGISTERED: u8 = 0x04;
pub(crate) const REFUSED: u8 = 0x05;
pub(crate) const DEREGISTER: u8 = 0x07;
pub(crate) const DRAINING: u8 = 0x08;
pub(crate) const PROBE: u8 = 0x09;
pub(crate) const PROBED: u8 = 0x0a;
pub(crate) const OPEN: u8 = 0x10;
pub(crate) const OPENED: u8 = 0x11;

/// Label of the TLS exporter.
pub(crate) const EXPORTER: &[u8] = b"EXPORTER-underpass/1 session";

/// A frame: type, length of the body, body.
pub(crate) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap();
    [&[kind], len.to_be_bytes().as_slice(), body].concat()
}

/// Who dials.
pub(crate) fn hello(version: u16, role: u8, agent_id: [u8; 16], instance: [u8; 16]) -> Vec<u8> {
    let version = version.to_be_bytes();
    frame(
        HELLO,
        &[version.as_slice(), &[role], &agent_id, &instance].concat(),
    )
}

/// What a Register asks for, and what its proofs cover.
#[derive(Clone, Debug)]
pub(crate) struct Register {
    pub(crate) name: String,
    pub(crate) rule: u8,
    pub(crate) nonce: [u8; 16],
}

const WEIGHT: [u8; 2] = 100_u16.to_be_bytes();
const PRIORITY: [u8; 1] = [0];

impl Register {
    /// A listener's.
    pub(crate) fn listen(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rule: LISTEN,
            nonce: rand::random(),
        }
    }

    /// The frame, proven with `key` on the session of `exporter`.
    pub(crate) fn frame(&self, key: &str, exporter: &[u8; 32]) -> Vec<u8> {
        let name = text(&self.name);
        let body = [
            name.as_slice(),
            &[self.rule],
            &self.key_id(key),
            &self.nonce,
            &WEIGHT,
            &PRIORITY,
            &self.proof(key, exporter),
        ];
        frame(REGISTER, &body.concat())
    }

    fn key_id(&self, key: &str) -> [u8; 8] {
        let rule = if self.rule == LISTEN {
            "listen"
        } else {
            "send"
        };
        let hash = Sha256::digest(format!("underpass/1 key-id {rule}\0{key}"));
        hash[..8].try_into().unwrap()
    }

    fn fields(&self, key: &str) -> [Vec<u8>; 6] {
        [
            self.name.clone().into_bytes(),
            vec![self.rule],
            self.key_id(key).to_vec(),
            self.nonce.to_vec(),
            WEIGHT.to_vec(),
            PRIORITY.to_vec(),
        ]
    }

    fn proof(&self, key: &str, exporter: &[u8; 32]) -> [u8; 32] {
        let label: &[u8] = match self.rule {
            LISTEN => b"underpass/1 listener",
            _ => b"underpass/1 sender",
        };
        let fields = self.fields(key);
        prove(
            key,
            std::iter::once(label)
                .chain(fields.iter().map(Vec::as_slice))
                .chain([exporter.as_slice()]),
        )
    }

    /// What the relay must answer for this endpoint.
    pub(crate) fn relay_proof(
        &self,
        key: &str,
        host: &str,
        port: u16,
        exporter: &[u8; 32],
    ) -> [u8; 32] {
        let (fields, proof, port) = (
            self.fields(key),
            self.proof(key, exporter),
            port.to_be_bytes(),
        );
        let label: &[u8] = b"underpass/1 relay";
        let rest = [proof.as_slice(), host.as_bytes(), &port, exporter];
        prove(
            key,
            std::iter::once(label)
                .chain(fields.iter().map(Vec::as_slice))
                .chain(rest),
        )
    }
}

fn prove<'a>(key: &str, fields: impl Iterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut message = Vec::new();
    for field in fields {
        message.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
        message.extend(field);
    }
    hmac_sha256(key.as_bytes(), &message)
}

/// RFC 2104; the keys of the tests are no longer than a block.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    assert!(key.len() <= BLOCK);
    let padded = |pad: u8| -> Vec<u8> {
        let mut block = key.to_vec();
        block.resize(BLOCK, 0);
        block.iter().map(|byte| byte ^ pad).collect()
    };
    let inner = Sha256::digest([padded(0x36).as_slice(), message].concat());
    Sha256::digest([padded(0x5c).as_slice(), &inner].concat()).into()
}

/// A short text: its length, then its bytes.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

/// An address: its version, its bytes, its port.
pub(crate) fn address(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => [&[4], v4.ip().octets().as_slice(), &port].concat(),
        SocketAddr::V6(v6) => [&[6], v6.ip().octets().as_slice(), &port].concat(),
    }
}

/// Takes a body apart, field by field.
#[derive(Debug)]
pub(crate) struct Body(Vec<u8>);

impl Body {
    pub(crate) fn new(body: Vec<u8>) -> Self {
        Self(body)
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        assert!(self.0.len() >= N, "{N} bytes wanted, {} left", self.0.len());
        self.0.drain(..N).collect::<Vec<_>>().try_into().unwrap()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes())
    }

    pub(crate) fn text(&mut self) -> String {
        let len = usize::from(self.u8());
        String::from_utf8(self.0.drain(..len).collect()).unwrap()
    }

    pub(crate) fn address(&mut self) -> SocketAddr {
        match self.u8() {
            4 => (self.bytes::<4>(), self.u16()).into(),
            6 => (self.bytes::<16>(), self.u16()).into(),
            version => panic!("an address of version {version}"),
        }
    }

    /// Nothing may stand behind the last field.
    pub(crate) fn end(self) {
        assert_eq!(self.0, Vec::<u8>::new());
    }
}
