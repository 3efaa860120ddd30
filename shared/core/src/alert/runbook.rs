//! Where people find what to do about an alert.

use url::Url;

use super::Kind;
use crate::settings::Reader;

/// Where the run-book is in this project, unless the settings say otherwise.
pub const RUNBOOK: &str = "docs/RUNBOOK.md";

/// What links in alerts begin with.
#[derive(Clone, Debug)]
pub struct Runbook(String);

impl Runbook {
    /// Reads the setting `alerts.runbook`.
    pub fn read(reader: &mut Reader) -> Self {
        let expected = "an address that people reach, such as https://wiki.example.com/RUNBOOK.md";
        let base: String = reader.get("alerts.runbook", RUNBOOK.to_owned(), expected);
        if base != RUNBOOK && !is_address(&base) {
            reader.problem("alerts.runbook", expected);
        }
        Self(base)
    }

    /// The section about `kind`.
    pub fn of(&self, kind: Kind) -> String {
        format!("{}#{}", self.0, kind.anchor())
    }
}

/// Whether a link can be made of it that leads there from a mail, too.
fn is_address(base: &str) -> bool {
    let url = base.parse::<Url>();
    !base.contains([' ', '#'])
        && url.is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_somewhere_from_a_mail_too() {
        for base in [
            "https://wiki.example.com/RUNBOOK.md",
            "http://wiki/a?page=usersync",
        ] {
            assert!(is_address(base), "{base}");
        }
        for base in [
            "",
            "docs/other.md",
            "/RUNBOOK.md",
            "file:///RUNBOOK.md",
            "https://wiki/#top",
        ] {
            assert!(!is_address(base), "{base}");
        }
        let link = Runbook("https://wiki/RUNBOOK.md".to_owned()).of(Kind::Breaker);
        assert_eq!(link, "https://wiki/RUNBOOK.md#breaker-open");
    }
}
