//! QUIC as both processes of the baseline speak it: windows, MTU, congestion control, TLS, the UDP
//! socket.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TransportConfig,
    VarInt,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CipherSuite, DigitallySignedStruct, SignatureScheme};

use super::ALPN;

/// Socket buffers, bytes: the kernel's default overflows in a hundred packets.
const SOCKET_BUFFER: usize = 4 << 20;

/// Credit of one stream, bytes.
const STREAM_WINDOW: u32 = 4 << 20;

/// Credit of a session, bytes.
const SESSION_WINDOW: u32 = 64 << 20;

/// Bytes in flight of a session at most: under half of the peer's socket buffer, so that a burst is
/// not dropped there.
const SEND_WINDOW: u64 = 2 << 20;

const _: () = assert!(SEND_WINDOW <= SOCKET_BUFFER as u64 / 2);

/// Congestion window at the start, bytes: these paths are known to be good.
const INITIAL_WINDOW: u64 = 1 << 20;

/// Largest datagram that still leaves quinn its ten segments a send: over 64 KiB in all, the kernel
/// refuses and quinn-udp says nothing.
const MTU_MAX: u16 = 65_507 / 10;

/// Flows at once.
const FLOWS_MAX: u32 = 10_000;

/// An end of the relay's side, and of the agent's.
pub(super) fn relay(listen: SocketAddr, mtu: Option<u16>) -> anyhow::Result<Endpoint> {
    let certified = rcgen::generate_simple_self_signed(["stock".to_owned()])?;
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der())
        .map_err(anyhow::Error::msg)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.into()], key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport(mtu)?));
    endpoint(listen, mtu, Some(config))
}

/// See [`relay`].
pub(super) fn agent(relay: SocketAddr, mtu: Option<u16>) -> anyhow::Result<Endpoint> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(transport(mtu)?));
    let any = match relay {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    };
    let mut endpoint = endpoint(any, mtu, None)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

fn transport(mtu: Option<u16>) -> anyhow::Result<TransportConfig> {
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW);
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(SESSION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(FLOWS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .max_idle_timeout(Some(Duration::from_secs(15).try_into()?))
        .congestion_controller_factory(Arc::new(cubic));
    match mtu {
        Some(mtu) => config.initial_mtu(mtu).mtu_discovery_config(None),
        None => {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(MTU_MAX);
            config.mtu_discovery_config(Some(discovery))
        }
    };
    Ok(config)
}

fn endpoint(
    bind: SocketAddr,
    mtu: Option<u16>,
    server: Option<ServerConfig>,
) -> anyhow::Result<Endpoint> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(bind),
        socket2::Type::DGRAM,
        None,
    )?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket
        .bind(&bind.into())
        .with_context(|| format!("cannot bind {bind} (udp)"))?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(mtu.unwrap_or(MTU_MAX))?;
    let runtime = quinn::default_runtime().context("runs outside of tokio")?;
    Ok(Endpoint::new(
        config,
        server,
        UdpSocket::from(socket),
        runtime,
    )?)
}

/// aws-lc-rs with AES-128-GCM first: enough for a session, and cheaper than rustls's first choice.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// Takes any certificate, though it checks that the peer holds its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
