//! The host name of a target, and a DNS server of our own that says where it is. Only our workers ask it: each has a
//! mount namespace with an `/etc/resolv.conf` of its own.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::net::{TcpListener, UdpSocket};
use usersync_stack::{Directory, tools};

/// The name; no other is known.
pub(crate) const HOST: &str = "plain.usersync.test";
/// Where clouds tell machines their credentials.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same as the kernel lists it.
const METADATA_LISTED: &str = "FEA9FEA9";
/// The port that resolvers ask at.
const PORT: u16 = 53;
/// The largest question of a resolver that has no more to ask.
const QUESTION: usize = 512;
/// What comes before the question.
const HEADER: usize = 12;
const ADDRESS_V4: u16 = 1;
const ADDRESS_V6: u16 = 28;
/// Has a program of its own be told which server to ask: the file, the program, its arguments.
const UNSHARE: [&str; 6] = [
    "unshare",
    "--mount",
    "--propagation=slave",
    "sh",
    "-c",
    r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#,
];

/// What the server says of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// Where the target is.
    Right,
    /// Nothing.
    Nothing,
    /// That there is no such name.
    NoSuchName,
    /// Addresses that nobody may be led to.
    Forbidden,
    /// The right one and forbidden ones, in turn.
    InTurn,
    /// Both in one answer.
    Both,
}

/// A running server; ends with this program.
#[derive(Clone)]
pub(crate) struct Names {
    says: Arc<Mutex<Says>>,
    /// Questions for addresses of IPv4, each from another look-up.
    asked: Arc<AtomicU64>,
    /// This machine's address in its network, where targets may not be.
    own: Option<Ipv4Addr>,
    /// Programs that ask this server.
    programs: PathBuf,
}

impl Names {
    /// Whether this machine lets us have one.
    ///
    /// # Errors
    /// When it doesn't, with the reason.
    pub(crate) fn is_possible() -> Result<()> {
        std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let directory = Directory::temporary()?;
        let file = directory.path().join("resolv.conf");
        fs::write(&file, "")?;
        let mut trying = asking(&file, "true");
        let output = trying.output().context("running unshare")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "unshare: {}", said.trim());
        std::net::UdpSocket::bind((an_address(), PORT)).context("port 53")?;
        Ok(())
    }

    /// One that says where the target is, and in `dir` our programs as they ask it.
    ///
    /// # Errors
    /// When this machine doesn't let us, or the programs don't ask.
    pub(crate) async fn start(dir: &Path) -> Result<Self> {
        let address = an_address();
        let socket = UdpSocket::bind((address, PORT)).await?;
        let resolver = dir.join("resolv.conf");
        fs::write(&resolver, format!("nameserver {address}\n"))?;
        let names = Self {
            says: Arc::new(Mutex::new(Says::Right)),
            asked: Arc::default(),
            own: own_address(),
            programs: dir.join("programs"),
        };
        let serving = names.clone();
        tokio::spawn(async move { serving.serve(&socket).await });
        let asked = tokio::process::Command::from(asking(&resolver, "getent"))
            .args(["ahostsv4", HOST])
            .output();
        let asked = asked.await.context("running getent")?;
        let said = String::from_utf8_lossy(&asked.stdout);
        ensure!(said.starts_with("127.0.0.1 "), "{HOST} is at {said:?}");
        names.write_programs(&resolver)?;
        Ok(names)
    }

    /// Our programs; of the workers a script that leads them to the server.
    fn write_programs(&self, resolver: &Path) -> Result<()> {
        fs::create_dir_all(&self.programs)?;
        let own = |name| tools::binary(name, tools::Profile::own());
        for name in ["usersync-gateway", "usersync-scheduler"] {
            symlink(own(name)?, self.programs.join(name))?;
        }
        let words = UNSHARE.map(|word| format!("'{word}'")).join(" ");
        let (resolver, worker) = (resolver.display(), own("usersync-worker")?);
        let script = format!(
            "#!/bin/sh\nexec {words} '{resolver}' '{}' \"$@\"\n",
            worker.display()
        );
        let file = self.programs.join("usersync-worker");
        fs::write(&file, script)?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// The folder of our programs as they ask this server.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    /// From now on it says so.
    pub(crate) fn say(&self, says: Says) {
        *self.says.lock().unwrap_or_else(PoisonError::into_inner) = says;
    }

    /// How many look-ups there have been.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    async fn serve(&self, socket: &UdpSocket) -> std::io::Result<()> {
        let mut question = [0; QUESTION];
        loop {
            let (size, from) = socket.recv_from(&mut question).await?;
            if let Some(answer) = self.answer(&question[..size]) {
                socket.send_to(&answer, from).await?;
            }
        }
    }

    /// The answer to a question (RFC 1035, 4.1); none to what isn't one, or when nothing is said.
    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let asked = question.get(HEADER..)?;
        let end = asked.iter().position(|byte| *byte == 0)? + 1;
        let (name, kind) = (&asked[..end], asked.get(end..end + 2)?);
        let kind = u16::from_be_bytes(kind.try_into().ok()?);
        let says = *self.says.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = name.eq_ignore_ascii_case(&in_labels(HOST));
        let mut turn = self.asked.load(Ordering::Relaxed);
        if is_ours && kind == ADDRESS_V4 {
            turn = self.asked.fetch_add(1, Ordering::Relaxed);
        }
        let right = [Ipv4Addr::LOCALHOST];
        let forbidden: Vec<_> = self.own.into_iter().chain([METADATA]).collect();
        let addresses = match says {
            _ if !is_ours => None,
            Says::Nothing => return None,
            Says::NoSuchName => None,
            Says::InTurn if turn.is_multiple_of(2) => Some(right.to_vec()),
            Says::Right => Some(right.to_vec()),
            Says::Forbidden | Says::InTurn => Some(forbidden),
            Says::Both => Some([forbidden.as_slice(), &right].concat()),
        };
        let there = addresses.iter().flatten();
        let records: Vec<Vec<u8>> = match kind {
            ADDRESS_V4 => there.map(|address| address.octets().to_vec()).collect(),
            // What is forbidden is forbidden in the clothes of IPv6, too.
            ADDRESS_V6 => there
                .filter(|address| !address.is_loopback())
                .map(|address| address.to_ipv6_mapped().octets().to_vec())
                .collect(),
            _ => Vec::new(),
        };
        // An answer, by recursion; 3: there is no such name.
        let mut answer = question[..2].to_vec();
        answer.extend([0x81, if addresses.is_none() { 0x83 } else { 0x80 }]);
        answer.extend([0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        answer.extend(asked.get(..end + 4)?);
        for record in records {
            // Of the name in the question; its kind, the internet, for no time.
            answer.extend([0xc0, HEADER as u8, 0, kind as u8, 0, 1, 0, 0, 0, 0, 0]);
            answer.push(record.len() as u8);
            answer.extend(record);
        }
        Some(answer)
    }

    /// Does something, and looks meanwhile whether anybody calls a forbidden address at `port`.
    ///
    /// # Errors
    /// When somebody does, or nobody asks for the name; or what `doing` fails with.
    pub(crate) async fn watched(
        &self,
        port: u16,
        doing: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let asked = self.asked();
        tokio::select! {
            done = doing => done?,
            called = self.called(port) => called?,
            called = metadata_called(port) => called?,
        }
        ensure!(self.asked() > asked, "nobody asked where {HOST} is");
        Ok(())
    }

    /// Ends when this machine's own address is called.
    async fn called(&self, port: u16) -> Result<()> {
        let Some(own) = self.own else {
            return std::future::pending().await;
        };
        let trap = TcpListener::bind((own, port)).await?;
        let (_, from) = trap.accept().await?;
        bail!("{from} was led to {own}")
    }
}

/// Ends when anybody calls the clouds' metadata, be it without an answer.
async fn metadata_called(port: u16) -> Result<()> {
    let listed = format!("{METADATA_LISTED}:{port:04X} ");
    loop {
        for list in ["/proc/net/tcp", "/proc/net/tcp6"] {
            let connections = fs::read_to_string(list).unwrap_or_default();
            ensure!(
                !connections.contains(&listed),
                "somebody was led to {METADATA}"
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A loopback address that no other run has, most likely.
fn an_address() -> Ipv4Addr {
    Ipv4Addr::new(127, 53, fastrand::u8(..), fastrand::u8(1..255))
}

/// This machine's address in its network, unless that is the internet's.
fn own_address() -> Option<Ipv4Addr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Nothing is sent.
    socket.connect((METADATA, PORT)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(own) => {
            let is_inside = own.is_private() || own.is_documentation() || own.is_link_local();
            is_inside.then_some(own)
        }
        IpAddr::V6(_) => None,
    }
}

/// A name as questions have it.
fn in_labels(name: &str) -> Vec<u8> {
    let mut labels = Vec::new();
    for label in name.split('.') {
        labels.push(label.len() as u8);
        labels.extend(label.as_bytes());
    }
    labels.push(0);
    labels
}

/// A program that asks the server in `resolver`.
fn asking(resolver: &Path, program: &str) -> Command {
    let mut command = Command::new(UNSHARE[0]);
    command.args(&UNSHARE[1..]).arg(resolver).arg(program);
    command.stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of `name`: the code of the answer, and the last bytes of each address of IPv4.
    fn said(names: &Names, says: Says, name: &str) -> Option<(u8, Vec<u8>)> {
        names.say(says);
        let head = [7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let question = [&head[..], &in_labels(name), &[0, 1, 0, 1]].concat();
        let answer = names.answer(&question)?;
        assert_eq!(answer[..2], [7, 7]);
        let records = answer[question.len()..].chunks(16);
        Some((answer[3] & 15, records.map(|record| record[15]).collect()))
    }

    #[test]
    fn the_server_says_what_it_is_told() {
        let names = Names {
            says: Arc::new(Mutex::new(Says::Right)),
            asked: Arc::default(),
            own: None,
            programs: PathBuf::new(),
        };
        let (right, metadata) = (1, 254);
        for (says, name, answer) in [
            (Says::Right, HOST, Some((0, vec![right]))),
            (Says::Right, "elsewhere.test", Some((3, vec![]))),
            (Says::NoSuchName, HOST, Some((3, vec![]))),
            (Says::Nothing, HOST, None),
            (Says::InTurn, HOST, Some((0, vec![metadata]))),
            (Says::InTurn, HOST, Some((0, vec![right]))),
            (Says::Forbidden, HOST, Some((0, vec![metadata]))),
            (Says::Both, HOST, Some((0, vec![metadata, right]))),
        ] {
            assert_eq!(said(&names, says, name), answer, "{says:?} of {name}");
        }
        assert_eq!(names.asked(), 7);
    }
}
