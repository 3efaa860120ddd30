//! What an HTTP target's own headers hold: a text, or a reference to a secret.

use std::fmt;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::secret::{SecretError, SecretRef};

/// The value of a header, as an entry has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HeaderText {
    /// Sent as it is, and seen by all who see the target.
    Plain(String),
    /// What it refers to is sent.
    Secret(SecretRef),
}

impl HeaderText {
    /// What is to be sent.
    ///
    /// # Errors
    /// When a reference leads nowhere.
    pub fn resolve(&self) -> Result<SecretString, SecretError> {
        match self {
            Self::Plain(text) => Ok(text.as_str().into()),
            Self::Secret(reference) => reference.resolve(),
        }
    }
}

/// Whether what a header of this name holds is to be kept from those who may see targets.
pub(crate) fn is_sensitive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let telling = [
        "authorization",
        "cookie",
        "token",
        "secret",
        "key",
        "password",
    ];
    telling.iter().any(|part| name.contains(part))
}

impl TryFrom<String> for HeaderText {
    type Error = SecretError;

    /// What begins like a reference is one.
    fn try_from(text: String) -> Result<Self, SecretError> {
        match text.starts_with("env:") || text.starts_with("file:") {
            true => text.parse().map(Self::Secret),
            false => Ok(Self::Plain(text)),
        }
    }
}

impl From<HeaderText> for String {
    fn from(text: HeaderText) -> Self {
        text.to_string()
    }
}

impl fmt::Display for HeaderText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(text) => f.write_str(text),
            Self::Secret(reference) => reference.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn read(text: &str) -> Result<HeaderText, SecretError> {
        HeaderText::try_from(text.to_owned())
    }

    #[test]
    fn a_text_is_sent_as_it_is_and_a_reference_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("h");
        std::fs::write(&path, "Bearer abc\n").unwrap();
        for (text, sent) in [
            ("platform", "platform"),
            ("environment:test", "environment:test"),
            (&format!("file:{}", path.display()), "Bearer abc"),
        ] {
            let header = read(text).unwrap();
            assert_eq!(header.resolve().unwrap().expose_secret(), sent);
            assert_eq!(String::from(header), text);
        }
        assert!(read("env:").is_err());
        assert!(read("env:USERSYNC_NOT_SET").unwrap().resolve().is_err());
    }

    #[test]
    fn names_tell_what_is_sensitive() {
        for name in [
            "Authorization",
            "Proxy-Authorization",
            "cookie",
            "X-Api-Key",
            "X-Auth-Token",
            "Client-SECRET",
            "x-password",
        ] {
            assert!(is_sensitive(name), "{name}");
        }
        for name in ["X-Team", "Accept", "X-Tenant"] {
            assert!(!is_sensitive(name), "{name}");
        }
    }
}
