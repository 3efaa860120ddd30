//! Where traces go: the settings `traces.…`.

use std::collections::BTreeMap;

use url::Url;
use usersync_core::{auth::Tls, header_text::HeaderText, settings::Reader};

/// Which share of what has no trace context begins a trace, where the settings don't say.
const SAMPLE: f64 = 0.01;

/// A collector, and what it is sent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its base, `http://127.0.0.1:4318` for example; spans are sent to `/v1/traces` under it.
    pub endpoint: Url,
    /// Sent with every request: credentials.
    pub headers: BTreeMap<String, HeaderText>,
    /// Whom to trust, and our certificate.
    pub tls: Option<Tls>,
    /// The share of changes without a trace context that begin a trace, 0 to 1.
    pub sample: f64,
}

impl Settings {
    /// Reads `traces.…`; `None` without an endpoint. Problems stay in `reader`.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let expected = "the base URL of an OTLP collector, such as http://127.0.0.1:4318";
        let endpoint: Option<Url> = reader.optional("traces.endpoint", expected);
        let headers = reader.get(
            "traces.headers",
            BTreeMap::new(),
            "headers, each a text or a reference to a secret, env:NAME or file:PATH",
        );
        let tls: Option<Tls> =
            reader.optional("traces.tls", "ca, cert and key, each env:NAME or file:PATH");
        let sample: f64 = reader.get("traces.sample", SAMPLE, "a number from 0 to 1");
        if !(0.0..=1.0).contains(&sample) {
            reader.problem("traces.sample", "a number from 0 to 1");
        }
        for problem in tls.iter().flat_map(Tls::problems) {
            reader.report(format!("traces.{problem}"));
        }
        let endpoint = endpoint?;
        if !matches!(endpoint.scheme(), "http" | "https") || !endpoint.username().is_empty() {
            reader.problem("traces.endpoint", expected);
        }
        Some(Self {
            endpoint,
            headers,
            tls,
            sample,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> (Option<Settings>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.toml");
        std::fs::write(&path, content).unwrap();
        let mut reader = Reader::new(Some(&path));
        let settings = Settings::read(&mut reader);
        let problems = reader.finish().err();
        (
            settings,
            problems.map_or_else(String::new, |problems| problems.to_string()),
        )
    }

    #[test]
    fn nothing_is_sent_unless_an_endpoint_is_named() {
        let (settings, problems) = read("[traces]\nsample = 0.5");
        assert!(settings.is_none());
        assert_eq!(problems, "");
    }

    #[test]
    fn a_collector_has_an_endpoint_and_credentials_by_reference() {
        let (settings, problems) = read(
            "[traces]\nendpoint = 'https://otel:4318'\nheaders = { authorization = 'env:OTEL' }\ntls = { ca = 'file:/ca' }",
        );
        assert_eq!(problems, "");
        let settings = settings.unwrap();
        assert!(matches!(
            settings.headers["authorization"],
            HeaderText::Secret(_)
        ));
        assert!(settings.tls.is_some() && settings.sample == SAMPLE);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (content, key) in [
            ("[traces]\nendpoint = 'otel'", "traces.endpoint: expected"),
            (
                "[traces]\nendpoint = 'ftp://otel'",
                "traces.endpoint: expected",
            ),
            (
                "[traces]\nendpoint = 'http://me@otel'",
                "traces.endpoint: expected",
            ),
            ("[traces]\nsample = 2", "traces.sample: expected"),
            (
                "[traces]\ntls = { cert = 'file:/c' }",
                "traces.tls.key: a certificate needs its key",
            ),
        ] {
            let (_, problems) = read(content);
            assert!(problems.contains(key), "{content}: {problems}");
        }
    }
}
