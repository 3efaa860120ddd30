//! How far a check is, kept so that another scheduler can go on: nothing is left out and nothing counted twice.
//!
//! Who is about to be repaired is stored before that happens: afterwards nobody could tell who has been by whom.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use usersync_core::{
    check::{Class, Report},
    user_id::UserId,
};
use usersync_digest::Place;

/// How far a check is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Progress {
    /// What it has found so far.
    pub report: Option<Report>,
    /// Where another scheduler goes on.
    pub mark: Option<Mark>,
    /// Who is being repaired, and how they differed.
    pub mending: BTreeMap<UserId, Class>,
}

/// Where a check can go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Which of the main databases is being compared.
    pub pass: usize,
    /// Where the walk stands; `None` at its beginning.
    pub place: Option<Place>,
    /// What had been found up to there.
    pub report: Report,
    /// Who differed by then, with the newest state still on its way.
    pub waiting: BTreeSet<UserId>,
}

impl Progress {
    /// Where to go on; `first` is the report of a check that begins. Whoever was repaired after the mark stays counted,
    /// for they are alike now; all others are found again.
    pub(super) fn resumed(self, first: impl FnOnce() -> Report) -> (Mark, BTreeMap<UserId, Class>) {
        let mut mark = self.mark.unwrap_or_else(|| Mark {
            pass: 0,
            place: None,
            report: first(),
            waiting: BTreeSet::new(),
        });
        if let Some(report) = self.report {
            mark.report.seconds = report.seconds;
            for (class, found) in report.found {
                let kept = mark.report.found.entry(class).or_default();
                kept.users += found.repaired - kept.repaired.min(found.repaired);
                kept.repaired = found.repaired;
                kept.sample = found.sample;
            }
            mark.report.found.retain(|_, found| found.users > 0);
        }
        // Whether they have been repaired shows when they are looked at.
        mark.waiting.extend(self.mending.keys().cloned());
        (mark, self.mending)
    }
}

/// Where a check writes how far it is.
pub(crate) struct Journal {
    told: watch::Sender<Progress>,
    asked: mpsc::Sender<oneshot::Sender<()>>,
}

/// The other end, for whoever has the claim.
pub(crate) struct Entries {
    told: watch::Receiver<Progress>,
    asked: mpsc::Receiver<oneshot::Sender<()>>,
}

impl Journal {
    /// The journal of a check that goes on after `progress`.
    pub(crate) fn new(progress: Progress) -> (Self, Entries) {
        let (tell, told) = watch::channel(progress);
        let (ask, asked) = mpsc::channel(1);
        let journal = Self {
            told: tell,
            asked: ask,
        };
        (journal, Entries { told, asked })
    }

    /// How far it is, as last told.
    pub(super) fn last(&self) -> Progress {
        self.told.borrow().clone()
    }

    /// Tells how far it is; that is stored sooner or later.
    pub(super) fn tell(&self, progress: Progress) {
        self.told.send_replace(progress);
    }

    /// Tells how far it is, and waits until that is stored.
    ///
    /// # Errors
    /// When nobody keeps the claim any more.
    pub(super) async fn keep(&self, progress: Progress) -> anyhow::Result<()> {
        self.tell(progress);
        let (kept, done) = oneshot::channel();
        self.asked.send(kept).await?;
        Ok(done.await?)
    }
}

impl Entries {
    /// How far the check is.
    pub(crate) fn newest(&self) -> Progress {
        self.told.borrow().clone()
    }

    /// Waits until the check wants [`Entries::newest`] stored at once; answer it then. Never ends after the check has.
    pub(crate) async fn asked(&mut self) -> oneshot::Sender<()> {
        match self.asked.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(report: &mut Report, class: Class, user: u64, repaired: bool) {
        report.note(class, &UserId::from(user), repaired);
    }

    #[test]
    fn whoever_was_repaired_after_the_mark_stays_counted_and_all_others_are_found_again() {
        let mut at_mark = Report::new("gateway", "main", false);
        note(&mut at_mark, Class::Missing, 1, true);
        note(&mut at_mark, Class::Orphan, 2, false);
        at_mark.users = 10;
        let mut last = at_mark.clone();
        note(&mut last, Class::Missing, 4, true);
        note(&mut last, Class::Orphan, 5, false);
        note(&mut last, Class::Stale, 6, false);
        (last.users, last.seconds) = (20, 7.0);
        let mending = BTreeMap::from([
            (UserId::from(7), Class::Different),
            ("042".parse().unwrap(), Class::Missing),
        ]);
        let progress = Progress {
            report: Some(last),
            mark: Some(Mark {
                pass: 1,
                place: None,
                report: at_mark,
                waiting: BTreeSet::from([UserId::from(3)]),
            }),
            mending: mending.clone(),
        };
        let stored = serde_json::to_vec(&progress).unwrap();
        let progress: Progress = serde_json::from_slice(&stored).unwrap();

        let (mark, taken_over) = progress.resumed(|| unreachable!());
        let found: Vec<_> = mark.report.found.iter().collect();
        let counts = found
            .iter()
            .map(|(class, found)| (**class, found.users, found.repaired));
        let expected = [(Class::Missing, 2, 2), (Class::Orphan, 1, 0)];
        assert_eq!(counts.collect::<Vec<_>>(), expected);
        assert_eq!(
            (mark.pass, mark.report.users, mark.report.seconds),
            (1, 10, 7.0)
        );
        assert_eq!(taken_over, mending);
        let waiting: BTreeSet<UserId> = [3, 7].map(UserId::from).into();
        assert!(mark.waiting.is_superset(&waiting) && mark.waiting.len() == 3);
    }

    #[test]
    fn a_check_that_has_told_nothing_begins() {
        let first = Report::new("gateway", "main", true);
        let (mark, mending) = Progress::default().resumed(|| first.clone());
        assert_eq!((mark.report, mark.pass, mark.place), (first, 0, None));
        assert!(mark.waiting.is_empty() && mending.is_empty());
    }
}
