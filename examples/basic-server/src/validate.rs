//! What names, addresses and passwords must look like.

use secrecy::{ExposeSecret, SecretString};
use usersync_receiver::{Fault, Problem};

/// Collects what is wrong with a request, so that it is all said at once.
#[derive(Debug, Default)]
pub(crate) struct Check(Vec<Fault>);

impl Check {
    pub(crate) fn username(&mut self, name: &str) {
        let fits = (1..=64).contains(&name.chars().count());
        let plain = !name.chars().any(|c| c.is_control() || c.is_whitespace());
        self.that(
            fits && plain,
            "/username",
            "must have 1 to 64 characters, none of them white space",
        );
    }

    pub(crate) fn email(&mut self, email: &str) {
        let whole = email.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty() && !host.is_empty() && !host.contains('@')
        });
        let plain =
            email.len() <= 254 && !email.chars().any(|c| c.is_control() || c.is_whitespace());
        self.that(
            whole && plain,
            "/email",
            "must be an e-mail address of at most 254 bytes",
        );
    }

    pub(crate) fn password(&mut self, password: &SecretString) {
        let fits = (8..=256).contains(&password.expose_secret().chars().count());
        self.that(fits, "/password", "must have 8 to 256 characters");
    }

    pub(crate) fn phone(&mut self, phone: Option<&str>) {
        let dialable = |c: char| c.is_ascii_digit() || "+-/(). ".contains(c);
        let fits = phone
            .is_none_or(|phone| (1..=32).contains(&phone.len()) && phone.chars().all(dialable));
        self.that(
            fits,
            "/phone",
            "must have 1 to 32 digits, spaces or + - / ( ) .",
        );
    }

    pub(crate) fn status(&mut self, status: &str) {
        let plain = status
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        self.that(
            plain && (1..=32).contains(&status.len()),
            "/status",
            "must have 1 to 32 characters a-z _",
        );
    }

    /// Ends checking.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Problem::invalid(self.0))
        }
    }

    fn that(&mut self, holds: bool, pointer: &str, expected: &'static str) {
        if !holds {
            self.0.push(Fault::new(pointer, expected));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let mut check = Check::default();
        check.username("a b");
        check.email("ann@");
        check.password(&"short".into());
        check.phone(Some("call me"));
        check.status("Active");
        let problem = check.finish().unwrap_err();
        let pointers: Vec<_> = problem
            .faults()
            .iter()
            .map(|fault| fault.pointer.as_str())
            .collect();
        assert_eq!(
            pointers,
            ["#/username", "#/email", "#/password", "#/phone", "#/status"]
        );
    }

    #[test]
    fn ordinary_values_pass() {
        let mut check = Check::default();
        check.username("änn-1");
        check.email("ann+a@example.com");
        check.password(&"correct horse".into());
        check.phone(Some("+49 (731) 123-45"));
        check.phone(None);
        check.status("active");
        assert!(check.finish().is_ok());
    }
}
