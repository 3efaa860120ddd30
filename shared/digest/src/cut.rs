//! How users fall into buckets, the same on both sides.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What a user's bucket follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keys {
    /// The id itself, counted from this one: neighbours share a bucket, so a primary key finds them.
    Numbers(i128),
    /// The first 32 bits of the SHA-256 of the id as text: any id, whatever its type or collation.
    Hashes,
}

/// Buckets: a user is in number `key >> shift`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Where keys come from.
    pub keys: Keys,
    /// How many low bits of a key users of one bucket may differ in.
    pub shift: u32,
}

/// The ids of a side, as far as they are integers throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// There is nobody, so any buckets do.
    Empty,
    /// The smallest and the largest id.
    Numbers(i128, i128),
    /// Ids are texts.
    Texts,
}

/// Buckets of the first pass, about: some 60 users in each of 1,000,000.
const BUCKETS: u128 = 16_384;
/// The width that isn't gone below at first: smaller buckets would cost more than the users in them.
const LEAST: u128 = 64;
const HASH_BITS: u32 = 32;

impl Cut {
    /// The first cut for two sides, and how many buckets it has.
    pub fn first(left: Extent, right: Extent) -> (Self, u64) {
        let numbers = match (left, right) {
            (Extent::Numbers(a, b), Extent::Numbers(c, d)) => Some((a.min(c), b.max(d))),
            (Extent::Numbers(a, b), Extent::Empty) | (Extent::Empty, Extent::Numbers(a, b)) => {
                Some((a, b))
            }
            _ => None,
        };
        // Servers subtract in 63 bits, and not all of them hold more.
        let held = i128::from(i64::MIN)..=i128::from(i64::MAX);
        let numbers = numbers.filter(|(least, most)| {
            held.contains(least) && held.contains(most) && most - least < *held.end()
        });
        let Some((least, most)) = numbers else {
            let bits = BUCKETS.trailing_zeros();
            let cut = Self {
                keys: Keys::Hashes,
                shift: HASH_BITS - bits,
            };
            return (cut, 1 << bits);
        };
        let span = (most - least) as u128 + 1;
        let width = span.div_ceil(BUCKETS).next_power_of_two().max(LEAST);
        let cut = Self {
            keys: Keys::Numbers(least),
            shift: width.trailing_zeros(),
        };
        (cut, span.div_ceil(width) as u64)
    }

    /// The bucket of the user with this id; `None` for one who is in none.
    pub fn bucket(&self, id: &str) -> Option<u64> {
        let key = match self.keys {
            Keys::Numbers(origin) => {
                let id: i128 = id.parse().ok()?;
                u64::try_from(id - origin).ok()?
            }
            Keys::Hashes => {
                let hash = Sha256::digest(id.as_bytes());
                u64::from(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
            }
        };
        Some(key >> self.shift)
    }

    /// A finer cut: every bucket becomes `2^bits`, or as many as there can be.
    pub fn finer(&self, bits: u32) -> Self {
        Self {
            shift: self.shift.saturating_sub(bits),
            ..*self
        }
    }

    /// The buckets of `finer` that `buckets` of this cut become.
    pub fn within(&self, finer: &Self, buckets: Range<u64>) -> Range<u64> {
        let bits = self.shift - finer.shift;
        buckets.start << bits..buckets.end << bits
    }

    /// The ids of `buckets`, from the first to the last; `None` where they are not neighbours.
    pub fn ids(&self, buckets: &Range<u64>) -> Option<(i128, i128)> {
        let Keys::Numbers(origin) = self.keys else {
            return None;
        };
        let at = |bucket: u64| origin + (i128::from(bucket) << self.shift);
        Some((at(buckets.start), at(buckets.end) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_dense_ids_make_some_sixty_per_bucket() {
        let extent = Extent::Numbers(1, 1_000_000);
        let (cut, buckets) = Cut::first(extent, extent);
        assert_eq!((cut.shift, buckets), (6, 15_625));
        assert_eq!(cut.bucket("1"), Some(0));
        assert_eq!(cut.bucket("1000000"), Some(15_624));
        assert_eq!(cut.ids(&(0..1)), Some((1, 64)));
    }

    #[test]
    fn the_ids_of_both_sides_are_covered() {
        let (cut, buckets) = Cut::first(Extent::Numbers(10, 20), Extent::Numbers(-5, 7_000_000));
        assert_eq!(cut.keys, Keys::Numbers(-5));
        for id in ["-5", "10", "7000000"] {
            assert!(cut.bucket(id).unwrap() < buckets, "{id}");
        }
        assert_eq!(cut.bucket("-6"), None);
    }

    #[test]
    fn texts_and_ranges_beyond_63_bits_are_hashed() {
        let all = Extent::Numbers(-9, i128::from(i64::MAX));
        for (left, right) in [
            (Extent::Texts, Extent::Numbers(1, 2)),
            (all, all),
            (Extent::Empty, Extent::Texts),
            (
                Extent::Empty,
                Extent::Numbers(u64::MAX.into(), u64::MAX.into()),
            ),
        ] {
            let (cut, buckets) = Cut::first(left, right);
            assert_eq!((cut.keys, buckets), (Keys::Hashes, 16_384));
            assert!(cut.bucket("aB").unwrap() < buckets);
        }
    }

    #[test]
    fn finer_buckets_lie_in_theirs() {
        let (cut, _) = Cut::first(Extent::Texts, Extent::Texts);
        let finer = cut.finer(3);
        for id in ["aB", "Ab", "42", "0198c0de-0000-7000-8000-000000000000"] {
            let bucket = cut.bucket(id).unwrap();
            assert!(
                cut.within(&finer, bucket..bucket + 1)
                    .contains(&finer.bucket(id).unwrap())
            );
        }
        assert_eq!(cut.finer(40).shift, 0);
    }
}
