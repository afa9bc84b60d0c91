//! Where the running kernel keeps what the socket programs read.
//!
//! In: `/sys/kernel/btf/vmlinux`, and what is to be collected. Out: [`SocketSettings`] for the programs. What always
//! holds: what a collector cannot do without is an error that names it; the rest is ABSENT and left out there. Not here:
//! loading.

use flowlogd_ebpf::{ABSENT, SocketSettings};

use super::btf::{Btf, BtfError};
use super::kernel::{BTF_PATH, KernelError};
use super::sockets::Collector;

const TYPES: [&str; 22] = [
    "sock",
    "inet_sock",
    "inet_connection_sock",
    "tcp_sock",
    "minmax",
    "minmax_sample",
    "net",
    "task_struct",
    "mm_struct",
    "nsproxy",
    "css_set",
    "cgroup",
    "kernfs_node",
    "file",
    "fs_struct",
    "path",
    "dentry",
    "qstr",
    "vfsmount",
    "mount",
    "socket",
    "sock_common",
];

pub(super) fn resolve(collector: Collector, shards: u32) -> Result<SocketSettings, KernelError> {
    let data = std::fs::read(BTF_PATH).map_err(KernelError::NoBtf)?;
    Ok(of_btf(&Btf::parse(&data, &TYPES)?, collector, shards)?)
}

fn of_btf(btf: &Btf<'_>, collector: Collector, shards: u32) -> Result<SocketSettings, BtfError> {
    let common = |member: &str| btf.offset_of("sock", &["__sk_common", member]);
    let optional = |name: &str, path: &[&str]| btf.offset_of(name, path).unwrap_or(ABSENT);
    let mut settings = SocketSettings {
        shards: u64::from(shards),
        family: common("skc_family")?,
        state: common("skc_state")?,
        net: btf.offset_of("sock", &["__sk_common", "skc_net", "net"])?,
        protocol: btf.offset_of("sock", &["sk_protocol"])?,
        daddr: common("skc_daddr")?,
        rcv_saddr: common("skc_rcv_saddr")?,
        // A kernel without IPv6 has no such sockets either.
        v6_daddr: common("skc_v6_daddr").unwrap_or(ABSENT),
        v6_rcv_saddr: common("skc_v6_rcv_saddr").unwrap_or(ABSENT),
        dport: common("skc_dport")?,
        sport: btf.offset_of("inet_sock", &["inet_sport"])?,
        net_inum: optional("net", &["ns", "inum"]),
        socket_sk: optional("socket", &["sk"]),
        ..SocketSettings::NONE
    };
    match collector {
        Collector::TcpStats => {
            let tcp = |member: &str| btf.offset_of("tcp_sock", &[member]);
            settings.tcp = 1;
            settings.srtt = tcp("srtt_us")?;
            let value = btf.offset_of("minmax_sample", &["v"])?;
            settings.rtt_min = btf.offset_of("tcp_sock", &["rtt_min", "s"])? + value;
            settings.snd_cwnd = tcp("snd_cwnd")?;
            settings.mss_cache = tcp("mss_cache")?;
            settings.total_retrans = tcp("total_retrans")?;
            settings.lost = tcp("lost")?;
            // From 6.7; before, what is pending at the end.
            settings.total_rto = tcp("total_rto").unwrap_or(ABSENT);
            settings.total_rto_recoveries = tcp("total_rto_recoveries").unwrap_or(ABSENT);
            settings.icsk_retransmits = optional("inet_connection_sock", &["icsk_retransmits"]);
        }
        Collector::Processes { paths } => {
            let task = |member: &str| btf.offset_of("task_struct", &[member]);
            settings.processes = 1;
            settings.leader = task("group_leader")?;
            settings.tgid = task("tgid")?;
            settings.comm = task("comm")?;
            settings.start = task("start_boottime").or_else(|_| task("real_start_time"))?;
            settings.exec_id = task("self_exec_id").unwrap_or(ABSENT);
            settings.mm = task("mm")?;
            settings.fs = task("fs")?;
            settings.nsproxy = task("nsproxy").unwrap_or(ABSENT);
            settings.net_ns = optional("nsproxy", &["net_ns"]);
            settings.arg_start = btf.offset_of("mm_struct", &["arg_start"])?;
            settings.arg_end = btf.offset_of("mm_struct", &["arg_end"])?;
            settings.cgroups = task("cgroups").unwrap_or(ABSENT);
            settings.dfl_cgrp = optional("css_set", &["dfl_cgrp"]);
            settings.kn = optional("cgroup", &["kn"]);
            settings.kn_id = optional("kernfs_node", &["id"]);
            if paths {
                path_offsets(btf, &mut settings)?;
            }
        }
    }
    Ok(settings)
}

fn path_offsets(btf: &Btf<'_>, settings: &mut SocketSettings) -> Result<(), BtfError> {
    settings.paths = 1;
    settings.exe_file = btf.offset_of("mm_struct", &["exe_file"])?;
    settings.f_path = btf.offset_of("file", &["f_path"])?;
    settings.fs_root = btf.offset_of("fs_struct", &["root"])?;
    settings.path_mnt = btf.offset_of("path", &["mnt"])?;
    settings.path_dentry = btf.offset_of("path", &["dentry"])?;
    settings.d_parent = btf.offset_of("dentry", &["d_parent"])?;
    settings.d_name = btf.offset_of("dentry", &["d_name", "name"])?;
    settings.mnt_root = btf.offset_of("vfsmount", &["mnt_root"])?;
    settings.mount_mnt = btf.offset_of("mount", &["mnt"])?;
    settings.mount_parent = btf.offset_of("mount", &["mnt_parent"])?;
    settings.mountpoint = btf.offset_of("mount", &["mnt_mountpoint"])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_resolves() {
        if !std::path::Path::new(BTF_PATH).exists() {
            eprintln!("SKIPPED offsets of sockets: this kernel has no BTF");
            return;
        }
        let tcp = resolve(Collector::TcpStats, 4).unwrap();
        assert!(tcp.srtt != ABSENT && tcp.srtt != tcp.snd_cwnd && tcp.shards == 4 && tcp.processes == 0);
        assert_eq!(tcp.exe_file, ABSENT);
        let process = resolve(Collector::Processes { paths: true }, 1).unwrap();
        assert!(process.exe_file != ABSENT && process.tcp == 0 && process.paths == 1);
    }
}
