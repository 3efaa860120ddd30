//! The digest of a bucket: how many users, and the sums of their hashes.

use crate::row::RowHash;

/// What a side says of all users of one bucket. Sums, not XOR, so that a user who is there twice shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Users.
    pub count: u64,
    /// The sum of the first halves of their hashes, modulo 2^64.
    pub high: u64,
    /// The sum of the second halves, modulo 2^64.
    pub low: u64,
}

impl Digest {
    /// Takes one user in.
    pub fn add(&mut self, hash: RowHash) {
        let (high, low) = hash.halves();
        self.count += 1;
        self.high = self.high.wrapping_add(high);
        self.low = self.low.wrapping_add(low);
    }

    /// Takes all users of another digest in.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.high = self.high.wrapping_add(other.high);
        self.low = self.low.wrapping_add(other.low);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_who_is_there_twice_does_not_cancel() {
        let hash = RowHash([0x80; 16]);
        let mut digest = Digest::default();
        digest.add(hash);
        digest.add(hash);
        assert_ne!(digest, Digest::default());
        assert_eq!(
            (digest.count, digest.high, digest.low),
            (2, 0x0101_0101_0101_0100, 0x0101_0101_0101_0100)
        );
        let mut merged = Digest::default();
        merged.merge(&digest);
        assert_eq!(merged, digest);
    }
}
