//! A name server of a test's own, for a process that sees another resolv.conf than the rest of the
//! machine. It counts what it is asked for.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

/// Names below it are 127.0.0.1, at every question.
pub const GOOD: &str = "good.test";

/// Questions for names below it are never answered.
pub const SILENT: &str = "silent.test";

/// Where a name server must listen (RFC 1035, section 4.2).
const PORT: u16 = 53;

/// Length of a header, and the longest question over UDP (RFC 1035, sections 4.1.1 and 4.2.1).
const HEADER: usize = 12;
const QUESTION_MAX: usize = 512;

const TYPE_A: u16 = 1;

/// Answers until it is dropped.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Starts on an address of loopback that no other test has.
    ///
    /// # Errors
    /// The port needs root.
    pub fn start() -> Result<Self> {
        static STARTED: AtomicU8 = AtomicU8::new(0);
        let [process, ..] = std::process::id().to_le_bytes();
        let number = STARTED.fetch_add(1, Ordering::SeqCst);
        let ip = Ipv4Addr::new(127, 53, process, number + 1);
        let address = SocketAddr::from((ip, PORT));
        let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"))?;
        let (over, asked) = (Arc::<AtomicBool>::default(), Arc::default());
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&asked));
        let thread = thread::spawn(move || serve(&socket, &ends, &counts));
        Ok(Self {
            address,
            over,
            asked,
            thread: Some(thread),
        })
    }

    /// The resolv.conf of who is to ask it: two seconds for a question, and no second try.
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        let ip = self.address.ip();
        format!("nameserver {ip}\noptions timeout:2 attempts:1\n")
    }

    /// How often the IPv4 addresses of a name were asked for.
    #[must_use]
    pub fn questions(&self, name: &str) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(name).copied().unwrap_or(0)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // It waits for a question: an empty one wakes it.
        if let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
            let _ = socket.send_to(&[], self.address);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, over: &AtomicBool, asked: &Mutex<HashMap<String, usize>>) {
    let mut question = [0; QUESTION_MAX];
    while !over.load(Ordering::SeqCst) {
        let Ok((len, from)) = socket.recv_from(&mut question) else {
            continue;
        };
        let Some((name, kind, end)) = read(&question[..len]) else {
            continue;
        };
        if kind == TYPE_A {
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            *asked.entry(name.clone()).or_default() += 1;
        }
        if !name.ends_with(SILENT) {
            let _ = socket.send_to(&answer(&question[..end], &name, kind), from);
        }
    }
}

/// The name and the type of a question, and where it ends.
fn read(question: &[u8]) -> Option<(String, u16, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let len = usize::from(*question.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + len)?).to_lowercase());
        at += len;
    }
    let kind = question.get(at..at + 2)?;
    let end = at + 4;
    question.get(..end)?;
    Some((
        labels.join("."),
        u16::from_be_bytes([kind[0], kind[1]]),
        end,
    ))
}

/// One address, none of that type, or no such name (RFC 1035, section 4.1).
fn answer(question: &[u8], name: &str, kind: u16) -> Vec<u8> {
    let known = name.ends_with(GOOD);
    let found = known && kind == TYPE_A;
    let mut answer = question.to_vec();
    // A response, recursion desired and available; NXDOMAIN where the name is unknown.
    answer[2..4].copy_from_slice(&[0x81, if known { 0x80 } else { 0x83 }]);
    answer[4..HEADER].copy_from_slice(&[0, 1, 0, found.into(), 0, 0, 0, 0]);
    if found {
        // The name of the question, A, IN, no lifetime, four bytes.
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(Ipv4Addr::LOCALHOST.octets());
    }
    answer
}
