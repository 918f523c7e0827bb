//! `underpass agent run`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use underpass_dataplane::agent::{self, Checked, Config, Connect};
use underpass_proto::{AllowList, ConnectionString, Rule};

use super::allow;
use super::relay::raise_file_limit;
use super::source::{Source, SourceArgs};
use super::table::table;
use super::{DataPlaneArgs, Exit, Failure, IoChoice, print};
use crate::files::agent::{AgentFile, ConnectEntry, agent_id};
use crate::files::{Fault, disk, strings, unreadable};
use crate::quantity::millis;
use crate::signals;

/// How long `--check` waits for an answer.
const CHECK_DEADLINE: Duration = Duration::from_secs(5);

/// The commands below `underpass agent`.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Dial out to the relay and serve its hybrid connections from here
    Run(RunArgs),
    /// Change what the agent may dial, in its file
    Allow(allow::Args),
}

/// Options of `underpass agent run`.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    from: SourceArgs,
    /// Trust these CA certificates (PEM) where a connection string has no pin [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Connect and register once, say what was found, and exit: 0 well, 4 not authorised, 5 unreachable
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    data_plane: DataPlaneArgs,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => serve(args),
        Command::Allow(args) => allow::run(&args),
    }
}

fn serve(mut args: RunArgs) -> Result<(), Failure> {
    args.data_plane.settle();
    let source = args.from.find(Rule::Listen)?;
    let file = read(&source)?;
    args.take_from(&file);
    let config = args.config(&file, &source)?;
    let settings = args.data_plane.settings();
    if args.check {
        let checked = agent::check(config, settings, CHECK_DEADLINE).map_err(explain)?;
        return print(&report(&checked));
    }
    raise_file_limit();
    let requests = signals::drain_requests()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot take signals: {error}")))?;
    agent::run(config, settings, requests, agent::no_updates()).map_err(explain)
}

/// What the source says: `agent.toml`, or as much of one as a single string is, and that string where it is in no file.
fn read(source: &Source) -> Result<AgentFile, Failure> {
    let string_file = match source {
        Source::Config(path) => return Ok(AgentFile::load(path)?),
        Source::File(path) => path.clone(),
        Source::Text(_) => PathBuf::new(),
    };
    Ok(AgentFile::of_one(string_file))
}

impl RunArgs {
    /// What the command line does not say is taken from the file.
    fn take_from(&mut self, file: &AgentFile) {
        let io = file.io.map(|io| match io {
            "ring" => IoChoice::Ring,
            "poll" => IoChoice::Poll,
            _ => IoChoice::Auto,
        });
        self.data_plane.io = self.data_plane.io.or(io);
        self.data_plane.workers = self.data_plane.workers.or(file.workers);
        self.data_plane.mtu_max = self.data_plane.mtu_max.or(file.mtu_max);
        self.ca_file = self.ca_file.take().or_else(|| file.ca_file.clone());
    }

    fn config(&self, file: &AgentFile, source: &Source) -> Result<Config, Failure> {
        let mut connects = Vec::new();
        let mut faults = Vec::new();
        for entry in &file.connects {
            match connect(entry, source) {
                Ok(connect) => connects.push(connect),
                Err(fault) => faults.push(fault),
            }
        }
        if !faults.is_empty() {
            return Err(faults.into());
        }
        check_once_each(&connects)?;
        check_allows_something(&connects, &file.allow)?;
        let ca = self
            .ca_file
            .as_deref()
            .map(load_ca)
            .transpose()?
            .unwrap_or_default();
        Ok(Config {
            connects,
            allow: file.allow.clone(),
            ca,
            agent_id: agent_id(&source.identity()),
        })
    }
}

fn connect(entry: &ConnectEntry, source: &Source) -> Result<Connect, Fault> {
    let (string_file, string) = match source {
        Source::Text(string) => (None, ConnectionString::clone(string)),
        _ => (
            Some(entry.string_file.clone()),
            strings::load(&entry.string_file, Rule::Listen)?,
        ),
    };
    Ok(Connect {
        string_file,
        string,
        weight: entry.weight,
        priority: entry.priority,
    })
}

fn check_once_each(connects: &[Connect]) -> Result<(), Failure> {
    let mut seen = HashSet::new();
    let twice = connects
        .iter()
        .find(|connect| !seen.insert((connect.string.relay(), connect.string.name.clone())));
    let Some(twice) = twice else { return Ok(()) };
    let ConnectionString { name, .. } = &twice.string;
    Err(Failure::configuration(format!(
        "{name} on {} stands in two connection string files",
        twice.string.relay()
    ))
    .hint("leave one [[connect]] out"))
}

/// An agent dials nothing but what its own list permits.
fn check_allows_something(connects: &[Connect], allow: &AllowList) -> Result<(), Failure> {
    if !allow.0.is_empty()
        || connects
            .iter()
            .any(|connect| connect.string.target.is_some())
    {
        return Ok(());
    }
    Err(Failure::configuration("this agent may dial nothing: the connection string names no Target, and there is no allow-list")
        .hint("write `allow = [\"host:port\"]` into agent.toml and start with `--config agent.toml`, or take a string with Target"))
}

fn load_ca(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    let file = path.display().to_string();
    let pem = disk::read(path).map_err(|error| unreadable(&file, &error))?;
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem.text.as_bytes()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates
            .iter()
            .map(|certificate| certificate.to_vec())
            .collect()),
        Ok(_) => Err(Fault::whole(
            file,
            "holds no certificate; put one there in PEM form (`BEGIN CERTIFICATE`)",
        )
        .into()),
        Err(error) => Err(Fault::whole(
            file,
            format!("cannot be used: {error}; put certificates there in PEM form"),
        )
        .into()),
    }
}

fn report(checked: &[Checked]) -> String {
    let head = ["HYBRID CONNECTION", "ENDPOINT", "ROUND TRIP"].map(str::to_owned);
    let rows = checked.iter().map(|checked| {
        [
            checked.hyco.to_string(),
            checked.endpoint.to_string(),
            millis(checked.rtt_us),
        ]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn explain(error: agent::Error) -> Failure {
    match error {
        agent::Error::Config(_) => Failure::configuration(error),
        agent::Error::Io(_) => Failure::configuration(error).hint("`--io auto` takes what this kernel permits"),
        agent::Error::NotAuthorised(_) => Failure::new(Exit::NotAuthorised, error)
            .hint("on the relay's machine, `underpass connection string NAME --role on-premises` prints the right string; the relay's log says which part is wrong"),
        // The data plane's own words.
        agent::Error::Unreachable(ref why) if why.contains("certificate is not") => Failure::new(Exit::Unreachable, error).hint("another relay is at that address, or its certificate was replaced: take a new string from the relay's machine, by `underpass connection string NAME --role on-premises`"),
        agent::Error::Unreachable(_) => Failure::new(Exit::Unreachable, error).hint("check the address in the connection string, that the relay runs, and that UDP to its port is let through on the way"),
        agent::Error::Worker(_) | agent::Error::Bind { .. } => Failure::new(Exit::Failed, error),
    }
}
