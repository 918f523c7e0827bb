//! Row 11: endpoints that are at fault. What an application sees through the relay is compared with
//! what it sees directly.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum as _;

use crate::endpoint::CHUNK;
use crate::endpoint::faulty::{HALF, Ill, SeenByFaulty, hears, says};
use crate::faults::scene::FarEnd;
use crate::faults::trial::{Bar, Trial, Watched};
use crate::stand::deadline::MOMENT;
use crate::stand::installation::{Installation, Setup};
use crate::stand::process::Signal;

/// The longest that an application waits for a connection or for bytes: above the 10 s after which
/// an endpoint that does not answer is given up.
const PATIENCE: Duration = Duration::from_secs(13);

/// How long it looks at an endpoint that says little or nothing.
const LOOKS_FOR: Duration = Duration::from_secs(4);

/// Flows at once to each.
const BESIDE: usize = 4;

/// What an application has seen of one flow.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Saw {
    bytes: u64,
    wrong: bool,
    end: End,
    took: Duration,
}

/// Why no more came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Clean,
    Error,
    Silence,
}

pub(in crate::faults) fn endpoints(trial: &mut Trial<'_>) -> Result<()> {
    let mut ends = Vec::new();
    for ill in Ill::value_variants() {
        let mut command = Command::new(trial.own());
        let name = name_of(*ill);
        command.args(["faulty", &name, "--seed", &trial.seed.to_string()]);
        ends.push((*ill, name.clone(), FarEnd::of(&name, &mut command)?));
    }
    let installation = Installation::new(Setup {
        probe: false,
        ..trial.setup()
    })?;
    for (_, name, end) in &ends {
        installation.define(name, &end.address.to_string())?;
    }
    installation.start_control()?;
    installation.start_relay()?;
    let names: Vec<&str> = ends.iter().map(|(_, name, _)| &**name).collect();
    let agent = installation.start_agent(&names, &[])?;
    for round in 0..trial.pick(1, 2, 10) {
        let mut flows = Vec::new();
        for (ill, name, end) in &ends {
            trial.fault(format!("{name}, {BESIDE} flows, round {round}"));
            let (ill, seed) = (*ill, trial.seed);
            let (direct, through) = (end.address, installation.binding(name)?);
            let begin = move |target| thread::spawn(move || converse(target, ill, seed));
            let through: Vec<_> = (0..BESIDE).map(|_| begin(through)).collect();
            flows.push((ill, begin(direct), through));
        }
        for (ill, direct, through) in flows {
            let join = |thread: thread::JoinHandle<_>| {
                thread
                    .join()
                    .map_err(|_| anyhow!("a flow's thread has failed"))
            };
            let direct = join(direct)?;
            for through in through {
                judge(trial, ill, &direct, &join(through)?);
            }
        }
    }
    let flows = u64::try_from(BESIDE)? * trial.pick(1, 2, 10);
    for (ill, name, end) in &mut ends {
        let seen = stop(end)?;
        let all = matches!(ill, Ill::EndsFirst | Ill::EndsSecond).then_some(());
        if all.is_some() {
            // One more for each that went directly.
            let expected = flows + trial.pick(1, 2, 10);
            trial.count(
                format!("{name}: flows whose every byte came, as the endpoint saw it"),
                seen.whole,
                Some(Bar::Exactly(expected as f64)),
            );
            trial.count(
                format!("{name}: bytes"),
                seen.bytes,
                Some(Bar::Exactly((expected * HALF) as f64)),
            );
        }
        trial.count(
            format!("{name}: wrong at the endpoint"),
            seen.wrong,
            Some(Bar::Exactly(0.0)),
        );
    }
    drop(agent);
    Ok(())
}

fn name_of(ill: Ill) -> String {
    let value = ill
        .to_possible_value()
        .map(|value| value.get_name().to_owned());
    value.unwrap_or_default()
}

fn stop(end: &mut FarEnd) -> Result<SeenByFaulty> {
    let process = end.process();
    process.signal(Signal::TERM)?;
    process.wait(MOMENT)?;
    let told = process.stdout();
    let last = told.lines().last().context("it told nothing")?;
    serde_json::from_str(last).with_context(|| format!("it told {last}"))
}

/// The same kind of event as directly, and no byte that is wrong or lacking.
fn judge(trial: &mut Trial<'_>, ill: Ill, direct: &Saw, through: &Saw) {
    let what = format!("{}: saw {through:?}, directly {direct:?}", name_of(ill));
    let ending = if through.wrong {
        Watched::Corrupt
    } else if through.end == End::Clean
        && (direct.end != End::Clean || through.bytes < direct.bytes)
    {
        Watched::Truncated
    } else if through.end == End::Silence && direct.end != End::Silence {
        Watched::Hung
    } else if through.end != direct.end
        || through.bytes + SLACK < direct.bytes && direct.end != End::Error
    {
        Watched::Error
    } else {
        Watched::Ok
    };
    if ending != Watched::Ok {
        trial.figure(what.clone(), 1.0, "", Some(Bar::Exactly(0.0)));
    }
    trial.ended(ending, &what);
}

/// A flow of one byte a second has been looked at a moment later than the other.
const SLACK: u64 = 1;

fn converse(target: SocketAddr, ill: Ill, seed: u64) -> Saw {
    let began = Instant::now();
    let mut saw = Saw {
        bytes: 0,
        wrong: false,
        end: End::Error,
        took: Duration::ZERO,
    };
    // Whatever fails on the way is the error that the application sees.
    let _ = talk(target, ill, seed, &mut saw);
    saw.took = began.elapsed();
    saw
}

fn talk(target: SocketAddr, ill: Ill, seed: u64, saw: &mut Saw) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    let looks_for = match ill {
        Ill::Dribbles | Ill::Silent => LOOKS_FOR,
        _ => PATIENCE,
    };
    let mut bytes = vec![0; HALF as usize];
    hears(seed).fill(0, &mut bytes);
    match ill {
        Ill::EndsSecond => {
            stream.write_all(&bytes)?;
            stream.shutdown(Shutdown::Write)?;
            read(&stream, seed, looks_for, saw)
        }
        Ill::EndsFirst => {
            read(&stream, seed, looks_for, saw)?;
            let end = std::mem::replace(&mut saw.end, End::Error);
            stream.write_all(&bytes)?;
            stream.shutdown(Shutdown::Write)?;
            saw.end = end;
            Ok(())
        }
        _ => {
            stream.write_all(b"?")?;
            read(&stream, seed, looks_for, saw)
        }
    }
}

/// All that comes, for so long.
fn read(mut stream: &TcpStream, seed: u64, within: Duration, saw: &mut Saw) -> io::Result<()> {
    let (end, mut buffer) = (Instant::now() + within, vec![0; CHUNK]);
    saw.end = End::Silence;
    while let Some(left) = end
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
    {
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => {
                saw.end = End::Clean;
                return Ok(());
            }
            Ok(len) => {
                saw.wrong |= says(seed).check(saw.bytes, &buffer[..len]).is_err();
                saw.bytes += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                saw.end = End::Error;
                return Err(error);
            }
        }
    }
    Ok(())
}
