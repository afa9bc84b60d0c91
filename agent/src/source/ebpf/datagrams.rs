//! UDP sockets that are not connected: known by their own end alone.
//!
//! In: such sockets, as sweeps and ends tell of them, and the UDP connections that pass by. Out: the process of an end of
//! such a connection, with the connection's own tuple, so that nobody behind needs to know of half tuples. A socket on all
//! addresses is on those of its network namespace, as other sockets and `/proc/<pid>/net` of a process in it show them. What always
//! holds: all tables are bounded, what does not fit is counted; a socket that has ended is kept until the sweep after the
//! next one, because connections are told late. Not here: connected sockets (their tuple is exact).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::processes::{Proc, Process};
use crate::model::{ConnectionRecord, FiveTuple, FlowSide, Proto};

const MOST_SOCKETS: usize = 32_768;
const MOST_ADDRESSES: usize = 65_536;

/// Network namespace, local address as it is bound, port.
type Key = (u32, IpAddr, u16);

struct Bound {
    process: Arc<Process>,
    /// The sweep before which it ended.
    ended: Option<u64>,
}

#[derive(Default)]
pub struct Datagrams {
    bound: HashMap<Key, Bound>,
    /// Which network namespace has an address.
    addresses: HashMap<IpAddr, u32>,
    /// Namespaces whose addresses were read since the last sweep.
    read: HashSet<u32>,
    sweeps: u64,
    /// Sockets and addresses that found no room.
    pub full: u64,
}

impl Datagrams {
    pub fn insert(&mut self, netns: u32, local: IpAddr, port: u16, process: &Arc<Process>, is_end: bool) {
        if local.is_unspecified() {
            // One that has changed its namespace since tells of another one's addresses.
            if process.netns == netns {
                self.read_addresses(netns, &mut Proc::new(process.key));
            }
        }
        let key = (netns, local, port);
        let ended = is_end.then_some(self.sweeps);
        if self.bound.len() >= MOST_SOCKETS && !self.bound.contains_key(&key) {
            self.full += 1;
            return;
        }
        self.bound.insert(key, Bound { process: process.clone(), ended });
    }

    /// A sweep is over: addresses may have changed, and what ended long ago is forgotten.
    pub fn end_sweep(&mut self) {
        self.sweeps += 1;
        let sweeps = self.sweeps;
        self.bound.retain(|_, bound| bound.ended.is_none_or(|ended| sweeps < ended + 2));
        self.read.clear();
    }

    /// Processes of the ends of a UDP connection.
    pub fn of_connection(
        &self,
        connection: &ConnectionRecord,
    ) -> impl Iterator<Item = (FiveTuple, FlowSide, &Arc<Process>)> {
        let ends = [(connection.original, FlowSide::Src), (connection.reply, FlowSide::Dst)];
        let is_udp = connection.proto == Proto::UDP && !self.bound.is_empty();
        ends.into_iter().filter(move |_| is_udp).filter_map(|(addresses, side)| {
            let process = self.process(addresses.src, addresses.src_port)?;
            Some((FiveTuple { proto: connection.proto, addresses }, side, process))
        })
    }

    fn process(&self, address: IpAddr, port: u16) -> Option<&Arc<Process>> {
        let netns = *self.addresses.get(&address)?;
        let mut places =
            [Some(address), address.is_ipv4().then_some(ANY_V4), Some(ANY_V6)].into_iter().flatten();
        places.find_map(|place| self.bound.get(&(netns, place, port))).map(|bound| &bound.process)
    }

    /// An address that a socket of this namespace has; loopback is everywhere, and says nothing.
    pub fn learn(&mut self, address: IpAddr, netns: u32) {
        if !address.is_loopback() && !address.is_unspecified() {
            self.know(address, netns);
        }
    }

    fn know(&mut self, address: IpAddr, netns: u32) {
        if self.addresses.get(&address) == Some(&netns) {
            return;
        }
        if self.addresses.len() >= MOST_ADDRESSES && !self.addresses.contains_key(&address) {
            self.full += 1;
            return;
        }
        self.addresses.insert(address, netns);
    }

    fn read_addresses(&mut self, netns: u32, of: &mut Proc) {
        if self.read.contains(&netns) {
            return;
        }
        // A process that is gone tells nothing: the next one of that namespace is asked.
        let Some(found) = addresses_of(of) else { return };
        self.read.insert(netns);
        for address in found {
            self.learn(address, netns);
        }
    }

    /// The agent's own network namespace, loopback included.
    pub fn read_own(&mut self) {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(own) = fs::metadata("/proc/thread-self/ns/net") else { return };
        let netns = own.ino() as u32;
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            self.know(address, netns);
        }
        self.read.insert(netns);
        let read = |name: &str| fs::read(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        for address in addresses(&read("fib_trie"), &read("if_inet6")) {
            self.learn(address, netns);
        }
    }
}

const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Addresses of the network namespace that a process is in; `None`: it is gone.
fn addresses_of(process: &mut Proc) -> Option<Vec<IpAddr>> {
    let v4 = process.read("net/fib_trie")?;
    Some(addresses(&v4, &process.read("net/if_inet6").unwrap_or_default()))
}

fn addresses(v4: &[u8], v6: &[u8]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    parse_trie(&String::from_utf8_lossy(v4), &mut found);
    parse_inet6(&String::from_utf8_lossy(v6), &mut found);
    found
}

/// `|-- 10.1.1.2` followed by `/32 host LOCAL`.
fn parse_trie(text: &str, found: &mut Vec<IpAddr>) {
    let mut last = None;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.trim().parse::<Ipv4Addr>().ok();
        } else if line.starts_with("/32 host LOCAL")
            && let Some(address) = last.take()
            && !address.is_loopback()
        {
            found.push(IpAddr::V4(address));
        }
    }
}

/// `fd000001000000000000000000000002 02 40 00 80 eth0`
fn parse_inet6(text: &str, found: &mut Vec<IpAddr>) {
    for line in text.lines() {
        let hex = line.split_whitespace().next().unwrap_or_default();
        if hex.len() == 32
            && let Ok(bits) = u128::from_str_radix(hex, 16)
        {
            let address = Ipv6Addr::from(bits);
            if !address.is_loopback() {
                found.push(IpAddr::V6(address));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Addresses, ConnectionEvent, Directional};

    fn process(pid: u32) -> Arc<Process> {
        let key = flowlogd_ebpf::ProcessKey { pid, ..Default::default() };
        Arc::new(Process {
            key,
            netns: 0,
            name: "dns".into(),
            args: [].into(),
            container: Default::default(),
        })
    }

    /// A client at 10.1.1.2 asks 10.96.0.10:53, which is 10.1.2.2:5353.
    fn query() -> ConnectionRecord {
        let ip = |text: &str| text.parse().unwrap();
        ConnectionRecord {
            event: ConnectionEvent::New,
            proto: Proto::UDP,
            original: Addresses { src: ip("10.1.1.2"), src_port: 40000, dst: ip("10.96.0.10"), dst_port: 53 },
            reply: Addresses { src: ip("10.1.2.2"), src_port: 5353, dst: ip("10.1.1.2"), dst_port: 40000 },
            icmp: None,
            zone: 0,
            counters: Directional::default(),
            tcp_state: None,
        }
    }

    fn told(datagrams: &Datagrams) -> Vec<(FlowSide, u32)> {
        datagrams.of_connection(&query()).map(|(_, side, process)| (side, process.key.pid)).collect()
    }

    #[test]
    fn a_server_on_all_addresses_is_found_by_its_namespace() {
        let mut datagrams = Datagrams::default();
        datagrams.insert(7, ANY_V6, 5353, &process(1), false);
        datagrams.insert(8, ANY_V4, 5353, &process(2), false);
        assert_eq!(told(&datagrams), []);
        datagrams.learn("10.1.2.2".parse().unwrap(), 7);
        assert_eq!(told(&datagrams), [(FlowSide::Dst, 1)]);
        datagrams.learn("10.1.1.2".parse().unwrap(), 6);
        datagrams.insert(6, "10.1.1.2".parse().unwrap(), 40000, &process(3), true);
        assert_eq!(told(&datagrams), [(FlowSide::Src, 3), (FlowSide::Dst, 1)]);
        let mut tcp = query();
        tcp.proto = Proto::TCP;
        assert_eq!(datagrams.of_connection(&tcp).count(), 0);
    }

    #[test]
    fn what_has_ended_is_kept_for_the_connections_that_are_told_late() {
        let mut datagrams = Datagrams::default();
        datagrams.learn("10.1.1.2".parse().unwrap(), 6);
        datagrams.insert(6, "10.1.1.2".parse().unwrap(), 40000, &process(3), true);
        datagrams.end_sweep();
        assert_eq!(told(&datagrams), [(FlowSide::Src, 3)]);
        datagrams.end_sweep();
        assert_eq!(told(&datagrams), []);
    }

    #[test]
    fn tables_are_bounded() {
        let mut datagrams = Datagrams::default();
        let one = process(1);
        for n in 0..MOST_ADDRESSES as u32 + 10 {
            let address = IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + n));
            datagrams.learn(address, 1);
            datagrams.insert(1, address, 53, &one, false);
        }
        assert_eq!((datagrams.bound.len(), datagrams.addresses.len()), (MOST_SOCKETS, MOST_ADDRESSES));
        assert_eq!(datagrams.full as usize, MOST_ADDRESSES - MOST_SOCKETS + 20);
    }

    #[test]
    fn the_kernels_tables_of_addresses_are_read() {
        let mut found = Vec::new();
        parse_trie(
            "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n     |-- 10.1.1.2\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.1.1.255\n        /32 link BROADCAST\n",
            &mut found,
        );
        parse_inet6(
            "fd000001000000000000000000000002 02 40 00 80 eth0\n00000000000000000000000000000001 01 80 10 80 lo\nxx\n",
            &mut found,
        );
        let expected: Vec<IpAddr> = ["10.1.1.2", "fd00:1::2"].map(|text| text.parse().unwrap()).into();
        assert_eq!(found, expected);
    }
}
