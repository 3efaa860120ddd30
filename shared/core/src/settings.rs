//! Settings of a binary: defaults, then a file, then the environment, then flags.
//!
//! Every problem is collected, so that one run reports all of them, each with where the value
//! came from, its key and what is expected.

use std::{collections::BTreeSet, fmt, path::Path, str::FromStr};

use figment::{
    Figment, Provider,
    providers::{Env, Format, Json, Toml, Yaml},
    value::{Dict, Value},
};
use serde::{Deserialize, de::DeserializeOwned};

use url::Url;

use crate::secret::{self, SecretRef};

/// `USERSYNC_NATS__URL` sets `nats.url`.
const ENV_PREFIX: &str = "USERSYNC_";

/// Reads settings one key at a time, from whatever layer names them last.
pub struct Reader {
    figment: Figment,
    problems: Vec<String>,
    known: BTreeSet<&'static str>,
}

/// Everything that is wrong with the settings.
#[derive(Debug)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(
            f,
            "the configuration has {count} problem{}:",
            if count == 1 { "" } else { "s" }
        )?;
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

impl Reader {
    /// Layers `file` (TOML, YAML or JSON by its ending) and the environment.
    pub fn new(file: Option<&Path>) -> Self {
        let mut reader = Self::of_file(file);
        let figment = std::mem::take(&mut reader.figment);
        reader.figment = figment.merge(Env::prefixed(ENV_PREFIX).split("__"));
        reader
    }

    /// `file` alone, for one that the settings refer to.
    pub fn of_file(file: Option<&Path>) -> Self {
        let mut problems = Vec::new();
        let mut figment = Figment::new();
        if let Some(path) = file {
            match path.extension().and_then(|ending| ending.to_str()) {
                _ if !path.is_file() => {
                    problems.push(format!(
                        "{}: no such file; expected a file of settings",
                        path.display()
                    ));
                }
                Some("yaml" | "yml") => {
                    figment = layer(figment, Yaml::file_exact(path), path, &mut problems)
                }
                Some("json") => {
                    figment = layer(figment, Json::file_exact(path), path, &mut problems)
                }
                Some("toml") => {
                    figment = layer(figment, Toml::file_exact(path), path, &mut problems)
                }
                _ => problems.push(format!(
                    "{}: expected a name that ends in .toml, .yaml or .json",
                    path.display()
                )),
            }
        }
        Self {
            figment,
            problems,
            known: BTreeSet::new(),
        }
    }

    /// Lays a flag over everything else.
    pub fn flag<T: serde::Serialize>(&mut self, key: &'static str, value: Option<T>) {
        if let Some(value) = value {
            let figment = std::mem::take(&mut self.figment);
            self.figment = figment.merge(Flag(key, value));
        }
    }

    /// The value of `key`, or `default` where no layer has one.
    ///
    /// A value that doesn't parse is recorded, and `default` returned to go on with.
    pub fn get<T: DeserializeOwned>(&mut self, key: &'static str, default: T, expected: &str) -> T {
        self.optional(key, expected).unwrap_or(default)
    }

    /// The value of `key`, `None` where no layer has one.
    pub fn optional<T: DeserializeOwned>(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Option<T> {
        self.known.insert(key);
        if !self.figment.contains(key) {
            return None;
        }
        match self.figment.extract_inner::<T>(key) {
            Ok(value) => Some(value),
            Err(_) => {
                self.problem(key, expected);
                None
            }
        }
    }

    /// A list, or one text with commas between its members, as an environment variable has it; `None` where no layer has one.
    pub fn list<T: DeserializeOwned + FromStr>(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Option<Vec<T>> {
        match self.optional(key, expected)? {
            List::Members(members) => Some(members),
            List::Text(text) => {
                let parts = text.split(',').map(str::trim);
                let parts = parts.filter(|part| !part.is_empty());
                let members: Result<_, _> = parts.map(str::parse).collect();
                if members.is_err() {
                    self.problem(key, expected);
                }
                members.ok()
            }
        }
    }

    /// All that these settings refer to as secrets or name as a path, whichever key does, but for what the value of `but` says.
    pub fn references(&self, but: &str) -> BTreeSet<SecretRef> {
        let mut found = BTreeSet::new();
        if let Ok(all) = self.figment.find_value("") {
            references(&all, "", but, &mut found);
        }
        found
    }

    /// Records that the value of `key` isn't what is `expected`.
    pub fn problem(&mut self, key: &str, expected: &str) {
        let origin = self.origin(key);
        self.problems
            .push(format!("{origin}{key}: expected {expected}"));
    }

    /// Records a problem that already says where it is.
    pub fn report(&mut self, problem: impl fmt::Display) {
        self.problems.push(problem.to_string());
    }

    /// Accepts keys that only other binaries read, so that one file can serve all.
    pub fn leave(&mut self, keys: &[&'static str]) {
        self.known.extend(keys);
    }

    /// Ends reading.
    ///
    /// # Errors
    /// All recorded problems, and every key nobody asked for. A plain environment variable may
    /// have the prefix and be something else, a secret say; only `USERSYNC_X__Y` must be a setting.
    pub fn finish(mut self) -> Result<(), Problems> {
        let Ok(all) = self.figment.find_value("") else {
            return self.result();
        };
        let mut unknown = Vec::new();
        if let Value::Dict(_, members) = all {
            unknown_keys(&members, "", &self.known, &mut unknown);
        }
        unknown.retain(|key| key.contains('.') || !self.is_from_environment(key));
        for key in unknown {
            let near = self
                .known
                .iter()
                .map(|known| known.to_string())
                .collect::<Vec<_>>()
                .join(", ");
            let origin = self.origin(&key);
            self.problems.push(format!(
                "{origin}{key}: is no setting; expected one of {near}"
            ));
        }
        self.result()
    }

    fn result(self) -> Result<(), Problems> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(Problems(self.problems))
        }
    }

    fn is_from_environment(&self, key: &str) -> bool {
        let metadata = self.figment.find_metadata(key);
        metadata.is_some_and(|metadata| metadata.name.contains("environment"))
    }

    /// "FILE: " or "environment variable NAME: ", whichever layer set `key` last.
    fn origin(&self, key: &str) -> String {
        let Some(metadata) = self.figment.find_metadata(key) else {
            return String::new();
        };
        match metadata
            .source
            .as_ref()
            .and_then(figment::Source::file_path)
        {
            Some(path) => format!("{}: ", path.display()),
            None if self.is_from_environment(key) => {
                format!(
                    "environment variable {ENV_PREFIX}{}: ",
                    key.to_uppercase().replace('.', "__")
                )
            }
            None => format!("{}: ", metadata.name),
        }
    }
}

fn layer<F: Format>(
    figment: Figment,
    data: figment::providers::Data<F>,
    path: &Path,
    problems: &mut Vec<String>,
) -> Figment {
    match data.data() {
        Ok(_) => figment.merge(data),
        Err(error) => {
            problems.push(format!("{}: {error}", path.display()));
            figment
        }
    }
}

fn references(value: &Value, key: &str, but: &str, found: &mut BTreeSet<SecretRef>) {
    match value {
        _ if key == but => {}
        // Whom to trust is no secret, and often the same for all.
        _ if matches!(key.rsplit('.').next(), Some("ca" | "client_ca")) => {}
        Value::String(_, text) => {
            found.extend(text.parse::<SecretRef>());
            // Some settings are paths of secrets by themselves, or have some in a URL.
            if text.starts_with('/') || Path::new(text).is_file() {
                found.extend(std::path::absolute(text).map(SecretRef::File));
            }
            let url = text.parse::<Url>().ok();
            found.extend(url.iter().flat_map(secret::files_of).map(|(_, file)| file));
        }
        Value::Array(_, members) => {
            for member in members {
                references(member, key, but, found);
            }
        }
        Value::Dict(_, members) => {
            for (name, member) in members {
                let key = match key {
                    "" => name.clone(),
                    _ => format!("{key}.{name}"),
                };
                references(member, &key, but, found);
            }
        }
        _ => {}
    }
}

fn unknown_keys(
    members: &Dict,
    prefix: &str,
    known: &BTreeSet<&'static str>,
    found: &mut Vec<String>,
) {
    for (name, value) in members {
        let key = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        let is_parent = known.iter().any(|known| {
            known
                .strip_prefix(&key)
                .is_some_and(|rest| rest.starts_with('.'))
        });
        match value {
            Value::Dict(_, inner) if is_parent => unknown_keys(inner, &key, known, found),
            _ if known.contains(key.as_str()) => {}
            _ => found.push(key),
        }
    }
}

/// How a list may be written.
#[derive(Deserialize)]
#[serde(untagged)]
enum List<T> {
    Text(String),
    Members(Vec<T>),
}

/// A flag as a layer of its own, so that a problem names the flag.
struct Flag<T>(&'static str, T);

impl<T: serde::Serialize> Provider for Flag<T> {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named("command line")
    }

    fn data(&self) -> Result<figment::value::Map<figment::Profile, Dict>, figment::Error> {
        figment::providers::Serialized::global(self.0, &self.1).data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, content: &str) -> (String, u16, Result<(), Problems>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        std::fs::write(&path, content).unwrap();
        let mut reader = Reader::new(Some(&path));
        reader.flag("streams.replicas", None::<u16>);
        let url = reader.get("nats.url", "default".to_owned(), "a URL");
        let replicas = reader.get("streams.replicas", 1, "1, 3 or 5");
        (url, replicas, reader.finish())
    }

    #[test]
    fn files_of_every_format_set_values() {
        for (file, content) in [
            ("a.toml", "[nats]\nurl = 'x'\n[streams]\nreplicas = 3"),
            ("a.yaml", "nats: {url: x}\nstreams: {replicas: 3}"),
            (
                "a.json",
                r#"{"nats": {"url": "x"}, "streams": {"replicas": 3}}"#,
            ),
        ] {
            let (url, replicas, result) = read(file, content);
            assert!(result.is_ok(), "{result:?}");
            assert_eq!((url.as_str(), replicas), ("x", 3));
        }
    }

    #[test]
    fn all_problems_are_reported_at_once_with_file_key_and_expectation() {
        let (_, _, result) = read(
            "a.toml",
            "nats.url = 1\nstreams.replicas = 'many'\nstreams.x = 1\ny = 2",
        );
        let text = result.unwrap_err().to_string();
        for part in [
            "4 problems",
            "a.toml: nats.url: expected a URL",
            "streams.replicas: expected 1, 3 or 5",
            "streams.x: is no setting",
            "y: is no setting",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    #[test]
    fn flags_win_over_files_and_a_missing_file_is_a_problem() {
        let mut reader = Reader::new(Some(Path::new("/nonexistent/a.toml")));
        reader.flag("nats.url", Some("flagged"));
        assert_eq!(reader.get("nats.url", String::new(), "a URL"), "flagged");
        assert!(
            reader
                .finish()
                .unwrap_err()
                .to_string()
                .contains("/nonexistent/a.toml: no such file")
        );
    }
}
