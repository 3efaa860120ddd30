//! Which secrets the entries of targets may name: references that this process resolves for them.
//!
//! Who may change an entry would else have any variable and any file of the process sent to a server of their choice
//! (ADR 45).

use std::{
    collections::BTreeSet,
    fmt,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;

use crate::{secret::SecretRef, settings::Reader, target::TargetConfig};

/// The setting that says which.
const KEY: &str = "egress.secrets";

/// The setting `egress.secrets`, and what is never resolved for an entry.
#[derive(Clone, Debug)]
pub struct Grants {
    granted: Vec<Grant>,
    /// The references in the settings of this process: its own secrets.
    own: BTreeSet<SecretRef>,
}

/// References that may be resolved: `env:NAME`, `env:PREFIX*`, `file:PATH`, or `file:DIRECTORY/` for all that is in it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Grant {
    /// This variable.
    Variable(String),
    /// All variables that begin so.
    Variables(String),
    /// This file.
    File(PathBuf),
    /// All files in a directory, however deep.
    Directory(PathBuf),
}

/// Why a text grants nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected env:NAME, env:PREFIX*, file:PATH or file:DIRECTORY/, with an absolute path and no `..` in it"
)]
pub struct InvalidGrant;

/// Why a reference isn't resolved for an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotGranted {
    /// Nobody has allowed it.
    #[error(
        "{reference} is not granted to targets here; granted are {granted} (setting egress.secrets)"
    )]
    Unlisted {
        /// What an entry names.
        reference: SecretRef,
        /// What it could name.
        granted: String,
    },
    /// It is a secret of this process.
    #[error("{0} is a secret of this process, which no target gets")]
    Own(SecretRef),
    /// The file is somewhere else.
    #[error("{0} is a link that leads out of what is granted to targets (setting egress.secrets)")]
    LeadsOut(SecretRef),
}

impl Default for Grants {
    fn default() -> Self {
        Self {
            granted: vec![
                Grant::Variables("USERSYNC_TARGET_".to_owned()),
                Grant::Directory("/etc/usersync/secrets".into()),
            ],
            own: BTreeSet::new(),
        }
    }
}

impl Grants {
    /// These and no others.
    #[must_use]
    pub fn of(granted: Vec<Grant>) -> Self {
        Self {
            granted,
            own: BTreeSet::new(),
        }
    }

    /// Reads the setting; problems stay in `reader`.
    pub fn read(reader: &mut Reader) -> Self {
        let expected = "a list of env:NAME, env:PREFIX*, file:PATH and file:DIRECTORY/";
        let granted = reader.list(KEY, expected);
        Self {
            granted: granted.unwrap_or(Self::default().granted),
            own: reader.references(KEY),
        }
    }

    /// Looks whether `reference` may be resolved for an entry.
    ///
    /// # Errors
    /// When it may not, with what may.
    pub fn check(&self, reference: &SecretRef) -> Result<(), NotGranted> {
        if self.own.contains(reference) {
            return Err(NotGranted::Own(reference.clone()));
        }
        if self.granted.iter().any(|grant| grant.covers(reference)) {
            return Ok(());
        }
        Err(NotGranted::Unlisted {
            reference: reference.clone(),
            granted: self.to_string(),
        })
    }

    /// The same of the file that it leads to, right before it is read: one file has many names.
    ///
    /// # Errors
    /// As [`Self::check`], and when the file is one of the process's own, or not where it is granted.
    pub fn admit(&self, reference: &SecretRef) -> Result<(), NotGranted> {
        self.check(reference)?;
        let SecretRef::File(path) = reference else {
            return Ok(());
        };
        // That there is none is said where it is read.
        let (Some(file), Ok(place)) = (identity(path), path.canonicalize()) else {
            return Ok(());
        };
        let own = self.own.iter().filter_map(|own| match own {
            SecretRef::File(path) => identity(path),
            SecretRef::Env(_) => None,
        });
        if own.into_iter().any(|own| own == file) {
            return Err(NotGranted::Own(reference.clone()));
        }
        let mut places = self.granted.iter().filter(|grant| grant.covers(reference));
        match places.any(|grant| grant.holds(&place)) {
            true => Ok(()),
            false => Err(NotGranted::LeadsOut(reference.clone())),
        }
    }

    /// The first reference of `target` that may not be resolved, by what it says alone: its key, and why.
    ///
    /// # Errors
    /// When there is one.
    pub fn check_all(&self, target: &TargetConfig) -> Result<(), (String, NotGranted)> {
        first(target, |reference| self.check(reference))
    }

    /// The same by the files that references lead to.
    ///
    /// # Errors
    /// When there is one.
    pub fn admit_all(&self, target: &TargetConfig) -> Result<(), (String, NotGranted)> {
        first(target, |reference| self.admit(reference))
    }
}

impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let granted: Vec<_> = self.granted.iter().map(Grant::to_string).collect();
        match granted.is_empty() {
            true => f.write_str("none"),
            false => f.write_str(&granted.join(", ")),
        }
    }
}

impl Grant {
    fn covers(&self, reference: &SecretRef) -> bool {
        match (self, reference) {
            (Self::Variable(name), SecretRef::Env(asked)) => name == asked,
            (Self::Variables(prefix), SecretRef::Env(asked)) => asked.starts_with(prefix),
            (Self::File(path), SecretRef::File(asked)) => path == asked,
            (Self::Directory(path), SecretRef::File(asked)) => {
                is_plain(asked) && asked.starts_with(path) && asked != path
            }
            _ => false,
        }
    }

    /// Whether a file that is there, without links on the way, is where this grants it.
    fn holds(&self, place: &Path) -> bool {
        match self {
            // It was named itself: where it leads to is its owner's matter.
            Self::File(_) => true,
            Self::Directory(path) => path
                .canonicalize()
                .is_ok_and(|directory| place.starts_with(directory)),
            Self::Variable(_) | Self::Variables(_) => false,
        }
    }
}

/// The first reference of `target` that is refused, with its key.
fn first(
    target: &TargetConfig,
    check: impl Fn(&SecretRef) -> Result<(), NotGranted>,
) -> Result<(), (String, NotGranted)> {
    let references = target.references().into_iter();
    let mut refused =
        references.filter_map(|(key, reference)| Some((key, check(&reference).err()?)));
    refused.next().map_or(Ok(()), Err)
}

/// What tells a file from others, whatever it is called: device and number.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = path.metadata().ok()?;
    Some((found.dev(), found.ino()))
}

/// Whether a path is absolute and leads nowhere but down.
fn is_plain(path: &Path) -> bool {
    let down = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    path.is_absolute() && path.components().all(down)
}

impl FromStr for Grant {
    type Err = InvalidGrant;

    fn from_str(text: &str) -> Result<Self, InvalidGrant> {
        let grant = match text.split_once(':') {
            Some(("env", name)) => match name.strip_suffix('*') {
                Some(prefix) => Self::Variables(prefix.to_owned()),
                None => Self::Variable(name.to_owned()),
            },
            Some(("file", path)) => match path.strip_suffix('/') {
                Some(directory) => Self::Directory(directory.into()),
                None => Self::File(path.into()),
            },
            _ => return Err(InvalidGrant),
        };
        let fits = match &grant {
            // Everything is what nobody means to grant.
            Self::Variable(name) | Self::Variables(name) => {
                let odd = |symbol: char| symbol.is_whitespace() || "*=\0".contains(symbol);
                !name.is_empty() && !name.contains(odd)
            }
            // A wildcard would be a name like any other.
            Self::File(path) | Self::Directory(path) => {
                is_plain(path) && !path.to_string_lossy().contains('*')
            }
        };
        fits.then_some(grant).ok_or(InvalidGrant)
    }
}

impl TryFrom<String> for Grant {
    type Error = InvalidGrant;

    fn try_from(text: String) -> Result<Self, InvalidGrant> {
        text.parse()
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "env:{name}"),
            Self::Variables(prefix) => write!(f, "env:{prefix}*"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Directory(path) => write!(f, "file:{}/", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn may(grants: &Grants, reference: &str) -> bool {
        grants.check(&reference.parse().unwrap()).is_ok()
    }

    #[test]
    fn what_nobody_allowed_is_refused() {
        let grants = Grants::default();
        for granted in [
            "env:USERSYNC_TARGET_CRM",
            "file:/etc/usersync/secrets/crm",
            "file:/etc/usersync/secrets/crm/..data/token",
        ] {
            assert!(may(&grants, granted), "{granted}");
        }
        for refused in [
            "env:USERSYNC_NATS__PASSWORD",
            "env:PATH",
            "env:usersync_target_crm",
            "file:/etc/passwd",
            "file:/etc/usersync/secrets",
            "file:/etc/usersync/secrets/",
            "file:/etc/usersync/secrets/../nats",
            "file:/etc/usersync/secretsand/more",
            "file:etc/usersync/secrets/crm",
            "file:/proc/self/environ",
            "file:/dev/zero",
        ] {
            let refused = grants.check(&refused.parse().unwrap()).unwrap_err();
            assert!(refused.to_string().contains("egress.secrets"), "{refused}");
        }
    }

    #[test]
    fn a_grant_is_no_more_than_it_says() {
        let grants = |texts: &[&str]| {
            let texts = texts.iter().map(|text| text.parse().unwrap());
            Grants::of(texts.collect())
        };
        let some = grants(&["env:CRM_TOKEN", "file:/run/crm"]);
        assert!(may(&some, "env:CRM_TOKEN") && may(&some, "file:/run/crm"));
        assert!(!may(&some, "env:CRM_TOKEN2") && !may(&some, "file:/run/crm/x"));
        for refused in [
            "",
            "env:",
            "env:*",
            "env:A*B*",
            "file:",
            "file:/",
            "file:x/",
            "file:/a/../b",
            "file:/a/*",
            "env: A",
            "CRM",
        ] {
            assert_eq!(refused.parse::<Grant>(), Err(InvalidGrant), "{refused}");
        }
        for text in ["env:A", "env:A_*", "file:/a/b", "file:/a/b/"] {
            assert_eq!(text.parse::<Grant>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_secrets_of_the_process_are_no_targets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.toml");
        let text = r#"
            nats.password = "file:/etc/usersync/secrets/nats"
            nats.credentials = "/etc/usersync/secrets/nats.creds"
            sources.main.url = "postgres://u@h/d?sslkey=/etc/usersync/secrets/main.key"
            traces.tls.ca = "file:/etc/usersync/secrets/ca.pem"
            sources.main.secret = "env:USERSYNC_TARGET_SHARED"
            egress.secrets = ["env:USERSYNC_TARGET_*", "file:/etc/usersync/secrets/", "env:ONE"]
        "#;
        std::fs::write(&path, text).unwrap();
        let grants = Grants::read(&mut Reader::of_file(Some(&path)));
        for own in [
            "file:/etc/usersync/secrets/nats",
            "file:/etc/usersync/secrets/nats.creds",
            "file:/etc/usersync/secrets/main.key",
            "env:USERSYNC_TARGET_SHARED",
        ] {
            let refused = grants.check(&own.parse().unwrap()).unwrap_err();
            assert!(matches!(refused, NotGranted::Own(_)), "{refused}");
        }
        assert!(may(&grants, "file:/etc/usersync/secrets/ca.pem"));
        assert!(may(&grants, "env:ONE") && may(&grants, "env:USERSYNC_TARGET_OTHER"));
    }

    /// As Kubernetes lays a volume of secrets out.
    #[test]
    fn a_file_is_the_same_by_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, at(name)).unwrap();
        std::fs::create_dir_all(at("secrets/..2026")).unwrap();
        for name in ["secrets/..2026/nats", "secrets/..2026/crm", "elsewhere"] {
            std::fs::write(at(name), name).unwrap();
        }
        link("..2026", "secrets/..data");
        link("..data/nats", "secrets/nats");
        link("..data/crm", "secrets/crm");
        link("../elsewhere", "secrets/out");
        std::fs::hard_link(at("secrets/..2026/nats"), at("secrets/hard")).unwrap();
        let secrets = at("secrets");
        let path = at("settings.toml");
        let text = format!(
            "nats.password = \"file:{0}/nats\"\negress.secrets = [\"file:{0}/\"]",
            secrets.display()
        );
        std::fs::write(&path, text).unwrap();
        let grants = Grants::read(&mut Reader::of_file(Some(&path)));
        let admit = |name: &str| grants.admit(&SecretRef::File(secrets.join(name)));
        for own in ["nats", "..data/nats", "..2026/nats", "hard"] {
            let refused = admit(own).unwrap_err();
            assert!(matches!(refused, NotGranted::Own(_)), "{own}: {refused}");
        }
        let out = admit("out").unwrap_err();
        assert!(matches!(out, NotGranted::LeadsOut(_)), "{out}");
        for granted in ["crm", "..data/crm", "..2026/crm", "missing"] {
            assert_eq!(admit(granted), Ok(()), "{granted}");
        }
    }

    #[test]
    fn every_reference_of_an_entry_is_asked_about() {
        let entry = |more: serde_json::Value| {
            let mut entry = json!({"name": "t", "url": "http://h"});
            entry
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            serde_json::from_value::<TargetConfig>(entry).unwrap()
        };
        for (key, more) in [
            ("secret", json!({"secret": "env:X"})),
            ("previous_secret", json!({"previous_secret": "env:X"})),
            ("headers.X", json!({"headers": {"X": "file:/x"}})),
            ("auth.bearer", json!({"auth": {"bearer": "env:X"}})),
            (
                "auth.basic.password",
                json!({"auth": {"basic": {"user": "u", "password": "env:X"}}}),
            ),
            (
                "auth.oauth2.client_secret",
                json!({"auth": {"oauth2": {"token_url": "http://h", "client_id": "c", "client_secret": "env:X"}}}),
            ),
            ("tls.ca", json!({"tls": {"ca": "file:/x"}})),
            ("tls.cert", json!({"tls": {"cert": "file:/x"}})),
            ("tls.key", json!({"tls": {"key": "file:/x"}})),
            ("url (ssl-ca)", json!({"url": "mysql://u@h/d?ssl-ca=/x"})),
            ("url (sslkey)", json!({"url": "postgres://u@h/d?sslkey=/x"})),
            ("fields.mask_key", json!({"fields": {"mask_key": "env:X"}})),
        ] {
            let refused = Grants::default().check_all(&entry(more)).unwrap_err();
            assert_eq!(refused.0, key);
        }
        let plain = entry(json!({"headers": {"X": "y"}}));
        assert!(Grants::default().check_all(&plain).is_ok());
    }
}
