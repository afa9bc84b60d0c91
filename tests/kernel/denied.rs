//! Denied traffic: deny lines equal the counters of the rules that dropped it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::agent::{Agent, Options, sums};
use crate::kinds::folder;
use crate::node::{Node, gateway};
use crate::{Outcome, reference, traffic};

const RULES: &str = "table inet case {
    counter forward_v4 {}
    counter forward_v6 {}
    counter forward_tcp {}
    counter input_v4 {}
    counter input_v6 {}
    counter established {}
    chain translate { type nat hook prerouting priority dstnat; ip daddr 10.96.0.10 udp dport 99 dnat ip to 10.77.2.2:9005; }
    counter forward_dnat {}
    chain deny_forward { type filter hook forward priority -1;
        ip daddr 10.77.2.2 udp dport 9001 counter name forward_v4 drop;
        udp dport 9002 counter name forward_v6 drop;
        tcp dport 9003 counter name forward_tcp drop;
        udp dport 9005 counter name forward_dnat drop;
        udp dport 9006 meta length > 1000 counter name established drop;
    }
    chain deny_input { type filter hook input priority -1;
        ip daddr 10.77.1.1 udp dport 9001 counter name input_v4 drop;
        udp dport 9004 counter name input_v6 drop;
    }
}";

/// Denied forward and input, both families, TCP and UDP, behind DNAT, and in the middle of an allowed connection.
pub fn denied() -> Result<Outcome> {
    let mut node = Node::new()?;
    node.rules(RULES)?;
    let agent = Agent::start(&folder("denied"), &Options { source: "auto", ..Options::default() })?;
    if !agent.sees_drops() {
        return Ok(Outcome::Skipped("this kernel lets the agent see no drops, and it says so".to_owned()));
    }
    let (client, server) = (node.client(), node.server());
    let (gate4, gate6) = gateway(1);
    let v4 = |port| SocketAddr::new(server.ip(false), port);
    let v6 = |port| SocketAddr::new(server.ip(true), port);
    traffic::udp_unanswered(client, v4(9001), 5, 100)?;
    traffic::udp_unanswered(client, v6(9002), 4, 100)?;
    traffic::tcp_denied(client, v4(9003), Duration::from_millis(2500))?;
    traffic::udp_unanswered(client, SocketAddr::new(gate4.into(), 9001), 3, 50)?;
    traffic::udp_unanswered(client, SocketAddr::new(gate6.into(), 9004), 2, 50)?;
    traffic::udp_unanswered(client, "10.96.0.10:99".parse()?, 6, 30)?;
    // Allowed, answered, then some packets of it are dropped: an allow line and a deny line side by side.
    let echo = traffic::udp_socket(server, false, 9006)?;
    traffic::udp_then_oversized(client, v4(9006), &echo, 3, 100, 2, 1100)?;
    let kernel = reference::list()?;
    let names =
        ["forward_v4", "forward_v6", "forward_tcp", "input_v4", "input_v6", "forward_dnat", "established"];
    let mut wanted = BTreeMap::new();
    for (name, proto, dest) in [
        ("forward_v4", 17, v4(9001)),
        ("forward_v6", 17, v6(9002)),
        ("forward_tcp", 6, v4(9003)),
        ("input_v4", 17, SocketAddr::new(gate4.into(), 9001)),
        ("input_v6", 17, SocketAddr::new(gate6.into(), 9004)),
        ("forward_dnat", 17, v4(9005)),
        ("established", 17, v4(9006)),
    ] {
        wanted.insert((proto, dest), (name, node.counter(name)?));
    }
    ensure!(wanted.len() == names.len());
    let lines = agent.stop()?;
    let mut exported: BTreeMap<(u8, SocketAddr), [u64; 2]> = BTreeMap::new();
    for (key, sums) in sums(&lines, "deny")? {
        ensure!(key.source.0 == client.ip(key.source.0.is_ipv6()), "a deny line of somebody else: {key:?}");
        ensure!(sums.packets[1] == 0 && sums.bytes[1] == 0, "a denied flow was answered: {key:?} {sums:?}");
        let to = SocketAddr::new(key.dest.0, key.dest.1.unwrap_or_default());
        let entry = exported.entry((key.proto, to)).or_default();
        entry[0] += sums.packets[0];
        entry[1] += sums.bytes[0];
    }
    for (key, (name, counter)) in &wanted {
        let lines = exported.remove(key).unwrap_or_default();
        ensure!(counter[0] > 0, "rule {name} dropped nothing");
        ensure!(lines == *counter, "{name}: deny lines say {lines:?} packets and bytes, nft {counter:?}");
    }
    ensure!(exported.is_empty(), "deny lines that no rule explains: {exported:?}");
    for line in lines.iter().filter(|line| line.action == "deny" && line.packets_in + line.packets_out > 0) {
        let reasons = line.drop_reasons.clone().unwrap_or_default();
        ensure!(reasons.iter().any(|reason| reason.contains("NETFILTER")), "no drop reason: {line:?}");
    }
    crate::agent::equal("allow lines", &sums(&lines, "allow")?, &reference::total(&kernel))?;
    Ok(Outcome::Pass(format!("{} rules' counters equal", names.len())))
}
