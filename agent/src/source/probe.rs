//! What this node offers to the sources, and what is in their way.
//!
//! In: /proc and /sys of this machine and of this thread's network namespace, and one try of each source.
//! Out: [`Finding`]s in the order of reading, and the [`Choice`] that `--source auto` makes. What holds: reading
//! changes nothing (a tried source is closed again); what cannot be read is told as unknown, never guessed; each
//! finding that is not fine says what to do.
//!
//! Not here: dataplanes that pass connection tracking by (`bypass`), the table (`cli::check`).

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{Access, access};

use super::accounting::{ACCOUNTING_SYSCTL, writable_sysctl};
use super::bypass;
use super::collectors::{processes_wanted, tcp_wanted};
use super::ebpf::{self, Attached, Collector, EbpfProbe, SocketSource, SweepBy};
use super::netlink::{NetlinkOptions, NetlinkSource};
use crate::config::{Config, SourceKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ok,
    /// Not switched on, or not part of this agent: nothing is wrong.
    Off,
    /// Something that is needed is not there.
    Missing,
    /// It works, but some traffic or some figure may be left out; or it cannot be known.
    Warn,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Off => "off",
            Self::Missing => "missing",
            Self::Warn => "warn",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub topic: &'static str,
    pub state: State,
    pub detail: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    pub fn ok(topic: &'static str, detail: impl Into<String>) -> Self {
        Self { topic, state: State::Ok, detail: detail.into(), remedy: String::new() }
    }

    pub fn not_ok(
        topic: &'static str,
        state: State,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { topic, state, detail: detail.into(), remedy: remedy.into() }
    }
}

/// What `--source` comes to on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// None: the agent cannot run here.
    pub source: Option<&'static str>,
    pub why: String,
}

/// Everything, in the order of a table, and the source that would be used.
pub fn findings(config: &Config) -> (Vec<Finding>, Choice) {
    let mut all = vec![kernel_release(), btf(), kprobes(), lockdown(), capabilities()];
    let ebpf = ebpf::probe();
    let sources = [("ebpf", try_ebpf(&ebpf)), ("netlink", try_netlink())];
    all.extend(sources.iter().map(|(name, outcome)| match outcome {
        Ok(detail) => Finding::ok(source_topic(name), detail.clone()),
        Err(why) => Finding::not_ok(source_topic(name), State::Missing, "does not work here", why.clone()),
    }));
    all.push(dns(config));
    all.push(match ebpf.drops {
        Ok(()) => Finding::ok("drops", "dropped packets and their reasons can be counted"),
        Err(why) => {
            Finding::not_ok("drops", State::Missing, "cannot be observed: there will be no deny lines", why)
        }
    });
    all.extend(conntrack(Path::new("/proc/sys/net/netfilter")));
    all.push(accounting(read(ACCOUNTING_SYSCTL), config.flow_logs_set_conntrack_accounting));
    all.push(sysctls_writable());
    all.extend(bypass::findings());
    all.push(log_directory(&config.flow_logs_file_directory));
    all.extend(collectors(config));
    all.push(not_yet());
    let choice = choose(config.flow_logs_source, &sources);
    (all, choice)
}

fn source_topic(name: &str) -> &'static str {
    match name {
        "netlink" => "source netlink",
        "ebpf" => "source ebpf",
        _ => "source",
    }
}

/// The first source that works, in order of preference; or the one that was asked for.
fn choose(wanted: SourceKind, sources: &[(&'static str, Result<String, String>)]) -> Choice {
    let wanted = match wanted {
        SourceKind::Auto => None,
        SourceKind::Ebpf => Some("ebpf"),
        SourceKind::Netlink => Some("netlink"),
    };
    let mut refused = Vec::new();
    for (name, outcome) in sources.iter().filter(|(name, _)| wanted.is_none_or(|w| w == *name)) {
        match outcome {
            Ok(_) => {
                let mut why = match wanted {
                    None => "the first that works here".to_owned(),
                    Some(_) => "it was asked for (flowLogsSource), and works".to_owned(),
                };
                if !refused.is_empty() {
                    why = format!("{why}; {}", refused.join("; "));
                }
                return Choice { source: Some(name), why };
            }
            Err(error) => refused.push(format!("{name}: {error}")),
        }
    }
    if let (Some(wanted), true) = (wanted, refused.is_empty()) {
        refused.push(format!("{wanted} was asked for (flowLogsSource) and is not part of this agent"));
    }
    Choice { source: None, why: refused.join("; ") }
}

fn try_ebpf(probe: &EbpfProbe) -> Result<String, String> {
    let connections = probe.connections.as_ref().map_err(Clone::clone)?;
    if connections.attached == Attached::WaitingForConntrack {
        return Ok("it attaches as soon as nf_conntrack is loaded".to_owned());
    }
    let sweep = match connections.sweep {
        SweepBy::Callback => "the kernel walks its map",
        SweepBy::Entries => "entry by entry, this kernel cannot walk a map",
    };
    let adopt = if connections.can_adopt {
        "connections that exist at start are adopted"
    } else {
        "connections that exist at start cannot be adopted: their ends are counted as not_adopted"
    };
    Ok(format!("probes attach; sweep: {sweep}; {adopt}"))
}

fn try_netlink() -> Result<String, String> {
    // Small: it is closed again at once.
    NetlinkSource::open(&NetlinkOptions { receive_buffer_bytes: 1 << 16, ..NetlinkOptions::default() })
        .map(|_| "conntrack events and dumps can be read".to_owned())
        .map_err(|error| error.to_string())
}

fn dns(config: &Config) -> Finding {
    let wanted = config.dns_logs_file_enabled || config.flow_logs_collect_dest_domains;
    match super::dns::open() {
        Ok(_) if wanted => {
            Finding::ok("DNS", "questions and answers on port 53 are captured by a packet socket")
        }
        Ok(_) => Finding::not_ok(
            "DNS",
            State::Off,
            "can be captured, and is not: no dest_domains, no DNS log",
            "set dnsLogsFileEnabled, or flowLogsCollectDestDomains for dest_domains alone",
        ),
        Err(error) => {
            let state = if wanted { State::Missing } else { State::Off };
            Finding::not_ok(
                "DNS",
                state,
                "cannot be captured: no dest_domains, no DNS log",
                error.to_string(),
            )
        }
    }
}

fn kernel_release() -> Finding {
    let uname = rustix::system::uname();
    Finding::ok(
        "kernel",
        format!("{} {}", uname.release().to_string_lossy(), uname.machine().to_string_lossy()),
    )
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Finding::ok("BTF", "/sys/kernel/btf/vmlinux")
    } else {
        Finding::not_ok(
            "BTF",
            State::Missing,
            "no /sys/kernel/btf/vmlinux",
            "source ebpf needs a kernel with CONFIG_DEBUG_INFO_BTF=y, and /sys mounted; source netlink does not",
        )
    }
}

fn kprobes() -> Finding {
    if Path::new("/sys/bus/event_source/devices/kprobe").exists()
        || Path::new("/sys/kernel/tracing/kprobe_events").exists()
    {
        Finding::ok("kprobes", "available")
    } else {
        Finding::not_ok(
            "kprobes",
            State::Missing,
            "no kprobe event source",
            "source ebpf needs a kernel with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y, and /sys mounted; source netlink does not",
        )
    }
}

fn lockdown() -> Finding {
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(text) => lockdown_of(&text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // As in every container. A kernel that refuses for it shows in what is tried.
            Finding::not_ok(
                "lockdown",
                State::Off,
                "not looked at: securityfs is not mounted here, or no lockdown",
                "",
            )
        }
        Err(e) => Finding::not_ok("lockdown", State::Warn, format!("unknown: {e}"), ""),
    }
}

/// `none [integrity] confidentiality`: the one in brackets is in force.
fn lockdown_of(text: &str) -> Finding {
    let mode = text.split('[').nth(1).and_then(|rest| rest.split(']').next()).unwrap_or("unknown");
    match mode {
        "none" | "integrity" => Finding::ok("lockdown", mode),
        _ => Finding::not_ok(
            "lockdown",
            State::Warn,
            mode,
            "confidentiality lets no BPF program read kernel memory: boot with lockdown=integrity for source ebpf, or use source netlink",
        ),
    }
}

/// linux/capability.h: bit, name.
const CAPABILITIES: [(u32, &str); 4] =
    [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

fn capabilities() -> Finding {
    let status = read("/proc/thread-self/status");
    match status.as_deref().and_then(effective_capabilities) {
        Some(bits) => capabilities_of(bits),
        None => Finding::not_ok("capabilities", State::Warn, "unknown: /proc cannot be read", "mount /proc"),
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn capabilities_of(bits: u64) -> Finding {
    let has = |name: &str| CAPABILITIES.iter().any(|(bit, n)| *n == name && bits >> bit & 1 == 1);
    let mut lacking: Vec<&str> = CAPABILITIES.iter().map(|(_, n)| *n).filter(|n| !has(n)).collect();
    // CAP_SYS_ADMIN stands for the finer two, and is not needed beside them.
    if has("CAP_SYS_ADMIN") {
        lacking.retain(|n| *n == "CAP_NET_ADMIN");
    } else if has("CAP_BPF") && has("CAP_PERFMON") {
        lacking.retain(|n| *n != "CAP_SYS_ADMIN");
    }
    let held: Vec<&str> = CAPABILITIES.iter().map(|(_, n)| *n).filter(|n| has(n)).collect();
    let detail = if held.is_empty() { "none of those it uses".to_owned() } else { held.join(" ") };
    if lacking.is_empty() {
        return Finding::ok("capabilities", detail);
    }
    lacking.retain(|n| *n != "CAP_SYS_ADMIN");
    let state = if has("CAP_NET_ADMIN") { State::Warn } else { State::Missing };
    Finding::not_ok(
        "capabilities",
        state,
        detail,
        format!("give the agent {} (source netlink needs CAP_NET_ADMIN alone)", lacking.join(" ")),
    )
}

/// Is connection tracking there, does it track, does it tell of ends?
fn conntrack(sysctls: &Path) -> Vec<Finding> {
    let number =
        |name: &str| -> Option<u64> { fs::read_to_string(sysctls.join(name)).ok()?.trim().parse().ok() };
    let Some(max) = number("nf_conntrack_max") else {
        return vec![Finding::not_ok(
            "connection tracking",
            State::Missing,
            "not loaded in this kernel",
            "modprobe nf_conntrack; it tracks once a firewall rule in this network namespace uses `ct`",
        )];
    };
    let mut out = Vec::new();
    match number("nf_conntrack_count") {
        Some(0) => out.push(Finding::not_ok(
            "connection tracking",
            State::Warn,
            "active, but it holds no connection at this moment",
            "without a firewall rule that uses `ct` in this network namespace nothing is tracked, and the agent writes no rules: \
             kube-proxy and most network plugins bring one, else add for instance \
             nft 'add table inet track; add chain inet track f { type filter hook forward priority 0; }; add rule inet track f ct state new counter'",
        )),
        Some(n) if n.saturating_mul(10) >= max.saturating_mul(9) => out.push(Finding::not_ok(
            "connection tracking",
            State::Warn,
            format!("{n} of {max} connections: nearly full, new ones will be dropped"),
            "raise net.netfilter.nf_conntrack_max",
        )),
        Some(n) => out.push(Finding::ok("connection tracking", format!("{n} of {max} connections"))),
        None => out.push(Finding::not_ok("connection tracking", State::Warn, "unknown: no count", "")),
    }
    out.push(match number("nf_conntrack_events") {
        Some(0) => Finding::not_ok(
            "conntrack events",
            State::Missing,
            "nf_conntrack_events is 0",
            "source netlink needs sysctl -w net.netfilter.nf_conntrack_events=2; source ebpf does not",
        ),
        Some(2) => Finding::ok(
            "conntrack events",
            "nf_conntrack_events is 2 (source netlink watches connections older than itself by a dump a second)",
        ),
        Some(n) => Finding::ok("conntrack events", format!("nf_conntrack_events is {n}")),
        None => Finding::not_ok(
            "conntrack events",
            State::Missing,
            "this kernel has none",
            "source netlink needs CONFIG_NF_CONNTRACK_EVENTS=y; source ebpf does not",
        ),
    });
    out
}

fn accounting(value: Option<String>, may_set: bool) -> Finding {
    const TOPIC: &str = "conntrack accounting";
    match value.as_deref().map(str::trim) {
        Some("1") => Finding::ok(TOPIC, "nf_conntrack_acct is 1"),
        Some(_) if may_set => Finding::not_ok(
            TOPIC,
            State::Off,
            "nf_conntrack_acct is 0: the agent switches it on when it starts",
            "connections that begin before are not counted: set net.netfilter.nf_conntrack_acct=1 at boot (/etc/sysctl.d)",
        ),
        Some(_) => Finding::not_ok(
            TOPIC,
            State::Missing,
            "nf_conntrack_acct is 0, and flowLogsSetConntrackAccounting forbids the agent to set it",
            "sysctl -w net.netfilter.nf_conntrack_acct=1: without it nothing is counted",
        ),
        None => Finding::not_ok(TOPIC, State::Missing, "no nf_conntrack_acct", "modprobe nf_conntrack"),
    }
}

fn sysctls_writable() -> Finding {
    match writable_sysctl() {
        Ok(path) => Finding::ok("/proc/sys/net", format!("writable: {path}")),
        Err(e) => Finding::not_ok(
            "/proc/sys/net",
            State::Warn,
            format!("not writable: {e}"),
            "the agent cannot switch on accounting: set net.netfilter.nf_conntrack_acct=1 on the node, or mount the node's /proc/sys/net writable at /host/proc/sys/net",
        ),
    }
}

fn log_directory(directory: &Path) -> Finding {
    const TOPIC: &str = "log directory";
    // What does not exist yet is made at start, in the nearest directory that does.
    let Some(nearest) = directory.ancestors().find(|d| d.is_dir()) else {
        return Finding::not_ok(
            TOPIC,
            State::Missing,
            directory.display().to_string(),
            "use an absolute path",
        );
    };
    let detail = if nearest == directory {
        directory.display().to_string()
    } else {
        format!("{} (to be made in {})", directory.display(), nearest.display())
    };
    match access(nearest, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::ok(TOPIC, detail),
        Err(e) => Finding::not_ok(
            TOPIC,
            State::Missing,
            format!("{detail}: {}", io::Error::from(e)),
            "mount it writable, or set flowLogsFileDirectory to another",
        ),
    }
}

/// Processes and TCP statistics: each is tried, whether it is wanted or not.
fn collectors(config: &Config) -> [Finding; 2] {
    let processes = Collector::Processes { paths: config.flow_logs_collect_process_path };
    [
        ("processes", "flowLogsCollectProcessInfo", processes, processes_wanted(config).is_some()),
        ("TCP statistics", "flowLogsCollectTcpStats", Collector::TcpStats, tcp_wanted(config).is_some()),
    ]
    .map(|(topic, field, collector, is_wanted)| {
        let tried = SocketSource::try_out(collector).map_err(|error| error.to_string());
        collector_of(topic, field, is_wanted, tried)
    })
}

fn collector_of(
    topic: &'static str,
    field: &str,
    is_wanted: bool,
    tried: Result<Vec<String>, String>,
) -> Finding {
    let (state, detail, remedy) = match (is_wanted, tried) {
        (true, Ok(lacks)) if lacks.is_empty() => (State::Ok, "collected".to_owned(), String::new()),
        (true, Ok(lacks)) => (State::Warn, format!("collected, but {}", lacks.join("; ")), String::new()),
        (true, Err(why)) => (State::Missing, "cannot be collected: its columns stay empty".to_owned(), why),
        (false, Ok(lacks)) if lacks.is_empty() => {
            (State::Off, format!("this node offers them; {field} is false"), String::new())
        }
        (false, Ok(lacks)) => (
            State::Off,
            format!("{field} is false; this node offers them, but {}", lacks.join("; ")),
            String::new(),
        ),
        (false, Err(why)) => {
            (State::Off, format!("{field} is false, and this node does not offer them: {why}"), String::new())
        }
    };
    Finding::not_ok(topic, state, detail, remedy)
}

/// What this version does not have.
fn not_yet() -> Finding {
    let detail = "not part of this version: for dataplanes that pass connection tracking by";
    Finding::not_ok("source tc", State::Off, detail.to_owned(), "")
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
