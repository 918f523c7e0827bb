//! Many agents in one process: each is the product's own, with threads, a socket and a session of
//! its own. For measuring what many agents cost a relay.

use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use crossbeam_channel::{bounded, never};
use underpass_dataplane::agent::{self, Config, Connect};
use underpass_dataplane::{Settings, drain, io};
use underpass_proto::limits::{GRACE_DEFAULT, PING_AFTER};
use underpass_proto::{AgentId, AllowList, ConnectionString};

/// Runs `count` agents, the nth with the nth connection string of a file, modulo their number,
/// until one of them ends. Datagrams are held at `mtu_max` bytes of UDP payload.
///
/// # Errors
/// The file is of no use, or an agent ended.
pub fn run(strings: &Path, count: usize, mtu_max: u16) -> Result<()> {
    let shown = strings.display();
    let text = fs::read_to_string(strings).with_context(|| format!("cannot read {shown}"))?;
    let strings: Result<Vec<ConnectionString>, _> = text.lines().map(str::parse).collect();
    let strings =
        strings.with_context(|| format!("{shown} is not one connection string a line"))?;
    ensure!(!strings.is_empty(), "{shown} has no connection string");
    let (say, ended) = bounded(1);
    let mut askers = Vec::new();
    for nth in 0..count {
        let string = strings[nth % strings.len()].clone();
        let (asker, requests) = drain::pair();
        // Kept: an agent that nobody can ask any more drains.
        askers.push(asker);
        let say = say.clone();
        thread::Builder::new()
            .name(format!("agent-{nth}"))
            .spawn(move || {
                let end = agent::run(config(string, nth), settings(mtu_max), requests, never());
                // Only the first is told.
                let _ = say.try_send((nth, end));
            })
            .with_context(|| format!("cannot start agent {nth} of {count}"))?;
    }
    match ended.recv()? {
        (nth, Err(why)) => bail!("agent {nth} failed: {why}"),
        (nth, Ok(())) => bail!("agent {nth} ended"),
    }
}

fn config(string: ConnectionString, nth: usize) -> Config {
    let mut id = [0; 16];
    for (byte, number) in id.iter_mut().zip(nth.to_le_bytes()) {
        *byte = number;
    }
    Config {
        connects: vec![Connect {
            string_file: None,
            string,
            weight: 100,
            priority: 0,
            allow: AllowList::default(),
        }],
        allow: AllowList::default(),
        ca: Vec::new(),
        agent_id: AgentId(id),
    }
}

/// One worker each, and `poll`: a ring of its own for each of a thousand agents would be more
/// locked memory than a user may have.
fn settings(mtu_max: u16) -> Settings {
    Settings {
        io: io::Choice::Poll,
        workers: Some(1),
        mtu_max: Some(mtu_max),
        grace: GRACE_DEFAULT,
        keep_alive: PING_AFTER,
    }
}
