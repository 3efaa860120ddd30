//! Callers of the API: what each may do and how much, the hashes of its keys, and the secrets it signs with.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, sync::Arc};

use axum::http::HeaderMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use usersync_core::{
    secret::SecretRef,
    settings::Reader,
    signature::{Signatures, Unproven},
};

/// The most secrets of a caller: whoever sends something unsigned has us compute as many signatures.
const MOST_SECRETS: usize = 4;

/// What a key may be used for. None contains another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Publish events.
    Publish,
    /// See users, targets, dead letters, checks.
    Read,
    /// Change targets, replay, repair, check.
    Operate,
    /// Erase users for good.
    Erase,
}

impl Scope {
    /// The name in settings and answers.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Erase => "erase",
        }
    }
}

/// The SHA-256 of a key. Enough for keys of 256 random bits: nobody can try them all, so that a hash made slow on
/// purpose, as for passwords, would only cost every request time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hash([u8; 32]);

impl Hash {
    pub(crate) fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Reads `sha256:` and 64 hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
            let digit = |index: usize| char::from(pair[index]).to_digit(16);
            *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who calls.
#[derive(Debug, PartialEq)]
pub(crate) struct Caller {
    /// The name in the settings.
    pub(crate) name: String,
    hashes: Vec<Hash>,
    signatures: Option<Signatures>,
    scopes: Vec<Scope>,
    sources: Vec<String>,
    /// Its own limits, where it has some.
    pub(crate) limit: Limit,
}

/// What a caller may ask for, where that isn't what all may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    /// Requests per second.
    pub(crate) requests: Option<NonZeroU32>,
    /// Events per second, for each source.
    pub(crate) events: Option<NonZeroU32>,
    /// Events at once.
    pub(crate) burst: Option<NonZeroU32>,
}

impl Caller {
    /// Whoever calls where no key is asked for.
    pub(crate) fn anyone() -> Self {
        Self {
            name: "anyone".to_owned(),
            hashes: Vec::new(),
            signatures: None,
            scopes: vec![Scope::Publish, Scope::Read, Scope::Operate, Scope::Erase],
            sources: Vec::new(),
            limit: Limit::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::anyone()
        }
    }

    pub(crate) fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Whether it may publish what happened in `source`.
    pub(crate) fn speaks_for(&self, source: &str) -> bool {
        self.sources.is_empty() || self.sources.iter().any(|own| own == source)
    }

    /// The source of events that name none: the first of its own where it is bound to some, else its name. Who calls
    /// without a key has none.
    pub(crate) fn source(&self) -> Option<&str> {
        let unknown = self.hashes.is_empty() && self.signatures.is_none();
        let name = (!unknown).then_some(self.name.as_str());
        self.sources.first().map(String::as_str).or(name)
    }
}

/// All callers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Callers(Vec<Arc<Caller>>);

impl Callers {
    /// Reads `[http.keys.NAME]`; problems stay in `reader`.
    pub(crate) fn read(reader: &mut Reader) -> Self {
        let tables =
            "tables such as [http.keys.basic-server]; make one with `usersync-gateway key new`";
        let entries: BTreeMap<String, Map<String, Value>> =
            reader.get("http.keys", BTreeMap::new(), tables);
        let mut callers = Vec::new();
        for (name, entry) in entries {
            match caller(name.clone(), entry) {
                Ok(caller) => callers.push(Arc::new(caller)),
                Err(problem) => reader.report(format!("http.keys.{name}{problem}")),
            }
        }
        Self(callers)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of both; a name that both have stands for two callers.
    pub(crate) fn and(&self, others: Self) -> Self {
        Self(self.0.iter().cloned().chain(others.0).collect())
    }

    /// Whose key it is. Looks at all of them, whichever fits, so that the time tells nothing.
    pub(crate) fn find(&self, key: &str) -> Option<&Arc<Caller>> {
        let hash = Hash::of(key);
        let mut found = None;
        for caller in &self.0 {
            for known in &caller.hashes {
                if known.0.ct_eq(&hash.0).into() {
                    found = Some(caller);
                }
            }
        }
        found
    }

    /// Whether somebody called `name` may have signed a request with these headers.
    pub(crate) fn may_have_signed(&self, name: &str, headers: &HeaderMap) -> Result<(), Unproven> {
        let signs = |caller: &Arc<Caller>| caller.name == name && caller.signatures.is_some();
        match self.0.iter().any(signs) {
            true => Signatures::check_headers(headers),
            false => Err(Unproven::Signature),
        }
    }

    /// Who of those called `name` has signed the request.
    pub(crate) fn signer(
        &self,
        name: &str,
        body: &[u8],
        headers: &HeaderMap,
    ) -> Result<&Arc<Caller>, Unproven> {
        let mut outcome = Err(Unproven::Signature);
        for caller in self.0.iter().filter(|caller| caller.name == name) {
            let Some(signatures) = &caller.signatures else {
                continue;
            };
            outcome = signatures.verify(body, headers).map(|_| caller);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}

/// Whether `text` can name a caller.
pub(crate) fn is_name(text: &str) -> bool {
    let permitted = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
    };
    (1..=32).contains(&text.len()) && text.bytes().all(permitted)
}

/// One entry. No problem quotes a value: it may be a key, written where its hash belongs.
fn caller(name: String, mut entry: Map<String, Value>) -> Result<Caller, String> {
    if !is_name(&name) {
        return Err(": a caller's name is 1 to 32 characters a-z 0-9 _ -".to_owned());
    }
    let hashes: Vec<String> = take(&mut entry, "hashes")?.unwrap_or_default();
    let hashes: Option<Vec<Hash>> = hashes.iter().map(|text| Hash::parse(text)).collect();
    let signatures = secrets(&mut entry)?;
    let hashes = hashes.filter(|hashes| !hashes.is_empty() || signatures.is_some());
    let hashes = hashes.ok_or(
        ".hashes: expected a list of `sha256:` and 64 hexadecimal digits, as `usersync-gateway key new` prints, \
         or secrets; never a key itself",
    )?;
    let scopes: Vec<Scope> = take(&mut entry, "scopes")?.unwrap_or_default();
    if scopes.is_empty() {
        return Err(".scopes: expected a list of publish, read, operate and erase".to_owned());
    }
    if signatures.is_some() && !scopes.contains(&Scope::Publish) {
        return Err(
            ".scopes: expected publish among them, for nothing else is done by a signature"
                .to_owned(),
        );
    }
    let sources = take(&mut entry, "sources")?.unwrap_or_default();
    let limit = take(&mut entry, "limit")?.unwrap_or_default();
    match entry.keys().next() {
        Some(_) => Err(
            ": expected hashes, secrets, scopes, sources and limit, and no other key".to_owned(),
        ),
        None => Ok(Caller {
            name,
            hashes,
            signatures,
            scopes,
            sources,
            limit,
        }),
    }
}

/// The secrets of a caller, followed where they are.
fn secrets(entry: &mut Map<String, Value>) -> Result<Option<Signatures>, String> {
    let Some(references) = take::<Vec<SecretRef>>(entry, "secrets")? else {
        return Ok(None);
    };
    if !(1..=MOST_SECRETS).contains(&references.len()) {
        return Err(format!(".secrets: expected 1 to {MOST_SECRETS} of them"));
    }
    let secrets = references.iter().map(SecretRef::resolve);
    let secrets: Vec<_> = secrets
        .collect::<Result<_, _>>()
        .map_err(|error| format!(".secrets: {error}"))?;
    let signatures = Signatures::new(&secrets).map_err(|error| format!(".secrets: {error}"))?;
    Ok(Some(signatures))
}

fn take<T: DeserializeOwned>(
    entry: &mut Map<String, Value>,
    key: &str,
) -> Result<Option<T>, String> {
    let value = entry.remove(key).map(serde_json::from_value).transpose();
    value.map_err(|_| {
        let expected = match key {
            "hashes" => "a list of texts",
            "secrets" => "a list of references, `env:NAME` or `file:PATH`, never a secret itself",
            "scopes" => "a list of publish, read, operate and erase",
            "limit" => "whole numbers, 1 or more: requests and events per second, and burst, events at once",
            _ => "a list of sources that it may publish for",
        };
        format!(".{key}: expected {expected}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(entry: Value) -> Result<Caller, String> {
        let Value::Object(entry) = entry else {
            panic!("no entry")
        };
        caller("basic-server".to_owned(), entry)
    }

    #[test]
    fn any_key_of_a_caller_finds_it_and_no_other_does() {
        let of = |keys: &[&str]| {
            let hashes: Vec<_> = keys.iter().map(|key| Hash::of(key).to_string()).collect();
            Arc::new(read(json!({"hashes": hashes, "scopes": ["read"]})).unwrap())
        };
        let (one, two) = (of(&["old", "new"]), of(&["two"]));
        let callers = Callers(vec![one.clone(), two.clone()]);
        for (key, expected) in [("old", &one), ("new", &one), ("two", &two)] {
            let found = callers.find(key);
            assert!(
                found.is_some_and(|found| Arc::ptr_eq(found, expected)),
                "{key}"
            );
        }
        for key in ["", "ol", "old ", "OLD"] {
            assert!(callers.find(key).is_none(), "{key}");
        }
        // `printf hunter2 | sha256sum`
        let known = "sha256:f52fbd32b2b3b86ff88ef6c490628285f482af15ddcb29541f94bcf526a3f6c7";
        assert_eq!(Hash::of("hunter2").to_string(), known);
        assert_eq!(Hash::parse(known), Some(Hash::of("hunter2")));
    }

    #[test]
    fn what_is_wrong_with_an_entry_is_said_without_its_values() {
        let hash = Hash::of("k").to_string();
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        for (place, entry) in [
            (".hashes", json!({"scopes": ["read"]})),
            (".hashes", json!({"hashes": [], "scopes": ["read"]})),
            (
                ".hashes",
                json!({"hashes": ["hunter2"], "scopes": ["read"]}),
            ),
            (".hashes", json!({"hashes": "hunter2", "scopes": ["read"]})),
            (
                ".hashes",
                json!({"hashes": [hash.replace(|_: char| true, "é")], "scopes": ["read"]}),
            ),
            (".scopes", json!({"hashes": [hash]})),
            (".scopes", json!({"hashes": [hash], "scopes": ["hunter2"]})),
            (
                ".sources",
                json!({"hashes": [hash], "scopes": ["read"], "sources": "hunter2"}),
            ),
            (
                ":",
                json!({"hashes": [hash], "scopes": ["read"], "hunter2": 1}),
            ),
            (
                ".secrets",
                json!({"secrets": ["hunter2"], "scopes": ["publish"]}),
            ),
            (".secrets", json!({"secrets": [], "scopes": ["publish"]})),
            (
                ".secrets",
                json!({"secrets": ["env:NOBODY_SETS_THIS"], "scopes": ["publish"]}),
            ),
            (
                ".scopes",
                json!({"secrets": [format!("file:{}", secret.display())], "scopes": ["read"]}),
            ),
            (
                ".limit",
                json!({"hashes": [hash], "scopes": ["read"], "limit": {"requests": 0}}),
            ),
            (
                ".limit",
                json!({"hashes": [hash], "scopes": ["read"], "limit": {"hunter2": 1}}),
            ),
        ] {
            let problem = read(entry).unwrap_err();
            assert!(problem.starts_with(place), "{problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_caller_bound_to_sources_speaks_for_no_other() {
        let hash = Hash::of("k").to_string();
        let bound = read(json!({"hashes": [hash], "scopes": ["publish"], "sources": ["a", "b"]}));
        let bound = bound.unwrap();
        assert!(bound.speaks_for("a") && bound.speaks_for("b") && !bound.speaks_for("c"));
        assert_eq!(bound.source(), Some("a"));
        let free = read(json!({"hashes": [hash], "scopes": ["publish"]})).unwrap();
        assert_eq!(free.source(), Some(free.name.as_str()));
        assert!(Caller::anyone().speaks_for("c") && Caller::anyone().source().is_none());
    }
}
