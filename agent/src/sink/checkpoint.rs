//! The checkpoint beside the flow log: what has been written of each open connection when the agent stopped.
//!
//! In: the open connections with their counters; out: the same at the next start, once.
//! The file: JSON Lines. A header (version, boot, time), one array a connection, a trailer with the number of
//! connections and a checksum of every byte before it.
//! Always: written aside, synced and renamed, so that there is a whole one or none; one that is torn, altered, of
//! another version or of another boot (counters begin at 0 there) is refused as a whole, with the reason, never
//! read by half; reading removes it, since after a crash an old one would make lines twice.
//! Not here: what a baseline does to a connection (`flow`).

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read as _, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::rotate::open_dir;
use crate::model::{Addresses, CheckpointEntry, Counters, Directional, Proto, Timestamp};

const NAME: &str = "flows.checkpoint";
const TEMPORARY: &str = "flows.checkpoint.new";
const VERSION: u32 = 1;
/// Some 16 million connections.
const MAX_FILE_BYTES: u64 = 2 << 30;
const MAX_LINE_BYTES: u64 = 4096;

/// A checkpoint that was read whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub written_at: Timestamp,
    pub entries: Vec<CheckpointEntry>,
}

/// Why a checkpoint that exists is not used. The agent starts without it: what connections counted before is then
/// taken as their baseline.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("the checkpoint cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("the checkpoint is refused: {reason}")]
    Damaged { reason: String },
    #[error("the checkpoint is of version {found}, this agent reads {VERSION}")]
    OtherVersion { found: u32 },
    #[error("the checkpoint was written before this machine booted; its connections are gone")]
    OtherBoot,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    flowlogd_checkpoint: u32,
    boot_id: String,
    written_at_ns: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trailer {
    connections: u64,
    fnv1a64: String,
}

/// zone, proto, src, src port, dst, dst port, icmp id, packets original, packets reply, bytes original, bytes reply.
type Row = (u16, u8, IpAddr, u16, IpAddr, u16, u16, u64, u64, u64, u64);

fn to_row(entry: &CheckpointEntry) -> Row {
    let CheckpointEntry { zone, proto, original: a, icmp_id, counters: c } = *entry;
    (
        zone,
        proto.0,
        a.src,
        a.src_port,
        a.dst,
        a.dst_port,
        icmp_id,
        c.original.packets,
        c.reply.packets,
        c.original.bytes,
        c.reply.bytes,
    )
}

fn from_row(row: Row) -> CheckpointEntry {
    let (zone, proto, src, src_port, dst, dst_port, icmp_id, packets, reply_packets, bytes, reply_bytes) =
        row;
    CheckpointEntry {
        zone,
        proto: Proto(proto),
        original: Addresses { src, dst, src_port, dst_port },
        icmp_id,
        counters: Directional {
            original: Counters::new(packets, bytes),
            reply: Counters::new(reply_packets, reply_bytes),
        },
    }
}

/// FNV-1a, 64 bits: it has to find torn and zeroed blocks, not an attacker (who could write the file anyway), and
/// four lines are less than a dependency.
#[derive(Clone, Copy)]
struct Checksum(u64);

impl Checksum {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Replaces the checkpoint in `dir`; returns how many connections it holds. On an error the former one, if any,
/// is still there.
pub fn write(dir: &Path, entries: impl Iterator<Item = CheckpointEntry>, now: Timestamp) -> io::Result<u64> {
    write_of_boot(dir, entries, now, &boot_id()?)
}

fn write_of_boot(
    dir: &Path,
    entries: impl Iterator<Item = CheckpointEntry>,
    now: Timestamp,
    boot_id: &str,
) -> io::Result<u64> {
    let dir = open_dir(dir)?;
    remove(&dir, TEMPORARY)?;
    let written = write_aside(&dir, entries, now, boot_id).and_then(|count| {
        renameat(&dir, TEMPORARY, &dir, NAME)?;
        rustix::fs::fsync(&dir)?;
        Ok(count)
    });
    if written.is_err() {
        // A full disk is where this happens; do not leave the half of it there. The first error is the one to tell.
        let _ = remove(&dir, TEMPORARY);
    }
    written
}

fn write_aside(
    dir: &OwnedFd,
    entries: impl Iterator<Item = CheckpointEntry>,
    now: Timestamp,
    boot_id: &str,
) -> io::Result<u64> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(dir, TEMPORARY, flags, Mode::from_raw_mode(0o600))?);
    let mut out = BufWriter::with_capacity(256 << 10, file);
    let mut checksum = Checksum::new();
    let mut line = Vec::with_capacity(256);
    let header = Header { flowlogd_checkpoint: VERSION, boot_id: boot_id.to_owned(), written_at_ns: now.0 };
    put(&mut out, &mut line, &mut checksum, &header)?;
    let mut connections = 0;
    for entry in entries {
        put(&mut out, &mut line, &mut checksum, &to_row(&entry))?;
        connections += 1;
    }
    let trailer = Trailer { connections, fnv1a64: checksum.text() };
    put(&mut out, &mut line, &mut checksum, &trailer)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(connections)
}

fn put(
    out: &mut impl Write,
    line: &mut Vec<u8>,
    checksum: &mut Checksum,
    value: &impl Serialize,
) -> io::Result<()> {
    line.clear();
    serde_json::to_writer(&mut *line, value)?;
    line.push(b'\n');
    checksum.add(line);
    out.write_all(line)
}

/// Reads the checkpoint in `dir` and removes it, also when it is refused. `Ok(None)`: there is none.
pub fn read_and_remove(dir: &Path) -> Result<Option<Checkpoint>, CheckpointError> {
    read_of_boot(dir, &boot_id()?)
}

fn read_of_boot(dir: &Path, boot_id: &str) -> Result<Option<Checkpoint>, CheckpointError> {
    let dir = match open_dir(dir) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(&dir, NAME, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let read = match file.metadata()?.is_file() {
        true => read_whole(file, boot_id),
        false => return Err(damaged("it is no regular file; remove it")),
    };
    // One that cannot be removed must not be used: it would be used again after the next crash.
    remove(&dir, NAME)?;
    read.map(Some)
}

fn damaged(reason: impl Into<String>) -> CheckpointError {
    CheckpointError::Damaged { reason: reason.into() }
}

fn read_whole(file: File, boot_id: &str) -> Result<Checkpoint, CheckpointError> {
    if file.metadata()?.len() > MAX_FILE_BYTES {
        return Err(damaged(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    let mut lines = BufReader::with_capacity(256 << 10, file.take(MAX_FILE_BYTES));
    let mut line = Vec::with_capacity(256);
    let mut checksum = Checksum::new();
    if !next_line(&mut lines, &mut line)? {
        return Err(damaged("it is empty"));
    }
    let header: Header =
        serde_json::from_slice(&line).map_err(|error| damaged(format!("line 1 is no header: {error}")))?;
    if header.flowlogd_checkpoint != VERSION {
        return Err(CheckpointError::OtherVersion { found: header.flowlogd_checkpoint });
    }
    if header.boot_id != boot_id {
        return Err(CheckpointError::OtherBoot);
    }
    checksum.add(&line);
    let mut entries = Vec::new();
    loop {
        let number = entries.len() + 2;
        if !next_line(&mut lines, &mut line)? {
            return Err(damaged(format!("it ends before line {number}, without a trailer")));
        }
        if line.first() == Some(&b'{') {
            break;
        }
        let row: Row =
            serde_json::from_slice(&line).map_err(|error| damaged(format!("line {number}: {error}")))?;
        checksum.add(&line);
        entries.push(from_row(row));
    }
    let trailer: Trailer =
        serde_json::from_slice(&line).map_err(|error| damaged(format!("its trailer: {error}")))?;
    if trailer.connections != entries.len() as u64 || trailer.fnv1a64 != checksum.text() {
        return Err(damaged("its checksum or number of connections does not fit its content"));
    }
    if next_line(&mut lines, &mut line)? {
        return Err(damaged("something follows its trailer"));
    }
    Ok(Checkpoint { written_at: Timestamp(header.written_at_ns), entries })
}

/// A whole line with its newline; `false` at the end of the file.
fn next_line(lines: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool, CheckpointError> {
    line.clear();
    lines.take(MAX_LINE_BYTES).read_until(b'\n', line)?;
    match line.last() {
        None => Ok(false),
        Some(b'\n') => Ok(true),
        Some(_) => Err(damaged("a line is torn or too long")),
    }
}

fn remove(dir: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(seed: u64) -> CheckpointEntry {
        let ip = |n: u64| -> IpAddr {
            if n.is_multiple_of(2) {
                IpAddr::from((n as u32).to_be_bytes())
            } else {
                IpAddr::from((u128::from(n) << 64 | 7).to_be_bytes())
            }
        };
        CheckpointEntry {
            zone: seed as u16,
            proto: Proto((seed >> 3) as u8),
            original: Addresses {
                src: ip(seed),
                dst: ip(seed.rotate_left(9)),
                src_port: (seed >> 5) as u16,
                dst_port: (seed >> 7) as u16,
            },
            icmp_id: (seed >> 11) as u16,
            counters: Directional {
                original: Counters::new(seed, u64::MAX - seed),
                reply: Counters::new(seed.rotate_left(33), seed.rotate_left(17)),
            },
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn round_trip_once_and_of_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_and_remove(dir.path()).unwrap().is_none());
        assert!(read_and_remove(&dir.path().join("absent")).unwrap().is_none());
        let entries: Vec<_> = (0..1000).map(|n| entry(u64::wrapping_mul(n, 0x9e37_79b9_7f4a_7c15))).collect();
        assert_eq!(write(dir.path(), entries.iter().copied(), Timestamp(77)).unwrap(), 1000);
        assert_eq!(names(dir.path()), [NAME]);
        let read = read_and_remove(dir.path()).unwrap().unwrap();
        assert_eq!(read, Checkpoint { written_at: Timestamp(77), entries });
        assert!(read_and_remove(dir.path()).unwrap().is_none(), "a second start must not see it");

        write_of_boot(dir.path(), [entry(1)].into_iter(), Timestamp(1), "before").unwrap();
        assert!(matches!(read_of_boot(dir.path(), "after"), Err(CheckpointError::OtherBoot)));
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let header = "{\"flowlogd_checkpoint\":2,\"boot_id\":\"b\",\"written_at_ns\":0}\n";
        std::fs::write(dir.path().join(NAME), header).unwrap();
        assert!(matches!(read_of_boot(dir.path(), "b"), Err(CheckpointError::OtherVersion { found: 2 })));
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::write(&elsewhere, "precious").unwrap();
        for name in [NAME, TEMPORARY] {
            std::os::unix::fs::symlink(&elsewhere, dir.path().join(name)).unwrap();
        }
        assert!(matches!(read_and_remove(dir.path()), Err(CheckpointError::Io(_))));
        write(dir.path(), [entry(5)].into_iter(), Timestamp(1)).unwrap();
        assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "precious");
        assert_eq!(read_and_remove(dir.path()).unwrap().unwrap().entries, [entry(5)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Cut anywhere, or with any byte altered, it is refused or it is what was written; never something else.
        #[test]
        fn damage_is_never_half_read(seeds in prop::collection::vec(any::<u64>(), 0..6), at in any::<prop::sample::Index>(), flip in 0u8..) {
            let dir = tempfile::tempdir().unwrap();
            let entries: Vec<_> = seeds.into_iter().map(entry).collect();
            write_of_boot(dir.path(), entries.iter().copied(), Timestamp(3), "b").unwrap();
            let path = dir.path().join(NAME);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if flip == 0 { bytes.truncate(at) } else { bytes[at] ^= flip }
            std::fs::write(&path, &bytes).unwrap();
            match read_of_boot(dir.path(), "b") {
                Ok(Some(read)) => prop_assert_eq!(read.entries, entries),
                Ok(None) => prop_assert!(false, "it was there"),
                Err(_) => {}
            }
            prop_assert!(!path.exists());
        }
    }
}
