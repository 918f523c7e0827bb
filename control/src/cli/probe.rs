//! `underpass probe`: dials an endpoint now, by every agent, and says hop by hop how far it came.

use std::fmt::Write;

use serde::Serialize;
use underpass_proto::snapshot::{ProbeReport, ProbedDial, ProbedListener};
use underpass_proto::{HycoName, Status};

use super::status::{ask, known, no_relay, print_json, relay_of, short, unanswered, unknown};
use super::{DirArgs, Exit, Failure, advice, print};
use crate::publish;
use crate::quantity::millis;

/// Options of `underpass probe`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The hybrid connection
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dir: DirArgs,
}

/// What was found. Its JSON is stable.
#[derive(Serialize, Debug)]
struct Probed<'a> {
    name: &'a HycoName,
    /// Whether there is an agent, and every one reached the endpoint.
    reached: bool,
    agents: &'a [ProbedListener],
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let directory = args.dir.directory();
    let status = ask(&directory)?;
    let relay = relay_of(&status)?;
    let name = known(&args.name, relay)?;
    let report = publish::probe(&directory, &name)
        .map_err(|error| unanswered(&directory, &error))?
        .ok_or_else(no_relay)?;
    if !report.known {
        return Err(unknown(&args.name, relay));
    }
    let probed = Probed {
        name: &name,
        reached: !report.agents.is_empty() && report.agents.iter().all(has_reached),
        agents: &report.agents,
    };
    if args.json {
        print_json(&probed)?;
    } else {
        let socket = directory.control_socket().display().to_string();
        print(&shown(&socket, &status, &report))?;
    }
    verdict(&name, &report)
}

fn has_reached(agent: &ProbedListener) -> bool {
    agent
        .dial
        .as_ref()
        .is_some_and(|dial| dial.failed.is_none())
}

fn shown(socket: &str, status: &Status, report: &ProbeReport) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "control   {socket}: answers");
    let relay = if status.applied == Some(status.generation) {
        "answers, and works by the newest snapshot"
    } else {
        "answers, but has not applied the newest snapshot yet"
    };
    let _ = writeln!(out, "relay     {relay}");
    for agent in &report.agents {
        let (id, from) = (short(agent.agent_id), agent.remote);
        let rtt = millis(agent.rtt_us);
        let _ = writeln!(out, "agent     {id} from {from}: round trip {rtt}");
        let _ = writeln!(out, "endpoint  {}", dial(agent.dial.as_ref()));
    }
    if report.agents.is_empty() {
        let _ = writeln!(out, "agent     none listens");
    }
    out
}

fn dial(dial: Option<&ProbedDial>) -> String {
    let Some(dial) = dial else {
        return "unknown: the agent did not answer in time".into();
    };
    let ProbedDial { endpoint, .. } = dial;
    let resolved = match dial.address {
        Some(address) => format!(
            "{endpoint} is {address} (resolved in {})",
            millis(u64::from(dial.resolve_us))
        ),
        None => format!("{endpoint}"),
    };
    match &dial.failed {
        None => format!(
            "{resolved}: connected in {}",
            millis(u64::from(dial.dial_us))
        ),
        Some(failed) => {
            let why = dial.why.clone().unwrap_or_else(|| advice::words(failed));
            format!(
                "{resolved}: not connected after {}: {why}",
                millis(u64::from(dial.resolve_us) + u64::from(dial.dial_us))
            )
        }
    }
}

fn verdict(name: &HycoName, report: &ProbeReport) -> Result<(), Failure> {
    let all = report.agents.len();
    let reached = report
        .agents
        .iter()
        .filter(|agent| has_reached(agent))
        .count();
    if all == 0 {
        return Err(
            Failure::new(Exit::Failed, format!("no agent listens on {name}"))
                .hint(advice::NO_LISTENER),
        );
    }
    if reached == all {
        return Ok(());
    }
    let failure = Failure::new(
        Exit::Failed,
        format!("{reached} of {all} agents reached the endpoint of {name}"),
    );
    let first = report.agents.iter().find(|agent| !has_reached(agent));
    let dial = first.and_then(|agent| agent.dial.as_ref());
    match dial.map(|dial| dial.failed.as_deref().and_then(advice::of)) {
        Some(Some(advice)) => Err(failure.hint(advice)),
        Some(None) => Err(failure),
        None => Err(failure.hint("the agent's log says what it does; `underpass agent run --check` beside it tries the way to here")),
    }
}
