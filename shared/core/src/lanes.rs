//! Lanes: work queued per user, one piece of work per user under way at a time.
//!
//! What arrives for a user whose lane is busy waits there and is then taken all at once, so
//! order per user holds and a burst for one user becomes one piece of work. Knows nothing of
//! what the work is: intake queues events, a worker queues deliveries.

use std::collections::{HashMap, VecDeque};

use crate::user_id::UserId;

/// Work of type `T`, queued per user.
#[derive(Debug)]
pub struct Lanes<T> {
    lanes: HashMap<UserId, Lane<T>>,
    /// Users to take next; may also name some who were taken through the other queue since.
    urgent: VecDeque<UserId>,
    waiting: VecDeque<UserId>,
    queued: usize,
}

#[derive(Debug)]
struct Lane<T> {
    items: Vec<T>,
    busy: bool,
    urgent: bool,
}

/// Whom [`Lanes::take`] looks at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    /// Users with urgent work.
    Urgent,
    /// Users with none.
    Waiting,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            lanes: HashMap::new(),
            urgent: VecDeque::new(),
            waiting: VecDeque::new(),
            queued: 0,
        }
    }
}

impl<T> Lanes<T> {
    /// Queues `item` behind everything else of `user`.
    pub fn push(&mut self, user: UserId, item: T) {
        self.queued += 1;
        let lane = self.lanes.entry(user.clone()).or_insert_with(Lane::new);
        lane.push(item);
        if !lane.busy && lane.items.len() == 1 {
            self.waiting.push_back(user);
        }
    }

    /// Queues `item` like [`Self::push`], and makes its user's lane urgent.
    pub fn push_urgent(&mut self, user: UserId, item: T) {
        self.queued += 1;
        let lane = self.lanes.entry(user.clone()).or_insert_with(Lane::new);
        lane.push(item);
        if !lane.urgent {
            lane.urgent = true;
            if !lane.busy {
                self.urgent.push_back(user);
            }
        }
    }

    /// Takes everything queued for the next user who is not busy; the lane is busy until [`Self::done`].
    pub fn take(&mut self, prefer: Prefer) -> Option<(UserId, Vec<T>)> {
        match prefer {
            Prefer::Urgent => self.take_from(true).or_else(|| self.take_from(false)),
            Prefer::Waiting => self.take_from(false).or_else(|| self.take_from(true)),
        }
    }

    /// The same of the first user who is `fit`, in either queue; what is asked for seldom, for it looks through both.
    pub fn take_fit(
        &mut self,
        prefer: Prefer,
        fit: impl Fn(&UserId) -> bool,
    ) -> Option<(UserId, Vec<T>)> {
        let queues = match prefer {
            Prefer::Urgent => [true, false],
            Prefer::Waiting => [false, true],
        };
        let mut queues = queues.into_iter();
        let (urgent, place) =
            queues.find_map(|urgent| Some((urgent, self.first(urgent, &fit)?)))?;
        let queue = if urgent {
            &mut self.urgent
        } else {
            &mut self.waiting
        };
        let user = queue.remove(place)?;
        queue.push_front(user);
        self.take_from(urgent)
    }

    /// Whether a user who is `fit` could be taken.
    pub fn has_fit(&self, fit: impl Fn(&UserId) -> bool) -> bool {
        self.first(true, &fit).is_some() || self.first(false, &fit).is_some()
    }

    fn first(&self, urgent: bool, fit: impl Fn(&UserId) -> bool) -> Option<usize> {
        let queue = if urgent { &self.urgent } else { &self.waiting };
        let is_ready = |user: &UserId| {
            let lane = self.lanes.get(user);
            lane.is_some_and(|lane| !lane.busy && !lane.items.is_empty())
        };
        queue.iter().position(|user| fit(user) && is_ready(user))
    }

    fn take_from(&mut self, urgent: bool) -> Option<(UserId, Vec<T>)> {
        let queue = if urgent {
            &mut self.urgent
        } else {
            &mut self.waiting
        };
        while let Some(user) = queue.pop_front() {
            let Some(lane) = self.lanes.get_mut(&user) else {
                continue;
            };
            if lane.busy || lane.items.is_empty() {
                continue;
            }
            lane.busy = true;
            lane.urgent = false;
            let items = std::mem::take(&mut lane.items);
            self.queued -= items.len();
            return Some((user, items));
        }
        None
    }

    /// Ends the work that [`Self::take`] handed out for `user`.
    pub fn done(&mut self, user: &UserId) {
        let Some(lane) = self.lanes.get_mut(user) else {
            return;
        };
        lane.busy = false;
        if lane.items.is_empty() {
            self.lanes.remove(user);
        } else if lane.urgent {
            self.urgent.push_back(user.clone());
        } else {
            self.waiting.push_back(user.clone());
        }
    }

    /// Puts back what [`Self::take`] handed out, before everything queued since, and ends that work.
    pub fn put_back(&mut self, user: &UserId, mut items: Vec<T>) {
        if let Some(lane) = self.lanes.get_mut(user) {
            self.queued += items.len();
            items.append(&mut lane.items);
            lane.items = items;
        }
        self.done(user);
    }

    /// How many users could be taken, at most: some may be busy again.
    pub fn ready(&self) -> usize {
        self.urgent.len() + self.waiting.len()
    }

    /// How many items are queued, without those handed out.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Everything queued, in no particular order.
    pub fn items(&self) -> impl Iterator<Item = &T> {
        self.lanes.values().flat_map(|lane| &lane.items)
    }
}

impl<T> Lane<T> {
    fn new() -> Self {
        Self {
            items: Vec::new(),
            busy: false,
            urgent: false,
        }
    }

    /// Most lanes hold one, and the others would be room for four.
    fn push(&mut self, item: T) {
        if self.items.is_empty() {
            self.items.reserve_exact(1);
        }
        self.items.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Prefer::{Urgent, Waiting};

    #[test]
    fn a_user_is_worked_on_once_at_a_time_and_in_order() {
        let mut lanes = Lanes::default();
        let (ann, bob) = (UserId::from(1), UserId::from(2));
        lanes.push(ann.clone(), 1);
        assert_eq!(lanes.take(Urgent), Some((ann.clone(), vec![1])));
        lanes.push(ann.clone(), 2);
        lanes.push(bob.clone(), 9);
        lanes.push(ann.clone(), 3);
        assert_eq!(lanes.queued(), 3);
        assert_eq!(lanes.take(Urgent), Some((bob.clone(), vec![9])));
        assert_eq!(lanes.take(Urgent), None);
        lanes.done(&bob);
        lanes.done(&ann);
        assert_eq!(lanes.take(Urgent), Some((ann.clone(), vec![2, 3])));
        lanes.done(&ann);
        assert_eq!((lanes.queued(), lanes.take(Urgent)), (0, None));
    }

    #[test]
    fn what_is_put_back_comes_before_what_arrived_since() {
        let mut lanes = Lanes::default();
        let (ann, bob) = (UserId::from(1), UserId::from(2));
        lanes.push(ann.clone(), 1);
        let (_, items) = lanes.take(Urgent).unwrap();
        lanes.push(ann.clone(), 2);
        lanes.push(bob.clone(), 9);
        lanes.put_back(&ann, items);
        assert_eq!((lanes.queued(), lanes.ready()), (3, 2));
        assert_eq!(
            lanes.take(Urgent),
            Some((bob, vec![9])),
            "behind those who wait"
        );
        assert_eq!(lanes.take(Urgent), Some((ann, vec![1, 2])));
    }

    #[test]
    fn urgent_work_overtakes_other_users_but_not_its_own() {
        let mut lanes = Lanes::default();
        for user in 1..=3 {
            lanes.push(UserId::from(user), "live");
        }
        lanes.push_urgent(UserId::from(3), "repair");
        lanes.push_urgent(UserId::from(4), "repair");
        let order: Vec<_> = std::iter::from_fn(|| lanes.take(Urgent)).collect();
        let users: Vec<_> = order
            .iter()
            .map(|(user, items)| (user.to_string(), items.len()))
            .collect();
        assert_eq!(
            users,
            [
                ("3".into(), 2),
                ("4".into(), 1),
                ("1".into(), 1),
                ("2".into(), 1)
            ]
        );
    }

    #[test]
    fn places_can_be_kept_for_work_that_is_not_urgent() {
        let mut lanes = Lanes::default();
        lanes.push_urgent(UserId::from(1), "repair");
        lanes.push(UserId::from(2), "live");
        assert_eq!(lanes.take(Waiting).unwrap().1, ["live"]);
        lanes.push_urgent(UserId::from(2), "repair");
        lanes.done(&UserId::from(2));
        assert_eq!(lanes.take(Waiting).unwrap().0, UserId::from(1));
        assert_eq!(lanes.take(Waiting).unwrap().0, UserId::from(2));
        assert_eq!(lanes.queued(), 0);
    }
}
