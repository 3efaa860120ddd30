//! What Neo4j's errors mean for the users of a batch.

use crate::{
    Failure,
    trouble::{Blame, Trouble},
};

/// An answer that isn't what was asked for.
pub(super) fn unreadable() -> Trouble {
    Trouble {
        blame: Blame::Busy,
        failure: Failure::new("the answer of Neo4j can't be read"),
        foreign: false,
        lost: true,
    }
}

/// An error by its kind and code; messages may quote values.
pub(super) fn trouble(error: &neo4rs::Error) -> Trouble {
    let server = |reason: String| Trouble {
        blame: Blame::Server,
        failure: Failure::new(reason),
        foreign: false,
        lost: true,
    };
    let code = match error {
        neo4rs::Error::Neo4j(error) => error.code().to_owned(),
        // What goes wrong while rows are read comes as a text, which begins with the code.
        neo4rs::Error::UnexpectedMessage(text) => match text.find("Neo.") {
            Some(start) => {
                let letters = |c: &char| c.is_ascii_alphanumeric() || *c == '.';
                text[start..].chars().take_while(letters).collect()
            }
            None => return unreadable(),
        },
        neo4rs::Error::IOError { detail } => {
            return server(format!("can't reach Neo4j: {}", detail.kind()));
        }
        neo4rs::Error::ConnectionError => return server("can't reach Neo4j".to_owned()),
        neo4rs::Error::AuthenticationError(_) => {
            return server("Neo4j refuses the user or the password".to_owned());
        }
        _ => return unreadable(),
    };
    let blame = blame(&code);
    let what = match blame {
        Blame::Row => "the user can't be written",
        Blame::Conflict => "a constraint is in the way",
        Blame::Collision => "another transaction is in the way",
        Blame::Busy => "the server is busy",
        Blame::Demoted => "the server isn't the one that takes writes",
        Blame::Server | Blame::Table => "the server can't be used",
    };
    Trouble {
        blame,
        failure: Failure {
            reason: format!("Neo4j: {what} ({code})").into(),
            code: Some(code.into()),
            retry_after: None,
        },
        foreign: false,
        lost: matches!(blame, Blame::Server | Blame::Demoted),
    }
}

/// The table of docs/TARGETS.md, "Neo4j".
fn blame(code: &str) -> Blame {
    let mut parts = code.split('.').skip(1);
    match (parts.next(), parts.next(), parts.next()) {
        (
            Some("ClientError"),
            Some("Schema"),
            Some("ConstraintValidationFailed" | "ConstraintViolation"),
        ) => Blame::Conflict,
        (
            Some("ClientError"),
            Some("Statement"),
            Some("TypeError" | "ArgumentError" | "ArithmeticError" | "EntityNotFound"),
        ) => Blame::Row,
        (Some("ClientError"), Some("Transaction"), _)
        | (Some("TransientError"), Some("Transaction"), _) => Blame::Collision,
        // Moved to another server.
        (Some("ClientError"), Some("Cluster"), Some("NotALeader"))
        | (
            Some("ClientError"),
            Some("General"),
            Some("ForbiddenOnReadOnlyDatabase" | "WriteOnReadOnlyAccessDb"),
        )
        | (Some("ClientError"), Some("General"), Some("ReadOnly")) => Blame::Demoted,
        (Some("ClientError"), Some("Cluster" | "General"), _) => Blame::Busy,
        (Some("ClientError"), _, _) => Blame::Server,
        _ => Blame::Busy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_as_documented() {
        let rows = [
            (
                "Neo.ClientError.Schema.ConstraintValidationFailed",
                Blame::Conflict,
            ),
            ("Neo.ClientError.Statement.TypeError", Blame::Row),
            (
                "Neo.TransientError.Transaction.DeadlockDetected",
                Blame::Collision,
            ),
            (
                "Neo.TransientError.General.MemoryPoolOutOfMemoryError",
                Blame::Busy,
            ),
            ("Neo.ClientError.Cluster.NotALeader", Blame::Demoted),
            ("Neo.ClientError.Security.Unauthorized", Blame::Server),
            ("Neo.ClientError.Database.DatabaseNotFound", Blame::Server),
            ("Neo.ClientError.Statement.SyntaxError", Blame::Server),
            ("Neo.DatabaseError.General.UnknownError", Blame::Busy),
        ];
        for (code, expected) in rows {
            assert_eq!(blame(code), expected, "{code}");
        }
    }

    #[test]
    fn the_code_is_found_in_what_the_driver_says() {
        let text = "unexpected response for PULL: Ok(Failure(… \"code\" … \"Neo.TransientError.Transaction.Outdated\" … \"ann\"";
        let trouble = trouble(&neo4rs::Error::UnexpectedMessage(text.to_owned()));
        assert_eq!(
            trouble.failure.code.as_deref(),
            Some("Neo.TransientError.Transaction.Outdated")
        );
        assert!(!trouble.failure.reason.contains("ann"));
    }
}
