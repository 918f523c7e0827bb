//! A path that became narrower while a session sends at full size: its large datagrams are lost,
//! all of them, and nothing says why.
//!
//! The protocol core looks out for that itself, and falls back to the smallest size after four
//! bursts of losses. Each burst takes a probe timeout, and where both ends send in bulk it takes
//! longer: an acknowledgement rides in a large datagram, and is lost with it. A session stood still
//! for 1.1 to 10 s then (docs/sim.md). So this one is satisfied with a few datagrams in a row, if
//! nothing large got through behind them. An outage looks the same: then, too, the path is taken
//! for a new one (RFC 9000, section 9.4), and the core searches its largest size again (RFC 8899).

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};

use super::config::MTU_MIN;

/// Datagrams of full size that are lost since one got through until the path is taken for narrower:
/// fewer may be chance.
const LOST_MAX: u64 = 8;

/// By how much a datagram of full size may be shorter, bytes: a frame that does not fit ends it.
const SHORT_MAX: u64 = 64;

/// Makes a [`Watched`] controller of what another factory makes.
pub(super) struct Watching<F>(pub(super) Arc<F>);

/// A congestion controller that also notes whether large datagrams still get through.
struct Watched {
    inner: Box<dyn Controller>,
    sizes: Sizes,
}

/// What is known of large datagrams.
#[derive(Clone, Copy)]
struct Sizes {
    /// Bytes of one of full size.
    mtu: u64,
    /// When the last one was sent that was acknowledged.
    through: Option<Instant>,
    /// When the last datagram was sent that was lost.
    last_lost: Option<Instant>,
    /// Bytes sent since, together with at least one of full size: who says little shows nothing of
    /// the path by what is lost.
    sent: u64,
    /// Bytes lost since.
    lost: u64,
}

/// Whether the path of a session with such a controller has become narrower, as it seems.
pub(super) fn suspected(controller: &dyn Controller) -> bool {
    let copy = controller.clone_box().into_any();
    copy.downcast::<Watched>()
        .is_ok_and(|watched| watched.sizes.are_suspicious())
}

impl Sizes {
    fn of(mtu: u16) -> Self {
        Self {
            mtu: mtu.into(),
            through: None,
            last_lost: None,
            sent: 0,
            lost: 0,
        }
    }

    fn sent(&mut self, bytes: u64) {
        if bytes + SHORT_MAX >= self.mtu {
            self.sent = self.sent.saturating_add(bytes);
        }
    }

    fn acknowledged(&mut self, sent: Instant, bytes: u64) {
        if bytes + SHORT_MAX < self.mtu {
            return;
        }
        self.through = self.through.max(Some(sent));
        if self.through >= self.last_lost {
            (self.sent, self.lost) = (0, 0);
        }
    }

    /// A burst of losses, of which the last was sent at `sent`.
    fn lost(&mut self, sent: Instant, bytes: u64) {
        self.last_lost = self.last_lost.max(Some(sent));
        if self.through >= self.last_lost {
            (self.sent, self.lost) = (0, 0);
        } else {
            self.lost += bytes;
        }
    }

    fn are_suspicious(&self) -> bool {
        self.mtu > MTU_MIN.into() && self.lost.min(self.sent) >= LOST_MAX * self.mtu
    }
}

impl<F: ControllerFactory + Send + Sync + 'static> ControllerFactory for Watching<F> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Watched {
            inner: Arc::clone(&self.0).build(now, current_mtu),
            sizes: Sizes::of(current_mtu),
        })
    }
}

impl Controller for Watched {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.sizes.acknowledged(sent, bytes);
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.sizes.lost(sent, lost_bytes);
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.sizes.sent(bytes);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        // Smaller: the core was first. Larger: a probe of that size got through.
        self.sizes = Sizes::of(new_mtu);
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            sizes: self.sizes,
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LARGE: u64 = 1_452;
    const SMALL: u64 = MTU_MIN as u64;

    /// Moments of sending, in order.
    fn times() -> impl Iterator<Item = Instant> {
        let began = Instant::now();
        (0..).map(move |ms| began + Duration::from_millis(ms))
    }

    #[test]
    fn many_losses_without_a_large_datagram_behind_them_are_suspicious() {
        let mut time = times();
        let mut sizes = Sizes::of(1_452);
        sizes.acknowledged(time.next().unwrap(), LARGE);
        for expected in [false, false, true] {
            sizes.sent(3 * LARGE);
            sizes.lost(time.next().unwrap(), 3 * LARGE);
            sizes.acknowledged(time.next().unwrap(), SMALL);
            assert_eq!(sizes.are_suspicious(), expected);
        }
    }

    #[test]
    fn a_large_datagram_that_gets_through_clears_the_path() {
        let mut time = times();
        let mut sizes = Sizes::of(1_452);
        for _ in 0..10 {
            sizes.sent(41 * LARGE);
            sizes.lost(time.next().unwrap(), 40 * LARGE);
            sizes.acknowledged(time.next().unwrap(), LARGE);
            assert!(!sizes.are_suspicious());
        }
        for _ in 0..10 {
            let (lost, through) = (time.next().unwrap(), time.next().unwrap());
            sizes.sent(41 * LARGE);
            sizes.acknowledged(through, LARGE);
            sizes.lost(lost, 40 * LARGE);
            assert!(!sizes.are_suspicious());
        }
    }

    #[test]
    fn a_few_losses_may_be_chance_and_small_datagrams_show_nothing() {
        let mut time = times();
        let mut sizes = Sizes::of(1_452);
        for _ in 0..7 {
            sizes.sent(LARGE);
            sizes.lost(time.next().unwrap(), LARGE);
        }
        assert!(!sizes.are_suspicious());
        // One datagram of a path that takes 64 KiB is no more than one.
        let mut wide = Sizes::of(65_507);
        wide.sent(65_507);
        wide.lost(time.next().unwrap(), 65_507);
        assert!(!wide.are_suspicious());
        let mut smallest = Sizes::of(MTU_MIN);
        smallest.sent(100 * SMALL);
        smallest.lost(time.next().unwrap(), 100 * SMALL);
        assert!(!smallest.are_suspicious());
        // Whoever says little loses little ones for ever.
        let mut quiet = Sizes::of(1_452);
        for _ in 0..1_000 {
            quiet.sent(200);
            quiet.lost(time.next().unwrap(), 200);
        }
        assert!(!quiet.are_suspicious());
    }
}
