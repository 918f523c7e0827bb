//! Flows that mostly rest: what each of them takes of memory, and whether all are heard when all
//! speak at once.
//!
//! Client and server are parts of this program; what is counted is the tunnel's alone.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;
use underpass_tests::deadline::{MOMENT, wait_for};

use super::{Done, Running, Server};
use crate::flows;
use crate::peers::measure::Measure;
use crate::peers::usage::anonymous_memory;
use crate::peers::ways::Open;

/// Flows at rest whose memory is counted.
pub(super) const RESTING: usize = 2_000;

/// Flows that all speak at once.
pub(super) const SPEAKING: usize = 8_000;

/// Flows before the first look at memory, so that what is made once counts for nobody.
const WARMING: usize = 64;

/// Connections that the kernel may hold before they are accepted.
const BACKLOG: u32 = 4096;

/// Files of this program beside those of the flows.
const OTHER_FILES: u64 = 256;

/// How long memory must not change to count as at rest, and the change that is none.
const AT_REST: Duration = Duration::from_millis(750);
const NO_CHANGE: u64 = 64 << 10;

/// Takes bytes and gives them back.
#[derive(Debug)]
pub(super) struct Echo {
    _runtime: Runtime,
    accepted: Arc<AtomicUsize>,
}

/// As many of `wanted` as the limit of files permits: client and server are both here.
pub(super) fn permitted(wanted: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let flows = limit.map_or(u64::MAX, |limit| limit.saturating_sub(OTHER_FILES) / 2);
    wanted.min(usize::try_from(flows).unwrap_or(usize::MAX))
}

pub(super) fn serve() -> Result<Server> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let accepted = Arc::<AtomicUsize>::default();
    let listener = runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        socket.listen(BACKLOG)
    })?;
    let address = listener.local_addr()?;
    runtime.spawn(accept(listener, Arc::clone(&accepted)));
    Ok(Server {
        address,
        running: Running::Echo(Echo {
            _runtime: runtime,
            accepted,
        }),
    })
}

async fn accept(listener: TcpListener, accepted: Arc<AtomicUsize>) {
    // What fails here shows as flows that were lost.
    while let Ok((mut stream, _)) = listener.accept().await {
        accepted.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let mut byte = [0];
            while let Ok(1..) = stream.read(&mut byte).await {
                if stream.write_all(&byte).await.is_err() {
                    break;
                }
            }
        });
    }
}

/// What each of `flows` flows takes in relay and agent, once it has spoken and rests.
pub(super) fn memory(open: &Open, flows: usize) -> Result<Done> {
    let [relay, agent] = open.sides().context("only a tunnel has memory")?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let warm = runtime.block_on(flows::open(open.address, WARMING, true))?;
    let look = || Ok::<_, anyhow::Error>([anonymous_memory(relay)?, anonymous_memory(agent)?]);
    let before = at_rest(look)?;
    let all = runtime.block_on(flows::open(open.address, flows, true))?;
    ensure!(
        all.len() == flows,
        "{} of {flows} flows were lost",
        flows - all.len()
    );
    let after = at_rest(look)?;
    drop((warm, all));
    let each = |side: usize| after[side].saturating_sub(before[side]) as f64 / flows as f64;
    let figures = [
        (Measure::RelayMemory, each(0)),
        (Measure::AgentMemory, each(1)),
        (Measure::Flows, flows as f64),
    ];
    Ok(Done {
        figures: figures.into(),
        work: flows as f64,
    })
}

/// Waits until memory changes no more; what changes for ever is taken as it is.
fn at_rest(look: impl Fn() -> Result<[u64; 2]>) -> Result<[u64; 2]> {
    let mut last = look()?;
    let mut since = Instant::now();
    let settled = wait_for("memory at rest", MOMENT, || {
        let now = look().ok()?;
        if (0..2).any(|side| now[side].abs_diff(last[side]) > NO_CHANGE) {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() >= AT_REST).then_some(now)
    });
    Ok(settled.unwrap_or(last))
}

/// Opens flows, lets all of them speak at once, and tells how many were not answered and how long
/// it took until the others were.
pub(super) fn burst(open: &Open, echo: &Echo, flows: usize) -> Result<Done> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let all = runtime.block_on(flows::open(open.address, flows, false))?;
    // Those that do not come this far are lost, which the burst shows.
    let _ = wait_for("all flows at the server", MOMENT, || {
        (echo.accepted.load(Ordering::Relaxed) >= all.len()).then_some(())
    });
    let (answered, took) = runtime.block_on(speak(all));
    ensure!(answered > 0, "none of {flows} flows was answered");
    let figures = [
        (Measure::AllAnswered, took.as_secs_f64() * 1e3),
        (Measure::Lost, (flows - answered) as f64),
        (Measure::Flows, flows as f64),
    ];
    Ok(Done {
        figures: figures.into(),
        work: flows as f64,
    })
}

/// How many of them were answered, and when the last was.
async fn speak(all: Vec<TcpStream>) -> (usize, Duration) {
    let start = Instant::now();
    let mut speaking = JoinSet::new();
    for mut stream in all {
        speaking.spawn(async move {
            let answered = timeout(MOMENT, flows::ask(&mut stream)).await;
            let after = start.elapsed();
            // Kept open until all are done.
            answered.ok()?.ok().map(|()| (after, stream))
        });
    }
    let mut answered = Vec::new();
    while let Some(done) = speaking.join_next().await {
        answered.extend(done.ok().flatten());
    }
    let last = answered.iter().map(|(after, _)| *after).max();
    (answered.len(), last.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_flows_of_a_burst_are_heard_without_a_tunnel() {
        let server = serve().expect("serves");
        let Running::Echo(echo) = &server.running else {
            panic!("no echo");
        };
        let done = burst(&Open::direct(server.address), echo, 100).expect("done");
        assert_eq!(done.figures[&Measure::Lost], 0.0);
        assert!(done.figures[&Measure::AllAnswered] > 0.0);
    }

    #[test]
    fn flows_are_as_many_as_files_permit() {
        assert_eq!(permitted(1), 1);
        assert!(permitted(usize::MAX) < usize::MAX);
    }
}
