//! The guest's file system, an archive that the kernel unpacks into memory.
//!
//! In: this machine's tools, a kernel's modules, the payload. Out: one file for qemu, three archives behind each other
//! (the kernel unpacks them in turn): the userland is the same for all kernels, modules belong to one, the payload to
//! one build. Not compressed: inflating in an emulated processor takes longer than reading.
//!
//! The archive is cpio's `newc`, of which folders, files and links are all that is written here: some 40 lines, no
//! owner, no time, so the same files give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::kernels::Kernel;
use super::tools::{find, output};

/// Programs that the guest is given; busybox brings the rest.
pub const PROGRAMS: &[&str] = &["nft", "conntrack", "ip", "tc", "ss"];

/// Programs that cases run at the ends of connections. A guest of another architecture has none of them: its cases say so.
const ENDS: &[&str] = &["dnsmasq", "iperf3", "nc"];

/// Module folders that are copied whole, with what their modules depend on.
const MODULES: &[&str] = &[
    "kernel/net/netfilter/",
    "kernel/net/ipv4/",
    "kernel/net/ipv6/",
    "kernel/net/sched/",
    "kernel/net/sctp/",
    "kernel/drivers/net/veth.",
    "kernel/drivers/net/dummy.",
    "kernel/drivers/net/ifb.",
];

/// First process of the guest: file systems, then the cases, then off.
pub const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /usr/bin /usr/sbin /proc /sys /dev /tmp /run /var/log /var/lib /root
/bin/busybox --install -s /bin
export PATH=/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t tmpfs log /var/log
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
ip link set lo up
ulimit -n 65536
export FLOWLOGD_GUEST=1
/payload/kernel
echo \"init: the cases ended with $?\"
sync
poweroff -f
";

/// An archive being filled.
pub struct Archive {
    /// Path without leading slash -> mode and content; sorted, so folders stand before what is in them.
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    pub fn new() -> Self {
        Self { entries: BTreeMap::new() }
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.put(path, 0o100_000 | mode, content.to_vec());
    }

    pub fn link(&mut self, path: &str, to: &str) {
        self.put(path, 0o120_777, to.as_bytes().to_vec());
    }

    fn put(&mut self, path: &str, mode: u32, content: Vec<u8>) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert((0o040_755, Vec::new()));
        }
        self.entries.insert(path.to_owned(), (mode, content));
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, to: &Path) -> Result<()> {
        let context = || format!("cannot write {}", to.display());
        let mut out = std::io::BufWriter::new(fs::File::create(to).with_context(context)?);
        for (inode, (path, (mode, content))) in self.entries.iter().enumerate() {
            entry(&mut out, inode + 1, *mode, path, content).with_context(context)?;
        }
        entry(&mut out, 0, 0, "TRAILER!!!", &[]).with_context(context)?;
        out.flush().with_context(context)
    }
}

fn entry(out: &mut impl Write, inode: usize, mode: u32, path: &str, content: &[u8]) -> std::io::Result<()> {
    let (name, size) = (path.len() + 1, content.len());
    // Fields: inode mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check.
    write!(out, "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}", 0, 1)?;
    write!(out, "{0:08x}{0:08x}{0:08x}{0:08x}{name:08x}{0:08x}{path}\0", 0)?;
    out.write_all(&[0; 3][..padding(110 + name)])?;
    out.write_all(content)?;
    out.write_all(&[0; 3][..padding(size)])
}

fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

/// Adds a program under `place`, and the shared libraries it wants where it wants them.
///
/// # Errors
/// When a file cannot be read.
pub fn add_with_libraries(archive: &mut Archive, program: &Path, place: &str) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    archive.file(place, 0o755, &read(program)?);
    // A static program makes ldd fail: it wants nothing.
    for line in output(Command::new("ldd").arg(program)).unwrap_or_default().lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path {
            // The guest has no merged /usr: each library stands where the program asks for it.
            archive.file(path, 0o755, &read(Path::new(path))?);
        }
    }
    Ok(())
}

/// Shell and tools, the same for every kernel.
///
/// # Errors
/// When a program is missing or the archive cannot be written.
pub fn userland(out: &Path) -> Result<PathBuf> {
    let mut archive = Archive::new();
    let busybox = find("busybox").context("busybox is missing")?;
    archive.file("bin/busybox", 0o755, &fs::read(&busybox).context("cannot read busybox")?);
    let kmod = find("kmod").context("kmod is missing")?;
    add_with_libraries(&mut archive, &kmod, "sbin/kmod")?;
    // The kernel itself calls /sbin/modprobe.
    for name in ["modprobe", "rmmod", "lsmod"] {
        archive.link(&format!("sbin/{name}"), "kmod");
    }
    for name in PROGRAMS.iter().chain(ENDS) {
        let program = find(name).with_context(|| format!("{name} is missing"))?;
        add_with_libraries(&mut archive, &program, &format!("sbin/{name}"))?;
    }
    for name in ["protocols", "services"] {
        archive.file(&format!("etc/{name}"), 0o644, &fs::read(format!("/etc/{name}")).unwrap_or_default());
    }
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("init", 0o755, INIT.as_bytes());
    let path = out.join("userland.cpio");
    archive.write(&path)?;
    Ok(path)
}

/// The whole initial file system of one kernel.
///
/// # Errors
/// When modules cannot be read or the archive cannot be written.
pub fn assemble(kernel: &Kernel, out: &Path, userland: &Path, payload: &Path) -> Result<PathBuf> {
    let mut archive = Archive::new();
    let place = |name: &str| format!("lib/modules/{}/{name}", kernel.release);
    let index = fs::read_to_string(kernel.modules.join("modules.dep")).context("cannot read modules.dep")?;
    for module in wanted(&index) {
        let content =
            fs::read(kernel.modules.join(module)).with_context(|| format!("cannot read {module}"))?;
        archive.file(&place(module), 0o644, &content);
    }
    for entry in fs::read_dir(&kernel.modules)?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("modules.") {
            archive.file(&place(&name), 0o644, &fs::read(entry.path())?);
        }
    }
    let modules = out.join(format!("{}.modules.cpio", kernel.release));
    archive.write(&modules)?;
    let path = out.join(format!("{}.initrd", kernel.release));
    let mut whole = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    for part in [userland, &modules, payload] {
        let mut part = fs::File::open(part)?;
        std::io::copy(&mut part, &mut whole)?; // each is a multiple of four bytes, as the next one needs
    }
    Ok(path)
}

/// Modules of the chosen folders and everything that they depend on, from the text of modules.dep (whose right sides
/// are already complete).
fn wanted(index: &str) -> BTreeSet<&str> {
    let mut modules = BTreeSet::new();
    for (module, needs) in index.lines().filter_map(|line| line.split_once(':')) {
        if MODULES.iter().any(|folder| module.starts_with(folder)) {
            modules.insert(module);
            modules.extend(needs.split_whitespace());
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_newc() {
        let mut archive = Archive::new();
        archive.file("/a/b", 0o644, b"hello");
        archive.link("l", "a/b");
        let file = tempfile::NamedTempFile::new().unwrap();
        archive.write(file.path()).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let field = |index: usize| {
                let from = at + 6 + index * 8;
                usize::from_str_radix(std::str::from_utf8(&bytes[from..from + 8]).unwrap(), 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name) = (field(6), field(11));
            names.push(String::from_utf8(bytes[at + 110..at + 110 + name - 1].to_vec()).unwrap());
            at += (110 + name).next_multiple_of(4) + size.next_multiple_of(4);
        }
        assert_eq!(names, ["a", "a/b", "l", "TRAILER!!!"]);
    }

    #[test]
    fn modules_come_with_what_they_need() {
        let index = "kernel/net/sctp/sctp.ko.xz: kernel/lib/libcrc32c.ko.xz\nkernel/sound/x.ko: kernel/sound/y.ko\n\
                     kernel/lib/libcrc32c.ko.xz:\n";
        let modules: Vec<&str> = wanted(index).into_iter().collect();
        assert_eq!(modules, ["kernel/lib/libcrc32c.ko.xz", "kernel/net/sctp/sctp.ko.xz"]);
    }
}
