//! The programs that a run needs beside the product: where they are, and how one gets those that
//! are missing.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use underpass_tests::servers::program;

/// The peer that is built from crates.io. Its lock file holds a crate that today's compilers refuse
/// (`time` 0.3.29), hence no `--locked`.
const RATHOLE: &str = "rathole@0.5.0";

/// What a way or a row lacks here, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// In words.
    pub what: String,
    /// A command that brings it, if one does.
    pub install: Option<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.install {
            Some(command) => write!(f, ": `{command}`"),
            None => Ok(()),
        }
    }
}

/// A program of the system's packages.
///
/// # Errors
/// It is not installed.
pub fn packaged(name: &str, package: &str) -> Result<PathBuf, Missing> {
    program(name, package).map_err(|_| Missing {
        what: format!("{name} is not installed"),
        install: Some(format!("apt-get install {package}")),
    })
}

/// rathole: in the path, among Cargo's programs, or where [`install`] puts it.
///
/// # Errors
/// It is in none of them.
pub fn rathole() -> Result<PathBuf, Missing> {
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = env::split_paths(&path)
        .chain(cargo.map(|home| home.join("bin")))
        .chain(peers_folder().map(|folder| folder.join("bin")));
    folders
        .find_map(|folder| Some(folder.join("rathole")).filter(|file| file.is_file()))
        .ok_or_else(|| Missing {
            what: "rathole is not installed".into(),
            install: Some(match peers_folder() {
                Some(folder) => in_words(&rathole_installer(&folder)),
                None => format!("cargo install {RATHOLE}"),
            }),
        })
}

/// Builds what is missing of the peers, in words or not at all; `tell` hears of each step.
///
/// # Errors
/// A build fails.
pub fn install(tell: impl Fn(&str)) -> Result<()> {
    if let Ok(found) = rathole() {
        tell(&format!("rathole is there: {}", found.display()));
    } else {
        let folder = peers_folder().context("this program lies in no target folder: install rathole by `cargo install rathole@0.5.0` yourself")?;
        let mut command = rathole_installer(&folder);
        tell(&in_words(&command));
        let status = command.status().context("cannot start cargo")?;
        ensure!(status.success(), "cargo ended with {status}");
    }
    for (name, package) in [("ssh", "openssh-client"), ("sshd", "openssh-server")] {
        if let Err(missing) = packaged(name, package) {
            tell(&format!("left to you: {missing}"));
        }
    }
    Ok(())
}

/// Neither TLS nor websockets, which need C libraries and are measured nowhere.
fn rathole_installer(folder: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.args(["install", RATHOLE, "--no-default-features"]);
    command.args(["--features", "server,client,noise", "--root"]);
    command.arg(folder);
    command
}

fn in_words(command: &Command) -> String {
    let parts = std::iter::once(command.get_program()).chain(command.get_args());
    let parts: Vec<_> = parts.map(|part| part.to_string_lossy()).collect();
    parts.join(" ")
}

/// `<target folder>/peers`, of the target folder that this program lies in.
fn peers_folder() -> Option<PathBuf> {
    // target/PROFILE/underpass-bench, or target/PROFILE/deps/TEST-HASH.
    let program = env::current_exe().ok()?;
    let profile = program.parent()?;
    let profile = if profile.ends_with("deps") {
        profile.parent()?
    } else {
        profile
    };
    Some(profile.parent()?.join("peers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_the_command_that_brings_it() {
        let missing = packaged("no-such-program", "no-such-package").expect_err("missing");
        assert_eq!(
            missing.to_string(),
            "no-such-program is not installed: `apt-get install no-such-package`"
        );
        let command = rathole_installer(Path::new("/t/peers"));
        assert_eq!(
            in_words(&command),
            "cargo install rathole@0.5.0 --no-default-features --features server,client,noise --root /t/peers"
        );
    }

    #[test]
    fn peers_are_built_beside_the_profiles_of_the_target_folder() {
        let folder = peers_folder().expect("in a target folder");
        let test = env::current_exe().expect("known");
        assert!(test.starts_with(folder.parent().expect("not the root")));
    }
}
