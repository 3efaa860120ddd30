//! What Redis' errors mean for the users in a call.

use std::io;

use redis::{ErrorKind, RedisError};

use crate::{ConfigError, Failure, Outcome, trouble::Trouble};

/// What the user needs in Redis, as docs/TARGETS.md says.
const RIGHTS: &str = "~user:* +@read +@write +@scripting, for a cluster +cluster|slots too";

/// Trouble as an error of the driver, which says what we say.
pub(super) fn in_words(trouble: Trouble) -> RedisError {
    io::Error::other(trouble.failure).into()
}

/// The error of a call that took too long.
pub(super) fn late() -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

pub(super) fn unwritable() -> RedisError {
    (ErrorKind::Client, "the user can't be written as JSON").into()
}

pub(super) fn unfit(error: RedisError) -> ConfigError {
    ConfigError::Url(describe(&error))
}

/// The error of connecting: where the server answered, with what is wrong with the url.
pub(super) fn unopened(error: RedisError) -> RedisError {
    if error.kind() == ErrorKind::AuthenticationFailed || is_passing(error.code()) {
        return error;
    }
    let (Some(code), detail) = (error.code(), error.detail().unwrap_or_default()) else {
        return error;
    };
    let reason = match detail {
        _ if detail.contains("out of range") => {
            "Redis has no database of the number in the url".to_owned()
        }
        _ if detail.contains("cluster mode") => {
            "a Redis Cluster has database 0 alone: take the number out of the url".to_owned()
        }
        _ if detail.contains("'select'") => {
            "Redis: the user in the url may not choose a database: grant it +select, or take the number out of the url"
                .to_owned()
        }
        _ => format!("Redis doesn't let us in: {code}"),
    };
    in_words(Trouble::unreachable(Failure::new(reason)))
}

/// Whether an error with this code passes by itself.
fn is_passing(code: Option<&str>) -> bool {
    matches!(
        code,
        Some(
            "LOADING"
                | "BUSY"
                | "MASTERDOWN"
                | "CLUSTERDOWN"
                | "TRYAGAIN"
                | "OOM"
                | "MISCONF"
                | "NOREPLICAS"
        )
    )
}

/// Whether the target can't be used as it is, whoever is written: it doesn't let us in, or doesn't let us write.
pub(super) fn is_fault(code: &str) -> bool {
    matches!(
        code,
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "NOCOMMAND" | "CROSSSLOT" | "MOVED" | "ASK" | "OOM"
    )
}

/// What a server says that takes no writes at all: a replica, one that still loads its data, one that has lost its replicas or
/// can't save. Another one may soon be at its address.
pub(super) fn is_down(code: &str) -> bool {
    matches!(
        code,
        "READONLY" | "MASTERDOWN" | "LOADING" | "NOREPLICAS" | "MISCONF"
    )
}

/// What Redis and Valkey say where a script does what the user may not do, beside the code of all other errors.
const NOT_ALLOWED: [&str; 2] = ["ACL failure in script", "user executing the script can't"];

/// The code of an error that was told as `code` with more text.
fn coded<'a>(code: &'a str, said: &str) -> &'a str {
    match code {
        "ERR" if NOT_ALLOWED.iter().any(|text| said.contains(text)) => "NOPERM",
        "ERR" if said.contains("unknown command") || said.contains("Unknown Redis command") => {
            "NOCOMMAND"
        }
        // Redis 6 says it only within the text of a script's error.
        "ERR" if said.contains("READONLY ") => "READONLY",
        _ if is_code(code) => code,
        _ => "an error without a code",
    }
}

/// Whether a word is what servers begin an error with. What else comes first may be anything, of any length.
fn is_code(word: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=32).contains(&word.len()) && word.bytes().all(fits)
}

/// The same of an error of the driver.
pub(super) fn code(error: &RedisError) -> Option<&str> {
    let code = error.code()?;
    Some(coded(code, error.detail().unwrap_or_default()))
}

/// What the script says of one user.
pub(super) fn classify(answer: redis::Value) -> Outcome {
    match answer {
        redis::Value::Int(0) => Outcome::Delivered { guarded: true },
        redis::Value::Int(_) => Outcome::AlreadyNewer,
        redis::Value::BulkString(text) => {
            let text = String::from_utf8_lossy(&text).into_owned();
            // The code is the first word: what follows may name keys.
            let code = coded(text.split(' ').next().unwrap_or_default(), &text);
            let failure = Failure {
                code: Some(code.to_owned().into()),
                ..Failure::new(refused(code, &text, "Redis refused the write"))
            };
            match code {
                "WRONGTYPE" => Outcome::Permanent(failure),
                _ if is_down(code) => Outcome::Down(failure),
                _ if is_fault(code) => Outcome::Fault(failure),
                _ => Outcome::Transient(failure),
            }
        }
        _ => Outcome::Transient(Failure::new("Redis answered something unexpected")),
    }
}

/// What a failed call means for every user in it.
pub(super) fn failed(error: &RedisError) -> Outcome {
    let failure = Failure {
        code: code(error).map(|code| code.to_owned().into()),
        ..Failure::new(describe(error))
    };
    match code(error) {
        // It lets nobody like us in, or lets us do nothing.
        Some(code) if is_down(code) => Outcome::Down(failure),
        Some(code) if is_fault(code) => Outcome::Fault(failure),
        // It answers, so it is there: loading, busy, out of memory.
        Some(_) => Outcome::Transient(failure),
        None if error.is_timeout() => Outcome::Transient(failure),
        None => Outcome::Fault(failure),
    }
}

/// An error by its kind and code; its detail may hold data.
pub(super) fn describe(error: &RedisError) -> String {
    if error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("NOAUTH") {
        return "Redis refuses the user or the password: the user stands in the url, the password is what `secret` names"
            .to_owned();
    }
    match code(error) {
        Some(code) => refused(code, error.detail().unwrap_or_default(), "Redis refused"),
        None if error.is_timeout() => "Redis did not answer in time".to_owned(),
        None if error.is_io_error() => format!("can't reach Redis: {error}"),
        None => format!("Redis: {:?}", error.kind()),
    }
}

/// A refusal in words. `said` may name keys: of it only the name of a command is told.
fn refused(code: &str, said: &str, what: &str) -> String {
    match code {
        "NOPERM" => {
            let command = command(said).map_or("all that it takes".to_owned(), |command| {
                format!("`{command}`")
            });
            format!("{what}: NOPERM: the user in the url may not do {command}; it needs {RIGHTS}")
        }
        "READONLY" => {
            format!("{what}: READONLY: it is a replica; the url has to lead to the primary")
        }
        "NOCOMMAND" => format!(
            "{what}: it doesn't know a command that we need (`rename-command`, or another server than Redis or Valkey); we need {RIGHTS}"
        ),
        "OOM" => {
            format!("{what}: OOM: its memory is full: raise `maxmemory`, or let it hold fewer keys")
        }
        "MISCONF" => format!("{what}: MISCONF: it can't save its data: look at its disk"),
        "NOREPLICAS" => {
            format!(
                "{what}: NOREPLICAS: fewer replicas follow it than `min-replicas-to-write` says"
            )
        }
        "CROSSSLOT" | "MOVED" | "ASK" => {
            format!(
                "{what}: {code}: a cluster is behind the url, and what is between doesn't let us see that"
            )
        }
        _ => format!("{what}: {code}"),
    }
}

/// The command that `… no permissions to run the 'NAME' command` names.
fn command(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("run the '")?;
    let (command, rest) = rest.split_once('\'')?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"|-_".contains(&byte);
    (rest.starts_with(" command") && command.bytes().all(is_name)).then_some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_classified_as_documented() {
        assert_eq!(
            classify(redis::Value::Int(0)),
            Outcome::Delivered { guarded: true }
        );
        assert_eq!(
            classify(redis::Value::Int(1_700_000_000_000_001)),
            Outcome::AlreadyNewer
        );
        let text = |text: &str| classify(redis::Value::BulkString(text.as_bytes().to_vec()));
        assert!(matches!(
            text("WRONGTYPE Operation against a key"),
            Outcome::Permanent(_)
        ));
        assert!(matches!(text("BUSY a script runs"), Outcome::Transient(_)));
        for code in [
            "OOM command not allowed",
            "ERR unknown command 'EVALSHA', with args beginning with: ",
            "NOPERM ACL failure in script",
            "ERR ACL failure in script: User sync has no permissions to run the 'set' command",
            "ERR The user executing the script can't run this command or subcommand",
        ] {
            assert!(matches!(text(code), Outcome::Fault(_)), "{code}");
        }
        for code in [
            "READONLY You can't write",
            "ERR Error running script: READONLY You can't write",
            "MASTERDOWN Link with MASTER is down",
            "LOADING Redis is loading",
            "NOREPLICAS Not enough good replicas to write.",
            "MISCONF Redis is configured to save RDB snapshots",
        ] {
            assert!(matches!(text(code), Outcome::Down(_)), "{code}");
        }
    }

    #[test]
    fn a_first_word_that_is_no_code_is_told_to_nobody() {
        let long = "C".repeat(300_000);
        for said in ["REDISMAILann@x text", "jane@example.com", &long, ""] {
            let answer = redis::Value::BulkString(said.as_bytes().to_vec());
            let Outcome::Transient(failure) = classify(answer) else {
                panic!("{said:.40} isn't tried again");
            };
            assert_eq!(
                failure.reason,
                "Redis refused the write: an error without a code"
            );
        }
    }

    #[test]
    fn what_may_not_be_done_is_named_and_keys_never() {
        let no_command = "NOPERM User sync has no permissions to run the 'evalsha' command";
        let no_key =
            "NOPERM User sync has no permissions to access the 'user:jane@example.com' key";
        let said = refused("NOPERM", no_command, "Redis refused");
        assert!(
            said.contains("`evalsha`") && said.contains("+@scripting"),
            "{said}"
        );
        let said = refused("NOPERM", no_key, "Redis refused");
        assert!(!said.contains("jane") && said.contains("~user:*"), "{said}");
    }
}
