//! The API of a running control process: its socket, its address, its bounds.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::sync::oneshot;
use underpass::files::Directory;
use underpass::publish::{self, Error};
use underpass::rest::model::{HybridConnection, HybridConnections, Probed};
use underpass::rest::{ClientError, Wanted};
use underpass_proto::snapshot::{ProbeReport, ProbedDial, ProbedListener};
use underpass_proto::wire::{AgentId, Instance};
use underpass_proto::{FeedMessage, Report};

use crate::running::{Control, PATIENCE, folder, wait_for};

/// How long a connection may be without a request.
const IDLE: Duration = Duration::from_secs(15);

const ANY_PORT: &str = "[control]\nlisten = \"127.0.0.1:0\"\n";

#[test]
fn it_is_served_on_its_socket_and_on_its_address() {
    let folder = folder(ANY_PORT, &["payroll-sql"]);
    let control = Control::start(&folder);
    let all: HybridConnections = control.client().get("/v1/hybridconnections").unwrap();
    assert_eq!(all.value[0].described.name, "payroll-sql");
    let address = address(&control);
    let answer = plain(
        address,
        &format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
    );
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("{\"status\":\"ok\"}"),
        "{answer}"
    );
    let answer = plain(
        address,
        "GET /healthz HTTP/1.1\r\nHost: rebound.example.com\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
}

#[test]
fn idle_connections_keep_nobody_from_an_answer() {
    let control = folder(ANY_PORT, &[]);
    let control = Control::start(&control);
    let address = address(&control);
    let idle: Vec<TcpStream> = (0..300)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let begun = Instant::now();
    for path in ["/healthz", "/readyz"] {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        let answer = plain(address, &request);
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    }
    // Far below the 15 s after which a connection without a request is closed in any case.
    assert!(begun.elapsed() < IDLE / 3, "{:?}", begun.elapsed());
    let mut oldest = idle.first().unwrap();
    oldest.set_read_timeout(Some(PATIENCE)).unwrap();
    // Not a read that timed out: then it is still open.
    let closed = match oldest.read(&mut [0; 1]) {
        Ok(0) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
        Ok(_) => false,
    };
    assert!(closed, "it made room");
}

#[test]
fn an_overloaded_relay_is_not_ready() {
    let place = folder(ANY_PORT, &[]);
    let control = Control::start(&place);
    let address = address(&control);
    let readyz = || {
        let request =
            format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        plain(address, &request)
    };
    let is_ready = || readyz().starts_with("HTTP/1.1 200 ").then_some(());
    let mut relay = control.relay();
    let generation = relay.snapshot().generation;
    relay.send(&FeedMessage::Applied {
        generation,
        faults: Vec::new(),
    });
    let mut reports = |overloaded: Option<&str>| {
        let report = Report {
            generation,
            overloaded: overloaded.map(str::to_owned),
            ..Report::default()
        };
        relay.send(&FeedMessage::Report(Box::new(report)));
    };
    reports(None);
    wait_for("it to be ready", is_ready);
    reports(Some("memory is short"));
    let answer = wait_for("the overload", || {
        Some(readyz()).filter(|answer| answer.starts_with("HTTP/1.1 503 "))
    });
    assert!(answer.contains("overloaded: memory is short"), "{answer}");
    reports(None);
    wait_for("it to be ready again", is_ready);
}

#[test]
fn commands_beside_one_another_wait_and_none_is_refused() {
    let place = folder(ANY_PORT, &[]);
    let control = Control::start(&place);
    thread::scope(|scope| {
        for number in 0..100 {
            let client = control.client();
            scope.spawn(move || {
                let path = format!("/v1/hybridconnections/payroll-{number}");
                let wanted = Wanted {
                    host: "sql01".into(),
                    port: 1433,
                    ..Wanted::default()
                };
                let made = client.put::<HybridConnection>(&path, &wanted, ("if-none-match", "*"));
                made.unwrap_or_else(|error| panic!("{path}: {error}"));
            });
        }
    });
}

#[test]
fn a_busy_port_is_a_fault_that_is_told_and_mended_and_files_go_on() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = busy.local_addr().unwrap();
    let folder = folder(&format!("[control]\nlisten = \"{wanted}\"\n"), &[]);
    let control = Control::start(&folder);
    let faults = || publish::status(&control.directory).unwrap().faults;
    let fault = wait_for("the fault", || faults().first().cloned());
    let port = wanted.port();
    assert_eq!(
        fault.what,
        format!(
            "namespace.toml: the REST API cannot listen on {wanted} (tcp): Address already in use (os error 98); `ss -ltnp 'sport = :{port}'` shows who has it; another is chosen by `listen` in [control]; it is tried again each second"
        )
    );
    let mut relay = control.relay();
    relay.snapshot();
    std::fs::write(
        folder.path().join("connections/payroll-sql.toml"),
        "host = \"a\"\nport = 1\n",
    )
    .unwrap();
    relay.snapshot_when(|snapshot| snapshot.hycos.len() == 1);
    drop(busy);
    wait_for("the fault to be gone", || faults().is_empty().then_some(()));
    assert_eq!(address(&control), wanted);
}

#[test]
fn a_changed_address_is_taken_up() {
    let folder = folder(ANY_PORT, &[]);
    let control = Control::start(&folder);
    let before = address(&control);
    std::fs::write(
        folder.path().join("namespace.toml"),
        "[control]\nlisten = \"127.0.0.2:0\"\n",
    )
    .unwrap();
    let after = wait_for("the new address", || {
        control
            .namespace()
            .api_address
            .filter(|address| *address != before)
    });
    assert_eq!(after.ip().to_string(), "127.0.0.2");
    assert!(TcpStream::connect(before).is_err(), "the old one is closed");
}

#[test]
fn another_address_than_loopback_needs_a_certificate() {
    let place = folder("[control]\nlisten = \"0.0.0.0:0\"\n", &[]);
    let told = refused(&place);
    assert!(told.starts_with("namespace.toml:2: listen = \"0.0.0.0:0\" in [control] can be reached from other machines, and then needs TLS; add `certificate = \"relay\"`"), "{told}");
    let place = folder(
        "[control]\ncertificate = \"api.pem\"\nkey = \"api-key.pem\"\n",
        &[],
    );
    assert_eq!(refused(&place), "api.pem: is not there; check the path");
}

#[test]
fn with_the_relays_certificate_it_speaks_tls() {
    let place = folder(
        "public_address = \"127.0.0.1:4433\"\n[control]\nlisten = \"127.0.0.1:0\"\ncertificate = \"relay\"\n",
        &[],
    );
    let control = Control::start(&place);
    let address = address(&control);
    let pem = std::fs::read(place.path().join("tls/certificate.pem")).unwrap();
    let answer = secure(address, &pem).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let plain = plain(address, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(!plain.contains("HTTP/1.1 200"), "{plain}");
}

#[test]
fn a_new_certificate_is_taken_up_though_somebody_always_calls() {
    let place = folder(
        "[control]\nlisten = \"127.0.0.1:0\"\ncertificate = \"api.pem\"\nkey = \"api-key.pem\"\n",
        &[],
    );
    let certify = || {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = place.path().join("api-key.pem");
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(place.path().join("api.pem"), made.cert.pem()).unwrap();
        made.cert.pem().into_bytes()
    };
    let first = certify();
    let control = Control::start(&place);
    let address = address(&control);
    assert!(secure(address, &first).is_some());
    let second = certify();
    let answer = wait_for("the new certificate", || secure(address, &second));
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(secure(address, &first), None);
}

#[test]
fn who_never_sends_a_whole_head_is_let_go_and_others_are_served_meanwhile() {
    let folder = folder(ANY_PORT, &[]);
    let control = Control::start(&folder);
    let address = address(&control);
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: loc")
        .unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(
        plain(
            address,
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .contains("200 OK")
    );
    let mut rest = String::new();
    slow.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("200"), "{rest}");
}

#[test]
fn a_probe_is_handed_to_the_relay_and_its_answer_back() {
    let folder = folder(ANY_PORT, &["payroll-sql"]);
    let control = Control::start(&folder);
    let name = "payroll-sql".parse().unwrap();
    assert_eq!(
        publish::probe(&control.directory, &name).unwrap(),
        None,
        "there is no relay"
    );
    let mut relay = control.relay();
    relay.next();
    let found = ProbeReport {
        known: true,
        agents: vec![ProbedListener {
            agent_id: AgentId([1; 16]),
            instance: Instance([2; 16]),
            remote: "192.0.2.7:5".parse().unwrap(),
            rtt_us: 900,
            dial: Some(ProbedDial {
                endpoint: "sql01:1433".parse().unwrap(),
                address: "10.0.0.7:1433".parse().ok(),
                resolve_us: 1,
                dial_us: 2,
                failed: Some("refused".into()),
                why: Some("nobody listens there".into()),
            }),
        }],
    };
    let expected = found.clone();
    let answering = thread::spawn(move || {
        for _ in 0..2 {
            let (id, hyco) = relay.next_that(|message| match message {
                FeedMessage::Probe { id, hyco } => Some((id, hyco)),
                _ => None,
            });
            assert_eq!(hyco.as_str(), "payroll-sql");
            relay.send(&FeedMessage::Probed {
                id,
                report: Some(Box::new(found.clone())),
            });
        }
        relay
    });
    assert_eq!(
        publish::probe(&control.directory, &name).unwrap(),
        Some(expected)
    );
    let probed: Probed = control
        .client()
        .post("/v1/hybridconnections/payroll-sql/probe")
        .unwrap();
    let agent = &probed.agents[0];
    assert_eq!(
        (agent.reached, agent.rtt_us, agent.failed.as_deref()),
        (false, 900, Some("refused"))
    );
    let relay = answering.join().unwrap();

    // A relay that goes while it is asked: told at once, not after the deadline.
    let gone = thread::spawn(move || {
        let mut relay = relay;
        relay.next_that(|message| matches!(message, FeedMessage::Probe { .. }).then_some(()));
    });
    let ClientError::Problem(problem) = control
        .client()
        .post::<Probed>("/v1/hybridconnections/payroll-sql/probe")
        .unwrap_err()
    else {
        panic!("a problem")
    };
    assert_eq!((problem.status, problem.code.as_str()), (503, "no_relay"));
    gone.join().unwrap();
}

fn refused(folder: &tempfile::TempDir) -> String {
    let (_tell, stop) = oneshot::channel();
    match publish::run(&Directory::new(folder.path()), stop) {
        Err(Error::Faults(faults)) => faults[0].to_string(),
        other => panic!("it must not run: {other:?}"),
    }
}

fn address(control: &Control) -> SocketAddr {
    wait_for("the address", || control.namespace().api_address)
}

/// The answer to a request by TLS; nothing where the server has another certificate than this.
fn secure(address: SocketAddr, pem: &[u8]) -> Option<String> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pem).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = rustls::Stream::new(&mut tls, &mut stream);
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// Everything that comes back, until the other side closes.
fn plain(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}
