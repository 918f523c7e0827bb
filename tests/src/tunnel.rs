//! Whole tunnels for what only wants to talk through one: beside the relay, and through a sender.
//! Their processes can be killed and restored.

use std::net::SocketAddr;
use std::sync::MutexGuard;

use anyhow::{Result, bail};

use crate::agent::Agent;
use crate::fidelity::{Part, Processes};
use crate::installation::{Installation, Setup};
use crate::process::Process;
use crate::sender::Sender;

/// One hybrid connection to one endpoint, with everything that it needs.
#[derive(Debug)]
pub struct Tunnel {
    /// Directory, control and relay.
    pub installation: Installation,
    /// The agent.
    pub agent: Agent,
    /// Where applications connect.
    pub address: SocketAddr,
}

/// The hybrid connection of a [`Tunnel`].
pub const NAME: &str = "through-here";

/// A second one of the same tunnel, whose endpoint's name does not exist (RFC 6761, section 6.4).
pub const UNKNOWN: &str = "to-nowhere";

impl Tunnel {
    /// Starts all processes and waits until a flow would get through. Every connection that the
    /// endpoint gets is a flow.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn open(setup: Setup, endpoint: SocketAddr) -> Result<Self> {
        Self::open_with(setup, endpoint, &[])
    }

    /// As [`Self::open`], with more allow-list entries for the agent.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn open_with(setup: Setup, endpoint: SocketAddr, allow: &[&str]) -> Result<Self> {
        Self::begin(setup.clone(), setup, endpoint, allow)
    }

    /// As [`Self::open`], with an agent that is set up otherwise than the relay.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn open_apart(setup: Setup, agent: Setup, endpoint: SocketAddr) -> Result<Self> {
        Self::begin(setup, agent, endpoint, &[])
    }

    fn begin(setup: Setup, agent: Setup, endpoint: SocketAddr, allow: &[&str]) -> Result<Self> {
        let endpoint = endpoint.to_string();
        let setup = Setup {
            probe: false,
            ..setup
        };
        let installation =
            Installation::start(setup, &[(NAME, &endpoint), (UNKNOWN, "name.invalid:80")])?;
        let names = [NAME, UNKNOWN];
        let agent = installation.start_agent_apart(agent, &names, allow)?;
        installation.wait_for_listener(&agent, &names)?;
        let address = installation.binding(NAME)?;
        Ok(Self {
            installation,
            agent,
            address,
        })
    }

    fn part(&self, part: Part) -> Result<MutexGuard<'_, Option<Process>>> {
        Ok(match part {
            Part::Relay => self.installation.relay(),
            Part::Agent => self.agent.process(),
            Part::Control => self.installation.control(),
            Part::Sender => bail!("this tunnel has no sender"),
        })
    }
}

impl Processes for Tunnel {
    fn kill(&self, part: Part) -> Result<()> {
        match self.part(part)?.as_mut() {
            Some(process) => process.kill(),
            None => bail!("{part:?} was never started"),
        }
    }

    fn restore(&self, part: Part) -> Result<()> {
        match part {
            Part::Relay => self.installation.start_relay(),
            Part::Agent => self.agent.start(),
            Part::Control => self.installation.start_control(),
            Part::Sender => bail!("this tunnel has no sender"),
        }
    }
}

/// Application → sender → relay → agent → endpoint, with everything that it needs.
#[derive(Debug)]
pub struct LongTunnel {
    /// Installation and agent, and the binding beside the relay, which nobody uses.
    pub tunnel: Tunnel,
    /// The sender.
    pub sender: Sender,
}

impl LongTunnel {
    /// Starts all processes and waits until a flow would get through.
    ///
    /// # Errors
    /// When that does not come about.
    pub fn open(relay_and_sender: Setup, agent: Setup, endpoint: SocketAddr) -> Result<Self> {
        let tunnel = Tunnel::open_apart(relay_and_sender.clone(), agent, endpoint)?;
        let names = [NAME, UNKNOWN];
        let sender = Sender::start(&tunnel.installation, relay_and_sender, &names)?;
        Ok(Self { tunnel, sender })
    }
}

impl Processes for LongTunnel {
    fn has(&self, _part: Part) -> bool {
        true
    }

    fn kill(&self, part: Part) -> Result<()> {
        if part != Part::Sender {
            return self.tunnel.kill(part);
        }
        match &mut *self.sender.process() {
            Some(process) => process.kill(),
            None => bail!("the sender was never started"),
        }
    }

    fn restore(&self, part: Part) -> Result<()> {
        match part {
            Part::Sender => self.sender.start_again(),
            part => self.tunnel.restore(part),
        }
    }
}
