//! The walk over two sides that finds everybody who differs: digests of buckets first, then of smaller ones within
//! those that differ, and lists of the few that are left.

use std::{
    cmp::Ordering,
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    cut::{Cut, Extent},
    digest::Digest,
    row::RowHash,
    side::{Answer, Entry, Side, SideError},
};

/// First buckets of a portion, where the sides find them without looking at everybody: as many to begin with, then as
/// many as sides answer in about [`SOON`], within these bounds.
const PORTION: u64 = 1_024;
const PORTIONS: (u64, u64) = (64, 8_192);
const SOON: Duration = Duration::from_secs(2);
/// Questions that a portion is asked in, so that statements stay short. A side doesn't wait for the other between them.
const QUESTIONS: u64 = 4;
/// Buckets that one question may be about: what bounds memory.
const MOST: u64 = 16_384;
/// Users that one list may have, as far as digests tell.
const LISTED: u64 = 32_768;
/// Buckets aren't divided any more below this: listing them costs about as much.
const SMALL: u64 = 12;
/// Users that are listed at once instead of dividing their buckets, for each question costs a round trip…
const FEW: u64 = 128;
/// …or, where a side can't seek, a look at everybody.
const FEW_SCANNED: u64 = 16_384;
/// Users that buckets are divided for: about as many as shall be in each.
const AIM: u64 = 8;
/// Where more than one bucket of so many differs, those of the next portion are half as wide: looking at their users
/// twice would cost more than the answers that are saved…
const OFTEN: u64 = 10;
/// …or a quarter as wide, where more than one of so many does…
const MOSTLY: u64 = 3;
/// …and twice as wide again where fewer than one of so many does.
const SELDOM: u64 = 20;
/// How far apart the first and the last bucket of one question may be, which servers answer in 31 bits.
const SPAN: u64 = 1 << 31;

/// A user whom the sides don't hold alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The id as text.
    pub id: Box<str>,
    /// The hash of the left side; `None` where the user isn't there, or not once more.
    pub left: Option<RowHash>,
    /// The hash of the right side.
    pub right: Option<RowHash>,
}

/// What a walk has read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Bytes of both sides' answers.
    pub bytes: u64,
    /// Users of the left side, as its digests count them.
    pub left: u64,
    /// Users of the right side.
    pub right: u64,
}

/// Where a walk stands between two portions of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The first cut.
    pub cut: Cut,
    /// How many buckets it has.
    pub buckets: u64,
    /// The first of them that hasn't been compared.
    pub next: u64,
}

/// A walk under way. It holds no more than a few megabytes, however many users there are and however many differ.
pub struct Walk<'a> {
    left: &'a dyn Side,
    right: &'a dyn Side,
    cut: Cut,
    /// How many buckets the first cut has, and which of them is next.
    buckets: u64,
    next: u64,
    /// How many buckets are asked for at once.
    portion: u64,
    /// By how many bits those are divided, because many of the last ones differed.
    divided: u32,
    /// What is known to differ and isn't listed yet, the last first.
    open: Vec<Task>,
    /// The next portion, where it is known before that is listed.
    ahead: Option<Portion>,
    read: Read,
}

/// Something to ask both sides about buckets.
struct Task {
    cut: Cut,
    buckets: Vec<Range<u64>>,
    what: What,
}

enum What {
    /// How their users add up.
    Digest,
    /// Who is in them.
    List,
}

/// What both sides said to a task.
struct Told {
    bytes: u64,
    /// Which of the buckets that they were asked to add up differ.
    differing: Vec<Differing>,
    /// Whom they listed and don't hold alike.
    differences: Vec<Difference>,
}

/// What both sides said of the next of the first buckets.
struct Portion {
    cut: Cut,
    /// The first of the first buckets behind it.
    end: u64,
    left: Digests,
    right: Digests,
    took: Duration,
}

/// Buckets that hold somebody, in ascending order.
type Digests = Answer<(u64, Digest)>;

/// A bucket that differs.
struct Differing {
    bucket: u64,
    /// Users of the side that has more.
    users: u64,
}

impl<'a> Walk<'a> {
    /// Prepares to compare two sides that agree on their fields.
    ///
    /// # Errors
    /// When a side doesn't answer.
    pub async fn new(left: &'a dyn Side, right: &'a dyn Side) -> Result<Self, SideError> {
        let (one, other): (Extent, Extent) = tokio::try_join!(left.extent(), right.extent())?;
        let (cut, buckets) = Cut::first(one, other);
        let next = 0;
        Ok(Self::resumed(left, right, Place { cut, buckets, next }))
    }

    /// Goes on over the same sides from where another walk stood.
    pub fn resumed(left: &'a dyn Side, right: &'a dyn Side, place: Place) -> Self {
        let Place { cut, buckets, next } = place;
        Self {
            left,
            right,
            cut,
            buckets,
            next,
            portion: PORTION,
            divided: 0,
            open: Vec::new(),
            ahead: None,
            read: Read::default(),
        }
    }

    /// Where a walk can be resumed with nothing left out and nothing found again; `None` in the middle of a portion.
    pub fn place(&self) -> Option<Place> {
        self.open.is_empty().then_some(Place {
            cut: self.cut,
            buckets: self.buckets,
            next: self.next,
        })
    }

    /// What has been read so far.
    pub fn read(&self) -> Read {
        self.read
    }

    /// The next of those who differ, at most some ten thousand; empty where a part of the users is alike. `None` when
    /// all have been compared. Between two calls nothing is under way, so whoever calls sets the pace.
    ///
    /// # Errors
    /// When a side doesn't answer. The walk stands where it stood, so the call may be made again.
    pub async fn next(&mut self) -> Result<Option<Vec<Difference>>, SideError> {
        let Some(task) = self.open.pop() else {
            let portion = match self.ahead.take() {
                None => self.portion().await.inspect_err(|_| self.ask_for_less())?,
                ahead => ahead,
            };
            let Some(portion) = portion else {
                return Ok(None);
            };
            self.compare(portion);
            return Ok(Some(Vec::new()));
        };
        // The side that has told all of this begins with the next portion, instead of waiting for the other.
        match tokio::try_join!(self.ask(&task), self.portion()) {
            Ok((told, portion)) => {
                self.ahead = self.ahead.take().or(portion);
                self.read.bytes += told.bytes;
                self.plan(task.cut, told.differing);
                Ok(Some(told.differences))
            }
            Err(error) => {
                self.open.push(task);
                self.ask_for_less();
                Err(error)
            }
        }
    }

    /// What both sides say of the next of the first buckets; `None` when that is known, or there are no more.
    async fn portion(&self) -> Result<Option<Portion>, SideError> {
        if self.ahead.is_some() || self.next >= self.buckets {
            return Ok(None);
        }
        let cut = self.cut.finer(self.divided);
        let seeks = self.seeks(&cut);
        let most = match seeks {
            true => self.portion.min(MOST >> self.divided),
            false => self.buckets,
        };
        let end = self.buckets.min(self.next + most);
        let many = end - self.next;
        let size = match seeks {
            true => many.div_ceil(QUESTIONS).max(PORTIONS.0),
            false => many,
        };
        let parts = (self.next..end).step_by(size as usize);
        let questions: Vec<_> = parts
            .map(|start| vec![self.cut.within(&cut, start..end.min(start + size))])
            .collect();
        let began = Instant::now();
        let (left, right) = self.digests(&cut, &questions).await?;
        Ok(Some(Portion {
            cut,
            end,
            left,
            right,
            took: began.elapsed(),
        }))
    }

    /// Finds which buckets of a portion differ.
    fn compare(&mut self, portion: Portion) {
        let Portion {
            cut,
            end,
            left,
            right,
            took,
        } = portion;
        let users = |side: &Digests| {
            let counts = side.items.iter().map(|(_, digest)| digest.count);
            counts.sum::<u64>()
        };
        let (on_left, on_right) = (users(&left), users(&right));
        self.read.left += on_left;
        self.read.right += on_right;
        self.read.bytes += left.bytes + right.bytes;
        let differing = differing(&left.items, &right.items);
        let asked = (end - self.next) << (self.cut.shift - cut.shift);
        let differ = differing.len() as u64;
        if differ * SELDOM < asked {
            self.divided = self.divided.saturating_sub(1);
        } else if differ * OFTEN > asked && on_left.max(on_right) > asked * SMALL {
            let bits = if differ * MOSTLY > asked { 2 } else { 1 };
            self.divided = (self.divided + bits).min(self.cut.shift.min(MOST.ilog2()));
        }
        if took > SOON * 2 {
            self.ask_for_less();
        } else if took < SOON / 2 {
            self.portion = (self.portion * 2).min(PORTIONS.1);
        }
        self.next = end;
        self.plan(cut, differing);
    }

    fn ask_for_less(&mut self) {
        self.portion = (self.portion / 2).max(PORTIONS.0);
    }

    fn seeks(&self, cut: &Cut) -> bool {
        self.left.seeks(cut) && self.right.seeks(cut)
    }

    /// What both sides say to `task`.
    async fn ask(&self, task: &Task) -> Result<Told, SideError> {
        let Task { cut, buckets, what } = task;
        Ok(match what {
            What::Digest => {
                let (left, right) = self.digests(cut, std::slice::from_ref(buckets)).await?;
                Told {
                    bytes: left.bytes + right.bytes,
                    differing: differing(&left.items, &right.items),
                    differences: Vec::new(),
                }
            }
            What::List => {
                let (left, right) =
                    tokio::try_join!(self.left.list(cut, buckets), self.right.list(cut, buckets))?;
                Told {
                    bytes: left.bytes + right.bytes,
                    differing: Vec::new(),
                    differences: differences(left.items, right.items),
                }
            }
        })
    }

    /// What both sides answer to all `questions`.
    async fn digests(
        &self,
        cut: &Cut,
        questions: &[Vec<Range<u64>>],
    ) -> Result<(Digests, Digests), SideError> {
        tokio::try_join!(
            answers(self.left, cut, questions),
            answers(self.right, cut, questions)
        )
    }

    /// What is to be asked about buckets that differ.
    fn plan(&mut self, cut: Cut, differing: Vec<Differing>) {
        let users: u64 = differing.iter().map(|bucket| bucket.users).sum();
        let few = match self.seeks(&cut) {
            true => FEW,
            false => FEW_SCANNED,
        };
        let (mut listed, mut divided) = (Vec::new(), Vec::new());
        for bucket in differing {
            match users <= few || bucket.users <= SMALL || cut.shift == 0 {
                true => listed.push(bucket),
                false => divided.push(bucket),
            }
        }
        for group in groups(&listed, |bucket| bucket.users, LISTED) {
            let buckets = ranges(group.iter().map(|bucket| bucket.bucket));
            self.open.push(Task {
                cut,
                buckets,
                what: What::List,
            });
        }
        while let Some(first) = divided.first() {
            // Those that are about as full are divided alike.
            let bits = bits(first.users, cut.shift);
            let (alike, others) = divided
                .into_iter()
                .partition(|bucket: &Differing| self::bits(bucket.users, cut.shift) == bits);
            divided = others;
            let finer = cut.finer(bits);
            for group in groups(&alike, |_| 1 << bits, MOST) {
                let buckets = ranges(group.iter().map(|bucket| bucket.bucket));
                let buckets = buckets.into_iter().map(|range| cut.within(&finer, range));
                self.open.push(Task {
                    cut: finer,
                    buckets: buckets.collect(),
                    what: What::Digest,
                });
            }
        }
    }
}

/// What `side` answers to ascending `questions`, one after the other.
async fn answers(
    side: &dyn Side,
    cut: &Cut,
    questions: &[Vec<Range<u64>>],
) -> Result<Digests, SideError> {
    let (mut items, mut bytes) = (Vec::new(), 0);
    for buckets in questions {
        let answer = side.digest(cut, buckets).await?;
        items.extend(answer.items);
        bytes += answer.bytes;
    }
    Ok(Answer { items, bytes })
}

/// By how many bits a bucket of so many users is divided.
fn bits(users: u64, shift: u32) -> u32 {
    let parts = (users / AIM).next_power_of_two().clamp(2, MOST);
    parts.trailing_zeros().min(shift)
}

/// `buckets` in groups that weigh at most `most` each, or are one bucket, and don't lie too far apart.
fn groups(
    mut buckets: &[Differing],
    weight: impl Fn(&Differing) -> u64,
    most: u64,
) -> VecDeque<&[Differing]> {
    let mut groups = VecDeque::new();
    while let Some(first) = buckets.first() {
        let mut sum = 0;
        let fits = buckets.iter().take_while(|bucket| {
            sum += weight(bucket);
            let parts = weight(bucket).max(1);
            sum <= most && (bucket.bucket - first.bucket + 1).saturating_mul(parts) < SPAN
        });
        let (group, rest) = buckets.split_at(fits.count().max(1));
        groups.push_front(group);
        buckets = rest;
    }
    groups
}

/// Ascending numbers as ranges that don't touch.
fn ranges(numbers: impl Iterator<Item = u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => ranges.push(number..number + 1),
        }
    }
    ranges
}

/// The buckets whose digests aren't equal.
fn differing(left: &[(u64, Digest)], right: &[(u64, Digest)]) -> Vec<Differing> {
    let mut differing = Vec::new();
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    loop {
        let order = match (left.peek(), right.peek()) {
            (None, None) => return differing,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let one = left.next_if(|_| order.is_le());
        let other = right.next_if(|_| order.is_ge());
        let digest =
            |side: Option<&(u64, Digest)>| side.map(|(_, digest)| *digest).unwrap_or_default();
        let (a, b) = (digest(one), digest(other));
        if let (Some((bucket, _)), true) = (one.or(other), a != b) {
            differing.push(Differing {
                bucket: *bucket,
                users: a.count.max(b.count),
            });
        }
    }
}

/// Those of two lists who aren't on both alike.
fn differences(mut left: Vec<Entry>, mut right: Vec<Entry>) -> Vec<Difference> {
    left.sort_unstable();
    right.sort_unstable();
    // Equal entries go in pairs first, so that one that is there twice shows once.
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let (mut lefts, mut rights) = (left.into_iter().peekable(), right.into_iter().peekable());
    loop {
        let order = match (lefts.peek(), rights.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.cmp(right),
        };
        let (left, right) = (
            lefts.next_if(|_| order.is_le()),
            rights.next_if(|_| order.is_ge()),
        );
        if order.is_ne() {
            one.extend(left);
            other.extend(right);
        }
    }
    let mut differences = Vec::new();
    let (mut lefts, mut rights) = (one.into_iter().peekable(), other.into_iter().peekable());
    loop {
        let order = match (lefts.peek(), rights.peek()) {
            (None, None) => return differences,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.id.cmp(&right.id),
        };
        let (left, right) = (
            lefts.next_if(|_| order.is_le()),
            rights.next_if(|_| order.is_ge()),
        );
        let hash = |entry: &Option<Entry>| entry.as_ref().map(|entry| entry.hash);
        let hashes = (hash(&left), hash(&right));
        if let Some(entry) = left.or(right) {
            differences.push(Difference {
                id: entry.id,
                left: hashes.0,
                right: hashes.1,
            });
        }
    }
}
