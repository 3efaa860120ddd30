//! Who is told, and how: the settings `notify.…`.

use std::time::Duration;

use lettre::message::Mailbox;
use serde::Deserialize;
use serde_json::{Map, Value};
use usersync_core::{
    alert::{Kind, Severity},
    catalogue,
    egress::Egress,
    secret::SecretRef,
    settings::Reader,
};

use super::{
    channel::{Channel, Scope, Way},
    email::{Email, Login, Security},
    webhook::Hook,
};
use crate::upkeep::alerts::Span;

/// Messages in a minute, where the settings don't say.
const PER_MINUTE: usize = 10;
/// How long a call or a mail may take, where the settings don't say.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest: an alert that nobody has answered for is handed out again after 30 s.
const LONGEST: Duration = Duration::from_secs(20);

/// The channels that are configured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings(Vec<Channel>);

/// Texts as a list, or in one text separated by commas, as an environment variable has them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    fn parsed<T>(self, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        let texts = match self {
            Self::Many(texts) => texts,
            Self::One(text) => text.split(',').map(str::to_owned).collect(),
        };
        texts.iter().map(|text| parse(text.trim())).collect()
    }
}

/// The keys that both channels have.
struct Keys {
    severity: &'static str,
    kinds: &'static str,
    per_minute: &'static str,
    timeout: &'static str,
}

impl Settings {
    /// Reads `notify.…`; nothing is told unless it names a URL or a server of mail. Problems stay in `reader`.
    pub(crate) fn read(reader: &mut Reader, egress: &Egress) -> Self {
        let channels = [webhook(reader, egress), email(reader)];
        Self(channels.into_iter().flatten().collect())
    }

    pub(crate) fn channels(&self) -> &[Channel] {
        &self.0
    }
}

fn webhook(reader: &mut Reader, egress: &Egress) -> Option<Channel> {
    let (scope, timeout) = scope(
        reader,
        &Keys {
            severity: "notify.webhook.severity",
            kinds: "notify.webhook.kinds",
            per_minute: "notify.webhook.per_minute",
            timeout: "notify.webhook.timeout",
        },
    );
    let keys = [
        ("url", "notify.webhook.url"),
        ("secret", "notify.webhook.secret"),
        ("previous_secret", "notify.webhook.previous_secret"),
        ("allow_networks", "notify.webhook.allow_networks"),
        ("tls", "notify.webhook.tls"),
    ];
    let mut entry = Map::new();
    for (name, key) in keys {
        let value: Option<Value> = reader.optional(key, "a value");
        entry.extend(value.map(|value| (name.to_owned(), value)));
    }
    if !entry.contains_key("url") {
        if !entry.is_empty() {
            reader.report("notify.webhook.url: expected beside the others of notify.webhook");
        }
        return None;
    }
    if !entry.contains_key("secret") {
        reader.report(
            "notify.webhook.secret: expected a reference, env:NAME or file:PATH, to what signs the calls",
        );
        return None;
    }
    entry.insert(
        "timeout".to_owned(),
        format!("{}ms", timeout.as_millis()).into(),
    );
    let config = match catalogue::entry("webhook", entry.into()) {
        Ok(config) => config,
        Err(problems) => {
            for problem in problems {
                reader.report(format!("notify.webhook.{problem}"));
            }
            return None;
        }
    };
    if !matches!(config.url.scheme(), "http" | "https") {
        reader.problem("notify.webhook.url", "an http or https URL");
        return None;
    }
    let egress = egress.clone();
    let hook = Box::new(Hook { config, egress });
    if let Err(problem) = hook.open() {
        reader.report(problem);
    }
    let way = Way::Webhook(hook);
    Some(Channel { scope, way })
}

fn email(reader: &mut Reader) -> Option<Channel> {
    let (scope, timeout) = scope(
        reader,
        &Keys {
            severity: "notify.email.severity",
            kinds: "notify.email.kinds",
            per_minute: "notify.email.per_minute",
            timeout: "notify.email.timeout",
        },
    );
    let host: Option<String> = reader.optional("notify.email.host", "a server of mail");
    let security = reader.get(
        "notify.email.tls",
        Security::Starttls,
        "starttls, tls or none",
    );
    let port = reader.get("notify.email.port", security.port(), "a port");
    let reference = "a reference, env:NAME or file:PATH";
    let ca: Option<SecretRef> = reader.optional("notify.email.ca", reference);
    let username: Option<String> = reader.optional("notify.email.username", "a user's name");
    let password: Option<SecretRef> = reader.optional("notify.email.password", reference);
    let one = "an address such as usersync@example.com";
    let from = mailboxes(reader, "notify.email.from", one);
    let many = "a list of addresses such as ops@example.com";
    let to = mailboxes(reader, "notify.email.to", many);
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        if !from.is_empty() || !to.is_empty() || username.is_some() {
            reader.report("notify.email.host: expected beside the others of notify.email");
        }
        return None;
    };
    if from.len() != 1 {
        reader.problem("notify.email.from", one);
    }
    if to.is_empty() {
        reader.problem("notify.email.to", many);
    }
    if username.is_some() != password.is_some() {
        reader.report("notify.email.username, notify.email.password: expected both or none");
    }
    if password.is_some() && security == Security::None {
        reader.report(
            "notify.email.tls: a password isn't sent without TLS; expected starttls or tls",
        );
    }
    let email = Box::new(Email {
        host,
        port,
        security,
        ca,
        login: username
            .zip(password)
            .map(|(username, password)| Login { username, password }),
        from: from.into_iter().next()?,
        to,
        timeout,
    });
    if let Err(problem) = email.open() {
        reader.report(problem);
    }
    let way = Way::Email(email);
    Some(Channel { scope, way })
}

fn mailboxes(reader: &mut Reader, key: &'static str, expected: &str) -> Vec<Mailbox> {
    list(reader, key, expected, |text| text.parse().ok())
}

fn scope(reader: &mut Reader, keys: &Keys) -> (Scope, Duration) {
    let severity = reader.get(keys.severity, Severity::Warning, "warning or critical");
    let names = Kind::ALL.map(Kind::as_str).join(", ");
    let kinds = list(reader, keys.kinds, &format!("a list of {names}"), |text| {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == text)
    });
    let number = "a number from 1 to 1000";
    let per_minute = reader.get(keys.per_minute, PER_MINUTE, number);
    if !(1..=1_000).contains(&per_minute) {
        reader.problem(keys.per_minute, number);
    }
    let expected = "a duration from 1s to 20s";
    let timeout = reader.get(keys.timeout, Span(TIMEOUT), expected).0;
    if !(Duration::from_secs(1)..=LONGEST).contains(&timeout) {
        reader.problem(keys.timeout, expected);
    }
    let kinds = kinds.into_iter().collect();
    let scope = Scope {
        severity,
        kinds,
        per_minute,
    };
    (scope, timeout)
}

/// A list whose every text can be parsed; empty without.
fn list<T>(
    reader: &mut Reader,
    key: &'static str,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Vec<T> {
    let Some(texts) = reader.optional::<Texts>(key, expected) else {
        return Vec::new();
    };
    let parsed = texts.parsed(parse);
    if parsed.is_none() {
        reader.problem(key, expected);
    }
    parsed.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const MAIL: &str = "[notify.email]\nhost = 'mail'\nfrom = 'usersync <usersync@example.com>'\n\
                        to = ['ops@example.com']\n";

    fn read(content: &str) -> (Settings, String) {
        let dir = tempfile::tempdir().unwrap();
        let (path, secret) = (dir.path().join("settings.toml"), dir.path().join("secret"));
        std::fs::write(&secret, SECRET).unwrap();
        let secret = format!("file:{}", secret.display());
        std::fs::write(&path, content.replace("SECRET", &secret)).unwrap();
        let mut reader = Reader::new(Some(&path));
        let settings = Settings::read(&mut reader, &Egress::default());
        let problems = reader.finish().err();
        let problems = problems.map_or_else(String::new, |problems| problems.to_string());
        (settings, problems)
    }

    #[test]
    fn nobody_is_told_unless_the_settings_say_whom() {
        let (settings, problems) = read("[notify.webhook]\nper_minute = 3");
        assert_eq!((settings.channels().len(), problems), (0, String::new()));
    }

    #[test]
    fn a_channel_has_a_scope_and_defaults() {
        let hook = "[notify.webhook]\nurl = 'https://hook/x'\nsecret = 'SECRET'\nseverity = 'critical'\n\
                    kinds = 'breaker, dead'\n";
        let (settings, problems) = read(&format!("{hook}{MAIL}"));
        assert_eq!(problems, "");
        let [hook, mail] = settings.channels() else {
            panic!("{settings:?}");
        };
        assert_eq!((hook.name(), mail.name()), ("webhook", "email"));
        let kinds = [Kind::Breaker, Kind::Dead].into();
        let scope = Scope {
            severity: Severity::Critical,
            kinds,
            per_minute: 10,
        };
        assert_eq!(hook.scope, scope);
        let Way::Email(mail) = &mail.way else {
            panic!("{mail:?}");
        };
        assert_eq!((mail.port, mail.security), (587, Security::Starttls));
    }

    #[test]
    fn what_is_wrong_is_named_and_never_repeated() {
        let hook = |more: &str| format!("[notify.webhook]\nurl = 'https://hook/x'\n{more}");
        for (content, told) in [
            (hook(""), "notify.webhook.secret: expected a reference"),
            (
                hook("secret = 'hunter2'"),
                "notify.webhook.secret: expected",
            ),
            (
                hook("secret = 'file:/none'"),
                "notify.webhook.secret: can't read",
            ),
            (
                hook("secret = 'SECRET'\ntimeout = '1m'"),
                "notify.webhook.timeout: expected",
            ),
            (
                hook("secret = 'SECRET'\nkinds = ['bad']"),
                "notify.webhook.kinds: expected",
            ),
            (
                hook("secret = 'SECRET'\nper_minute = 0"),
                "notify.webhook.per_minute: expected",
            ),
            (
                hook("secret = 'SECRET'\nallow_networks = ['x']"),
                "notify.webhook.allow_networks: expected",
            ),
            (
                hook("secret = 'SECRET'\nnothing = 1"),
                "notify.webhook.nothing: is no setting",
            ),
            (
                "[notify.webhook]\nsecret = 'SECRET'".to_owned(),
                "notify.webhook.url: expected",
            ),
            (
                "[notify.webhook]\nurl = 'redis://x'\nsecret = 'SECRET'".to_owned(),
                "notify.webhook.url: expected",
            ),
            (
                "[notify.webhook]\nurl = 'http://u:hunter2@x'\nsecret = 'SECRET'".to_owned(),
                "notify.webhook.url: a user",
            ),
            (
                format!("{MAIL}tls = 'maybe'"),
                "notify.email.tls: expected starttls",
            ),
            (
                format!("{MAIL}username = 'u'"),
                "notify.email.password: expected both",
            ),
            (
                format!("{MAIL}password = 'hunter2'\nusername = 'u'"),
                "notify.email.password: expected",
            ),
            (
                format!("{MAIL}password = 'SECRET'\nusername = 'u'\ntls = 'none'"),
                "notify.email.tls: a password",
            ),
            (
                format!("{MAIL}ca = 'SECRET'"),
                "notify.email.ca: expected PEM",
            ),
            (MAIL.replace("ops@", ""), "notify.email.to: expected"),
            (
                MAIL.replace("host = 'mail'", ""),
                "notify.email.host: expected",
            ),
        ] {
            let (_, problems) = read(&content);
            assert!(problems.contains(told), "{content}: {problems}");
            assert!(
                !problems.contains("hunter2") && !problems.contains("whsec"),
                "{problems}"
            );
        }
    }
}
