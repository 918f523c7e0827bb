//! `underpass key`: keys of hybrid connections, regenerated one by one.

use clap::{Args, Subcommand, ValueEnum};
use underpass_proto::key::Which;
use underpass_proto::{HycoName, Rule};

use super::desk::Desk;
use super::{DirArgs, Failure};
use crate::output::note;
use crate::shell;

/// The commands below `underpass key`.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Regenerate one key; sessions that use the old key are closed within one second
    Regenerate(RegenerateArgs),
}

#[derive(Args, Debug)]
pub(super) struct RegenerateArgs {
    /// The hybrid connection
    name: HycoName,
    /// listen: agents' keys; send: applications'
    #[arg(long, value_enum)]
    rule: RuleChoice,
    /// Which of the two
    #[arg(long, value_enum)]
    key: KeyChoice,
    #[command(flatten)]
    dir: DirArgs,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum RuleChoice {
    Listen,
    Send,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum KeyChoice {
    Primary,
    Secondary,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    let Command::Regenerate(args) = command;
    let (rule, role) = match args.rule {
        RuleChoice::Listen => (Rule::Listen, "on-premises"),
        RuleChoice::Send => (Rule::Send, "application"),
    };
    let (which, option) = match args.key {
        KeyChoice::Primary => (Which::Primary, ""),
        KeyChoice::Secondary => (Which::Secondary, " --secondary"),
    };
    Desk::open(&args.dir)?.regenerate(&args.name, rule, which)?;
    let RegenerateArgs { name, dir, .. } = &args;
    let dir = shell::word(&dir.dir);
    note!(
        "regenerated the {which} {} key of {name}; sessions that use the old key are closed within one second\n\
         next:\n  underpass connection string {name} --role {role}{option} --dir {dir} --out {name}.connection",
        rule.right()
    );
    Ok(())
}
