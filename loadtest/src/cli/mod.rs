//! One module for each subcommand.

pub(crate) mod endpoint;
pub(crate) mod faults;
pub(crate) mod faulty;
pub(crate) mod flows;
pub(crate) mod impair;
pub(crate) mod processes;
pub(crate) mod progress;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod sandbox;
pub(crate) mod scenarios;
mod signals;
pub(crate) mod soak;
