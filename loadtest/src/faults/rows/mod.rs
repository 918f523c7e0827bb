//! The rows, by what they do harm to.

pub(super) mod changes;
pub(super) mod endpoints;
pub(super) mod floods;
pub(super) mod kills;
pub(super) mod load;
pub(super) mod memory;
pub(super) mod mix;
pub(super) mod network;
