//! The ways from a client to a server, each opened with processes of its own.

mod rathole;
mod ssh;
mod stock;
mod underpass;

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tempfile::TempDir;
use underpass_tests::deadline::{MOMENT, wait_for};
use underpass_tests::process::Process;

use super::Settings;
use super::site::Site;
use super::tools::{self, Missing};
use super::usage::Usage;

/// UDP payload of the ways that are held at it: what the internet's 1,500 bytes leave for QUIC over
/// IPv6.
pub const MTU_HELD: u16 = 1452;

/// A way.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Way {
    /// No tunnel at all.
    Direct,
    /// OpenSSH, `ssh -R`, AES-128-GCM.
    Ssh,
    /// rathole over plain TCP, not encrypted.
    Rathole,
    /// rathole, encrypted by its Noise transport.
    RatholeNoise,
    /// The baseline, datagrams held at 1,452 bytes.
    #[value(name = "stock-1452")]
    Stock1452,
    /// The baseline, datagrams as large as the path carries.
    StockPath,
    /// Underpass on io_uring, datagrams held at 1,452 bytes.
    #[value(name = "ring-1452")]
    Ring1452,
    /// Underpass on io_uring, datagrams as large as the path carries.
    RingPath,
    /// Underpass on readiness, datagrams held at 1,452 bytes.
    #[value(name = "poll-1452")]
    Poll1452,
    /// Underpass on readiness, datagrams as large as the path carries.
    PollPath,
}

/// How large datagrams may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mtu {
    /// [`MTU_HELD`].
    Held,
    /// What the path carries.
    Path,
}

impl Way {
    /// Those that are measured when none is asked for: readiness is for comparing the product with
    /// itself.
    pub const USUAL: [Way; 8] = [
        Way::Direct,
        Way::Ssh,
        Way::Rathole,
        Way::RatholeNoise,
        Way::Stock1452,
        Way::StockPath,
        Way::Ring1452,
        Way::RingPath,
    ];

    /// The name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Way::Direct => "direct",
            Way::Ssh => "ssh",
            Way::Rathole => "rathole",
            Way::RatholeNoise => "rathole-noise",
            Way::Stock1452 => "stock-1452",
            Way::StockPath => "stock-path",
            Way::Ring1452 => "ring-1452",
            Way::RingPath => "ring-path",
            Way::Poll1452 => "poll-1452",
            Way::PollPath => "poll-path",
        }
    }

    /// How large its datagrams may be, where it has any.
    #[must_use]
    pub fn mtu(self) -> Option<Mtu> {
        match self {
            Way::Direct | Way::Ssh | Way::Rathole | Way::RatholeNoise => None,
            Way::Stock1452 | Way::Ring1452 | Way::Poll1452 => Some(Mtu::Held),
            Way::StockPath | Way::RingPath | Way::PollPath => Some(Mtu::Path),
        }
    }

    /// The baseline that it is compared with: the one with datagrams of the same size.
    #[must_use]
    pub fn baseline(self) -> Option<Way> {
        Some(match self.mtu()? {
            Mtu::Held => Way::Stock1452,
            Mtu::Path => Way::StockPath,
        })
    }

    /// Whether it is the product.
    #[must_use]
    pub fn is_underpass(self) -> bool {
        self.io().is_some()
    }

    fn io(self) -> Option<&'static str> {
        match self {
            Way::Poll1452 | Way::PollPath => Some("poll"),
            Way::Ring1452 | Way::RingPath => Some("ring"),
            _ => None,
        }
    }

    /// Whether its programs are here.
    ///
    /// # Errors
    /// They are not.
    pub fn check_installed(self) -> Result<(), Missing> {
        match self {
            Way::Ssh => {
                tools::packaged("ssh", "openssh-client")?;
                tools::packaged("sshd", "openssh-server")?;
            }
            Way::Rathole | Way::RatholeNoise => {
                tools::rathole()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Starts what the way needs, and waits until a flow would get through.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn open(self, tunnel: &Tunnel<'_>) -> Result<Open> {
        let mtu = self
            .mtu()
            .and_then(|mtu| (mtu == Mtu::Held).then_some(MTU_HELD));
        let open = match self {
            Way::Direct => Ok(Open::direct(tunnel.server)),
            Way::Ssh => ssh::open(tunnel),
            Way::Rathole => rathole::open(tunnel, false),
            Way::RatholeNoise => rathole::open(tunnel, true),
            Way::Stock1452 | Way::StockPath => stock::open(tunnel, mtu),
            Way::Ring1452 | Way::RingPath => underpass::open(tunnel, "ring", mtu),
            Way::Poll1452 | Way::PollPath => underpass::open(tunnel, "poll", mtu),
        };
        open.with_context(|| format!("cannot open {self}"))
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Way {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Way {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Way, D::Error> {
        let name = String::deserialize(deserializer)?;
        <Way as ValueEnum>::from_str(&name, false).map_err(serde::de::Error::custom)
    }
}

/// What a way is to lead to, and how.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel<'a> {
    /// Of the run.
    pub settings: &'a Settings,
    /// Where the two sides run.
    pub site: &'a Site,
    /// Workers of relay and agent.
    pub workers: usize,
    /// Threads of the baseline's.
    pub threads: usize,
    /// The server.
    pub server: SocketAddr,
}

/// An open way. Dropped, its processes end.
#[derive(Debug)]
pub struct Open {
    /// Where clients connect.
    pub address: SocketAddr,
    /// The processes beside clients and server, in this order; none of a way that has none.
    sides: Option<[Process; 2]>,
    _beside: Option<Process>,
    _folder: Option<TempDir>,
}

impl Open {
    pub(super) fn direct(server: SocketAddr) -> Open {
        Open {
            address: server,
            sides: None,
            _beside: None,
            _folder: None,
        }
    }

    fn tunnel(address: SocketAddr, relay: Process, agent: Process) -> Open {
        Open {
            sides: Some([relay, agent]),
            ..Open::direct(address)
        }
    }

    /// Keeps a folder for as long.
    fn with_folder(self, folder: TempDir) -> Open {
        Open {
            _folder: Some(folder),
            ..self
        }
    }

    /// Keeps a process for as long, whose work does not count.
    fn beside(self, process: Process) -> Open {
        Open {
            _beside: Some(process),
            ..self
        }
    }

    /// Process ids of relay and agent, or of what stands in their places.
    #[must_use]
    pub fn sides(&self) -> Option<[u32; 2]> {
        self.sides
            .as_ref()
            .map(|sides| sides.each_ref().map(Process::id))
    }

    /// What the tunnel has taken up to now; none of a way without one.
    ///
    /// # Errors
    /// When one of its processes has ended.
    pub fn usage(&self) -> Result<Option<Usage>> {
        self.sides().map(|sides| Usage::of(&sides)).transpose()
    }

    /// What its processes said last.
    #[must_use]
    pub fn logs(&self) -> String {
        self.sides.iter().flatten().map(Process::log_end).collect()
    }
}

/// Waits until one listens at `address` in the network namespace of `near`. Looked up, not tried:
/// iperf3 would take a connection for a client.
fn wait_until_bound(far: &mut Process, near: &Process, address: SocketAddr) -> Result<()> {
    let sockets = format!("/proc/{}/net/tcp", near.id());
    let bound = || {
        let ended = far.ended().is_some();
        let sockets = fs::read_to_string(&sockets).unwrap_or_default();
        let listens = listeners(&sockets).any(|listener| listener == address);
        (ended || listens).then_some(ended)
    };
    let waited = wait_for(&format!("a listener at {address}"), MOMENT, bound);
    let logs = || [near, &*far].map(Process::log_end).concat();
    let ended = waited.with_context(logs)?;
    ensure!(!ended, "the far side has ended\n{}", logs());
    Ok(())
}

/// Addresses of a `net/tcp` file in the state LISTEN (proc_pid_net(5)): hexadecimal, the IP in the
/// machine's order of bytes.
fn listeners(sockets: &str) -> impl Iterator<Item = SocketAddr> {
    sockets.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (ip, port) = fields.next()?.split_once(':')?;
        let listens = fields.nth(1)? == "0A";
        let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
        let port = u16::from_str_radix(port, 16).ok()?;
        listens.then_some(SocketAddr::from((ip, port)))
    })
}

/// Writes a file that its owner alone can read.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    Ok(options.open(path)?.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_kernel_tells_who_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let sockets = || fs::read_to_string("/proc/self/net/tcp").expect("read");
        assert!(listeners(&sockets()).any(|found| found == address));
        drop(listener);
        assert!(!listeners(&sockets()).any(|found| found == address));
    }

    #[test]
    fn a_connection_is_no_listener() {
        let sockets =
            "  sl  local_address rem_address   st\n   0: 0100007F:1F90 0100007F:0050 01 0\n";
        assert_eq!(listeners(sockets).count(), 0);
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for way in Way::value_variants() {
            let value = way.to_possible_value().expect("shown");
            assert_eq!(value.get_name(), way.name());
        }
    }
}
