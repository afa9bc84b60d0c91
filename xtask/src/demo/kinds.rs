//! What a flow log of such a node must show.
//!
//! In: lines. Out: one row for each kind of traffic that the demo drove, and whether a line of it was seen.

use super::lines::Line;
use super::node::{
    ADMIN_PORT, BATCH, CACHE, CACHE_PORT, CLIENT_A, CLIENT_B, DNS, SSH_PORT, STATS_PORT, WEB_1, WEB_PORT,
};

/// A kind, and whether the lines show it.
type Kind = (&'static str, bool);

/// Rows, and how many kinds are missing.
pub fn show(lines: &[Line], sees_drops: bool) -> (String, usize) {
    let mut all = allowed(lines);
    if sees_drops {
        all.extend(denied(lines));
    }
    let unseen = all.iter().filter(|(_, seen)| !seen).count();
    let text = all
        .iter()
        .map(|(kind, seen)| format!("{}  {kind}\n", if *seen { "seen   " } else { "MISSING" }))
        .collect();
    (text, unseen)
}

fn allowed(lines: &[Line]) -> Vec<Kind> {
    let any = |test: &dyn Fn(&Line) -> bool| lines.iter().any(|line| line.action == "allow" && test(line));
    let (client, web, dns) = (CLIENT_A.end(), WEB_1.end(), DNS.end());
    let to_web = |line: &Line| line.source == client && line.dest == web && line.port == Some(WEB_PORT);
    let http = |line: &Line| line.service.as_deref() == Some("shop/web:http");
    let both = |test: &dyn Fn(&Line) -> bool| {
        ["src", "dst"].into_iter().all(|reporter| any(&|line| line.reporter == reporter && test(line)))
    };
    let spans = |line: &&Line| line.reporter == "src" && to_web(line) && !line.is_silent();
    let windows =
        lines.iter().filter(spans).map(|line| line.start).collect::<std::collections::BTreeSet<_>>();
    vec![
        (
            "TCP over a service address (DNAT): the service's name, both reporters",
            both(&|l| to_web(l) && http(l)),
        ),
        ("IPv4 and IPv6 to the same service", any(&|l| to_web(l) && l.families() == "4+6")),
        (
            "UDP over a service address",
            both(&|l| l.dest == dns && l.service.as_deref() == Some("infra/dns:dns")),
        ),
        ("UDP over IPv6", any(&|l| l.dest == dns && l.proto == "udp" && l.families() == "6")),
        ("ICMP", both(&|l| l.proto == "icmp" && l.dest == web)),
        ("ICMPv6", both(&|l| l.proto == "icmp6" && l.dest == dns)),
        (
            "to a network set, SNAT: the port outside",
            any(&|l| l.dest == "partners" && l.families() == "4+6" && !l.nat_ports.is_empty()),
        ),
        ("to an address that nobody knows", any(&|l| l.dest == "pub")),
        (
            "from a network set over a node port",
            any(&|l| l.source == "partners" && l.reporter == "dst" && http(l)),
        ),
        ("from the node itself to a pod: the pod's line only", any(&|l| l.source == "pvt" && l.dest == web)),
        (
            "a pod that was replaced at the same address: each under its own name",
            both(&|l| l.dest == BATCH.end() && l.port == Some(CACHE_PORT))
                && both(&|l| l.dest == CACHE.end() && l.port == Some(CACHE_PORT))
                && both(&|l| l.source == BATCH.end())
                && both(&|l| l.source == CACHE.end()),
        ),
        ("a connection that moved data in two windows", windows.len() >= 2),
    ]
}

fn denied(lines: &[Line]) -> Vec<Kind> {
    let denied = |test: &dyn Fn(&Line) -> bool| {
        lines.iter().any(|line| {
            line.action == "deny"
                && line.drop_reasons.iter().any(|reason| reason == "NETFILTER_DROP")
                && test(line)
        })
    };
    let client = CLIENT_B.end();
    vec![
        (
            "denied TCP on its way to a pod, with the kernel's reason",
            denied(&|l| l.port == Some(ADMIN_PORT) && l.families() == "4" && l.dest == WEB_1.end()),
        ),
        ("denied TCP over IPv6", denied(&|l| l.port == Some(ADMIN_PORT) && l.families() == "6")),
        (
            "denied behind a service: the service's name",
            denied(&|l| l.service.as_deref() == Some("shop/web:admin")),
        ),
        ("denied UDP", denied(&|l| l.port == Some(STATS_PORT) && l.proto == "udp" && l.dest == DNS.end())),
        ("denied on its way to the node itself", denied(&|l| l.port == Some(SSH_PORT) && l.source == client)),
    ]
}
