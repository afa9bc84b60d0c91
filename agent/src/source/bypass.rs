//! Dataplanes that pass connection tracking by, or take connections off it: their traffic would be missing.
//!
//! In: network devices, routes, TCX programs, the firewall rules as `nft` prints them, and a look into the
//! connection table. Out: findings, for `check`, the log and readiness. What holds: nothing is changed; what no
//! tool or permission lets us see is told as unknown. The reading of text is pure, so that it can be tested.
//!
//! Not here: a source for such nodes (TC programs), which this version does not have.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;

use super::netlink::any_connection_of;
use super::probe::{Finding, State};

/// Devices whose TCX programs and filters are asked for: enough to know the dataplane.
const DEVICES: usize = 32;
/// What a network plugin names the host's side of a pod.
const POD_PREFIXES: [&str; 8] = ["cali", "lxc", "veth", "eni", "azv", "gke", "tap", "cilium"];
/// Devices that only these dataplanes make.
const EBPF_DEVICES: [(&str, &str); 3] =
    [("cilium_host", "Cilium"), ("bpfin.cali", "Calico eBPF"), ("bpfout.cali", "Calico eBPF")];

pub fn findings() -> Vec<Finding> {
    vec![pods(), rules()]
}

struct Device {
    name: String,
    netkit: bool,
}

fn devices() -> Vec<Device> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let uevent = fs::read_to_string(entry.path().join("uevent")).unwrap_or_default();
            let netkit = uevent.lines().any(|line| line == "DEVTYPE=netkit");
            Some(Device { name: entry.file_name().into_string().ok()?, netkit })
        })
        .collect()
}

/// TC or TCX programs, or netkit, on pod devices, while no connection of a pod is tracked.
fn pods() -> Finding {
    const TOPIC: &str = "pod dataplane";
    let devices = devices();
    let known = EBPF_DEVICES.iter().find(|(name, _)| devices.iter().any(|d| d.name == *name));
    let pod_devices: Vec<&Device> = devices
        .iter()
        .filter(|d| d.netkit || POD_PREFIXES.iter().any(|prefix| d.name.starts_with(prefix)))
        .collect();
    let with_program = pod_devices.iter().take(DEVICES).find(|d| d.netkit || has_program(&d.name));
    let how = match (known, with_program) {
        (Some((device, dataplane)), _) => format!("{dataplane} (device {device})"),
        (None, Some(d)) if d.netkit => format!("netkit (device {})", d.name),
        (None, Some(d)) => format!("a TC program (device {})", d.name),
        (None, None) => {
            return Finding::ok(
                TOPIC,
                format!("{} pod devices, no TC programs seen on them", pod_devices.len()),
            );
        }
    };
    let table = fs::read_to_string("/proc/thread-self/net/route").unwrap_or_default();
    let addresses = pod_addresses(&table, &pod_devices.iter().map(|d| d.name.as_str()).collect());
    let remedy = "connections between pods may never enter connection tracking there: they will be missing from the flow logs; \
                  let the dataplane use the host's stack (Cilium: bpf.hostLegacyRouting=true); source tc, made for this, is not part of this version";
    if addresses.is_empty() {
        return Finding::not_ok(
            TOPIC,
            State::Warn,
            format!("{how}; unknown whether pods are tracked: no host route tells a pod's address"),
            remedy,
        );
    }
    match any_connection_of(&addresses) {
        Ok(true) => Finding::ok(TOPIC, format!("{how}, and connections of pods are tracked")),
        Ok(false) => Finding::not_ok(
            TOPIC,
            State::Warn,
            format!("{how}, and no connection of its {} pods is tracked", addresses.len()),
            remedy,
        ),
        Err(e) => Finding::not_ok(
            TOPIC,
            State::Warn,
            format!("{how}; unknown whether pods are tracked: {e}"),
            remedy,
        ),
    }
}

fn has_program(device: &str) -> bool {
    let tcx = |at| SchedClassifier::query_tcx(device, at).is_ok_and(|(_, programs)| !programs.is_empty());
    tcx(TcAttachType::Ingress) || tcx(TcAttachType::Egress) || has_bpf_filter(device)
}

/// Filters of a clsact qdisc. Without `tc` they stay unseen; the devices of the known dataplanes tell them anyway.
fn has_bpf_filter(device: &str) -> bool {
    ["ingress", "egress"].iter().any(|side| {
        Command::new("tc").args(["filter", "show", "dev", device, side]).output().is_ok_and(|out| {
            String::from_utf8_lossy(&out.stdout).split_whitespace().any(|word| word == "bpf")
        })
    })
}

/// Host routes (/32) over pod devices, from /proc/net/route: addresses are hexadecimal in the machine's byte order.
fn pod_addresses(table: &str, devices: &HashSet<&str>) -> HashSet<IpAddr> {
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (device, destination, mask) = (fields.first()?, fields.get(1)?, fields.get(7)?);
            if !devices.contains(device) || *mask != "FFFFFFFF" {
                return None;
            }
            let address = u32::from_str_radix(destination, 16).ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(address.to_ne_bytes())))
        })
        .collect()
}

fn rules() -> Finding {
    match Command::new("nft").args(["--stateless", "list", "ruleset"]).output() {
        Ok(out) if out.status.success() => read_rules(&String::from_utf8_lossy(&out.stdout)),
        Ok(out) => {
            let why = String::from_utf8_lossy(&out.stderr);
            unknown_rules(State::Warn, why.lines().next().unwrap_or("nft failed"))
        }
        // So in the image, which has nothing but the agent: nobody could mend it there, so that nobody is warned.
        Err(e) if e.kind() == ErrorKind::NotFound => unknown_rules(State::Off, "there is no nft here"),
        Err(e) => unknown_rules(State::Warn, &format!("nft: {e}")),
    }
}

const RULES: &str = "firewall rules";

fn unknown_rules(state: State, why: &str) -> Finding {
    Finding::not_ok(
        RULES,
        state,
        format!("unknown: {why}"),
        "look for notrack rules and flowtables without `counter` yourself: nft list ruleset; iptables-save -t raw",
    )
}

/// Offloaded flows without counters, and traffic that is exempt from tracking, in what `nft list ruleset` prints.
fn read_rules(text: &str) -> Finding {
    let mut uncounted = Vec::new();
    let mut exempt = 0usize;
    let mut tracking = false;
    let mut flowtable: Option<(&str, bool)> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("flowtable ") {
            flowtable = Some((name.trim_end_matches('{').trim(), false));
        } else if let Some((name, counted)) = &mut flowtable {
            match line {
                "counter" | "counter;" => *counted = true,
                "}" => {
                    if !*counted {
                        uncounted.push((*name).to_owned());
                    }
                    flowtable = None;
                }
                _ => {}
            }
        } else {
            let mut words = line.split(|c: char| c.is_whitespace() || c == '"').filter(|w| !w.is_empty());
            let has = |word: &str| line.split(|c: char| c.is_whitespace() || c == '"').any(|w| w == word);
            if has("notrack") || (has("xt") && has("CT")) {
                exempt = exempt.saturating_add(1);
            }
            let nat = words.any(|w| matches!(w, "ct" | "conntrack" | "masquerade" | "snat" | "dnat"))
                || line.starts_with("type nat hook");
            tracking |= nat;
        }
    }
    if !uncounted.is_empty() {
        return Finding::not_ok(
            RULES,
            State::Warn,
            format!("flowtables without `counter`: {}", uncounted.join(", ")),
            "packets that a flowtable forwards are not counted: add `counter` to its definition",
        );
    }
    if exempt > 0 {
        return Finding::not_ok(
            RULES,
            State::Warn,
            format!("{exempt} rules may exempt traffic from tracking (notrack)"),
            "what they match is not in the flow logs: remove them if it should be (NodeLocal DNSCache has such rules)",
        );
    }
    if tracking {
        Finding::ok(RULES, "some use connection tracking; none exempts or offloads")
    } else {
        Finding::not_ok(
            RULES,
            State::Warn,
            "no nftables rule uses connection tracking",
            "nothing is tracked unless an iptables-legacy rule or another dataplane asks for it",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_of(rules: &str) -> (State, String) {
        let finding = read_rules(rules);
        (finding.state, finding.detail)
    }

    #[test]
    fn rules_that_track_are_fine() {
        let rules = "table inet t {\n\tchain f {\n\t\ttype filter hook forward priority filter; policy accept;\n\t\tct state invalid drop\n\t}\n}\n";
        assert_eq!(state_of(rules).0, State::Ok);
        assert_eq!(state_of(&rules.replace("ct state invalid", "ip saddr 10.0.0.1")).0, State::Warn);
        assert_eq!(state_of("").0, State::Warn);
    }

    #[test]
    fn exempt_traffic_is_named() {
        let rules = "table ip raw {\n chain p {\n  ct state new accept\n  udp dport 53 notrack\n }\n}";
        assert_eq!(
            state_of(rules),
            (State::Warn, "1 rules may exempt traffic from tracking (notrack)".into())
        );
        assert_eq!(state_of(&rules.replace("notrack", "xt target \"CT\"")).0, State::Warn);
    }

    #[test]
    fn flowtables_need_a_counter() {
        let rules = "table ip t {\n flowtable ft {\n  hook ingress priority filter\n  devices = { a }\n }\n chain f {\n  ct state established flow add @ft\n }\n}";
        assert_eq!(state_of(rules), (State::Warn, "flowtables without `counter`: ft".into()));
        assert_eq!(state_of(&rules.replace("devices", "counter\n  devices")).0, State::Ok);
    }

    #[test]
    fn host_routes_over_pod_devices_tell_pods() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            cali1\t0201010A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
            cali1\t0001010A\t00000000\t0005\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            eth0\t0301010A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
        if cfg!(target_endian = "little") {
            let pods = pod_addresses(table, &HashSet::from(["cali1"]));
            assert_eq!(pods, HashSet::from([IpAddr::from([10, 1, 1, 2])]));
        }
        assert_eq!(pod_addresses("cali1 zz\nx", &HashSet::from(["cali1"])), HashSet::new());
    }
}
