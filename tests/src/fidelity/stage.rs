//! Where a row is played: the application's side connects, the endpoint's side is listened to here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use socket2::{Domain, Socket, Type};
use underpass_loadtest::pattern::{Pattern, derive};

use super::{Fault, Options, Processes, Tunnel, Verdict};
use crate::conversation::Conversation;
use crate::deadline::{LOOK_EACH, pause};

/// Connections that may wait at the endpoint: more than any row opens at once.
const BACKLOG: i32 = 4096;

/// Length of the token by which the suite knows its own probe, bytes.
const TOKEN_LEN: usize = 16;

/// How long a probe may be under way before another is sent: a tunnel that comes back may have lost
/// the first.
const PROBE_AGAIN: Duration = Duration::from_secs(2);

pub(super) struct Stage<'a> {
    tunnel: Tunnel<'a>,
    pub(super) options: Options,
    /// `None` only while the endpoint refuses.
    listener: Option<TcpListener>,
    until: Instant,
    flows: u64,
    usable: bool,
}

/// Both ends of one flow.
pub(super) struct Ends {
    pub(super) application: Conversation,
    pub(super) endpoint: Conversation,
    /// What the application sends.
    pub(super) up: Pattern,
    /// What the endpoint sends.
    pub(super) down: Pattern,
}

/// One end, and what it sends.
pub(super) struct Speaker {
    pub(super) line: Conversation,
    pub(super) says: Pattern,
}

impl Ends {
    /// The application first.
    pub(super) fn application_first(self) -> (Speaker, Speaker) {
        (
            Speaker {
                line: self.application,
                says: self.up,
            },
            Speaker {
                line: self.endpoint,
                says: self.down,
            },
        )
    }

    /// The endpoint first.
    pub(super) fn endpoint_first(self) -> (Speaker, Speaker) {
        let (application, endpoint) = self.application_first();
        (endpoint, application)
    }
}

impl<'a> Stage<'a> {
    pub(super) fn new(tunnel: &Tunnel<'a>, options: &Options) -> anyhow::Result<Self> {
        let listener = listen(tunnel.endpoint).with_context(|| {
            format!(
                "cannot listen on the endpoint's address {}",
                tunnel.endpoint
            )
        })?;
        let until = Instant::now() + options.deadline;
        Ok(Self {
            tunnel: *tunnel,
            options: options.clone(),
            listener: Some(listener),
            until,
            flows: 0,
            usable: true,
        })
    }

    /// Plays one row, then makes sure that the tunnel is usable and nothing of the row is left
    /// over.
    pub(super) fn play(&mut self, row: fn(&mut Self) -> Result<(), Fault>) -> Verdict {
        if !self.usable {
            return Verdict::Skipped("the tunnel became unusable in an earlier row");
        }
        self.renew(1);
        let played = row(self);
        self.renew(1);
        let settled = self.settle();
        self.usable = settled.is_ok();
        match played
            .and(settled.map_err(|fault| Fault::Other(format!("unusable afterwards: {fault}"))))
        {
            Ok(_) => Verdict::Passed,
            Err(fault) => Verdict::Failed(fault),
        }
    }

    /// A fresh deadline, `times` as long as usual.
    pub(super) fn renew(&mut self, times: u32) {
        self.until = Instant::now() + self.options.deadline * times;
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    pub(super) fn processes(&self) -> Result<&'a dyn Processes, Fault> {
        self.tunnel
            .processes
            .ok_or_else(|| Fault::Other("no processes to kill".into()))
    }

    pub(super) fn unknown_name(&self) -> Result<SocketAddr, Fault> {
        self.tunnel
            .unknown_name
            .ok_or_else(|| Fault::Other("no address with an unknown name".into()))
    }

    /// A pattern that no other flow of this run has.
    pub(super) fn pattern(&mut self) -> Pattern {
        self.flows += 1;
        Pattern::new(derive(self.options.seed, self.flows))
    }

    pub(super) fn listen_address(&self) -> SocketAddr {
        self.tunnel.listen
    }

    pub(super) fn connect(&self) -> Result<Conversation, Fault> {
        Conversation::connect(self.tunnel.listen, "application", self.until)
    }

    /// Opens a flow.
    pub(super) fn open(&mut self) -> Result<Ends, Fault> {
        let application = self.connect()?;
        let endpoint = self.accept()?;
        Ok(Ends {
            application,
            endpoint,
            up: self.pattern(),
            down: self.pattern(),
        })
    }

    /// Waits for the next connection at the endpoint.
    pub(super) fn accept(&self) -> Result<Conversation, Fault> {
        loop {
            if let Some(endpoint) = self.accept_waiting()? {
                return Ok(endpoint);
            }
            if Instant::now() >= self.until {
                return Err(Fault::Hung("the endpoint waits for a connection".into()));
            }
            pause(LOOK_EACH);
        }
    }

    /// Makes the endpoint refuse until [`Self::listen`].
    pub(super) fn refuse(&mut self) {
        self.listener = None;
    }

    pub(super) fn listen(&mut self) -> Result<(), Fault> {
        self.listener = Some(listen(self.tunnel.endpoint).map_err(|error| {
            Fault::Other(format!(
                "cannot listen on {} again: {error}",
                self.tunnel.endpoint
            ))
        })?);
        Ok(())
    }

    /// Opens probing flows until one gets a token through. Returns every other connection that
    /// reached the endpoint meanwhile.
    pub(super) fn settle(&mut self) -> Result<Vec<Conversation>, Fault> {
        let mut waiting: Vec<Conversation> = Vec::new();
        let mut tokens: Vec<[u8; TOKEN_LEN]> = Vec::new();
        while Instant::now() < self.until {
            let mut token = [0; TOKEN_LEN];
            self.pattern().fill(0, &mut token);
            tokens.push(token);
            let Ok(probe) = self
                .connect()
                .and_then(|mut probe| probe.send_bytes(&token).map(|()| probe))
            else {
                pause(LOOK_EACH);
                continue;
            };
            let again = (Instant::now() + PROBE_AGAIN).min(self.until);
            while Instant::now() < again && !probe.failed(Duration::ZERO)? {
                waiting.extend(self.accept_waiting()?);
                if let Some(index) = waiting
                    .iter()
                    .position(|end| end.waiting_bytes::<TOKEN_LEN>().as_slice() == token)
                {
                    probe.close();
                    let mut end = waiting.remove(index);
                    end.receive_bytes::<TOKEN_LEN>()?;
                    end.receive_end()?;
                    waiting.retain(|end| {
                        !tokens
                            .iter()
                            .any(|token| end.waiting_bytes::<TOKEN_LEN>().as_slice() == token)
                    });
                    return Ok(waiting);
                }
                pause(LOOK_EACH);
            }
        }
        Err(Fault::Hung("no probe gets through to the endpoint".into()))
    }

    fn accept_waiting(&self) -> Result<Option<Conversation>, Fault> {
        let Some(listener) = &self.listener else {
            return Ok(None);
        };
        match listener.accept() {
            Ok((stream, _)) => Conversation::new(stream, "endpoint", self.until).map(Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(Fault::Other(format!("the endpoint cannot accept: {error}"))),
        }
    }
}

/// A non-blocking listener that may take the address of one that has just gone.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
