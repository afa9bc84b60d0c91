//! The sweep over real connections of the running kernel, without probes: a tracepoint tells where they are.
//!
//! In: datagrams over the loopback of a network namespace that is this thread's own; a small program on `net_dev_queue` notes
//! the address and tuple of each one's `nf_conn`, and they enter the map by hand. Out: each connection told with its counters,
//! and a line of what the kernel's account says of the runs. `FLOWLOGD_SWEEP_CONNECTIONS` makes it a measurement: see the
//! benches' README. No time is asserted. What cannot run here says SKIPPED.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use aya::maps::Map;
use flowlogd_ebpf::{KernelTuple, shard_of};

use super::*;
use crate::model::{ConnectionEvent, Counters, Directional, Observation};

/// Addresses of `nf_conn`, and their original tuples.
type Places = HashMap<MapData, u64, KernelTuple>;

const FEW: u32 = 3000;
const SWEEPS: usize = 5;
const PAYLOAD: &[u8] = b"x";
const IP_AND_UDP: u64 = 28;

/// A network namespace for this thread alone, which tracks and counts, and forgets nothing while the test lasts.
fn own_namespace() -> Result<(), String> {
    // SAFETY: a network namespace concerns no memory and no file descriptor; the thread ends with the test.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .map_err(|error| format!("unshare: {error}"))?;
    let rules = "ip link set lo up && nft 'add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o ct state new counter'";
    let status = Command::new("sh").args(["-c", rules]).status().map_err(|error| error.to_string())?;
    if !status.success() {
        return Err("needs root, ip and nft".into());
    }
    for (name, value) in [("acct", "1"), ("udp_timeout", "3600")] {
        std::fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"), value)
            .map_err(|error| format!("nf_conntrack_{name}: {error}"))?;
    }
    Ok(())
}

/// One instruction of BPF: operation, target and source register, offset, immediate.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction(u8, u8, i16, i32);

fn instruction(operation: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction(operation, source << 4 | target, offset, immediate)
}

/// Notes where the `nf_conn` of a packet is, and its original tuple.
fn program(places: i32, skb_nfct: i32, ct_original: i32) -> Vec<Instruction> {
    const READ_KERNEL: i32 = 113;
    const UPDATE: i32 = 2;
    let load = |target, source, offset| instruction(0x79, target, source, offset, 0);
    let store = |target, offset, source| instruction(0x7b, target, source, offset, 0);
    let copy = |target, source| instruction(0xbf, target, source, 0, 0);
    let add = |target, value| instruction(0x07, target, 0, 0, value);
    let set = |target, value| instruction(0xb7, target, 0, 0, value);
    let call = |helper| instruction(0x85, 0, 0, 0, helper);
    // Reads `size` bytes at register `base` plus `offset` into the stack at `at`.
    let read = |at, size, base, offset| {
        [copy(1, 10), add(1, at), set(2, size), copy(3, base), add(3, offset), call(READ_KERNEL)]
    };
    let mut all = vec![load(6, 1, 0)];
    all.extend(read(-8, 8, 6, skb_nfct));
    // The low bits of the pointer say what the packet is to the connection.
    all.extend([load(7, 10, -8), instruction(0x57, 7, 0, 0, -8)]);
    let note = [
        vec![store(10, -8, 7)],
        read(-48, 40, 7, ct_original).to_vec(),
        // A map's descriptor takes two instructions.
        vec![instruction(0x18, 1, 1, 0, places), instruction(0, 0, 0, 0, 0)],
        vec![copy(2, 10), add(2, -8), copy(3, 10), add(3, -48), set(4, 0), call(UPDATE)],
    ]
    .concat();
    // Untracked: over all of it.
    all.push(instruction(0x15, 7, 0, note.len() as i16, 0));
    all.extend(note);
    all.extend([set(0, 0), instruction(0x95, 0, 0, 0, 0)]);
    all
}

/// The start of `union bpf_attr`, as `BPF_PROG_LOAD` reads it (`BPF_MAP_CREATE` reads four words).
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

/// The same, as `BPF_RAW_TRACEPOINT_OPEN` reads it.
#[repr(C)]
struct Open {
    name: u64,
    program: u32,
    spare: u32,
}

fn bpf<T>(command: i64, attributes: &T) -> std::io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live value, whose addresses are of live values too; all three
    // commands give a new descriptor, or fail.
    unsafe {
        let result = libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>());
        match i32::try_from(result) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

/// The map for `most` places, and the program that fills it, attached for as long as its descriptor lives.
fn note_places(most: u32) -> Result<(Places, OwnedFd), String> {
    const MAP_CREATE: i64 = 0;
    const HASH: u32 = 1;
    const PROG_LOAD: i64 = 5;
    const RAW_TRACEPOINT_OPEN: i64 = 17;
    const RAW_TRACEPOINT: u32 = 17;
    let settings = Kernel::resolve().map_err(|error| error.to_string())?.settings;
    let [nfct, original] = [settings.skb_nfct, settings.ct_original].map(|offset| offset as i32);
    let (key, value) = (size_of::<u64>() as u32, size_of::<KernelTuple>() as u32);
    let map = bpf(MAP_CREATE, &[HASH, key, value, most]).map_err(|error| format!("its map: {error}"))?;
    let code = program(map.as_raw_fd(), nfct, original);
    let load = Load {
        kind: RAW_TRACEPOINT,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    let program = bpf(PROG_LOAD, &load).map_err(|error| format!("the noting program: {error}"))?;
    let open = Open { name: c"net_dev_queue".as_ptr() as u64, program: program.as_raw_fd() as u32, spare: 0 };
    let attached = bpf(RAW_TRACEPOINT_OPEN, &open).map_err(|error| format!("net_dev_queue: {error}"))?;
    let places = MapData::from_fd(map).map(Map::HashMap).and_then(Places::try_from);
    Ok((places.map_err(|error| error.to_string())?, attached))
}

/// Opens `count` connections of one datagram each, and gives where they are.
fn connections(count: u32) -> Result<Vec<(u64, KernelTuple)>, String> {
    let text = |error: std::io::Error| error.to_string();
    let (places, noting) = note_places(count * 2)?;
    // Its queue fills, and the rest is dropped behind connection tracking: no port is reported unreachable.
    let receiver = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(text)?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(text)?;
    let port = receiver.local_addr().map_err(text)?.port();
    for n in 0..count {
        let [_, a, b, c] = (n + (1 << 16)).to_be_bytes();
        sender.send_to(PAYLOAD, (Ipv4Addr::new(127, a, b, c), port)).map_err(text)?;
    }
    drop(noting);
    // The tracepoint is the whole machine's.
    let (from, to) = (sender.local_addr().map_err(text)?.port().to_be_bytes(), port.to_be_bytes());
    let all: Result<Vec<_>, _> = places.iter().collect();
    let mut all = all.map_err(|error| error.to_string())?;
    all.retain(|(_, tuple)| tuple.bytes()[16..18] == from && tuple.bytes()[36..38] == to);
    Ok(all)
}

/// Nanoseconds that a program has run, and how often, by the kernel's account.
pub fn account(bpf: &Ebpf, program: &str) -> (u64, u64) {
    let info = bpf.program(program).unwrap().info().unwrap();
    (info.run_time().as_nanos() as u64, info.run_count())
}

/// Nanoseconds and entries of each run.
#[derive(Default)]
pub struct Runs(Vec<(u64, u64)>);

impl Runs {
    /// One run lies between two looks at the account.
    pub fn add(&mut self, before: (u64, u64), after: (u64, u64), entries: u64) {
        assert_eq!(after.1 - before.1, 1, "a shard is one run");
        self.0.push((after.0 - before.0, entries));
    }

    /// `longest`: what the source itself says of its longest run.
    pub fn said(mut self, longest: Duration) -> String {
        self.0.sort_unstable();
        let (ns, entries) = self.0.iter().fold((0, 0), |(ns, entries), run| (ns + run.0, entries + run.1));
        let at = |share: usize| self.0[(self.0.len() - 1) * share / 1000].0 as f64 / 1000.0;
        format!(
            "{} runs, {} entries a run at most: {:.0} ns an entry; a run {:.0} us (median {:.0}, p99 {:.0}, longest {:.0}, {} above 2 ms); by the source's own look {:.0} us the longest",
            self.0.len(),
            self.0.iter().map(|run| run.1).max().unwrap_or(0),
            ns as f64 / entries.max(1) as f64,
            ns as f64 / self.0.len() as f64 / 1000.0,
            at(500),
            at(990),
            at(1000),
            self.0.iter().filter(|run| run.0 > 2_000_000).count(),
            longest.as_secs_f64() * 1e6,
        )
    }
}

fn sweep_them(count: u32) -> Result<(), String> {
    own_namespace()?;
    let options = EbpfOptions {
        max_connections: Some(u64::from(count)),
        map_memory_bytes: u64::MAX,
        ..EbpfOptions::default()
    };
    let mut source = EbpfSource::load(&options, true).map_err(|error| error.to_string())?;
    if source.sweep != SweepBy::Callback {
        return Err("this kernel does not walk a map by itself".into());
    }
    let all = connections(count)?;
    assert_eq!(all.len() as u64, u64::from(count), "of {:?} tracked", tracked());
    assert_eq!(tracked(), Some(u64::from(count)));
    let mut entered = 0_u64;
    for (address, original) in all {
        let shard = shard_of(address, u64::from(source.shards));
        let entry = Connection { start_ns: 1 + entered, original, ..Connection::default() };
        // A shard may be full though the map is not, as on any node: counted there as `overflow`.
        entered += u64::from(source.named[shard as usize].insert(address, entry, 0).is_ok());
    }
    assert!(entered * 100 >= u64::from(count) * 99, "{entered} of {count} found room");

    let counters = Directional {
        original: Counters::new(1, IP_AND_UDP + PAYLOAD.len() as u64),
        reply: Counters::default(),
    };
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|error| error.to_string())?;
    let mut runs = Runs::default();
    for sweep in 0..SWEEPS {
        let (mut told, mut found, mut out) = (0, 0, Vec::new());
        loop {
            let before = account(&source.bpf, "sweep");
            let more = source.sweep_shard(&mut out).map_err(|error| error.to_string())?;
            let entries = source.watch.found() - found;
            assert!(entries <= SHARD_CAPACITY as u64);
            found += entries;
            // The first one finds the map's memory cold, and marks each entry as told.
            if sweep > 0 {
                runs.add(before, account(&source.bpf, "sweep"), entries);
            }
            for observed in out.drain(..) {
                let Observation::Connection(connection) = observed.observation else {
                    panic!("{observed:?}")
                };
                if connection.event == ConnectionEvent::Update {
                    assert_eq!(connection.counters, counters, "{connection:?}");
                    told += 1;
                } else {
                    assert_eq!((sweep, connection.event), (0, ConnectionEvent::New), "{connection:?}");
                }
            }
            if !more {
                break;
            }
        }
        assert_eq!((told, found), (entered, entered), "sweep {sweep}");
    }
    assert_eq!(source.losses(), []);
    let longest = source.take_longest_run();
    assert!(longest > Duration::ZERO);
    assert_eq!(source.take_longest_run(), Duration::ZERO);
    println!("{entered} connections in {} shards; {}", source.shards, runs.said(longest));
    Ok(())
}

#[test]
fn a_sweep_tells_every_real_connection_with_its_counters() {
    let wanted = std::env::var("FLOWLOGD_SWEEP_CONNECTIONS").ok().and_then(|text| text.parse().ok());
    std::thread::spawn(move || {
        if let Err(error) = sweep_them(wanted.unwrap_or(FEW)) {
            eprintln!("SKIPPED: {error}");
        }
    })
    .join()
    .unwrap();
}
