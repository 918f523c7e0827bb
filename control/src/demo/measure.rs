//! `demo --once`: bytes each way with every SHA-256 checked, beside the same transfer direct; then
//! the agent is killed and a new flow is timed.
//!
//! A transfer is requests one after the other on one connection, so one flow. Its time runs from
//! each request to its last byte at the other end; hashing happens between requests and is not in
//! it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use crossbeam_channel::{RecvTimeoutError, unbounded};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::http::Connection;
use super::pattern::Pattern;
use super::scene::Scene;
use super::service::{SINK_WINDOW, digest_line};

/// Bytes each way: 1 GiB.
const BYTES: u64 = 1 << 30;
/// Bytes of one request: what the service takes before it hashes.
const REQUEST: usize = SINK_WINDOW;
/// For every single read and write of a transfer. Silence this long is a hung flow.
const IO_DEADLINE: Duration = Duration::from_secs(10);
/// Requests of one byte, one after the other, whose median is the time of a small one.
const SMALL_REQUESTS: usize = 301;
/// From the agent's end to a new flow, and to the end of the old one.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(20);
/// A new attempt at a flow starts this often, whether or not those before have ended.
const ATTEMPT_EVERY: Duration = Duration::from_millis(25);
/// One attempt is given up after this.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(3);

const _: () = assert!(BYTES.is_multiple_of(REQUEST as u64));

/// All figures. The names stay: they are the JSON of `--json`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// Nothing was wrong; written last, when all else was checked.
    pub(super) ok: bool,
    /// Bytes moved each way, direct and through the relay.
    pub(super) bytes_each_way: u64,
    /// From the endpoint to the application.
    pub(super) to_application: Direction,
    /// From the application to the endpoint.
    pub(super) to_endpoint: Direction,
    /// A request of one byte on a connection that is there already.
    pub(super) small_request: Request,
    /// From `kill -9` of the agent to the first new flow that worked, milliseconds.
    pub(super) new_flow_after_agent_kill_ms: f64,
    /// How the flow that the agent was killed under ended: `reset` is right, since bytes were
    /// missing.
    pub(super) flow_under_agent_kill: String,
    /// The relay's backend.
    pub(super) io: String,
    /// UDP payload that the path between relay and agent was found to carry, bytes.
    pub(super) mtu: u16,
    /// Cores of this machine, all processes on them.
    pub(super) cores: usize,
    /// Whether this is an optimised build; the figures of any other say little.
    pub(super) release_build: bool,
    /// The whole demo, seconds.
    pub(super) seconds: f64,
}

/// One direction.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Direction {
    /// Through the relay, Gbit/s (10⁹ bits).
    pub(super) relay_gbit_s: f64,
    /// Straight to the service, Gbit/s.
    pub(super) direct_gbit_s: f64,
    /// Requests whose SHA-256 was right, of either way.
    pub(super) sha256_right: u64,
}

/// How long a request takes, to the answer's last byte.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Request {
    /// Through the relay, the median, microseconds.
    pub(super) relay_us: u64,
    /// Straight to the service, the median, microseconds.
    pub(super) direct_us: u64,
}

/// What is being done, for an error that says where time ran out.
pub(super) type Step = Mutex<&'static str>;

/// Measures it all. Fails at the first thing that is wrong.
pub(super) fn run(scene: &Scene, step: &Step, started: Instant) -> Result<Figures> {
    let enter = |name| {
        *step.lock().unwrap_or_else(PoisonError::into_inner) = name;
    };
    enter("computing what is right");
    let bench = Bench::new();
    enter("moving bytes to the application");
    let to_application = bench
        .direction(scene, Bench::fetch)
        .context("from the endpoint to the application")?;
    enter("moving bytes to the endpoint");
    let to_endpoint = bench
        .direction(scene, Bench::send)
        .context("from the application to the endpoint")?;
    enter("timing small requests");
    let small_request = Request {
        relay_us: bench.small(scene.binding).context("through the relay")?,
        direct_us: bench.small(scene.service).context("direct")?,
    };
    enter("asking for the status");
    let status = scene.status()?;
    let report = status.relay.as_ref().context("the relay does not report")?;
    let session = report.sessions.first().context("no session is reported")?;
    enter("killing the agent");
    let (new_flow, old_flow) = kill_agent(scene, &bench.pattern)?;
    enter("checking the end");
    scene.check_starts(2)?;
    Ok(Figures {
        ok: true,
        bytes_each_way: BYTES,
        to_application,
        to_endpoint,
        small_request,
        new_flow_after_agent_kill_ms: new_flow.as_secs_f64() * 1e3,
        flow_under_agent_kill: old_flow,
        io: report.io.clone(),
        mtu: session.mtu,
        cores: thread::available_parallelism().map_or(1, usize::from),
        release_build: !cfg!(debug_assertions),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The pattern, and what is right for each request.
struct Bench {
    pattern: Pattern,
    digests: Vec<[u8; 32]>,
}

impl Bench {
    fn new() -> Self {
        let pattern = Pattern::new();
        let digests = (0..BYTES / REQUEST as u64)
            .map(|index| pattern.digest(index * REQUEST as u64, REQUEST as u64))
            .collect();
        Self { pattern, digests }
    }

    fn direction(
        &self,
        scene: &Scene,
        request: fn(&Self, &mut Connection, &mut [u8], usize) -> Result<Duration>,
    ) -> Result<Direction> {
        let direct_gbit_s = self.transfer(scene.service, request).context("direct")?;
        let relay_gbit_s = self
            .transfer(scene.binding, request)
            .context("through the relay")?;
        Ok(Direction {
            relay_gbit_s,
            direct_gbit_s,
            sha256_right: 2 * self.digests.len() as u64,
        })
    }

    /// One request to warm up (the path MTU is found in it), then all, timed. Gbit/s.
    fn transfer(
        &self,
        address: SocketAddr,
        request: fn(&Self, &mut Connection, &mut [u8], usize) -> Result<Duration>,
    ) -> Result<f64> {
        let mut connection = Connection::open(address, IO_DEADLINE)
            .with_context(|| format!("cannot connect to {address}"))?;
        let mut buffer = vec![0; REQUEST];
        request(self, &mut connection, &mut buffer, 0)?;
        let mut elapsed = Duration::ZERO;
        for index in 0..self.digests.len() {
            elapsed += request(self, &mut connection, &mut buffer, index)?;
        }
        Ok(BYTES as f64 * 8.0 / elapsed.as_secs_f64() / 1e9)
    }

    /// The median of requests for one byte.
    fn small(&self, address: SocketAddr) -> Result<u64> {
        let mut connection = Connection::open(address, IO_DEADLINE)?;
        let right = self.pattern.pieces(0, 1).next().context("a byte")?;
        let mut times = Vec::with_capacity(SMALL_REQUESTS);
        for _ in 0..SMALL_REQUESTS {
            let mut byte = [0];
            times.push(connection.get("/bytes?n=1", &mut byte)?);
            ensure!(byte == right[..], "a small request: the byte is wrong");
        }
        times.sort_unstable();
        Ok(u64::try_from(times[SMALL_REQUESTS / 2].as_micros())?)
    }

    /// Endpoint to application; the application hashes what came.
    fn fetch(
        &self,
        connection: &mut Connection,
        buffer: &mut [u8],
        index: usize,
    ) -> Result<Duration> {
        let path = format!("/bytes?n={REQUEST}&from={}", index * REQUEST);
        let elapsed = connection.get(&path, buffer)?;
        ensure!(
            Sha256::digest(&*buffer)[..] == self.digests[index],
            "request {index}: the SHA-256 of what came is wrong"
        );
        Ok(elapsed)
    }

    /// Application to endpoint; the endpoint hashes what came and says so.
    fn send(&self, connection: &mut Connection, _: &mut [u8], index: usize) -> Result<Duration> {
        let pieces = self
            .pattern
            .pieces(index as u64 * REQUEST as u64, REQUEST as u64);
        let (elapsed, digest) = connection.put("/sink", REQUEST as u64, pieces)?;
        ensure!(
            digest == digest_line(&self.digests[index]),
            "request {index}: the service has another SHA-256"
        );
        Ok(elapsed)
    }
}

/// Kills the agent under a live flow: the time until a new flow worked, and how the live one ended.
fn kill_agent(scene: &Scene, pattern: &Pattern) -> Result<(Duration, String)> {
    let mut live = Connection::open(scene.binding, Duration::from_secs(1))?;
    live.begin(&format!("/bytes?n={}", u64::MAX >> 1))
        .context("the flow to be killed")?;
    let killed_at = scene.agent.kill()?;
    let new_flow = first_new_flow(scene.binding, pattern)?.duration_since(killed_at);
    let end = live
        .end(killed_at + RECOVERY_DEADLINE)
        .context("the flow under the killed agent")?;
    match end {
        Some(ErrorKind::ConnectionReset) => Ok((new_flow, "reset".to_owned())),
        Some(other) => Ok((new_flow, other.to_string())),
        None => bail!("the flow under the killed agent ended as if it were whole"),
    }
}

/// When the first of many attempts worked. They overlap, so that one that hangs hides no other.
fn first_new_flow(binding: SocketAddr, pattern: &Pattern) -> Result<Instant> {
    let (worked, first) = unbounded();
    let expected: Vec<u8> = pattern.pieces(0, 64).flatten().collect();
    let deadline = Instant::now() + RECOVERY_DEADLINE;
    while Instant::now() < deadline {
        let (worked, expected) = (worked.clone(), expected.clone());
        thread::spawn(move || {
            if attempt(binding, &expected).is_ok() {
                // Nobody asks any more when another was first.
                let _ = worked.send(Instant::now());
            }
        });
        match first.recv_timeout(ATTEMPT_EVERY) {
            Ok(at) => return Ok(at),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    bail!(
        "no new flow worked within {RECOVERY_DEADLINE:?} after the agent was killed and started again"
    )
}

fn attempt(binding: SocketAddr, expected: &[u8]) -> Result<()> {
    let mut got = vec![0; expected.len()];
    Connection::open(binding, ATTEMPT_DEADLINE)?
        .get(&format!("/bytes?n={}", expected.len()), &mut got)?;
    ensure!(got == expected, "the bytes are wrong");
    Ok(())
}
