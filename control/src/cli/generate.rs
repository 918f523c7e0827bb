//! `underpass completions` and `underpass man`: made from the very definition of the command line,
//! so that they cannot lag behind it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::{Cli, Failure, print};
use crate::files::disk;
use crate::output::note;

/// Options of `underpass completions`.
#[derive(clap::Args, Debug)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: ShellChoice,
}

/// The shells that there are completions for.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum ShellChoice {
    /// Write it to ~/.local/share/bash-completion/completions/underpass.
    Bash,
    /// Write it to _underpass in a folder of $fpath.
    Zsh,
    /// Write it to ~/.config/fish/completions/underpass.fish.
    Fish,
}

/// Options of `underpass man`.
#[derive(clap::Args, Debug)]
pub(super) struct ManArgs {
    /// The folder to write them to, one page for each command, like ~/.local/share/man/man1; made
    /// where it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let shell = match args.shell {
        ShellChoice::Bash => Shell::Bash,
        ShellChoice::Zsh => Shell::Zsh,
        ShellChoice::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "underpass", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Aside first: pages are put into their place as all files are, whole and not through links.
fn write_pages(out: &Path) -> io::Result<()> {
    let made = tempfile::tempdir()?;
    clap_mangen::generate_to(Cli::command(), made.path())?;
    disk::folder(out, disk::FOLDER)?;
    for page in fs::read_dir(made.path())? {
        let page = page?;
        let text = fs::read(page.path())?;
        disk::replace(&out.join(page.file_name()), &text, disk::OPEN)?;
    }
    Ok(())
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let unmade = |error: io::Error| {
        Failure::configuration(format!(
            "cannot write the pages to {}: {error}",
            args.out.display()
        ))
        .hint("`--out` names a folder that this user can write")
    };
    write_pages(&args.out).map_err(unmade)?;
    note!(
        "wrote a page for each command; `man -l {}` shows the first",
        crate::shell::word(args.out.join("underpass.1"))
    );
    Ok(())
}
