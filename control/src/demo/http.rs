//! As much of an HTTP/1.1 client as the measurement needs: blocking, on one connection, with
//! nothing on the way that costs time. Not for other servers.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

/// Most bytes of an answer's head.
const HEAD_MAX: usize = 8 * 1024;

/// One connection, kept alive over requests.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
}

/// An answer's head, and what came in the same reads after it.
struct Head {
    content_length: usize,
    rest: Vec<u8>,
}

impl Connection {
    /// Connects; every read and write after that has the same deadline.
    pub(super) fn open(address: SocketAddr, deadline: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, deadline)?;
        stream.set_read_timeout(Some(deadline))?;
        stream.set_write_timeout(Some(deadline))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Fetches exactly as many bytes as `body` has. The time runs from the request to the last
    /// byte.
    pub(super) fn get(&mut self, path: &str, body: &mut [u8]) -> Result<Duration> {
        let start = Instant::now();
        let head = self.ask("GET", path, 0, std::iter::empty())?;
        ensure!(
            head.content_length == body.len(),
            "{path} has {} bytes instead of {}",
            head.content_length,
            body.len()
        );
        ensure!(
            head.rest.len() <= body.len(),
            "{path} has more bytes than it said"
        );
        let (front, back) = body.split_at_mut(head.rest.len());
        front.copy_from_slice(&head.rest);
        self.stream
            .read_exact(back)
            .with_context(|| format!("{path} ended early"))?;
        Ok(start.elapsed())
    }

    /// Sends `len` bytes in pieces. The time runs from the request to the head of the answer; the
    /// text is its body.
    pub(super) fn put(
        &mut self,
        path: &str,
        len: u64,
        pieces: impl Iterator<Item = Bytes>,
    ) -> Result<(Duration, String)> {
        let start = Instant::now();
        let head = self.ask("PUT", path, len, pieces)?;
        let elapsed = start.elapsed();
        ensure!(
            head.content_length <= HEAD_MAX && head.rest.len() <= head.content_length,
            "{path}: the answer is too long"
        );
        let mut body = head.rest;
        let have = body.len();
        body.resize(head.content_length, 0);
        self.stream.read_exact(&mut body[have..])?;
        Ok((elapsed, String::from_utf8(body)?))
    }

    /// Asks for bytes, reads the head of the answer and a part of its body, and leaves the rest on
    /// its way.
    pub(super) fn begin(&mut self, path: &str) -> Result<()> {
        self.ask("GET", path, 0, std::iter::empty()).map(drop)
    }

    /// Reads what comes until there is an end: nothing for a clean one, else the error.
    pub(super) fn end(&mut self, deadline: Instant) -> Result<Option<ErrorKind>> {
        let mut ignored = vec![0; 64 * 1024];
        loop {
            ensure!(Instant::now() < deadline, "neither data nor an end");
            match self.stream.read(&mut ignored) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Ok(Some(error.kind())),
            }
        }
    }

    fn ask(
        &mut self,
        method: &str,
        path: &str,
        len: u64,
        pieces: impl Iterator<Item = Bytes>,
    ) -> Result<Head> {
        let length = if method == "PUT" {
            format!("content-length: {len}\r\n")
        } else {
            String::new()
        };
        // The host is the demo's own and not the service's, so that nobody takes this for a direct
        // request.
        self.stream.write_all(
            format!("{method} {path} HTTP/1.1\r\nhost: demo\r\n{length}\r\n").as_bytes(),
        )?;
        for piece in pieces {
            self.stream.write_all(&piece)?;
        }
        self.read_head().with_context(|| format!("{method} {path}"))
    }

    fn read_head(&mut self) -> Result<Head> {
        let (mut held, mut chunk) = (Vec::new(), vec![0; HEAD_MAX]);
        let end = loop {
            let len = self.stream.read(&mut chunk)?;
            ensure!(len > 0, "the connection ended before an answer");
            held.extend_from_slice(&chunk[..len]);
            if let Some(at) = held.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(held.len() < HEAD_MAX, "the head of the answer is too long");
        };
        let rest = held.split_off(end);
        let head = String::from_utf8(held)?;
        if !head.starts_with("HTTP/1.1 200 ") {
            bail!(
                "the answer is {:?}",
                head.lines().next().unwrap_or_default()
            );
        }
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let (_, length) = length.context("the answer has no content-length")?;
        Ok(Head {
            content_length: length.trim().parse()?,
            rest,
        })
    }
}
