//! What the programs must know of the running kernel: offsets, reasons, symbols.
//!
//! In: `/sys/kernel/btf/vmlinux`, read once and freed, and `/proc/kallsyms` where a kernel has no drop reasons. Out:
//! [`Kernel`]: `Settings` for the programs and the names of drop reasons. What always holds: an offset that does not lie
//! where the programs can read it is an error here, never a wrong number there. Not here: loading.

use std::fs;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use flowlogd_ebpf::{ABSENT, KernelTuple, OLD_FILTER_REASON, REASON_SUBSYSTEM_BASE, Settings, WINDOW_BYTES};

use super::btf::{Btf, BtfError};

pub(super) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
const KALLSYMS: &str = "/proc/kallsyms";

/// The reasons that mean "dropped by a filter"; the names after `SKB_DROP_REASON_`.
pub const FILTER_REASONS: [&str; 5] =
    ["NETFILTER_DROP", "TC_INGRESS", "TC_EGRESS", "BPF_CGROUP_EGRESS", "XDP"];

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(
        "cannot read {BTF_PATH} ({0}): the kernel must be built with CONFIG_DEBUG_INFO_BTF; use --source netlink on this node"
    )]
    NoBtf(std::io::Error),
    #[error("{0}; use --source netlink on this node")]
    Btf(#[from] BtfError),
    #[error(
        "this kernel lays out {0} in a way that flowlogd does not know; use --source netlink on this node and report the kernel's release"
    )]
    Layout(&'static str),
    #[error(
        "cannot tell drops by a filter from others: {0} (the kernel has no drop reasons, and {KALLSYMS} gives no address of nf_hook_slow: CAP_SYSLOG or kernel.kptr_restrict)"
    )]
    NoReasons(String),
}

/// Names of drop reasons by the kernel's number.
#[derive(Clone, Debug, Default)]
pub struct Reasons {
    /// By number; the kernel's gaps are empty.
    names: Vec<Option<Arc<str>>>,
    subsystems: Vec<Option<Arc<str>>>,
}

impl Reasons {
    /// The name of a reason, without the prefix that all of them share.
    pub fn name(&self, reason: u32) -> Arc<str> {
        match self.names.get(reason as usize).cloned().flatten() {
            Some(name) => name,
            None => Arc::from(format!("REASON_{reason}")),
        }
    }

    /// The name of a slot of REASONS.
    pub fn slot_name(&self, slot: u32) -> Arc<str> {
        match slot.checked_sub(REASON_SUBSYSTEM_BASE) {
            None => self.name(slot),
            Some(subsystem) => match self.subsystems.get(subsystem as usize).cloned().flatten() {
                Some(name) => name,
                None => Arc::from(format!("SUBSYS_{subsystem}")),
            },
        }
    }
}

/// Resolved once at start.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub settings: Settings,
    pub reasons: Reasons,
    /// `struct nf_conn` is known: connections can be followed, and drops carry the address before DNAT.
    pub has_conntrack: bool,
}

impl Kernel {
    pub fn resolve() -> Result<Self, KernelError> {
        let data = fs::read(BTF_PATH).map_err(KernelError::NoBtf)?;
        Self::from_btf(&data)
    }

    fn from_btf(data: &[u8]) -> Result<Self, KernelError> {
        let btf = Btf::parse(
            data,
            &[
                "nf_conn",
                "nf_conntrack_tuple",
                "nf_ct_ext",
                "nf_ct_ext_id",
                "sk_buff",
                "net_device",
                "sock",
                "task_struct",
                "nsproxy",
                "net",
                "skb_drop_reason",
                "skb_drop_reason_subsys",
                "btf_trace_kfree_skb",
            ],
        )?;
        let mut settings = base_settings(&btf)?;
        let has_conntrack = btf.size_of("nf_conn").is_ok();
        if has_conntrack {
            conntrack_settings(&btf, &mut settings)?;
        }
        let mut reasons = Reasons::default();
        settings.has_reason = u64::from(btf.tracepoint_arguments("kfree_skb")? >= 3);
        if settings.has_reason != 0 {
            reasons.names =
                table(&btf.variants("skb_drop_reason")?, "SKB_DROP_REASON_", REASON_SUBSYSTEM_BASE);
            if let Ok(variants) = btf.variants("skb_drop_reason_subsys") {
                reasons.subsystems = table(&variants, "SKB_DROP_REASON_SUBSYS_", 64);
            }
            for (slot, wanted) in settings.filter_reasons.iter_mut().zip(FILTER_REASONS) {
                let number = reasons.names.iter().position(|name| name.as_deref() == Some(wanted));
                *slot = number.map_or(ABSENT, |n| n as u64);
            }
        } else {
            // All that the program can tell apart: what nf_hook_slow freed.
            let variants = [("NOT_SPECIFIED", 0), ("NETFILTER_DROP", OLD_FILTER_REASON)];
            reasons.names = table(&variants, "", REASON_SUBSYSTEM_BASE);
        }
        Ok(Self { settings, reasons, has_conntrack })
    }

    /// Without drop reasons the drop program needs to know where `nf_hook_slow` is.
    pub fn find_hook(&mut self) -> Result<(), KernelError> {
        if self.settings.has_reason == 0 {
            let (start, end) = symbol_range("nf_hook_slow").map_err(KernelError::NoReasons)?;
            self.settings.hook_start = start;
            self.settings.hook_end = end;
        }
        Ok(())
    }
}

fn table(variants: &[(&str, u32)], prefix: &str, bound: u32) -> Vec<Option<Arc<str>>> {
    let mut names = Vec::new();
    for (name, value) in variants {
        if *value < bound {
            let at = *value as usize;
            if names.len() <= at {
                names.resize(at + 1, None);
            }
            if let (Some(slot), Some(short)) = (names.get_mut(at), name.strip_prefix(prefix).or(Some(name))) {
                *slot = Some(Arc::from(short));
            }
        }
    }
    names
}

fn base_settings(btf: &Btf<'_>) -> Result<Settings, KernelError> {
    let skb = |member: &str| btf.offset_of("sk_buff", &[member]);
    Ok(Settings {
        ct_read: 0,
        ct_use: 0,
        ct_zone: ABSENT,
        ct_original: ABSENT,
        ct_reply: 0,
        ct_status: 0,
        ct_net: ABSENT,
        ct_ext: 0,
        ct_tcp_state: 0,
        ext_acct: 0,
        skb_nfct: skb("_nfct").unwrap_or(ABSENT),
        skb_dev: skb("dev")?,
        skb_sk: skb("sk")?,
        skb_head: skb("head")?,
        skb_network_header: skb("network_header")?,
        skb_tail: skb("tail")?,
        skb_len: skb("len")?,
        skb_data: skb("data")?,
        skb_protocol: skb("protocol")?,
        dev_net: btf.offset_of("net_device", &["nd_net", "net"])?,
        sock_net: btf.offset_of("sock", &["__sk_common", "skc_net", "net"])?,
        task_nsproxy: btf.offset_of("task_struct", &["nsproxy"])?,
        nsproxy_net: btf.offset_of("nsproxy", &["net_ns"])?,
        net_inum: btf.offset_of("net", &["ns", "inum"]).unwrap_or(ABSENT),
        shards: 1,
        has_reason: 0,
        hook_start: 0,
        hook_end: 0,
        filter_reasons: [ABSENT; 5],
        wake_bytes: 0,
    })
}

fn conntrack_settings(btf: &Btf<'_>, settings: &mut Settings) -> Result<(), KernelError> {
    let tuple: [&[&str]; 6] = [
        &["src", "u3"],
        &["src", "u"],
        &["src", "l3num"],
        &["dst", "u3"],
        &["dst", "u"],
        &["dst", "protonum"],
    ];
    for (path, expected) in tuple.iter().zip(KernelTuple::OFFSETS) {
        if btf.offset_of("nf_conntrack_tuple", path)? != u64::from(expected) {
            return Err(KernelError::Layout("struct nf_conntrack_tuple"));
        }
    }
    if btf.size_of("nf_conntrack_tuple")? != size_of::<KernelTuple>() as u64 {
        return Err(KernelError::Layout("struct nf_conntrack_tuple"));
    }
    let conn = |path: &[&str]| btf.offset_of("nf_conn", path);
    let hash = btf.member("nf_conn", &["tuplehash"])?;
    settings.ct_read = btf.size_of("nf_conn")?.min(WINDOW_BYTES as u64);
    settings.ct_use = conn(&["ct_general", "use"])?;
    settings.ct_zone = conn(&["zone", "id"]).unwrap_or(ABSENT);
    settings.ct_original = btf.element_member(hash, 0, "tuple")?;
    settings.ct_reply = btf.element_member(hash, 1, "tuple")?;
    settings.ct_status = conn(&["status"])?;
    settings.ct_net = conn(&["ct_net", "net"]).unwrap_or(ABSENT);
    settings.ct_ext = conn(&["ext"])?;
    settings.ct_tcp_state = conn(&["proto", "tcp", "state"])?;
    let acct = btf
        .variants("nf_ct_ext_id")?
        .into_iter()
        .find_map(|(name, value)| (name == "NF_CT_EXT_ACCT").then_some(u64::from(value)))
        .ok_or_else(|| BtfError::Missing("NF_CT_EXT_ACCT in enum nf_ct_ext_id".into()))?;
    settings.ext_acct = btf.offset_of("nf_ct_ext", &["offset"])? + acct;
    let fits = |offset: u64, length: u64| {
        offset == ABSENT || offset.checked_add(length).is_some_and(|end| end <= settings.ct_read)
    };
    let aligned = |offset: u64| offset == ABSENT || offset.is_multiple_of(8);
    if !(fits(settings.ct_use, 4)
        && fits(settings.ct_zone, 2)
        && fits(settings.ct_original, 40)
        && fits(settings.ct_reply, 40)
        && fits(settings.ct_status, 8)
        && fits(settings.ct_net, 8)
        && fits(settings.ct_ext, 8)
        && fits(settings.ct_tcp_state, 1)
        && [settings.ct_original, settings.ct_reply, settings.ct_status, settings.ct_net, settings.ct_ext]
            .into_iter()
            .all(aligned))
    {
        return Err(KernelError::Layout("struct nf_conn"));
    }
    Ok(())
}

/// Where a text symbol of the kernel begins and ends (where the next one begins).
fn symbol_range(name: &str) -> Result<(u64, u64), String> {
    let file = fs::File::open(KALLSYMS).map_err(|error| format!("{KALLSYMS}: {error}"))?;
    let mut start = None;
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|error| format!("{KALLSYMS}: {error}"))?;
        let mut fields = line.split_ascii_whitespace();
        let (Some(address), Some(_kind), Some(symbol)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let address = u64::from_str_radix(address, 16).unwrap_or(0);
        match start {
            None if symbol == name && address != 0 => start = Some(address),
            Some(start) if address > start => return Ok((start, address)),
            _ => {}
        }
    }
    Err(format!("{name} is not in {KALLSYMS}"))
}

/// Whether the kernel (or a module loaded now) has this function.
pub fn has_symbol(name: &str) -> bool {
    let Ok(file) = fs::File::open(KALLSYMS) else { return false };
    BufReader::new(file)
        .lines()
        .map_while(Result::ok)
        .any(|line| line.split_ascii_whitespace().nth(2) == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_resolves() {
        if !std::path::Path::new(BTF_PATH).exists() {
            eprintln!("SKIPPED: this kernel has no BTF");
            return;
        }
        let kernel = Kernel::resolve().unwrap();
        assert!(kernel.has_conntrack);
        assert!(kernel.settings.ct_reply > kernel.settings.ct_original);
        if kernel.settings.has_reason != 0 {
            let number = kernel.settings.filter_reasons[0] as u32;
            assert_eq!(&*kernel.reasons.name(number), "NETFILTER_DROP");
        }
    }

    #[test]
    fn reasons_have_names_or_numbers() {
        let reasons = Reasons {
            names: table(&[("SKB_DROP_REASON_X", 1)], "SKB_DROP_REASON_", 8),
            subsystems: table(&[("SKB_DROP_REASON_SUBSYS_OPENVSWITCH", 3)], "SKB_DROP_REASON_SUBSYS_", 64),
        };
        assert_eq!(&*reasons.name(1), "X");
        assert_eq!(&*reasons.name(9), "REASON_9");
        assert_eq!(&*reasons.slot_name(REASON_SUBSYSTEM_BASE + 3), "OPENVSWITCH");
        assert_eq!(&*reasons.slot_name(REASON_SUBSYSTEM_BASE + 9), "SUBSYS_9");
    }
}
