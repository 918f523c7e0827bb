//! Peers that are not of this project: the `quinn` crate as it is, as a client that plays the agent
//! and as a server that plays the relay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, ServerConfig,
    TransportConfig,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use sha2::{Digest, Sha256};
use underpass_tests::deadline::MOMENT;
use underpass_tests::installation::Installation;

use crate::wire::{self, Body};

const ALPN: &[u8] = b"underpass/1";

/// What a connection string says, read as AZURE's clients read theirs: fields between semicolons.
#[derive(Clone, Debug)]
pub(crate) struct Secret {
    pub(crate) key: String,
    pub(crate) pin: String,
}

impl Secret {
    pub(crate) fn parse(string: &str) -> Self {
        let field = |name: &str| {
            let mut fields = string
                .trim()
                .split(';')
                .filter_map(|field| field.split_once('='));
            let (_, value) = fields
                .find(|(key, _)| *key == name)
                .unwrap_or_else(|| panic!("no {name} in the string"));
            value.to_owned()
        };
        Self {
            key: field("SharedAccessKey"),
            pin: field("Pin").strip_prefix("sha256:").unwrap().to_owned(),
        }
    }
}

/// Awaits anything, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(MOMENT, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// An open session with the relay.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) to_relay: SendStream,
    from_relay: RecvStream,
    /// Dropped, the session would end.
    endpoint: Endpoint,
}

impl Session {
    /// Shakes hands, and opens the control stream.
    pub(crate) async fn dial(relay: SocketAddr, pin: &str) -> Result<Self, ConnectionError> {
        Self::dial_with(relay, pin, TransportConfig::default()).await
    }

    /// The same, with a transport of its own kind.
    pub(crate) async fn dial_with(
        relay: SocketAddr,
        pin: &str,
        transport: TransportConfig,
    ) -> Result<Self, ConnectionError> {
        let mut config = client(pin);
        config.transport_config(Arc::new(transport));
        let mut endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        endpoint.set_default_client_config(config);
        let connection = soon(
            "the handshake",
            endpoint.connect(relay, "localhost").unwrap(),
        )
        .await?;
        let (to_relay, from_relay) = connection.open_bi().await?;
        Ok(Self {
            connection,
            to_relay,
            from_relay,
            endpoint,
        })
    }

    /// Shakes hands and says who it is; a fresh process each time.
    pub(crate) async fn greet(relay: SocketAddr, pin: &str) -> Self {
        let mut session = Self::dial(relay, pin).await.unwrap();
        session
            .say(&wire::hello(1, 1, rand::random(), rand::random()))
            .await;
        session.hear(wire::WELCOME).await;
        session
    }

    pub(crate) async fn say(&mut self, frame: &[u8]) {
        self.to_relay.write_all(frame).await.unwrap();
    }

    /// The next frame on the control stream, which must be of this type.
    pub(crate) async fn hear(&mut self, wanted: u8) -> Body {
        let (kind, body) = self.hear_any().await;
        assert_eq!(kind, wanted, "another type of frame came: {body:02x?}");
        body
    }

    /// The next frame on the control stream, with its type. The relay may ask for a probe at any
    /// time, which nobody here answers. A frame of a type that this peer does not know is skipped.
    pub(crate) async fn hear_any(&mut self) -> (u8, Body) {
        loop {
            let next = read_any(&mut self.from_relay, "a frame");
            let (kind, body) = soon("a frame", next).await;
            let is_known = kind <= wire::PROBED || kind >= wire::OPEN;
            if kind != wire::PROBE && is_known {
                return (kind, body);
            }
        }
    }

    /// Lets the session go; what it still says leaves by this.
    pub(crate) fn into_endpoint(self) -> Endpoint {
        self.endpoint
    }

    pub(crate) fn exporter(&self) -> [u8; 32] {
        exporter(&self.connection)
    }

    /// Asserts that the relay opens no flow. Called when the application of the flow that there
    /// might be has its reset already.
    pub(crate) async fn has_no_flow(&self) {
        let flow =
            tokio::time::timeout(Duration::from_millis(300), self.connection.accept_bi()).await;
        assert!(flow.is_err(), "a flow was opened: {flow:?}");
    }

    /// The code with which the relay closes the session.
    pub(crate) async fn close_code(&self) -> u64 {
        match soon("the relay to close the session", self.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("the session ended otherwise: {other}"),
        }
    }

    /// Waits until the relay closes a session that goes on sending, with this code. A peer that had
    /// no time to look between the close and the stateless reset that answers what it sent later
    /// knows only of the reset.
    pub(crate) async fn assert_flood_closed(&self, code: u64) {
        match soon("the relay to close the session", self.connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code.into_inner(), code);
            }
            ConnectionError::Reset => {}
            other => panic!("the session ended otherwise: {other}"),
        }
    }
}

/// Reads one frame of this type, header and body.
pub(crate) async fn read_frame(stream: &mut RecvStream, wanted: u8) -> Body {
    let what = format!("a frame of type {wanted:#04x}");
    let (kind, body) = read_any(stream, &what).await;
    assert_eq!(kind, wanted, "another type of frame came: {body:02x?}");
    body
}

/// Reads one frame, header and body.
async fn read_any(stream: &mut RecvStream, what: &str) -> (u8, Body) {
    let mut head = [0; 3];
    let failed = |error| panic!("waiting for {what}: {error}");
    stream.read_exact(&mut head).await.unwrap_or_else(failed);
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    stream.read_exact(&mut body).await.unwrap_or_else(failed);
    (head[0], Body::new(body))
}

pub(crate) fn exporter(connection: &Connection) -> [u8; 32] {
    let mut exporter = [0; 32];
    connection
        .export_keying_material(&mut exporter, wire::EXPORTER, b"")
        .unwrap();
    exporter
}

/// A client that goes by the pin.
pub(crate) fn client(pin: &str) -> ClientConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(ByPin {
        pin: pin.to_owned(),
        provider: Arc::clone(&provider),
    });
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

/// A relay with the certificate of an installation, as whoever stole that would have.
pub(crate) fn false_relay(installation: &Installation, address: SocketAddr) -> Endpoint {
    let file = |name: &str| installation.directory().join("tls").join(name);
    let certificate = CertificateDer::from_pem_file(file("certificate.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key.pem")).unwrap();
    let mut tls =
        rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    Endpoint::server(config, address).unwrap()
}

/// Accepts a certificate whose public key has this SHA-256, and nothing else.
#[derive(Debug)]
struct ByPin {
    pin: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByPin {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let hash = Sha256::digest(parsed.subject_public_key_info().as_ref());
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        if hex == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
