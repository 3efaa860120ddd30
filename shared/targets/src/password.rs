//! Who databases and Redis are logged in to as: the user stands in the URL, the password never.

use secrecy::SecretString;
use usersync_core::target::TargetConfig;

use crate::ConfigError;

/// The password, which only a reference may name.
///
/// # Errors
/// When the URL holds one, or the reference leads nowhere.
pub(crate) fn of(config: &TargetConfig) -> Result<Option<SecretString>, ConfigError> {
    let in_query = config.url.query_pairs().any(|(key, _)| key == "password");
    if config.url.password().is_some() || in_query {
        let instead = "a password in it is refused, it would be seen by all who see the target; \
                       set `secret = \"env:NAME\"` or `\"file:PATH\"` instead, the user stays in the url";
        return Err(ConfigError::Url(instead.to_owned()));
    }
    let secret = config.secret.as_ref().map(|secret| secret.resolve());
    secret.transpose().map_err(ConfigError::secret)
}
