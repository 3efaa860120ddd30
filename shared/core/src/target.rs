//! One entry of the target catalogue: where states go, and how. Files, and later the HTTP API and KV, share it.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, str::FromStr, time::Duration};

use jiff::fmt::serde::unsigned_duration::friendly::compact as duration;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use crate::{
    auth::{Auth, Tls},
    check::Check,
    fields::Fields,
    header_text::{self, HeaderText},
    network::Network,
    retry::{Breaker, Retry},
    secret::{self, SecretRef},
    subjects::GATEWAY_TARGET,
    user_id::Ids,
};

/// A target's name: one subject token that is also a durable consumer's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(Box<str>);

/// Why a text is no target name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a target name is 1 to 32 characters a-z 0-9 _ -, and not {}, which are reserved",
    RESERVED.join(", ")
)]
pub struct InvalidTargetName;

/// Names that mean something else where a target's could be: in subjects, in the keys of buckets, in paths.
const RESERVED: [&str; 3] = [GATEWAY_TARGET, "pause", "schema"];

impl FromStr for TargetName {
    type Err = InvalidTargetName;

    fn from_str(text: &str) -> Result<Self, InvalidTargetName> {
        let permitted = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
        };
        let sized = (1..=32).contains(&text.len());
        if !sized || !text.bytes().all(permitted) || RESERVED.contains(&text) {
            return Err(InvalidTargetName);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for TargetName {
    type Error = InvalidTargetName;

    fn try_from(text: String) -> Result<Self, InvalidTargetName> {
        text.parse()
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> Self {
        name.0.into()
    }
}

impl AsRef<str> for TargetName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One target, as its catalogue file describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// The name workers are started with.
    #[schema(inline)]
    pub name: TargetName,
    /// Where it is; the scheme picks the kind.
    pub url: Url,
    /// Networks it may be in beside those that every target may be in: `loopback`, `private`, an address or a range such
    /// as `10.0.0.0/8`. Workers bound it by their setting `egress.limit`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub allow_networks: Vec<Network>,
    /// How it is written to: POST, PUT or PATCH for HTTP, SET for Redis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// A disabled target gets nothing; its consumer waits.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// How long one call may take.
    #[serde(with = "duration::required", default = "default_timeout")]
    #[schema(value_type = String, default = "10s")]
    pub timeout: Duration,
    /// The most calls under way at once, per worker; within it concurrency adapts to the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub concurrency: Option<NonZeroU32>,
    /// How many users one call may carry; the kind has a default. An HTTP target that is given more than
    /// one takes a JSON array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub batch: Option<NonZeroU32>,
    /// How long a call may wait for its batch to fill.
    #[serde(
        with = "duration::required",
        default,
        skip_serializing_if = "Duration::is_zero"
    )]
    #[schema(value_type = String, default = "0s", example = "5ms")]
    pub linger: Duration,
    /// The most users per second, per worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    pub rate_limit: Option<NonZeroU32>,
    /// How failures are tried again.
    #[serde(default)]
    pub retry: Retry,
    /// When the target is left alone for a while.
    #[serde(default)]
    pub breaker: Breaker,
    /// When it is compared with the newest states, and what follows from a difference.
    #[serde(default)]
    pub check: Check,
    /// Which users it is meant to have: a CEL expression over `user` and `event`. Without it: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// What becomes of a user for whom `filter` isn't true.
    #[serde(default)]
    pub on_out_of_scope: Removal,
    /// What becomes of a deleted user.
    #[serde(default)]
    pub on_delete: Removal,
    /// How integer ids are written in JSON: `number`, `string`, or `auto`, which is a string above 2^53 − 1, where many
    /// programs take neighbours for one. An entry without it means `number`; a new one is stored with `auto`.
    #[serde(default)]
    pub ids: Ids,
    /// Which members of the user it gets.
    #[serde(default)]
    pub fields: Fields,
    /// Where a database keeps users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Table>,
    /// Whether to read users back after delivery; a difference counts as a failed attempt.
    #[serde(default)]
    pub verify: bool,
    /// Whether a cache that has lost what it was told (a restart without persistence, FLUSHALL, a failover that went back)
    /// is noticed and filled again; for Redis.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refill: bool,
    /// Where an HTTP target shows one user, with `{id}` in it; for `verify` and for checks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_url: Option<String>,
    /// Which members must be unique at an HTTP target: `username`, `email`, `data.<path>`. Who is refused twice for one of
    /// them (409) is delivered without these first, so that users who wait for each other's values get them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unique: Vec<String>,
    /// Whether to skip a call when nothing this target sees has changed since the last one.
    #[serde(default = "yes")]
    pub suppress_unchanged: bool,
    /// Whether every delivery is logged to `user.result.<target>`.
    #[serde(default = "yes")]
    pub results: bool,
    /// Headers added to every HTTP call. A value may be a reference, `env:NAME` or `file:PATH`, and has to be one
    /// where the name says that it is a secret (authorization, cookie, token, secret, key, password).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub headers: BTreeMap<String, HeaderText>,
    /// The secret that signs HTTP calls (Standard Webhooks, `whsec_…`), or the password of a database or of
    /// Redis, by reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,
    /// The secret that signed HTTP calls before `secret` did: while both are set, calls carry both signatures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_secret: Option<SecretRef>,
    /// What HTTP calls are let in by: `bearer`, `basic` or `oauth2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Certificates, as references to PEM: a private authority, a client's certificate. Databases with it must prove
    /// that they are the URL's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// For people: why it is disabled, whom to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

fn yes() -> bool {
    true
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

/// What becomes of a user at a target that is no longer meant to have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Removal {
    /// The user is deleted there.
    #[default]
    Delete,
    /// The user's status becomes `disabled` there; nothing happens to a user the target never had.
    Disable,
    /// The target keeps what it has.
    Ignore,
}

/// Where a database target keeps users. Every name is taken as it is, in the server's own spelling; a table in
/// another schema than the connection's is `schema.table`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Table {
    /// The table, or the label of the nodes; the kind has a default (`users`, `User`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The column that holds the user's id: the primary key, or another unique key.
    pub id: String,
    /// Whether the column of the id is a BINARY(16) with the 16 octets of a UUID, in the order of its text; for MySQL and
    /// MariaDB.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub binary_uuid: bool,
    /// The column that holds the version, for the guard: a 64-bit integer.
    pub version: String,
    /// The column that says that the user is deleted, kept so that nothing older revives them.
    pub deleted: String,
    /// What the other columns hold: column → member, as a dotted path.
    pub columns: BTreeMap<String, String>,
}

/// The most columns that can be mapped: what a batch of 1,000 users can carry as parameters of one statement.
const MAX_COLUMNS: usize = 60;

impl Table {
    /// What is wrong, one sentence per problem, naming the key.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let ours = [
            ("id", &self.id),
            ("version", &self.version),
            ("deleted", &self.deleted),
        ];
        let columns = self.columns.keys().map(|column| ("columns", column));
        let table = self.name.iter().map(|name| ("name", name));
        for (key, name) in table.chain(ours).chain(columns) {
            // The shortest limit of any server, in bytes.
            let sized = (1..=63).contains(&name.len());
            if !sized || name.chars().any(char::is_control) {
                problems.push(format!(
                    "table.{key}: expected names of 1 to 63 bytes without control characters"
                ));
            }
        }
        let mut taken = std::collections::BTreeSet::new();
        for (key, name) in ours {
            // Servers that fold case would take both for one column.
            let folded = name.to_lowercase();
            let mapped = self
                .columns
                .keys()
                .any(|column| column.to_lowercase() == folded);
            if !taken.insert(folded) || mapped {
                problems.push(format!("table.{key}: `{name}` has another use already"));
            }
        }
        if self.columns.len() > MAX_COLUMNS {
            problems.push(format!("table.columns: expected at most {MAX_COLUMNS}"));
        }
        for (column, path) in &self.columns {
            let inside = |rest: &str| rest.split('.').all(|name| !name.is_empty());
            let known = matches!(path.as_str(), "username" | "email" | "status" | "data")
                || path.strip_prefix("data.").is_some_and(inside);
            if !known {
                problems.push(format!(
                    "table.columns.{column}: `{path}` is no member of a user; expected username, email, status, data or data.<path>"
                ));
            }
        }
        problems
    }
}

impl Default for Table {
    fn default() -> Self {
        let member = |name: &str| (name.to_owned(), name.to_owned());
        Self {
            name: None,
            id: "id".to_owned(),
            binary_uuid: false,
            version: "sync_version".to_owned(),
            deleted: "sync_deleted".to_owned(),
            columns: ["username", "email", "status", "data"].map(member).into(),
        }
    }
}

impl TargetConfig {
    /// Everything it refers to as a secret: the key, and where the secret is.
    pub fn references(&self) -> Vec<(String, SecretRef)> {
        let tls = self.tls.as_ref();
        let named = [
            ("secret", self.secret.as_ref()),
            ("previous_secret", self.previous_secret.as_ref()),
            ("tls.ca", tls.and_then(|tls| tls.ca.as_ref())),
            ("tls.cert", tls.and_then(|tls| tls.cert.as_ref())),
            ("tls.key", tls.and_then(|tls| tls.key.as_ref())),
            ("fields.mask_key", self.fields.mask_key.as_ref()),
        ];
        let named = named
            .into_iter()
            .filter_map(|(key, reference)| Some((key.to_owned(), reference?.clone())));
        let auth = self.auth.iter().map(|auth| match auth {
            Auth::Bearer(token) => ("auth.bearer".to_owned(), token.clone()),
            Auth::Basic(basic) => ("auth.basic.password".to_owned(), basic.password.clone()),
            Auth::OAuth2(client) => (
                "auth.oauth2.client_secret".to_owned(),
                client.client_secret.clone(),
            ),
        });
        let headers = self.headers.iter().filter_map(|(name, text)| match text {
            HeaderText::Secret(reference) => Some((format!("headers.{name}"), reference.clone())),
            HeaderText::Plain(_) => None,
        });
        let files = secret::files_of(&self.url).into_iter();
        let files = files.map(|(key, file)| (format!("url ({key})"), file));
        named.chain(auth).chain(headers).chain(files).collect()
    }

    /// What is wrong with this entry beyond its types: one sentence per problem, naming the key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(300) {
            problems.push("timeout: expected more than 0s and at most 5m".to_owned());
        }
        if self.linger > Duration::from_secs(60) {
            problems.push("linger: expected at most 1m".to_owned());
        }
        let too_many = |count: Option<NonZeroU32>| count.is_some_and(|count| count.get() > 1_000);
        for (key, count) in [("concurrency", self.concurrency), ("batch", self.batch)] {
            if too_many(count) {
                problems.push(format!("{key}: expected 1 to 1000"));
            }
        }
        problems.extend(self.headers.iter().filter_map(plain_secret));
        problems.extend(self.retry.problems());
        problems.extend(self.breaker.problems());
        problems.extend(self.check.problems());
        problems.extend(self.fields.problems());
        problems.extend(self.table.iter().flat_map(Table::problems));
        problems.extend(self.unique.iter().filter_map(|path| not_unique(path)));
        problems.extend(self.misplaced());
        problems.extend(self.auth.iter().flat_map(Auth::problems));
        let tls = self.tls.iter();
        problems.extend(tls.clone().flat_map(Tls::problems));
        problems.extend(tls.flat_map(|tls| tls.misplaced(&self.url)));
        problems
    }

    /// What doesn't go together with the URL, or with another key.
    fn misplaced(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let binary_uuid = self.table.as_ref().is_some_and(|table| table.binary_uuid);
        if binary_uuid && !matches!(self.url.scheme(), "mysql" | "mariadb") {
            problems.push(
                "table.binary_uuid: expected a url with mysql:// or mariadb://, which have BINARY(16)"
                    .to_owned(),
            );
        }
        let http = matches!(self.url.scheme(), "http" | "https");
        for (key, there) in [
            ("previous_secret", self.previous_secret.is_some()),
            ("auth", self.auth.is_some()),
            ("unique", !self.unique.is_empty()),
        ] {
            if there && !http {
                problems.push(format!("{key}: only HTTP targets have it"));
            }
        }
        if self.refill && !matches!(self.url.scheme(), "redis" | "rediss") {
            problems.push("refill: only targets with redis:// or rediss:// have it".to_owned());
        }
        if self.previous_secret.is_some() && self.secret.is_none() {
            problems.push("secret: expected beside previous_secret".to_owned());
        }
        let mut names = self.headers.keys();
        if self.auth.is_some() && names.any(|name| name.eq_ignore_ascii_case("authorization")) {
            problems.push("auth: headers.Authorization says it already".to_owned());
        }
        problems
    }
}

/// What is wrong with a member that is to be unique.
fn not_unique(path: &str) -> Option<String> {
    let inside = |rest: &str| rest.split('.').all(|name| !name.is_empty());
    let known =
        matches!(path, "username" | "email") || path.strip_prefix("data.").is_some_and(inside);
    (!known).then(|| format!("unique: `{path}` is none of username, email and data.<path>"))
}

/// What is wrong with a header that shows its secret; never quotes it.
fn plain_secret((name, text): (&String, &HeaderText)) -> Option<String> {
    let plain = matches!(text, HeaderText::Plain(_));
    (plain && header_text::is_sensitive(name)).then(|| {
        format!(
            "headers.{name}: a secret in it would be seen by all who see the target; write \"env:NAME\" or \
             \"file:PATH\", which hold the whole value, such as `Bearer …`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_subject_tokens_and_some_are_reserved() {
        for name in ["unified-auth", "a", "pg_2"] {
            assert!(name.parse::<TargetName>().is_ok());
        }
        for name in [
            "",
            "gateway",
            "pause",
            "schema",
            "A",
            "a.b",
            "a b",
            "*",
            &"a".repeat(33),
        ] {
            assert_eq!(
                name.parse::<TargetName>(),
                Err(InvalidTargetName),
                "{name:?}"
            );
        }
    }

    #[test]
    fn names_and_members_of_a_table_are_checked() {
        let problems = |table: serde_json::Value| {
            let table: Table = serde_json::from_value(table).unwrap();
            table.problems().join("; ")
        };
        assert_eq!(problems(json!({})), "");
        assert_eq!(
            problems(json!({"name": "app.users", "columns": {"Tel": "data.phone.home"}})),
            ""
        );
        for (table, key) in [
            (json!({"name": ""}), "table.name"),
            (json!({"id": "i\nd"}), "table.id"),
            (json!({"id": "x".repeat(64)}), "table.id"),
            (json!({"id": "ID", "version": "id"}), "table.version"),
            (json!({"columns": {"ID": "email"}}), "table.id"),
            (json!({"columns": {"tel": "phone"}}), "table.columns.tel"),
            (json!({"columns": {"tel": "data."}}), "table.columns.tel"),
            (json!({"columns": {"tel": "data..x"}}), "table.columns.tel"),
        ] {
            let found = problems(table.clone());
            assert!(found.starts_with(key), "{table}: {found}");
        }
    }

    #[test]
    fn a_header_whose_name_says_secret_must_be_a_reference() {
        let problems = |headers: serde_json::Value| {
            let target = json!({"name": "t", "url": "http://h", "headers": headers});
            let target: TargetConfig = serde_json::from_value(target).unwrap();
            target.problems().join("; ")
        };
        let good = json!({"X-Team": "platform", "Authorization": "env:T", "X-Api-Key": "file:/k"});
        assert_eq!(problems(good), "");
        let found = problems(json!({"Authorization": "Bearer hunter2", "x-api-key": "hunter2"}));
        for part in ["headers.Authorization: ", "headers.x-api-key: ", "env:NAME"] {
            assert!(found.contains(part), "no {part:?} in {found}");
        }
        assert!(!found.contains("hunter2"), "{found}");
    }

    #[test]
    fn a_target_needs_only_name_and_url() {
        let target: TargetConfig =
            serde_json::from_value(json!({"name": "t", "url": "http://localhost/x"})).unwrap();
        assert_eq!(target.problems(), Vec::<String>::new());
        assert_eq!((target.enabled, target.retry.max_deliver), (true, 8));
        let wrong = json!({"name": "t", "url": "http://localhost/x", "retry": {"max_deliver": 0, "base": "2h"},
                           "fields": {"include": ["phone"]}, "timeout": "0s", "batch": 5000});
        let wrong: TargetConfig = serde_json::from_value(wrong).unwrap();
        assert_eq!(wrong.problems().len(), 5, "{:?}", wrong.problems());
    }
}
