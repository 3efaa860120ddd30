//! References to secrets: settings and catalogues name where a secret is, never the secret.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;

/// The largest secret that is read from a file, in bytes.
const MOST: u64 = 64 << 10;
/// The largest certificate or key, or bundle of such, in bytes.
const MOST_PEM: u64 = 1 << 20;

/// `env:NAME` or `file:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file; white space around its content is dropped.
    File(PathBuf),
}

/// Why a secret is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The text is no reference. It is not repeated here: it may be the secret itself.
    #[error("expected a reference, `env:NAME` or `file:PATH`, never the secret itself")]
    NotAReference,
    /// The variable is not set.
    #[error("the environment variable {0} is not set")]
    Unset(String),
    /// The file can't be read.
    #[error("can't read the secret file {}: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl SecretRef {
    /// Fetches the secret.
    ///
    /// # Errors
    /// When the variable is not set or the file can't be read.
    pub fn resolve(&self) -> Result<SecretString, SecretError> {
        self.within(MOST)
    }

    /// Fetches what is PEM, of which there may be more.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn resolve_pem(&self) -> Result<SecretString, SecretError> {
        self.within(MOST_PEM)
    }

    fn within(&self, most: u64) -> Result<SecretString, SecretError> {
        match self {
            Self::Env(name) => std::env::var(name)
                .map(SecretString::from)
                .map_err(|_| SecretError::Unset(name.clone())),
            Self::File(path) => read(path, most)
                .map(|text| SecretString::from(text.trim().to_owned()))
                .map_err(|source| SecretError::Unreadable {
                    path: path.clone(),
                    source,
                }),
        }
    }
}

/// The files that the URL of a database names, which drivers read by themselves, with the option of each.
pub(crate) fn files_of(url: &Url) -> Vec<(String, SecretRef)> {
    let named = url.query_pairs().filter(|(key, value)| {
        let key = key.replace('-', "").to_ascii_lowercase();
        let names_file = matches!(key.as_str(), "sslrootcert" | "sslca" | "sslcert" | "sslkey");
        names_file && !value.starts_with("-----BEGIN")
    });
    let file = |path: &str| SecretRef::File(path.into());
    named
        .map(|(key, path)| (key.into_owned(), file(&path)))
        .collect()
}

/// Reads a regular file: what else a path may name, a pipe say, could keep its reader waiting for ever.
fn read(path: &Path, most: u64) -> io::Result<String> {
    let wrong = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    // Asked before it is opened, which waits for the other end of a pipe.
    if !fs::metadata(path)?.is_file() {
        return wrong("it is no regular file".to_owned());
    }
    let mut text = String::new();
    fs::File::open(path)?
        .take(most + 1)
        .read_to_string(&mut text)?;
    match text.len() as u64 > most {
        true => wrong(format!("it is larger than {} KiB", most >> 10)),
        false => Ok(text),
    }
}

impl FromStr for SecretRef {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        match text.split_once(':') {
            Some(("env", name)) if !name.is_empty() => Ok(Self::Env(name.to_owned())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(SecretError::NotAReference),
        }
    }
}

impl TryFrom<String> for SecretRef {
    type Error = SecretError;

    fn try_from(text: String) -> Result<Self, SecretError> {
        text.parse()
    }
}

impl From<SecretRef> for String {
    fn from(reference: SecretRef) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn a_plain_secret_is_refused_and_not_repeated() {
        for text in ["hunter2", "env:", "file:", "whsec_abc"] {
            let error = text.parse::<SecretRef>().unwrap_err().to_string();
            assert!(
                !error.contains("hunter2") && !error.contains("whsec"),
                "{error}"
            );
        }
    }

    #[test]
    fn files_are_trimmed_and_missing_ones_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "hunter2\n").unwrap();
        let reference: SecretRef = format!("file:{}", path.display()).parse().unwrap();
        assert_eq!(reference.resolve().unwrap().expose_secret(), "hunter2");
        let missing: SecretRef = "file:/nonexistent/s".parse().unwrap();
        assert!(
            missing
                .resolve()
                .unwrap_err()
                .to_string()
                .contains("/nonexistent/s")
        );
        // A pipe that nobody writes to would keep its reader.
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [pipe.as_path(), dir.path()] {
            let reference: SecretRef = format!("file:{}", path.display()).parse().unwrap();
            let said = reference.resolve().unwrap_err().to_string();
            assert!(said.contains("no regular file"), "{said}");
        }
        // What lies about its size, as those of /proc do, is as bounded.
        std::fs::write(&path, "x".repeat((64 << 10) + 1)).unwrap();
        let said = reference.resolve().unwrap_err().to_string();
        assert!(said.contains("larger than 64 KiB"), "{said}");
        assert!(reference.resolve_pem().is_ok());
    }
}
