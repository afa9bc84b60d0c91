//! How much memory this process may use, and what follows for its tables.
//!
//! In: the cgroups of this process (version 2 and 1, each level up to the root that is mounted here), its resource
//! limits, the machine's memory. Out: the smallest of these, and [`Share`]s of it. Always: whatever cannot be read does
//! not bind; nothing is asked again later, since tables that have grown cannot be made smaller. A limit that is lowered
//! under the running agent acts with its next start.
//! Own code: what crates offer for it manages cgroups; here three files are read.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use tracing::info;

use crate::pipeline::Limits;
use crate::source::Bounds;

/// What the process takes before it has seen a flow: program, threads, the world's first objects, the queue of drops.
const BASE: u64 = 20 << 20;

/// Of what is left, hundredths. The rest is the world's (pods, policies) and the allocator's own.
const TABLES: u64 = 60;
const LINES_WAITING: u64 = 10;
const DNS_LINES_WAITING: u64 = 3;
const KERNEL_MAPS: u64 = 10;
const LIVE: u64 = 8;

/// Of the machine's memory, for events that wait in the kernel: only while they wait.
const EVENTS_OF_MACHINE: usize = 64;
const LEAST_EVENTS: usize = 8 << 20;

/// Bytes of the machine's memory.
fn machine() -> usize {
    let machine = rustix::system::sysinfo();
    (machine.totalram as usize).saturating_mul(machine.mem_unit as usize)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) bytes: u64,
    /// What says so.
    of: String,
}

impl Memory {
    pub(super) fn allowed() -> Self {
        Self::of_process(Path::new("/proc/self"))
    }

    fn of_process(process: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_default();
        let mut all = cgroup_files(&read("cgroup"), &read("mountinfo"))
            .into_iter()
            .filter_map(|file| {
                // `max`, or a number that stands for no limit, bind less than the machine does.
                let bytes = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
                Some(Self { bytes, of: file.display().to_string() })
            })
            .collect::<Vec<_>>();
        for (resource, of) in [(Resource::Data, "RLIMIT_DATA"), (Resource::As, "RLIMIT_AS")] {
            all.extend(getrlimit(resource).current.map(|bytes| Self { bytes, of: of.to_owned() }));
        }
        all.push(Self { bytes: machine() as u64, of: "the machine".to_owned() });
        all.into_iter().min_by_key(|memory| memory.bytes).unwrap_or(Self { bytes: 0, of: String::new() })
    }

    /// Bytes beside what the process takes anyway; a limit below that is not made to work by tables of no size.
    fn free(&self) -> u64 {
        self.bytes.saturating_sub(BASE).max(self.bytes / 4)
    }

    fn part(&self, hundredths: u64) -> u64 {
        self.free() / 100 * hundredths
    }

    pub(super) fn limits(&self) -> Limits {
        Limits::within(self.part(TABLES))
    }

    /// Lines that wait for a file that cannot be written.
    pub(super) fn lines_waiting(&self) -> usize {
        usize::try_from(self.part(LINES_WAITING)).unwrap_or(usize::MAX)
    }

    /// The same of the DNS log.
    pub(super) fn dns_lines_waiting(&self) -> usize {
        usize::try_from(self.part(DNS_LINES_WAITING)).unwrap_or(usize::MAX)
    }

    /// What waits for readers of the live view.
    pub(super) fn live(&self) -> usize {
        usize::try_from(self.part(LIVE)).unwrap_or(usize::MAX)
    }

    /// Maps are the memory of who made them.
    pub(super) fn bounds(&self) -> Bounds {
        let default = Bounds::default();
        Bounds {
            connections: default.connections.min(self.limits().connections),
            map_bytes: default.map_bytes.min(self.part(KERNEL_MAPS)),
            // Not this process' memory, nor its cgroup's.
            event_bytes: default.event_bytes.min((machine() / EVENTS_OF_MACHINE).max(LEAST_EVENTS)),
        }
    }

    pub(super) fn tell(&self) {
        let Limits { connections, records, denied, .. } = self.limits();
        info!(
            bytes = self.bytes,
            of = %self.of,
            connections,
            records,
            denied,
            "tables are bounded by the memory that this process may use"
        );
    }
}

/// The files that may say a limit: of each level from the process' cgroup up to the root that is mounted.
fn cgroup_files(cgroups: &str, mounts: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (kind, file) = match (id, controllers) {
            ("0", "") => ("cgroup2", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => ("cgroup", "memory.limit_in_bytes"),
            _ => continue,
        };
        let Some((root, point)) = mounts.lines().find_map(|line| mount_of(line, kind)) else { continue };
        // Without a cgroup namespace a container sees its path as the node does, and only its own part is mounted.
        let below = path.strip_prefix(root).unwrap_or_default().trim_start_matches('/');
        let mut dir = Path::new(point).join(below);
        while dir.starts_with(point) {
            files.push(dir.join(file));
            if !dir.pop() {
                break;
            }
        }
    }
    files
}

/// Root and mount point, where this line of `mountinfo` is the hierarchy with the memory controller.
fn mount_of<'a>(line: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let (found, _, options) = (after.next()?, after.next()?, after.next()?);
    if found != kind || (kind == "cgroup" && !options.split(',').any(|option| option == "memory")) {
        return None;
    }
    let mut before = before.split(' ').skip(3);
    Some((before.next()?, before.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_of_both_versions_are_found() {
        let mounts = "25 1 0:22 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      26 1 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      27 1 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let files = cgroup_files("4:memory:/a/b\n1:cpu:/c\n0::/d\n", mounts);
        let files: Vec<_> = files.iter().map(|file| file.to_str().unwrap()).collect();
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/unified/d/memory.max",
                "/sys/fs/cgroup/unified/memory.max",
            ]
        );
    }

    #[test]
    fn a_container_that_sees_only_its_own_part_finds_it() {
        let mounts = "30 1 0:24 /kubepods/pod1/c1 /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n";
        let files = cgroup_files("0::/kubepods/pod1/c1\n", mounts);
        assert_eq!(files, [PathBuf::from("/sys/fs/cgroup/memory.max")]);
        // In a cgroup namespace of its own the path is the root's.
        let mounts = "30 1 0:24 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        assert_eq!(cgroup_files("0::/\n", mounts), [PathBuf::from("/sys/fs/cgroup/memory.max")]);
    }

    #[test]
    fn what_cannot_be_read_does_not_bind() {
        let machine = Memory::of_process(Path::new("/nonexistent"));
        assert!(machine.bytes > 0 && !machine.of.contains("cgroup"), "{machine:?}");
        assert!(Memory::allowed().bytes <= machine.bytes);
        assert_eq!(cgroup_files("what\n1:x\n\n4:memory:/a", "no mount - at all\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_small_container_gets_small_tables_and_a_node_gets_the_defaults() {
        let small = Memory { bytes: 64 << 20, of: String::new() };
        let limits = small.limits();
        assert!((2_000..20_000).contains(&limits.records), "{limits:?}");
        assert!(limits.connections > 8_000 && small.bounds().connections == limits.connections, "{limits:?}");
        assert!(small.bounds().map_bytes < 8 << 20 && small.lines_waiting() < 8 << 20);
        let large = Memory { bytes: 64 << 30, of: String::new() };
        assert_eq!(large.limits(), Limits::default());
        assert_eq!(large.bounds(), Bounds::default());
    }
}
