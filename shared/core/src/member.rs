//! A member of a user that a column holds: `username`, `email`, `status`, `data`, `data.<path>`.

use std::{fmt, str::FromStr};

/// A member, as a dotted path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// The log-in name.
    Username,
    /// The e-mail address.
    Email,
    /// `data.status`, which events may carry beside `data` too.
    Status,
    /// Something in `data`, or all of it when empty.
    Data(Vec<String>),
}

/// Why a text names no member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no member of a user; expected username, email, status, data or data.<path>, where names in a path have no quotes or backslashes"
)]
pub struct InvalidMember;

impl Member {
    /// Whether a value there must be a text.
    pub fn is_text(&self) -> bool {
        !matches!(self, Self::Data(_))
    }

    /// Whether it is all of `data`, which is an object.
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Data(names) if names.is_empty())
    }

    /// Whether one of both lies in the other, or they are the same.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Data(one), Self::Data(two)) => one.starts_with(two) || two.starts_with(one),
            _ => self == other,
        }
    }
}

impl FromStr for Member {
    type Err = InvalidMember;

    fn from_str(text: &str) -> Result<Self, InvalidMember> {
        let named = |name: &str| {
            let odd = |char: char| char.is_control() || matches!(char, '\'' | '"' | '\\' | '`');
            !name.is_empty() && !name.contains(odd)
        };
        match text {
            "username" => Ok(Self::Username),
            "email" => Ok(Self::Email),
            "status" | "data.status" => Ok(Self::Status),
            "data" => Ok(Self::Data(Vec::new())),
            _ => {
                let path = text.strip_prefix("data.").ok_or(InvalidMember)?;
                let names: Vec<String> = path.split('.').map(str::to_owned).collect();
                match names.iter().all(|name| named(name)) {
                    true => Ok(Self::Data(names)),
                    false => Err(InvalidMember),
                }
            }
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Username => f.write_str("username"),
            Self::Email => f.write_str("email"),
            Self::Status => f.write_str("status"),
            Self::Data(names) if names.is_empty() => f.write_str("data"),
            Self::Data(names) => write!(f, "data.{}", names.join(".")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_paths_and_nothing_else() {
        for text in ["username", "email", "status", "data", "data.phone.home"] {
            assert_eq!(text.parse::<Member>().unwrap().to_string(), text);
        }
        assert_eq!("data.status".parse(), Ok(Member::Status));
        for text in [
            "", "phone", "data.", "data..a", "data.a'b", "user_id", "Data",
        ] {
            assert_eq!(text.parse::<Member>(), Err(InvalidMember), "{text}");
        }
    }
}
