//! Placeholder until the load generator stands on the library.
fn main() {}
