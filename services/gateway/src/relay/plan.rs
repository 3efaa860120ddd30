//! What notes come to, once the rows of their users are read: which events, in which order. Pure.
//!
//! Of several notes of a user the last one tells, for the row is read once. A deletion stands for itself: whoever gets a
//! deleted user's id later inherits nothing.

use std::collections::{HashMap, HashSet};

use usersync_core::event::EventType;
use usersync_source::{Failure, OutboxRow, RowChange};

/// What the rows of some users say, by the users' ids as rows spell them; who isn't in it has none.
pub(super) type Found = HashMap<String, Result<Vec<u8>, String>>;

/// One event.
#[derive(Debug)]
pub(super) struct Step {
    /// The row of the outbox that it is published for.
    pub row: OutboxRow,
    /// Earlier rows that it settles.
    pub others: Vec<(i64, i64)>,
    /// The row that fails if it does: the one that says that the user came, where one does.
    pub blamed: i64,
    pub what: What,
}

/// What an event says.
#[derive(Debug, PartialEq)]
pub(super) enum What {
    /// What the row of the outbox says itself.
    Payload,
    /// The user's row as it is now.
    Row { kind: EventType, document: Vec<u8> },
    /// That the user is gone.
    Gone,
}

/// What some rows of an outbox come to.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Events in their order.
    pub steps: Vec<Step>,
    /// Rows of whom nothing is to be said.
    pub silent: Vec<i64>,
    /// Rows that can't be events.
    pub failed: Vec<Failure>,
    /// Rows to be looked at once more: a deletion whose user is there again. The note of that is there now, too.
    pub held: Vec<i64>,
    /// Whether rows may be there that stand for nobody: of users who were deleted elsewhere (ADR 49).
    marked: bool,
}

/// Plans the events of `rows`, which come in the order of their ids; `held` are those that were looked at before. Where rows
/// of deleted users are `marked`, one that is replaced may have been such a row: then the user comes.
pub(super) fn plan(
    rows: Vec<OutboxRow>,
    found: &mut Found,
    held: &HashSet<i64>,
    marked: bool,
) -> Plan {
    let mut plan = Plan {
        marked,
        ..Plan::default()
    };
    let mut users: HashMap<String, Vec<OutboxRow>> = HashMap::new();
    for row in rows {
        if row.payload.is_some() {
            plan.steps.push(Step {
                blamed: row.id,
                row,
                others: Vec::new(),
                what: What::Payload,
            });
        } else if row.change().is_none() {
            let reason =
                "it has no payload, and its event is neither I, U or D nor one of the four types";
            plan.fail(&[row], reason.to_owned());
        } else {
            users.entry(row.user.clone()).or_default().push(row);
        }
    }
    for (user, notes) in users {
        plan.user(notes, found.remove(&user), held);
    }
    plan.steps.sort_unstable_by_key(|step| step.row.id);
    plan
}

impl Plan {
    /// The events of one user.
    fn user(
        &mut self,
        mut notes: Vec<OutboxRow>,
        row: Option<Result<Vec<u8>, String>>,
        held: &HashSet<i64>,
    ) {
        let death = (0..notes.len()).rev().find(|at| is_death(&notes, *at));
        let mut after = notes.split_off(death.map_or(0, |at| at + 1));
        if after.is_empty() {
            return self.last_is_death(notes, row, held);
        }
        if came_by(&after).is_none() && row.is_some() {
            // It is there, and nobody says that it came back: `UPDATE IGNORE` notes what it doesn't do.
            after.splice(0..0, notes.drain(..));
        }
        if !notes.is_empty() {
            self.tell(notes, What::Gone);
        }
        match row {
            Some(Ok(document)) => self.tell_row(after, document),
            Some(Err(reason)) => self.fail(&after, reason),
            // Gone since, which has a note of its own; or hidden, which says nothing.
            None => self.silent.extend(after.iter().map(|note| note.id)),
        }
    }

    /// The events of a user whose last note is a deletion.
    fn last_is_death(
        &mut self,
        notes: Vec<OutboxRow>,
        row: Option<Result<Vec<u8>, String>>,
        held: &HashSet<i64>,
    ) {
        let known = notes.last().is_some_and(|note| held.contains(&note.id));
        match row {
            None => self.tell(notes, What::Gone),
            Some(_) if !known => self.held.extend(notes.iter().map(|note| note.id)),
            // It is there, and nobody says that it came: so it has never gone.
            Some(Ok(document)) => self.tell_row(notes, document),
            Some(Err(reason)) => self.fail(&notes, reason),
        }
    }

    /// What the row of these notes' user says.
    fn tell_row(&mut self, notes: Vec<OutboxRow>, document: Vec<u8>) {
        let kind = match came_by(&notes) {
            Some(_) => EventType::Created,
            None if self.marked && notes.iter().any(is_insertion) => EventType::Created,
            None => EventType::Updated,
        };
        self.tell(notes, What::Row { kind, document });
    }

    /// An event for the last of these notes.
    fn tell(&mut self, mut notes: Vec<OutboxRow>, what: What) {
        let blamed = blamed(&notes);
        if let Some(row) = notes.pop() {
            let others = notes.iter().map(|note| (note.id, note.created_us));
            self.steps.push(Step {
                row,
                others: others.collect(),
                blamed,
                what,
            });
        }
    }

    /// One of these notes fails for all of them.
    fn fail(&mut self, notes: &[OutboxRow], reason: String) {
        let id = blamed(notes);
        self.failed.push(Failure { id, reason });
        let ids = notes.iter().map(|note| note.id);
        self.silent.extend(ids.filter(|other| *other != id));
    }
}

fn is_insertion(note: &OutboxRow) -> bool {
    note.change() == Some(RowChange::Inserted)
}

/// Whether a note says that its user has gone, and no other one of the same statement that it came back: so says
/// `REPLACE INTO`, and so does a row that moves to another partition.
fn is_death(notes: &[OutboxRow], at: usize) -> bool {
    let note = &notes[at];
    let back = notes.get(at + 1).is_some_and(|next| {
        next.change() == Some(RowChange::Inserted) && next.is_of_one_statement_with(note)
    });
    note.change() == Some(RowChange::Deleted) && !back
}

/// The first of these notes that says that its user came, and didn't go in the same statement.
fn came_by(notes: &[OutboxRow]) -> Option<i64> {
    let came = |at: &usize| {
        let note = &notes[*at];
        let before = at.checked_sub(1).map(|before| &notes[before]);
        let went = before.is_some_and(|before| {
            before.change() == Some(RowChange::Deleted) && before.is_of_one_statement_with(note)
        });
        note.change() == Some(RowChange::Inserted) && !went
    };
    (0..notes.len()).find(came).map(|at| notes[at].id)
}

/// The one of these notes that says the most of what is lost when they fail: that the user came, else the last.
fn blamed(notes: &[OutboxRow]) -> i64 {
    let last = notes.last().map_or(0, |note| note.id);
    came_by(notes).unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use usersync_source::Payload;

    /// A note: id, event, statement.
    fn note(id: i64, event: &str, tx: i64) -> OutboxRow {
        OutboxRow {
            id,
            user: "7".to_owned(),
            event: event.to_owned(),
            payload: None,
            previous: None,
            created_us: tx,
            tx: Some(tx),
        }
    }

    /// What notes of one user come to, each as id, what and the ids it settles.
    fn told(notes: &[(&str, i64)], row: Option<Result<&str, &str>>) -> Vec<String> {
        shown(planned(notes, row, &HashSet::new()))
    }

    fn planned(
        notes: &[(&str, i64)],
        row: Option<Result<&str, &str>>,
        held: &HashSet<i64>,
    ) -> Plan {
        let notes = notes.iter().zip(1..);
        let notes = notes.map(|((event, tx), id)| note(id, event, *tx));
        let row = row.map(|row| row.map(|text| text.into()).map_err(str::to_owned));
        let mut found: Found = row.map(|row| ("7".to_owned(), row)).into_iter().collect();
        plan(notes.collect(), &mut found, held, false)
    }

    fn shown(plan: Plan) -> Vec<String> {
        let step = |step: Step| {
            let what = match step.what {
                What::Payload => "payload".to_owned(),
                What::Gone => "gone".to_owned(),
                What::Row { kind, .. } => kind.as_str().replace("user.", ""),
            };
            let others = step.others.iter().map(|(id, _)| format!("+{id}"));
            format!("{what} {}{}", step.row.id, others.collect::<String>())
        };
        let mut shown: Vec<String> = plan.steps.into_iter().map(step).collect();
        let mut silent = plan.silent;
        silent.sort_unstable();
        shown.extend(silent.iter().map(|id| format!("silent {id}")));
        let failed = plan.failed.iter();
        shown.extend(failed.map(|failure| format!("failed {}: {}", failure.id, failure.reason)));
        shown.extend(plan.held.iter().map(|id| format!("held {id}")));
        shown
    }

    const HERE: Option<Result<&str, &str>> = Some(Ok("{}"));

    #[test]
    fn the_last_note_of_a_user_tells_for_all_of_them() {
        assert_eq!(told(&[("I", 1)], HERE), ["created 1"]);
        assert_eq!(
            told(&[("I", 1), ("U", 2), ("U", 3)], HERE),
            ["created 3+1+2"]
        );
        assert_eq!(told(&[("U", 1), ("U", 2)], HERE), ["updated 2+1"]);
        assert_eq!(told(&[("U", 1), ("D", 2)], None), ["gone 2+1"]);
    }

    #[test]
    fn a_row_that_is_replaced_is_updated_and_an_id_that_is_used_again_is_not() {
        assert_eq!(told(&[("D", 1), ("I", 1)], HERE), ["updated 2+1"]);
        assert_eq!(told(&[("D", 1), ("I", 2)], HERE), ["gone 1", "created 2"]);
        assert_eq!(
            told(
                &[("U", 1), ("D", 2), ("I", 3), ("D", 4), ("I", 5), ("U", 6)],
                HERE
            ),
            ["gone 4+1+2+3", "created 6+5"]
        );
        assert_eq!(
            told(&[("I", 1), ("D", 2), ("I", 2)], HERE),
            ["created 3+1+2"]
        );
        // What a service writes says nothing of statements.
        let mut notes = [note(1, "user.deleted", 1), note(2, "user.created", 1)];
        notes.iter_mut().for_each(|note| note.tx = None);
        let mut found = Found::from([("7".to_owned(), Ok(Vec::new()))]);
        let plan = plan(notes.into(), &mut found, &HashSet::new(), false);
        assert_eq!(shown(plan), ["gone 1", "created 2"]);
    }

    #[test]
    fn a_row_that_is_replaced_may_have_been_of_a_deleted_user() {
        let notes = [note(1, "D", 1), note(2, "I", 1), note(3, "U", 2)];
        let of = |marked| {
            let mut found = Found::from([("7".to_owned(), Ok(Vec::new()))]);
            shown(plan(notes.to_vec(), &mut found, &HashSet::new(), marked))
        };
        assert_eq!(of(true), ["created 3+1+2"]);
        assert_eq!(of(false), ["updated 3+1+2"]);
    }

    #[test]
    fn nobody_is_deleted_for_not_being_there() {
        assert_eq!(told(&[("U", 1)], None), ["silent 1"]);
        assert_eq!(told(&[("I", 1), ("U", 2)], None), ["silent 1", "silent 2"]);
        assert_eq!(told(&[("D", 1), ("I", 2)], None), ["gone 1", "silent 2"]);
    }

    #[test]
    fn nor_for_a_note_while_the_row_is_there() {
        // The row came back since, and its note is to be read with this one.
        assert_eq!(told(&[("D", 1)], HERE), ["held 1"]);
        assert_eq!(told(&[("U", 1), ("D", 2)], HERE), ["held 1", "held 2"]);
        // It was read again, and nobody says that it came.
        let again = planned(&[("U", 1), ("D", 2)], HERE, &HashSet::from([1, 2]));
        assert_eq!(shown(again), ["updated 2+1"]);
    }

    #[test]
    fn nor_for_a_deletion_that_the_server_ignored() {
        assert_eq!(told(&[("D", 1), ("U", 2)], HERE), ["updated 2+1"]);
        assert_eq!(
            told(&[("I", 1), ("D", 2), ("U", 3)], HERE),
            ["created 3+1+2"]
        );
        assert_eq!(told(&[("D", 1), ("U", 2)], None), ["gone 1", "silent 2"]);
    }

    #[test]
    fn a_row_that_cannot_be_read_is_one_failure() {
        let unreadable = Some(Err("no text"));
        assert_eq!(
            told(&[("U", 1), ("U", 2)], unreadable),
            ["silent 1", "failed 2: no text"]
        );
        // That the user came isn't forgotten.
        assert_eq!(
            told(&[("U", 1), ("D", 2), ("I", 3), ("U", 4)], unreadable),
            ["gone 2+1", "silent 4", "failed 3: no text"]
        );
        assert!(
            shown(planned(&[("X", 1)], HERE, &HashSet::new()))[0]
                .starts_with("failed 1: it has no payload")
        );
    }

    #[test]
    fn no_note_overtakes_an_earlier_payload_of_its_user() {
        let mut rows = vec![note(1, "U", 1), note(2, "user.updated", 2), note(3, "U", 3)];
        rows[1].payload = Some(Payload::TooLarge);
        let mut found = Found::from([("7".to_owned(), Ok(Vec::new()))]);
        let plan = plan(rows, &mut found, &HashSet::new(), false);
        assert_eq!(shown(plan), ["payload 2", "updated 3+1"]);
    }
}
