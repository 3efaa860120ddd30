//! How a target's columns are mapped onto the table that is really there, or why they can't be.

use std::collections::BTreeSet;

use usersync_core::{event::Change, target::Table, user_id::UserId};
use usersync_digest::Stored;

use crate::{Action, Delivery, cell::Kind, table::told, unique::Keys};

/// A column as the server describes it.
#[derive(Clone, Debug)]
pub(crate) struct LiveColumn {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// What it is to a digest.
    pub(crate) stored: Stored,
    /// The type in the server's own words.
    pub(crate) shown: String,
    /// The type to read a text as, where the server wants to be told.
    pub(crate) cast: String,
    pub(crate) nullable: bool,
    /// The server fills it when it isn't told.
    pub(crate) defaulted: bool,
    /// The server computes it: nobody may write it.
    pub(crate) generated: bool,
    /// What ids it keeps apart; `None` where it may take two of them for one.
    pub(crate) ids: Option<Ids>,
}

/// The ids that a column keeps, each as it is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Texts that differ in anything are different there.
    Texts,
    /// Integers from 0 to this one.
    Numbers { most: u64 },
    /// UUIDs. The server takes them in many spellings and shows them in one.
    Uuids,
    /// The 16 octets of UUIDs, where the entry says that they are that.
    Octets,
}

impl Ids {
    /// Whether the column shows `id` as it is; else what it holds.
    pub(crate) fn fit(self, id: &UserId) -> Result<(), String> {
        match (self, id) {
            (Self::Texts, _) => Ok(()),
            (Self::Numbers { most }, UserId::Number(number)) if *number <= most => Ok(()),
            (Self::Numbers { most }, _) => Err(format!(
                "holds integers, and the user's id is none from 0 to {most}"
            )),
            (Self::Uuids | Self::Octets, UserId::Text(text)) if is_uuid(text) => Ok(()),
            (Self::Uuids | Self::Octets, _) => Err(
                "holds UUIDs, and the user's id is none in the spelling of the server, which is lower case with four hyphens: \
                 0198c0de-0000-7000-8000-000000000000"
                    .to_owned(),
            ),
        }
    }
}

/// Whether `text` is a UUID in its canonical spelling (RFC 9562).
fn is_uuid(text: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    text.len() == 36 && text.bytes().enumerate().all(fits)
}

/// A table as the server describes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    pub(crate) columns: Vec<LiveColumn>,
    /// The columns with a unique key of their own.
    pub(crate) unique: BTreeSet<String>,
    /// All its unique keys.
    pub(crate) keys: Keys,
    /// It makes up values of its own for a column that isn't the id.
    pub(crate) numbers_itself: bool,
    /// It has triggers that may change what is written, as far as we may see them.
    pub(crate) altered: bool,
    /// The outbox that its changes are noted in, as a statement names it.
    pub(crate) outbox: Option<String>,
    /// We may not read it.
    pub(crate) outbox_is_hidden: bool,
}

/// A mapping that fits the table.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) table: Table,
    pub(crate) name: String,
    /// What the column of the id holds.
    pub(crate) ids: Ids,
    pub(crate) id_cast: String,
    pub(crate) columns: Vec<Column>,
    /// The unique keys that what is written here has a part in.
    pub(crate) keys: Keys,
    pub(crate) numbers_itself: bool,
    /// It has triggers that may change what is written, so that it has to be read back.
    pub(crate) altered: bool,
    /// The outbox that its changes are noted in, as a statement names it.
    pub(crate) outbox: Option<String>,
}

/// A column and what is written to it.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// The member, as a dotted path.
    pub(crate) path: String,
    pub(crate) kind: Kind,
    /// What it is to a digest.
    pub(crate) stored: Stored,
    pub(crate) cast: String,
    pub(crate) nullable: bool,
    /// It shows zeros before its numbers, as ZEROFILL of MySQL does; an expression of it doesn't.
    pub(crate) zerofill: bool,
}

/// What a column is told: nothing, that it is empty, or a text that the server reads as its type.
pub(crate) type Cell = Option<Option<String>>;

/// One user on the way into the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Which delivery of the batch it is.
    pub(crate) index: usize,
    pub(crate) id: String,
    pub(crate) version: i64,
    pub(crate) deleted: bool,
    /// JSON is merged into what is there instead of replacing it: nobody knows the rest of this user.
    pub(crate) merged: bool,
    /// One for each column of the layout.
    pub(crate) cells: Vec<Cell>,
}

/// What a statement for a row has to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    /// See [`Row::merged`].
    pub(crate) merged: bool,
    /// Which columns are told something.
    told: Vec<bool>,
}

impl Layout {
    /// Whether anything is ever written to this column.
    pub(crate) fn writes(&self, column: &str) -> bool {
        let Table {
            id,
            version,
            deleted,
            ..
        } = &self.table;
        [id, version, deleted].iter().any(|ours| *ours == column)
            || self.columns.iter().any(|mapped| mapped.name == column)
    }

    /// The columns that rows of `shape` tell something, in order.
    pub(crate) fn told(&self, shape: &Shape) -> Vec<&Column> {
        let columns = self.columns.iter().zip(&shape.told);
        columns
            .filter(|(_, told)| **told)
            .map(|(column, _)| column)
            .collect()
    }

    /// Maps `table` onto `live`; `deletes` when users are ever deleted there.
    ///
    /// # Errors
    /// What doesn't fit: one sentence per problem, naming the column, what was found and what is expected.
    pub(crate) fn of(
        table: &Table,
        name: &str,
        live: &Live,
        deletes: bool,
    ) -> Result<Self, String> {
        let mut problems = Vec::new();
        if let (Some(outbox), true) = (&live.outbox, live.outbox_is_hidden) {
            problems.push(format!(
                "the table has an outbox that this login may not read, so that what the application has changed could be written over; \
                 GRANT SELECT ON {outbox} to it"
            ));
        }
        let find = |name: &str| live.columns.iter().find(|column| column.name == name);
        let missing =
            |name: &str, expected: &str| format!("column `{name}` is missing; expected {expected}");
        let wrong = |column: &LiveColumn, expected: &str| {
            let LiveColumn { name, shown, .. } = column;
            format!("column `{name}` is {shown}; expected {expected}")
        };

        let ids = match table.binary_uuid {
            true => "binary(16), for `table.binary_uuid` is set",
            false => {
                "a text that compares byte by byte, an integer, or a UUID (binary(16) with `table.binary_uuid = true`)"
            }
        };
        let id = find(&table.id);
        match id {
            None => problems.push(missing(&table.id, ids)),
            Some(id) => {
                let octets = id.ids == Some(Ids::Octets);
                if id.ids.is_none() || octets != table.binary_uuid {
                    problems.push(wrong(id, ids));
                }
                if !live.unique.contains(&table.id) {
                    problems.push(format!(
                        "column `{}` has no unique key of its own; expected a primary or a unique key",
                        table.id
                    ));
                }
            }
        }
        match find(&table.version) {
            None => problems.push(missing(&table.version, "bigint")),
            Some(version) if !version.shown.starts_with("bigint") => {
                problems.push(wrong(version, "bigint"));
            }
            Some(_) => {}
        }
        match find(&table.deleted) {
            None => problems.push(missing(&table.deleted, "boolean")),
            Some(deleted)
                if !deleted.shown.starts_with("boolean")
                    && !deleted.shown.starts_with("tinyint") =>
            {
                problems.push(wrong(deleted, "boolean"));
            }
            Some(_) => {}
        }
        let mut columns = Vec::new();
        for (name, path) in &table.columns {
            let (kinds, expected): (&[Kind], _) = match path.as_str() {
                "username" | "email" | "status" => (&[Kind::Text, Kind::Verbatim], "a text"),
                "data" => (&[Kind::Json, Kind::Text], "JSON or a text"),
                _ => (&[], "a text, a number, a boolean, a time or JSON"),
            };
            let Some(column) = find(name) else {
                problems.push(missing(name, expected));
                continue;
            };
            let suits =
                kinds.contains(&column.kind) || (kinds.is_empty() && column.kind != Kind::Other);
            if !suits {
                problems.push(format!(
                    "{}, for it holds `{path}`",
                    wrong(column, expected)
                ));
            } else if column.generated {
                problems.push(format!(
                    "column `{name}` is computed by the server; expected one that can be written"
                ));
            } else if deletes && !column.nullable {
                problems.push(format!(
                    "column `{name}` is {} NOT NULL; expected one that can be NULL, for a deleted user's row stays \
                     without data (or set on_delete to disable or ignore)",
                    column.shown
                ));
            }
            // A text column takes the whole of `data` as JSON too.
            let (kind, stored) = match path == "data" {
                true => (Kind::Json, Stored::Json),
                false => (column.kind, column.stored),
            };
            columns.push(Column {
                name: name.clone(),
                path: path.clone(),
                kind,
                stored,
                cast: column.cast.clone(),
                nullable: column.nullable,
                zerofill: column.shown.contains("zerofill"),
            });
        }
        let ours = |column: &LiveColumn| {
            [&table.id, &table.version, &table.deleted].contains(&&column.name)
                || table.columns.contains_key(&column.name)
        };
        for column in &live.columns {
            if !column.nullable && !column.defaulted && !ours(column) {
                problems.push(format!(
                    "column `{}` is {} NOT NULL without a default and nothing is mapped to it; expected a default",
                    column.name, column.shown
                ));
            }
        }
        if !problems.is_empty() {
            return Err(format!("table `{name}`: {}", problems.join("; ")));
        }
        let written = columns.iter().map(|column| column.name.as_str());
        let written = written.chain([table.deleted.as_str(), table.version.as_str()]);
        let keys = live.keys.clone().about(written);
        Ok(Self {
            table: table.clone(),
            name: name.to_owned(),
            ids: id.and_then(|id| id.ids).unwrap_or(Ids::Texts),
            id_cast: id.map(|id| id.cast.clone()).unwrap_or_default(),
            columns,
            keys,
            numbers_itself: live.numbers_itself,
            altered: live.altered,
            outbox: live.outbox.clone(),
        })
    }

    /// What `delivery` writes.
    ///
    /// # Errors
    /// What this very user can't be written for: names the column and what it holds, never the value.
    pub(crate) fn row(&self, index: usize, delivery: &Delivery) -> Result<Row, String> {
        let id = &delivery.user_id;
        let fits = self.ids.fit(id);
        fits.map_err(|why| format!("column `{}` {why}", self.table.id))?;
        let version = i64::try_from(delivery.version)
            .map_err(|_| format!("column `{}` can't hold the version", self.table.version))?;
        let cell = |column: &Column| self.cell(column, delivery);
        Ok(Row {
            index,
            id: id.to_string(),
            version,
            deleted: delivery.action == Action::Delete,
            merged: delivery.partial && delivery.action != Action::Delete,
            cells: self.columns.iter().map(cell).collect::<Result<_, _>>()?,
        })
    }

    fn cell(&self, column: &Column, delivery: &Delivery) -> Result<Cell, String> {
        let value = match delivery.action {
            Action::Delete => return Ok(Some(None)),
            Action::Disable | Action::Upsert => told(delivery, &column.path),
        };
        match value {
            Change::Keep => Ok(None),
            Change::Clear => Ok(Some(None)),
            Change::Set(value) => {
                let text = column.kind.text_of(&value).map_err(|expected| {
                    format!(
                        "column `{}` takes {expected}, and `{}` is none",
                        column.name, column.path
                    )
                })?;
                Ok(Some(Some(text)))
            }
        }
    }
}

impl Row {
    /// The same user as a deleted one.
    pub(crate) fn buried(&self) -> Self {
        Self {
            deleted: true,
            merged: false,
            cells: vec![Some(None); self.cells.len()],
            ..self.clone()
        }
    }

    /// About as many bytes as it takes on the way.
    pub(crate) fn size(&self) -> usize {
        let cells = self.told().map(|text| text.map_or(0, str::len));
        cells.sum::<usize>() + self.id.len() + 32
    }

    /// What is told, in the order of [`Layout::told`].
    pub(crate) fn told(&self) -> impl Iterator<Item = Option<&str>> {
        self.cells.iter().flatten().map(Option::as_deref)
    }

    /// Rows of one shape can share a statement.
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            merged: self.merged,
            told: self.cells.iter().map(Option::is_some).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_takes_the_ids_that_it_shows_as_they_are() {
        let uuid = "0198c0de-0000-7000-8000-00000000abcd";
        let (upper, bare) = (uuid.to_ascii_uppercase(), uuid.replace('-', ""));
        let (braced, small) = (format!("{{{uuid}}}"), Ids::Numbers { most: 32_767 });
        let most = Ids::Numbers { most: u64::MAX };
        for (ids, id, fits) in [
            (Ids::Uuids, uuid, true),
            (Ids::Uuids, &upper, false),
            (Ids::Uuids, &bare, false),
            (Ids::Uuids, &braced, false),
            (Ids::Uuids, "42", false),
            (Ids::Octets, uuid, true),
            (Ids::Octets, &upper, false),
            (Ids::Octets, "42", false),
            (small, "32767", true),
            (small, "32768", false),
            (small, "042", false),
            (small, "+42", false),
            (small, "-1", false),
            (most, "18446744073709551615", true),
            (most, "18446744073709551616", false),
            (Ids::Texts, "042", true),
            (Ids::Texts, &upper, true),
        ] {
            assert_eq!(
                ids.fit(&id.parse().unwrap()).is_ok(),
                fits,
                "{id} in {ids:?}"
            );
        }
    }
}
