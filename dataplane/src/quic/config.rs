//! What TLS and QUIC are told: versions, suites, windows, timers. Each figure with its reason.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, ConnectionId, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use rand::{Rng, RngExt};
use rustls::SupportedCipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use underpass_proto::Pin;
use underpass_proto::limits::{FLOWS_MAX_DEFAULT, QUIC_IDLE_MAX};
use underpass_proto::wire::ALPN;

use super::admission::HELD_MAX;
use super::cid;
use super::mtu_blackhole::Watching;
use super::verify::ByPin;

/// Bytes that one flow may have under way in one direction before its reader must read: the most
/// memory that a flow pins at its far end. Fills a path of 1 Gbit/s at 16 ms; larger windows bring
/// no more bulk on loopback (measured, docs/design/choices.md).
pub const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// Readers of one session that may stand still before the others notice.
const SLOW_READERS: u32 = 1_024;

/// Bytes that all flows of a session may have under way in one direction. Only what nobody reads is
/// kept, at most [`STREAM_WINDOW`] of each flow: so this bounds memory, and must hold more than the
/// slow readers pin, or all others stand still with them.
pub const SESSION_WINDOW: u32 = (SLOW_READERS + 128) * STREAM_WINDOW;

/// The most bytes that a session keeps until they are acknowledged. Under half of a UDP socket's
/// receive buffer, so that a burst of one session does not overflow it.
pub const SEND_WINDOW: u64 = 4 * 1024 * 1024;

/// What a session keeps beyond what its path holds: the share that is in the hands of the two ends.
const SEND_WINDOW_ENDS: u64 = 512 * 1024;

/// The same for each further flow that has much to say: each has a reader of its own at its far
/// end, which takes what it gets in its own time. With eight such flows this carries 1.1 × what it
/// does without (measured, docs/peers.md).
const SEND_WINDOW_FLOW: u64 = 128 * 1024;

/// Flows that count so; the rest only waits longer, and whatever a small flow says with it.
const SEND_WINDOW_FLOWS: usize = 8;

/// Bytes of each microsecond of a path's round trip: 10 Gbit/s, twice.
const SEND_WINDOW_PER_US: u64 = 2 * 1250;

/// The send window for a path whose shortest round trip is `rtt`, of which `flows` flows want as
/// much as they can have. More than such a path holds would only stand in a queue before the far
/// end, and whatever a small flow says stands behind it.
#[must_use]
pub fn send_window(rtt: Duration, flows: usize) -> u64 {
    let us = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
    let path = us.saturating_mul(SEND_WINDOW_PER_US);
    let further = flows.min(SEND_WINDOW_FLOWS).saturating_sub(1) as u64;
    let ends = SEND_WINDOW_ENDS + further * SEND_WINDOW_FLOW;
    path.saturating_add(ends).min(SEND_WINDOW)
}

/// Flows that a relay may have open at once in one session. The accepting side preallocates a slot
/// for each. What has ended is given back in eighths, so that this many leave room for all that one
/// hybrid connection may have by default.
pub const FLOWS_PER_SESSION: u32 = 12_000;

/// Smallest datagram that QUIC requires of a path (RFC 9000, section 14).
pub const MTU_MIN: u16 = 1200;

/// Bytes sent before the first acknowledgement (RFC 9002 suggests 10 datagrams; content networks
/// use 32 and more).
const INITIAL_WINDOW: u64 = 48 * 1200;

/// Datagrams that may stay unacknowledged while nothing goes the other way. RFC 9000 has 2; an
/// eighth to a fifth of all datagrams were acknowledgements only with that (pgbench, HTTP, bulk),
/// and the initial window holds six times this.
const ACKNOWLEDGE_AFTER: u32 = 8;

/// And for how long; quinn-proto does no less. A window that losses made small waits for this each
/// time: with 5 ms a path that loses 1 % carried 52 Mbit/s in place of 90 (measured,
/// docs/design/choices.md).
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(1);

/// Datagrams kept of a newcomer whose handshake has not begun, beyond its first: the rest of what
/// it says first, twice.
const INCOMING_BYTES: u64 = 8 * 1024;
/// The same of all newcomers.
const INCOMING_BYTES_ALL: u64 = 8 * 1024 * 1024;

const _: () = assert!(FLOWS_PER_SESSION / 8 * 7 >= FLOWS_MAX_DEFAULT);
const _: () = assert!(SESSION_WINDOW >= 16 * STREAM_WINDOW);
const _: () = assert!(SEND_WINDOW >= STREAM_WINDOW as u64);

/// Secrets of an endpoint that outlive its process.
#[derive(Clone)]
pub struct EndpointKeys {
    /// Makes stateless-reset tokens.
    pub reset: [u8; 32],
    /// Makes address-validation tokens.
    pub token: [u8; 32],
    /// Checks connection IDs.
    pub connection_id: [u8; 32],
}

impl EndpointKeys {
    /// Keys of a process that only dials: new at each start.
    #[must_use]
    pub fn ephemeral() -> Self {
        Self::by(&mut rand::rng())
    }

    /// New keys, by this chance.
    #[must_use]
    pub(crate) fn by(rng: &mut impl Rng) -> Self {
        Self {
            reset: rng.random(),
            token: rng.random(),
            connection_id: rng.random(),
        }
    }
}

/// TLS 1.3 with the suites in our order: AES-128-GCM is the cheapest and enough for a session;
/// X25519MLKEM768 comes first by rustls' own order.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: cipher_suites(),
        ..aws_lc_rs::default_provider()
    })
}

/// The suites of the library whose AES-GCM is the faster on this processor. Where there are wide
/// AES instructions but no AVX-512, *ring* has code for them and aws-lc has not: twice the speed
/// (measured, docs/design/choices.md). Everywhere else aws-lc's own.
fn cipher_suites() -> Vec<SupportedCipherSuite> {
    macro_rules! in_order {
        ($library:ident) => {{
            use rustls::crypto::$library::cipher_suite as suites;
            vec![
                suites::TLS13_AES_128_GCM_SHA256,
                suites::TLS13_AES_256_GCM_SHA384,
                suites::TLS13_CHACHA20_POLY1305_SHA256,
            ]
        }};
    }
    if has_wide_aes_without_avx512() {
        in_order!(ring)
    } else {
        in_order!(aws_lc_rs)
    }
}

#[cfg(target_arch = "x86_64")]
fn has_wide_aes_without_avx512() -> bool {
    is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2")
        && !is_x86_feature_detected!("avx512vl")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_wide_aes_without_avx512() -> bool {
    false
}

/// Settings of one worker's endpoint, all of whose chance comes from `rng`. `only_dials`: it takes
/// no sessions.
#[must_use]
pub fn endpoint(
    worker: u8,
    keys: &EndpointKeys,
    only_dials: bool,
    rng: &mut impl Rng,
) -> EndpointConfig {
    let reset = ::aws_lc_rs::hmac::Key::new(::aws_lc_rs::hmac::HMAC_SHA256, &keys.reset);
    let mut config = EndpointConfig::new(Arc::new(reset));
    let connection_id = Arc::new(keys.connection_id);
    let nonces = rng.random();
    config.cid_generator(move || {
        let key = Arc::clone(&connection_id);
        Box::new(if only_dials {
            cid::Generator::dialled(worker, key, nonces)
        } else {
            cid::Generator::new(worker, key, nonces)
        })
    });
    config.rng_seed(Some(rng.random()));
    // The default (1472) would cap what the peer may send us.
    config
        .max_udp_payload_size(65_527)
        .expect("65,527 is the largest size that QUIC knows");
    // After a relay's restart every old session is answered at once.
    config.min_reset_interval(Duration::from_millis(1));
    config
}

/// What a relay serves newcomers with.
pub struct Server {
    crypto: Arc<QuicServerConfig>,
    token: [u8; 32],
}

impl Server {
    /// From a certificate chain, the relay's own first, and its PKCS#8 key, all DER.
    ///
    /// # Errors
    /// A certificate or key that TLS cannot use; they do not belong together.
    pub fn new(certificates: Vec<Vec<u8>>, key: Vec<u8>, token: [u8; 32]) -> Result<Self, String> {
        let key = PrivateKeyDer::try_from(key).map_err(|why| format!("TLS key: {why}"))?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|why| why.to_string())?
            .with_no_client_auth()
            .with_single_cert(
                certificates.into_iter().map(CertificateDer::from).collect(),
                key,
            )
            .map_err(|why| format!("TLS certificate: {why}"))?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.max_early_data_size = 0; // A replayed request must not reach a database.
        tls.send_tls13_tickets = 0; // Sessions live long; nothing resumes.
        let crypto = QuicServerConfig::try_from(tls).map_err(|why| why.to_string())?;
        Ok(Self {
            crypto: Arc::new(crypto),
            token,
        })
    }

    /// For one newcomer whose path takes datagrams of up to `mtu` bytes, and which may send
    /// `window` bytes before they are read.
    #[must_use]
    pub fn quic(&self, mtu: Option<u16>, window: u64) -> Arc<ServerConfig> {
        let token =
            ::aws_lc_rs::hkdf::Salt::new(::aws_lc_rs::hkdf::HKDF_SHA256, &[]).extract(&self.token);
        let mut config = ServerConfig::new(Arc::clone(&self.crypto) as _, Arc::new(token));
        config.max_incoming(HELD_MAX);
        config.incoming_buffer_size(INCOMING_BYTES);
        config.incoming_buffer_size_total(INCOMING_BYTES_ALL);
        let mut transport = transport(mtu.unwrap_or(MTU_MIN), 64);
        transport.receive_window(VarInt::from_u64(window).unwrap_or(VarInt::MAX));
        config.transport_config(Arc::new(transport));
        Arc::new(config)
    }
}

/// How a dialler trusts the relay.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Trust {
    /// By its public key.
    Pins(Vec<Pin>),
    /// By these CA certificates (DER).
    Authorities(Vec<Vec<u8>>),
    /// By the system's roots.
    System,
}

/// For one dial of a relay over a path that takes datagrams of up to `mtu` bytes. `first`
/// ([`cid::towards`]) picks the relay's worker.
///
/// # Errors
/// CA certificates that cannot be read, or a system without roots.
pub fn client(trust: &Trust, first: ConnectionId, mtu: u16) -> Result<ClientConfig, String> {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|why| why.to_string())?;
    let builder = match trust {
        Trust::Pins(pins) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ByPin::new(pins.clone(), provider()))),
        Trust::Authorities(authorities) => {
            let mut roots = rustls::RootCertStore::empty();
            for der in authorities {
                roots
                    .add(CertificateDer::from(der.clone()))
                    .map_err(|why| format!("CA certificate: {why}"))?;
            }
            builder.with_root_certificates(roots)
        }
        Trust::System => {
            use rustls_platform_verifier::Verifier;
            let verifier = Verifier::new(provider())
                .map_err(|why| format!("the system's CA certificates: {why}"))?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut tls = builder.with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let crypto = QuicClientConfig::try_from(tls).map_err(|why| why.to_string())?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.initial_dst_cid_provider(Arc::new(move || first));
    config.transport_config(Arc::new(transport(mtu, FLOWS_PER_SESSION)));
    Ok(config)
}

/// Settings of one session, either side. `streams` is how many the peer may open.
fn transport(mtu: u16, streams: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.max_concurrent_bidi_streams(VarInt::from_u32(streams));
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    config.receive_window(VarInt::from_u32(SESSION_WINDOW));
    config.send_window(SEND_WINDOW);
    // Signs of life are given by hand (`health`): one session of a process gives them for all.
    config.max_idle_timeout(Some(
        IdleTimeout::try_from(QUIC_IDLE_MAX).expect("some minutes are a valid idle limit"),
    ));
    config.datagram_receive_buffer_size(None);
    let mut cubic = quinn_proto::congestion::CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW);
    config.congestion_controller_factory(Arc::new(Watching(Arc::new(cubic))));
    config.ack_frequency_config(Some(acknowledgements()));
    config.initial_mtu(MTU_MIN);
    config.min_mtu(MTU_MIN);
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu.max(MTU_MIN));
    config.mtu_discovery_config(Some(discovery));
    config
}

/// How often the peer should acknowledge, where it knows the extension
/// (draft-ietf-quic-ack-frequency): a datagram that carries nothing but an acknowledgement costs as
/// much as one with a request. Most ride on what is sent anyway; a gap is told at once.
fn acknowledgements() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config.ack_eliciting_threshold(VarInt::from_u32(ACKNOWLEDGE_AFTER));
    config.max_ack_delay(Some(ACKNOWLEDGE_WITHIN));
    config.reordering_threshold(VarInt::from_u32(1));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_path_has_a_larger_window_up_to_the_bound() {
        let window = |us| send_window(Duration::from_micros(us), 1);
        assert_eq!(window(0), SEND_WINDOW_ENDS);
        // 10 Gbit/s for 100 µs are 125 kB.
        assert_eq!(window(100), SEND_WINDOW_ENDS + 2 * 125_000);
        assert!(window(1_400) < SEND_WINDOW);
        assert_eq!(window(1_500), SEND_WINDOW);
        assert_eq!(send_window(Duration::MAX, 1), SEND_WINDOW);
    }

    #[test]
    fn more_flows_in_bulk_have_a_larger_window_up_to_the_bound() {
        let window = |flows| send_window(Duration::from_micros(100), flows);
        assert_eq!(window(0), window(1));
        assert_eq!(window(2), window(1) + SEND_WINDOW_FLOW);
        assert_eq!(window(8), window(1) + 7 * SEND_WINDOW_FLOW);
        assert_eq!(window(usize::MAX), window(8));
        assert_eq!(send_window(Duration::MAX, usize::MAX), SEND_WINDOW);
    }
}
