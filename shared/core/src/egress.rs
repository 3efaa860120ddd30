//! Where this process lets targets be, and what it lets them be told: what every target may reach, what an entry may add
//! for itself, and which secrets it may name.
//!
//! Entries are written by more people than settings are, so they never get more than the settings say (ADR 25).

use std::net::IpAddr;

use crate::{
    grant::Grants,
    network::{Kind, Network},
    settings::Reader,
    target::TargetConfig,
};

/// The settings `egress.allow`, `egress.limit` and `egress.secrets`.
#[derive(Clone, Debug)]
pub struct Egress {
    /// What every target may reach.
    pub allow: Vec<Network>,
    /// The most that an entry may add by `allow_networks`.
    pub limit: Vec<Network>,
    /// Which secrets entries may name.
    pub secrets: Grants,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            allow: vec![Network::Named(Kind::Public)],
            limit: vec![
                Network::Named(Kind::Loopback),
                Network::Named(Kind::Private),
            ],
            secrets: Grants::default(),
        }
    }
}

impl Egress {
    /// Reads the settings; problems stay in `reader`.
    pub fn read(reader: &mut Reader) -> Self {
        let default = Self::default();
        let expected = "a list of public, loopback, private, link-local, shared, addresses and ranges such as 10.0.0.0/8";
        let mut networks = |key, default| reader.list(key, expected).unwrap_or(default);
        Self {
            allow: networks("egress.allow", default.allow),
            limit: networks("egress.limit", default.limit),
            secrets: Grants::read(reader),
        }
    }

    /// Where `target` may be.
    pub fn of(&self, target: &TargetConfig) -> Reach {
        Reach {
            egress: self.clone(),
            asked: target.allow_networks.clone(),
        }
    }
}

/// Where one target may be.
#[derive(Clone, Debug)]
pub struct Reach {
    egress: Egress,
    asked: Vec<Network>,
}

/// Why an address isn't connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is a {kind} address, and no connection is made to it: {instead}")]
pub struct Refused {
    address: IpAddr,
    kind: Kind,
    instead: &'static str,
}

impl Reach {
    /// Looks whether `address` may be connected to.
    ///
    /// # Errors
    /// When it may not, with what to do.
    pub fn check(&self, address: IpAddr) -> Result<(), Refused> {
        let any = |networks: &[Network]| networks.iter().any(|network| network.contains(address));
        let (asked, limit) = (any(&self.asked), any(&self.egress.limit));
        if any(&self.egress.allow) || (asked && limit) {
            return Ok(());
        }
        Err(Refused {
            address,
            kind: Kind::of(address),
            instead: match limit {
                true => "name its network in `allow_networks` of the target's entry",
                false => {
                    "the settings of this process don't let targets be there, see egress.allow and egress.limit"
                }
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn networks(text: &str) -> Vec<Network> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        parts.map(|part| part.parse().unwrap()).collect()
    }

    fn may(egress: &Egress, asked: &str, address: &str) -> Result<(), String> {
        let target = json!({"name": "t", "url": "http://h", "allow_networks": networks(asked)});
        let target: TargetConfig = serde_json::from_value(target).unwrap();
        let checked = egress.of(&target).check(address.parse().unwrap());
        checked.map_err(|refused| refused.to_string())
    }

    #[test]
    fn an_entry_gets_what_it_asks_for_within_the_limit() {
        let egress = Egress::default();
        assert_eq!(may(&egress, "", "8.8.8.8"), Ok(()));
        assert_eq!(may(&egress, "loopback", "127.0.0.1"), Ok(()));
        assert_eq!(may(&egress, "10.0.0.0/8", "10.1.1.1"), Ok(()));
        for (asked, address, told) in [
            ("", "127.0.0.1", "127.0.0.1 is a loopback address"),
            ("10.0.0.0/8", "127.0.0.1", "`allow_networks`"),
            ("10.0.0.0/8", "192.168.1.1", "`allow_networks`"),
            ("0.0.0.0/0", "169.254.169.254", "a cloud metadata address"),
            ("169.254.169.254", "169.254.169.254", "egress.limit"),
            ("link-local", "169.254.1.1", "egress.limit"),
            ("0.0.0.0/0", "100.64.0.1", "egress.limit"),
            ("::/0", "2002:7f00:1::", "egress.limit"),
        ] {
            let refused = may(&egress, asked, address).unwrap_err();
            assert!(refused.contains(told), "{asked} {address}: {refused}");
        }
    }

    #[test]
    fn settings_may_take_away_the_internet_and_open_a_range() {
        let egress = Egress {
            allow: networks("10.1.0.0/16, loopback"),
            limit: networks(""),
            ..Egress::default()
        };
        assert_eq!(may(&egress, "", "10.1.2.3"), Ok(()));
        assert_eq!(may(&egress, "", "127.0.0.1"), Ok(()));
        assert!(may(&egress, "public", "8.8.8.8").is_err());
        assert!(may(&egress, "private", "10.2.0.1").is_err());
    }
}
