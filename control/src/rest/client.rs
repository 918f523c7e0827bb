//! The command line's way to the API: `run/api.sock`, with a token made of the manage key that
//! stands beside it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;
use underpass_proto::sas::{self, SasRule};
use zeroize::Zeroizing;

use super::problem::Problem;
use crate::clock::Clock;
use crate::files::{Directory, Fault, keys};

/// The longest that an answer may take: the API gives one when its own time is over.
const ANSWER_WITHIN: Duration = super::ANSWER_WITHIN.saturating_add(Duration::from_secs(5));

/// The largest answer, bytes: a list of 20,000 hybrid connections.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// How long a token is good for, seconds: one request.
const TOKEN_SECS: u64 = 60;

/// The Host of requests on the socket.
const HOST: &str = "localhost";

/// A control process that runs.
pub struct Client {
    directory: Directory,
    socket: PathBuf,
    clock: Clock,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The API says no.
    #[error("{}", .0.detail)]
    Problem(Problem),
    /// There is no manage key to make a token of.
    #[error("no manage key")]
    Keys(Vec<Fault>),
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is no answer of this version.
    #[error("control gave no answer that is understood")]
    NoAnswer,
}

impl Client {
    /// The control process that runs on a directory; `None` where none does.
    ///
    /// # Errors
    /// One does, and this process may not talk to it.
    pub fn find(directory: &Directory, clock: Clock) -> io::Result<Option<Self>> {
        let socket = directory.run().join("api.sock");
        match std::os::unix::net::UnixStream::connect(&socket) {
            Ok(_) => Ok(Some(Self {
                directory: directory.clone(),
                socket,
                clock,
            })),
            Err(error) => match error.kind() {
                // A path that does not fit a socket's address has no socket.
                io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Asks for something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        read(&self.ask(Method::GET, path, &[], Vec::new())?)
    }

    /// Makes or changes something, under a condition.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        condition: (&str, &str),
    ) -> Result<T, ClientError> {
        read(&self.ask(Method::PUT, path, &[condition], json(body)?)?)
    }

    /// Has something done that tells something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        read(&self.ask(Method::POST, path, &[], Vec::new())?)
    }

    /// Has something done that tells nothing.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn order(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        self.ask(Method::POST, path, &[], json(body)?).map(drop)
    }

    /// Deletes something.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.ask(Method::DELETE, path, &[], Vec::new()).map(drop)
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let token = self.token()?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, HOST)
            .header(header::AUTHORIZATION, token.as_str())
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| ClientError::NoAnswer)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answered =
            runtime.block_on(async { timeout(ANSWER_WITHIN, self.exchange(request)).await });
        answered.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(io::Error::other)?;
        let body = Zeroizing::new(body.to_bytes().to_vec());
        if status.is_success() {
            return Ok(body);
        }
        Err(problem(status, &body))
    }

    fn token(&self) -> Result<Zeroizing<String>, ClientError> {
        let keys = keys::load_manage(&self.directory).map_err(ClientError::Keys)?;
        let expires = (self.clock)().saturating_add(TOKEN_SECS);
        Ok(sas::make(
            &format!("http://{HOST}/v1"),
            SasRule::Manage,
            &keys.primary,
            expires,
        ))
    }
}

fn problem(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<super::problem::Document>(body) {
        Ok(problem) if problem.status == status.as_u16() => ClientError::Problem(problem.into()),
        _ => ClientError::NoAnswer,
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|_| ClientError::NoAnswer)
}

fn json(body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(body).map_err(|_| ClientError::NoAnswer)
}
