//! The demo's endpoint: a small real HTTP service in a process of its own. Knows nothing of relays;
//! to it, the agent is a client like any other.
//!
//! `GET /` is a page for people, `GET /bytes?n=…&from=…` streams the demo's pattern, `PUT` or
//! `POST /sink` takes bytes and answers their SHA-256.

use std::future::poll_fn;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use http_body::{Frame, SizeHint};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};

use super::pattern::Pattern;

/// What stands before the address on the first line of standard output.
pub(super) const LISTENING: &str = "listening on ";

/// Bytes that `/sink` keeps before it hashes them: a request of the measurement comes in whole
/// before any hashing, which is then outside its time.
pub(super) const SINK_WINDOW: usize = 32 << 20;
/// Requests to `/sink` at once, so that memory stays under 8 windows. Others wait.
const SINKS_MAX: usize = 8;
/// Bytes of `/bytes` where `n` is not given.
const BYTES_DEFAULT: u64 = 1 << 20;

const PAGE: &str = include_str!("page.html");

/// Serves on a free port of loopback until the process ends. Says the address on standard output.
///
/// # Errors
/// No port can be had.
pub(super) fn run() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        writeln!(io::stdout(), "{LISTENING}{}", listener.local_addr()?)?;
        serve(listener).await
    })
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    let address = listener.local_addr()?;
    let listener = listener.tap_io(|stream| {
        // Small answers must not wait; a socket that refuses this is on its way out anyway.
        let _ = stream.set_nodelay(true);
    });
    let service = Service {
        address,
        pattern: Pattern::new(),
        sinks: Arc::new(Semaphore::new(SINKS_MAX)),
    };
    axum::serve(listener, Router::new().fallback(answer).with_state(service)).await
}

#[derive(Clone)]
struct Service {
    address: SocketAddr,
    pattern: Pattern,
    sinks: Arc<Semaphore>,
}

async fn answer(State(service): State<Service>, request: Request) -> Response {
    match (request.method().clone(), request.uri().path()) {
        (Method::GET | Method::HEAD, "/") => service.page(request.headers()),
        (Method::GET | Method::HEAD, "/bytes") => service.bytes(request.uri()),
        (Method::PUT | Method::POST, "/sink") => service.sink(request.into_body()).await,
        (_, "/" | "/bytes" | "/sink") => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        _ => (
            StatusCode::NOT_FOUND,
            "here are /, /bytes?n=1000000 and, for PUT, /sink\n",
        )
            .into_response(),
    }
}

impl Service {
    /// What happened, for the person who opened the page. Nothing of the request is repeated in it.
    fn page(&self, headers: &HeaderMap) -> Response {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let direct = host == Some(&self.address.to_string());
        let way = if direct {
            "You opened the service itself, without the relay."
        } else {
            "You reached it through the relay."
        };
        let page = PAGE
            .replace("{way}", way)
            .replace("{address}", &self.address.to_string());
        ([(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
    }

    fn bytes(&self, uri: &Uri) -> Response {
        let (Some(len), Some(from)) = (number(uri, "n", BYTES_DEFAULT), number(uri, "from", 0))
        else {
            return (StatusCode::BAD_REQUEST, "n and from are numbers of bytes\n").into_response();
        };
        let pieces = Box::new(self.pattern.pieces(from, len));
        (
            [(CONTENT_TYPE, "application/octet-stream")],
            Body::new(Pieces { pieces, left: len }),
        )
            .into_response()
    }

    /// Answers as soon as the last byte is here; the body of the answer, the digest, follows when
    /// it is known.
    async fn sink(&self, mut body: Body) -> Response {
        let permit = Arc::clone(&self.sinks).acquire_owned().await;
        let mut hash = Sha256::new();
        loop {
            let (window, ended) = match read_window(&mut body).await {
                Ok(read) => read,
                Err(error) => {
                    return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
                }
            };
            let hashing = spawn_blocking(move || {
                window.iter().for_each(|piece| hash.update(piece));
                hash
            });
            if ended {
                return Body::new(DigestBody {
                    hashing: Some(hashing),
                    _permit: permit.ok(),
                })
                .into_response();
            }
            hash = match hashing.await {
                Ok(hash) => hash,
                Err(_) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            };
        }
    }
}

/// A number of the query, or `default` where it is not given; nothing where it is none.
fn number(uri: &Uri, name: &str, default: u64) -> Option<u64> {
    let mut pairs = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(key, _)| *key == name)
        .map_or(Some(default), |(_, value)| value.parse().ok())
}

/// Pieces of a body until a window is full or the body ends, and whether it ended.
async fn read_window(body: &mut Body) -> Result<(Vec<Bytes>, bool), axum::Error> {
    let (mut window, mut len) = (Vec::new(), 0);
    // Asked for the end first: a body of exactly a window has ended then.
    while !body.is_end_stream() {
        if len >= SINK_WINDOW {
            return Ok((window, false));
        }
        let Some(frame) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await else {
            break;
        };
        if let Ok(piece) = frame?.into_data() {
            len += piece.len();
            window.push(piece);
        }
    }
    Ok((window, true))
}

/// The pattern as a body of known length.
struct Pieces {
    pieces: Box<dyn Iterator<Item = Bytes> + Send>,
    left: u64,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let piece = self.pieces.next();
        self.left -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A digest that is still being computed: 64 hexadecimal digits and a line end.
struct DigestBody {
    hashing: Option<JoinHandle<Sha256>>,
    /// Until the window is hashed and gone.
    _permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl HttpBody for DigestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some(hashing) = self.hashing.as_mut() else {
            return Poll::Ready(None);
        };
        let hash = ready!(Pin::new(hashing).poll(context));
        self.hashing = None;
        let line = hash
            .map(|hash| digest_line(&hash.finalize().into()))
            .map_err(io::Error::other);
        Poll::Ready(Some(line.map(|line| Frame::data(line.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.hashing.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(if self.hashing.is_some() { 65 } else { 0 })
    }
}

/// How a digest is written in an answer.
pub(super) fn digest_line(digest: &[u8; 32]) -> String {
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits}\n")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    use super::{SINK_WINDOW, digest_line, serve};
    use crate::demo::http::Connection;
    use crate::demo::pattern::Pattern;

    #[test]
    fn bytes_are_the_asked_part_of_the_pattern() {
        let (pattern, mut connection) = (Pattern::new(), connect(start()));
        for (from, len) in [(0, 1_usize), (5, 3_000_000), (1 << 40, 100)] {
            let mut body = vec![0; len];
            connection
                .get(&format!("/bytes?n={len}&from={from}"), &mut body)
                .expect("an answer");
            let expected: Vec<u8> = pattern.pieces(from, len as u64).flatten().collect();
            assert_eq!(body, expected);
        }
    }

    #[test]
    fn sink_answers_the_sha256_of_what_it_got_however_long() {
        let (pattern, mut connection) = (Pattern::new(), connect(start()));
        for len in [0, 1, 1 << 20, SINK_WINDOW as u64, SINK_WINDOW as u64 + 1] {
            let (_, digest) = connection
                .put("/sink", len, pattern.pieces(0, len))
                .expect("an answer");
            assert_eq!(digest, digest_line(&pattern.digest(0, len)), "{len} bytes");
        }
    }

    #[test]
    fn the_page_says_which_way_it_was_reached_and_repeats_nothing() {
        let address = start();
        let direct = fetch(
            address,
            &format!("GET / HTTP/1.0\r\nhost: {address}\r\n\r\n"),
        );
        assert!(direct.contains("without the relay"), "{direct}");
        let relayed = fetch(address, "GET / HTTP/1.0\r\nhost: <i>forged</i>\r\n\r\n");
        assert!(
            relayed.contains("through the relay") && !relayed.contains("forged"),
            "{relayed}"
        );
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let address = start();
        for (request, code) in [
            ("GET /nothing", "404"),
            ("DELETE /sink", "405"),
            ("GET /bytes?n=-1", "400"),
        ] {
            let answer = fetch(address, &format!("{request} HTTP/1.0\r\nhost: x\r\n\r\n"));
            assert!(
                answer.starts_with(&format!("HTTP/1.0 {code} ")),
                "{request}: {answer}"
            );
        }
    }

    fn start() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a socket");
        std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                serve(tokio::net::TcpListener::from_std(listener).expect("a socket")).await
            })
        });
        address
    }

    fn connect(address: SocketAddr) -> Connection {
        Connection::open(address, Duration::from_secs(30)).expect("a connection")
    }

    fn fetch(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}
