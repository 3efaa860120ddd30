//! Sides that can only tell everybody: digests and lists are made here, in bounded memory, from a scan each.

use std::ops::Range;

use async_trait::async_trait;

use crate::{
    cut::{Cut, Extent},
    digest::Digest,
    row::RowHash,
    side::{Answer, Entry, Side, SideError},
};

/// Who is told of a user: the id as text, and the hash of the row.
pub type Each<'a> = &'a mut (dyn FnMut(&str, RowHash) + Send);

/// A copy of the users that is read from one end to the other.
#[async_trait]
pub trait Scan: Send + Sync {
    /// Tells `each` of everybody, in any order; says how many bytes were read.
    ///
    /// # Errors
    /// When the scan breaks off: then nothing that was told counts.
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError>;
}

#[async_trait]
impl<S: Scan + ?Sized> Scan for &S {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        (**self).scan(each).await
    }
}

/// A scan as a side.
#[derive(Clone, Debug)]
pub struct Scanned<S>(pub S);

#[async_trait]
impl<S: Scan> Side for Scanned<S> {
    /// Its ids aren't known before it is read, so they are taken as texts.
    async fn extent(&self) -> Result<Extent, SideError> {
        Ok(Extent::Texts)
    }

    fn seeks(&self, _cut: &Cut) -> bool {
        false
    }

    async fn digest(
        &self,
        cut: &Cut,
        buckets: &[Range<u64>],
    ) -> Result<Answer<(u64, Digest)>, SideError> {
        let mut tally = Tally::new(*cut, buckets);
        let bytes = self.0.scan(&mut |id, hash| tally.add(id, hash)).await?;
        let items = tally.digests();
        Ok(Answer { items, bytes })
    }

    async fn list(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Answer<Entry>, SideError> {
        let places = Places::new(*cut, buckets);
        let mut items = Vec::new();
        let mut each = |id: &str, hash| {
            if places.of(id).is_some() {
                let id = id.into();
                items.push(Entry { id, hash });
            }
        };
        let bytes = self.0.scan(&mut each).await?;
        Ok(Answer { items, bytes })
    }
}

/// Digests in the making: 24 bytes for each bucket asked for.
#[derive(Clone, Debug)]
pub struct Tally {
    places: Places,
    digests: Vec<Digest>,
}

impl Tally {
    /// Nobody yet in any of `buckets`.
    pub fn new(cut: Cut, buckets: &[Range<u64>]) -> Self {
        let places = Places::new(cut, buckets);
        let digests = vec![Digest::default(); places.count];
        Self { places, digests }
    }

    /// Takes one user in, unless they are in none of the buckets.
    pub fn add(&mut self, id: &str, hash: RowHash) {
        if let Some(place) = self.places.of(id) {
            self.digests[place].add(hash);
        }
    }

    /// Those that hold somebody.
    pub fn digests(self) -> Vec<(u64, Digest)> {
        let numbers = self.places.ranges.into_iter().flat_map(|(range, _)| range);
        let all = numbers.zip(self.digests);
        all.filter(|(_, digest)| digest.count > 0).collect()
    }
}

/// The buckets asked for, each with a place in one row.
#[derive(Clone, Debug)]
struct Places {
    cut: Cut,
    /// With the place of the first of each.
    ranges: Vec<(Range<u64>, usize)>,
    count: usize,
}

impl Places {
    fn new(cut: Cut, buckets: &[Range<u64>]) -> Self {
        let mut count = 0;
        let place = |range: &Range<u64>| {
            let first = count;
            count += (range.end - range.start) as usize;
            (range.clone(), first)
        };
        let ranges = buckets.iter().map(place).collect();
        Self { cut, ranges, count }
    }

    fn of(&self, id: &str) -> Option<usize> {
        let bucket = self.cut.bucket(id)?;
        let after = self
            .ranges
            .partition_point(|(range, _)| range.start <= bucket);
        let (range, first) = self.ranges.get(after.checked_sub(1)?)?;
        let inside = range.contains(&bucket);
        inside.then(|| first + (bucket - range.start) as usize)
    }
}
