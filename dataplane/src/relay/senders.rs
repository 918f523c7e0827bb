//! How many flows a sender may have open: few at first, more as it uses them.

/// Flows that a sender may open at first. Doubled whenever half of them are in use, because each
/// place costs memory, used or not.
pub(crate) const FLOWS_FIRST: u32 = 256;

/// How many flows a sender may have from now on, that has `live` of the `allowed` ones; `None`: as
/// before.
#[must_use]
pub(crate) fn more_flows(allowed: u32, live: usize, most: u32) -> Option<u32> {
    let roomier = allowed.saturating_mul(2).min(most);
    (live >= allowed as usize / 2 && roomier > allowed).then_some(roomier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_gets_more_flows_when_it_uses_half_up_to_the_limit() {
        assert_eq!(more_flows(256, 127, 16_384), None);
        assert_eq!(more_flows(256, 128, 16_384), Some(512));
        assert_eq!(more_flows(8_192, 5_000, 10_000), Some(10_000));
        assert_eq!(more_flows(10_000, 9_999, 10_000), None);
    }
}
