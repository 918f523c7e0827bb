//! A load generator that checks every byte, and the parts of it that tests use by themselves.
//!
//! [`pattern`] is the oracle: a stream of bytes that depends on a seed and on the position, so that a lost, repeated, moved or changed byte shows.

pub mod pattern;

pub use pattern::{Mismatch, Pattern};
