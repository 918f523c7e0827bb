//! `underpass connection`: creates, changes and shows hybrid connections, through control or on the
//! files ([`super::desk`]).

use std::fmt::Write;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde::Serialize;
use underpass_proto::key::Which;
use underpass_proto::printable::printable_json;
use underpass_proto::snapshot::HycoLimits;
use underpass_proto::{Endpoint, Host, HycoName, Rule};

use super::desk::{Change, Desk};
use super::options::{binding, network, port, service_host};
use super::table::table;
use super::{DirArgs, Failure, installation, print};
use crate::files::definition::{Definition, LIMIT_MAX, Probe};
use crate::files::namespace::Namespace;
use crate::files::{Caller, disk, trust};
use crate::output::{self, note};
use crate::shell;
use crate::store::Described;

/// The commands below `underpass connection`.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Define a hybrid connection and make its keys
    Create(CreateArgs),
    /// Change one in place: live flows end on the old endpoint, new ones go to the new
    Set(SetArgs),
    /// Delete one and its keys: its sessions and flows end
    Delete(DeleteArgs),
    /// Print a connection string
    String(StringArgs),
    /// List all
    List(ListArgs),
    /// Show one
    Show(ShowArgs),
}

#[derive(Args, Debug)]
pub(super) struct CreateArgs {
    /// 6 to 50 letters, digits or hyphens
    name: HycoName,
    /// Host of the service, as it is reached from the agent: name or address
    #[arg(long, value_parser = service_host)]
    host: Host,
    /// TCP port of the service
    #[arg(long, value_parser = port)]
    port: NonZeroU16,
    /// Where applications connect on the relay's machine, like 127.0.0.1:14330
    #[arg(long, value_name = "ADDR", value_parser = binding)]
    bind: Option<SocketAddr>,
    /// A network or address that may connect to the binding; needed where that is not loopback; may
    /// be repeated
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network, requires = "bind")]
    allow_from: Vec<IpNet>,
    #[command(flatten)]
    dir: DirArgs,
}

#[derive(Args, Debug)]
#[group(id = "change", required = true, multiple = true, args = ["host", "port", "bind", "no_bind", "allow_from", "probe", "listeners_max", "flows_max"])]
pub(super) struct SetArgs {
    /// The hybrid connection
    name: HycoName,
    /// Host of the service, as it is reached from the agent: name or address
    #[arg(long, value_parser = service_host)]
    host: Option<Host>,
    /// TCP port of the service
    #[arg(long, value_parser = port)]
    port: Option<NonZeroU16>,
    /// Where applications connect on the relay's machine, like 127.0.0.1:14330
    #[arg(long, value_name = "ADDR", value_parser = binding)]
    bind: Option<SocketAddr>,
    /// No binding: only senders reach it
    #[arg(long, conflicts_with_all = ["bind", "allow_from"])]
    no_bind: bool,
    /// The networks and addresses that may connect to the binding, in place of those before; may be
    /// repeated
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    allow_from: Vec<IpNet>,
    /// Whether the endpoint is dialled to learn its health: as little as is needed, each minute
    /// without end, or never
    #[arg(long, value_enum)]
    probe: Option<Switch>,
    /// Listeners at once, most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    listeners_max: Option<u32>,
    /// Live flows at once, most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    flows_max: Option<u32>,
    #[command(flatten)]
    dir: DirArgs,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Switch {
    Auto,
    On,
    Off,
}

impl From<Switch> for Probe {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::Auto => Self::Auto,
            Switch::On => Self::On,
            Switch::Off => Self::Off,
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct DeleteArgs {
    /// The hybrid connection
    name: HycoName,
    #[command(flatten)]
    dir: DirArgs,
}

#[derive(Args, Debug)]
pub(super) struct StringArgs {
    /// The hybrid connection
    name: HycoName,
    /// Whom it is for
    #[arg(long, value_enum)]
    role: Role,
    /// With the secondary key
    #[arg(long)]
    secondary: bool,
    /// Write it to a file that only its owner can read, instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    dir: DirArgs,
}

/// Whom a connection string is for.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    /// Senders, beside applications.
    Application,
    /// Agents.
    OnPremises,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dir: DirArgs,
}

#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    /// The hybrid connection
    name: HycoName,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dir: DirArgs,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create(args),
        Command::Set(args) => set(&args),
        Command::Delete(args) => delete(&args),
        Command::String(args) => string(&args),
        Command::List(args) => list(&args),
        Command::Show(args) => show(&args),
    }
}

fn create(args: CreateArgs) -> Result<(), Failure> {
    let (namespace, _) = installation::open(&args.dir.directory(), Caller::Command)?;
    let definition = Definition {
        name: args.name,
        endpoint: Endpoint {
            host: args.host,
            port: args.port,
        },
        bind: args.bind,
        allow_from: args.allow_from,
        limits: HycoLimits::default(),
        probe: Probe::Auto,
        bind_line: 0,
    };
    Desk::open(&args.dir)?.create(&definition)?;
    output::write(format_args!(
        "{}",
        next_steps(&args.dir, &definition, &namespace)
    ));
    Ok(())
}

fn set(args: &SetArgs) -> Result<(), Failure> {
    installation::open(&args.dir.directory(), Caller::Command)?;
    let change = Change {
        host: args.host.clone(),
        port: args.port,
        bind: args.bind.map(Some).or(args.no_bind.then_some(None)),
        allow_from: (!args.allow_from.is_empty()).then(|| args.allow_from.clone()),
        probe: args.probe.map(Probe::from),
        listeners_max: args.listeners_max,
        flows_max: args.flows_max,
    };
    let described = Desk::open(&args.dir)?.change(&args.name, &change)?;
    let endpoint = described.endpoint.as_deref().unwrap_or("-");
    note!("changed {} → {endpoint}", described.name);
    if args.host.is_some() || args.port.is_some() {
        let word = shell::word(endpoint);
        note!(
            "hint: agents dial {endpoint}, and senders take its name and port, only if their own list has it: `underpass agent allow {word} --config agent.toml` and `underpass sender allow {word} --config sender.toml` there, or new strings"
        );
    }
    Ok(())
}

fn delete(args: &DeleteArgs) -> Result<(), Failure> {
    installation::open(&args.dir.directory(), Caller::Command)?;
    Desk::open(&args.dir)?.delete(&args.name)?;
    note!("deleted {} and its keys", args.name);
    Ok(())
}

fn next_steps(dir: &DirArgs, definition: &Definition, namespace: &Namespace) -> String {
    let Definition {
        name,
        endpoint,
        bind,
        ..
    } = definition;
    let (shown, dir) = (dir.dir.display(), shell::word(&dir.dir));
    let mut out = String::new();
    let _ = writeln!(out, "made {name} → {endpoint} in {shown}");
    if let Some(bind) = bind {
        let _ = writeln!(
            out,
            "  applications on the relay's machine connect to {bind}"
        );
    }
    if !namespace.public_address_given {
        let _ = writeln!(
            out,
            "  agents will dial {}; if that is not how they reach this machine, set public_address in {shown}/namespace.toml first",
            namespace.public_address
        );
    }
    if let Some(note) = namespace.port_note() {
        let _ = writeln!(out, "  {note}");
    }
    let _ = writeln!(out, "next:");
    let _ = writeln!(
        out,
        "  underpass connection string {name} --role on-premises --dir {dir} --out {name}.connection"
    );
    let _ = writeln!(
        out,
        "  copy {name}.connection to the machine beside {}, keep it private, and run there:",
        endpoint.host
    );
    let _ = writeln!(
        out,
        "  underpass agent run --connection-string-file {name}.connection"
    );
    out
}

fn string(args: &StringArgs) -> Result<(), Failure> {
    let desk = Desk::open(&args.dir)?;
    desk.find(&args.name)?; // Before anything is made in a directory that may be the wrong one.
    let directory = args.dir.directory();
    let (namespace, _) = installation::open(&directory, Caller::Command)?;
    let rule = match args.role {
        Role::Application => Rule::Send,
        Role::OnPremises => Rule::Listen,
    };
    let which = if args.secondary {
        Which::Secondary
    } else {
        Which::Primary
    };
    let mut line = desk.connection_string(&args.name, rule, which)?;
    line.push('\n');
    match &args.out {
        Some(path) => disk::replace(path, line.as_bytes(), disk::SECRET).map_err(|error| {
            let why = trust::reason(path, &error);
            Failure::configuration(format!("cannot make {}: {why}", path.display())).hint(
                "`--out` names a file in a directory that is there and that this user can write",
            )
        })?,
        None => print(&line)?,
    }
    if !namespace.public_address_given {
        note!(
            "hint: the string carries {}; if agents reach this machine otherwise, set public_address in {}",
            namespace.public_address,
            directory.namespace().display()
        );
    }
    if let Some(note) = namespace.port_note() {
        note!("hint: {note}");
    }
    Ok(())
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let all = Desk::open(&args.dir)?.list()?;
    if args.json {
        return print(&json(&all));
    }
    if all.is_empty() {
        let folder = args.dir.directory().connections();
        note!(
            "hint: {} has no hybrid connection; make one with `underpass connection create`, or name another directory with `--dir DIR`",
            folder.display()
        );
        return Ok(());
    }
    let head = ["NAME", "ENDPOINT", "BINDING"].map(str::to_owned);
    let rows = all
        .iter()
        .map(|one| [one.name.clone(), endpoint_of(one), binding_of(one)]);
    print(&table(
        &std::iter::once(head).chain(rows).collect::<Vec<_>>(),
    ))?;
    for fault in all.iter().flat_map(|one| &one.faults) {
        note!("warning: {fault}");
    }
    Ok(())
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let directory = args.dir.directory();
    let shown = Desk::open(&args.dir)?.find(&args.name)?;
    if args.json {
        return print(&json(&shown));
    }
    let allow_from = match (&shown.bind, shown.allow_from.is_empty()) {
        (None, _) => "-".into(),
        (Some(_), true) => "this machine".into(),
        (Some(_), false) => shown.allow_from.join(", "),
    };
    let row = |name: &str, value: String| [name.to_owned(), value];
    let count = |count: Option<u32>| count.map_or_else(String::new, |count| count.to_string());
    let probe = shown.probe.unwrap_or_default().word();
    // As it is spelled there.
    let name = shown.name.parse().unwrap_or_else(|_| args.name.clone());
    print(&table(&[
        row("name", name.to_string()),
        row("endpoint", endpoint_of(&shown)),
        row("binding", binding_of(&shown)),
        row("allowed from", allow_from),
        row("listeners, most", count(shown.listeners_max)),
        row("flows, most", count(shown.flows_max)),
        row("probe", probe.into()),
        row(
            "definition",
            directory.definition(&name).display().to_string(),
        ),
        row("keys", directory.key_file(&name).display().to_string()),
    ]))
}

fn endpoint_of(shown: &Described) -> String {
    shown.endpoint.clone().unwrap_or_else(|| "-".into())
}

fn binding_of(shown: &Described) -> String {
    shown
        .bind
        .map_or_else(|| "-".into(), |bind| bind.to_string())
}

fn json(value: &impl Serialize) -> String {
    // These types have no maps and no failing parts.
    let mut text = printable_json(&serde_json::to_string_pretty(value).unwrap_or_default());
    text.push('\n');
    text
}
