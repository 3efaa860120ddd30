//! The one client that makes an HTTP target's calls: no redirects, no proxies, nowhere the target may not be, and with
//! the credentials of the entry.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{
    Certificate, Client, ClientBuilder, Identity, Request, Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
    redirect, retry,
};
use secrecy::ExposeSecret;
use usersync_core::{
    auth::{Auth, Tls},
    egress::Refused,
    target::TargetConfig,
};

use super::{answer, token::Tokens};
use crate::{ConfigError, Failure, way::Way};

/// How long connecting may take, where calls may take longer.
const CONNECT: Duration = Duration::from_secs(5);

/// The most headers that an answer may have; servers behind many proxies have more than the client's own hundred.
const HEADERS: usize = 512;
/// How long they may be altogether over HTTP/2, which counts octets.
const HEADER_BYTES: u32 = 256 * 1024;

/// Makes the calls of one target.
pub(super) struct HttpClient {
    client: Client,
    way: Way,
    tokens: Option<Tokens>,
    timeout: Duration,
}

/// Why a call has no answer.
pub(super) enum Unanswered {
    /// It was not made: the target may not be there.
    Refused(Refused),
    /// It was not made: there is no token for it.
    NoToken(Failure),
    /// It failed.
    Failed(reqwest::Error),
    /// It took too long.
    Late,
}

impl From<reqwest::Error> for Unanswered {
    fn from(error: reqwest::Error) -> Self {
        Self::Failed(error)
    }
}

impl HttpClient {
    /// At most `idle` connections are kept open; `headers` go with every call.
    pub(super) fn new(
        config: &TargetConfig,
        mut headers: HeaderMap,
        idle: usize,
        way: Way,
    ) -> Result<Self, ConfigError> {
        // Only the first call in a process installs it; later ones find it there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut tokens = None;
        match &config.auth {
            None => {}
            Some(Auth::OAuth2(oauth2)) => {
                let mut client = guarded(config, &way);
                if let Some(authorities) = authorities(config.tls.as_ref())? {
                    client = client.tls_certs_merge(authorities);
                }
                tokens = Some(Tokens::new(oauth2, built(client)?, way.clone())?);
            }
            Some(Auth::Bearer(token)) => {
                let token = resolved("auth.bearer", token.resolve())?;
                let text = format!("Bearer {}", token.expose_secret());
                headers.insert(AUTHORIZATION, sensitive(&text, "auth.bearer")?);
            }
            Some(Auth::Basic(credentials)) => {
                let password = resolved("auth.basic.password", credentials.password.resolve())?;
                let header = basic(&credentials.user, password.expose_secret());
                headers.insert(AUTHORIZATION, header);
            }
        }
        let mut client = guarded(config, &way)
            .default_headers(headers)
            .pool_max_idle_per_host(idle);
        if config.url.scheme() == "http" {
            // Only HTTP/2 says that a request was not looked at, and that is spoken over TLS alone: without the
            // prospect of a second try nothing has to be copied for it.
            client = client.retry(retry::never().max_retries_per_request(0));
        }
        if let Some(authorities) = authorities(config.tls.as_ref())? {
            client = client.tls_certs_only(authorities);
        }
        if let Some(tls) = &config.tls {
            let identity = tls.identity();
            let identity = identity.or_else(|(key, error)| resolved(key, Err(error)))?;
            if let Some(pem) = identity {
                let identity = Identity::from_pem(pem.as_bytes());
                client = client.identity(identity.map_err(|_| ConfigError::Pem("tls.cert"))?);
            }
        }
        Ok(Self {
            client: built(client)?,
            way,
            tokens,
            timeout: config.timeout,
        })
    }

    /// Makes a call; where tokens are fetched, that is part of it.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn send(&self, request: Request) -> Result<Response, Unanswered> {
        let checked = self.way.check_literal(request.url());
        checked.map_err(Unanswered::Refused)?;
        let Some(tokens) = &self.tokens else {
            return Ok(self.client.execute(request).await?);
        };
        let patience = request.timeout().copied().unwrap_or(self.timeout);
        // On the heap, so that it doesn't weigh on targets without tokens.
        let sending = Box::pin(self.send_with(tokens, request));
        let answered = tokio::time::timeout(patience, sending).await;
        answered.unwrap_or(Err(Unanswered::Late))
    }

    /// With a token; once more with another one when the target doesn't take it.
    async fn send_with(
        &self,
        tokens: &Tokens,
        mut request: Request,
    ) -> Result<Response, Unanswered> {
        let token = tokens.get(None).await.map_err(Unanswered::NoToken)?;
        request.headers_mut().insert(AUTHORIZATION, token.header());
        let again = request.try_clone();
        let response = self.client.execute(request).await?;
        let (StatusCode::UNAUTHORIZED, Some(mut again)) = (response.status(), again) else {
            return Ok(response);
        };
        let another = tokens
            .get(Some(&token))
            .await
            .map_err(Unanswered::NoToken)?;
        again.headers_mut().insert(AUTHORIZATION, another.header());
        Ok(self.client.execute(again).await?)
    }
}

/// What holds for every call, wherever it goes.
fn guarded(config: &TargetConfig, way: &Way) -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("usersync/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .http1_max_headers(HEADERS)
        .http2_max_header_list_size(HEADER_BYTES)
        // A proxy would resolve names by itself.
        .no_proxy()
        .dns_resolver(Arc::new(way.clone()))
        .timeout(config.timeout)
        .connect_timeout(config.timeout.min(CONNECT))
}

fn built(client: ClientBuilder) -> Result<Client, ConfigError> {
    let built = client.build();
    built.map_err(|error| ConfigError::Url(answer::describe(&error)))
}

/// The authorities that `tls.ca` names.
fn authorities(tls: Option<&Tls>) -> Result<Option<Vec<Certificate>>, ConfigError> {
    let Some(ca) = tls.and_then(|tls| tls.ca.as_ref()) else {
        return Ok(None);
    };
    let pem = resolved("tls.ca", ca.resolve_pem())?;
    let authorities = Certificate::from_pem_bundle(pem.expose_secret().as_bytes());
    let authorities = authorities
        .ok()
        .filter(|authorities| !authorities.is_empty());
    authorities.map(Some).ok_or(ConfigError::Pem("tls.ca"))
}

fn resolved<T>(
    key: &str,
    resolved: Result<T, usersync_core::secret::SecretError>,
) -> Result<T, ConfigError> {
    resolved.map_err(|error| ConfigError::Secret {
        key: key.to_owned(),
        error,
    })
}

fn sensitive(text: &str, key: &str) -> Result<HeaderValue, ConfigError> {
    let header = HeaderValue::from_str(text);
    let mut header = header.map_err(|_| ConfigError::Header(key.to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// `Authorization` by a user and a password (RFC 7617).
pub(super) fn basic(user: &str, password: &str) -> HeaderValue {
    let text = BASE64_STANDARD.encode(format!("{user}:{password}"));
    // Base64 is all ASCII.
    let header = HeaderValue::try_from(format!("Basic {text}"));
    let mut header = header.unwrap_or(HeaderValue::from_static("Basic"));
    header.set_sensitive(true);
    header
}
