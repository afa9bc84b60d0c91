//! What a record of a socket tells, and the collectors against the running kernel.

use super::super::connections::sweep_tests::{Runs, account};
use super::*;

const CLOCK: Clock = Clock { offset_ns: 1000 };

fn v4(a: u8, b: u8, c: u8, d: u8) -> [u8; 16] {
    std::net::Ipv4Addr::new(a, b, c, d).to_ipv6_mapped().octets()
}

fn record() -> SocketRecord {
    SocketRecord {
        at_ns: 5,
        local: v4(10, 0, 0, 1),
        remote: v4(10, 96, 0, 10),
        local_port: 40_000_u16.to_be(),
        remote_port: 80_u16.to_be(),
        proto: 6,
        kind: SocketKind::End as u8,
        ..SocketRecord::default()
    }
}

fn told(record: &SocketRecord, collector: Collector) -> Option<Observed> {
    let mut processes = Processes::new(false, Containers::new(None));
    let mut datagrams = Datagrams::default();
    translate(record, collector, CLOCK, &mut processes, &mut datagrams)
}

#[test]
fn statistics_are_in_their_units() {
    let mut record = record();
    record.tcp.srtt_us_8 = 8_005;
    record.tcp.rtt_min_us = 400;
    record.tcp.snd_cwnd = 10;
    record.tcp.mss = 1448;
    record.tcp.retransmits = 7;
    record.tcp.lost = 6;
    record.tcp.rtos = 5;
    record.tcp.rto_rows = 3;
    let observed = told(&record, Collector::TcpStats).unwrap();
    assert_eq!(observed.at.0, 1005);
    let Observation::Tcp(tcp) = observed.observation else { panic!() };
    assert_eq!((tcp.srtt_us, tcp.min_rtt_us, tcp.send_cwnd, tcp.mss), (1000, 400, 10, 1448));
    assert_eq!((tcp.retransmits, tcp.lost, tcp.unrecovered_rto), (7, 6, 2));
    assert_eq!(tcp.tuple.addresses.src.to_string(), "10.0.0.1");
    assert_eq!((tcp.tuple.addresses.src_port, tcp.tuple.addresses.dst_port), (40_000, 80));
    record.tcp = Default::default();
    record.tcp.rtt_min_us = u32::MAX;
    let Observation::Tcp(tcp) = told(&record, Collector::TcpStats).unwrap().observation else { panic!() };
    assert_eq!((tcp.srtt_us, tcp.min_rtt_us), (0, 0));
}

#[test]
fn a_socket_without_a_peer_is_no_connections() {
    let mut record = record();
    record.remote = v4(0, 0, 0, 0);
    record.remote_port = 0;
    assert_eq!(told(&record, Collector::TcpStats), None);
    assert_eq!(told(&record, Collector::Processes { paths: false }), None);
}

#[test]
fn sides_are_told_by_who_began() {
    let side = |record: &SocketRecord| {
        let addresses = Addresses {
            src: IpAddr::V6(record.local.into()),
            src_port: u16::from_be(record.local_port),
            dst: IpAddr::V6(record.remote.into()),
            dst_port: u16::from_be(record.remote_port),
        };
        side_of(record, &addresses, Proto(record.proto))
    };
    let mut record = record();
    assert_eq!(side(&record), FlowSide::Src);
    record.flags = SocketFlags::ACCEPTED;
    assert_eq!(side(&record), FlowSide::Dst);
    record.proto = 17;
    assert_eq!(side(&record), FlowSide::Src);
    (record.local_port, record.remote_port) = (443_u16.to_be(), 50_000_u16.to_be());
    assert_eq!(side(&record), FlowSide::Dst);
}

#[test]
fn a_sweep_tells_every_live_socket_in_runs_of_one_shard() {
    let wanted = std::env::var("FLOWLOGD_SWEEP_SOCKETS").ok().and_then(|text| text.parse().ok());
    let connections = wanted.unwrap_or(100_usize) / 2;
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut open = Vec::new();
    for collector in [Collector::TcpStats, Collector::Processes { paths: false }] {
        let mut source = match SocketSource::open_with(collector, MOST_SOCKETS) {
            Ok(source) => source,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                return;
            }
        };
        open.clear();
        for _ in 0..connections {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            open.push((client, listener.accept().unwrap()));
        }
        let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
        let (mut runs, mut out) = (Runs::default(), Vec::new());
        for _ in 0..5 {
            loop {
                let (before, found) = (account(&source.bpf, "sweep_sockets"), source.filling);
                let more = source.sweep_shard(&mut out).unwrap();
                let entries = if more { source.filling } else { source.filled } - found;
                assert!(entries <= SOCKET_SHARD_CAPACITY as u64);
                runs.add(before, account(&source.bpf, "sweep_sockets"), entries);
                out.clear();
                if !more {
                    break;
                }
            }
            assert!(
                source.filled >= 2 * connections as u64,
                "{} of {connections} connections",
                source.filled
            );
        }
        let longest = source.take_longest_run();
        println!("{collector:?}: {} sockets; {}", source.filled, runs.said(longest));
    }
}
