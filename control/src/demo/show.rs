//! What the demo says. Figures and addresses go to standard output, talk and the live line to
//! standard error.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use underpass_proto::Status;

use super::measure::{Direction, Figures, Request};
use super::scene::{NAME, Scene, hyco_of};
use super::{Args, LINE_EVERY};
use crate::output::note;
use crate::quantity::{bytes, millis, rate};

/// Without a terminal, one line in so many updates.
const QUIET_UPDATES: u32 = 10;

/// Before anything runs.
pub(super) fn starting(args: &Args) {
    let what = if args.once {
        "moving 1 GiB each way, direct and through the relay"
    } else {
        "starting"
    };
    note!("underpass demo: control, relay, agent and a web service on this machine; {what} …");
}

/// Where everything is, and how to do the same between two machines.
pub(super) fn scene(scene: &Scene) {
    let Scene {
        service,
        binding,
        directory,
        logs,
        ..
    } = scene;
    let (directory, logs) = (directory.display(), logs.display());
    // Whoever closed stdout does not want to know.
    let _ = writeln!(
        io::stdout(),
        "
  open     http://{binding}/  (the binding: where an application connects)
  service  http://{service}/  (the endpoint: only the agent connects to it)
  files    {directory}  (change connections/{NAME}.toml and watch)
  logs     {logs}

Something to carry:
  curl 'http://{binding}/bytes?n=1000000000' -o /dev/null
  curl -T FILE http://{binding}/sink

The same between two machines. Where the applications are, with UDP port 4433 open for the agent:
  mkdir underpass && echo 'public_address = \"relay.example.com:4433\"' > underpass/namespace.toml
  underpass connection create payroll-sql --host db01.corp --port 1433 --bind 127.0.0.1:14330
  underpass connection string payroll-sql --role on-premises --out payroll-sql.connection
  underpass up
Beside the service, with no port open, when the secret file payroll-sql.connection is there:
  underpass agent run --connection-string-file payroll-sql.connection

Ctrl-C ends everything here. Below: live flows of all there were, → to the endpoint, ← to the application.
"
    );
}

/// The line that tells each second what passes.
pub(super) struct Line {
    bar: Option<ProgressBar>,
    updates: u32,
    before: Option<(Instant, u64, u64)>,
}

impl Line {
    /// Nothing to tell yet.
    pub(super) fn new() -> Self {
        let bar = io::stderr()
            .is_terminal()
            .then(|| ProgressBar::new_spinner().with_style(style()));
        Self {
            bar,
            updates: 0,
            before: None,
        }
    }

    /// Tells what the status says, and the rates since the last time.
    pub(super) fn update(&mut self, status: Option<&Status>, now: Instant) {
        let text = status
            .and_then(|status| self.text(status, now))
            .unwrap_or_else(|| "no report from the relay".to_owned());
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.tick();
            }
            None if self.updates.is_multiple_of(QUIET_UPDATES) => note!("{text}"),
            None => {}
        }
        self.updates += 1;
    }

    /// Clears the line.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        note!("ending …");
    }

    fn text(&mut self, status: &Status, now: Instant) -> Option<String> {
        let hyco = hyco_of(status)?;
        let (up, down) = (hyco.bytes_to_endpoint, hyco.bytes_to_application);
        let (then, up_before, down_before) =
            self.before
                .replace((now, up, down))
                .unwrap_or((now - LINE_EVERY, up, down));
        let passed = now.duration_since(then);
        let rtt = match status
            .relay
            .as_ref()
            .and_then(|report| report.sessions.first())
        {
            Some(session) => format!("rtt {:.2} ms", session.rtt_us as f64 / 1e3),
            None => "no agent".to_owned(),
        };
        // The least of it last: a narrow terminal cuts there.
        Some(format!(
            "flows {} of {} · {rtt} · → {}, {} · ← {}, {}",
            hyco.flows_live,
            hyco.flows_total,
            rate(up.saturating_sub(up_before), passed),
            bytes(up),
            rate(down.saturating_sub(down_before), passed),
            bytes(down),
        ))
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// What went wrong.
pub(super) fn failure(error: &anyhow::Error, json: bool) {
    note!("error: {error:#}");
    if json {
        // Whoever closed standard output does not want to know.
        let object = json!({ "ok": false, "error": format!("{error:#}") });
        let _ = writeln!(io::stdout(), "{object}");
    }
}

/// The result of `--once`.
pub(super) fn figures(figures: &Figures, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, figures)?;
        return Ok(writeln!(out)?);
    }
    writeln!(out, "                        relay        direct")?;
    for (name, direction) in [
        ("to application", &figures.to_application),
        ("to endpoint", &figures.to_endpoint),
    ] {
        writeln!(out, "{}", row(name, direction))?;
    }
    let Request {
        relay_us,
        direct_us,
    } = figures.small_request;
    writeln!(
        out,
        "{:<16} {:>13} {:>13}   median of one byte's",
        "small request",
        millis(relay_us),
        millis(direct_us)
    )?;
    let right = figures.to_application.sha256_right + figures.to_endpoint.sha256_right;
    writeln!(
        out,
        "1 GiB each way each time, on one flow, in requests of 32 MiB; hashing is not in the time\nSHA-256 right in {right} of {right}"
    )?;
    writeln!(
        out,
        "agent killed (kill -9): a new flow worked after {:.0} ms; the flow under it ended by {}",
        figures.new_flow_after_agent_kill_ms, figures.flow_under_agent_kill
    )?;
    let Figures { io, mtu, cores, .. } = figures;
    writeln!(
        out,
        "io {io}, UDP payload {mtu} bytes, all processes on {cores} cores"
    )?;
    if !figures.release_build {
        writeln!(
            out,
            "this is a debug build: only a release build's speed means something"
        )?;
    }
    Ok(writeln!(out, "ok, {:.1} s", figures.seconds)?)
}

fn row(name: &str, direction: &Direction) -> String {
    let Direction {
        relay_gbit_s,
        direct_gbit_s,
        ..
    } = direction;
    let percent = 100.0 * relay_gbit_s / direct_gbit_s;
    format!(
        "{name:<16} {relay_gbit_s:>6.2} Gbit/s {direct_gbit_s:>6.2} Gbit/s   {percent:.0} % of direct"
    )
}
