//! Networks that targets may be in: by name, such as `loopback`, or as a range, such as `10.0.0.0/8`.
//!
//! What an address is follows the special-purpose registries of IANA (RFC 6890): what isn't known to be globally
//! reachable isn't public.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anywhere on the internet.
    Public,
    /// This machine.
    Loopback,
    /// RFC 1918, and unique local addresses of IPv6.
    Private,
    /// This link, without a router.
    LinkLocal,
    /// Behind a carrier's NAT (RFC 6598).
    Shared,
    /// Where clouds tell machines their credentials.
    Metadata,
    /// Nowhere a target can be: unspecified, multicast, documentation, tunnels, the future.
    Reserved,
}

impl Kind {
    /// The kinds that have a name in settings and entries.
    const NAMED: [(&'static str, Self); 5] = [
        ("public", Self::Public),
        ("loopback", Self::Loopback),
        ("private", Self::Private),
        ("link-local", Self::LinkLocal),
        ("shared", Self::Shared),
    ];

    /// What `address` is. One of IPv6 that leads to one of IPv4 is what that one is.
    pub fn of(address: IpAddr) -> Self {
        let address = led_to(address);
        if METADATA.contains(&address) {
            return Self::Metadata;
        }
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::NAMED.iter().find(|(_, kind)| kind == self);
        f.write_str(match self {
            Self::Metadata => "cloud metadata",
            Self::Reserved => "reserved",
            _ => named.map_or("", |(name, _)| name),
        })
    }
}

/// AWS (machines, ECS, EKS), Google, Alibaba, Azure's wire server, Oracle; of these the last but one is in a public range.
const METADATA: [IpAddr; 9] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// Every range of IPv4 that isn't public.
const SPECIAL_V4: [(Ipv4Net, Kind); 15] = [
    (v4(0, 0, 0, 0, 8), Kind::Reserved),
    (v4(10, 0, 0, 0, 8), Kind::Private),
    (v4(100, 64, 0, 0, 10), Kind::Shared),
    (v4(127, 0, 0, 0, 8), Kind::Loopback),
    (v4(169, 254, 0, 0, 16), Kind::LinkLocal),
    (v4(172, 16, 0, 0, 12), Kind::Private),
    (v4(192, 0, 0, 0, 24), Kind::Reserved),
    (v4(192, 0, 2, 0, 24), Kind::Reserved),
    (v4(192, 88, 99, 0, 24), Kind::Reserved),
    (v4(192, 168, 0, 0, 16), Kind::Private),
    (v4(198, 18, 0, 0, 15), Kind::Reserved),
    (v4(198, 51, 100, 0, 24), Kind::Reserved),
    (v4(203, 0, 113, 0, 24), Kind::Reserved),
    (v4(224, 0, 0, 0, 4), Kind::Reserved),
    (v4(240, 0, 0, 0, 4), Kind::Reserved),
];

/// The first that holds an address says what it is; what is in none is reserved. Teredo is in 2001::/23 and 6to4 is
/// 2002::/16: both tunnel to IPv4.
const RANGES_V6: [(Ipv6Net, Kind); 7] = [
    (v6(0xfe80, 0, 10), Kind::LinkLocal),
    (v6(0xfc00, 0, 7), Kind::Private),
    (v6(0x2001, 0, 23), Kind::Reserved),
    (v6(0x2001, 0xdb8, 32), Kind::Reserved),
    (v6(0x2002, 0, 16), Kind::Reserved),
    (v6(0x3fff, 0, 20), Kind::Reserved),
    (v6(0x2000, 0, 3), Kind::Public),
];

fn of_v4(address: Ipv4Addr) -> Kind {
    let mut special = SPECIAL_V4.iter();
    let range = special.find(|(range, _)| range.contains(&address));
    range.map_or(Kind::Public, |(_, kind)| *kind)
}

fn of_v6(address: Ipv6Addr) -> Kind {
    if address.is_loopback() {
        return Kind::Loopback;
    }
    let mut ranges = RANGES_V6.iter();
    let range = ranges.find(|(range, _)| range.contains(&address));
    range.map_or(Kind::Reserved, |(_, kind)| *kind)
}

/// The address of IPv4 that a mapped one (RFC 4291) or one behind NAT64's well-known prefix (RFC 6052) leads to.
fn led_to(address: IpAddr) -> IpAddr {
    let IpAddr::V6(long) = address else {
        return address;
    };
    match long.segments() {
        [0, 0, 0, 0, 0, 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => {
            let [.., a, b, c, d] = long.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => address,
    }
}

/// A network that may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Network {
    /// All addresses of one kind.
    Named(Kind),
    /// A range. A cloud's metadata is in none but its own, of this one address.
    Range(IpNet),
}

impl Network {
    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (kind, address) = (Kind::of(address), led_to(address));
        match self {
            Self::Named(named) => *named == kind,
            Self::Range(range) => {
                let alone = range.prefix_len() == range.max_prefix_len();
                range.contains(&address) && (kind != Kind::Metadata || alone)
            }
        }
    }
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected public, loopback, private, link-local, shared, an address or a range such as 10.0.0.0/8"
)]
pub struct InvalidNetwork;

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let named = Kind::NAMED.iter().find(|(name, _)| *name == text);
        if let Some((_, kind)) = named {
            return Ok(Self::Named(*kind));
        }
        let alone = text.parse::<IpAddr>().map(IpNet::from);
        let range = alone.or_else(|_| text.parse::<IpNet>());
        range.map(Self::Range).map_err(|_| InvalidNetwork)
    }
}

impl TryFrom<String> for Network {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        match network {
            Network::Named(kind) => kind.to_string(),
            Network::Range(range) => range.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(address: &str) -> Kind {
        Kind::of(address.parse().unwrap())
    }

    #[test]
    fn every_address_has_its_kind_at_both_ends_of_its_range() {
        use Kind::*;
        for (addresses, expected) in [
            (
                "8.8.8.8 1.1.1.1 172.15.255.255 172.32.0.0 100.63.255.255 100.128.0.0 223.255.255.255",
                Public,
            ),
            (
                "2606:4700::1111 2001:200::1 2a00::1 3ffe::1 ::ffff:8.8.8.8 64:ff9b::808:808",
                Public,
            ),
            (
                "127.0.0.1 127.255.255.255 ::1 ::ffff:127.0.0.1 64:ff9b::7f00:1",
                Loopback,
            ),
            (
                "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0 192.168.255.255",
                Private,
            ),
            ("fc00::1 fdff::1 ::ffff:10.0.0.1 64:ff9b::a00:1", Private),
            ("169.254.0.1 fe80::1 febf::1 ::ffff:169.254.1.1", LinkLocal),
            ("100.64.0.0 100.127.255.255 ::ffff:100.64.0.1", Shared),
            (
                "169.254.169.254 fd00:ec2::254 fd20:ce::254 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe",
                Metadata,
            ),
            ("100.100.100.200 168.63.129.16 169.254.170.2", Metadata),
            (
                "0.0.0.0 0.255.255.255 192.0.0.1 192.0.2.1 192.88.99.1 198.18.0.0 198.19.255.255",
                Reserved,
            ),
            (
                "198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255",
                Reserved,
            ),
            (
                ":: ::127.0.0.1 ::8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b:1::7f00:1 100::1 fec0::1 ff02::1",
                Reserved,
            ),
            (
                "2001::1 2001:1ff::1 2001:db8::1 2002:7f00:1::1 3fff::1 4000::1",
                Reserved,
            ),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(kind(address), expected, "{address}");
            }
        }
    }

    #[test]
    fn a_range_holds_what_leads_into_it_but_no_metadata_unless_alone() {
        let holds = |network: &str, address: &str| {
            let network: Network = network.parse().unwrap();
            network.contains(address.parse().unwrap())
        };
        assert!(holds("10.0.0.0/8", "10.1.2.3") && holds("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(holds("10.1.2.3", "10.1.2.3") && !holds("10.1.2.3", "10.1.2.4"));
        assert!(holds("private", "fd00::1") && !holds("private", "fd00:ec2::254"));
        assert!(!holds("0.0.0.0/0", "169.254.169.254") && !holds("link-local", "169.254.169.254"));
        assert!(holds("169.254.169.254/32", "169.254.169.254"));
        assert!(!holds("public", "168.63.129.16") && !holds("fd00::/8", "fd00:ec2::254"));
    }

    #[test]
    fn networks_are_written_as_they_are_read() {
        for text in ["public", "loopback", "link-local", "10.0.0.0/8", "fd00::/8"] {
            assert_eq!(String::from(text.parse::<Network>().unwrap()), text);
        }
        for text in [
            "",
            "Loopback",
            "metadata",
            "reserved",
            "10.0.0.0/33",
            "localhost",
            "*",
        ] {
            assert_eq!(text.parse::<Network>(), Err(InvalidNetwork), "{text:?}");
        }
    }
}
