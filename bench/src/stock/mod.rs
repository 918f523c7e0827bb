//! The baseline: a relay and an agent from the unmodified `quinn` crate and tokio's TCP, made as
//! well as those allow.
//!
//! It is there so that the choice of driving QUIC by hand stays measured, hence it is no straw man:
//! the same cipher, allocator, socket buffers, congestion control and windows as ours, chunks of 64
//! KiB that reach the stream without a copy, gathered writes, exact FIN and RST. It has no
//! authentication (the agent takes any certificate), no definitions and one session: it is for
//! measuring on one machine, not for use.

pub mod agent;
mod pump;
pub mod relay;
mod transport;

/// The application protocol of the baseline's sessions. Not Underpass's: the two must never meet.
const ALPN: &[u8] = b"underpass-stock/1";

/// Settings of both processes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Holds datagrams at this UDP payload; `None` lets them climb to what the path carries.
    pub mtu: Option<u16>,
    /// Threads of the runtime.
    pub threads: usize,
}

/// Runs a future on a runtime of the settings' size.
///
/// # Errors
/// The future's, or that of building the runtime.
pub fn block_on<T>(
    settings: Settings,
    future: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut builder = match settings.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.enable_all().build()?.block_on(future)
}
