//! Loading: the object into the kernel, one program at a time, and running a program by hand.
//!
//! In: the built object, resolved settings, sizes. Out: an `aya::Ebpf` with its maps, of which the caller loads the programs
//! it wants. What always holds: a program that this kernel refuses is an error of that program alone, with the end of
//! the verifier's log; errors say what to do. Not here: which programs make a source (`connections.rs`, `drops.rs`).

use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::maps::{Array, ArrayOfMaps, InnerMap, Map, MapData, MapError};
use aya::programs::{
    CgroupAttachMode, CgroupSock, Iter, KProbe, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun,
};
use aya::{Ebpf, EbpfError, EbpfLoader};
use flowlogd_ebpf::{Control, REASON_SLOTS, STATS_SLOTS, Settings, SocketSettings};

use super::kernel::KernelError;
use super::mapped;
use crate::source::privilege;

/// Why a source cannot run here, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("there is no eBPF object for this processor; use --source netlink on this node")]
    Architecture,
    #[error(
        "the kernel refuses eBPF maps: {0}; the agent needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), and a kernel that is not locked down for confidentiality"
    )]
    Maps(String),
    #[error("the kernel refuses program {program}: {reason}")]
    Program { program: &'static str, reason: String },
    #[error(
        "the kernel has no kprobes (CONFIG_KPROBES, or a lockdown forbids them): {0}; use --source netlink on this node"
    )]
    NoKprobes(String),
    #[error(
        "the kernel refuses kprobes: {0}; kernel.perf_event_paranoid is above 2 (Debian's default), so that they need CAP_SYS_ADMIN: set it to 2 on the node (kprobes then need CAP_PERFMON alone), give the agent CAP_SYS_ADMIN, or use --source netlink"
    )]
    KprobesDenied(String),
    #[error(
        "the kernel cannot run a program on request (BPF_PROG_TEST_RUN of raw tracepoints, 5.10 or later): {0}; use --source netlink on this node"
    )]
    NoTestRun(String),
    #[error("the agent's network namespace cannot be told: {0}")]
    Netns(String),
    #[error("connection tracking is not known to this kernel (no struct nf_conn in its BTF)")]
    NoConntrack,
}

/// Failures after a source was opened: a system call that worked before.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot run the eBPF program {program}: {source}")]
    Run { program: &'static str, source: ProgramError },
    #[error("cannot read an eBPF map: {0}")]
    Map(#[from] MapError),
    #[error("cannot wait for records: {0}")]
    Wait(std::io::Error),
    #[error("cannot dump the connection table over netlink: {0}; is nf_conntrack_netlink available?")]
    Dump(std::io::Error),
}

/// Sizes of what is shared by all programs of the object; a source that does not use a map makes it small.
pub(super) struct Sizes {
    pub shards: u32,
    pub ends_bytes: u32,
    pub swept_bytes: u32,
    pub tombstones: u32,
}

impl Sizes {
    /// For a source that uses none of them.
    pub const NONE: Self = Self { shards: 1, ends_bytes: 4096, swept_bytes: 4096, tombstones: 1 };
}

/// Sizes of what the collectors of sockets share.
pub(super) struct SocketSizes {
    pub shards: u32,
    pub events_bytes: u32,
    pub swept_bytes: u32,
    /// Processes that are believed told, and places where something listens.
    pub told: u32,
    pub listeners: u32,
}

impl SocketSizes {
    pub const NONE: Self = Self { shards: 1, events_bytes: 4096, swept_bytes: 4096, told: 1, listeners: 1 };
}

pub(super) fn load(settings: &Settings, sizes: &Sizes) -> Result<Ebpf, OpenError> {
    let object = flowlogd_ebpf::object().ok_or(OpenError::Architecture)?;
    let none = (&SocketSettings::NONE, &SocketSizes::NONE);
    load_object(object, settings, sizes, none, mapped::cpus()?)
}

/// For a collector of sockets.
pub(super) fn load_sockets(
    settings: &Settings,
    sockets: &SocketSettings,
    sizes: &SocketSizes,
) -> Result<Ebpf, OpenError> {
    let object = flowlogd_ebpf::object().ok_or(OpenError::Architecture)?;
    load_object(object, settings, &Sizes::NONE, (sockets, sizes), mapped::cpus()?)
}

fn load_object(
    object: &[u8],
    settings: &Settings,
    sizes: &Sizes,
    (sockets, socket_sizes): (&SocketSettings, &SocketSizes),
    cpus: u32,
) -> Result<Ebpf, OpenError> {
    let mut loader = EbpfLoader::new();
    loader
        .override_global("SETTINGS", settings, true)
        .override_global("SOCKET_SETTINGS", sockets, true)
        .map_max_entries("SOCKETS", socket_sizes.shards)
        .map_max_entries("SOCKET_EVENTS", socket_sizes.events_bytes)
        .map_max_entries("SOCKETS_SWEPT", socket_sizes.swept_bytes)
        .map_max_entries("TOLD", socket_sizes.told)
        .map_max_entries("LISTENERS", socket_sizes.listeners)
        .map_max_entries("STATS", cpus.saturating_mul(STATS_SLOTS))
        .map_max_entries("REASONS", cpus.saturating_mul(REASON_SLOTS))
        .map_max_entries("CONNECTIONS", sizes.shards)
        .map_max_entries("ENDS", sizes.ends_bytes)
        .map_max_entries("SWEPT", sizes.swept_bytes)
        .map_max_entries("TOMBSTONES", sizes.tombstones);
    loader.load(object).map_err(|error: EbpfError| OpenError::Maps(chain(&error)))
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// What the kernel said, cut to what a person can read: the verifier's log can have thousands of lines.
fn refusal(program: &'static str, error: &ProgramError) -> OpenError {
    let reason = match error {
        // No log: it was refused before the verifier looked at it.
        ProgramError::LoadError { io_error, .. }
            if io_error.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            format!("{io_error}; the agent needs CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN)")
        }
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let tail = lines.len().saturating_sub(4);
            let end: Vec<&str> = lines.into_iter().skip(tail).collect();
            format!("{io_error} ({})", end.join(" | "))
        }
        other => chain(other),
    };
    OpenError::Program { program, reason }
}

fn no_such(program: &'static str) -> OpenError {
    OpenError::Program { program, reason: "it is not in the object".into() }
}

pub(super) fn raw_tracepoint<'a>(
    bpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut RawTracePoint, OpenError> {
    let program: &mut RawTracePoint = bpf
        .program_mut(name)
        .ok_or_else(|| no_such(name))?
        .try_into()
        .map_err(|error| refusal(name, &error))?;
    Ok(program)
}

pub(super) fn load_raw_tracepoint(bpf: &mut Ebpf, name: &'static str) -> Result<(), OpenError> {
    raw_tracepoint(bpf, name)?.load().map_err(|error| refusal(name, &error))
}

pub(super) fn kprobe<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut KProbe, OpenError> {
    let program: &mut KProbe = bpf
        .program_mut(name)
        .ok_or_else(|| no_such(name))?
        .try_into()
        .map_err(|error| refusal(name, &error))?;
    Ok(program)
}

/// Also fine when it is loaded already: one program can sit on several functions.
pub(super) fn load_kprobe(bpf: &mut Ebpf, name: &'static str) -> Result<(), OpenError> {
    let program = kprobe(bpf, name)?;
    if program.fd().is_ok() {
        return Ok(());
    }
    program.load().map_err(|error| refusal(name, &error))
}

/// Loads a cgroup program and attaches it to a cgroup by a link, which is always beside whatever else is there.
pub(super) fn attach_cgroup_sock(
    bpf: &mut Ebpf,
    name: &'static str,
    cgroup: &std::path::Path,
) -> Result<(), OpenError> {
    let program: &mut CgroupSock = bpf
        .program_mut(name)
        .ok_or_else(|| no_such(name))?
        .try_into()
        .map_err(|error| refusal(name, &error))?;
    program.load().map_err(|error| refusal(name, &error))?;
    let fail = |reason: String| OpenError::Program {
        program: name,
        reason: format!("cannot attach to {}: {reason}", cgroup.display()),
    };
    let folder = std::fs::File::open(cgroup).map_err(|error| fail(error.to_string()))?;
    program.attach(folder, CgroupAttachMode::Single).map_err(|error| fail(chain(&error)))?;
    Ok(())
}

/// Loads a program on the return of a kernel function and attaches it.
pub(super) fn attach_return_probe(
    bpf: &mut Ebpf,
    name: &'static str,
    function: &str,
) -> Result<(), OpenError> {
    if !has_kprobes() {
        return Err(OpenError::Program { program: name, reason: "the kernel has no kprobes".into() });
    }
    load_kprobe(bpf, name)?;
    kprobe(bpf, name)?.attach(function, 0).map(drop).map_err(|error| OpenError::Program {
        program: name,
        reason: format!("cannot attach to the return of {function}: {}", chain(&error)),
    })
}

pub(super) fn has_kprobes() -> bool {
    std::path::Path::new("/sys/bus/event_source/devices/kprobe").exists()
        || std::path::Path::new("/sys/kernel/tracing/kprobe_events").exists()
}

/// Runs an iterator over the open files of all processes, `walks` times. It writes nothing: what it finds is in the maps.
pub(super) fn walk_files(bpf: &mut Ebpf, name: &'static str, walks: u32) -> Result<(), OpenError> {
    let fail = |reason: String| OpenError::Program { program: name, reason };
    let btf = aya::Btf::from_sys_fs().map_err(|error| fail(chain(&error)))?;
    let program: &mut Iter = bpf
        .program_mut(name)
        .ok_or_else(|| no_such(name))?
        .try_into()
        .map_err(|error| refusal(name, &error))?;
    program.load("task_file", &btf).map_err(|error| refusal(name, &error))?;
    for _ in 0..walks {
        let link = program.attach().map_err(|error| fail(chain(&error)))?;
        let link = program.take_link(link).map_err(|error| fail(chain(&error)))?;
        let mut walk = link.into_file().map_err(|error| fail(chain(&error)))?;
        std::io::copy(&mut walk, &mut std::io::sink()).map_err(|error| fail(error.to_string()))?;
    }
    Ok(())
}

/// Runs a loaded raw tracepoint program once, in this thread. Gives what the program returned.
pub(super) fn run(bpf: &Ebpf, name: &'static str, args: &[u64]) -> Result<i32, SourceError> {
    let fail = |source| SourceError::Run { program: name, source };
    let program: &RawTracePoint =
        bpf.program(name).ok_or_else(|| fail(ProgramError::NotLoaded))?.try_into().map_err(fail)?;
    let mut options = RawTracePointRunOptions::new();
    for (slot, arg) in options.args.iter_mut().zip(args) {
        *slot = *arg;
    }
    Ok(program.test_run(options).map_err(fail)?.return_value.cast_signed())
}

/// Threads that put shards into their places, and shards of each before the next ones are made: each has a descriptor.
const AT_ONCE: usize = 32;
const EACH: usize = 2;

/// Puts `count` shards into their places; `keep` gives them back. The kernel waits for a grace period of RCU in each such call
/// (`maybe_wait_bpf_programs`), some milliseconds and on large machines tens of them; those who wait at once wait for the same.
/// `outer` is the caller's to keep until all programs are loaded: they name it by its descriptor.
pub(super) fn fill<V: InnerMap + Send + Sync>(
    outer: &Map,
    count: u32,
    keep: bool,
    create: impl Fn() -> Result<V, MapError>,
) -> Result<Vec<V>, OpenError> {
    let maps = |error: MapError| OpenError::Maps(chain(&error));
    let Map::ArrayOfMaps(outer) = outer else {
        return Err(OpenError::Maps("the object's table of shards is none".into()));
    };
    let place = |shards: &[(u32, V)]| -> Result<(), OpenError> {
        let _raised = privilege::raise();
        let fd = outer.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| OpenError::Maps(format!("no descriptor is free: {error}")))?;
        let map = Map::ArrayOfMaps(MapData::from_fd(fd).map_err(maps)?);
        let mut outer = ArrayOfMaps::<MapData, V>::try_from(map).map_err(maps)?;
        shards.iter().try_for_each(|(i, shard)| {
            outer.set(*i, shard, 0).map_err(|error| OpenError::Maps(format!("shard {i}: {}", chain(&error))))
        })
    };
    let mut kept = Vec::new();
    let mut numbers = 0..count;
    loop {
        let round: Vec<(u32, V)> = numbers
            .by_ref()
            .take(AT_ONCE * EACH)
            .map(|i| Ok((i, create()?)))
            .collect::<Result<_, MapError>>()
            .map_err(maps)?;
        if round.is_empty() {
            return Ok(kept);
        }
        std::thread::scope(|scope| {
            let parts: Vec<_> = round.chunks(EACH).map(|part| scope.spawn(move || place(part))).collect();
            parts
                .into_iter()
                .try_for_each(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        if keep {
            kept.extend(round.into_iter().map(|(_, shard)| shard));
        }
    }
}

/// [`run`] for a sweep; `longest` is raised to this thread's CPU time in the call: for so long a kernel without preemption
/// gives this CPU to nobody else. Not the time that passes, in which the scheduler may put others before the way back.
pub(super) fn run_timed(
    bpf: &Ebpf,
    name: &'static str,
    args: &[u64],
    longest: &mut Duration,
) -> Result<i32, SourceError> {
    let began = cpu_time();
    let outcome = run(bpf, name, args);
    *longest = cpu_time().saturating_sub(began).max(*longest);
    outcome
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Tells the programs who the agent is: its network namespace and this thread.
pub(super) fn identify(bpf: &mut Ebpf) -> Result<Control, OpenError> {
    if raw_tracepoint(bpf, "identify")?.fd().is_err() {
        load_raw_tracepoint(bpf, "identify")?;
    }
    let result = run(bpf, "identify", &[]).map_err(|error| OpenError::NoTestRun(chain(&error)))?;
    let control = control(bpf).map_err(|error| OpenError::Netns(chain(&error)))?.get(&0, 0);
    let control = control.map_err(|error| OpenError::Netns(chain(&error)))?;
    if result != 0 || control.netns == 0 {
        return Err(OpenError::Netns("the kernel's memory cannot be read".into()));
    }
    let own = rustix::fs::stat("/proc/thread-self/ns/net")
        .map_err(|error| OpenError::Netns(format!("/proc/thread-self/ns/net: {error}")))?;
    if control.netns_inum != 0 && control.netns_inum != own.st_ino {
        return Err(OpenError::Netns(format!(
            "the kernel says {}, /proc/thread-self/ns/net says {}",
            control.netns_inum, own.st_ino
        )));
    }
    Ok(control)
}

fn control(bpf: &mut Ebpf) -> Result<Array<&mut MapData, Control>, MapError> {
    let map = bpf.map_mut("CONTROL").ok_or(MapError::ElementNotFound)?;
    Array::try_from(map)
}

/// What the programs do while this thread dumps the connection table.
pub(super) fn set_mode(bpf: &mut Ebpf, mode: u32) -> Result<(), SourceError> {
    let mut map = control(bpf)?;
    let mut value = map.get(&0, 0)?;
    value.mode = mode;
    Ok(map.set(0, value, 0)?)
}

#[cfg(test)]
mod tests {
    use aya::programs::Program;

    use super::super::kernel::Kernel;
    use super::super::socket_offsets;
    use super::super::sockets::Collector;
    use super::*;

    #[test]
    fn the_kernel_accepts_every_program_of_both_objects() {
        let settings = match Kernel::resolve() {
            Ok(kernel) => kernel.settings,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                return;
            }
        };
        let btf = aya::Btf::from_sys_fs().unwrap();
        for object in [flowlogd_ebpf::OBJECT_X86_64, flowlogd_ebpf::OBJECT_AARCH64] {
            for collector in [Collector::Processes { paths: true }, Collector::TcpStats] {
                let sockets = socket_offsets::resolve(collector, 1).unwrap();
                let sizes = (&sockets, &SocketSizes::NONE);
                let mut bpf = match load_object(object, &settings, &Sizes::NONE, sizes, 4) {
                    Ok(bpf) => bpf,
                    Err(error) => {
                        eprintln!("SKIPPED: {error}");
                        return;
                    }
                };
                let mut seen = 0;
                for (name, program) in bpf.programs_mut() {
                    seen += 1;
                    match program {
                        Program::RawTracePoint(program) => program.load(),
                        Program::KProbe(program) => program.load(),
                        Program::CgroupSock(program) => program.load(),
                        Program::Iter(program) => program.load("task_file", &btf),
                        other => panic!("{name}: {other:?}"),
                    }
                    .unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
                }
                assert_eq!(seen, 16);
            }
        }
    }

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        let inner = std::io::Error::other("inside");
        let error = SourceError::Dump(inner);
        assert!(chain(&error).contains("inside"));
        assert_eq!(chain(&error).lines().count(), 1);
    }
}
