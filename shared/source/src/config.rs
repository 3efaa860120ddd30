//! What the settings say of a source: `[sources.NAME]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use jiff::fmt::serde::unsigned_duration::friendly::compact as duration;
use secrecy::SecretString;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use url::Url;
use usersync_core::{
    auth::{Pem, Tls},
    check::Check,
    member::Member,
    secret::SecretRef,
    settings::Reader,
};

use crate::{SourceError, TableName, layout::is_name};

/// The name of a source: what its events carry as `source`, and part of their ids.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceName(Box<str>);

/// Why a text is no source's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a source's name is 1 to 32 characters a-z 0-9 _ -")]
pub struct InvalidSourceName;

impl FromStr for SourceName {
    type Err = InvalidSourceName;

    fn from_str(text: &str) -> Result<Self, InvalidSourceName> {
        let permitted = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
        };
        match (1..=32).contains(&text.len()) && text.bytes().all(permitted) {
            true => Ok(Self(text.into())),
            false => Err(InvalidSourceName),
        }
    }
}

impl AsRef<str> for SourceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kind of server, as the URL's scheme says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// MySQL or MariaDB.
    MySql,
    /// PostgreSQL.
    Postgres,
    /// A SQLite file.
    Sqlite,
}

impl Server {
    /// The server of a URL.
    pub fn of(url: &Url) -> Option<Self> {
        match url.scheme() {
            "mysql" | "mariadb" => Some(Self::MySql),
            "postgres" | "postgresql" => Some(Self::Postgres),
            "sqlite" => Some(Self::Sqlite),
            _ => None,
        }
    }
}

/// A main database.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceConfig {
    /// Where it is: `mysql://USER@HOST/DATABASE`, `postgres://USER@HOST/DATABASE`, `sqlite:PATH`.
    pub url: Url,
    /// The password, by reference.
    pub secret: Option<SecretRef>,
    /// Whom to trust and who we are, where it is spoken to over TLS only.
    pub tls: Option<Tls>,
    /// The table with the users.
    pub table: TableName,
    /// Its column with the id.
    pub id: String,
    /// What other columns hold: column → member. Those that suggest themselves (username, email, status) come with them.
    pub columns: BTreeMap<String, Member>,
    /// Columns that are left out although they suggest themselves.
    pub without: BTreeSet<String>,
    /// The column that says of a row that usersync has deleted its user there, where the table is a target too. Where it isn't
    /// named it is `sync_deleted`, if there is `sync_version` beside it.
    pub deleted: Option<String>,
    /// Whether it is written to although it replicates from another server: two primaries of MySQL or MariaDB.
    pub follows: bool,
    /// Whether the gateway relays its outbox.
    pub outbox: bool,
    /// How it does.
    pub relay: OutboxConfig,
    /// When the states are compared with it, and what follows from a difference.
    pub check: Check,
}

/// How an outbox is relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxConfig {
    /// The pause between two looks while there is work.
    pub poll_min: Duration,
    /// The longest pause when there was none for a while.
    pub poll_max: Duration,
    /// How long published rows are kept.
    pub retention: Duration,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            poll_min: Duration::from_millis(5),
            poll_max: Duration::from_secs(1),
            retention: Duration::from_secs(60 * 60),
        }
    }
}

impl SourceConfig {
    /// A source at `url`, everything else as by default.
    pub fn at(url: Url) -> Self {
        Self {
            url,
            secret: None,
            tls: None,
            table: TableName {
                schema: None,
                name: "users".to_owned(),
            },
            id: "id".to_owned(),
            columns: BTreeMap::new(),
            without: BTreeSet::new(),
            deleted: None,
            follows: false,
            outbox: true,
            relay: OutboxConfig::default(),
            check: Check::default(),
        }
    }

    /// The mapping as far as the settings tell: whether columns that suggest themselves are there, only the table does.
    fn mapped(&self) -> BTreeMap<String, Member> {
        let mut mapped = self.columns.clone();
        for member in [Member::Username, Member::Email, Member::Status] {
            let column = member.to_string();
            let taken = self.columns.iter();
            let taken = taken
                .into_iter()
                .any(|(name, taken)| *name == column || taken.overlaps(&member));
            if !taken && !self.without.contains(&column) {
                mapped.insert(column, member);
            }
        }
        mapped
    }

    /// The kind of server.
    ///
    /// # Errors
    /// When the scheme is another one, or the URL holds a password.
    pub fn server(&self) -> Result<Server, SourceError> {
        let in_query = self.url.query_pairs().any(|(key, _)| key == "password");
        if self.url.password().is_some() || in_query {
            return Err(SourceError::Config(
                "url: a password in it is refused, it would be seen by all who see the settings; \
                 set `secret = \"env:NAME\"` or `\"file:PATH\"` instead, the user stays in the url"
                    .to_owned(),
            ));
        }
        Server::of(&self.url).ok_or_else(|| {
            SourceError::Config(
                "url: expected mysql://USER@HOST/DATABASE, postgres://USER@HOST/DATABASE or sqlite:PATH".to_owned(),
            )
        })
    }

    /// The password, where there is one.
    ///
    /// # Errors
    /// When the reference leads nowhere.
    pub(crate) fn password(&self) -> Result<Option<SecretString>, SourceError> {
        let secret = self.secret.as_ref().map(SecretRef::resolve).transpose();
        secret.map_err(|error| SourceError::Config(format!("secret: {error}")))
    }

    /// The certificates as they are now, where TLS is asked for.
    ///
    /// # Errors
    /// When they can't be used.
    pub(crate) fn pem(&self) -> Result<Option<Pem>, SourceError> {
        let pem = self.tls.as_ref().map(Tls::pem).transpose();
        pem.map_err(|error| SourceError::Unavailable(error.to_string()))
    }

    /// The file of a SQLite database: sqlite:///var/x, sqlite:/var/x and sqlite:x are all in use.
    pub(crate) fn path(&self) -> PathBuf {
        // Only a file's URL has its escapes undone; a path that isn't absolute has none.
        if self.url.path().starts_with('/')
            && self.url.host().is_none()
            && let Ok(mut absolute) = Url::parse("file:///")
        {
            absolute.set_path(self.url.path());
            if let Ok(path) = absolute.to_file_path() {
                return path;
            }
        }
        let mut relative = self.url.clone();
        relative.set_query(None);
        let text = relative.as_str().trim_start_matches("sqlite:");
        PathBuf::from(text.trim_start_matches("//"))
    }
}

/// Every source in the settings; problems stay in `reader`.
pub fn read(reader: &mut Reader) -> BTreeMap<SourceName, SourceConfig> {
    let tables = "tables such as [sources.main] with at least `url`";
    let sources: BTreeMap<String, Map<String, Value>> =
        reader.get("sources", BTreeMap::new(), tables);
    let mut found = BTreeMap::new();
    for (name, entry) in sources {
        match name.parse::<SourceName>() {
            Err(error) => reader.report(format!("sources.{name}: {error}")),
            Ok(parsed) => match source(entry) {
                Ok(config) => {
                    found.insert(parsed, config);
                }
                Err(problems) => problems
                    .into_iter()
                    .for_each(|problem| reader.report(format!("sources.{name}.{problem}"))),
            },
        }
    }
    for problem in contested(&found) {
        reader.report(problem);
    }
    found
}

/// Members that the outboxes of two sources would tell of: each would undo what the other says.
fn contested(sources: &BTreeMap<SourceName, SourceConfig>) -> Vec<String> {
    let relayed: Vec<_> = sources
        .iter()
        .filter(|(_, config)| config.outbox)
        .map(|(name, config)| (name, config.mapped()))
        .collect();
    let mut problems = Vec::new();
    for (at, (name, columns)) in relayed.iter().enumerate() {
        for (other, others) in &relayed[..at] {
            for (column, member) in columns {
                if others.values().any(|taken| taken.overlaps(member)) {
                    problems.push(format!(
                        "sources.{name}.columns: `{member}` is what {other} maps, too, and each would undo what the other says; \
                         leave it out in one of them: {column} = \"\""
                    ));
                }
            }
        }
    }
    problems
}

/// A text like `10ms`.
#[derive(Deserialize)]
struct Pause(#[serde(with = "duration::required")] Duration);

/// One entry, key by key, so that every problem is found and none quotes a value.
fn source(entry: Map<String, Value>) -> Result<SourceConfig, Vec<String>> {
    let mut entry = Entry {
        left: entry,
        problems: Vec::new(),
    };
    let url = entry.take::<Url>(
        "url",
        "a URL: mysql://USER@HOST/DATABASE, postgres://… or sqlite:PATH",
    );
    let missing = url.is_none();
    // Stands in for one that is missing, which is a problem already.
    let nowhere = || Url::parse("sqlite:none").map_err(|_| vec!["url: expected a URL".to_owned()]);
    let mut config = SourceConfig::at(match url {
        Some(url) => url,
        None => nowhere()?,
    });
    if missing && entry.problems.is_empty() {
        entry.problems.push("url: expected a URL".to_owned());
    }
    config.secret = entry.take(
        "secret",
        "a reference, `env:NAME` or `file:PATH`, never the password itself",
    );
    let tls = "a table such as { ca = \"file:PATH\", cert = \"file:PATH\", key = \"file:PATH\" }";
    if let Some(tls) = entry.take::<Tls>("tls", tls) {
        entry.problems.extend(tls.problems());
        if Server::of(&config.url).is_some() {
            entry.problems.extend(tls.misplaced(&config.url));
        }
        if let Err(error) = tls.pem() {
            entry.problems.push(error.to_string());
        }
        config.tls = Some(tls);
    }
    if let Some(table) = entry.parse::<TableName>("table", "TABLE or SCHEMA.TABLE") {
        config.table = table;
    }
    if let Some(id) = entry.take::<String>("id", "the name of a column") {
        config.id = id;
    }
    let columns = "a table of columns and members such as { phone = \"data.phone\" }";
    let columns: Option<BTreeMap<String, String>> = entry.take("columns", columns);
    for (column, member) in columns.unwrap_or_default() {
        if member.is_empty() && is_name(&column) {
            config.without.insert(column);
            continue;
        }
        match member.parse() {
            Ok(member) if is_name(&column) => {
                config.columns.insert(column, member);
            }
            Ok(_) => entry
                .problems
                .push("columns: expected names of 1 to 63 bytes".to_owned()),
            Err(error) => entry
                .problems
                .push(format!("columns.{column}: `{member}` {error}")),
        }
    }
    if !is_name(&config.id) {
        entry
            .problems
            .push("id: expected the name of a column".to_owned());
    }
    config.deleted = entry.take("deleted", "the name of a column");
    if let Some(follows) = entry.take("follows", "true or false") {
        config.follows = follows;
    }
    if let Some(on) = entry.take("outbox", "true or false") {
        config.outbox = on;
    }
    let check =
        "a table such as { every = \"1h\", orphan = \"report\" }; docs/CHECK.md has its keys";
    if let Some(check) = entry.take::<Check>("check", check) {
        entry.problems.extend(check.problems());
        config.check = check;
    }
    if config.server() == Ok(Server::Sqlite) {
        // Asking a file costs nothing worth saving.
        config.relay.poll_max = Duration::from_millis(50);
    }
    let relay = &mut config.relay;
    let pauses = [
        ("poll_min", &mut relay.poll_min, 1, 10_000),
        ("poll_max", &mut relay.poll_max, 1, 60_000),
        ("retention", &mut relay.retention, 0, 30 * 24 * 3_600_000),
    ];
    for (key, place, least, most) in pauses {
        let expected = "a duration such as 10ms, 1s or 1h";
        if let Some(Pause(pause)) = entry.take(key, expected) {
            *place = pause;
            let bounds = Duration::from_millis(least)..=Duration::from_millis(most);
            if !bounds.contains(&pause) {
                entry
                    .problems
                    .push(format!("{key}: expected {least}ms to {}s", most / 1_000));
            }
        }
    }
    if config.relay.poll_min > config.relay.poll_max {
        entry
            .problems
            .push("poll_min: expected at most poll_max".to_owned());
    }
    if !missing && let Err(error) = config.server() {
        entry.problems.push(error.to_string());
    }
    if let Some(Err(error)) = config.secret.as_ref().map(SecretRef::resolve) {
        entry.problems.push(format!("secret: {error}"));
    }
    let unknown = entry.left.keys().map(|key| {
        format!("{key}: is no setting of a source; expected url, secret, tls, table, id, columns, deleted, follows, outbox, poll_min, poll_max, retention or check")
    });
    entry.problems.extend(unknown);
    match entry.problems.is_empty() {
        true => Ok(config),
        false => Err(entry.problems),
    }
}

/// An entry whose keys are taken out one by one.
struct Entry {
    left: Map<String, Value>,
    problems: Vec<String>,
}

impl Entry {
    fn take<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Option<T> {
        let value = self.left.remove(key)?;
        let read = serde_json::from_value(value).ok();
        if read.is_none() {
            self.problems.push(format!("{key}: expected {expected}"));
        }
        read
    }

    fn parse<T: FromStr>(&mut self, key: &str, expected: &str) -> Option<T> {
        let text: String = self.take(key, expected)?;
        let read = text.parse().ok();
        if read.is_none() {
            self.problems.push(format!("{key}: expected {expected}"));
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(toml: &str) -> Result<SourceConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, format!("[sources.main]\n{toml}")).unwrap();
        let mut reader = Reader::new(Some(&path));
        let mut sources = read(&mut reader);
        match reader.finish() {
            Ok(()) => Ok(sources.remove(&"main".parse().unwrap()).unwrap()),
            Err(problems) => Err(problems.to_string()),
        }
    }

    #[test]
    fn a_source_needs_only_a_url() {
        let config = parsed("url = 'mysql://app@db/app'").unwrap();
        assert_eq!(
            config,
            SourceConfig::at("mysql://app@db/app".parse().unwrap())
        );
        let config = parsed(
            "url = 'sqlite:/var/app.db'\ntable = 'app.people'\nid = 'uid'\nretention = '2h'\noutbox = false\ncolumns = { tel = 'data.phone' }",
        )
        .unwrap();
        assert_eq!(config.table.to_string(), "app.people");
        let config_of_check =
            parsed("url = 'sqlite:x'\n[sources.main.check]\nevery = '5m'\norphan = 'repair'")
                .unwrap();
        assert_eq!(config_of_check.check.every, Duration::from_secs(300));
        assert_eq!(
            config_of_check.check.orphan,
            usersync_core::check::Policy::Repair
        );
        assert_eq!(config.columns["tel"].to_string(), "data.phone");
        assert_eq!(config.relay.retention, Duration::from_secs(7_200));
        assert_eq!(config.relay.poll_max, Duration::from_millis(50));
        assert_eq!(config.path(), PathBuf::from("/var/app.db"));
    }

    #[test]
    fn two_outboxes_tell_of_no_member_both() {
        let read = |columns: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.toml");
            let text =
                format!("[sources.a]\nurl = 'sqlite:a'\n[sources.b]\nurl = 'sqlite:b'\n{columns}");
            std::fs::write(&path, text).unwrap();
            let mut reader = Reader::new(Some(&path));
            super::read(&mut reader);
            reader.finish().map_err(|problems| problems.to_string())
        };
        let problems = read("").unwrap_err();
        assert!(
            problems.contains("sources.b.columns: `email` is what a maps, too"),
            "{problems}"
        );
        let rest = "[sources.b.columns]\nusername = ''\nemail = ''\nstatus = ''\n";
        assert_eq!(read(rest), Ok(()));
        assert_eq!(read("outbox = false"), Ok(()), "it is only compared");
        let inside = format!("{rest}plan = 'data.plan'\n[sources.a.columns]\nmore = 'data'\n");
        let problems = read(&inside).unwrap_err();
        assert!(
            problems.contains("`data.plan` is what a maps"),
            "{problems}"
        );
    }

    #[test]
    fn every_problem_names_its_key_and_no_value() {
        let rows = [
            ("table = 'users'", "url: expected a URL"),
            ("url = 'http://db'", "url: expected mysql://"),
            (
                "url = 'mysql://u:hunter2@db/app'",
                "url: a password in it is refused",
            ),
            (
                "url = 'mysql://db/app?password=hunter2'",
                "url: a password in it is refused",
            ),
            (
                "url = 'mysql://db/app'\nsecret = 'hunter2'",
                "secret: expected a reference",
            ),
            (
                "url = 'mysql://db/app'\npoll_min = 'often'",
                "poll_min: expected a duration",
            ),
            (
                "url = 'mysql://db/app'\npoll_max = '2h'",
                "poll_max: expected 1ms to 60s",
            ),
            (
                "url = 'mysql://db/app'\npoll_min = '2s'",
                "poll_min: expected at most poll_max",
            ),
            (
                "url = 'mysql://db/app'\ncolumns = { tel = 'phone' }",
                "columns.tel: `phone` is no member",
            ),
            ("url = 'sqlite:x'\ntls = {}", "tls: only servers"),
            (
                "url = 'postgres://db/app?sslmode=require'\ntls = {}",
                "tls: the url says `sslmode`",
            ),
            (
                "url = 'mysql://db/app'\ntls = { ca = '-----BEGIN hunter2' }",
                "tls: expected a table",
            ),
            (
                "url = 'mysql://db/app'\ntls = { ca = 'file:/nonexistent/ca.pem' }",
                "tls.ca: can't read",
            ),
            (
                "url = 'mysql://db/app'\ncolums = {}",
                "colums: is no setting of a source",
            ),
        ];
        for (toml, expected) in rows {
            let error = parsed(toml).unwrap_err();
            assert!(
                error.contains(&format!("sources.main.{expected}")),
                "{toml}: {error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn paths_of_files_are_written_in_several_ways() {
        for (url, path) in [
            ("sqlite:///a/b.db", "/a/b.db"),
            ("sqlite:/a/b.db", "/a/b.db"),
            ("sqlite:b.db", "b.db"),
            ("sqlite://b.db?mode=rw", "b.db"),
            ("sqlite:/a b/c%25.db", "/a b/c%.db"),
        ] {
            let config = SourceConfig::at(url.parse().unwrap());
            assert_eq!(config.path(), PathBuf::from(path), "{url}");
        }
    }
}
