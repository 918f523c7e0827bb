//! A load generator that checks every byte, and the parts of it that tests use by themselves.
//!
//! [`pattern`] is the oracle: a stream of bytes that depends on a seed and on the position, so that
//! a lost, repeated, moved or changed byte shows. [`endpoint`] is the far end of verified flows,
//! [`run`](run::run) the near end of many of them; whatever lies between, both directions are
//! checked at both ends, and a flow that is corrupt, silently truncated or hung is counted as what
//! it is. [`impair`] is a bad network for UDP, and [`faults`] a program that does all kinds of harm
//! to Underpass while such flows live. [`scenario`] is for latency and load: groups of flows with
//! sizes and a pace, the calls of which are as verified.
//!
//! ```
//! use underpass_loadtest::{Endpoint, Mode, Plan, endpoint, run};
//!
//! let endpoint = Endpoint::start(endpoint::Settings::new("127.0.0.1:0".parse().unwrap()))?;
//! let plan = Plan { flows: 3, bytes: Some(100_000), ..Plan::new(endpoint.address(), Mode::Echo) };
//! let outcome = run::run(&plan, |_| ())?;
//! assert_eq!((outcome.tally.right, outcome.tally.violations()), (3, 0));
//! # Ok::<(), std::io::Error>(())
//! ```

mod calls;
pub mod endpoint;
pub mod faults;
mod flow;
pub mod impair;
mod incoming;
pub mod io;
mod limits;
pub mod pattern;
pub mod report;
pub mod results;
pub mod run;
pub mod scenario;
pub mod stand;
pub mod units;
mod wire;

/// Writes one line to stderr. Where that is not possible it is lost, and what is measured goes on.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => {
        $crate::write_note(::std::format_args!($($text)*))
    };
}

/// What [`note!`] expands to.
pub fn write_note(text: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}

pub use endpoint::Endpoint;
pub use flow::Ending;
pub use limits::{permit_sockets, raise_file_limit};
pub use pattern::{Mismatch, Pattern};
pub use report::Report;
pub use run::{Mode, Plan};
