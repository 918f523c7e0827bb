//! `underpass agent run`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use underpass_dataplane::agent::{self, Checked, Config, Connect};
use underpass_proto::{AgentId, AllowList, ConnectionString, Role, Rule};

use super::allow;
use super::relay::raise_file_limit;
use super::reload::{self, Loaded, Loader, RoleFile, WatchedLoader};
use super::source::SourceArgs;
use super::table::table;
use super::{DataPlaneArgs, Exit, Failure, identity, print};
use crate::files::Fault;
use crate::files::agent::{AgentFile, ConnectEntry};
use crate::files::data_plane::DataPlane;
use crate::files::identity::configuration_id;
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
    /// Trust these CA certificates (PEM) where a connection string has no pin
    /// [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Ask the relay once whether it would take this agent, say what was found, and exit: 0 well, 1
    /// refused, 4 not authorised, 5 unreachable
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    data_plane: DataPlaneArgs,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => serve(args),
        Command::Allow(args) => allow::run::<AgentFile>(&args),
    }
}

fn serve(mut args: RunArgs) -> Result<(), Failure> {
    args.data_plane.settle();
    let source = args.from.find(Rule::Listen)?;
    let loader = Loader::<AgentFile>::start(source, args.ca_file.take())?;
    args.data_plane.fill_from(&loader.loaded().file.data_plane);
    let id = match args.check {
        true => configuration_id(&loader.source().identity()),
        false => identity::keep(Role::Agent, loader.source()),
    };
    let config = config(loader.loaded(), id)?;
    let settings = args.data_plane.settings();
    if args.check {
        let checked = agent::check(config, settings, CHECK_DEADLINE).map_err(explain)?;
        return print(&report(&checked));
    }
    raise_file_limit();
    let loader = WatchedLoader::new(loader);
    let requests = signals::drain_requests()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot take signals: {error}")))?;

    let updates = reload::watch(
        loader,
        || false,
        move |loaded| self::config(loaded, id).map(Some),
    )
    .map_err(|error| Failure::new(Exit::Failed, format!("cannot watch files: {error}")))?;
    agent::run(config, settings, requests, updates).map_err(explain)
}

impl RoleFile for AgentFile {
    type Entry = ConnectEntry;
    const RULE: Rule = Rule::Listen;

    fn load(path: &Path) -> Result<Self, Vec<Fault>> {
        Self::load(path)
    }

    fn parse(file: &str, text: &str) -> Result<Self, Vec<Fault>> {
        Self::parse(file, text, Path::new(""))
    }

    fn of_one(string_file: PathBuf) -> Self {
        Self::of_one(string_file)
    }

    fn entries(&self) -> &[ConnectEntry] {
        &self.connects
    }

    fn string_file(entry: &ConnectEntry) -> &Path {
        &entry.string_file
    }

    fn allow(&self) -> &AllowList {
        &self.allow
    }

    fn own_allow(entry: &ConnectEntry) -> &AllowList {
        &entry.allow
    }

    fn data_plane(&self) -> &DataPlane {
        &self.data_plane
    }
}

fn config(loaded: &Loaded<AgentFile>, agent_id: AgentId) -> Result<Config, Failure> {
    check_once_each(loaded.connects.iter().map(|(_, string)| string))?;
    check_allows_something(loaded)?;
    let connects = loaded.connects.iter().map(|(entry, string)| Connect {
        string_file: Some(entry.string_file.clone()).filter(|path| !path.as_os_str().is_empty()),
        string: string.clone(),
        weight: entry.weight,
        priority: entry.priority,
        allow: entry.allow.clone(),
    });
    Ok(Config {
        connects: connects.collect(),
        allow: loaded.file.allow.clone(),
        ca: loaded.ca.clone(),
        agent_id,
    })
}

/// One hybrid connection of one relay stands on one string.
pub(super) fn check_once_each<'a>(
    mut strings: impl Iterator<Item = &'a ConnectionString>,
) -> Result<(), Failure> {
    let mut seen = HashSet::new();
    let twice = strings.find(|string| !seen.insert((string.relay(), string.name.clone())));
    let Some(twice) = twice else { return Ok(()) };
    Err(Failure::configuration(format!(
        "{} on {} stands in two connection string files",
        twice.name,
        twice.relay()
    ))
    .hint("leave one [[connect]] out"))
}

/// An agent dials nothing but what its own list permits.
fn check_allows_something(loaded: &Loaded<AgentFile>) -> Result<(), Failure> {
    let mut connects = loaded.connects.iter();
    let names_some = |(entry, string): &(ConnectEntry, ConnectionString)| {
        !entry.allow.0.is_empty() || string.target.is_some()
    };
    if !loaded.file.allow.0.is_empty() || connects.any(names_some) {
        return Ok(());
    }
    Err(Failure::configuration("this agent may dial nothing: the connection string names no Target, and there is no allow-list")
        .hint("write `allow = [\"host:port\"]` into agent.toml and start with `--config agent.toml`, or take a string with Target"))
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
        agent::Error::Refused { ref hyco, .. } => {
            let hint = format!("the key is right; `underpass status {hyco}` on the relay's machine shows who is registered, and its definition has the limits");
            Failure::new(Exit::Failed, error).hint(hint)
        }
        agent::Error::NotAuthorised(_) => Failure::new(Exit::NotAuthorised, error)
            .hint("on the relay's machine, `underpass connection string NAME --role on-premises` prints the right string; the relay's log says which part is wrong"),
        // The data plane's own words.
        agent::Error::Unreachable(ref why) if why.contains("certificate is not") => Failure::new(Exit::Unreachable, error).hint("another relay is at that address, or its certificate was replaced: take a new string from the relay's machine, by `underpass connection string NAME --role on-premises`"),
        agent::Error::Unreachable(ref why) if why.contains("the relay closed the session") => Failure::new(Exit::Unreachable, error)
            .hint("the relay is there and the way to it is open; its log, and `underpass status` on its machine, say why it closed the session"),
        agent::Error::Unreachable(_) => Failure::new(Exit::Unreachable, error).hint("check the address in the connection string, that the relay runs, and that UDP to its port is let through on the way"),
        agent::Error::Worker(_) | agent::Error::Bind { .. } => Failure::new(Exit::Failed, error),
    }
}
