//! Network namespaces without names, and processes that cannot outlive us.
//!
//! In: commands, rules and closures. Out: a [`Namespace`] in which they run, and a [`Process`] for what runs on.
//! What always holds: a namespace is nothing but an open file of this process, and a process that was started here dies
//! with the thread that started it (`setpriv --pdeathsig`). So the kernel itself cleans up, whatever ends this process:
//! an error, Ctrl-C or SIGKILL leave no namespace, device, rule or process behind. Only for the blink between `ip netns
//! add` and `ip netns del` does a namespace have a name; [`remove_leftovers`] removes one that was left by a killed run.
//! A socket belongs to the namespace in which it was made: only making it needs [`Namespace::enter`].
//! Deliberately not here: what is built out of namespaces.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use rustix::process::{Pid, Signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
/// All our names: this, our process id, a number.
const PREFIX: &str = "flowlogd-xtask";
/// How often a process is asked whether it has ended.
const LOOK: Duration = Duration::from_millis(10);

pub struct Namespace {
    file: OwnedFd,
    label: String,
}

impl Namespace {
    /// A new, empty namespace. `label` is for messages.
    ///
    /// # Errors
    /// Without root, or where the kernel or container has no network namespaces.
    pub fn new(label: &str) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(tool("ip").args(["netns", "add", &name]), None).context(
            "cannot make a network namespace: this needs root, CAP_SYS_ADMIN (in a container: --privileged) and a kernel with CONFIG_NET_NS",
        )?;
        let file = File::open(format!("{NAMES}/{name}")).context("cannot open the new network namespace");
        // It lives on through the open file.
        run(tool("ip").args(["netns", "del", &name]), None)?;
        Ok(Self { file: file?.into(), label: label.to_owned() })
    }

    /// One that is there: a name of `ip netns`, or a process' (`/proc/PID/ns/net`).
    ///
    /// # Errors
    /// There is none at the path.
    pub fn open(path: &str, label: &str) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("no network namespace at {path}"))?;
        Ok(Self { file: file.into(), label: label.to_owned() })
    }

    /// The same namespace, as another value.
    pub fn again(&self) -> anyhow::Result<Self> {
        let file = self.file.try_clone().context("cannot duplicate a file descriptor")?;
        Ok(Self { file, label: self.label.clone() })
    }

    /// For `ip link ... netns PATH`. Valid while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` on a thread that is in the namespace.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> anyhow::Result<R> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| self.move_in().map(|()| work()));
            inside.join().map_err(|_| anyhow!("a thread in {} panicked", self.label))?
        })
    }

    fn move_in(&self) -> anyhow::Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter the network namespace of {}", self.label))
    }

    /// Runs a program to its end and gives what it wrote to stdout.
    ///
    /// # Errors
    /// An exit code that is not 0; the message has what it wrote to stderr.
    pub fn run(&self, program: &str, arguments: &[&str], stdin: Option<&str>) -> anyhow::Result<String> {
        self.enter(|| run(tool(program).args(arguments), stdin))?
            .with_context(|| format!("in the network namespace of {}", self.label))
    }

    /// Lines of `ip -batch`.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        self.run("ip", &["-batch", "-"], Some(lines)).map(drop)
    }

    /// A sysctl of this namespace, by its path below `/proc/sys`.
    pub fn set(&self, sysctl: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/{sysctl}");
        self.enter(|| fs::write(&path, value))?.with_context(|| {
            format!("cannot write {value} to {path} (a container needs --privileged; a missing file, its kernel module)")
        })
    }

    /// A pair of devices, one here and one there.
    pub fn link(&self, device: &str, there: &Self, its_device: &str) -> anyhow::Result<()> {
        self.ip(&format!("link add {device} type veth peer name {its_device} netns {}\n", there.path()))
    }

    /// Starts a program in the namespace, with nothing of our environment but the search path. It is killed when the returned value is dropped, and when we die.
    pub fn start(
        &self,
        program: &OsStr,
        arguments: &[&OsStr],
        out: File,
        err: File,
    ) -> anyhow::Result<Process> {
        let inside = self.again()?;
        let mut command = tool("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.env_clear().env("PATH", search_path()).stdin(Stdio::null()).stdout(out).stderr(err);
        let (started, outcome) = mpsc::channel();
        // The thread lives as long as the process: the kernel ties the one's death to the other's.
        let thread = thread::spawn(move || {
            let child = inside.move_in().and_then(|()| command.spawn().context("cannot start setpriv"));
            let child = match child {
                Ok(child) => Arc::new(Mutex::new(child)),
                Err(error) => return drop(started.send(Err(error))),
            };
            let _ = started.send(Ok(child.clone()));
            while let Ok(None) = hold(&child).try_wait() {
                thread::sleep(LOOK);
            }
        });
        let child = outcome.recv().context("the thread that starts a process has ended")??;
        Ok(Process { child, thread: Some(thread), name: program.to_string_lossy().into_owned() })
    }
}

/// A program that runs in a namespace.
pub struct Process {
    child: Arc<Mutex<Child>>,
    thread: Option<JoinHandle<()>>,
    name: String,
}

impl Process {
    /// `setpriv` becomes the program: the id is the program's own.
    pub fn id(&self) -> u32 {
        hold(&self.child).id()
    }

    pub fn is_running(&self) -> bool {
        matches!(hold(&self.child).try_wait(), Ok(None))
    }

    /// Sends the signal and waits for the end.
    ///
    /// # Errors
    /// It runs on after `patience`.
    pub fn stop(&mut self, signal: Signal, patience: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(signal);
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = hold(&self.child).try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < until, "{} did not end within {patience:?} of {signal:?}", self.name);
            thread::sleep(LOOK);
        }
    }

    fn signal(&self, signal: Signal) {
        // Under the lock nobody reaps it: the id is its own as long as it has not been waited for.
        let mut child = hold(&self.child);
        if let Ok(None) = child.try_wait()
            && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn hold(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where programs are looked for: Debian keeps `ip` and `nft` where not every root shell looks.
pub fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

/// A command that is looked for in [`search_path`].
pub fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    command
}

/// Runs a command to its end and gives what it wrote to stdout.
pub fn run(command: &mut Command, stdin: Option<&str>) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    if let (Some(text), Some(mut pipe)) = (stdin, child.stdin.take()) {
        // It may have ended already; its exit code and message say why.
        let _ = pipe.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} wrote what is no text"))
}

/// Removes names that a killed run left behind.
pub fn remove_leftovers() {
    let Ok(names) = fs::read_dir(NAMES) else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let pid = rest.trim_start_matches('-').split('-').next().unwrap_or_default();
        if !fs::exists(format!("/proc/{pid}")).unwrap_or(true) {
            // Another run may be as fast as we are.
            let _ = run(tool("ip").args(["netns", "del", &name]), None);
        }
    }
}
