//! What MySQL's errors mean for the users of a batch.

use sqlx::mysql::MySqlDatabaseError;

use super::SERVER;
use crate::{
    Failure,
    layout::Layout,
    sql::broken,
    trouble::{Blame, Trouble},
};

/// What is said of a server that takes nothing.
pub(super) const READ_ONLY: &str =
    "the server is read-only: it is a replica, or set so; the url has to lead to the primary";

/// What triggers of an outbox say to a session that knows nothing of them; no user is to blame.
const UNSEEN: &str = "42S99";
/// What to do then.
const HIDDEN: &str = "the table has an outbox that this login doesn't see, so that what the application has changed could be written over; \
     GRANT SELECT ON user_outbox and TRIGGER ON the table to it";

/// What to do when MySQL wants the password and nothing hides it on the way.
const SHA2: &str = "the user's password is checked by caching_sha2_password (or sha256_password), which takes it over TLS only, and \
     this connection has none: set `tls = { ca = \"file:PATH\" }`, or take `ssl-mode=disabled` out of the url";

/// What went wrong, by its number: the server's message may hold values.
pub(super) fn trouble(error: sqlx::Error) -> Trouble {
    let Some(error) = database(&error) else {
        // sqlx would need another crate to encrypt a password itself.
        return match &error {
            sqlx::Error::Configuration(said) if said.to_string().contains("RSA") => {
                Trouble::unreachable(Failure::new(format!("{SERVER}: {SHA2}")))
            }
            error => broken(error, SERVER),
        };
    };
    let blame = blame(error.number(), error.code());
    if let (1142 | 1143, Some(commands)) = (error.number(), denied(error.message())) {
        let said = format!(
            "{SERVER}: the user in the url may not do {commands} there: GRANT it (docs/TARGETS.md) (error {})",
            error.number()
        );
        return Trouble::unreachable(Failure {
            code: error.code().map(|code| code.to_owned().into()),
            ..Failure::new(said)
        });
    }
    let reason = match blame {
        Blame::Row => "the user doesn't fit the table",
        Blame::Conflict => "another user's row has a value that must be unique",
        Blame::Collision => "a deadlock",
        Blame::Busy => "the server is busy",
        Blame::Server if matches!(error.number(), 1045 | 1698) => {
            "it doesn't let us in: look at the user in the url, at `secret` and, where it asks for a certificate, at `tls.cert`"
        }
        Blame::Server if matches!(error.number(), 1044 | 1049) => {
            "there is no such database, or the user in the url may not use it: look at the end of the url"
        }
        Blame::Server => "the server can't be used",
        Blame::Demoted => READ_ONLY,
        Blame::Table if error.code() == Some(UNSEEN) => HIDDEN,
        Blame::Table => "the table isn't as it was",
    };
    Trouble {
        blame,
        failure: Failure {
            code: error.code().map(|code| code.to_owned().into()),
            ..Failure::new(format!("{SERVER}: {reason} (error {})", error.number()))
        },
        foreign: false,
        lost: matches!(blame, Blame::Server | Blame::Demoted),
    }
}

/// The commands that the server says we may not use: `INSERT, UPDATE` in `INSERT, UPDATE command denied to user …`.
fn denied(said: &str) -> Option<&str> {
    let (commands, _) = said.split_once(" command denied")?;
    let is_one = |letter: char| letter.is_ascii_uppercase() || matches!(letter, ' ' | ',');
    (commands.len() <= 64 && commands.chars().all(is_one)).then_some(commands)
}

/// The same with the name of the column, where the server tells it behind the value.
pub(super) fn row_trouble(error: sqlx::Error, layout: &Layout) -> Trouble {
    let message = database(&error)
        .map(|error| error.message().to_owned())
        .unwrap_or_default();
    let number = database(&error).map(MySqlDatabaseError::number);
    let mut trouble = trouble(error);
    // The message ends with the column, or the key; only a name we know is repeated, never a value.
    let named = |name: &&str| message.rsplit(['\'', '`', '.']).any(|part| part == *name);
    let column = layout
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .find(named);
    // Column 'x' cannot be null. Field 'x' doesn't have a default value. Unknown column 'x'.
    let named_first = message.split('\'').nth(1).unwrap_or_default();
    trouble.foreign = number == Some(1048) && !layout.writes(named_first);
    if trouble.foreign || matches!(number, Some(1054 | 1364)) {
        return trouble.at(named_first);
    }
    if let (Blame::Row | Blame::Conflict, Some(column)) = (trouble.blame, column) {
        trouble.failure.reason = format!("{}, column `{column}`", trouble.failure.reason).into();
    }
    trouble
}

fn database(error: &sqlx::Error) -> Option<&MySqlDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

/// The table of docs/TARGETS.md, "MySQL and MariaDB".
fn blame(number: u16, state: Option<&str>) -> Blame {
    let class = state.and_then(|state| state.get(..2)).unwrap_or_default();
    match number {
        1022 | 1062 | 1169 | 1586 | 1859 => Blame::Conflict,
        1205 => Blame::Busy,
        1213 | 1020 => Blame::Collision,
        // Read-only since a failover, in each of the ways there are; offline.
        1036 | 1290 | 1792 | 1836 | 1874 | 1881 | 3032 => Blame::Demoted,
        // Too many connections; interrupted.
        1040 | 1203 | 1226 | 1317 | 1969 | 3024 => Blame::Busy,
        // Triggers of an outbox that we know nothing of.
        1644 if state == Some(UNSEEN) => Blame::Table,
        // The columns, their number, their defaults.
        1054 | 1136 | 1146 | 1364 => Blame::Table,
        // No room; not let in; on its way down.
        1021 | 1114 | 1044 | 1045 | 1049 | 1053 | 1129 | 1130 | 1142 | 1143 | 1193 | 1227
        | 1251 | 1698 | 1820 | 1862 | 1927 | 3118 | 3159 | 4151 => Blame::Server,
        1048 | 1153 | 1264 | 1265 | 1292 | 1366 | 1406 | 1452 | 3140 | 3819 | 4025 => Blame::Row,
        _ if matches!(class, "22" | "23" | "44" | "45") => Blame::Row,
        _ if matches!(class, "08" | "28") => Blame::Server,
        _ if class == "42" => Blame::Table,
        _ if class == "40" => Blame::Collision,
        _ => Blame::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_as_documented() {
        let rows = [
            (1062, "23000", Blame::Conflict),
            (1406, "22001", Blame::Row),
            (4025, "23000", Blame::Row),
            (1644, "45000", Blame::Row),
            (1644, UNSEEN, Blame::Table),
            (1213, "40001", Blame::Collision),
            (1205, "HY000", Blame::Busy),
            (1040, "08004", Blame::Busy),
            (1290, "HY000", Blame::Demoted),
            (1036, "HY000", Blame::Demoted),
            (1874, "HY000", Blame::Demoted),
            (1881, "HY000", Blame::Demoted),
            (3032, "HY000", Blame::Demoted),
            (1114, "HY000", Blame::Server),
            (1129, "HY000", Blame::Server),
            (1820, "HY000", Blame::Server),
            (1045, "28000", Blame::Server),
            (1049, "42000", Blame::Server),
            (1054, "42S22", Blame::Table),
            (1146, "42S02", Blame::Table),
        ];
        for (number, state, expected) in rows {
            assert_eq!(blame(number, Some(state)), expected, "{number}");
        }
    }
}
