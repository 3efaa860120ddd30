//! The channel `email`: a mail by SMTP (RFC 5321), over TLS unless the settings say otherwise.

use std::time::Duration;

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{
        Mailbox, SinglePart,
        header::{HeaderName, HeaderValue},
    },
    transport::smtp::{
        Error,
        authentication::Credentials,
        client::{Certificate, CertificateStore, Tls, TlsParameters},
    },
};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use tokio::time::timeout;
use usersync_core::secret::SecretRef;
use usersync_targets::Failure;

use super::{channel::Answer, notice::Notice};

/// Says that no person wrote it, so that no absent one answers (RFC 3834).
const AUTO_SUBMITTED: HeaderName = HeaderName::new_from_ascii_str("Auto-Submitted");

/// Where mails go, and by which server.
#[derive(Clone, Debug)]
pub(super) struct Email {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) security: Security,
    /// The authorities trusted instead of this machine's.
    pub(super) ca: Option<SecretRef>,
    pub(super) login: Option<Login>,
    pub(super) from: Mailbox,
    pub(super) to: Vec<Mailbox>,
    pub(super) timeout: Duration,
}

/// How the connection is kept from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Security {
    /// TLS after a greeting without; nothing is sent where the server has none.
    Starttls,
    /// TLS from the first byte.
    Tls,
    /// Nothing.
    None,
}

impl Security {
    /// The port that is meant where none is named.
    pub(super) const fn port(self) -> u16 {
        match self {
            Self::Starttls => 587,
            Self::Tls => 465,
            Self::None => 25,
        }
    }
}

/// Who the server knows us as.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: SecretRef,
}

impl Email {
    /// Makes what sends, with the secrets as they are now.
    ///
    /// # Errors
    /// What doesn't fit, beginning with the setting.
    pub(super) fn open(&self) -> Result<AsyncSmtpTransport<Tokio1Executor>, String> {
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&self.host)
            .port(self.port)
            .tls(self.tls()?)
            .timeout(Some(self.timeout));
        if let Some(Login { username, password }) = &self.login {
            let password = password.resolve();
            let password = password.map_err(|error| format!("notify.email.password: {error}"))?;
            let password = password.expose_secret().to_owned();
            transport = transport.credentials(Credentials::new(username.clone(), password));
        }
        Ok(transport.build())
    }

    fn tls(&self) -> Result<Tls, String> {
        if self.security == Security::None {
            return Ok(Tls::None);
        }
        let mut parameters = TlsParameters::builder(self.host.clone());
        if let Some(ca) = &self.ca {
            let pem = ca.resolve_pem();
            let pem = pem.map_err(|error| format!("notify.email.ca: {error}"))?;
            let pem = pem.expose_secret();
            let authorities = Certificate::from_pem(pem.as_bytes()).ok();
            let authorities = authorities.filter(|_| pem.contains("BEGIN CERTIFICATE"));
            let authorities = authorities.ok_or("notify.email.ca: expected PEM")?;
            parameters = parameters
                .certificate_store(CertificateStore::None)
                .add_root_certificate(authorities);
        }
        let parameters = parameters
            .build()
            .map_err(|error| format!("notify.email.ca: {error}"))?;
        Ok(match self.security {
            Security::Tls => Tls::Wrapper(parameters),
            _ => Tls::Required(parameters),
        })
    }

    pub(super) async fn send(&self, notice: &Notice) -> Answer {
        let transport = match self.open() {
            Ok(transport) => transport,
            Err(problem) => return Answer::NotNow(Failure::new(problem)),
        };
        let Ok(message) = self.message(notice) else {
            return Answer::Never(Failure::new("the mail can't be written"));
        };
        match timeout(self.timeout, transport.send(message)).await {
            Ok(Ok(_)) => Answer::Taken,
            Ok(Err(error)) => self.refused(&error),
            Err(_) => Answer::NotNow(Failure::new(format!("{} timed out", self.server()))),
        }
    }

    fn message(&self, notice: &Notice) -> Result<Message, lettre::error::Error> {
        let id = |id: &str| format!("<{id}@{}>", self.from.email.domain());
        let mut message = Message::builder()
            .from(self.from.clone())
            .subject(notice.subject())
            .message_id(Some(id(&notice.id)))
            .date_now()
            .raw_header(HeaderValue::new(
                AUTO_SUBMITTED,
                "auto-generated".to_owned(),
            ));
        for mailbox in &self.to {
            message = message.to(mailbox.clone());
        }
        if let Some(raised) = notice.answers() {
            message = message.in_reply_to(id(&raised)).references(id(&raised));
        }
        message.singlepart(SinglePart::plain(notice.text()))
    }

    fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// What an error means. Only the code of what the server says is repeated: the rest may name people.
    fn refused(&self, error: &Error) -> Answer {
        let server = self.server();
        let Some(code) = error.status() else {
            let reason = match error.is_response() {
                true => format!("{server} gives no answer of SMTP"),
                false => format!("{server}: {error}"),
            };
            return Answer::NotNow(Failure::new(reason));
        };
        let code = code.to_string();
        let failure = Failure {
            reason: match is_login(&code) {
                true => format!(
                    "{server} doesn't let us in: {code}; see notify.email.username and password"
                ),
                false => format!("{server} answered {code}"),
            }
            .into(),
            code: Some(code.clone().into()),
            retry_after: None,
        };
        match error.is_permanent() && !is_login(&code) {
            true => Answer::Never(failure),
            false => Answer::NotNow(failure),
        }
    }
}

/// Whether a code is about who we are (RFC 4954): that is put right in the settings or at the server.
fn is_login(code: &str) -> bool {
    matches!(code, "454" | "530" | "534" | "535" | "538")
}
