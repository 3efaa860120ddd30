//! What PostgreSQL's errors mean for the users of a batch.

use sqlx::postgres::PgDatabaseError;

use super::SERVER;
use crate::{
    Failure,
    layout::Layout,
    sql::broken,
    trouble::{Blame, Trouble},
};

/// What is said of a server that takes nothing.
pub(super) const READ_ONLY: &str =
    "the server is read-only: it is a standby, or set so; the url has to lead to the primary";

/// What triggers of an outbox say to a session that knows nothing of them, for it was made a moment ago.
const UNSEEN: &str = "42U99";

/// What went wrong, by its code: message and detail may hold values.
pub(super) fn trouble(error: sqlx::Error) -> Trouble {
    let Some(error) = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
    else {
        return broken(&error, SERVER);
    };
    // A policy for rows refuses this row, where the right to the table is refused by another one.
    let policy = error.code() == "42501" && error.routine() == Some("ExecWithCheckOptions");
    let blame = if policy {
        Blame::Row
    } else {
        by_routine(error.routine()).unwrap_or_else(|| blame(error.code()))
    };
    let what = match blame {
        Blame::Row if policy => "a policy for rows (row-level security) keeps the user out",
        Blame::Row => "the user doesn't fit the table",
        Blame::Conflict => "another user's row has a value that must be unique",
        Blame::Collision => "a deadlock",
        Blame::Busy => "the server is busy",
        Blame::Server
            if matches!(error.code(), "28000" | "28P01")
                || error.code() == "08P01" && error.message().contains("authentication") =>
        {
            "it doesn't let us in: look at the user in the url, at `secret` and, where it asks for a certificate, at `tls.cert`"
        }
        Blame::Server if error.code() == "3D000" => {
            "there is no such database: look at the end of the url"
        }
        Blame::Server if error.code() == "53100" => "it has no room left on its disk",
        Blame::Server if error.code().starts_with("5400") => {
            "it has run out of transaction ids and takes nothing until it is vacuumed"
        }
        Blame::Server => "the server can't be used",
        Blame::Demoted => READ_ONLY,
        Blame::Table if error.code() == UNSEEN => {
            "the table has an outbox that isn't looked at, so that what the application has changed could be written over"
        }
        Blame::Table => "the table isn't as it was",
    };
    let mut reason = format!("{SERVER}: {what} ({})", error.code());
    // Names only: message and detail quote values.
    for (label, name) in [
        ("column", error.column()),
        ("constraint", error.constraint()),
    ] {
        if let Some(name) = name {
            reason = format!("{reason}, {label} `{name}`");
        }
    }
    // What a pooler or the protocol has to say is about no user.
    if error.code().starts_with("08") || matches!(error.code(), "0A000") {
        reason = format!("{reason}: {}", error.message());
    }
    Trouble {
        blame,
        failure: Failure {
            code: Some(error.code().to_owned().into()),
            ..Failure::new(reason)
        },
        foreign: false,
        lost: matches!(blame, Blame::Server | Blame::Demoted | Blame::Table),
    }
}

/// The same; of a column that nobody mapped it isn't the user's fault if it has to have a value.
pub(super) fn row_trouble(error: sqlx::Error, layout: &Layout) -> Trouble {
    let column = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .filter(|error| error.code() == "23502")
        .and_then(|error| error.column().map(str::to_owned));
    let mut trouble = trouble(error);
    trouble.foreign = column.is_some_and(|column| !layout.writes(&column));
    trouble
}

/// What a code of many meanings says of the server or the table, by where in the server it comes from: its words are in the
/// server's language.
fn by_routine(routine: Option<&str>) -> Option<Blame> {
    match routine? {
        "GetNewTransactionId" | "GetNewMultiXactId" => Some(Blame::Server),
        // An update that a publication can't tell of.
        "CheckCmdReplicaIdentity" => Some(Blame::Table),
        _ => None,
    }
}

/// The table of docs/TARGETS.md, "PostgreSQL".
fn blame(code: &str) -> Blame {
    match code {
        "23505" | "23P01" => Blame::Conflict,
        "40001" | "40P01" => Blame::Collision,
        // Read-only since a failover.
        "25006" => Blame::Demoted,
        "55P03" | "57014" => Blame::Busy,
        "42501" | "53100" => Blame::Server,
        "54000" | "P0001" => Blame::Row,
        _ => match code.get(..2).unwrap_or_default() {
            "22" | "23" | "44" => Blame::Row,
            "08" | "28" | "3D" | "57" => Blame::Server,
            "0A" | "3F" | "42" => Blame::Table,
            _ => Blame::Busy,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_code_alone_does_not_tell_is_told_by_its_place() {
        assert_eq!(by_routine(Some("GetNewTransactionId")), Some(Blame::Server));
        assert_eq!(
            by_routine(Some("CheckCmdReplicaIdentity")),
            Some(Blame::Table)
        );
        for other in [None, Some("currval_oid")] {
            assert_eq!(by_routine(other), None);
        }
    }

    #[test]
    fn errors_are_classified_as_documented() {
        let rows = [
            ("23505", Blame::Conflict),
            ("22001", Blame::Row),
            ("22P02", Blame::Row),
            ("23514", Blame::Row),
            ("40P01", Blame::Collision),
            ("55P03", Blame::Busy),
            ("53300", Blame::Busy),
            ("53100", Blame::Server),
            ("25006", Blame::Demoted),
            ("28P01", Blame::Server),
            ("42501", Blame::Server),
            ("57P01", Blame::Server),
            ("42P01", Blame::Table),
        ];
        for (code, expected) in rows {
            assert_eq!(blame(code), expected, "{code}");
        }
    }
}
