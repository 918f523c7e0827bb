//! Which ports a process has, as the kernel knows them (proc(5)).

use std::collections::HashSet;
use std::fs;

use underpass_tests::process::Process;

/// Ports of a process.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) udp: HashSet<u16>,
    pub(crate) listening: HashSet<u16>,
}

/// Looks them up.
pub(crate) fn of(process: &Process) -> Sockets {
    let folder = format!("/proc/{}/fd", process.id());
    let own: HashSet<String> = fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            let target = fs::read_link(entry.ok()?.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let ports = |file: &str, state: &str| {
        let table = fs::read_to_string(format!("/proc/{}/net/{file}", process.id())).unwrap();
        let line = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port = fields.get(1)?.rsplit(':').next()?;
            let ours = own.contains(*fields.get(9)?) && (state.is_empty() || fields[3] == state);
            ours.then(|| u16::from_str_radix(port, 16).unwrap())
        };
        table.lines().skip(1).filter_map(line).collect::<Vec<_>>()
    };
    let both = |kind: &str, state: &str| {
        let mut all: HashSet<u16> = ports(kind, state).into_iter().collect();
        all.extend(ports(&format!("{kind}6"), state));
        all
    };
    Sockets {
        udp: both("udp", ""),
        // 0A: listening.
        listening: both("tcp", "0A"),
    }
}
