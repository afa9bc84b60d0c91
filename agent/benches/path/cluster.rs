//! "Who owns this address?" An item is one question.

use std::net::IpAddr;

use divan::Bencher;
use divan::counter::ItemsCount;
use flowlogd::model::{Proto, Timestamp};
use flowlogd::snapshot::Snapshot;

use super::world;

const COUNT: u64 = 10_000;

fn ask<T>(bencher: Bencher, address: fn(u64) -> IpAddr, question: impl Fn(&Snapshot, IpAddr) -> T) {
    let snapshot = world::cluster();
    let addresses: Vec<IpAddr> = world::shuffled(COUNT).map(address).collect();
    bencher.counter(ItemsCount::new(COUNT)).bench_local(|| {
        for address in &addresses {
            divan::black_box(question(&snapshot, *address));
        }
    });
}

#[divan::bench]
fn endpoint_of_a_pod(bencher: Bencher) {
    ask(bencher, world::remote_pod, |snapshot, ip| {
        snapshot.cluster.endpoint_at(ip, Timestamp(1), false).is_some()
    });
}

#[divan::bench]
fn endpoint_of_nobody(bencher: Bencher) {
    ask(bencher, world::external, |snapshot, ip| {
        snapshot.cluster.endpoint_at(ip, Timestamp(1), false).is_some()
    });
}

#[divan::bench]
fn network_set(bencher: Bencher) {
    ask(bencher, world::external, |snapshot, ip| snapshot.cluster.network_set(ip, Some("team-3")).is_some());
}

#[divan::bench]
fn service(bencher: Bencher) {
    ask(bencher, world::service, |snapshot, ip| snapshot.cluster.service(Proto::TCP, ip, 80, true));
}
