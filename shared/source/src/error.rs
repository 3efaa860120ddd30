//! Why the main database can't be used, in words for whoever runs it.

use usersync_core::tls;

use crate::layout::OUTBOX;

/// What went wrong with a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The settings can't work.
    #[error("{0}")]
    Config(String),
    /// The server can't be reached, refuses us, or broke off: trying again later may help.
    #[error("{0}")]
    Unavailable(String),
    /// A value of a row can't be read; other rows can.
    #[error("{0}")]
    Value(String),
    /// Something in the database isn't as it must be; says what to do.
    #[error("{0}")]
    Refused(String),
}

impl SourceError {
    /// What `doing` came to. An error of sqlx quotes no row: statements here carry ids and names only.
    pub(crate) fn of(doing: &str, error: &sqlx::Error) -> Self {
        if let sqlx::Error::Database(answer) = error {
            // No such table, in the words of each server.
            let missing = matches!(answer.code().as_deref(), Some("42S02" | "42P01"))
                || answer.message().starts_with("no such table");
            if missing && answer.message().contains(OUTBOX) {
                return Self::Refused(format!(
                    "there is no table {OUTBOX}; make it with `usersync-scheduler outbox install`"
                ));
            }
        }
        if let sqlx::Error::Database(answer) = error
            && answer.message().contains("row-level security policy")
        {
            return Self::Refused(format!(
                "{doing}: policies (row-level security) hide rows from this user, who has to see all: ALTER ROLE … BYPASSRLS \
                 ({})",
                answer.message()
            ));
        }
        let text = match error {
            sqlx::Error::Tls(said) if said.to_string().contains("does not support") => {
                format!("{doing}: no TLS: {}", tls::NONE)
            }
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) => match tls::why(error) {
                Some(why) => format!("{doing}: no TLS: {why}"),
                None => format!("{doing}: {error}"),
            },
            sqlx::Error::Database(answer) => match answer.code() {
                Some(code) => format!("{doing}: {} ({code})", answer.message()),
                None => format!("{doing}: {}", answer.message()),
            },
            other => format!("{doing}: {other}"),
        };
        // Class 22 of the SQL standard: data exceptions.
        let value = matches!(error, sqlx::Error::Database(answer)
            if answer.code().is_some_and(|code| code.len() == 5 && code.starts_with("22")));
        match value {
            true => Self::Value(text),
            false => Self::Unavailable(text),
        }
    }
}
