//! Where tests of a real node run: network namespaces, programs in them, and a node of several.
//!
//! In: the programs that a test needs, its pods, its rules. Out: [`Namespace`], [`Process`], whose log and end can be
//! waited for, and [`Node`]. What always holds: a namespace has no name and is nothing but an open file, so that the kernel
//! removes it however the test ends; a process is killed when its value is dropped, and when a test fails its log is
//! shown; waiting is for a condition, and [`PATIENCE`] is only what ends a test that would hang.
//! Not here: an API server (`apiserver.rs`); the node of the guests (`kernel/node.rs`), which are given to the tests whole.

#![allow(dead_code, reason = "each test uses what it needs of this")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

pub const PATIENCE: Duration = Duration::from_secs(120);
/// What the agent says when it observes, and has adopted all that there was.
pub const OBSERVES: &str = "flowlogd observes this node";

/// Whether this machine lets a test run that needs root, connection tracking and these programs; what it lacks is said.
pub fn can(what: &str, programs: &[&str]) -> bool {
    let tracks = || fs::exists("/proc/sys/net/netfilter/nf_conntrack_max").unwrap_or(false);
    if !tracks() {
        // As the first rule that uses it would.
        let _ = Command::new("modprobe").arg("nf_conntrack").output();
    }
    let there = |name: &str| {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", name]).output();
        found.is_ok_and(|found| found.status.success())
    };
    let lacking: Vec<&str> = programs.iter().copied().filter(|name| !there(name)).collect();
    let why = if !rustix::process::geteuid().is_root() {
        "run it as root".to_owned()
    } else if !lacking.is_empty() {
        format!("cargo xtask test installs {}", lacking.join(", "))
    } else if !tracks() {
        "this kernel has no connection tracking (modprobe nf_conntrack)".to_owned()
    } else {
        return true;
    };
    eprintln!("SKIPPED {what}: {why}");
    false
}

/// The first value that `look` gives.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "did not happen in {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A program to start, without a word on stdout and away from the cluster of whoever runs the tests.
pub fn program(name: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(name);
    command.args(arguments).stdout(Stdio::null()).env("NO_COLOR", "1").env_remove("KUBECONFIG");
    command
}

/// The agent's program, with these settings (`FIELD=VALUE`).
pub fn flowlogd(
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    settings: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_flowlogd"), arguments);
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    command
}

/// Runs a program to its good end; what it wrote to stdout.
fn run(name: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
    // One that ends without reading says why by its end.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let out = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{name} {arguments:?}: {}\n{input}\n{error}", out.status);
    String::from_utf8(out.stdout).unwrap()
}

pub struct Namespace(File);

impl Namespace {
    /// Empty, its loopback down.
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            #[expect(
                deprecated,
                reason = "the other one is unsafe for the sake of files, which stay shared"
            )]
            rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    /// Runs `work` in a thread of the namespace; what it starts is there too.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(self.0.as_fd(), kind).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn sh(&self, command: &str) -> String {
        self.enter(|| run("sh", &["-ec", command], ""))
    }

    /// Lines of `ip -batch`.
    pub fn ip(&self, lines: &str) {
        self.enter(|| run("ip", &["-batch", "-"], lines));
    }

    pub fn nft(&self, rules: &str) {
        self.enter(|| run("nft", &["-f", "-"], rules));
    }

    /// A sysctl, by its path below `/proc/sys`.
    pub fn set(&self, sysctl: &str, value: &str) {
        self.enter(|| fs::write(format!("/proc/sys/{sysctl}"), value)).unwrap();
    }

    pub fn start(&self, command: &mut Command) -> Process {
        self.enter(|| Process::start(command))
    }

    /// What a port of its loopback answers, headers and all; `None`: nobody listens there.
    pub fn get(&self, port: u16, path: &str) -> Option<String> {
        self.enter(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            write!(stream, "GET /{path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })
    }

    /// The value of the metric of this name (with its labels, if it has some).
    pub fn metric(&self, port: u16, name: &str) -> Option<String> {
        let answer = self.get(port, "metrics")?;
        answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
    }
}

/// A running program. Its stderr is its log.
pub struct Process {
    pub child: Child,
    name: String,
    log: File,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = tempfile::tempfile().unwrap();
        command.stdin(Stdio::null()).stderr(log.try_clone().unwrap());
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { child, name, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        let mut log = vec![0; usize::try_from(self.log.metadata().unwrap().len()).unwrap()];
        // Not by reading on: the place in the file is shared with the program, which writes there.
        self.log.read_exact_at(&mut log, 0).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until its log has this.
    pub fn told(&self, text: &str) {
        self.told_times(text, 1);
    }

    pub fn told_times(&self, text: &str, times: usize) {
        until(&format!("{} says {text:?}", self.name), || {
            let runs = self.is_running();
            if self.log().matches(text).count() >= times {
                return Some(());
            }
            assert!(runs, "{} ended before {text:?}", self.name);
            None
        });
    }

    pub fn is_running(&self) -> bool {
        // It is asked only: whoever waits for its end shall still find it.
        let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = rustix::process::waitid(WaitId::Pid(Pid::from_child(&self.child)), how);
        matches!(ended, Ok(None))
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn ended(&mut self) -> ExitStatus {
        until(&format!("the end of {}", self.name), || self.child.try_wait().unwrap())
    }

    /// Waits for its end, which is a success; its process id.
    pub fn finish(mut self) -> u32 {
        let status = self.ended();
        assert!(status.success(), "{}: {status}", self.name);
        self.pid()
    }

    /// SIGTERM, as a kubelet asks it; its end, and all of its log.
    pub fn stop(mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        let status = self.ended();
        (status, self.log())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "the end of {}'s log:\n{}",
                self.name,
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
    }
}

/// The node itself (`n`), which forwards, and pods behind veth pairs.
pub struct Node(Vec<(char, Namespace)>);

impl Node {
    /// Pods of these letters. The first has the addresses 10.NET.1.2 and fd00:NET:1::2 on its `eth0`, the node is 10.NET.1.1
    /// and fd00:NET:1::1 to it; the second has 10.NET.2.2, and so on.
    pub fn new(net: u8, pods: &str) -> Self {
        let node = Namespace::new();
        node.ip("link set lo up");
        node.set("net/ipv4/ip_forward", "1");
        node.set("net/ipv6/conf/all/forwarding", "1");
        let mut places = Vec::new();
        for (letter, i) in pods.chars().zip(1..) {
            let pod = Namespace::new();
            let path = format!("/proc/{}/fd/{}", std::process::id(), pod.0.as_raw_fd());
            let (v4, v6) = (format!("10.{net}.{i}"), format!("fd00:{net}:{i}:"));
            node.ip(&format!(
                "link add v{letter} type veth peer name eth0 netns {path}
                 addr add {v4}.1/24 dev v{letter}
                 addr add {v6}:1/64 dev v{letter} nodad
                 link set v{letter} up"
            ));
            // Each segment is acknowledged at once: an acknowledgement that a timer sends later would be counted by the
            // kernel after a test has read its counters.
            pod.ip(&format!(
                "link set lo up
                 addr add {v4}.2/24 dev eth0
                 addr add {v6}:2/64 dev eth0 nodad
                 link set eth0 up
                 route add default via {v4}.1 quickack 1
                 route add default via {v6}:1 quickack 1"
            ));
            // On a machine that forwards, a new namespace does too: it would send back what is for nobody, over and over.
            pod.set("net/ipv4/ip_forward", "0");
            places.push((letter, pod));
        }
        places.push(('n', node));
        Self(places)
    }

    /// Tracks connections, and sends on what is for a service's address (`ip daddr … dnat to …`).
    pub fn track(&self, services: &str) {
        self.at('n').nft(&format!(
            "table inet t {{
               chain f {{ type filter hook forward priority 0; policy accept; ct state invalid drop; }}
               chain d {{ type nat hook prerouting priority -100; {services} }}
             }}"
        ));
        // Of seconds by default: on a busy machine what a test has begun would end before its time.
        let sysctls =
            self.enter('n', || fs::read_dir("/proc/sys/net/netfilter").unwrap().collect::<Vec<_>>());
        for entry in sysctls {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with("nf_conntrack_") && name.contains("_timeout") {
                self.at('n').set(&format!("net/netfilter/{name}"), "86400");
            }
        }
    }

    pub fn at(&self, place: char) -> &Namespace {
        self.0.iter().find_map(|(letter, there)| (*letter == place).then_some(there)).unwrap()
    }

    pub fn enter<T: Send>(&self, place: char, work: impl FnOnce() -> T + Send) -> T {
        self.at(place).enter(work)
    }

    pub fn start(
        &self,
        place: char,
        name: &str,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Process {
        self.at(place).start(&mut program(name, arguments))
    }
}
