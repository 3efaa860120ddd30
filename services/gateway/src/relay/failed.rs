//! Notes that failed: a user's next note takes them with it. Alone it would tell of an update where the user came, and a
//! note that is put back by hand counts for nothing once a later one is published.

use std::collections::{HashMap, HashSet};

use usersync_source::{Database, Layout, OutboxRow, SourceError};

/// Those of a source, by user.
#[derive(Default)]
pub(super) struct Failed {
    notes: HashMap<String, Vec<OutboxRow>>,
}

impl Failed {
    /// All that the outbox has.
    pub(super) async fn read(
        database: &mut Database,
        layout: &Layout,
    ) -> Result<Self, SourceError> {
        let mut failed = Self::default();
        failed.add(database, layout, i64::MIN).await?;
        Ok(failed)
    }

    /// Those that failed since, `first` and those with higher ids.
    pub(super) async fn add(
        &mut self,
        database: &mut Database,
        layout: &Layout,
        first: i64,
    ) -> Result<(), SourceError> {
        let notes = database.failed_notes(first.saturating_sub(1)).await?;
        // What says nothing fails once.
        let notes = notes.into_iter().filter(|note| note.change().is_some());
        for mut note in notes {
            note.user = layout.spelled(&note.user).into_owned();
            let notes = self.notes.entry(note.user.clone()).or_default();
            if notes.iter().all(|known| known.id != note.id) {
                notes.push(note);
            }
        }
        Ok(())
    }

    /// Puts those of users who have notes among `rows` with them, in the order of their ids; says whether there are any.
    pub(super) fn join(&mut self, rows: &mut Vec<OutboxRow>) -> bool {
        if self.notes.is_empty() {
            return false;
        }
        let ids: HashSet<i64> = rows.iter().map(|row| row.id).collect();
        let noted = rows.iter().filter(|row| row.payload.is_none());
        let mut joining = Vec::new();
        for row in noted {
            joining.extend(self.notes.remove(&row.user).unwrap_or_default());
        }
        // Somebody may have put one back.
        joining.retain(|note| !ids.contains(&note.id));
        let joins = !joining.is_empty();
        rows.append(&mut joining);
        rows.sort_unstable_by_key(|row| row.id);
        joins
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usersync_source::Payload;

    fn row(id: i64, user: &str, payload: Option<Payload>) -> OutboxRow {
        OutboxRow {
            id,
            user: user.to_owned(),
            event: "I".to_owned(),
            payload,
            previous: None,
            created_us: 0,
            tx: None,
        }
    }

    #[test]
    fn a_users_next_note_takes_the_failed_ones_with_it() {
        let mut failed = Failed::default();
        for note in [row(3, "7", None), row(4, "8", None), row(5, "7", None)] {
            let notes = failed.notes.entry(note.user.clone()).or_default();
            notes.push(note);
        }
        let ids = |rows: &[OutboxRow]| rows.iter().map(|row| row.id).collect::<Vec<_>>();
        let mut rows = vec![row(6, "9", None), row(7, "8", Some(Payload::TooLarge))];
        assert!(!failed.join(&mut rows), "a payload is no note");
        // One of them was put back.
        let mut rows = vec![row(5, "7", None), row(6, "9", None), row(8, "7", None)];
        assert!(failed.join(&mut rows));
        assert_eq!(ids(&rows), [3, 5, 6, 8]);
        assert!(!failed.join(&mut rows), "they are taken");
    }
}
