//! The sweep and the tombstones on the running kernel, without probes: hand-made entries, BPF_PROG_TEST_RUN. What cannot run
//! here says SKIPPED. Connections that probes see are in the kernel cases (`tests/kernel`).

use super::*;
use crate::model::{ConnectionEvent, Directional, Observation};
use flowlogd_ebpf::KernelTuple;

/// The source without its probes, or why not here.
fn loaded() -> Option<EbpfSource> {
    let options = EbpfOptions { max_connections: Some(20_000), ring_bytes: 4096, ..EbpfOptions::default() };
    match EbpfSource::load(&options, true) {
        Ok(source) => Some(source),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    }
}

#[test]
fn a_sweep_closes_entries_whose_memory_is_gone() {
    let Some(mut source) = loaded() else { return };
    // Addresses that no kernel has; half of them were told before.
    let shards = source.shards;
    assert!(shards > 1);
    let mut bytes = [0; 40];
    bytes[18..20].copy_from_slice(&2_u16.to_ne_bytes());
    bytes[38] = 17;
    let entries = 1000_u64;
    for i in 1..=entries {
        bytes[..4].copy_from_slice(&(i as u32).to_ne_bytes());
        let entry = Connection {
            start_ns: i,
            announced_ns: if i % 2 == 0 { i } else { 0 },
            original: KernelTuple::from_bytes(bytes),
            ..Connection::default()
        };
        let address = i * 64;
        let shard = flowlogd_ebpf::shard_of(address, u64::from(shards));
        source.named[shard as usize].insert(address, entry, 0).unwrap();
    }
    let mut out = Vec::new();
    source.sweep(&mut out).unwrap();
    assert_eq!(out.len() as u64, entries / 2);
    let fills = source.fills();
    let of = |name| *fills.iter().find(|fill| fill.name == name).unwrap();
    // None of them lives.
    assert_eq!((of("connections").used, of("connections").capacity), (0, source.status().capacity));
    // Each was told by a record of the sweep's ring, shard by shard.
    let (swept, record) = (of("connections_swept"), 8 + size_of::<ConnectionRecord>() as u64);
    assert_eq!((swept.used % record, swept.capacity), (0, u64::from(SWEPT_BYTES)), "{swept:?}");
    assert!((entries / 2 / u64::from(shards)..entries / 2).contains(&(swept.used / record)), "{swept:?}");
    assert_eq!(source.fills().map(|fill| fill.used)[3..], [0, 0]);
    for observed in &out {
        let Observation::Connection(told) = &observed.observation else { panic!("{observed:?}") };
        assert_eq!(told.event, ConnectionEvent::End { confirmed: true });
        assert_eq!(told.counters, Directional::default());
    }
    assert_eq!(source.losses(), [("stale", entries)]);
    assert_eq!(source.losses(), []);
    assert!(source.named.iter().all(|shard| shard.keys().next().is_none()));
    out.clear();
    source.sweep(&mut out).unwrap();
    assert_eq!(out, []);
}

#[test]
fn tombstones_are_read_by_the_sweep_after_they_were_left() {
    let Some(mut source) = loaded() else { return };
    source.translator.adoption = Adoption::Done;
    let mut bytes = [0; 40];
    bytes[18..20].copy_from_slice(&2_u16.to_ne_bytes());
    let record = ConnectionRecord {
        original: KernelTuple::from_bytes(bytes),
        reply: KernelTuple::from_bytes(bytes),
        kind: flowlogd_ebpf::RecordKind::End as u8,
        flags: flowlogd_ebpf::RecordFlags::CONFIRMED,
        ..ConnectionRecord::default()
    };
    source.tombstones.insert(1, record, 0).unwrap();
    source.tombstones.insert(2, record, 0).unwrap();
    let mut out = Vec::new();
    source.read_tombstones(Clock::measure(), &mut out, 2).unwrap();
    assert_eq!(out.len(), 4); // New and End of each
    assert_eq!(source.fills()[2], Fill::entries("ends_waiting", 2, TOMBSTONES as usize));
    source.read_tombstones(Clock::measure(), &mut out, 2).unwrap();
    assert_eq!(out.len(), 4);
    assert_eq!(source.fills()[2].used, 0);
}

#[test]
fn shards_follow_the_limit_and_the_memory() {
    let with_cpus = |max, memory, cpus| {
        let options =
            EbpfOptions { max_connections: Some(max), map_memory_bytes: memory, ..EbpfOptions::default() };
        shards(&options, cpus)
    };
    let with = |max, memory| with_cpus(max, memory, 2);
    assert_eq!(with(1, 1 << 30), 1);
    assert_eq!(with(262_144, 1 << 30), 285);
    assert_eq!(with(262_144, 8 << 20), 56);
    assert_eq!(with_cpus(262_144, 8 << 20, 256), 45);
    assert_eq!(with(u64::MAX, 0), 1);
}
