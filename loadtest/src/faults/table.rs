//! Which rows there are: those that this program runs, and those that are tests.

use anyhow::Result;

use super::rows::{changes, endpoints, floods, kills, load, memory, mix, network};
use super::trial::Trial;

/// A row that this program runs.
pub struct Row {
    /// Its number in the table.
    pub number: u8,
    /// The fault.
    pub name: &'static str,
    /// What must hold, beside that no flow is corrupt, truncated or hung.
    pub holds: &'static str,
    pub(super) run: fn(&mut Trial<'_>) -> Result<()>,
}

/// A row that tests show.
pub struct Shown {
    /// Its number in the table.
    pub number: u8,
    /// The fault.
    pub name: &'static str,
    /// The tests.
    pub by: &'static str,
}

/// Rows that this program runs.
pub static ROWS: &[Row] = &[
    Row {
        number: 1,
        name: "kill -9 agent",
        holds: "usable again within 2 s of the restart (p99); with two agents every flow opened 2 s after the kill works",
        run: kills::agent,
    },
    Row {
        number: 2,
        name: "kill -9 relay",
        holds: "agents are back within 2 s of its listening (p99)",
        run: kills::relay,
    },
    Row {
        number: 3,
        name: "kill -9 control",
        holds: "no flow notices; the next change applies within 1 s of its return",
        run: kills::control,
    },
    Row {
        number: 4,
        name: "everything by chance",
        holds: "the end state is exact; open files and memory are back within 2 %",
        run: mix::mix,
    },
    Row {
        number: 5,
        name: "SIGSTOP of 1 to 30 s",
        holds: "nothing corrupt; past the idle limit usable within 2 s",
        run: mix::standstill,
    },
    Row {
        number: 6,
        name: "loss of 0 to 20 %",
        holds: "no session is lost and no flow cut; goodput is measured",
        run: network::loss,
    },
    Row {
        number: 7,
        name: "datagrams out of order, doubled, changed",
        holds: "what is changed is dropped, no session is lost and no flow cut",
        run: network::disorder,
    },
    Row {
        number: 8,
        name: "NAT rebinding",
        holds: "no session is lost and no flow cut",
        run: network::rebinding,
    },
    Row {
        number: 9,
        name: "black holes of 1 to 60 s",
        holds: "up to 5 s all survives; after 20 s and more usable within 2 s of the healing",
        run: network::black_hole,
    },
    Row {
        number: 10,
        name: "path MTU changed in flight",
        holds: "no stall over 1 s at round trips up to 50 ms",
        run: network::mtu,
    },
    Row {
        number: 11,
        name: "endpoints that are at fault",
        holds: "the application sees the same kind of event as directly; half-closed flows deliver every byte",
        run: endpoints::endpoints,
    },
    Row {
        number: 12,
        name: "slow readers",
        holds: "memory stays within its formula; others' p99 stays under twice what it is alone",
        run: load::slow_readers,
    },
    Row {
        number: 13,
        name: "8,000 idle flows, then 4,000 opens in a second",
        holds: "none is refused; p99 of an open under 300 ms",
        run: load::burst,
    },
    Row {
        number: 14,
        name: "500 agents come back at once",
        holds: "all are back within 10 s",
        run: load::all_agents,
    },
    Row {
        number: 15,
        name: "256 open files",
        holds: "no crash, under 5 % of a processor, usable within 1 s",
        run: load::few_files,
    },
    Row {
        number: 20,
        name: "malformed datagrams, 20,000 a second",
        holds: "no panic, no leak, at most 3 times the bytes come back, honest flows keep 90 %",
        run: floods::malformed,
    },
    Row {
        number: 21,
        name: "a flood of opens and resets",
        holds: "bounded; honest flows keep 90 %",
        run: floods::opens_and_resets,
    },
    Row {
        number: 22,
        name: "keys made anew under load",
        holds: "the old key is dead within 1 s, the other untouched",
        run: changes::keys,
    },
    Row {
        number: 23,
        name: "definitions come, change and go at 10 a second",
        holds: "others notice nothing; each applies within 1 s",
        run: changes::definitions,
    },
    Row {
        number: 24,
        name: "SIGTERM under load",
        holds: "no flow is cut within the grace time; new ones go to the other agent",
        run: changes::drain,
    },
    Row {
        number: 25,
        name: "io_uring forbidden",
        holds: "auto takes poll and says so once",
        run: changes::without_io_uring,
    },
    Row {
        number: 27,
        name: "1,000 flows that nobody reads, 256 MiB",
        holds: "the limit holds within 10 %, others' p99 stays under twice, 10 s later all is as before",
        run: memory::no_reader,
    },
    Row {
        number: 28,
        name: "floods of applications that are turned away",
        holds: "at most 4 KiB of log a second and a count of the rest; honest flows keep 90 %",
        run: floods::logs,
    },
];

/// Rows that tests show, which run with all others.
pub static ELSEWHERE: &[Shown] = &[
    Shown {
        number: 16,
        name: "no space, I/O error or crash while a file is written",
        by: "control/tests/store/{failing,crash}.rs, control/tests/rest (507)",
    },
    Shown {
        number: 17,
        name: "truncated or garbage files",
        by: "control/tests/mutations.rs, dataplane/proto/tests/properties.rs",
    },
    Shown {
        number: 18,
        name: "clock off, clock jumps",
        by: "control/src/usage/tests.rs, dataplane/proto/src/sas.rs",
    },
    Shown {
        number: 19,
        name: "wrong on the command line",
        by: "tests/tests/bad_input.rs, control/tests/command_line",
    },
    Shown {
        number: 26,
        name: "simulation",
        by: "dataplane's simulation on `sim`",
    },
];

impl Row {
    /// The one of this number.
    #[must_use]
    pub fn numbered(number: u8) -> Option<&'static Row> {
        ROWS.iter().find(|row| row.number == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_is_there_twice_and_all_are_in_order() {
        let numbers: Vec<u8> = ROWS.iter().map(|row| row.number).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        assert!(
            ELSEWHERE
                .iter()
                .all(|row| Row::numbered(row.number).is_none())
        );
    }
}
