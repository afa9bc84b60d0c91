//! A small node inside the guest: pods are network namespaces behind veth pairs, the node is the guest's own namespace,
//! which forwards, tracks and filters.
//!
//! In: which pods, which nftables rules. Out: a `Node` whose drop removes everything again, so that each case begins
//! with no pod, no rule and no tracked connection. A pod's own namespace has no rule, hence no connection tracking of
//! its own (but where a case asks for just that).

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace with one leg on the node.
pub struct Pod {
    pub name: &'static str,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    namespace: File,
}

impl Pod {
    /// Runs `work` on a thread inside the pod's namespace and waits for it.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("cannot enter namespace {}", self.name))?;
                work()
            });
            match thread.join() {
                Ok(outcome) => outcome.with_context(|| format!("in pod {}", self.name)),
                Err(_) => bail!("a thread in pod {} panicked", self.name),
            }
        })
    }

    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

/// The pods and rules of one case.
pub struct Node {
    pub pods: Vec<Pod>,
}

/// The node's own addresses toward pod number `index`.
pub fn gateway(index: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(10, 77, index, 1), Ipv6Addr::new(0xfd77, 0, 0, u16::from(index), 0, 0, 0, 1))
}

impl Node {
    /// Two pods, `client` and `server`, and a rule that turns connection tracking on.
    pub fn new() -> Result<Self> {
        let mut node = Self::untracked()?;
        node.rules(TRACK)?;
        // Of seconds by default (SCTP's handshakes 3): on a slow machine a case's connection would end before it is listed.
        for entry in std::fs::read_dir("/proc/sys/net/netfilter")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("nf_conntrack_") && name.contains("_timeout") {
                sysctl(&format!("net/netfilter/{name}"), "86400")?;
            }
        }
        Ok(node)
    }

    /// The same without any rule: nothing is tracked.
    pub fn untracked() -> Result<Self> {
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv4/conf/all/rp_filter", "0"),
        ] {
            sysctl(key, value)?;
        }
        let mut node = Self { pods: Vec::new() };
        node.pod("client")?;
        node.pod("server")?;
        Ok(node)
    }

    fn pod(&mut self, name: &'static str) -> Result<()> {
        let index = u8::try_from(self.pods.len() + 1)?;
        let (gate4, gate6) = gateway(index);
        let v4 = Ipv4Addr::new(10, 77, index, 2);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, u16::from(index), 0, 0, 0, 2);
        // One process for the node's side, one for the pod's: starting programs is what takes time in an emulated guest.
        run_with_input(
            &["ip", "-batch", "-"],
            &format!(
                "netns add {name}\n\
             link add veth-{name} type veth peer name eth0 netns {name}\n\
             addr add {gate4}/24 dev veth-{name}\n\
             addr add {gate6}/64 dev veth-{name} nodad\n\
             link set veth-{name} up\n"
            ),
        )?;
        // Each segment is acknowledged at once: an acknowledgement that a timer sends later would be counted by the kernel
        // between the moment the yardstick is read and the agent's own last look.
        run_with_input(
            &["ip", "-n", name, "-batch", "-"],
            &format!(
                "link set lo up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {gate4} quickack 1\n\
             route add default via {gate6} quickack 1\n"
            ),
        )?;
        let namespace = File::open(format!("/run/netns/{name}"))?;
        let pod = Pod { name, v4, v6, namespace };
        // A new namespace has this from the first one, which forwards: a packet for nobody would go to and fro between the
        // pod and the node until its TTL ends, counted each time, and fill the queues that others wait in.
        pod.inside(|| sysctl("net/ipv4/ip_forward", "0"))?;
        self.pods.push(pod);
        Ok(())
    }

    pub fn client(&self) -> &Pod {
        &self.pods[0]
    }

    pub fn server(&self) -> &Pod {
        &self.pods[1]
    }

    /// Loads nftables rules in the node's namespace.
    pub fn rules(&mut self, text: &str) -> Result<()> {
        run_with_input(&["nft", "-f", "-"], text).map(drop)
    }

    /// Packets and bytes of a named counter of table `inet case`.
    pub fn counter(&self, name: &str) -> Result<[u64; 2]> {
        let text = run(&["nft", "-j", "list", "counter", "inet", "case", name])?;
        let value: serde_json::Value = serde_json::from_str(&text)?;
        let counters =
            value["nftables"].as_array().into_iter().flatten().find_map(|entry| entry.get("counter"));
        let counter = counters.with_context(|| format!("nft knows no counter {name}"))?;
        let field = |key: &str| counter[key].as_u64().with_context(|| format!("counter {name} has no {key}"));
        Ok([field("packets")?, field("bytes")?])
    }
}

/// Makes connection tracking active and drops nothing.
pub const TRACK: &str = "table inet case {
    chain forward { type filter hook forward priority 0; ct state established,related accept; }
    chain input { type filter hook input priority 0; ct state established,related accept; }
    chain output { type filter hook output priority 0; ct state established,related accept; }
}";

impl Drop for Node {
    fn drop(&mut self) {
        for pod in &self.pods {
            let _ = run(&["ip", "netns", "del", pod.name]);
            let _ = run(&["ip", "link", "del", &format!("veth-{}", pod.name)]);
        }
        let _ = run(&["nft", "flush", "ruleset"]);
        let _ = run(&["conntrack", "-F"]);
    }
}

/// Writes a sysctl, named as a path below `/proc/sys`.
pub fn sysctl(key: &str, value: &str) -> Result<()> {
    std::fs::write(format!("/proc/sys/{key}"), value).with_context(|| format!("cannot set {key} to {value}"))
}

/// Runs a program to its end; gives its stdout.
pub fn run(command: &[&str]) -> Result<String> {
    run_with_input(command, "")
}

/// The same, with something to read.
pub fn run_with_input(command: &[&str], input: &str) -> Result<String> {
    let [program, arguments @ ..] = command else { bail!("no command") };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading makes this fail; its exit code tells why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("{command:?} ended with {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
