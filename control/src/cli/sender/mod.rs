//! `underpass sender run`: gives applications on this machine local addresses for endpoints
//! elsewhere.

mod names;
mod permit;
mod places;
mod site;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use crossbeam_channel::{Receiver, bounded, select};
use rand::RngExt as _;
use tracing::warn;
use underpass_dataplane::sender::{self, Checked, Config, Error, Heard};
use underpass_proto::{AllowEntry, AllowList, Role, Rule};

use self::names::{Mode, Names};
use self::permit::{NextStep, Refused};
use self::site::Site;
use super::agent::check_once_each;
use super::allow;
use super::options::binding;
use super::relay::raise_file_limit;
use super::reload::{self, Loader, RoleFile, WatchedLoader};
use super::source::SourceArgs;
use super::table::table;
use super::{DataPlaneArgs, Exit, Failure, identity, print};
use crate::files::Fault;
use crate::files::data_plane::DataPlane;
use crate::files::identity::configuration_id;
use crate::files::sender::{ConnectEntry, SenderFile, open_to_others};
use crate::quantity::millis;
use crate::signals;

/// How long `--check`, and a question for an endpoint, wait for an answer.
const CHECK_DEADLINE: Duration = Duration::from_secs(5);

/// For so long after the start, a relay that does not answer is asked again soon.
const EAGER_FOR: Duration = Duration::from_secs(60);

/// The longest pause before it is asked again, first and later.
const PAUSE_MAX: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// The commands below `underpass sender`.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Listen on this machine for applications, and carry their bytes to the relay
    Run(RunArgs),
    /// Change which hosts and ports the sender may take on this machine, in its file
    Allow(allow::Args),
}

/// Options of `underpass sender run`.
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    from: SourceArgs,
    /// Where applications connect, like 127.0.0.1:1433
    /// [default: the endpoint's own port, at an address 127.0.0.x that its host has alone]
    #[arg(long, value_name = "ADDR", value_parser = binding, conflicts_with = "config")]
    bind: Option<SocketAddr>,
    /// Host and port that the sender may take on this machine, like sql01.corp:1433 [default: the
    /// target in the connection string]
    #[arg(long, value_name = "ENTRY", conflicts_with = "config")]
    allow: Vec<AllowEntry>,
    /// Let applications use the original host names: print the hosts entries for that, or keep them
    /// in the hosts file while the sender runs
    #[arg(
        long,
        value_enum,
        conflicts_with = "check",
        long_help = "Let applications use the original host names: print the hosts entries for that, or keep them in the hosts file while the sender runs.\n\n\
        The entries stand between two marker lines; nothing else of the file is changed. They are taken out at the end, and those of a sender that was killed at its next start"
    )]
    hosts: Option<Mode>,
    /// The hosts file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/hosts",
        requires = "hosts"
    )]
    hosts_file: PathBuf,
    /// Trust these CA certificates (PEM) where a connection string has no pin
    /// [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Ask the relay once whether it would take this sender, say what was found, and exit: 0 well,
    /// 1 refused, 3 endpoint not allowed here, 4 not authorised, 5 unreachable
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    data_plane: DataPlaneArgs,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => serve(args),
        Command::Allow(args) => allow::run::<SenderFile>(&args),
    }
}

fn serve(mut args: RunArgs) -> Result<(), Failure> {
    args.data_plane.settle();
    if let Some((bind, why)) = args
        .bind
        .and_then(|bind| Some((bind, open_to_others(bind)?)))
    {
        return Err(Failure::new(Exit::Usage, format!("--bind {bind} {why}")));
    }
    let source = args.from.find(Rule::Send)?;
    let loader = Loader::<SenderFile>::start(source, args.ca_file.take())?;
    check_once_each(loader.loaded().connects.iter().map(|(_, string)| string))?;
    args.data_plane.fill_from(&loader.loaded().file.data_plane);
    let configuration = configuration_id(&loader.source().identity());
    let id = match args.check {
        true => configuration,
        false => identity::keep(Role::Sender, loader.source()),
    };
    let next_step = NextStep::of(loader.source());
    let mut site = Site::new(id, args.data_plane.settings(), next_step);
    site.bind = args.bind;
    site.allow = AllowList(std::mem::take(&mut args.allow));
    site.takes_names = args.hosts.is_some();
    let site = Arc::new(site);
    if args.check {
        return check(&site, &loader);
    }
    raise_file_limit();
    let loader = WatchedLoader::new(loader);
    let (requests, told) = signals::drain_requests_and_word()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot take signals: {error}")))?;
    let names = Arc::new(Names::start(args.hosts, args.hosts_file, configuration)?);
    let Some((config, loader)) = first(&site, loader, &told)? else {
        return Ok(());
    };
    let updates = watch(loader, &site, &names)?;
    let heard = {
        let (site, names) = (Arc::clone(&site), Arc::clone(&names));
        move |heard| {
            match heard {
                Heard::Registered {
                    hyco,
                    endpoint,
                    bound,
                } => site.heard(&hyco, &endpoint, bound),
                Heard::Gone { hyco } => site.gone(&hyco),
            }
            show(&site, &names);
        }
    };
    let ended = sender::run(config, site.settings.clone(), requests, updates, heard);
    names.end();
    ended.map_err(explain)
}

/// Brings the hosts entries in line with what is registered and permitted.
fn show(site: &Site, names: &Names) {
    let (shown, relays) = site.shown();
    names.show(shown, relays);
}

/// Waits until at least one can be bound. `None`: the process was told to end before.
fn first(
    site: &Arc<Site>,
    mut loader: WatchedLoader<SenderFile>,
    told: &Receiver<()>,
) -> Result<Option<(Config, WatchedLoader<SenderFile>)>, Failure> {
    let started = Instant::now();
    let mut said = String::new();
    loop {
        let sited = site.sited(loader.loaded());
        if !sited.config.connects.is_empty() {
            site.is_news(&sited.config);
            return Ok(Some((sited.config, loader)));
        }
        let is_refused = !sited.refused.is_empty();
        let (answer, answered) = bounded(1);
        let (asker, ca) = (Arc::clone(site), loader.loaded().ca.clone());
        thread::spawn(move || {
            let asked = match sited.waiting.is_empty() {
                true => Ok(0),
                false => asker.ask(&sited.waiting, &ca),
            };
            let _ = answer.send(asked);
        });
        select! {
            recv(told) -> _ => return Ok(None),
            recv(answered) -> answer => match answer {
                Ok(Ok(1..)) => continue,
                Ok(Ok(0)) => {}
                Ok(Err(error @ (Error::Unreachable(_) | Error::Refused { .. }))) => {
                    let why = error.to_string();
                    if said != why {
                        warn!("{why}; trying on");
                        said = why;
                    }
                }
                Ok(Err(error)) => return Err(explain(error)),
                Err(_) => return Err(Failure::new(Exit::Failed, "the question for the endpoints was lost")),
            }
        }
        // Where only a person's word is missing, the files are read again soon.
        let is_late = started.elapsed() > EAGER_FOR && !is_refused;
        let most = PAUSE_MAX[usize::from(is_late)];
        let pause = rand::rng().random_range(Duration::ZERO..most);
        if !loader.wait(Instant::now() + pause, told) {
            return Ok(None);
        }
    }
}

/// Hands on what changes: files, endpoints that move, and those that are known later than the
/// others.
fn watch(
    loader: WatchedLoader<SenderFile>,
    site: &Arc<Site>,
    names: &Arc<Names>,
) -> Result<Receiver<Config>, Failure> {
    let stale = {
        let site = Arc::clone(site);
        move || site.is_stale()
    };
    let (site, names) = (Arc::clone(site), Arc::clone(names));
    reload::watch(loader, stale, move |loaded| {
        check_once_each(loaded.connects.iter().map(|(_, string)| string))?;
        let mut sited = site.sited(loaded);
        if !sited.waiting.is_empty() {
            if let Err(error) = site.ask(&sited.waiting, &loaded.ca) {
                warn!("{error}; others are served meanwhile");
            }
            sited = site.sited(loaded);
        }
        if sited.config.connects.is_empty() || !site.is_news(&sited.config) {
            show(&site, &names);
            return Ok(None);
        }
        show(&site, &names);
        Ok(Some(sited.config))
    })
    .map_err(|error| Failure::new(Exit::Failed, format!("cannot watch files: {error}")))
}

fn check(site: &Site, loader: &Loader<SenderFile>) -> Result<(), Failure> {
    let loaded = loader.loaded();
    let strings = loaded.connects.iter().map(|(_, string)| string.clone());
    let connects = strings.map(|string| sender::Connect {
        string_file: None,
        string,
        bind: SocketAddr::from(([127, 0, 0, 1], 0)),
    });
    let config = Config {
        connects: connects.collect(),
        ca: loaded.ca.clone(),
        agent_id: site.agent_id,
    };
    let checked = sender::check(config, site.settings.clone(), CHECK_DEADLINE).map_err(explain)?;
    site.learn(loaded.connects.iter().map(|(_, string)| string), &checked);
    let sited = site.sited(loaded);
    for connect in &sited.config.connects {
        try_binding(connect.bind)?;
    }
    print(&report(&checked, &sited.config))?;
    check_refused(site, &sited.refused)
}

/// An endpoint that may not be taken is what keeps a sender from serving its applications.
fn check_refused(site: &Site, refused: &[Refused]) -> Result<(), Failure> {
    let Some(first) = refused.first() else {
        return Ok(());
    };
    Err(Failure {
        exit: Exit::Configuration,
        errors: refused.iter().map(Refused::words).collect(),
        hint: Some(site.next_step.words(first)),
    })
}

/// Whether the address could be had. One that is in use may be this sender's own, which runs.
fn try_binding(address: SocketAddr) -> Result<(), Failure> {
    match TcpListener::bind(address) {
        Err(source) if source.kind() != ErrorKind::AddrInUse => {
            Err(explain(Error::Bind { address, source }))
        }
        _ => Ok(()),
    }
}

fn report(checked: &[Checked], config: &Config) -> String {
    let head = ["HYBRID CONNECTION", "ENDPOINT", "BINDING", "ROUND TRIP"].map(str::to_owned);
    let rows = checked.iter().map(|checked| {
        let mut connects = config.connects.iter();
        let connect = connects.find(|connect| connect.string.name == checked.hyco);
        [
            checked.hyco.to_string(),
            checked.endpoint.to_string(),
            connect.map_or_else(|| "-".into(), |connect| connect.bind.to_string()),
            millis(checked.rtt_us),
        ]
    });
    table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

fn explain(error: Error) -> Failure {
    match error {
        Error::Config(_) => Failure::configuration(error),
        Error::Io(_) => Failure::configuration(error).hint("`--io auto` takes what this kernel permits"),
        Error::Bind { address, ref source } => {
            let hint = bind_hint(address, source.kind());
            Failure::configuration(error).hint(hint)
        }
        Error::Refused { ref hyco, .. } => {
            let hint = format!("the key is right; `underpass status {hyco}` on the relay's machine shows who is registered, and its definition has the limits");
            Failure::new(Exit::Failed, error).hint(hint)
        }
        Error::NotAuthorised(_) => Failure::new(Exit::NotAuthorised, error)
            .hint("on the relay's machine, `underpass connection string NAME --role application` prints the right string; the relay's log says which part is wrong"),
        // The data plane's own words.
        Error::Unreachable(ref why) if why.contains("certificate is not") => Failure::new(Exit::Unreachable, error).hint("another relay is at that address, or its certificate was replaced: take a new string from the relay's machine, by `underpass connection string NAME --role application`"),
        Error::Unreachable(ref why) if why.contains("the relay closed the session") => Failure::new(Exit::Unreachable, error)
            .hint("the relay is there and the way to it is open; its log, and `underpass status` on its machine, say why it closed the session"),
        Error::Unreachable(_) => Failure::new(Exit::Unreachable, error).hint("check the address in the connection string, that the relay runs, and that UDP to its port is let through on the way"),
        Error::Worker(_) => Failure::new(Exit::Failed, error),
    }
}

fn bind_hint(address: SocketAddr, kind: ErrorKind) -> String {
    let port = address.port();
    match kind {
        ErrorKind::AddrInUse => format!(
            "`ss -ltnp 'sport = :{port}'` shows who has it; `--bind ADDR`, or bind in sender.toml, chooses another"
        ),
        ErrorKind::AddrNotAvailable => format!(
            "{} is none of this machine's addresses; Linux has all of 127.0.0.0/8, like 127.0.0.2:{port}",
            address.ip()
        ),
        ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a right: `sudo setcap cap_net_bind_service=+ep $(command -v underpass)`, or AmbientCapabilities=CAP_NET_BIND_SERVICE in a unit; or choose another port, like `--bind 127.0.0.1:{}`",
            u32::from(port) + 8000
        ),
        _ => "choose another address or port by `--bind ADDR`, or bind in sender.toml".into(),
    }
}

impl RoleFile for SenderFile {
    type Entry = ConnectEntry;
    const RULE: Rule = Rule::Send;

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

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn an_address_that_cannot_be_had_says_what_to_do() {
        for (kind, next) in [
            (ErrorKind::AddrInUse, "`ss -ltnp 'sport = :443'`"),
            (
                ErrorKind::AddrNotAvailable,
                "10.0.0.1 is none of this machine's addresses",
            ),
            (
                ErrorKind::PermissionDenied,
                "or choose another port, like `--bind 127.0.0.1:8443`",
            ),
        ] {
            let address = "10.0.0.1:443".parse().unwrap();
            let source = io::Error::from(kind);
            let failure = explain(Error::Bind { address, source });
            assert_eq!(failure.exit, Exit::Configuration);
            assert!(failure.hint.as_ref().unwrap().contains(next), "{failure:?}");
        }
    }
}
