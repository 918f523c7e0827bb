//! `underpass connection`: hybrid connections, on the files alone. Control takes notice of the files by itself.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde::Serialize;
use underpass_proto::key::Which;
use underpass_proto::snapshot::HycoLimits;
use underpass_proto::{ConnectionString, Endpoint, Host, HycoName, Rule};

use super::options::{binding, port};
use super::table::table;
use super::{DirArgs, Exit, Failure, installation, print};
use crate::files::definition::Definition;
use crate::files::namespace::Namespace;
use crate::files::{Directory, Fault, Unmade, disk, keys};

/// The commands below `underpass connection`.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Define a hybrid connection and make its keys
    Create(CreateArgs),
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
    #[arg(long)]
    host: Host,
    /// TCP port of the service
    #[arg(long, value_parser = port)]
    port: NonZeroU16,
    /// Where applications connect on the relay's machine, like 127.0.0.1:14330
    #[arg(long, value_name = "ADDR", value_parser = binding)]
    bind: Option<SocketAddr>,
    /// A network that may connect to the binding; needed where that is not loopback; may be repeated
    #[arg(long, value_name = "CIDR", requires = "bind")]
    allow_from: Vec<IpNet>,
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
        Command::String(args) => string(&args),
        Command::List(args) => list(&args),
        Command::Show(args) => show(&args),
    }
}

fn create(args: CreateArgs) -> Result<(), Failure> {
    let directory = args.dir.directory();
    let (namespace, _) = installation::open(&directory)?;
    let definition = Definition {
        name: args.name,
        endpoint: Endpoint {
            host: args.host,
            port: args.port,
        },
        bind: args.bind,
        allow_from: args.allow_from,
        limits: HycoLimits::default(),
        probe: true,
        bind_line: 0,
    };
    let path = directory.definition(&definition.name);
    let text = definition.text();
    check_new(&directory, &definition, &text)?;
    // Keys first: a definition is never seen without them.
    keys::make(&directory.key_file(&definition.name), &mut rand::rng())?;
    disk::create(&path, text.as_bytes(), disk::OPEN).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => {
            exists(&directory, &definition.name, &path.display().to_string())
        }
        _ => Unmade {
            path: path.clone(),
            source,
        }
        .into(),
    })?;
    eprint!("{}", next_steps(&args.dir, &definition, &namespace));
    Ok(())
}

/// What would be wrong with the file is said before it is there.
fn check_new(directory: &Directory, definition: &Definition, text: &str) -> Result<(), Failure> {
    let all = installation::definitions(directory)?;
    if let Some(found) = all.iter().find(|found| found.is(&definition.name)) {
        return Err(exists(directory, &definition.name, &found.file));
    }
    Definition::parse(definition.name.clone(), "", text).map_err(|faults| {
        let errors = faults.into_iter().map(|fault| fault.what).collect();
        Failure {
            exit: Exit::Usage,
            errors,
            hint: Some("`--allow-from CIDR` says who may connect".into()),
        }
    })?;
    let same_bind = all
        .iter()
        .filter_map(|found| found.definition.as_ref().ok())
        .find(|other| {
            other.bind.is_some()
                && other.bind == definition.bind
                && other.bind.is_some_and(|bind| bind.port() != 0)
        });
    match same_bind {
        Some(other) => Err(Failure::configuration(format!(
            "the binding {} is taken by {}",
            definition
                .bind
                .map_or_else(String::new, |bind| bind.to_string()),
            other.name
        ))
        .hint("choose another address or port for `--bind`")),
        None => Ok(()),
    }
}

fn exists(directory: &Directory, name: &HycoName, file: &str) -> Failure {
    Failure::configuration(format!(
        "{name} exists already in {}",
        directory.root().display()
    ))
    .hint(format!("edit {file}, or choose another name"))
}

fn next_steps(dir: &DirArgs, definition: &Definition, namespace: &Namespace) -> String {
    let Definition {
        name,
        endpoint,
        bind,
        ..
    } = definition;
    let dir = dir.dir.display();
    let mut out = String::new();
    let _ = writeln!(out, "made {name} → {endpoint} in {dir}");
    if let Some(bind) = bind {
        let _ = writeln!(
            out,
            "  applications on the relay's machine connect to {bind}"
        );
    }
    if !namespace.public_address_given {
        let _ = writeln!(
            out,
            "  agents will dial {}; if that is not how they reach this machine, set public_address in {dir}/namespace.toml first",
            namespace.public_address
        );
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
    let directory = args.dir.directory();
    let definition = installation::definition(&directory, &args.name)?;
    let (namespace, identity) = installation::open(&directory)?;
    let rule = match args.role {
        Role::Application => Rule::Send,
        Role::OnPremises => Rule::Listen,
    };
    let which = if args.secondary {
        Which::Secondary
    } else {
        Which::Primary
    };
    let string = ConnectionString {
        relay_host: namespace.public_address.host.clone(),
        relay_port: namespace.public_address.port.get(),
        key: key(&directory, &definition.name, rule, which)?,
        rule,
        pins: vec![identity.pin],
        target: (rule == Rule::Listen).then_some(definition.endpoint),
        name: definition.name,
    };
    let mut line = string.emit();
    line.push('\n');
    match &args.out {
        Some(path) => disk::replace(path, line.as_bytes(), disk::SECRET).map_err(|error| {
            Failure::configuration(format!("cannot make {}: {error}", path.display())).hint(
                "`--out` names a file in a directory that is there and that this user can write",
            )
        })?,
        None => print(&line)?,
    }
    if !namespace.public_address_given {
        eprintln!(
            "hint: the string carries {}; if agents reach this machine otherwise, set public_address in {}",
            namespace.public_address,
            directory.namespace().display()
        );
    }
    Ok(())
}

fn key(
    directory: &Directory,
    name: &HycoName,
    rule: Rule,
    which: Which,
) -> Result<underpass_proto::Key, Failure> {
    let path = keys::find(directory, name)?;
    if !path.exists() {
        keys::make(&path, &mut rand::rng())?;
    }
    let file = directory.shown(&path);
    let pair = keys::load(&file, &path)?.rule(rule).cloned();
    let key = pair.as_ref().and_then(|pair| pair.which(which)).cloned();
    key.ok_or_else(|| {
        Fault::whole(
            file,
            format!(
                "has no {which} key under [{}]; add one, made by `openssl rand -base64 32`",
                rule.right()
            ),
        )
        .into()
    })
}

/// One definition as JSON. Stable.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    endpoint: Option<&'a Endpoint>,
    bind: Option<SocketAddr>,
    allow_from: &'a [IpNet],
    listeners_max: Option<u32>,
    flows_max: Option<u32>,
    probe: Option<bool>,
    faults: Vec<String>,
}

impl<'a> Shown<'a> {
    fn new(name: &'a str, definition: &'a Result<Definition, Vec<Fault>>) -> Self {
        let good = definition.as_ref().ok();
        Self {
            name,
            endpoint: good.map(|good| &good.endpoint),
            bind: good.and_then(|good| good.bind),
            allow_from: good.map_or(&[], |good| &good.allow_from),
            listeners_max: good.map(|good| good.limits.listeners_max),
            flows_max: good.map(|good| good.limits.flows_max),
            probe: good.map(|good| good.probe),
            faults: definition
                .as_ref()
                .err()
                .map(|faults| faults.iter().map(Fault::to_string).collect())
                .unwrap_or_default(),
        }
    }

    fn endpoint(&self) -> String {
        self.endpoint
            .map_or_else(|| "-".into(), Endpoint::to_string)
    }

    fn bind(&self) -> String {
        self.bind
            .map_or_else(|| "-".into(), |bind| bind.to_string())
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let all = installation::definitions(&args.dir.directory())?;
    let shown: Vec<Shown<'_>> = all
        .iter()
        .map(|found| Shown::new(&found.name, &found.definition))
        .collect();
    if args.json {
        return print(&json(&shown));
    }
    if all.is_empty() {
        let folder = args.dir.directory().connections();
        eprintln!(
            "hint: {} has no hybrid connection; make one with `underpass connection create`, or name another directory with `--dir DIR`",
            folder.display()
        );
        return Ok(());
    }
    let head = ["NAME", "ENDPOINT", "BINDING"].map(str::to_owned);
    let rows = shown
        .iter()
        .map(|shown| [shown.name.to_owned(), shown.endpoint(), shown.bind()]);
    print(&table(
        &std::iter::once(head).chain(rows).collect::<Vec<_>>(),
    ))?;
    for fault in shown.iter().flat_map(|shown| &shown.faults) {
        eprintln!("warning: {fault}");
    }
    Ok(())
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let directory = args.dir.directory();
    let definition = installation::definition(&directory, &args.name)?;
    let name = definition.name.clone();
    let definition = Ok(definition);
    let shown = Shown::new(name.as_str(), &definition);
    if args.json {
        return print(&json(&shown));
    }
    let allow_from: Vec<String> = shown.allow_from.iter().map(IpNet::to_string).collect();
    let allow_from = if allow_from.is_empty() {
        "this machine".into()
    } else {
        allow_from.join(", ")
    };
    let row = |name: &str, value: String| [name.to_owned(), value];
    let count = |count: Option<u32>| count.map_or_else(String::new, |count| count.to_string());
    print(&table(&[
        row("name", name.to_string()),
        row("endpoint", shown.endpoint()),
        row("binding", shown.bind()),
        row(
            "allowed from",
            if shown.bind.is_some() {
                allow_from
            } else {
                "-".into()
            },
        ),
        row("listeners, most", count(shown.listeners_max)),
        row("flows, most", count(shown.flows_max)),
        row(
            "probe",
            if shown.probe == Some(true) {
                "on".into()
            } else {
                "off".into()
            },
        ),
        row(
            "definition",
            directory.definition(&name).display().to_string(),
        ),
        row("keys", directory.key_file(&name).display().to_string()),
    ]))
}

fn json(value: &impl Serialize) -> String {
    // These types have no maps and no failing parts.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}
