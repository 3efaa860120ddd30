//! What is known of every state, in parts that fit into memory.
//!
//! Users are spread over the parts by a hash of their ids. The first part is kept in memory while the table
//! is read; of all others, states and rows wait in files without a name, and are joined part by part.

use std::{
    collections::HashMap,
    fs::File,
    hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher},
    io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write},
};

use anyhow::Context as _;
use usersync_core::user_id::UserId;

use super::rows::Row;

/// States in one part: as many as fill a hash table of 2^20 places, some 20 MB.
const STATES: u64 = 900_000;

/// All parts.
pub(super) struct Parts {
    count: u64,
    first: Part,
    /// Of part 1 and so on: states and rows.
    aside: Vec<(Spill, Spill)>,
    taken: usize,
}

/// The states of some users.
#[derive(Default)]
pub(super) struct Part {
    states: HashMap<u64, Known, BuildHasherDefault<Hashed>>,
    seen_living: u64,
    living: u64,
}

/// What is remembered of a state.
struct Known {
    /// What it says of the mapped members; none when it is to be written in any case.
    digest: Option<std::num::NonZeroU64>,
    lives: bool,
    seen: bool,
}

/// What is known of a row's user.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// There is no state.
    Nowhere,
    /// The state has all mapped members.
    Equal,
    /// It has others.
    Other,
    /// It says deleted, or nothing that can be read.
    Gone,
}

impl Parts {
    /// Enough parts for so many states.
    pub(super) fn of(states: u64) -> anyhow::Result<Self> {
        let count = states.div_ceil(STATES).max(1);
        let spill = |_| Ok::<_, std::io::Error>((Spill::new()?, Spill::new()?));
        let aside: Result<Vec<_>, _> = (1..count).map(spill).collect();
        Ok(Self {
            count,
            first: Part::default(),
            aside: aside.context("making temporary files for the load (TMPDIR says where)")?,
            taken: 0,
        })
    }

    /// Remembers a state: its digest, none when it is to be written in any case, and whether the user lives.
    pub(super) fn know(
        &mut self,
        user: &UserId,
        digest: Option<u64>,
        lives: bool,
    ) -> anyhow::Result<()> {
        let hash = hash_of(user);
        match self.place(hash) {
            None => self.first.know(hash, digest, lives),
            Some(at) => {
                let mut entry = [0; 17];
                entry[..8].copy_from_slice(&hash.to_le_bytes());
                entry[8..16].copy_from_slice(&digest.unwrap_or(0).to_le_bytes());
                entry[16] = u8::from(lives);
                self.aside[at].0.write(&entry)?;
            }
        }
        Ok(())
    }

    /// Whether the row is one of the first part.
    pub(super) fn is_first(&self, row: &Row) -> bool {
        self.place(row.hash).is_none()
    }

    /// Keeps a row of another part for later.
    pub(super) fn put_aside(&mut self, row: &Row) -> anyhow::Result<()> {
        if let Some(at) = self.place(row.hash) {
            row.write(&mut self.aside[at].1)?;
        }
        Ok(())
    }

    /// The part that was kept in memory.
    pub(super) fn first(&mut self) -> Part {
        std::mem::take(&mut self.first)
    }

    /// The next part, and its rows.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<(Part, Aside)>> {
        let Some((states, rows)) = self.aside.get_mut(self.taken) else {
            return Ok(None);
        };
        self.taken += 1;
        let mut part = Part::default();
        let mut states = states.read()?;
        let mut entry = [0; 17];
        while filled(&mut states, &mut entry)? {
            let number = |at: usize| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&entry[at..at + 8]);
                u64::from_le_bytes(bytes)
            };
            part.know(number(0), Some(number(8)), entry[16] == 1);
        }
        Ok(Some((part, Aside(rows.read()?))))
    }

    /// Which of the files, `None` for the first part.
    fn place(&self, hash: u64) -> Option<usize> {
        // The table in memory goes by the lower bits.
        let part = (hash >> 32) % self.count;
        usize::try_from(part).ok()?.checked_sub(1)
    }
}

impl Part {
    fn know(&mut self, hash: u64, digest: Option<u64>, lives: bool) {
        let known = Known {
            digest: digest.and_then(std::num::NonZeroU64::new),
            lives,
            seen: false,
        };
        self.living += u64::from(lives);
        // Two whose ids hash alike share a place.
        if let Some(before) = self.states.insert(hash, known) {
            self.living -= u64::from(before.lives);
        }
    }

    /// What is known of the row's user.
    pub(super) fn look(&mut self, row: &Row, digest: impl FnOnce() -> u64) -> Seen {
        let Some(known) = self.states.get_mut(&row.hash) else {
            return Seen::Nowhere;
        };
        if known.lives && !known.seen {
            self.seen_living += 1;
        }
        known.seen = true;
        match known.digest.is_some_and(|known| known.get() == digest()) {
            _ if !known.lives => Seen::Gone,
            true => Seen::Equal,
            false => Seen::Other,
        }
    }

    /// How many living users no row was about.
    pub(super) fn unseen(&self) -> u64 {
        self.living - self.seen_living
    }
}

/// The rows of one part.
pub(super) struct Aside(BufReader<File>);

impl Aside {
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Row>> {
        Row::read(&mut self.0)
    }
}

/// A file without a name, first written, then read.
pub(super) struct Spill(BufWriter<File>);

impl Spill {
    fn new() -> std::io::Result<Self> {
        Ok(Self(BufWriter::with_capacity(
            64 * 1024,
            tempfile::tempfile()?,
        )))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.0
            .write_all(bytes)
            .context("writing a temporary file of the load")
    }

    fn read(&mut self) -> anyhow::Result<BufReader<File>> {
        let file = || {
            self.0.flush()?;
            let mut file = self.0.get_ref().try_clone()?;
            file.seek(SeekFrom::Start(0))?;
            Ok::<_, std::io::Error>(BufReader::with_capacity(64 * 1024, file))
        };
        let mut file = file;
        file().context("reading a temporary file of the load")
    }
}

/// Fills `bytes`; false at the end of the file.
pub(super) fn filled(from: &mut impl Read, bytes: &mut [u8]) -> anyhow::Result<bool> {
    match from.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error).context("reading a temporary file of the load"),
    }
}

/// The same in one process; two users may share one, and then each is looked at again before it is written.
pub(super) fn hash_of(user: &UserId) -> u64 {
    let mut hasher = DefaultHasher::new();
    user.hash(&mut hasher);
    hasher.finish()
}

/// Keys are hashes already.
#[derive(Default)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(user: u64) -> Row {
        Row::new(
            user.to_string(),
            &user.into(),
            format!("document of {user}").into_bytes(),
        )
    }

    #[test]
    fn every_part_joins_its_states_with_its_rows() {
        for states in [10, 2 * STATES, 5 * STATES] {
            let mut parts = Parts::of(states).unwrap();
            // User 3 is known as another, 5 as deleted, 7 isn't known; nobody has a row for 8 and 9.
            for user in (0..10).filter(|user| *user != 7) {
                let digest = (user != 5).then_some(if user == 3 { 1 } else { user + 100 });
                parts.know(&user.into(), digest, user != 5).unwrap();
            }
            let mut found = vec![];
            let mut part = parts.first();
            for user in 0..8 {
                let row = row(user);
                match parts.is_first(&row) {
                    true => found.push((user, part.look(&row, || user + 100))),
                    false => parts.put_aside(&row).unwrap(),
                }
            }
            let mut unseen = part.unseen();
            while let Some((mut part, mut rows)) = parts.next().unwrap() {
                while let Some(row) = rows.next().unwrap() {
                    let user: u64 = row.id.parse().unwrap();
                    assert_eq!(row.document, format!("document of {user}").into_bytes());
                    found.push((user, part.look(&row, || user + 100)));
                }
                unseen += part.unseen();
            }
            found.sort_by_key(|(user, _)| *user);
            for (user, seen) in &found {
                let expected = match user {
                    3 => Seen::Other,
                    5 => Seen::Gone,
                    7 => Seen::Nowhere,
                    _ => Seen::Equal,
                };
                assert_eq!(*seen, expected, "{user} of {states}");
            }
            assert_eq!((found.len(), unseen), (8, 2), "{states}");
        }
    }
}
