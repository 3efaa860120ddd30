//! Questions and answers over HTTP, as docs/RECEIVER.md specifies them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{
    cut::{Cut, Keys},
    digest::Digest,
    row::RowHash,
    side::Entry,
};

/// The most buckets that one question may be about.
pub const MOST_BUCKETS: u64 = 16_384;
/// The most users that one answer lists.
pub const MOST_USERS: usize = 65_536;
const HASH_BITS: u32 = 32;

/// What `POST …/digest` and `POST …/list` ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// By how many bits the first 32 bits of an id's SHA-256 are shifted to make its bucket.
    pub shift: u32,
    /// The first and the one after the last of each range of buckets.
    pub buckets: Vec<(u64, u64)>,
    /// The members that the document to be hashed is made of.
    pub fields: Vec<String>,
}

/// What `…/digest` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// Bucket, number of users, both sums in hex; those that hold somebody, ascending.
    pub digests: Vec<(u64, u64, String)>,
}

/// What `…/list` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// Id and hash in hex, in any order.
    pub users: Vec<(String, String)>,
}

impl Question {
    /// A question about buckets of a cut by hashes; `None` for another cut.
    pub fn about(cut: &Cut, buckets: &[Range<u64>], fields: &[&str]) -> Option<Self> {
        (cut.keys == Keys::Hashes).then(|| Self {
            shift: cut.shift,
            buckets: buckets
                .iter()
                .map(|range| (range.start, range.end))
                .collect(),
            fields: fields.iter().map(|field| (*field).to_owned()).collect(),
        })
    }

    /// The cut and its buckets; `None` where the question breaks the contract.
    pub fn read(&self) -> Option<(Cut, Vec<Range<u64>>)> {
        if self.shift > HASH_BITS {
            return None;
        }
        let mut least = 0;
        let mut asked = 0;
        for (start, end) in &self.buckets {
            if *start < least || start >= end || *end > 1 << (HASH_BITS - self.shift) {
                return None;
            }
            least = *end;
            asked += end - start;
        }
        let cut = Cut {
            keys: Keys::Hashes,
            shift: self.shift,
        };
        let buckets = self.buckets.iter().map(|(start, end)| *start..*end);
        (asked <= MOST_BUCKETS).then(|| (cut, buckets.collect()))
    }
}

impl From<Vec<(u64, Digest)>> for Digests {
    fn from(digests: Vec<(u64, Digest)>) -> Self {
        let written = |(bucket, digest): (u64, Digest)| {
            let sums = format!("{:016x}{:016x}", digest.high, digest.low);
            (bucket, digest.count, sums)
        };
        Self {
            digests: digests.into_iter().map(written).collect(),
        }
    }
}

impl Digests {
    /// The digests; `None` where they break the contract.
    pub fn read(&self) -> Option<Vec<(u64, Digest)>> {
        let mut digests = Vec::with_capacity(self.digests.len());
        for (bucket, count, sums) in &self.digests {
            let sums = number(sums)?;
            let digest = Digest {
                count: *count,
                high: (sums >> 64) as u64,
                low: sums as u64,
            };
            digests.push((*bucket, digest));
        }
        digests
            .is_sorted_by_key(|(bucket, _)| *bucket)
            .then_some(digests)
    }
}

impl From<Vec<Entry>> for Users {
    fn from(entries: Vec<Entry>) -> Self {
        let written = |entry: Entry| {
            let hash = u128::from_be_bytes(entry.hash.0);
            (entry.id.into(), format!("{hash:032x}"))
        };
        Self {
            users: entries.into_iter().map(written).collect(),
        }
    }
}

impl Users {
    /// The users; `None` where they break the contract.
    pub fn read(self) -> Option<Vec<Entry>> {
        let read = |(id, hash): (String, String)| {
            let hash = RowHash(number(&hash)?.to_be_bytes());
            let id = id.into();
            Some(Entry { id, hash })
        };
        self.users.into_iter().map(read).collect()
    }
}

fn number(hex: &str) -> Option<u128> {
    let digits = hex.len() == 32 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    let number = u128::from_str_radix(hex, 16).ok();
    number.filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_that_ask_too_much_or_nonsense_are_refused() {
        let read = |shift, buckets: &[(u64, u64)]| {
            let question = Question {
                shift,
                buckets: buckets.to_vec(),
                fields: Vec::new(),
            };
            question.read().is_some()
        };
        assert!(read(18, &[]) && read(18, &[(0, 16_384)]) && read(0, &[(1, 2), (2, 3)]));
        for (shift, buckets) in [
            (33, &[][..]),
            (18, &[(0, 16_385)]),
            (17, &[(0, 16_385)]),
            (18, &[(3, 3)]),
            (18, &[(5, 6), (4, 5)]),
        ] {
            assert!(!read(shift, buckets), "{shift} {buckets:?}");
        }
    }

    #[test]
    fn answers_survive_their_json() {
        let digest = Digest {
            count: 3,
            high: 1,
            low: u64::MAX,
        };
        let digests = vec![(7, digest)];
        let text = serde_json::to_string(&Digests::from(digests.clone())).unwrap();
        assert_eq!(
            text,
            r#"{"digests":[[7,3,"0000000000000001ffffffffffffffff"]]}"#
        );
        let read: Digests = serde_json::from_str(&text).unwrap();
        assert_eq!(read.read(), Some(digests));
        let users = vec![Entry {
            id: "aB".into(),
            hash: RowHash([9; 16]),
        }];
        assert_eq!(Users::from(users.clone()).read(), Some(users));
        let broken = Users {
            users: vec![("1".to_owned(), "+0".to_owned())],
        };
        assert_eq!(broken.read(), None);
    }
}
