//! Texts that a server takes in several spellings: labels, UUIDs, addresses.

use std::net::{IpAddr, Ipv4Addr};

use super::Address;

/// A text of which `most` characters are kept; of the rest, spaces at the end don't count.
pub(super) fn cut(text: &str, most: usize) -> Option<String> {
    // As many octets have no more characters.
    if text.len() <= most {
        return None;
    }
    let (end, _) = text.char_indices().nth(most)?;
    let (kept, rest) = text.split_at(end);
    Some(format!("{kept}{}", rest.trim_end_matches(' ')))
}

pub(super) fn folded(label: &str) -> String {
    label.trim_end_matches(' ').to_ascii_lowercase()
}

pub(super) fn labels(text: &str, fold: bool) -> String {
    let label = |label: &str| match fold {
        true => folded(label),
        false => label.trim_end_matches(' ').to_owned(),
    };
    let mut labels: Vec<String> = text.split(',').map(label).collect();
    labels.sort_unstable();
    labels.dedup();
    labels.join(",")
}

pub(super) fn uuid(text: &str) -> Option<String> {
    let text = text.trim();
    let braced = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    let mut digits = hex(braced.unwrap_or(text), &['-'])?;
    if digits.len() != 32 {
        return None;
    }
    for at in [20, 16, 12, 8] {
        digits.insert(at, '-');
    }
    Some(digits)
}

pub(super) fn mac(text: &str, long: bool) -> Option<String> {
    let mut digits = hex(text.trim(), &[':', '-', '.'])?;
    if long && digits.len() == 12 {
        digits.insert_str(6, "fffe");
    }
    if digits.len() != if long { 16 } else { 12 } {
        return None;
    }
    let pairs: Vec<&str> = (0..digits.len())
        .step_by(2)
        .map(|at| &digits[at..at + 2])
        .collect();
    Some(pairs.join(":"))
}

/// The hexadecimal digits of `text`, in lower case, without what is between them.
fn hex(text: &str, between: &[char]) -> Option<String> {
    let digits: String = text
        .chars()
        .filter(|char| !between.contains(char))
        .collect();
    let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    all.then(|| digits.to_ascii_lowercase())
}

pub(super) fn address(text: &str, spelled: Address) -> Option<String> {
    let (host, length) = match text.trim().split_once('/') {
        Some((host, length)) => (host, Some(length.parse::<u32>().ok()?)),
        None => (text.trim(), None),
    };
    let (address, full) = match host.parse::<IpAddr>() {
        Ok(address) => (address, None),
        Err(_) if spelled == Address::Network => network(host)?,
        Err(_) => return None,
    };
    Some(match (address, spelled) {
        (IpAddr::V4(address), Address::V6) => {
            format!("{:032x}/128", address.to_ipv6_mapped().to_bits())
        }
        (IpAddr::V4(address), _) => {
            let length = length.or(full).unwrap_or(32);
            format!("{:08x}/{length}", address.to_bits())
        }
        (IpAddr::V6(address), _) => {
            format!("{:032x}/{}", address.to_bits(), length.unwrap_or(128))
        }
    })
}

/// A network of IPv4 without its last octets, and its length by its class.
fn network(host: &str) -> Option<(IpAddr, Option<u32>)> {
    let octets = host.split('.').map(|octet| octet.parse::<u8>());
    let octets: Vec<u8> = octets.collect::<Result<_, _>>().ok()?;
    let mut all = [0; 4];
    all.get_mut(..octets.len())?.copy_from_slice(&octets);
    let by_class = match all[0] {
        240.. => 32,
        224.. => 8,
        192.. => 24,
        128.. => 16,
        _ => 8,
    };
    let told = 8 * u32::try_from(octets.len()).ok()?;
    Some((Ipv4Addr::from(all).into(), Some(by_class.max(told))))
}
