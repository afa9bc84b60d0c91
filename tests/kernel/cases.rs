//! The list of cases, and the one that proves the ground the others stand on.
//!
//! Order matters once: `module_after_agent` must find a kernel without connection tracking, so it is first.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use crate::node::{Node, run, sysctl};
use crate::{Case, Outcome, denied, kinds, limits, programs, reference, sockets, sweeps, traffic};

/// All cases, in the order in which they run.
pub const CASES: &[Case] = &[
    Case { name: "module_after_agent", run: kinds::module_after_agent },
    Case { name: "ground", run: ground },
    Case { name: "kinds", run: kinds::kinds },
    Case { name: "kinds_netlink", run: kinds::kinds_netlink },
    Case { name: "natural_end", run: kinds::natural_end },
    Case { name: "denied", run: denied::denied },
    Case { name: "clash", run: kinds::clash },
    Case { name: "tracking_pod", run: kinds::tracking_pod },
    Case { name: "thousands", run: kinds::thousands },
    Case { name: "sweeps", run: sweeps::sweeps },
    Case { name: "processes", run: sockets::processes },
    Case { name: "programs", run: programs::programs },
    Case { name: "domains", run: programs::domains },
    Case { name: "tcp_statistics", run: sockets::tcp_statistics },
    Case { name: "map_full", run: limits::map_full },
    Case { name: "ring_full", run: limits::ring_full },
    Case { name: "all_full", run: limits::all_full },
    Case { name: "restarted", run: limits::restarted },
    Case { name: "killed", run: limits::killed },
    Case { name: "module_unloaded", run: limits::module_unloaded },
    Case { name: "little_memory", run: limits::little_memory },
];

/// No agent: pods, traffic of every kind, the kernel's counters as the tools show them, a denied port's counter.
fn ground() -> Result<Outcome> {
    let mut node = Node::new()?;
    sysctl("net/netfilter/nf_conntrack_acct", "1")?;
    node.rules(
        "table inet case {
            counter denied {}
            chain denying { type filter hook forward priority -1; udp dport 9999 counter name denied drop; }
            chain nat { type nat hook prerouting priority dstnat; ip daddr 10.96.0.10 tcp dport 80 dnat ip to 10.77.2.2:8080; }
        }",
    )?;
    let (client, server) = (node.client(), node.server());
    let ends = reference::Ends::start()?;
    for v6 in [false, true] {
        let listener = traffic::listen(server, v6, 8080)?;
        traffic::tcp(client, SocketAddr::new(server.ip(v6), 8080), &listener, 3, 1000, 20_000)?;
        if !v6 {
            traffic::tcp(client, "10.96.0.10:80".parse()?, &listener, 1, 10, 10)?;
        }
        let echo = traffic::udp_socket(server, v6, 5353)?;
        traffic::udp(client, SocketAddr::new(server.ip(v6), 5353), &echo, 4, 100)?;
        traffic::ping(client, server.ip(v6), 77, 3, 56)?;
        traffic::sctp(client, server, v6, 7777, 500, 600)?;
    }
    traffic::udp_unanswered(client, SocketAddr::new(server.ip(false), 9999), 5, 72)?;
    // A pod does not send back what is for nobody.
    run(&["ip", "route", "add", "198.18.0.0/15", "via", &server.v4.to_string()])?;
    traffic::udp_unanswered(client, "198.18.0.1:7".parse()?, 1, 10)?;
    let connections = reference::list()?;
    let total = reference::total(&connections);
    let ping = total.iter().find(|(key, _)| key.proto == 1).map(|(_, sums)| *sums).unwrap_or_default();
    if (ping.packets, ping.bytes) != ([3, 3], [252, 252]) {
        bail!("three pings of 84 bytes, but conntrack says {ping:?}");
    }
    let nobody = total.iter().find(|(key, _)| key.dest.1 == Some(7)).map(|(_, sums)| sums.packets);
    if nobody != Some([1, 0]) {
        bail!("one datagram for nobody, but conntrack says {nobody:?}");
    }
    if connections.len() != 3 + 3 + 1 + 2 + 2 + 2 + 1 {
        bail!("conntrack has {} entries: {connections:?}", connections.len());
    }
    let denied = node.counter("denied")?;
    if denied != [5, 5 * 100] {
        bail!("five datagrams of 100 bytes were denied, but nft says {denied:?}");
    }
    reference::flush()?;
    let ended = ends.wait(connections.len(), traffic::PATIENCE)?;
    if reference::total(&ended) != total {
        bail!("conntrack -E and -L differ: {ended:?} {connections:?}");
    }
    Ok(Outcome::Pass(format!("{} connections", connections.len())))
}
