//! What the kernel itself says about connections, read with the tool that operators use.
//!
//! In: the node's conntrack table (`conntrack -L`) and its events (`conntrack -E`). Out: one `Connection` an entry, with
//! the absolute counters of both directions. What always holds: an entry that cannot be read is an error, never left
//! out, for it is the yardstick that the agent's lines are measured with.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::node::run;
use crate::traffic::PATIENCE;

/// Protocol, source and destination as a line of level 0 names them: the original source, and the destination after
/// DNAT (which is the source of the reply).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub proto: u8,
    pub source: (IpAddr, Option<u16>),
    pub dest: (IpAddr, Option<u16>),
}

/// Packets and bytes from source to destination, and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub connections: u64,
}

impl Sums {
    pub fn add(&mut self, other: &Self) {
        for side in 0..2 {
            self.packets[side] += other.packets[side];
            self.bytes[side] += other.bytes[side];
        }
        self.connections += other.connections;
    }

    /// What came since `earlier`; connections stay.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut rest = *self;
        for side in 0..2 {
            rest.packets[side] = rest.packets[side].saturating_sub(earlier.packets[side]);
            rest.bytes[side] = rest.bytes[side].saturating_sub(earlier.bytes[side]);
        }
        rest
    }
}

/// One entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub id: u64,
    pub key: Key,
    pub sums: Sums,
}

/// All connections that the node tracks now, of both families.
pub fn list() -> Result<Vec<Connection>> {
    let mut all = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let text = run(&["conntrack", "-L", "-f", family, "-o", "extended,id"])?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            all.push(parse(line)?);
        }
    }
    Ok(all)
}

/// Sums by key.
pub fn total<'a>(connections: impl IntoIterator<Item = &'a Connection>) -> BTreeMap<Key, Sums> {
    let mut sums: BTreeMap<Key, Sums> = BTreeMap::new();
    for connection in connections {
        sums.entry(connection.key).or_default().add(&connection.sums);
    }
    sums
}

/// Forgets every tracked connection, so that each one ends now.
pub fn flush() -> Result<()> {
    run(&["conntrack", "-F"]).map(drop)
}

/// Records the end of every connection while it lives.
pub struct Ends {
    child: Child,
    path: String,
}

impl Ends {
    pub fn start() -> Result<Self> {
        let path = "/tmp/ends".to_owned();
        let before = subscribers()?;
        let child = Command::new("conntrack")
            .args(["-E", "-e", "DESTROY", "-o", "extended,id", "-b", "8388608"])
            .stdin(Stdio::null())
            .stdout(File::create(&path)?)
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start conntrack -E")?;
        let ends = Self { child, path };
        let began = Instant::now();
        while subscribers()? == before {
            if began.elapsed() > PATIENCE {
                bail!("conntrack -E did not subscribe: {}", std::fs::read_to_string("/proc/net/netlink")?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(ends)
    }

    /// What has ended so far; waits until `count` connections have, or `patience` is over.
    pub fn wait(&self, count: usize, patience: Duration) -> Result<Vec<Connection>> {
        let began = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.path)?;
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let ended: Vec<Connection> = whole.lines().map(parse).collect::<Result<_>>()?;
            if ended.len() >= count || began.elapsed() > patience {
                return Ok(ended);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sockets of nfnetlink (protocol 12) that have joined groups.
fn subscribers() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/net/netlink").context("cannot read /proc/net/netlink")?;
    let sockets = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(sockets
        .filter(|fields| {
            fields.get(1) == Some(&"12") && fields.get(3).is_some_and(|groups| *groups != "00000000")
        })
        .count())
}

/// One line of `conntrack -o extended,id`: words, then `key=value` of the original direction, which ends with its
/// `bytes=`, then those of the reply, then the rest with the entry's own `id=`.
pub fn parse(line: &str) -> Result<Connection> {
    read(line).with_context(|| format!("not a conntrack entry: {line:?}"))
}

fn read(line: &str) -> Result<Connection> {
    let mut words = line.split_whitespace().filter(|word| !word.starts_with('['));
    let family = words.next().context("empty")?;
    if family != "ipv4" && family != "ipv6" {
        bail!("neither ipv4 nor ipv6");
    }
    let _family_number = words.next();
    let _protocol_name = words.next();
    let proto: u8 = words.next().context("no protocol")?.parse().context("protocol")?;
    let mut sides = [Side::default(), Side::default()];
    let mut side = 0;
    let mut id = 0;
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        if let Some(current) = sides.get_mut(side) {
            match key {
                "src" => current.src = Some(value.parse()?),
                "dst" => current.dst = Some(value.parse()?),
                "sport" => current.sport = Some(value.parse()?),
                "dport" => current.dport = Some(value.parse()?),
                "packets" => current.packets = Some(value.parse()?),
                "bytes" => {
                    current.bytes = Some(value.parse()?);
                    side += 1;
                }
                _ => {}
            }
        } else if key == "id" {
            id = value.parse()?;
        }
    }
    let [original, reply] = sides;
    let packets =
        [original.packets, reply.packets].map(|count| count.context("no counters: accounting is off"));
    let bytes = [original.bytes, reply.bytes].map(|count| count.context("no counters: accounting is off"));
    let [packets_there, packets_back] = packets;
    let [bytes_there, bytes_back] = bytes;
    Ok(Connection {
        id,
        key: Key {
            proto,
            source: (original.src.context("no src")?, original.sport),
            dest: (reply.src.context("no reply src")?, reply.sport),
        },
        sums: Sums {
            packets: [packets_there?, packets_back?],
            bytes: [bytes_there?, bytes_back?],
            connections: 1,
        },
    })
}

#[derive(Default)]
struct Side {
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    sport: Option<u16>,
    dport: Option<u16>,
    packets: Option<u64>,
    bytes: Option<u64>,
}
