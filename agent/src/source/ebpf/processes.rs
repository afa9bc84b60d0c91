//! Processes as the kernel side saw them: names, arguments, pods.
//!
//! In: [`flowlogd_ebpf::ProcessRecord`]s, taken in the process's own context, so that one that is gone by now keeps its
//! name and arguments; `/proc` for what the kernel side could not read (a process older than the agent, a page that was
//! swapped out). Out: [`Process`] by its key. What always holds: the table is bounded; text is valid UTF-8 without control
//! characters, which are written as `\xNN` (a name is whatever a program calls itself). The executable's path is walked
//! in the kernel, so that it too is that of the event; `/proc/<pid>/exe` is asked only where it was longer than is kept.
//! Not here: sockets.

use std::fs;
use std::num::NonZero;
use std::sync::Arc;

use flowlogd_ebpf::{ARGS_BYTES, ARGS_UNREAD, PART_BYTES, PATH_PARTS, ProcessKey, ProcessRecord};
use lru::LruCache;

use super::containers::{Container, Containers};

/// Processes remembered; twice as many as the kernel side believes told.
const KNOWN: usize = 2 * TOLD as usize;
pub(super) const TOLD: u32 = 8192;
/// Arguments of one process; all of them together are at most [`ARGS_BYTES`].
const MOST_ARGS: usize = 64;
/// Read of one file of `/proc` at most: a namespace may have very many addresses.
const MOST_BYTES: u64 = 4 << 20;
/// What an argument or path ends with, or begins with, that was cut.
const CUT: &str = "...";

/// Who holds a socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Process {
    pub key: ProcessKey,
    /// Inode number of its network namespace when it was met; 0: not known.
    pub netns: u32,
    /// The name of its first thread, or the path of its executable.
    pub name: Arc<str>,
    /// Without the program's own name.
    pub args: Arc<[Arc<str>]>,
    pub container: Container,
}

pub struct Processes {
    known: LruCache<ProcessKey, Arc<Process>>,
    containers: Containers,
    paths: bool,
    /// Sockets whose process nobody could tell.
    pub unknown: u64,
    /// Processes whose arguments neither the kernel side nor /proc gave.
    pub without_args: u64,
}

impl Processes {
    pub fn new(paths: bool, containers: Containers) -> Self {
        Self {
            known: LruCache::new(NonZero::new(KNOWN).unwrap_or(NonZero::<usize>::MIN)),
            containers,
            paths,
            unknown: 0,
            without_args: 0,
        }
    }

    pub fn insert(&mut self, record: &ProcessRecord) {
        let key = record.key;
        let mut proc = Proc::new(key);
        let name = match self.paths.then(|| path_of(record, &mut proc)).flatten() {
            Some(path) => path,
            None => text(until_zero(&record.name)),
        };
        let args = if record.args_length == ARGS_UNREAD {
            match proc.read("cmdline") {
                Some(bytes) => {
                    let kept = bytes.get(..ARGS_BYTES).unwrap_or(&bytes);
                    args_of(kept, bytes.len() > ARGS_BYTES)
                }
                None => {
                    // A thread of the kernel has none, and is no loss.
                    self.without_args += 1;
                    Vec::new()
                }
            }
        } else {
            let length = record.args_length as usize;
            args_of(record.args.get(..length).unwrap_or(&record.args), length > ARGS_BYTES)
        };
        self.put(key, name, args, (record.cgroup, record.netns), &mut proc);
    }

    fn put(
        &mut self,
        key: ProcessKey,
        name: String,
        args: Vec<Arc<str>>,
        (cgroup, netns): (u64, u32),
        proc: &mut Proc,
    ) -> Arc<Process> {
        let cgroups = proc.read("cgroup").map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let container = self.containers.of(cgroup, cgroups.as_deref());
        let process = Arc::new(Process { key, netns, name: name.into(), args: args.into(), container });
        self.known.put(key, process.clone());
        process
    }

    /// `None`: nobody, or nobody knows any more.
    pub fn get(&mut self, key: ProcessKey) -> Option<Arc<Process>> {
        if key.pid == 0 {
            return None;
        }
        if let Some(known) = self.known.get(&key) {
            return Some(known.clone());
        }
        // The record that told of it was lost, or forgotten among many others.
        let mut proc = Proc::new(key);
        let Some(comm) = proc.read("comm") else {
            self.unknown += 1;
            return None;
        };
        let name = match self.paths.then(|| proc.executable()).flatten() {
            Some(path) => path,
            None => text(comm.strip_suffix(b"\n").unwrap_or(&comm)),
        };
        let bytes = proc.read("cmdline").unwrap_or_default();
        let args = args_of(bytes.get(..ARGS_BYTES).unwrap_or(&bytes), bytes.len() > ARGS_BYTES);
        Some(self.put(key, name, args, (0, 0), &mut proc))
    }
}

/// `/proc/<pid>`, as long as it is that very process.
pub(super) struct Proc {
    key: ProcessKey,
    /// `None`: not looked yet.
    is_it: Option<bool>,
}

impl Proc {
    pub fn new(key: ProcessKey) -> Self {
        Self { key, is_it: None }
    }

    fn is_it(&mut self) -> bool {
        let key = self.key;
        *self.is_it.get_or_insert_with(|| {
            let stat = fs::read(format!("/proc/{}/stat", key.pid)).unwrap_or_default();
            started_at(&stat).is_some_and(|ticks| ticks == key.start_ns / NS_PER_TICK)
        })
    }

    pub fn read(&mut self, name: &str) -> Option<Vec<u8>> {
        if !self.is_it() {
            return None;
        }
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let file = fs::File::open(format!("/proc/{}/{name}", self.key.pid)).ok()?;
        file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
        (!bytes.is_empty()).then_some(bytes)
    }

    fn executable(&mut self) -> Option<String> {
        use std::os::unix::ffi::OsStrExt as _;
        if !self.is_it() {
            return None;
        }
        let path = fs::read_link(format!("/proc/{}/exe", self.key.pid)).ok()?;
        Some(text(path.as_os_str().as_bytes()))
    }
}

/// `USER_HZ` is 100 on every architecture that the agent runs on.
const NS_PER_TICK: u64 = 10_000_000;

/// Field 22 of `/proc/<pid>/stat`, in ticks since boot. The name in field 2 may hold anything, parentheses too.
fn started_at(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Bytes as text that can stand anywhere: what is no UTF-8, and control characters, as `\xNN`.
pub(super) fn text(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                let mut buffer = [0; 4];
                c.encode_utf8(&mut buffer).bytes().for_each(|byte| escape(&mut out, byte));
            } else {
                out.push(c);
            }
        }
        chunk.invalid().iter().for_each(|&byte| escape(&mut out, byte));
    }
    out
}

fn escape(out: &mut String, byte: u8) {
    use std::fmt::Write as _;
    // Writing into memory does not fail.
    let _ = write!(out, "\\x{byte:02x}");
}

/// Arguments without the program's name.
fn args_of(bytes: &[u8], is_cut: bool) -> Vec<Arc<str>> {
    let bytes = if is_cut { bytes } else { bytes.strip_suffix(b"\0").unwrap_or(bytes) };
    let mut args: Vec<String> =
        bytes.split(|&byte| byte == 0).skip(1).take(MOST_ARGS + 1).map(text).collect();
    let too_many = args.len() > MOST_ARGS;
    args.truncate(MOST_ARGS);
    if (is_cut || too_many)
        && let Some(last) = args.last_mut()
    {
        last.push_str(CUT);
    }
    args.into_iter().map(Arc::from).collect()
}

fn path_of(record: &ProcessRecord, proc: &mut Proc) -> Option<String> {
    let length = record.path_length as usize;
    let parts = record.path.get(..length.min(PATH_PARTS)).unwrap_or_default();
    let parts: Vec<_> = parts.iter().map(|part| until_zero(part)).filter(|part| !part.is_empty()).collect();
    let is_cut = length > PATH_PARTS || parts.iter().any(|part| part.len() >= PART_BYTES - 1);
    if (is_cut || parts.is_empty())
        && let Some(path) = proc.executable()
    {
        return Some(path);
    }
    if parts.is_empty() {
        return None;
    }
    let mut path = if length > PATH_PARTS { CUT.to_owned() } else { String::new() };
    for part in parts.iter().rev() {
        path.push('/');
        path.push_str(&text(part));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ProcessRecord {
        ProcessRecord {
            key: ProcessKey { start_ns: 1, pid: u32::MAX - 1, exec: 0 },
            cgroup: 0,
            netns: 0,
            args_length: 0,
            path_length: 0,
            spare: 0,
            name: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            args: [0; ARGS_BYTES],
            path: [[0; PART_BYTES]; PATH_PARTS],
        }
    }

    fn told(record: &ProcessRecord, paths: bool) -> (String, Vec<String>) {
        let mut processes = Processes::new(paths, Containers::new(None));
        processes.insert(record);
        let process = processes.get(record.key).unwrap();
        (process.name.to_string(), process.args.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_process_that_is_gone_keeps_name_and_arguments() {
        let mut record = record();
        let args = b"curl\0-s\0\0http://10.96.0.10/\0";
        record.args[..args.len()].copy_from_slice(args);
        record.args_length = args.len() as u32;
        assert_eq!(
            told(&record, false),
            ("curl".into(), vec!["-s".into(), String::new(), "http://10.96.0.10/".into()])
        );
        record.path_length = 3;
        for (slot, part) in record.path.iter_mut().zip(["curl", "bin", "usr"]) {
            slot[..part.len()].copy_from_slice(part.as_bytes());
        }
        assert_eq!(told(&record, true).0, "/usr/bin/curl");
        record.path_length = 17;
        assert!(told(&record, true).0.starts_with("..."));
    }

    #[test]
    fn hostile_names_are_escaped() {
        let mut record = record();
        record.name = *b"a\x1b[31m\xff\xfe\n\"\xc3\xa9\0\0\0\0";
        assert_eq!(told(&record, false).0, "a\\x1b[31m\\xff\\xfe\\x0a\"é");
        record.name = [0xff; 16];
        assert_eq!(told(&record, false).0.len(), 64);
        assert_eq!(text("\u{85}\u{7f}".as_bytes()), "\\xc2\\x85\\x7f");
    }

    #[test]
    fn long_arguments_say_that_they_are_cut() {
        let mut record = record();
        record.args = [b'x'; ARGS_BYTES];
        record.args[4] = 0;
        record.args_length = 5000;
        let (_, args) = told(&record, false);
        assert_eq!(args.len(), 1);
        assert!(args[0].ends_with("x...") && args[0].len() == ARGS_BYTES - 5 + 3);
        record.args = [0; ARGS_BYTES];
        let (_, args) = told(&record, false);
        assert_eq!((args.len(), args[63].as_str()), (64, "..."));
    }

    #[test]
    fn nobody_and_the_forgotten_are_no_process() {
        let mut processes = Processes::new(false, Containers::new(None));
        assert_eq!(processes.get(ProcessKey::default()), None);
        assert_eq!(processes.unknown, 0);
        assert_eq!(processes.get(ProcessKey { start_ns: 1, pid: u32::MAX - 1, exec: 0 }), None);
        assert_eq!(processes.unknown, 1);
        let own = std::process::id();
        let stat = fs::read(format!("/proc/{own}/stat")).unwrap();
        let key = ProcessKey { start_ns: started_at(&stat).unwrap() * NS_PER_TICK, pid: own, exec: 0 };
        assert!(processes.get(key).is_some());
    }

    proptest::proptest! {
        #[test]
        fn any_record_is_text(name: [u8; 16], args in proptest::collection::vec(proptest::num::u8::ANY, ARGS_BYTES), length: u32, parts: u32) {
            let mut record = record();
            record.name = name;
            record.args.copy_from_slice(&args);
            record.args_length = length;
            record.path_length = parts;
            let (name, args) = told(&record, true);
            let clean = |text: &str| text.chars().all(|c| !c.is_control());
            proptest::prop_assert!(clean(&name) && args.iter().all(|arg| clean(arg)) && args.len() <= MOST_ARGS);
        }
    }
}
