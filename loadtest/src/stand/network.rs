//! Network namespaces joined by veth pairs: machines of their own, each with its hosts file, where
//! a test may be root. And processes of this machine that see another hosts file than the others.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::deadline::MOMENT;
use super::process::{run, run_ok};

/// One namespace. Dropped, it goes with all its links, and its hosts file.
#[derive(Debug)]
pub struct Machine {
    name: String,
}

impl Machine {
    /// Why no namespaces can be had here; `None`: they can.
    #[must_use]
    pub fn unavailable() -> Option<String> {
        if !rustix::process::getuid().is_root() {
            return Some("network namespaces need root".into());
        }
        match Self::new("try", &[]) {
            Ok(_) => None,
            Err(error) => Some(format!("no network namespace can be had here: {error:#}")),
        }
    }

    /// A machine that reaches nothing but itself, and knows these names. Its own name is of this
    /// test's process alone.
    ///
    /// # Errors
    /// When the kernel or a missing program (iproute2) does not permit it.
    pub fn new(name: &str, hosts: &[(&str, Ipv4Addr)]) -> Result<Self> {
        let name = format!("up-{name}-{}", std::process::id());
        ip(&["netns", "add", &name])?;
        let machine = Self { name };
        machine.ip(&["link", "set", "lo", "up"])?;
        let mut text = "127.0.0.1 localhost\n".to_owned();
        for (host, address) in hosts {
            text += &format!("{address} {host}\n");
        }
        fs::create_dir_all(machine.etc())?;
        fs::write(machine.hosts(), text)?;
        Ok(machine)
    }

    /// A cable to another machine, with the address of each end, in a network of 256.
    ///
    /// # Errors
    /// When the kernel does not permit it.
    pub fn join(&self, own: Ipv4Addr, other: &Self, address: Ipv4Addr) -> Result<()> {
        // Names of interfaces have at most 15 characters; each is alone in its namespace but for a
        // machine with two cables.
        let (here, there) = (interface(own), interface(address));
        let ends = ["netns", &self.name, "type", "veth", "peer", "name", &there];
        ip(&[&["link", "add", &*here][..], &ends, &["netns", &other.name]].concat())?;
        for (machine, interface, address) in [(self, &here, own), (other, &there, address)] {
            machine.ip(&["address", "add", &format!("{address}/24"), "dev", interface])?;
            machine.ip(&["link", "set", interface, "up"])?;
        }
        Ok(())
    }

    /// The hosts file that processes on this machine see as /etc/hosts.
    #[must_use]
    pub fn hosts(&self) -> PathBuf {
        self.etc().join("hosts")
    }

    /// A command on this machine.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// The file that stands for its network.
    #[must_use]
    pub fn network(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &*self.name], arguments].concat())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let mut command = Command::new("ip");
        let _ = run(command.args(["netns", "del", &self.name]), MOMENT);
        let _ = fs::remove_dir_all(self.etc());
    }
}

/// Why no process can be given a hosts file of its own here; `None`: it can.
#[must_use]
pub fn no_own_hosts_file() -> Option<String> {
    let tried = run_ok(&mut with_hosts(Path::new("/dev/null"), "true"), MOMENT);
    tried.err().map(|error| format!("{error:#}"))
}

/// A command that sees `hosts` as /etc/hosts, in a mount namespace of its own. It becomes the
/// program: no process is between.
#[must_use]
pub fn with_hosts(hosts: &Path, program: impl AsRef<OsStr>) -> Command {
    with_files(&[("/etc/hosts", hosts)], program)
}

/// The same with other files, each in the place of one of this machine's.
#[must_use]
pub fn with_files(files: &[(&str, &Path)], program: impl AsRef<OsStr>) -> Command {
    let mount = |(place, _): &(&str, &Path)| format!("mount --bind \"$1\" {place} && shift && ");
    let script: String = files.iter().map(mount).collect();
    let mut command = Command::new("unshare");
    if !rustix::process::getuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--mount", "sh", "-c"])
        .arg(script + "exec \"$@\"")
        .arg("sh")
        .args(files.iter().map(|(_, file)| file))
        .arg(program);
    command
}

/// The end of a cable that has this address, by the name that its machine knows it by.
#[must_use]
pub fn interface(address: Ipv4Addr) -> String {
    let [_, a, b, c] = address.octets();
    format!("up{a}-{b}-{c}")
}

fn ip(arguments: &[&str]) -> Result<()> {
    run_ok(Command::new("ip").args(arguments), Duration::from_secs(10))
        .context("ip (package iproute2)")
        .map(drop)
}
