//! Why the main database can't be used, in words for whoever runs it.

use usersync_core::tls;

use crate::{Layout, layout::OUTBOX};

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
            // sqlx would need another crate to encrypt a password itself.
            sqlx::Error::Configuration(said) if said.to_string().contains("RSA") => {
                format!("{doing}: {SHA2}")
            }
            sqlx::Error::Database(answer) => {
                let hint = hint(answer.code().as_deref(), answer.message());
                match answer.code() {
                    Some(code) => format!("{doing}: {} ({code}){hint}", answer.message()),
                    None => format!("{doing}: {}", answer.message()),
                }
            }
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

impl SourceError {
    /// The same, with what to grant where PostgreSQL says of a table only that it may not be read: a right to some of its columns
    /// isn't one to it.
    pub(crate) fn with_grant(self, layout: &Layout) -> Self {
        match self {
            Self::Unavailable(said) if said.contains("(42501)") => {
                let columns = layout.columns.iter().map(|column| column.name.as_str());
                let mark = layout.deleted.iter().map(|column| column.name.as_str());
                let columns: Vec<_> = [layout.id.name.as_str()]
                    .into_iter()
                    .chain(columns)
                    .chain(mark)
                    .collect();
                Self::Unavailable(format!(
                    "{said}: GRANT SELECT ({}) ON {} to this login",
                    columns.join(", "),
                    layout.table
                ))
            }
            other => other,
        }
    }
}

/// What to do when MySQL wants the password and nothing hides it on the way.
const SHA2: &str = "the user's password is checked by caching_sha2_password (or sha256_password), which takes it over TLS only, \
     and this connection has none: set `tls = { ca = \"file:PATH\" }` and let the server have a certificate (MySQL makes one by \
     itself unless it is told not to), without `ssl-mode=disabled` in the url";

/// What a server's words mean to whoever set the url.
fn hint(code: Option<&str>, said: &str) -> &'static str {
    let pooled = match code {
        Some("08P01") => said.contains("unsupported startup parameter"),
        // A prepared statement that is unknown, or another client's.
        Some("26000" | "42P05") => true,
        _ => false,
    };
    if pooled {
        return ": a pooler answers, such as PgBouncer, and gives the server's sessions to several clients; name the server itself in `url`";
    }
    match said.contains("row-level security") {
        true => {
            ": a policy hides rows, and whoever isn't seen would count as deleted; give the user BYPASSRLS"
        }
        false => "",
    }
}
