//! `underpass agent allow` and `underpass sender allow`: what a connection string may lead to, by
//! the file of the agent or sender. A running process takes a change up by itself.

use std::path::Path;

use underpass_proto::{AllowEntry, HycoName, Rule};

use super::reload::RoleFile;
use super::{Exit, Failure};
use crate::files::allow::{Changed, List};
use crate::files::wording::nearest;
use crate::files::{Lock, LockError, allow, disk, strings, trust, unreadable};
use crate::output::note;
use crate::shell;

/// Options of `underpass agent allow` and `underpass sender allow`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Host and port to allow: host:port, *.corp:1433, 10.0.0.0/8:443, host:*
    #[arg(required = true, value_name = "ENTRY")]
    entries: Vec<AllowEntry>,
    /// Take the entries out instead
    #[arg(long)]
    remove: bool,
    /// For this hybrid connection only [default: for all in the file]
    #[arg(long, value_name = "NAME")]
    connection: Option<HycoName>,
    /// The file of the agent or sender
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
}

/// How messages name a role and what its list permits.
struct Words {
    role: &'static str,
    may: &'static str,
    may_not: &'static str,
}

fn words(rule: Rule) -> Words {
    match rule {
        Rule::Listen => Words {
            role: "agent",
            may: "may be dialled",
            may_not: "may not be dialled any more",
        },
        Rule::Send => Words {
            role: "sender",
            may: "may be taken on this machine",
            may_not: "may not be taken on this machine any more",
        },
    }
}

pub(super) fn run<F: RoleFile>(args: &Args) -> Result<(), Failure> {
    let Some(config) = &args.config else {
        let role = words(F::RULE).role;
        let what = format!("`--config FILE` is missing: the allow-list is in the {role}'s file");
        return Err(Failure::new(Exit::Usage, what).hint(started_without(F::RULE)));
    };
    if let Some(entry) = args
        .entries
        .iter()
        .find(|entry| entry.is_in_vain() && !args.remove)
    {
        return Err(Failure::new(Exit::Usage, format!("{entry} would permit nothing: unspecified, multicast, broadcast, link-local and cloud metadata addresses are never dialled"))
            .hint("allow the service's own name or address"));
    }
    let unread = |error: std::io::Error| {
        let failure = Failure::from(unreadable(&config.display().to_string(), &error));
        match error.kind() {
            std::io::ErrorKind::NotFound => failure.hint(started_without(F::RULE)),
            _ => failure,
        }
    };
    // A link stays one: the file that it leads to is replaced, and the folder of that is locked. It
    // is read by the path that was given, as `run` reads it: relative paths in it start there.
    let _alone = lock_beside(&trust::follow(config).map_err(unread)?, F::RULE)?;
    let read = disk::read(config).map_err(unread)?;
    let file = F::load(config)?;
    let list = match &args.connection {
        None => List::ForAll,
        Some(name) => List::Connect(index_of::<F>(&file, name, config)?),
    };
    let unfit = |why| Failure::configuration(format!("{}: {why}", config.display()));
    let mut text = read.text.to_string();
    let mut kept = Vec::new();
    if !args.remove {
        for (at, target) in targets_that_would_go(&file, list) {
            let own = allow::add(&text, List::Connect(at), std::slice::from_ref(&target));
            text = own.map_err(unfit)?.text;
            kept.push(target);
        }
    }
    let changed = if args.remove {
        allow::remove(&text, list, &args.entries)
    } else {
        allow::add(&text, list, &args.entries)
    }
    .map_err(unfit)?;
    if changed.text != *read.text {
        // What is written can be read again.
        F::parse(&config.display().to_string(), &changed.text)?;
        let mode = read.stamp.mode & 0o777;
        disk::replace(config, changed.text.as_bytes(), mode).map_err(|error| {
            let why = trust::reason(config, &error);
            Failure::configuration(format!("cannot write {}: {why}", config.display()))
                .hint("this command must run as a user that can write there")
        })?;
    }
    report(args, config, &changed, &kept, F::RULE)
}

fn started_without(rule: Rule) -> String {
    let role = words(rule).role;
    let single = match rule {
        Rule::Listen => "",
        Rule::Send => {
            "; or start the sender again with `--allow HOST:PORT`, or with a new application string, which names its target"
        }
    };
    format!(
        "a process that was started with one connection string alone has no file: write {role}.toml with `[[connect]]` and, below, `string_file = \"FILE\"`, start it with `underpass {role} run --config {role}.toml`, and name that file here{single}"
    )
}

/// Which `[[connect]]` is of this hybrid connection.
fn index_of<F: RoleFile>(file: &F, name: &HycoName, config: &Path) -> Result<usize, Failure> {
    let mut names = Vec::new();
    let mut faults = Vec::new();
    for (at, entry) in file.entries().iter().enumerate() {
        match strings::load(F::string_file(entry), F::RULE) {
            Ok(string) if string.name == *name => return Ok(at),
            Ok(string) => names.push(string.name.to_string()),
            Err(fault) => faults.push(fault.to_string()),
        }
    }
    let what = format!("no connection string in {} is of {name}", config.display());
    Err(Failure {
        exit: Exit::Configuration,
        errors: std::iter::once(what).chain(faults).collect(),
        hint: (!names.is_empty()).then(|| format!("there are {}", names.join(", "))),
    })
}

/// A list replaces what a connection string says, so the first entry for a string is written beside
/// its target, in the list of that string alone.
fn targets_that_would_go<F: RoleFile>(file: &F, list: List) -> Vec<(usize, AllowEntry)> {
    if !file.allow().0.is_empty() {
        return Vec::new();
    }
    let entries = file.entries().iter().enumerate();
    let concerned = entries.filter(|(at, entry)| {
        F::own_allow(entry).0.is_empty() && (list == List::ForAll || list == List::Connect(*at))
    });
    let target = |(at, entry): (usize, &F::Entry)| {
        let string = strings::load(F::string_file(entry), F::RULE)
            .inspect_err(|fault| note!("warning: {fault}; its target is not carried over"))
            .ok()?;
        Some((at, string.target.as_ref().map(AllowEntry::from)?))
    };
    concerned.filter_map(target).collect()
}

fn report(
    args: &Args,
    config: &Path,
    changed: &Changed,
    kept: &[AllowEntry],
    rule: Rule,
) -> Result<(), Failure> {
    let (file, words) = (config.display(), words(rule));
    for target in kept {
        note!(
            "{target} stays allowed for its connection string: it is the target there, and is now written in {file}"
        );
    }
    for entry in &changed.done {
        let may = if args.remove {
            words.may_not
        } else {
            words.may
        };
        match &args.connection {
            Some(name) => note!("{entry} {may} for {name}"),
            None => note!("{entry} {may}"),
        }
    }
    if args.remove && !changed.idle.is_empty() {
        let errors = changed
            .idle
            .iter()
            .map(|entry| format!("{entry} is not in that list of {file}"))
            .collect();
        return Err(Failure {
            exit: Exit::Failed,
            errors,
            hint: Some(entries_now(changed)),
        });
    }
    for entry in &changed.idle {
        note!("{entry} was in {file} already");
    }
    if args.remove && changed.now.is_empty() {
        note!(
            "the list is empty now: a connection string without other entries permits its target, and nothing else"
        );
    }
    if !changed.done.is_empty() {
        note!(
            "a running {} with `--config {}` goes by it within a second",
            words.role,
            shell::word(config)
        );
    }
    Ok(())
}

fn entries_now(changed: &Changed) -> String {
    let wanted = changed
        .idle
        .first()
        .map(AllowEntry::to_string)
        .unwrap_or_default();
    match nearest(&wanted, changed.now.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if changed.now.is_empty() => "the list there is empty".into(),
        None => format!("the list has {}", changed.now.join(", ")),
    }
}

/// Two that change the file at once do it one after the other.
fn lock_beside(path: &Path, rule: Rule) -> Result<Lock, Failure> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Lock::folder(folder).map_err(|error| match error {
        LockError::Held => Failure::configuration(format!(
            "another process changes {} just now",
            path.display()
        ))
        .hint("try again"),
        LockError::Io(error) => Failure::configuration(format!(
            "cannot open the folder of {}: {error}",
            path.display()
        ))
        .hint(started_without(rule)),
    })
}
