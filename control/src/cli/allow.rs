//! `underpass agent allow`: what the agent may dial, by its own file. A running agent takes a change up by itself.

use std::path::{Path, PathBuf};

use underpass_proto::{AllowEntry, Rule};

use super::{Exit, Failure};
use crate::files::agent::AgentFile;
use crate::files::wording::nearest;
use crate::files::{Lock, LockError, allow, disk, strings, unreadable};
use crate::output::note;
use crate::shell;

/// Options of `underpass agent allow`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// What the agent may dial: host:port, *.corp:1433, 10.0.0.0/8:443, host:*
    #[arg(required = true, value_name = "ENTRY")]
    entries: Vec<AllowEntry>,
    /// Take the entries out instead
    #[arg(long)]
    remove: bool,
    /// The agent's file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let Some(config) = &args.config else {
        return Err(Failure::new(
            Exit::Usage,
            "`--config FILE` is missing: the allow-list stands in the agent's file",
        )
        .hint(STARTED_WITHOUT));
    };
    if let Some(entry) = args
        .entries
        .iter()
        .find(|entry| entry.is_in_vain() && !args.remove)
    {
        return Err(Failure::new(Exit::Usage, format!("{entry} would permit nothing: unspecified, multicast, broadcast, link-local and cloud metadata addresses are never dialled"))
            .hint("allow the service's own name or address"));
    }
    // A link stays one: what it leads to is what is replaced.
    let path = std::fs::canonicalize(config).unwrap_or_else(|_| config.clone());
    let _alone = lock_beside(&path)?;
    let read = disk::read(&path).map_err(|error| {
        let failure = Failure::from(unreadable(&config.display().to_string(), &error));
        match error.kind() {
            std::io::ErrorKind::NotFound => failure.hint(STARTED_WITHOUT),
            _ => failure,
        }
    })?;
    let file = AgentFile::load(&path)?;
    let own_targets = if args.remove {
        Vec::new()
    } else {
        targets_that_would_go(&file)
    };
    let wanted: Vec<AllowEntry> = own_targets.iter().chain(&args.entries).cloned().collect();
    let changed = if args.remove {
        allow::remove(&read.text, &wanted)
    } else {
        allow::add(&read.text, &wanted)
    }
    .map_err(|why| Failure::configuration(format!("{}: {why}", config.display())))?;
    if !changed.done.is_empty() {
        // What is written can be read again.
        AgentFile::parse(&config.display().to_string(), &changed.text, Path::new(""))?;
        let mode = read.stamp.mode & 0o777;
        disk::replace(&path, changed.text.as_bytes(), mode).map_err(|error| {
            Failure::configuration(format!("cannot write {}: {error}", config.display()))
                .hint("this command must run as a user that can write there")
        })?;
    }
    tell(args, config, &changed, &own_targets)
}

const STARTED_WITHOUT: &str = "an agent that was started with one connection string alone has no file: write agent.toml with `[[connect]]` and, below, `string_file = \"FILE\"`, start it with `underpass agent run --config agent.toml`, and name that file here";

/// A list of its own replaces what the connection strings say, so the first entry brings their targets along.
fn targets_that_would_go(file: &AgentFile) -> Vec<AllowEntry> {
    if !file.allow.0.is_empty() {
        return Vec::new();
    }
    let strings = file.connects.iter().filter_map(|connect| {
        strings::load(&connect.string_file, Rule::Listen)
            .inspect_err(|fault| note!("warning: {fault}; its target is not carried over"))
            .ok()
    });
    strings
        .filter_map(|string| string.target.as_ref().map(AllowEntry::from))
        .collect()
}

fn tell(
    args: &Args,
    config: &Path,
    changed: &allow::Changed,
    own_targets: &[AllowEntry],
) -> Result<(), Failure> {
    let file = config.display();
    for entry in &changed.done {
        let what = match (args.remove, own_targets.contains(entry)) {
            (true, _) => "may not be dialled any more",
            (false, true) => {
                "stays allowed: it is the target of a connection string, and was so without being written here"
            }
            (false, false) => "may be dialled",
        };
        note!("{entry} {what}");
    }
    if args.remove && !changed.idle.is_empty() {
        let errors = changed
            .idle
            .iter()
            .map(|entry| format!("{entry} does not stand in {file}"))
            .collect();
        return Err(Failure {
            exit: Exit::Failed,
            errors,
            hint: Some(standing(changed)),
        });
    }
    for entry in &changed.idle {
        note!("{entry} stood in {file} already");
    }
    if args.remove && changed.now.is_empty() {
        note!(
            "the list is empty now: the targets of the connection strings, and nothing else, may be dialled"
        );
    }
    if !changed.done.is_empty() {
        note!(
            "a running agent with `--config {}` goes by it within a second",
            shell::word(config)
        );
    }
    Ok(())
}

fn standing(changed: &allow::Changed) -> String {
    let asked = changed
        .idle
        .first()
        .map(AllowEntry::to_string)
        .unwrap_or_default();
    match nearest(&asked, changed.now.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if changed.now.is_empty() => "the list there is empty".into(),
        None => format!("there stand {}", changed.now.join(", ")),
    }
}

/// Two that change the file at once do it one after the other.
fn lock_beside(path: &Path) -> Result<Lock, Failure> {
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
        .hint(STARTED_WITHOUT),
    })
}
