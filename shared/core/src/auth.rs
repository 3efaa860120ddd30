//! Who we are to a target, and whom we trust there: credentials and certificates, all by reference.

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

use crate::{
    secret::{SecretError, SecretRef},
    tls::{self, Unusable},
};

/// What calls to an HTTP target are let in by, one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// A token that stays (RFC 6750): a reference to it alone, without `Bearer`.
    Bearer(SecretRef),
    /// A user and a password (RFC 7617).
    Basic(Basic),
    /// A token that is fetched, and fetched again before it expires (RFC 6749 section 4.4).
    #[serde(rename = "oauth2")]
    OAuth2(OAuth2),
}

/// A user and a password.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Basic {
    /// Who we are; no colon in it.
    pub user: String,
    /// The password.
    pub password: SecretRef,
}

/// OAuth 2.0 client credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OAuth2 {
    /// Where tokens are fetched; the target's networks hold for it too.
    pub token_url: Url,
    /// Who we are.
    pub client_id: String,
    /// The client's secret, sent as the password of `client_id` (client_secret_basic).
    pub client_secret: SecretRef,
    /// What the token is to be good for, separated by spaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Whom the token is for, where the server asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
}

/// Certificates for what is called over TLS: references to PEM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    /// The authorities trusted instead of this machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<SecretRef>,
    /// Our certificate, with those between it and the authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<SecretRef>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretRef>,
}

impl Auth {
    /// What is wrong, one sentence per problem, naming the key.
    pub(crate) fn problems(&self) -> Vec<String> {
        match self {
            Self::Basic(basic) if basic.user.contains(':') => {
                vec!["auth.basic.user: a colon can't be in it (RFC 7617)".to_owned()]
            }
            Self::OAuth2(oauth2) => oauth2.problems(),
            Self::Bearer(_) | Self::Basic(_) => Vec::new(),
        }
    }
}

impl OAuth2 {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let url = &self.token_url;
        if !matches!(url.scheme(), "http" | "https") {
            problems.push("auth.oauth2.token_url: expected an http or https URL".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            problems.push(
                "auth.oauth2.token_url: a user and password in it are refused; set client_id and client_secret".to_owned(),
            );
        }
        problems
    }
}

impl Tls {
    /// What is wrong, one sentence per problem, naming the key.
    pub fn problems(&self) -> Vec<String> {
        match (&self.cert, &self.key) {
            (Some(_), None) => vec!["tls.key: a certificate needs its key".to_owned()],
            (None, Some(_)) => vec!["tls.cert: a key needs its certificate".to_owned()],
            _ => Vec::new(),
        }
    }

    /// What doesn't go together with `url`, one sentence per problem, naming the key.
    pub fn misplaced(&self, url: &Url) -> Vec<String> {
        let expected = |what: &str| vec![format!("tls: {what}")];
        match url.scheme() {
            "http" | "https" | "rediss" => Vec::new(),
            "redis" => expected("expected a url with rediss://, which is Redis with TLS"),
            "mysql" | "mariadb" | "postgres" | "postgresql" => {
                let options = url.query_pairs().map(|(key, _)| key.into_owned());
                let twice = options.filter(|key| key.starts_with("ssl"));
                let problem = |key| {
                    format!(
                        "tls: the url says `{key}`; with tls the server must prove its name, take `{key}` out"
                    )
                };
                twice.map(problem).collect()
            }
            "neo4j+s" | "neo4j+ssc" | "bolt+s" | "bolt+ssc" => {
                let ca = matches!(self.ca, Some(SecretRef::Env(_)));
                let ca =
                    ca.then_some("tls.ca: expected file:PATH, the driver of Neo4j reads it itself");
                let cert = self.cert.is_some().then_some(
                    "tls.cert: the driver of Neo4j can't show a certificate; leave it and its key out",
                );
                ca.into_iter().chain(cert).map(str::to_owned).collect()
            }
            "neo4j" | "bolt" => expected("expected a url with neo4j+s:// or bolt+s://"),
            _ => expected("only servers have it"),
        }
    }

    /// All of it, as PEM.
    ///
    /// # Errors
    /// When a reference leads nowhere, or to something else.
    pub fn pem(&self) -> Result<Pem, PemError> {
        let read = |key, reference: &Option<SecretRef>| {
            let read = reference.as_ref().map(SecretRef::resolve_pem).transpose();
            let read = read.map_err(|error| PemError::Secret(key, error))?;
            Ok(read.map(|pem| pem.expose_secret().as_bytes().to_vec()))
        };
        let ca = read("tls.ca", &self.ca)?;
        let cert = read("tls.cert", &self.cert)?;
        let identity = cert.zip(read("tls.key", &self.key)?);
        if let Some(ca) = &ca {
            tls::certificates(ca).map_err(|error| PemError::Form("tls.ca", error))?;
        }
        if let Some((cert, key)) = &identity {
            let fits = tls::certified(cert, key);
            fits.map_err(|error| PemError::Form("tls.cert, tls.key", error))?;
        }
        Ok(Pem { ca, identity })
    }

    /// Our certificate and its key, in one PEM.
    ///
    /// # Errors
    /// When a reference leads nowhere, with its key.
    pub fn identity(&self) -> Result<Option<String>, (&'static str, SecretError)> {
        let (Some(cert), Some(key)) = (&self.cert, &self.key) else {
            return Ok(None);
        };
        let cert = cert.resolve_pem().map_err(|error| ("tls.cert", error))?;
        let key = key.resolve_pem().map_err(|error| ("tls.key", error))?;
        let (cert, key) = (cert.expose_secret(), key.expose_secret());
        Ok(Some(format!("{cert}\n{key}\n")))
    }
}

/// Certificates as they are now, in PEM.
pub struct Pem {
    /// The authorities to trust.
    pub ca: Option<Vec<u8>>,
    /// Our certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Why certificates can't be used; names the key and repeats nothing.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// It isn't there.
    #[error("{0}: {1}")]
    Secret(&'static str, SecretError),
    /// It is something else.
    #[error("{0}: {1}")]
    Form(&'static str, Unusable),
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::target::TargetConfig;

    #[test]
    fn auth_and_tls_go_with_http_and_with_each_other() {
        let problems = |mut entry: serde_json::Value| {
            entry["name"] = json!("t");
            let entry: TargetConfig = serde_json::from_value(entry).unwrap();
            entry.problems().join("; ")
        };
        let oauth2 =
            |url| json!({"oauth2": {"token_url": url, "client_id": "c", "client_secret": "env:S"}});
        for auth in [
            json!({"bearer": "env:T"}),
            json!({"basic": {"user": "u", "password": "file:/p"}}),
            oauth2("https://id/token"),
        ] {
            assert_eq!(problems(json!({"url": "https://h", "auth": auth})), "");
        }
        for url in ["rediss://h", "mysql://h/d", "postgres://h/d", "neo4j+s://h"] {
            let entry = json!({"url": url, "tls": {"ca": "file:/ca.pem"}});
            assert_eq!(problems(entry), "", "{url}");
        }
        for (entry, key) in [
            (
                json!({"url": "redis://h", "auth": {"bearer": "env:T"}}),
                "auth: only",
            ),
            (
                json!({"url": "redis://h", "tls": {}}),
                "tls: expected a url with rediss://",
            ),
            (
                json!({"url": "bolt://h", "tls": {}}),
                "tls: expected a url with neo4j+s://",
            ),
            (
                json!({"url": "postgres://h/d?sslmode=require", "tls": {}}),
                "tls: the url says `sslmode`",
            ),
            (
                json!({"url": "mysql://h/d?ssl-ca=/ca.pem", "tls": {}}),
                "tls: the url says `ssl-ca`",
            ),
            (
                json!({"url": "neo4j+s://h", "tls": {"ca": "env:CA"}}),
                "tls.ca: expected file:PATH",
            ),
            (
                json!({"url": "bolt+s://h", "tls": {"cert": "file:/c", "key": "file:/k"}}),
                "tls.cert: the driver",
            ),
            (
                json!({"url": "http://h", "previous_secret": "env:T"}),
                "secret: expected",
            ),
            (
                json!({"url": "http://h", "auth": {"bearer": "env:T"}, "headers": {"authorization": "env:T"}}),
                "auth: headers",
            ),
            (
                json!({"url": "http://h", "auth": {"basic": {"user": "a:b", "password": "env:T"}}}),
                "auth.basic.user: ",
            ),
            (
                json!({"url": "http://h", "auth": oauth2("ftp://id/")}),
                "auth.oauth2.token_url: ",
            ),
            (
                json!({"url": "http://h", "auth": oauth2("http://u@id/")}),
                "auth.oauth2.token_url: ",
            ),
            (
                json!({"url": "http://h", "tls": {"cert": "file:/c"}}),
                "tls.key: ",
            ),
            (
                json!({"url": "http://h", "tls": {"key": "file:/c"}}),
                "tls.cert: ",
            ),
        ] {
            let found = problems(entry.clone());
            assert!(found.starts_with(key), "{entry}: {found}");
        }
        for plain in [
            json!({"bearer": "hunter2"}),
            json!({"basic": {"user": "u", "password": "hunter2"}}),
        ] {
            let entry = json!({"name": "t", "url": "http://h", "auth": plain});
            assert!(serde_json::from_value::<TargetConfig>(entry).is_err());
        }
    }
}
