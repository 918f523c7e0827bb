//! Connection IDs that name their worker: the first byte is the worker's index, so that the kernel
//! can steer by it.
//!
//! The rest is a random nonce and a keyed check, so that a packet with an ID that was never issued
//! here costs no reset. The key persists over restarts: after one, a relay still knows its old IDs
//! and answers them with a stateless reset.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::Sha256;

/// Length of an ID, bytes: worker 1, nonce 7, check 4.
pub const LEN: usize = 12;
const NONCE_END: usize = 8;

/// The same of a process that only dials, worker 1, nonce 3, check 2: it has few sessions, and half
/// of what an idle session costs carries one.
pub const DIALLED_LEN: usize = 6;
const DIALLED_NONCE_END: usize = 4;

/// Makes and checks the IDs of one worker.
pub struct Generator {
    worker: u8,
    key: Arc<[u8; 32]>,
    rng: StdRng,
    len: usize,
    nonce_end: usize,
}

impl Generator {
    /// For worker `worker`, with the namespace's connection-ID key. Its nonces come of `seed`.
    #[must_use]
    pub fn new(worker: u8, key: Arc<[u8; 32]>, seed: [u8; 32]) -> Self {
        Self {
            worker,
            key,
            rng: StdRng::from_seed(seed),
            len: LEN,
            nonce_end: NONCE_END,
        }
    }

    /// The same for a process that only dials.
    #[must_use]
    pub fn dialled(worker: u8, key: Arc<[u8; 32]>, seed: [u8; 32]) -> Self {
        Self {
            len: DIALLED_LEN,
            nonce_end: DIALLED_NONCE_END,
            ..Self::new(worker, key, seed)
        }
    }

    fn check(&self, head: &[u8]) -> [u8; LEN - NONCE_END] {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&*self.key).expect("any key length serves HMAC");
        mac.update(head);
        let sum = mac.finalize().into_bytes();
        let mut check = [0; LEN - NONCE_END];
        check.copy_from_slice(&sum[..LEN - NONCE_END]);
        check
    }
}

impl ConnectionIdGenerator for Generator {
    fn generate_cid(&mut self) -> ConnectionId {
        let (len, nonce_end) = (self.len, self.nonce_end);
        let mut id = [0; LEN];
        id[0] = self.worker;
        self.rng.fill_bytes(&mut id[1..nonce_end]);
        let check = self.check(&id[..nonce_end]);
        id[nonce_end..len].copy_from_slice(&check[..len - nonce_end]);
        ConnectionId::new(&id[..len])
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let ours = id.len() == self.len
            && self
                .check(&id[..self.nonce_end])
                .starts_with(&id[self.nonce_end..]);
        ours.then_some(()).ok_or(InvalidCid)
    }

    fn cid_len(&self) -> usize {
        self.len
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// A client's first destination ID, which picks the relay's worker.
#[must_use]
pub fn towards(worker: u8, rng: &mut impl Rng) -> ConnectionId {
    let mut id = [0; 16];
    rng.fill_bytes(&mut id);
    id[0] = worker;
    ConnectionId::new(&id)
}

/// The worker that a datagram is for, of `workers`; `None` where it is too short to say.
#[must_use]
pub fn worker_of(datagram: &[u8], workers: u8) -> Option<u8> {
    let long_header = datagram.first()? & 0x80 != 0;
    let first = *datagram.get(if long_header { 6 } else { 1 })?;
    Some(first % workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_worker_and_only_its_key_knows_it() {
        let mut ours = Generator::new(3, Arc::new([1; 32]), [7; 32]);
        let other = Generator::new(3, Arc::new([2; 32]), [7; 32]);
        let id = ours.generate_cid();
        assert_eq!(id[0], 3);
        assert!(ours.validate(&id).is_ok());
        assert!(other.validate(&id).is_err());
        assert_ne!(id, ours.generate_cid());
    }

    #[test]
    fn an_id_of_a_process_that_dials_is_short_and_checked_too() {
        let mut ours = Generator::dialled(3, Arc::new([1; 32]), [7; 32]);
        let other = Generator::dialled(3, Arc::new([2; 32]), [7; 32]);
        let id = ours.generate_cid();
        assert_eq!(
            (id.len(), ours.cid_len(), id[0]),
            (DIALLED_LEN, DIALLED_LEN, 3)
        );
        assert!(ours.validate(&id).is_ok());
        assert!(other.validate(&id).is_err());
    }

    #[test]
    fn short_and_long_headers_lead_to_the_same_worker() {
        let mut short = vec![0x40];
        short.extend_from_slice(&towards(5, &mut rand::rng()));
        assert_eq!(worker_of(&short, 4), Some(1));
        let mut long = vec![0xc0, 0, 0, 0, 1, 16];
        long.extend_from_slice(&towards(5, &mut rand::rng()));
        assert_eq!(worker_of(&long, 4), Some(1));
        assert_eq!(worker_of(&[0xc0, 0], 4), None);
        assert_eq!(worker_of(&[], 4), None);
    }
}
