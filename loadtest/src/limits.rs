//! Open files: how many this process may have, and whether they are enough.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files of a process that are no flows: its runtimes, rings, timers, what it was started with.
const FILES_BESIDE: u64 = 64;

/// Raises the soft limit of open files to the hard one: the usual soft limit of 1,024 is less than
/// the flows of many runs. Gives the limit, `None` where there is none.
pub fn raise_file_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current, // The old limit holds, and is what flows are compared with.
    }
}

/// Whether so many sockets fit into this process, its limit raised as far as it goes.
///
/// # Errors
/// They do not; the message says what to do.
pub fn permit_sockets(sockets: u64) -> io::Result<()> {
    permit(sockets, raise_file_limit())
}

fn permit(sockets: u64, limit: Option<u64>) -> io::Result<()> {
    let Some(room) = limit.map(|limit| limit.saturating_sub(FILES_BESIDE)) else {
        return Ok(());
    };
    if sockets <= room {
        return Ok(());
    }
    let parts = sockets.div_ceil(room.max(1));
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "{sockets} sockets in one process, and its limit of open files leaves room for {room}\n\
             hint: split the flows with --processes {parts}, start the endpoint apart (underpass-loadtest endpoint), \
             or raise the hard limit (ulimit -Hn)"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_beyond_the_file_limit_are_refused_with_the_number_of_processes() {
        assert!(permit(936, Some(1000)).is_ok());
        assert!(permit(1 << 40, None).is_ok());
        let error = permit(40_000, Some(20_000)).expect_err("too many");
        assert!(error.to_string().contains("--processes 3"), "{error}");
    }
}
