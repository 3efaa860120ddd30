//! The many ways to write a host that isn't meant to be reached.

use std::net::Ipv4Addr;

/// This machine, clouds' metadata, private networks, a carrier's NAT, a group, nowhere.
const PLACES: [[u8; 4]; 10] = [
    [127, 0, 0, 1],
    [127, 255, 255, 254],
    [169, 254, 169, 254],
    [10, 0, 0, 1],
    [172, 31, 255, 254],
    [192, 168, 1, 1],
    [100, 64, 0, 1],
    [224, 0, 0, 1],
    [0, 0, 0, 0],
    [255, 255, 255, 255],
];

/// Hosts of IPv6, without brackets.
const LONG: [&str; 24] = [
    "::1",
    "::",
    "0:0:0:0:0:0:0:1",
    "0000:0000:0000:0000:0000:0000:0000:0001",
    "::0001",
    "fe80::1",
    "febf::1",
    "fc00::1",
    "fd00:ec2::254",
    "FD00:EC2::254",
    "fd20:ce::254",
    "fd12:3456:789a::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "2001:db8::1",
    "2001::1",
    "2001:0:7f00:1::80ff:fffe",
    "3fff::1",
    "100::1",
    "5f00::1",
    "4000::1",
    "e000::1",
    "fe80::5efe:7f00:1",
];

/// Names that a resolver of the attacker answers for, see `resolver::Answers`.
pub(crate) const NAMES: [&str; 16] = [
    "loopback.attacker.test",
    "loopback.attacker.test.",
    "LOOPBACK.attacker.TEST",
    "loopback6.attacker.test",
    "mapped.attacker.test",
    "nat64.attacker.test",
    "metadata.attacker.test",
    "metadata6.attacker.test",
    "private.attacker.test",
    "shared.attacker.test",
    "unspecified.attacker.test",
    "unspecified6.attacker.test",
    "all.attacker.test",
    "xn--bcher-kva.loopback.attacker.test",
    "localhost",
    "localhost.",
];

/// Every way to write `place` that some parser takes for it.
fn short(place: [u8; 4]) -> Vec<String> {
    let [a, b, c, d] = place;
    let number = u32::from_be_bytes(place);
    let low = number & 0x00ff_ffff;
    let half = number & 0xffff;
    let dotted = Ipv4Addr::from(place).to_string();
    let wide = |text: &str| -> String {
        let full = |c: char| char::from_u32(u32::from(c) - 0x30 + 0xff10).unwrap_or(c);
        let digit = |c: char| if c.is_ascii_digit() { full(c) } else { c };
        text.chars().map(digit).collect()
    };
    vec![
        dotted.clone(),
        format!("{dotted}."),
        format!("{number}"),
        format!("{number:#x}"),
        format!("0X{number:X}"),
        format!("0{number:o}"),
        format!("{a}.{low}"),
        format!("{a:#x}.{low:#x}"),
        format!("{a}.{b}.{half}"),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("000{a:o}.{b}.{c:#x}.{d}"),
        format!("{a:#x}.{b}.{half}"),
        wide(&dotted),
        dotted.replace('.', "\u{3002}"),
        dotted.replace('.', "\u{ff0e}"),
        dotted.replace('.', "%2e"),
        format!("%{:02x}{}", dotted.as_bytes()[0], &dotted[1..]),
        format!("[::ffff:{dotted}]"),
        format!("[::ffff:{:x}:{:x}]", number >> 16, half),
        format!("[0:0:0:0:0:ffff:{:04X}:{half:04X}]", number >> 16),
        format!("[::{dotted}]"),
        format!("[::ffff:0:{dotted}]"),
        format!("[64:ff9b::{dotted}]"),
        format!("[64:ff9b:1::{dotted}]"),
        format!("[2002:{:x}:{half:x}::1]", number >> 16),
        format!("[2001:0:{:x}:{half:x}::1]", number >> 16),
    ]
}

/// Hosts as a URL has them.
pub(crate) fn hosts() -> Vec<String> {
    let mut hosts: Vec<String> = PLACES.into_iter().flat_map(short).collect();
    hosts.extend(LONG.map(|host| format!("[{host}]")));
    hosts.extend(LONG.map(|host| format!("[{host}%25lo]")));
    hosts.extend(NAMES.map(str::to_owned));
    let odd = [
        "\u{24db}\u{24de}\u{24d2}\u{24d0}\u{24db}\u{24d7}\u{24de}\u{24e2}\u{24e3}",
        "\u{2460}\u{2461}\u{2466}.\u{24ea}.\u{24ea}.\u{2460}",
        "LOCALHOST",
        "LocalHost.",
        "%6cocalhost",
        "loc\u{ad}alhost",
        "127.0.0.1%00.example.com",
        "127.0.0.1%20",
        "0",
        "0x0",
        "00",
        "127.1",
        "127.0.1",
        "0177.1",
        "0x7f.1",
        "1.0.0.127.in-addr.arpa",
    ];
    hosts.extend(odd.map(str::to_owned));
    hosts
}

/// What else may be tried with HTTP, around a host that is refused; `PORT` is where somebody listens.
pub(crate) const HTTP: [&str; 22] = [
    "http://user@127.0.0.1:PORT/",
    "http://user:password@127.0.0.1:PORT/",
    "http://example.com@127.0.0.1:PORT/",
    "http://example.com:80@127.0.0.1:PORT/",
    "http://example.com%40127.0.0.1:PORT/",
    "http://127.0.0.1:PORT#@example.com/",
    "http://127.0.0.1:PORT?@example.com/",
    "http://127.0.0.1:PORT\\@example.com/",
    "http://\\127.0.0.1:PORT/",
    "http:\\\\127.0.0.1:PORT\\",
    "http:127.0.0.1:PORT/",
    "http:/127.0.0.1:PORT/",
    "http:////127.0.0.1:PORT/",
    "http://127.0.0.1\t:PORT/",
    "ht\ntp://127.0.0.1:PORT/",
    "HTTP://127.0.0.1:PORT/",
    "hTTpS://127.0.0.1:PORT/",
    "http://127.0.0.1:0PORT/",
    "http://127.0.0.1:80:PORT/",
    "http://[127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/../../",
    "http://0x7f000001:PORT/",
];

/// Schemes that are no kind of target.
pub(crate) const SCHEMES: [&str; 14] = [
    "ftp://127.0.0.1:PORT/",
    "file:///etc/passwd",
    "file://127.0.0.1:PORT/",
    "gopher://127.0.0.1:PORT/_x",
    "dict://127.0.0.1:PORT/x",
    "ldap://127.0.0.1:PORT/",
    "tftp://127.0.0.1:PORT/x",
    "ws://127.0.0.1:PORT/",
    "unix:///tmp/socket",
    "redis+unix:///tmp/socket",
    "valkey://127.0.0.1:PORT/",
    "jar:http://127.0.0.1:PORT!/",
    "data:text/plain,x",
    "sqlite:/tmp/x.db",
];

/// What else may be tried with databases; `SOCKET` is a folder with a socket in it.
pub(crate) const DATABASES: [&str; 16] = [
    "postgres:///db?host=127.0.0.1&port=PORT",
    "postgres:///db?hostaddr=127.0.0.1&port=PORT",
    "postgres://8.8.8.8/db?host=127.0.0.1&port=PORT",
    "postgres://8.8.8.8/db?hostaddr=::1&port=PORT",
    "postgres://8.8.8.8/db?host=2130706433&port=PORT",
    "postgres://8.8.8.8:1/db?host=SOCKET&port=PORT",
    "postgres://%2FSOCKET:PORT/db",
    "postgres://u@127.0.0.1:PORT/db?sslmode=verify-full",
    "postgres://u@localhost:PORT/db?sslmode=verify-full",
    "mysql://8.8.8.8/db?socket=SOCKET/.s.PGSQL.PORT",
    "mysql://u@127.0.0.1:PORT/db?ssl-mode=VERIFY_IDENTITY",
    "mysql://u@localhost:PORT/db?ssl-mode=VERIFY_IDENTITY",
    "redis://127.0.0.1:PORT/0?protocol=resp3",
    "rediss://127.0.0.1:PORT/#insecure",
    "neo4j+s://localhost:PORT/neo4j",
    "bolt+ssc://127.0.0.1:PORT/neo4j?policy=x",
];
