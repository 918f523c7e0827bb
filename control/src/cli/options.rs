//! Options that several commands share.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use underpass_dataplane::{Settings, io};
use underpass_proto::Host;
use underpass_proto::limits::{GRACE_DEFAULT, PING_AFTER};

use super::DumpArgs;
use crate::files::Directory;
use crate::files::data_plane::{DataPlane, MTU_MAX_BOUNDS};
use crate::files::typed::{Binding, Network, ServiceHost};
use crate::quantity::duration;

/// Where the installation's files are.
#[derive(Args, Clone, Debug)]
pub struct DirArgs {
    /// The installation's directory: definitions, keys, certificate. Made where it is missing
    #[arg(
        long,
        env = "UNDERPASS_DIR",
        value_name = "DIR",
        default_value = "underpass"
    )]
    pub dir: PathBuf,
}

impl DirArgs {
    /// The directory.
    #[must_use]
    pub fn directory(&self) -> Directory {
        Directory::new(&self.dir)
    }
}

/// How a data plane process works.
#[derive(Args, Clone, Default, Debug)]
pub struct DataPlaneArgs {
    /// How to talk to the kernel: io_uring (ring), readiness (poll), or what it permits (auto)
    #[arg(long, value_enum)]
    pub io: Option<IoChoice>,
    /// Number of workers
    /// [default: one for every two cores, for an agent at most as many as the relay has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=255))]
    pub workers: Option<u16>,
    /// The most that one UDP datagram may carry, bytes [default: what the path allows]
    #[arg(long, value_name = "BYTES", value_parser = mtu_max)]
    pub mtu_max: Option<u16>,
    /// How long live flows may go on after the first SIGTERM, like 30s, 500ms or 5m [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub grace: Option<Duration>,
    /// How often the relay gets a sign of life: agent.toml and sender.toml say it.
    #[arg(skip)]
    pub keep_alive: Option<Duration>,
    /// What a crash leaves behind.
    #[command(flatten)]
    pub dumps: DumpArgs,
}

/// The choices of `--io`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoChoice {
    /// io_uring where the kernel permits it, else poll.
    Auto,
    /// io_uring, or an error.
    Ring,
    /// Readiness.
    Poll,
}

impl DataPlaneArgs {
    /// Settles what the whole process is bound to: called before the first key is read.
    pub(super) fn settle(&self) {
        self.dumps.settle();
    }

    /// What the command line does not say is taken from the file.
    pub(super) fn fill_from(&mut self, file: &DataPlane) {
        let io = file.io.map(|io| match io {
            "ring" => IoChoice::Ring,
            "poll" => IoChoice::Poll,
            _ => IoChoice::Auto,
        });
        self.io = self.io.or(io);
        self.workers = self.workers.or(file.workers);
        self.mtu_max = self.mtu_max.or(file.mtu_max);
        self.keep_alive = self.keep_alive.or(file.keep_alive);
    }

    /// As the data plane takes them.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let io = match self.io {
            None | Some(IoChoice::Auto) => io::Choice::Auto,
            Some(IoChoice::Ring) => io::Choice::Ring,
            Some(IoChoice::Poll) => io::Choice::Poll,
        };
        Settings {
            io,
            workers: self.workers,
            mtu_max: self.mtu_max,
            grace: self.grace.unwrap_or(GRACE_DEFAULT),
            keep_alive: self.keep_alive.unwrap_or(PING_AFTER),
        }
    }

    /// The same as arguments, for a child process.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let io = self
            .io
            .and_then(|io| io.to_possible_value())
            .map(|value| format!("--io={}", value.get_name()));
        let workers = self.workers.map(|workers| format!("--workers={workers}"));
        let mtu_max = self.mtu_max.map(|mtu| format!("--mtu-max={mtu}"));
        let grace = self
            .grace
            .map(|grace| format!("--grace={}ms", grace.as_millis()));
        [io, workers, mtu_max, grace]
            .into_iter()
            .flatten()
            .chain(self.dumps.arguments())
            .collect()
    }
}

fn mtu_max(text: &str) -> Result<u16, String> {
    let (least, most) = (MTU_MAX_BOUNDS.start(), MTU_MAX_BOUNDS.end());
    text.parse()
        .ok()
        .filter(|mtu| MTU_MAX_BOUNDS.contains(mtu))
        .ok_or_else(|| format!("a number from {least} to {most} is needed"))
}

/// A TCP port that can be connected to.
pub(super) fn port(text: &str) -> Result<NonZeroU16, String> {
    text.parse()
        .map_err(|_| "a number from 1 to 65535 is needed".to_owned())
}

/// Where something listens: names are not looked up, so that what is bound is what is written.
pub(super) fn binding(text: &str) -> Result<SocketAddr, String> {
    text.parse::<Binding>()
        .map(|binding| binding.0)
        .map_err(|fault| fault.to_string())
}

/// The host of a service, as its agent reaches it.
pub(super) fn service_host(text: &str) -> Result<Host, String> {
    text.parse::<ServiceHost>()
        .map(|host| host.0)
        .map_err(|fault| fault.to_string())
}

/// A network that may connect, or a single address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<Network>()
        .map(|network| network.0)
        .map_err(|fault| fault.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gets_the_same_options() {
        let args = DataPlaneArgs {
            io: Some(IoChoice::Poll),
            workers: Some(2),
            mtu_max: Some(1452),
            grace: Some(Duration::from_millis(1500)),
            keep_alive: None,
            dumps: DumpArgs::default(),
        };
        assert_eq!(
            args.arguments(),
            [
                "--io=poll",
                "--workers=2",
                "--mtu-max=1452",
                "--grace=1500ms"
            ]
        );
        assert_eq!(DataPlaneArgs::default().arguments(), Vec::<String>::new());
    }
}
