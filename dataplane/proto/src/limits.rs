//! Every bound that more than one part knows, with its reason. Bounds of one part stand where they
//! are used.

use std::time::Duration;

/// Listeners of one hybrid connection, unless its definition says otherwise: Azure's figure.
pub const LISTENERS_MAX_DEFAULT: u32 = 25;
/// Live flows of one hybrid connection, unless its definition says otherwise. Two sockets each side
/// of a flow fit a usual file limit of 20,000.
pub const FLOWS_MAX_DEFAULT: u32 = 10_000;
/// Live flows of a relay. Above what one machine's file limit usually holds: the kernel's limit
/// speaks first, this one bounds memory.
pub const RELAY_FLOWS_MAX_DEFAULT: u32 = 65_536;
/// Live flows of one session: all that one hybrid connection may have, and room for more than one.
pub const SESSION_FLOWS_MAX_DEFAULT: u32 = 16_384;
/// Sessions of a relay: 500 agents with 8 workers each.
pub const SESSIONS_MAX_DEFAULT: u32 = 4_096;
/// Registrations of one session: an agent for every hybrid connection of a large namespace.
pub const REGISTRATIONS_MAX: usize = 4_096;
/// Workers of a relay: the first byte of a connection ID names one.
pub const WORKERS_MAX: u16 = 255;

/// What a relay keeps of a flow until Opened, to try another agent with. Also a flow's first
/// window.
pub const REPLAY_MAX: usize = 64 * 1024;

/// From the first datagram of a handshake to its end. A stranger holds a place no longer.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// From a handshake to its Hello, and from Welcome to the first Register. A stranger holds a
/// session no longer.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// From dialling an endpoint to giving it up; below the 21 s after which common clients give up
/// themselves.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// From Open to an agent's answer. Name resolution and earlier attempts do not shorten the last
/// attempt's [`DIAL_DEADLINE`], within this limit. A second is left for the way to the relay.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(14);
/// From Open to Opened or a refusal: a dial, a resolution and the way there and back.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(15);
/// How often a process that dials gives the relay a sign of life, on one of its sessions, unless
/// its `keep_alive` says otherwise.
pub const PING_AFTER: Duration = Duration::from_secs(1);
/// From a sign of life that is due to the other side's own ping: longer than signs of life are late
/// by themselves.
pub const PING_MARGIN: Duration = Duration::from_millis(200);
/// Unanswered ping before a session is suspect: not picked for new flows while another is well.
/// Longer than a round trip by satellite.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(650);
/// The longest `keep_alive` that a process may ask for: what a relay keeps of a dead one is bounded
/// by it.
pub const KEEP_ALIVE_MAX: Duration = Duration::from_secs(60);
/// Silence of one session of several to one relay before it pings by itself: many NATs forget a UDP
/// binding after 30 s.
pub const BINDING_MAX: Duration = Duration::from_secs(25);
/// Silence that ends a session whose process should give a sign of life each [`PING_AFTER`]; later
/// by what `keep_alive` is longer.
pub const IDLE_MAX: Duration = Duration::from_secs(15);
/// QUIC's own idle limit: ends only what nobody judges. Several signs of life at the longest
/// interval may be lost before.
pub const QUIC_IDLE_MAX: Duration = Duration::from_secs(3 * KEEP_ALIVE_MAX.as_secs());
/// Silence that ends an old session once a new process of the same agent has proven the same
/// registrations; longer on a path of long round trips.
pub const REPLACED_AFTER: Duration = Duration::from_millis(500);
/// How long live flows may go on after the first request to drain, unless `--grace` says otherwise.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(30);

/// One message of the feed that holds a snapshot: 10,000 hybrid connections are 10 MiB.
pub const SNAPSHOT_MAX: usize = 64 * 1024 * 1024;
/// Any other message of the feed. A longer report is cut and says so.
pub const REPORT_MAX: usize = 1024 * 1024;
/// How often a relay reports.
pub const REPORT_EVERY: Duration = Duration::from_secs(1);

const _: () = assert!(FLOWS_MAX_DEFAULT <= SESSION_FLOWS_MAX_DEFAULT);
const _: () = assert!(SESSION_FLOWS_MAX_DEFAULT <= RELAY_FLOWS_MAX_DEFAULT);
const _: () = assert!(DIAL_DEADLINE.as_millis() < ANSWER_DEADLINE.as_millis());
const _: () = assert!(ANSWER_DEADLINE.as_millis() < OPEN_DEADLINE.as_millis());
// Two seconds after an agent died, no flow is given to it while another is there.
const SUSPECT_IN_ALL: u128 =
    PING_AFTER.as_millis() + PING_MARGIN.as_millis() + SUSPECT_AFTER.as_millis();
const _: () = assert!(SUSPECT_IN_ALL < 2_000);
const _: () = assert!(SUSPECT_IN_ALL < IDLE_MAX.as_millis());
const _: () = assert!(BINDING_MAX.as_millis() < KEEP_ALIVE_MAX.as_millis());
const _: () = assert!(REPORT_MAX < SNAPSHOT_MAX);
