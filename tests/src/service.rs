//! A small TCP service that says who it is and echoes, and talks with it: for tests of what changes
//! around flows, where the bytes themselves are not in question.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::deadline::{LOOK_EACH, MOMENT, pause};

/// A service of one letter: says it to each that connects, then echoes.
#[derive(Debug)]
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts on a port of the kernel's choice.
    ///
    /// # Errors
    /// When there is none.
    pub fn start(letter: u8) -> io::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), letter)
    }

    /// Starts where one was before.
    ///
    /// # Errors
    /// When somebody else is there.
    pub fn start_at(address: SocketAddr, letter: u8) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let accepted = Arc::<AtomicUsize>::default();
        let (accepting, count) = (listener.try_clone()?, Arc::clone(&accepted));
        let thread = thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || serve(stream, letter));
            }
        });
        Ok(Self {
            address,
            accepted,
            listener,
            thread: Some(thread),
        })
    }

    /// How many have connected.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // To close would not do: a process that a test starts just now holds a copy until it has
        // become its program, and the kernel would go on accepting. This also wakes the thread;
        // those of live conversations end with these.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, letter: u8) {
    let _ = stream.set_nodelay(true);
    let mut chunk = [0; 4096];
    let mut answer = stream.write_all(&[letter]);
    while answer.is_ok() {
        answer = match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(len) => stream.write_all(&chunk[..len]),
        };
    }
}

/// An application in conversation with a [`Service`].
#[derive(Debug)]
pub struct Talk {
    stream: TcpStream,
    /// Whom it talks to.
    pub letter: u8,
    said: u64,
}

impl Talk {
    /// Connects and hears who is there.
    ///
    /// # Errors
    /// When refused or reset; [`io::ErrorKind::UnexpectedEof`] on a clean end;
    /// [`io::ErrorKind::WouldBlock`] on silence.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, MOMENT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(MOMENT))?;
        stream.set_write_timeout(Some(MOMENT))?;
        let mut letter = [0];
        stream.read_exact(&mut letter)?;
        Ok(Self {
            stream,
            letter: letter[0],
            said: 0,
        })
    }

    /// Where the application connected from.
    ///
    /// # Errors
    /// When the conversation is over.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Says something and hears it again.
    ///
    /// # Errors
    /// As [`Self::start`]; [`io::ErrorKind::InvalidData`] when something else came back.
    pub fn exchange(&mut self) -> io::Result<()> {
        self.said += 1;
        let words = self.said.to_be_bytes();
        self.stream.write_all(&words)?;
        let mut heard = [0; 8];
        self.stream.read_exact(&mut heard)?;
        if heard == words {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("said {words:?}, heard {heard:?}"),
            ))
        }
    }

    /// Waits for the end of the conversation from the other side.
    ///
    /// # Errors
    /// As [`Self::start`]: how it ended.
    pub fn wait_for_end(&mut self) -> io::Result<()> {
        self.stream.read_exact(&mut [0])
    }

    /// Ends it as it should end: one side says so, then the other.
    ///
    /// # Errors
    /// When it ended otherwise.
    pub fn finish(mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        let mut more = Vec::new();
        self.stream.read_to_end(&mut more)?;
        if more.is_empty() {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} bytes after the end", more.len()),
            ))
        }
    }

    /// Cuts it off.
    pub fn reset(self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

/// A conversation that goes on all the time, and notices everything that is done to it.
#[derive(Debug)]
pub struct Steady {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<Noticed>>>,
}

/// What a [`Steady`] conversation noticed.
#[derive(Clone, Copy, Debug)]
pub struct Noticed {
    /// Questions that were answered.
    pub exchanges: u64,
    /// The longest wait for an answer.
    pub longest: Duration,
}

impl Steady {
    /// Begins to talk.
    ///
    /// # Errors
    /// When nobody is there.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let mut talk = Talk::start(address)?;
        let ending = Arc::<AtomicBool>::default();
        let end = Arc::clone(&ending);
        let thread = thread::spawn(move || {
            let mut noticed = Noticed {
                exchanges: 0,
                longest: Duration::ZERO,
            };
            while !end.load(Ordering::SeqCst) {
                let asked = Instant::now();
                talk.exchange()?;
                noticed.longest = noticed.longest.max(asked.elapsed());
                noticed.exchanges += 1;
                // Leaves the machine to what is tested.
                pause(LOOK_EACH);
            }
            talk.finish()?;
            Ok(noticed)
        });
        Ok(Self {
            ending,
            thread: Some(thread),
        })
    }

    /// Ends the conversation, and says what it noticed.
    ///
    /// # Errors
    /// When it was cut.
    pub fn stop(mut self) -> io::Result<Noticed> {
        self.ending.store(true, Ordering::SeqCst);
        let thread = self.thread.take().map(JoinHandle::join);
        thread
            .and_then(Result::ok)
            .unwrap_or_else(|| Err(io::Error::other("the conversation's thread failed")))
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
    }
}
