//! Rows 20, 21 and 28: strangers who send what makes no sense, applications that open and reset as
//! fast as they can, and those that are turned away.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use socket2::SockRef;

use crate::faults::calls::Calls;
use crate::faults::scene::{Scene, wait_until_idle};
use crate::faults::trial::{Bar, Trial};
use crate::stand::deadline::{MOMENT, pause, wait_for};
use crate::stand::usage;

/// Datagrams of the flood in a second.
const RATE: u64 = 20_000;

/// They leave in groups of this, each group when it is due.
const GROUP: u64 = 20;

/// What honest applications do meanwhile.
const HONEST: &str =
    "[[group]]\nname = \"honest\"\nflows = 16\nrate = 300\nrequest = 200\nresponse = 4000\n";

/// Bytes of log that a flood may cause in a second: a burst of 20 lines, and one each two seconds.
const LOG_BYTES_PER_SECOND: f64 = 4_096.0;

/// Memory that a flood may leave behind, MB: what buffers of a burst may have grown to.
const LEFT_MB: f64 = 32.0;

/// Row 20.
pub(in crate::faults) fn malformed(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 1)?;
    let length = Duration::from_secs(trial.pick(3, 12, 50));
    let alone = honest(trial, scene.binding, length)?;
    let relay = scene.relay_id()?;
    let (memory, files) = (usage::memory(relay)?, usage::open_files(relay)?);
    trial.fault(format!(
        "{RATE} malformed datagrams a second for {} s",
        length.as_secs()
    ));
    let flood = Flood::start(scene.installation.listen(), trial.chance(u64::MAX))?;
    let beside = honest(trial, scene.binding, length)?;
    let flood = flood.stop()?;
    trial.count(
        "malformed datagrams",
        flood.sent,
        Some(Bar::AtLeast(length.as_secs_f64() * RATE as f64 * 0.5)),
    );
    trial.figure("their bytes", flood.bytes as f64 / 1e6, "MB", None);
    trial.figure(
        "bytes that came back, times those sent",
        flood.returned as f64 / flood.bytes as f64,
        "×",
        Some(Bar::AtMost(3.0)),
    );
    keep(trial, &alone, &beside);
    trial.count(
        "open files of the relay, more than before",
        usage::open_files(relay)?.saturating_sub(files),
        Some(Bar::AtMost(16.0)),
    );
    leaves(trial, &scene, memory)
}

/// Row 21.
pub(in crate::faults) fn opens_and_resets(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 1)?;
    let length = Duration::from_secs(trial.pick(4, 12, 60));
    let alone = honest(trial, scene.binding, length)?;
    let relay = scene.relay_id()?;
    let (memory, files) = (usage::memory(relay)?, usage::open_files(relay)?);
    trial.fault(format!(
        "opens and resets without a pause for {} s",
        length.as_secs()
    ));
    let (opened, beside) = beside_resets(trial, &scene, scene.binding, length)?;
    trial.count("flows opened and reset", opened, Some(Bar::AtLeast(100.0)));
    keep(trial, &alone, &beside);
    wait_until_idle(&scene)?;
    wait_for("the relay's files to be those before", MOMENT, || {
        (usage::open_files(relay).ok()? <= files + 16).then_some(())
    })?;
    leaves(trial, &scene, memory)
}

/// Row 28.
pub(in crate::faults) fn logs(trial: &mut Trial<'_>) -> Result<()> {
    let scene = Scene::open(trial, 1)?;
    let length = Duration::from_secs(trial.pick(3, 10, 30));
    let alone = honest(trial, scene.binding, length)?;
    let memory = usage::memory(scene.relay_id()?)?;
    let lonely = "no-agent-here";
    scene.installation.define(lonely, "127.0.0.1:9")?;
    let closed = "not-for-you";
    scene.installation.define(closed, "127.0.0.1:9")?;
    let text = fs::read_to_string(scene.installation.definition(closed))?;
    let text = format!("allow_from = [\"192.0.2.0/24\"]\n{text}");
    scene.installation.write_definition(closed, &text)?;
    let floods = [
        (lonely, "a binding without an agent"),
        (closed, "applications outside allow_from"),
    ];
    for (name, what) in floods {
        let target = scene.installation.binding(name)?;
        let log = scene.relay_log().len();
        trial.fault(format!("{what}, for {} s", length.as_secs()));
        let (opened, beside) = beside_resets(trial, &scene, target, length)?;
        let bytes = scene.relay_log().len() - log;
        trial.count(what, opened, Some(Bar::AtLeast(100.0)));
        trial.figure(
            "bytes of the relay's log for each second of it",
            bytes as f64 / length.as_secs_f64(),
            "bytes",
            Some(Bar::AtMost(LOG_BYTES_PER_SECOND)),
        );
        keep(trial, &alone, &beside);
    }
    wait_for("the count of lines left out", MOMENT, || {
        (scene.relay_lines("log lines left out") > 0).then_some(())
    })?;
    wait_until_idle(&scene)?;
    leaves(trial, &scene, memory)
}

/// Opens and resets at `target` without a pause while honest applications work: how many, and what
/// became of those.
fn beside_resets(
    trial: &mut Trial<'_>,
    scene: &Scene,
    target: SocketAddr,
    length: Duration,
) -> Result<(u64, Honest)> {
    let ending = Arc::new(AtomicBool::new(false));
    let opened = Arc::new(AtomicU64::new(0));
    let threads: Vec<JoinHandle<()>> = (0..2)
        .map(|_| {
            let (ending, opened) = (Arc::clone(&ending), Arc::clone(&opened));
            thread::spawn(move || {
                while !ending.load(Ordering::Relaxed) {
                    if open_and_reset(target).is_ok() {
                        opened.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    let beside = honest(trial, scene.binding, length);
    ending.store(true, Ordering::Relaxed);
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow!("a flood's thread has failed"))?;
    }
    Ok((opened.load(Ordering::Relaxed), beside?))
}

fn open_and_reset(target: SocketAddr) -> io::Result<()> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(2))?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// Honest calls beside a flood keep 90 % of what they do without it, and none fails.
fn keep(trial: &mut Trial<'_>, alone: &Honest, beside: &Honest) {
    trial.figure(
        "honest calls in time, of those without the flood",
        100.0 * beside.in_time / alone.in_time,
        "%",
        Some(Bar::AtLeast(90.0)),
    );
    trial.figure(
        "honest calls: p99 without the flood",
        alone.p99_ms,
        "ms",
        None,
    );
    trial.figure(
        "honest calls: p99 beside the flood",
        beside.p99_ms,
        "ms",
        None,
    );
    trial.count(
        "honest calls that failed",
        beside.failed,
        Some(Bar::Exactly(0.0)),
    );
}

/// What a flood leaves in the relay.
fn leaves(trial: &mut Trial<'_>, scene: &Scene, memory: u64) -> Result<()> {
    let grown = usage::memory(scene.relay_id()?)? as f64 / 1e6 - memory as f64 / 1e6;
    trial.figure(
        "memory of the relay: grown by",
        grown.max(0.0),
        "MB",
        Some(Bar::Under(LEFT_MB)),
    );
    trial.count(
        "panics in the relay's log",
        scene.relay_lines("panicked") as u64,
        Some(Bar::Exactly(0.0)),
    );
    scene.check_alive()
}

/// What became of honest calls.
struct Honest {
    in_time: f64,
    failed: u64,
    p99_ms: f64,
}

fn honest(trial: &mut Trial<'_>, target: SocketAddr, length: Duration) -> Result<Honest> {
    let outcome = Calls::start(trial, target, HONEST, length)?.end(trial)?;
    let group = outcome.group("honest").context("the group was run")?;
    let p99 = group.latency.at(0.99).context("no call was answered")?;
    Ok(Honest {
        in_time: group.counts.in_time as f64,
        failed: group.counts.failed,
        p99_ms: p99.as_secs_f64() * 1e3,
    })
}

/// A stranger who sends what makes no sense, and counts what comes back.
struct Flood {
    ending: Arc<AtomicBool>,
    thread: JoinHandle<Flooded>,
}

#[derive(Default)]
struct Flooded {
    sent: u64,
    bytes: u64,
    returned: u64,
}

impl Flood {
    fn start(target: SocketAddr, seed: u64) -> Result<Flood> {
        let socket = UdpSocket::bind((target.ip(), 0))?;
        socket.connect(target)?;
        socket.set_nonblocking(true)?;
        let ending = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ending);
        let thread = thread::spawn(move || flood(&socket, seed, &end));
        Ok(Flood { ending, thread })
    }

    fn stop(self) -> Result<Flooded> {
        self.ending.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow!("the flood's thread has failed"))
    }
}

fn flood(socket: &UdpSocket, seed: u64, end: &AtomicBool) -> Flooded {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut flooded, mut buffer) = (Flooded::default(), vec![0; 65_535]);
    let (began, mut datagram) = (Instant::now(), Vec::new());
    let mut due = 0;
    while !end.load(Ordering::Relaxed) {
        for _ in 0..GROUP {
            malform(&mut rng, &mut datagram);
            // The kernel may refuse some: they were not sent then.
            if socket.send(&datagram).is_ok() {
                flooded.sent += 1;
                flooded.bytes += datagram.len() as u64;
            }
        }
        while let Ok(len) = socket.recv(&mut buffer) {
            flooded.returned += len as u64;
        }
        due += GROUP;
        let at = Duration::from_secs_f64(due as f64 / RATE as f64);
        pause(at.saturating_sub(began.elapsed()));
    }
    flooded
}

/// Version 1 of QUIC (RFC 9000), and one that nobody has (RFC 9000, section 15: for forcing a
/// negotiation).
const VERSIONS: [u32; 3] = [1, 0x1a2a_3a4a, 0];

/// One of: any bytes; an Initial that cannot be decrypted, of the right size or cut short; a packet
/// of an unknown version, or one that only servers send; a short header with a connection ID that
/// nobody gave; lengths that say more than is there.
fn malform(rng: &mut StdRng, out: &mut Vec<u8>) {
    out.clear();
    let kind = rng.random_range(0..6_u8);
    let len = match kind {
        0 => rng.random_range(0..1_472),
        1 | 3 => 1_200,
        _ => rng.random_range(1..1_300),
    };
    out.resize(len, 0);
    rng.fill(out.as_mut_slice());
    let long = |out: &mut [u8], first: u8, version: u32, id: u8| {
        if let [head, v0, v1, v2, v3, id_len, ..] = out {
            *head = first | (*head & 0x0f);
            [*v0, *v1, *v2, *v3] = version.to_be_bytes();
            *id_len = id;
        }
    };
    match kind {
        1 => {
            long(out, 0xc0, 1, 8);
            // After 8 bytes of destination ID: an empty source ID, an empty token, the length of
            // the rest.
            if let Some([source, token, high, low]) =
                out.get_mut(14..18).and_then(|part| part.as_mut_array())
            {
                (*source, *token) = (0, 0);
                [*high, *low] = (0x4000 | (1_200_u16 - 18)).to_be_bytes();
            }
        }
        2 => long(out, 0xc0, 1, rng.random()),
        3 => long(
            out,
            0xc0,
            VERSIONS[rng.random_range(0..VERSIONS.len())],
            rng.random_range(0..=20),
        ),
        4 => {
            if let Some(head) = out.first_mut() {
                *head = 0x40 | (*head & 0x3f);
            }
        }
        5 => long(out, 0xe0, 1, rng.random_range(0..=255)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_flood_of_every_kind() {
        let make = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            let one = |_| {
                let mut datagram = Vec::new();
                malform(&mut rng, &mut datagram);
                datagram
            };
            (0..200).map(one).collect::<Vec<_>>()
        };
        let flood = make(1);
        assert_eq!(flood, make(1));
        assert_ne!(flood, make(2));
        let count = |is: fn(&Vec<u8>) -> bool| flood.iter().filter(|datagram| is(datagram)).count();
        assert!(count(|datagram| datagram.len() == 1_200 && datagram[0] & 0xf0 == 0xc0) > 20);
        assert!(count(|datagram| datagram.first().is_some_and(|head| head & 0xc0 == 0x40)) > 20);
    }
}
