//! The walk finds exactly those who differ, in few bytes, however ids lie and whichever way a side finds them.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a list of ranges may have one"
)]

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use tokio::sync::watch;
use usersync_digest::{
    Answer, Cut, Difference, Digest, Each, Entry, Extent, Keys, Read, Row, RowHash, Scan, Scanned,
    Side, SideError, Tally, Walk,
};

/// A copy in memory, in the order of its ids where they are integers.
#[derive(Clone, Debug, Default)]
struct Copy {
    rows: BTreeMap<i128, RowHash>,
    twice: Vec<i128>,
}

impl Copy {
    fn of(ids: impl IntoIterator<Item = i128>) -> Self {
        let row = |id: i128| (id, Row::new(&id.to_string()).hash());
        let rows = ids.into_iter().map(row).collect();
        Self {
            rows,
            twice: Vec::new(),
        }
    }

    fn tamper(&mut self, id: i128) {
        let mut row = Row::new(&id.to_string());
        row.field(Some(b"mallory"));
        self.rows.insert(id, row.hash());
    }

    fn all(&self) -> impl Iterator<Item = (String, RowHash)> {
        self.between(i128::MIN, i128::MAX)
    }

    fn between(&self, first: i128, last: i128) -> impl Iterator<Item = (String, RowHash)> {
        let twice = self.twice.iter().map(|id| (id, &self.rows[id]));
        let twice = twice.filter(move |(id, _)| (first..=last).contains(*id));
        let all = self.rows.range(first..=last).chain(twice);
        all.map(|(id, hash)| (id.to_string(), *hash))
    }

    /// Those in `buckets`, or everybody where they aren't neighbours.
    fn within(&self, cut: &Cut, buckets: &[Range<u64>]) -> Vec<(String, RowHash)> {
        let ranges: Option<Vec<_>> = buckets.iter().map(|range| cut.ids(range)).collect();
        match ranges {
            None => self.all().collect(),
            Some(ranges) => {
                let within = ranges
                    .into_iter()
                    .map(|(first, last)| self.between(first, last));
                within.flatten().collect()
            }
        }
    }
}

#[async_trait]
impl Scan for Copy {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        self.all().for_each(|(id, hash)| each(&id, hash));
        Ok(0)
    }
}

#[async_trait]
impl Side for Copy {
    async fn extent(&self) -> Result<Extent, SideError> {
        let ends = self.rows.first_key_value().zip(self.rows.last_key_value());
        Ok(ends.map_or(Extent::Empty, |((first, _), (last, _))| {
            Extent::Numbers(*first, *last)
        }))
    }

    fn seeks(&self, cut: &Cut) -> bool {
        cut.keys != Keys::Hashes
    }

    async fn digest(
        &self,
        cut: &Cut,
        buckets: &[Range<u64>],
    ) -> Result<Answer<(u64, Digest)>, SideError> {
        let mut tally = Tally::new(*cut, buckets);
        let within = self.within(cut, buckets);
        within.iter().for_each(|(id, hash)| tally.add(id, *hash));
        let items = tally.digests();
        let bytes = items.len() as u64 * 24;
        Ok(Answer { items, bytes })
    }

    async fn list(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Answer<Entry>, SideError> {
        let within = self.within(cut, buckets).into_iter();
        let inside = |id: &str| {
            let bucket = cut.bucket(id);
            let holds = |range: &Range<u64>| bucket.is_some_and(|bucket| range.contains(&bucket));
            buckets.iter().any(holds)
        };
        let within = within.filter(|(id, _)| cut.keys != Keys::Hashes || inside(id));
        let entry = |(id, hash): (String, RowHash)| Entry {
            id: id.into(),
            hash,
        };
        let items: Vec<Entry> = within.map(entry).collect();
        let bytes = items.iter().map(|entry| entry.id.len() as u64 + 18).sum();
        Ok(Answer { items, bytes })
    }
}

async fn walk(left: &dyn Side, right: &dyn Side) -> Result<(Vec<Difference>, Read)> {
    let mut walk = Walk::new(left, right).await?;
    let mut all = Vec::new();
    while let Some(some) = walk.next().await? {
        all.extend(some);
    }
    all.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((all, walk.read()))
}

/// Those who differ, found by comparing everything.
fn expected(left: &Copy, right: &Copy) -> Vec<Difference> {
    let ids = left.rows.keys().chain(right.rows.keys());
    let ids: std::collections::BTreeSet<_> = ids.collect();
    let differences = ids.into_iter().filter_map(|id| {
        let (one, other) = (left.rows.get(id).copied(), right.rows.get(id).copied());
        (one != other).then(|| Difference {
            id: id.to_string().into(),
            left: one,
            right: other,
        })
    });
    let mut differences: Vec<_> = differences.collect();
    differences.sort_by(|a, b| a.id.cmp(&b.id));
    differences
}

#[tokio::test]
async fn every_difference_is_found_and_nothing_else() -> Result<()> {
    let dense: Vec<i128> = (1..=40_000).collect();
    let clusters: Vec<i128> = (0..20_000)
        .map(|n| (n % 7) * (1 << 48) + n)
        .chain([1 << 61])
        .collect();
    let few: Vec<i128> = vec![5, 9];
    for (number, ids) in [dense, clusters, few, Vec::new()].into_iter().enumerate() {
        let mut random = fastrand::Rng::with_seed(number as u64);
        for changes in [0, 1, 50, 3_000] {
            let left = Copy::of(ids.iter().copied());
            let mut right = left.clone();
            for _ in 0..changes {
                let id = random.choice(&ids).copied().unwrap_or(1);
                match random.u8(0..3) {
                    0 => drop(right.rows.remove(&id)),
                    1 => right.tamper(id),
                    _ => right.tamper(id + 1_000_000_007),
                }
            }
            let expected = expected(&left, &right);
            let (found, read) = walk(&left, &right).await?;
            ensure!(
                found == expected,
                "{number} {changes}: {} of {}",
                found.len(),
                expected.len()
            );
            ensure!(read.left == left.rows.len() as u64 && read.right == right.rows.len() as u64);
            let (found, _) = walk(&Scanned(left.clone()), &right).await?;
            ensure!(
                found == expected,
                "{number} {changes} scanned: {}",
                found.len()
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_user_who_is_there_twice_is_found() -> Result<()> {
    let left = Copy::of(1..1_000);
    let mut right = left.clone();
    right.twice = vec![7, 8, 8];
    let (found, _) = walk(&left, &right).await?;
    let ids: Vec<_> = found.iter().map(|one| &*one.id).collect();
    ensure!(ids == ["7", "8", "8"], "{ids:?}");
    ensure!(found.iter().all(|one| one.left.is_none()), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn a_hundred_of_a_million_take_less_than_a_megabyte() -> Result<()> {
    let left = Copy::of(1..=1_000_000);
    let mut right = left.clone();
    for n in 0..100 {
        right.tamper(n * 9_999 + 1);
    }
    let (found, read) = walk(&left, &right).await?;
    ensure!(found.len() == 100 && read.bytes < 1_000_000, "{read:?}");
    for n in 0..10_000 {
        right.tamper(n * 99 + 1);
    }
    let (found, read) = walk(&left, &right).await?;
    ensure!(
        found.len() == 10_000 && read.bytes < 9_700_000,
        "{} {read:?}",
        found.len()
    );
    Ok(())
}

/// Counts the users it has looked at.
struct Counted(Copy, AtomicUsize);

#[async_trait]
impl Side for Counted {
    async fn extent(&self) -> Result<Extent, SideError> {
        self.0.extent().await
    }

    fn seeks(&self, cut: &Cut) -> bool {
        self.0.seeks(cut)
    }

    async fn digest(
        &self,
        cut: &Cut,
        buckets: &[Range<u64>],
    ) -> Result<Answer<(u64, Digest)>, SideError> {
        let answer = self.0.digest(cut, buckets).await?;
        let users: u64 = answer.items.iter().map(|(_, digest)| digest.count).sum();
        self.1.fetch_add(users as usize, Ordering::Relaxed);
        Ok(answer)
    }

    async fn list(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Answer<Entry>, SideError> {
        let answer = self.0.list(cut, buckets).await?;
        self.1.fetch_add(answer.items.len(), Ordering::Relaxed);
        Ok(answer)
    }
}

#[tokio::test]
async fn where_many_differ_few_users_are_looked_at_twice() -> Result<()> {
    let left = Copy::of(1..=1_000_000);
    let mut right = left.clone();
    for n in 0..10_000 {
        right.tamper(n * 99 + 1);
    }
    let counted = Counted(right, AtomicUsize::new(0));
    let (found, _) = walk(&left, &counted).await?;
    let looked_at = counted.1.into_inner();
    ensure!(
        found.len() == 10_000 && looked_at < 1_160_000,
        "{} found, {looked_at} looked at",
        found.len()
    );
    Ok(())
}

/// Answers about digests only when the other side has answered `ahead` of them, and lists somebody only when it has
/// answered `listed` of them.
struct Slow<'a> {
    copy: Copy,
    other: &'a Asked,
    ahead: usize,
    listed: usize,
}

impl Slow<'_> {
    async fn wait_for(&self, answers: usize) -> Result<(), SideError> {
        let mut asked = self.other.1.subscribe();
        let ahead = asked.wait_for(|asked| *asked >= answers);
        match tokio::time::timeout(Duration::from_secs(5), ahead).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(SideError::new("the other side waits for this one")),
        }
    }
}

/// Counts the questions it has answered.
struct Asked(Copy, watch::Sender<usize>);

#[async_trait]
impl Side for Asked {
    async fn extent(&self) -> Result<Extent, SideError> {
        self.0.extent().await
    }

    fn seeks(&self, cut: &Cut) -> bool {
        self.0.seeks(cut)
    }

    async fn digest(
        &self,
        cut: &Cut,
        buckets: &[Range<u64>],
    ) -> Result<Answer<(u64, Digest)>, SideError> {
        self.1.send_modify(|asked| *asked += 1);
        self.0.digest(cut, buckets).await
    }

    async fn list(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Answer<Entry>, SideError> {
        self.0.list(cut, buckets).await
    }
}

#[async_trait]
impl Side for Slow<'_> {
    async fn extent(&self) -> Result<Extent, SideError> {
        self.copy.extent().await
    }

    fn seeks(&self, cut: &Cut) -> bool {
        self.copy.seeks(cut)
    }

    async fn digest(
        &self,
        cut: &Cut,
        buckets: &[Range<u64>],
    ) -> Result<Answer<(u64, Digest)>, SideError> {
        self.wait_for(self.ahead).await?;
        self.copy.digest(cut, buckets).await
    }

    async fn list(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Answer<Entry>, SideError> {
        self.wait_for(self.listed).await?;
        self.copy.list(cut, buckets).await
    }
}

#[tokio::test]
async fn no_side_waits_for_the_other_within_a_portion() -> Result<()> {
    let copy = Copy::of(1..=100_000);
    let left = Asked(copy.clone(), watch::Sender::new(0));
    let right = Slow {
        copy,
        other: &left,
        ahead: 4,
        listed: 0,
    };
    let (found, read) = walk(&left, &right).await?;
    ensure!(found.is_empty() && read.left == 100_000, "{read:?}");
    Ok(())
}

#[tokio::test]
async fn a_side_that_has_listed_begins_with_the_next_portion() -> Result<()> {
    let left = Copy::of(1..=1_000_000);
    let mut copy = left.clone();
    copy.tamper(42);
    let expected = expected(&left, &copy);
    let left = Asked(left, watch::Sender::new(0));
    let right = Slow {
        copy,
        other: &left,
        ahead: 0,
        // The first portion has four.
        listed: 5,
    };
    let (found, read) = walk(&left, &right).await?;
    ensure!(
        found == expected && read.left == 1_000_000,
        "{found:?} {read:?}"
    );
    Ok(())
}

/// Answers all but every seventh question.
struct Shaky(Copy, AtomicUsize);

impl Shaky {
    fn ask(&self) -> Result<(), SideError> {
        match self.1.fetch_add(1, Ordering::Relaxed) % 7 {
            6 => Err(SideError::new("not now")),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Side for Shaky {
    async fn extent(&self) -> Result<Extent, SideError> {
        self.0.extent().await
    }

    fn seeks(&self, cut: &Cut) -> bool {
        self.0.seeks(cut)
    }

    async fn digest(
        &self,
        cut: &Cut,
        buckets: &[Range<u64>],
    ) -> Result<Answer<(u64, Digest)>, SideError> {
        self.ask()?;
        self.0.digest(cut, buckets).await
    }

    async fn list(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Answer<Entry>, SideError> {
        self.ask()?;
        self.0.list(cut, buckets).await
    }
}

#[tokio::test]
async fn a_walk_goes_on_after_an_error_and_after_a_restart() -> Result<()> {
    let left = Copy::of(1..=300_000);
    let mut right = left.clone();
    for id in [1, 70_000, 150_000, 299_999] {
        right.tamper(id);
    }
    let expected = expected(&left, &right);
    let shaky = Shaky(right.clone(), AtomicUsize::new(0));
    let mut walk = Walk::new(&left, &shaky).await?;
    let (mut found, mut errors) = (Vec::new(), 0);
    loop {
        // Whoever was killed begins again where everything before was done.
        let place = walk.place();
        let again = serde_json::from_str(&serde_json::to_string(&place)?)?;
        if let Some(place) = again {
            walk = Walk::resumed(&left, &shaky, place);
        }
        match walk.next().await {
            Ok(Some(some)) => found.extend(some),
            Ok(None) => break,
            Err(_) => errors += 1,
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    ensure!(errors > 0 && found == expected, "{errors} {found:?}");
    Ok(())
}
