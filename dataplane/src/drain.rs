//! How a process is asked to end: first to drain, then at once. Knows no signals: the binary turns
//! SIGTERM into these calls.

use crossbeam_channel::{Receiver, Sender, unbounded};

/// What was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Take no new flows, let live ones end within the grace time.
    Drain,
    /// End now.
    Stop,
}

/// The asking side. First [`Request::Drain`], then [`Request::Stop`].
#[derive(Clone, Debug)]
pub struct Asker(Sender<Request>);

/// The obeying side, given to `relay::run` or `agent::run`.
#[derive(Debug)]
pub struct Requests(pub(crate) Receiver<Request>);

/// A connected pair.
#[must_use]
pub fn pair() -> (Asker, Requests) {
    let (sender, receiver) = unbounded();
    (Asker(sender), Requests(receiver))
}

impl Asker {
    /// Asks. Has no effect on a process that ended.
    pub fn ask(&self, request: Request) {
        let _ = self.0.send(request);
    }
}
