//! How the mapping in the settings fits the table that is there, or why it doesn't.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use usersync_core::{member::Member, user_id::UserId};

use crate::{Kind, Live, LiveColumn, SourceError, value::unpadded};

/// As many as one call of SQLite's JSON function takes.
const MAX_COLUMNS: usize = 45;

/// A table, in the schema of the connection unless it names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName {
    /// The schema, which MySQL calls a database.
    pub schema: Option<String>,
    /// The table.
    pub name: String,
}

impl TableName {
    /// Another table beside this one.
    pub(crate) fn beside(&self, name: &str) -> Self {
        Self {
            schema: self.schema.clone(),
            name: name.to_owned(),
        }
    }
}

impl FromStr for TableName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        let good = |name: &str| is_name(name);
        if !schema.is_none_or(good) || !good(name) || name.contains('.') {
            return Err("TABLE or SCHEMA.TABLE, each 1 to 63 bytes without control characters");
        }
        Ok(Self {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Whether every server takes it as the name of a table or column; 63 bytes is the shortest limit.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// A mapped column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: Kind,
    /// Its type in the server's own words.
    pub shown: String,
    /// Where its value goes.
    pub member: Member,
}

/// A mapping that fits the table.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The table.
    pub table: TableName,
    /// The column with the user's id.
    pub id: LiveColumn,
    /// The mapped columns, by member.
    pub columns: Vec<Column>,
    /// The column that is true where usersync has deleted the user: such a row is none (ADR 49).
    pub deleted: Option<LiveColumn>,
    /// What whoever installs the outbox should know: columns that are left out, changes that no trigger sees.
    pub remarks: Vec<String>,
}

impl Layout {
    /// Fits `columns` (column → member) to the table, and with them those that suggest themselves, but none `without`.
    ///
    /// # Errors
    /// [`SourceError::Refused`] with everything that is wrong, naming table and columns.
    pub fn fit(
        table: &TableName,
        id: &str,
        columns: &BTreeMap<String, Member>,
        without: &BTreeSet<String>,
        deleted: Option<&str>,
        all: bool,
        live: Option<&Live>,
    ) -> Result<Self, SourceError> {
        let refuse = |text: String| Err(SourceError::Refused(text));
        let Some(live) = live else {
            return refuse(format!(
                "there is no table `{table}` that this login can see; --table (setting `table`) names the table with the users"
            ));
        };
        if let Some(problem) = &live.problem {
            return refuse(format!("table `{table}`: {problem}"));
        }
        let known = || {
            let names = live.columns.iter().map(|column| column.name.as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let mut problems = Vec::new();
        let key = live.column(id);
        match key {
            None => problems.push(format!(
                "table `{table}` has no column `{id}` (the id) that this login can see; it has {}",
                known()
            )),
            Some(key) if !live.unique.contains(&key.name) => problems.push(format!(
                "column `{}` of `{table}` has no unique key of its own; the order of a user's changes rests on it, so add one: CREATE UNIQUE INDEX",
                key.name
            )),
            Some(key)
                if !matches!(key.kind, Kind::Integer | Kind::Text | Kind::Verbatim)
                    || key.shown.starts_with("bit") =>
            {
                problems.push(format!(
                    "column `{}` of `{table}` is {}, which can't be a user's id; expected an integer, a text or a UUID",
                    key.name, key.shown
                ));
            }
            Some(_) => {}
        }
        let mark = deleted_mark(&live.columns, deleted);
        if let (Some(name), None) = (deleted, &mark) {
            problems.push(format!(
                "table `{table}` has no column `{name}` (setting `deleted`) that this login can see and that is true or false"
            ));
        }
        let mut wanted: Vec<(String, Member)> = columns.clone().into_iter().collect();
        let left_out = |name: &str| without.iter().any(|out| out.eq_ignore_ascii_case(name));
        let free = |name: &str, member: &Member| {
            let taken = |(column, taken): (&String, &Member)| {
                column.eq_ignore_ascii_case(name) || taken.overlaps(member)
            };
            !left_out(name) && !columns.iter().any(taken)
        };
        let more = suggested(live, id).into_iter();
        wanted.extend(more.filter(|(name, member)| free(name, member)));
        let mut remarks = live.remarks.clone();
        if all {
            let is_mark = |name: &str| mark.as_ref().is_some_and(|mark| mark.name == name);
            let ours = |name: &str| is_mark(name) || (mark.is_some() && name == VERSION);
            let left_out = |name: &str| left_out(name) || ours(name);
            let (more, others) = further(live, id, &wanted, &left_out);
            wanted.extend(more);
            remarks.extend(others);
        }
        let mut fitted: Vec<Column> = Vec::new();
        for (name, member) in wanted {
            let Some(column) = live.column(&name) else {
                problems.push(format!(
                    "table `{table}` has no column `{name}` that this login can see; it has {}",
                    known()
                ));
                continue;
            };
            if column.kind == Kind::Unsupported {
                problems.push(format!(
                    "column `{0}` of `{table}` is {1}, which JSON can't hold; leave it out: {0}=",
                    column.name, column.shown
                ));
            }
            if column.kind == Kind::Veiled {
                problems.push(format!(
                    "column `{}` of `{table}` may be JSON or a text, which are read differently, and the server doesn't show this user \
                     which: GRANT SELECT ON the whole table, or GRANT SHOW VIEW ON its database",
                    column.name
                ));
            }
            if member.is_whole()
                && !matches!(column.kind, Kind::Json | Kind::Veiled | Kind::Unsupported)
            {
                problems.push(format!(
                    "column `{0}` of `{table}` is {1}, but `data` as a whole is an object of JSON; map it to a member: {0}=data.{0}",
                    column.name, column.shown
                ));
            }
            if let Some(other) = fitted.iter().find(|other| other.member.overlaps(&member)) {
                problems.push(format!(
                    "columns `{}` and `{}` can't both be mapped: `{}` and `{member}` are the same member, or one inside the other",
                    other.name, column.name, other.member
                ));
            }
            fitted.push(Column {
                name: column.name.clone(),
                kind: column.kind,
                shown: column.shown.clone(),
                member,
            });
        }
        if fitted.is_empty() && problems.is_empty() {
            problems.push(format!(
                "no column of `{table}` is mapped, and none suggests itself; name some: --column COLUMN=MEMBER (setting `columns`); it has {}",
                known()
            ));
        }
        if fitted.len() > MAX_COLUMNS {
            problems.push(format!(
                "expected at most {MAX_COLUMNS} columns of `{table}`"
            ));
        }
        let (Some(key), true) = (key, problems.is_empty()) else {
            return refuse(problems.join("; "));
        };
        fitted.sort_by(|one, two| one.member.cmp(&two.member));
        Ok(Self {
            table: TableName {
                schema: table.schema.clone().or_else(|| live.schema.clone()),
                name: table.name.clone(),
            },
            id: key.clone(),
            columns: fitted,
            deleted: mark,
            remarks,
        })
    }

    /// The table of the outbox.
    pub(crate) fn outbox(&self) -> TableName {
        self.table.beside(OUTBOX)
    }

    /// Whether the column of the id can hold `id`; some servers refuse to be asked for what it can't.
    pub fn can_hold(&self, id: &str) -> bool {
        // Servers read more spellings than they show, and would answer with another user.
        let is_number = matches!(id.parse(), Ok(UserId::Number(_)));
        match (self.id.kind, self.id.shown.as_str()) {
            (Kind::Integer, _) if !is_number => false,
            (Kind::Integer, "smallint") => id.parse::<i16>().is_ok(),
            (Kind::Integer, "integer") => id.parse::<i32>().is_ok(),
            (Kind::Integer, "bigint") => id.parse::<i64>().is_ok(),
            (Kind::Integer, _) => id.parse::<u64>().is_ok(),
            (_, "uuid") => is_uuid(id),
            _ => id.parse::<UserId>().is_ok(),
        }
    }

    /// An id as rows spell it, of one that an outbox has kept.
    pub fn spelled<'a>(&self, kept: &'a str) -> Cow<'a, str> {
        match self.id.kind {
            Kind::Integer => unpadded(kept),
            // Blanks behind a CHAR are none of its own, whatever the writer's session says.
            Kind::Text if self.id.shown.starts_with("char(") => kept.trim_end_matches(' ').into(),
            _ => kept.into(),
        }
    }

    /// The mapped members, sorted.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.columns.iter().map(|column| &column.member)
    }
}

/// Whether `id` is a UUID as servers show it: in its canonical spelling (RFC 9562).
fn is_uuid(id: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    id.len() == 36 && id.bytes().enumerate().all(fits)
}

/// What the columns of a target are called where its entry doesn't say.
const DELETED: &str = "sync_deleted";
const VERSION: &str = "sync_version";

/// The column that says that usersync has deleted a row's user: the one named, or the one that targets have.
pub(crate) fn deleted_mark(columns: &[LiveColumn], named: Option<&str>) -> Option<LiveColumn> {
    let column = |name: &str| columns.iter().find(|column| column.name == name);
    let mark = match named {
        Some(name) => column(name),
        None => column(VERSION).and_then(|_| column(DELETED)),
    };
    let decides = |column: &&LiveColumn| matches!(column.kind, Kind::Boolean | Kind::Integer);
    mark.filter(decides).cloned()
}

/// The name of every outbox.
pub(crate) const OUTBOX: &str = "user_outbox";
/// The name of the table that says which outbox it is.
pub(crate) const ABOUT: &str = "user_outbox_about";

/// Columns whose names say what they are.
fn suggested(live: &Live, id: &str) -> BTreeMap<String, Member> {
    let names = [
        ("username", Member::Username),
        ("email", Member::Email),
        ("status", Member::Status),
    ];
    let found = names.into_iter().filter_map(|(name, member)| {
        let column = live.column(name)?;
        // One of a type that can't be mapped is refused, not left out without a word.
        let is_id = column.name.eq_ignore_ascii_case(id);
        (!is_id).then(|| (column.name.clone(), member))
    });
    found.collect()
}

/// Every other column as `data.<column>`, but none that looks like a secret; and what is said of those that are left out.
fn further(
    live: &Live,
    id: &str,
    taken: &[(String, Member)],
    left_out: &dyn Fn(&str) -> bool,
) -> (Vec<(String, Member)>, Vec<String>) {
    let secret = |name: &str| {
        let name = name.to_ascii_lowercase();
        let parts = [
            "pass", "pwd", "secret", "token", "hash", "salt", "otp", "private",
        ];
        parts.iter().any(|part| name.contains(part))
    };
    let (mut found, mut remarks) = (Vec::new(), Vec::new());
    for LiveColumn { name, kind, shown } in &live.columns {
        let is_taken = |(taken, _): &(String, Member)| taken.eq_ignore_ascii_case(name);
        if name.eq_ignore_ascii_case(id) || taken.iter().any(is_taken) || left_out(name) {
            continue;
        }
        let why = match format!("data.{name}").parse::<Member>() {
            _ if *kind == Kind::Unsupported => format!("it is {shown}, which JSON can't hold"),
            _ if secret(name) => format!("it looks like a secret; {name}=data.{name} takes it"),
            Err(_) => format!("no member can have its name; {name}=data.<another> takes it"),
            Ok(member) => {
                found.push((name.clone(), member));
                continue;
            }
        };
        remarks.push(format!("column `{name}` is left out: {why}"));
    }
    (found, remarks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(columns: &[(&str, Kind)]) -> Live {
        let column = |(name, kind): &(&str, Kind)| LiveColumn {
            name: (*name).to_owned(),
            kind: *kind,
            shown: format!("{kind:?}").to_lowercase(),
        };
        Live {
            columns: columns.iter().map(column).collect(),
            unique: ["id".to_owned()].into(),
            ..Live::default()
        }
    }

    fn fit(
        live: Option<&Live>,
        id: &str,
        columns: &[(&str, &str)],
        all: bool,
    ) -> Result<Vec<String>, String> {
        let columns = columns
            .iter()
            .map(|(column, member)| ((*column).to_owned(), *member));
        let table = "users".parse().unwrap();
        let (columns, without): (Vec<_>, Vec<_>) =
            columns.partition(|(_, member)| !member.is_empty());
        let columns = columns
            .into_iter()
            .map(|(column, member)| (column, member.parse().unwrap()));
        let without = without.into_iter().map(|(column, _)| column);
        let without = without.collect();
        let layout = Layout::fit(&table, id, &columns.collect(), &without, None, all, live);
        let shown = |column: &Column| format!("{}={}", column.name, column.member);
        match layout {
            Ok(layout) => Ok(layout.columns.iter().map(shown).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn columns_that_suggest_themselves_are_taken_and_secrets_never() {
        let live = live(&[
            ("id", Kind::Integer),
            ("Email", Kind::Text),
            ("username", Kind::Text),
            ("password_hash", Kind::Text),
            ("phone", Kind::Text),
            ("photo", Kind::Unsupported),
        ]);
        let few = fit(Some(&live), "id", &[], false).unwrap();
        assert_eq!(few, ["username=username", "Email=email"]);
        let all = fit(Some(&live), "id", &[], true).unwrap();
        assert_eq!(
            all,
            ["username=username", "Email=email", "phone=data.phone"]
        );
        // Naming a column adds to them, and takes their place where it says the same.
        let named = [("password_hash", "data.password_hash")];
        let named = fit(Some(&live), "id", &named, false).unwrap();
        assert_eq!(
            named,
            [
                "username=username",
                "Email=email",
                "password_hash=data.password_hash"
            ]
        );
        let instead = [("phone", "username"), ("email", "")];
        let instead = fit(Some(&live), "id", &instead, false).unwrap();
        assert_eq!(instead, ["phone=username"]);
        let elsewhere = fit(Some(&live), "id", &[("Email", "data.mail")], false).unwrap();
        assert_eq!(elsewhere, ["username=username", "Email=data.mail"]);
    }

    #[test]
    fn everything_that_does_not_fit_is_named() {
        let live = live(&[
            ("id", Kind::Integer),
            ("email", Kind::Text),
            ("photo", Kind::Unsupported),
            ("extra", Kind::Json),
        ]);
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
        let rows: [Case<'_>; 7] = [
            (
                "uid",
                &[("email", "email")],
                "no column `uid` (the id) that this login can see; it has id, email",
            ),
            (
                "email",
                &[("id", "data.n")],
                "column `email` of `users` has no unique key",
            ),
            (
                "id",
                &[("mail", "email")],
                "table `users` has no column `mail`",
            ),
            (
                "id",
                &[("photo", "data.photo")],
                "column `photo` of `users` is unsupported",
            ),
            (
                "id",
                &[("email", "data")],
                "column `email` of `users` is text, but `data` as a whole is an object of JSON; map it to a member: email=data.email",
            ),
            (
                "id",
                &[("extra", "data"), ("email", "data.mail")],
                "one inside the other",
            ),
            (
                "id",
                &[("extra", "data.a"), ("email", "data.a")],
                "are the same member",
            ),
        ];
        for (id, columns, expected) in rows {
            let error = fit(Some(&live), id, columns, false).unwrap_err();
            assert!(error.contains(expected), "{columns:?}: {error}");
        }
        assert!(
            fit(None, "id", &[], false)
                .unwrap_err()
                .contains("there is no table `users`")
        );
    }

    #[test]
    fn a_column_is_asked_only_for_ids_it_can_hold() {
        let rows = [
            (Kind::Integer, "integer", "7", true),
            (Kind::Integer, "integer", "3000000000", false),
            (Kind::Integer, "bigint", "ann", false),
            (
                Kind::Integer,
                "bigint unsigned",
                "18446744073709551615",
                true,
            ),
            (Kind::Integer, "bigint", "+7", false),
            (Kind::Integer, "integer", "007", false),
            (Kind::Text, "text", "ann", true),
            (
                Kind::Verbatim,
                "uuid",
                "0198F2A4-6B7C-7D00-8000-0123456789AB",
                false,
            ),
            (
                Kind::Verbatim,
                "uuid",
                "0198f2a46b7c7d0080000123456789ab",
                false,
            ),
            (Kind::Verbatim, "uuid", "ann", false),
            (
                Kind::Verbatim,
                "uuid",
                "0198f2a4-6b7c-7d00-8000-0123456789ab",
                true,
            ),
        ];
        for (kind, shown, id, expected) in rows {
            let layout = Layout {
                table: "users".parse().unwrap(),
                id: LiveColumn {
                    name: "id".to_owned(),
                    kind,
                    shown: shown.to_owned(),
                },
                columns: Vec::new(),
                deleted: None,
                remarks: Vec::new(),
            };
            assert_eq!(layout.can_hold(id), expected, "{id} in {shown}");
        }
    }

    #[test]
    fn a_table_may_name_its_schema() {
        let table: TableName = "app.users".parse().unwrap();
        assert_eq!(
            (table.schema.as_deref(), table.name.as_str()),
            (Some("app"), "users")
        );
        for text in ["", ".users", "app.", "a.b.c", "us\ners"] {
            assert!(text.parse::<TableName>().is_err(), "{text:?}");
        }
    }
}
