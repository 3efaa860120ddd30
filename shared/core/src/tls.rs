//! Certificates as rustls takes them, and why there is no TLS with somebody, in words that say what to do.
//! Knows no driver.

use std::{error::Error, io, sync::Arc};

use rustls::{
    AlertDescription as Alert, CertificateError as Bad, Error as Tls,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

/// Why a text is no certificate or key. It is not repeated: it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No certificate is in it, or a broken one.
    #[error("expected certificates in PEM form")]
    Certificates,
    /// No key is in it.
    #[error("expected a private key in PEM form")]
    Key,
    /// They are a certificate and a key, of different pairs.
    #[error("the key has to be the one of the certificate")]
    Pair,
}

/// The certificates in `pem`; at least one.
///
/// # Errors
/// When there is none, or a broken one.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let read = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let read = read.ok().filter(|read| !read.is_empty());
    read.ok_or(Unusable::Certificates)
}

/// A certificate, with those between it and its authority, and its key.
///
/// # Errors
/// When either can't be read, or they don't belong together.
pub fn certified(cert: &[u8], key: &[u8]) -> Result<CertifiedKey, Unusable> {
    let cert = certificates(cert)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| Unusable::Key)?;
    let pair = CertifiedKey::from_der(cert, key, &ring::default_provider());
    pair.map_err(|error| match error {
        Tls::InvalidCertificate(_) => Unusable::Certificates,
        Tls::InconsistentKeys(_) => Unusable::Pair,
        _ => Unusable::Key,
    })
}

/// What is wrong and what to do, when `error` or one it was made of is an error of TLS. Settings are called
/// `tls.ca`, `tls.cert` and `tls.key`.
pub fn why(error: &(dyn Error + 'static)) -> Option<String> {
    let Some(error) = of_rustls(error) else {
        return hung_up(error).then(|| HUNG_UP.to_owned());
    };
    let told = match error {
        Tls::InvalidCertificate(bad) => match bad {
            // An authority of the same name, made anew, doesn't fit the signature.
            Bad::UnknownIssuer | Bad::BadSignature => {
                "its certificate is of no authority we know: `tls.ca` has to hold the one that issued it"
            }
            Bad::Expired | Bad::ExpiredContext { .. } => {
                "its certificate has expired: renew it at the server"
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "its certificate isn't valid yet: look at its date, and at the clocks"
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "its certificate is another host's: the host in `url` has to be in it"
            }
            Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
                "its certificate isn't meant for servers: issue another one"
            }
            _ => return Some(format!("its certificate isn't accepted ({error})")),
        },
        Tls::InvalidMessage(_) => NONE,
        Tls::AlertReceived(Alert::CertificateRequired) => {
            "it asks for a certificate: set `tls.cert` and `tls.key`"
        }
        Tls::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            // Of an authority of the same name, made anew.
            | Alert::DecryptError
            | Alert::AccessDenied,
        ) => {
            "it doesn't take our certificate: `tls.cert` has expired, or is of an authority it doesn't know"
        }
        Tls::AlertReceived(Alert::ProtocolVersion | Alert::InsufficientSecurity)
        | Tls::PeerIncompatible(_) => "it has neither TLS 1.2 nor 1.3 as we do: renew the server",
        Tls::InconsistentKeys(_) => "`tls.key` isn't the key of `tls.cert`",
        _ => return Some(format!("it breaks off ({error})")),
    };
    Some(told.to_owned())
}

/// The server has no TLS, whichever way it says so.
pub const NONE: &str =
    "it has no TLS: turn it on there. Neither a password nor a user was sent to it";

const HUNG_UP: &str = "it hangs up while TLS is agreed on: look whether it has TLS. Neither a password nor a user was sent to it";

/// Whether the other side left in the middle of a handshake, which rustls knows nothing of.
fn hung_up(error: &(dyn Error + 'static)) -> bool {
    let text = |error: &io::Error| error.to_string() == "tls handshake eof";
    chain(error).any(|error| error.downcast_ref::<io::Error>().is_some_and(text))
}

/// An error of rustls, however it is wrapped.
fn of_rustls<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Tls> {
    chain(error).find_map(|error| error.downcast_ref::<Tls>())
}

/// An error and what it was made of: drivers wrap errors into such of I/O, and those into their own.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| cause(*error))
}

fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    // The source of these two is what their inner error was made of, not that one itself.
    if let Some(inner) = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        return Some(inner);
    }
    if let Some(shared) = error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        return Some(&**shared);
    }
    error.source()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_found_however_it_is_wrapped() {
        let error = || Tls::AlertReceived(Alert::CertificateRequired);
        let io = || io::Error::new(io::ErrorKind::InvalidData, error());
        let shared: Arc<dyn Error + Send + Sync> = Arc::new(io());
        let twice = io::Error::other(io());
        let all: [&(dyn Error + 'static); 4] = [&error(), &io(), &shared, &twice];
        for error in all {
            let told = why(error).unwrap();
            assert!(told.contains("`tls.cert`"), "{told}");
        }
        assert_eq!(
            why(&io::Error::from(io::ErrorKind::ConnectionRefused)),
            None
        );
    }
}
