//! Where a tunnel's two sides run: both on this machine's loopback, or in two network namespaces
//! joined by a cable of 1,500 bytes.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use underpass_tests::deadline::MOMENT;
use underpass_tests::network::{Machine, interface};
use underpass_tests::process::run_ok;

/// Addresses of the two namespaces.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 2);

/// The near side has clients and relay, the far side agent and server.
#[derive(Debug)]
pub struct Site {
    apart: Option<Sides>,
}

#[derive(Debug)]
struct Sides {
    near: Machine,
    far: Machine,
}

impl Site {
    /// Both sides on loopback.
    #[must_use]
    pub fn loopback() -> Site {
        Site { apart: None }
    }

    /// Each side in a network namespace.
    ///
    /// # Errors
    /// When namespaces cannot be had; see [`Machine::unavailable`].
    pub fn apart() -> Result<Site> {
        let near = Machine::new("near", &[])?;
        let far = Machine::new("far", &[])?;
        near.join(NEAR, &far, FAR)?;
        Ok(Site {
            apart: Some(Sides { near, far }),
        })
    }

    /// Gives the cable a rate in each direction, with a queue of 20 ms. Large sends are cut into
    /// packets before it.
    ///
    /// # Errors
    /// When the kernel does not permit it, or both sides are on loopback.
    pub fn limit(&self, mbit: u32) -> Result<()> {
        let queue = mbit * 1_000_000 / 8 / 50;
        for (machine, address) in self.ends()? {
            let mut command = machine.command("tc");
            command.args([
                "qdisc",
                "replace",
                "dev",
                &interface(address),
                "root",
                "tbf",
            ]);
            command.args(["rate", &format!("{mbit}mbit"), "burst", "8k"]);
            run_ok(command.args(["limit", &queue.to_string()]), MOMENT)?;
        }
        Ok(())
    }

    /// Drops so many of 1,000 packets that come over the cable, by chance, at each side.
    ///
    /// # Errors
    /// When nftables does not permit it, or both sides are on loopback.
    pub fn lose(&self, per_mille: u32) -> Result<()> {
        for (machine, address) in self.ends()? {
            let mut command = machine.command("nft");
            let cable = interface(address);
            command.arg(format!(
                "flush ruleset; add table inet loss; add chain inet loss cable {{ type filter hook prerouting priority -300; }}; \
                 add rule inet loss cable iifname \"{cable}\" numgen random mod 1000 < {per_mille} drop"
            ));
            run_ok(&mut command, MOMENT)?;
        }
        Ok(())
    }

    fn ends(&self) -> Result<[(&Machine, Ipv4Addr); 2]> {
        let sides = self.apart.as_ref().context("loopback is no cable")?;
        Ok([(&sides.near, NEAR), (&sides.far, FAR)])
    }

    /// Where the far side reaches the near one.
    #[must_use]
    pub fn relay_ip(&self) -> Ipv4Addr {
        self.apart.as_ref().map_or(Ipv4Addr::LOCALHOST, |_| NEAR)
    }

    /// Where both sides reach a server.
    #[must_use]
    pub fn server_ip(&self) -> IpAddr {
        self.apart
            .as_ref()
            .map_or(Ipv4Addr::LOCALHOST, |_| FAR)
            .into()
    }

    /// A command beside clients and relay.
    #[must_use]
    pub fn near(&self, program: impl AsRef<OsStr>) -> Command {
        command(self.apart.as_ref().map(|sides| &sides.near), program)
    }

    /// A command beside agent and server.
    #[must_use]
    pub fn far(&self, program: impl AsRef<OsStr>) -> Command {
        command(self.apart.as_ref().map(|sides| &sides.far), program)
    }

    /// Runs a part of this program beside clients and relay.
    ///
    /// # Errors
    /// Those of `part`, and when the namespace cannot be entered.
    pub fn in_near<T: Send>(&self, part: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(self.apart.as_ref().map(|sides| &sides.near), part)
    }

    /// Runs a part of this program beside agent and server.
    ///
    /// # Errors
    /// As [`Self::in_near`].
    pub fn in_far<T: Send>(&self, part: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(self.apart.as_ref().map(|sides| &sides.far), part)
    }
}

fn command(machine: Option<&Machine>, program: impl AsRef<OsStr>) -> Command {
    match machine {
        // It becomes the program, so the process id is the program's.
        Some(machine) => machine.command(program),
        None => Command::new(program),
    }
}

/// A namespace is a matter of the thread, and threads that it starts are where it is.
fn enter<T: Send>(machine: Option<&Machine>, part: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(machine) = machine else {
        return part();
    };
    let network = machine.network();
    let entered = || {
        let file = File::open(&network)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter {}", network.display()))?;
        part()
    };
    thread::scope(|scope| {
        scope
            .spawn(entered)
            .join()
            .expect("no panic in a namespace")
    })
}
