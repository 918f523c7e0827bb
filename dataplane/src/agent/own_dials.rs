//! Notices a flow that this agent itself began: its endpoint led back to a binding of a relay or of
//! a sender, whose application is then the agent's own connection. One table for all workers,
//! touched once per flow; holds recent connections only, and knows no sockets.
//!
//! An Open carries a check of both addresses of its application's connection. The application's
//! address alone is ambiguous: the same source port may be in use towards another destination.
//!
//! A chain of hybrid connections is allowed as long as none comes twice. A loop through a NAT, or
//! through a private address of another machine, is not recognised.

use std::hash::BuildHasher as _;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::FxBuildHasher;
use underpass_proto::{Endpoint, FlowCode, FlowId, HycoName};

use crate::locality;

/// How long a connection is remembered: from the dial to the Open that it causes are a round trip
/// to the relay and the relay's own work. A session that has been silent for longer than 1.85 s
/// gets no flows.
const KEPT_FOR: Duration = Duration::from_secs(3);

/// Connections that are remembered. The check selects the slot; a newer connection overwrites an
/// older one. A loop that goes unnoticed because of that is noticed at its next connection.
const SLOTS: usize = 16_384;

/// The longest chain of hybrid connections through one agent.
pub(crate) const HOPS_MAX: usize = 8;

/// The hybrid connections that a connection came through, the last one at the end.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Hops([Option<NonZeroU32>; HOPS_MAX]);

/// Recent connections of this agent, by the check of their addresses.
#[derive(Debug, Default)]
pub(crate) struct OwnDials {
    /// Empty, or [`SLOTS`]. Each new flow writes a slot that is rarely in the processor's cache, so
    /// slots are small.
    recent: Mutex<Vec<Option<OwnDial>>>,
}

#[derive(Clone, Debug)]
struct OwnDial {
    at: Instant,
    check: u32,
    from: SocketAddr,
    hops: Hops,
}

impl OwnDials {
    /// The chain of a connection that is to be made for this hybrid connection of this relay.
    /// `begun_by` is the flow and its application; a probe has none.
    ///
    /// # Errors
    /// [`FlowCode::Loop`]: the application is a connection of this agent, for the same hybrid
    /// connection or through too many others.
    pub(crate) fn hops(
        &self,
        now: Instant,
        relay: &Endpoint,
        hyco: &HycoName,
        begun_by: Option<(FlowId, SocketAddr)>,
    ) -> Result<Hops, FlowCode> {
        let id = hop(relay, hyco);
        let before = begun_by.and_then(|(flow, application)| self.chain_of(now, flow, application));
        before.unwrap_or_default().and(id).ok_or(FlowCode::Loop)
    }

    /// A connection was made from one address to another.
    pub(crate) fn record(&self, now: Instant, from: SocketAddr, to: SocketAddr, hops: Hops) {
        let (from, to) = (canonical(from), canonical(to));
        let check = FlowId::check_of(from, to, locality::here());
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.is_empty() {
            recent.resize(SLOTS, None);
        }
        recent[slot(check)] = Some(OwnDial {
            at: now,
            check,
            from,
            hops,
        });
    }

    fn chain_of(&self, now: Instant, flow: FlowId, application: SocketAddr) -> Option<Hops> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let dial = recent.get(slot(flow.check()))?.as_ref()?;
        let is_it = dial.check == flow.check() && dial.from == canonical(application);
        let is_recent = now.saturating_duration_since(dial.at) <= KEPT_FOR;
        (is_it && is_recent).then_some(dial.hops)
    }
}

impl Hops {
    /// With one more; `None`: it is there already, or there is no room.
    fn and(mut self, id: NonZeroU32) -> Option<Self> {
        if self.0.contains(&Some(id)) {
            return None;
        }
        *self.0.iter_mut().find(|hop| hop.is_none())? = Some(id);
        Some(self)
    }
}

/// A hybrid connection of a relay as a number. A relay that chooses a name with the number of
/// another one can refuse its own flows, which it may do anyway.
fn hop(relay: &Endpoint, hyco: &HycoName) -> NonZeroU32 {
    let hash = FxBuildHasher.hash_one((relay, hyco));
    NonZeroU32::new((hash >> 32) as u32).unwrap_or(NonZeroU32::MIN)
}

fn slot(check: u32) -> usize {
    check as usize % SLOTS
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        dials: OwnDials,
        now: Instant,
        next_port: u16,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                dials: OwnDials::default(),
                now: Instant::now(),
                next_port: 1,
            }
        }

        /// A flow of an application at a binding becomes a connection of the agent to that binding
        /// again: its own address.
        fn flow(
            &mut self,
            relay: &str,
            hyco: &str,
            application: SocketAddr,
        ) -> Result<SocketAddr, FlowCode> {
            let relay = relay.parse().expect("an endpoint");
            let hyco = hyco.parse().expect("a name");
            let flow = FlowId::of_connection(7, application, Some(binding()), locality::here());
            let hops = self
                .dials
                .hops(self.now, &relay, &hyco, Some((flow, application)))?;
            self.next_port += 1;
            let local = SocketAddr::from(([127, 0, 0, 1], self.next_port));
            self.dials.record(self.now, local, binding(), hops);
            Ok(local)
        }

        /// How many hybrid connections a flow comes through, its own included.
        fn count(&self, flow: FlowId, application: SocketAddr) -> Result<usize, FlowCode> {
            let relay = "relay:1".parse().expect("an endpoint");
            let hyco = "payroll-sql".parse().expect("a name");
            let begun_by = Some((flow, application));
            let hops = self.dials.hops(self.now, &relay, &hyco, begun_by)?;
            Ok(hops.0.iter().flatten().count())
        }
    }

    fn binding() -> SocketAddr {
        "127.0.0.1:1433".parse().expect("an address")
    }

    fn application() -> SocketAddr {
        "192.0.2.7:4711".parse().expect("an address")
    }

    #[test]
    fn an_endpoint_that_is_its_own_binding_is_found_at_the_second_flow() {
        let mut scene = Scene::new();
        let local = scene.flow("relay:1", "payroll-sql", application());
        let local = local.expect("an application's");
        let again = scene.flow("relay:1", "payroll-sql", local);
        assert_eq!(again, Err(FlowCode::Loop));
        let mapped = "[::ffff:127.0.0.1]:2".parse().expect("an address");
        let again = scene.flow("relay:1", "Payroll-SQL", mapped);
        assert_eq!(again, Err(FlowCode::Loop));
    }

    #[test]
    fn an_applications_port_that_the_agent_dials_from_too_is_no_loop() {
        let mut scene = Scene::new();
        let local = scene.flow("relay:1", "payroll-sql", application());
        let local = local.expect("an application's");
        let other = "127.0.0.1:1434".parse().expect("an address");
        let flow = FlowId::of_connection(8, local, Some(other), locality::here());
        assert_eq!(scene.count(flow, local), Ok(1));
    }

    #[test]
    fn another_machines_application_with_equal_loopback_addresses_is_no_loop() {
        let mut scene = Scene::new();
        let local = scene.flow("relay:1", "payroll-sql", application());
        let local = local.expect("an application's");
        let mut there = locality::here();
        there.kernel ^= 1;
        let flow = FlowId::of_connection(8, local, Some(binding()), there);
        assert_eq!(scene.count(flow, local), Ok(1));
    }

    #[test]
    fn a_chain_goes_on_until_one_comes_twice() {
        let mut scene = Scene::new();
        let mut local = application();
        for (relay, hyco) in [
            ("relay:1", "payroll-sql"),
            ("relay:1", "payroll-web"),
            ("other:1", "payroll-sql"),
        ] {
            local = scene.flow(relay, hyco, local).expect("a chain");
        }
        let back = scene.flow("relay:1", "payroll-web", local);
        assert_eq!(back, Err(FlowCode::Loop));
        for nth in 3..HOPS_MAX {
            let name = format!("payroll-{nth}");
            local = scene.flow("relay:1", &name, local).expect("a chain");
        }
        let beyond = scene.flow("relay:1", "one-more", local);
        assert_eq!(beyond, Err(FlowCode::Loop));
    }

    #[test]
    fn an_address_is_forgotten_and_the_table_has_an_end() {
        let mut scene = Scene::new();
        let local = scene.flow("relay:1", "payroll-sql", application());
        let local = local.expect("an application's");
        scene.now += KEPT_FOR + Duration::from_millis(1);
        let reused = scene.flow("relay:1", "payroll-sql", local);
        reused.expect("another's by now");
        for port in 0..=u16::MAX {
            let address = SocketAddr::from(([10, 0, 0, 1], port));
            scene
                .dials
                .record(scene.now, address, binding(), Hops::default());
        }
        let recent = scene.dials.recent.lock().expect("no panic");
        let used = recent.iter().flatten().count();
        assert_eq!(recent.len(), SLOTS);
        assert!(used > SLOTS / 10 * 9, "{used} of {SLOTS}");
    }
}
