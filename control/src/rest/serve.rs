//! Accepts connections for the API: on the address of `[control]`, with TLS where that says so, and
//! on `run/api.sock`.
//!
//! An address that cannot be had is told as a fault and tried again; files and traffic go on. A
//! changed address is taken up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::door::OnlyProbes;
use super::failures::source;
use super::places::{Place, Places};
use super::written::AnswerProgress;
use super::{Remote, Shared, router, tls};
use crate::files::control_section::ControlSettings;
use crate::files::namespace::Namespace;
use crate::files::{Directory, Fault};
use crate::publish::watch::LOOK_NOW;
use crate::publish::{is_ours, listen};

/// From accepting a connection, or from an answer, to the next whole head.
const HEAD_WITHIN: Duration = Duration::from_secs(15);

/// A connection that lasts longer is closed: one that does not read would hold its place for ever.
const CONNECTION_WITHIN: Duration = Duration::from_secs(300);

/// Bytes of a head.
const HEAD_MAX: usize = 32 * 1024;

/// Between two tries to listen, and after an accept that failed.
const RETRY: Duration = Duration::from_secs(1);

/// How long a caller of `run/api.sock` waits for a place: requests that ask no relay take less.
const PLACE_WITHIN: Duration = Duration::from_secs(5);

/// How often refused requests without a line in the log are reported.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// How often the certificate is looked at.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(10);

/// What would keep the API from ever being served is said before control starts.
///
/// # Errors
/// The certificate cannot be used.
pub(crate) fn check(directory: &Directory, namespace: &Namespace) -> Result<(), Fault> {
    match &namespace.control.tls {
        Some(tls) => tls::load(directory, tls).map(drop),
        None => Ok(()),
    }
}

/// Serves until dropped.
pub(crate) async fn serve(rest: Shared) {
    let router = router(&rest);
    tokio::join!(
        serve_local(&rest, router.clone()),
        serve_network(&rest, router),
        report_left_out(&rest)
    );
}

async fn report_left_out(rest: &Shared) {
    loop {
        sleep(REPORT_EVERY).await;
        if let Some(left_out) = rest.failures.take_left_out() {
            info!(line = "request refused", left_out, "log lines left out");
        }
    }
}

async fn serve_local(rest: &Shared, router: Router) {
    let path = rest.directory().run().join("api.sock");
    let listener = loop {
        match listen(&path) {
            Ok(listener) => break listener,
            Err(error) => {
                warn!(path = %path.display(), %error, "the REST API cannot be served to commands; they work on the files");
                sleep(RETRY * 10).await;
            }
        }
    };
    let places = Places::of_one();
    loop {
        match listener.accept().await {
            Ok((stream, _)) if is_ours(&stream) => {
                // The next callers wait in the listener's queue.
                let _ = timeout(PLACE_WITHIN, places.free()).await;
                let uid = stream.peer_cred().map_or(0, |peer| peer.uid());
                let remote = Remote::Local { uid };
                in_place(&places, remote, |place| {
                    converse(stream, remote, router.clone(), place)
                });
            }
            Ok(_) => {}
            Err(error) => pause(&error).await,
        }
    }
}

async fn serve_network(rest: &Shared, router: Router) {
    let mut news = rest.live.published();
    let mut told = None;
    loop {
        let settings = rest.live.namespace().control.clone();
        let changed = async {
            while rest.live.namespace().control == settings {
                if news.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        match Door::open(rest.directory(), &settings).await {
            Ok(door) => {
                rest.live.set_api(Ok(door.address));
                told = None;
                info!(address = %door.address, tls = settings.tls.is_some(), "REST API listens");
                tokio::select! {
                    () = door.serve(rest.directory(), &settings, &router) => {}
                    () = changed => {}
                }
            }
            Err(fault) => {
                if told.as_ref() != Some(&fault) {
                    warn!("{fault}");
                }
                rest.live.set_api(Err(fault.clone()));
                told = Some(fault);
                tokio::select! {
                    () = sleep(RETRY) => {}
                    () = changed => {}
                }
            }
        }
    }
}

/// An open address.
struct Door {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<tls::Loaded>,
}

impl Door {
    async fn open(directory: &Directory, settings: &ControlSettings) -> Result<Self, Fault> {
        let tls = settings
            .tls
            .as_ref()
            .map(|tls| tls::load(directory, tls))
            .transpose()?;
        let opened = TcpListener::bind(settings.listen).await;
        let opened = opened.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = opened.map_err(|error| cannot_listen(settings.listen, &error))?;
        Ok(Self {
            listener,
            address,
            tls,
        })
    }

    async fn serve(mut self, directory: &Directory, settings: &ControlSettings, router: &Router) {
        let places = Places::of_many();
        let mut next_look = Instant::now() + CERTIFICATE_EVERY;
        loop {
            // Asked ahead of each accept: a listener that is never idle has a certificate too.
            if Instant::now() >= next_look {
                self.renew(directory, settings);
                next_look = Instant::now() + CERTIFICATE_EVERY;
            }
            let accepted = tokio::select! {
                accepted = timeout_at(next_look, self.listener.accept()) => accepted,
                () = LOOK_NOW.notified() => {
                    next_look = Instant::now();
                    continue;
                }
            };
            let Ok(accepted) = accepted else { continue };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause(&error).await;
                    continue;
                }
            };
            let local = stream.local_addr().unwrap_or(self.address);
            let remote = Remote::Network { peer, local };
            let acceptor = self
                .tls
                .as_ref()
                .map(|tls| TlsAcceptor::from(Arc::clone(&tls.config)));
            in_place(&places, remote, |place| {
                greet(stream, remote, acceptor, router.clone(), place)
            });
        }
    }

    /// A new certificate is taken up; a bad one leaves the old in use.
    fn renew(&mut self, directory: &Directory, settings: &ControlSettings) {
        let (Some(loaded), Some(tls)) = (&self.tls, &settings.tls) else {
            return;
        };
        if loaded.is_current(directory, tls) {
            return;
        }
        match tls::load(directory, tls) {
            Ok(renewed) => {
                info!("the REST API has a new certificate");
                self.tls = Some(renewed);
            }
            Err(fault) => warn!("{fault}"),
        }
    }
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> Fault {
    let next = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "`ss -ltnp 'sport = :{}'` shows who has it; another is chosen by `listen` in [control]",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => {
            "write an address of this machine as `listen` in [control]".into()
        }
        io::ErrorKind::PermissionDenied => {
            "choose a port above 1023 by `listen` in [control]".into()
        }
        _ => "another address is chosen by `listen` in [control]".into(),
    };
    Fault::whole(
        "namespace.toml",
        format!(
            "the REST API cannot listen on {address} (tcp): {error}; {next}; it is tried again each second"
        ),
    )
}

/// Serves a connection for as long as it has a place. Without one it is closed at once.
fn in_place<F>(places: &Places, remote: Remote, conversation: impl FnOnce(Place) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let Some((place, closed)) = places.admit(source(remote.ip())) else {
        debug!(%remote, "no room for one more connection");
        return;
    };
    let conversation = conversation(place);
    tokio::spawn(async move {
        tokio::select! {
            () = conversation => {}
            _ = closed => debug!(%remote, "idle connection closed to make room for a new one"),
        }
    });
}

async fn greet(
    stream: TcpStream,
    remote: Remote,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    place: Place,
) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return converse(stream, remote, router, place).await;
    };
    match timeout(HEAD_WITHIN, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, remote, router, place).await,
        Ok(Err(error)) => debug!(%remote, %error, "no TLS"),
        Err(_) => debug!(%remote, "no TLS in time"),
    }
}

/// One connection, from its first request to its last.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    remote: Remote,
    router: Router,
    place: Place,
) {
    let progress = AnswerProgress::new(place);
    let stream = progress.watch(stream);
    let service = tower::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(remote);
        if progress.place().is_only_for_probes() {
            request.extensions_mut().insert(OnlyProbes);
        }
        let (router, progress) = (router.clone(), progress.clone());
        async move {
            progress.begin();
            let answer = router.oneshot(request.map(axum::body::Body::new)).await;
            answer.map(|answer| answer.map(|body| progress.follow(body)))
        }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Ok(Err(error)) = timeout(CONNECTION_WITHIN, conversation).await {
        debug!(%remote, %error, "connection to the API failed");
    }
}

/// The cause of a failed accept (no descriptors) does not go away at once.
async fn pause(error: &io::Error) {
    warn!(%error, "a connection to the API could not be accepted");
    sleep(RETRY / 10).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LARGE: usize = 1 << 20;

    #[tokio::test]
    async fn a_connection_is_idle_only_when_its_answer_is_written() {
        let large = || async { vec![b'x'; LARGE] };
        let router = Router::new().route("/", axum::routing::get(large));
        let remote = Remote::Local { uid: 0 };
        let places = Places::of_one();
        let (place, mut closed) = places.admit([0; 8]).expect("a place");
        let (mut client, server) = tokio::io::duplex(1024);
        tokio::spawn(converse(server, remote, router, place));
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        client.write_all(request).await.unwrap();
        let mut head = vec![0; 512];
        client.read_exact(&mut head).await.unwrap();
        let text = String::from_utf8_lossy(&head);
        let end = text.find("\r\n\r\n").expect("a whole head") + 4;
        assert!(text.contains("content-length: 1048576\r\n"), "{text}");

        // The next that comes when all is taken closes the one that is idle for longest.
        let others: Vec<_> = std::iter::from_fn(|| places.admit([0; 8]))
            .take_while(|(place, _)| !place.is_only_for_probes())
            .take(300)
            .collect();
        assert!(others.len() == 300, "{} places", others.len());
        assert!(
            closed.try_recv().is_err_and(is_open),
            "it is being answered"
        );

        let mut rest = vec![0; LARGE - (head.len() - end)];
        client.read_exact(&mut rest).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut newcomers = Vec::new();
        while closed.try_recv().is_err_and(is_open) {
            assert!(Instant::now() < deadline, "never idle");
            newcomers.push(places.admit([0; 8]));
            tokio::task::yield_now().await;
        }
    }

    fn is_open(error: tokio::sync::oneshot::error::TryRecvError) -> bool {
        error == tokio::sync::oneshot::error::TryRecvError::Empty
    }
}
