//! `without-io-uring`: becomes another program to which the kernel refuses io_uring, as many
//! containers do.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::Context;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// `io_uring_setup`: the same number on every architecture of Linux.
const IO_URING_SETUP: i64 = 425;

/// `EPERM`: what container runtimes answer.
const NOT_PERMITTED: u32 = 1;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// Comes back only where the program cannot be started.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (program, arguments) = args.program.split_first().context("no program")?;
    let filter = SeccompFilter::new(
        BTreeMap::from([(IO_URING_SETUP, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(NOT_PERMITTED),
        std::env::consts::ARCH.try_into()?,
    )?;
    let filter: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&filter).context("the kernel takes no filter of system calls")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
