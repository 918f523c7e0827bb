//! The control process and the command line of Underpass.
//!
//! [`files`] knows the directory on disk: definitions, keys, the relay's certificate. [`store`]
//! changes it. [`publish`] turns it into numbered snapshots and hands them to relays. [`cli`] is
//! what a person types. Bytes of conversations never pass through here.

pub mod cli;
pub mod clock;
pub mod copying;
pub mod demo;
pub mod files;
pub mod lifeline;
mod output;
pub mod pages;
pub mod publish;
mod quantity;
pub mod rest;
mod shell;
mod signals;
pub mod store;
pub mod usage;
