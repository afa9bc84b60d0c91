//! One growing file of whole lines and its rotated predecessors, in one directory that this process has locked.
//!
//! In: whole lines. Out: `NAME` (the newest), `NAME.1` (the one before), up to `NAME.<files - 1>`.
//! Always: a line is in one file, whole; no file exceeds the limit unless one single line does; there are never
//! more than `files` files; rotation renames and creates anew, it never copies or truncates, so that whoever
//! follows a file by its inode reads it to its end. No symbolic link is followed, nothing but a regular file is
//! written; all names are looked up in the directory that was opened and locked, whatever became of its path.
//! After an error nothing is half done that the next call does not put right.
//! Not here: what to do about an error (`file.rs` keeps the lines and tries again).
//!
//! Hand-written because the crates that rotate by size hide open errors or lose the line that does not fit.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, fchmod, flock, fstat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

/// A torn tail longer than this is no line of ours: the file is rotated away as it is.
const MAX_TORN_BYTES: u64 = 16 << 20;

/// How often, and after what pause, a lock that somebody holds is asked for again.
const LOCK_TURNS: u32 = 16;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Higher numbers (dates, say) are somebody else's files.
const MOST_FILES: u32 = 1_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that a file does not exceed.
    pub file_bytes: u64,
    /// Files in all; 1 to 1,000.
    pub files: u32,
    /// Permission bits.
    pub mode: u32,
}

/// Why the directory cannot be taken.
#[derive(Debug)]
pub enum TakeError {
    /// Another process writes there; the text tells which.
    Locked(String),
    Io(io::Error),
}

impl From<io::Error> for TakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for TakeError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// How far a write got: bytes of whole lines that are in the file, and the error that stopped it.
#[derive(Debug)]
pub struct Written {
    pub bytes: usize,
    pub error: Option<io::Error>,
}

struct Current {
    file: File,
    size: u64,
}

/// A directory that this process has locked, and the files in it.
pub struct RotatingFile {
    path: PathBuf,
    name: String,
    dir: OwnedFd,
    lock: File,
    limits: Limits,
    current: Option<Current>,
    /// Fewer files than before are to be kept.
    prune: bool,
    pub rotations: u64,
    /// Lines that a killed writer left torn, taken out.
    pub torn_lines: u64,
}

impl RotatingFile {
    /// Opens (makes, if missing) the directory and takes its lock. `owner` is what a second writer is told.
    pub fn take(path: &Path, name: &str, limits: Limits, owner: &str) -> Result<Self, TakeError> {
        DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        let dir = open_dir(path)?;
        let lock = take_lock(&dir, &lock_name(name), owner)?;
        Ok(Self {
            path: path.to_owned(),
            name: name.to_owned(),
            dir,
            lock,
            limits,
            current: None,
            prune: true,
            rotations: 0,
            torn_lines: 0,
        })
    }

    /// Acts at the next write.
    pub fn set_limits(&mut self, limits: Limits) {
        if limits != self.limits {
            self.limits = limits;
            self.prune = true;
            self.current = None;
        }
    }

    /// Still the same directory at that path, and still our lock in it. If not, the directory is to be taken anew.
    pub fn is_in_place(&self) -> bool {
        let same = |a: rustix::io::Result<rustix::fs::Stat>, b: rustix::io::Result<rustix::fs::Stat>| matches!((a, b), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino));
        same(fstat(&self.dir), rustix::fs::stat(&self.path))
            && same(fstat(&self.lock), statat(&self.dir, lock_name(&self.name), AtFlags::SYMLINK_NOFOLLOW))
    }

    /// Opens the newest file, so that what is wrong with it is known before there is a line to write.
    pub fn prepare(&mut self) -> io::Result<()> {
        self.current().map(|_| ())
    }

    /// Writes whole lines (each ends with a newline), rotating between lines where the limit asks for it.
    pub fn write_lines(&mut self, lines: &[u8]) -> Written {
        let mut done = 0;
        while let Some(rest) = lines.get(done..).filter(|rest| !rest.is_empty()) {
            match self.write_some(rest) {
                Ok(Written { bytes, error: None }) => done += bytes,
                Ok(Written { bytes, error }) => return Written { bytes: done + bytes, error },
                Err(error) => return Written { bytes: done, error: Some(error) },
            }
        }
        Written { bytes: done, error: None }
    }

    /// One file's share.
    fn write_some(&mut self, lines: &[u8]) -> io::Result<Written> {
        if std::mem::take(&mut self.prune) {
            self.remove_surplus().inspect_err(|_| self.prune = true)?;
        }
        let limit = self.limits.file_bytes;
        let current = self.current()?;
        let room = usize::try_from(limit.saturating_sub(current.size)).unwrap_or(usize::MAX);
        let first_line = lines.iter().position(|&byte| byte == b'\n').map_or(lines.len(), |at| at + 1);
        let share = match lines.get(..room) {
            None => lines.len(),
            Some(fitting) => fitting.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1),
        };
        let share = match share {
            0 if current.size > 0 => {
                self.rotate()?;
                return Ok(Written { bytes: 0, error: None });
            }
            0 => first_line,
            share => share,
        };
        let (bytes, error) = write_whole_lines(current, lines.get(..share).unwrap_or(lines));
        if error.is_some() {
            // Opened and looked at anew before the next line: whatever happened to it, it is put right there.
            self.current = None;
        }
        Ok(Written { bytes, error })
    }

    /// The open file, if it still is the one that the name means.
    fn current(&mut self) -> io::Result<&mut Current> {
        let in_place = match &self.current {
            Some(current) => match statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(named) => {
                    let open = fstat(&current.file)?;
                    (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino)
                        && u64::try_from(open.st_size).ok() == Some(current.size)
                }
                Err(Errno::NOENT) => false,
                Err(error) => return Err(error.into()),
            },
            None => false,
        };
        if !in_place {
            self.current = None;
        }
        // `Option::insert` gives the reference that a match arm cannot (the borrow would last for both arms).
        match self.current.take() {
            Some(current) => Ok(self.current.insert(current)),
            None => {
                let current = self.open_current()?;
                Ok(self.current.insert(current))
            }
        }
    }

    fn open_current(&mut self) -> io::Result<Current> {
        let flags = OFlags::APPEND | OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC
            // A FIFO put in the file's place must not block us.
            | OFlags::NONBLOCK;
        let file =
            File::from(openat(&self.dir, &self.name, flags, Mode::from_raw_mode(self.limits.mode)).map_err(
                |error| match error {
                    Errno::LOOP => {
                        io::Error::new(io::ErrorKind::InvalidInput, "it is a symbolic link; remove it")
                    }
                    other => other.into(),
                },
            )?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file; remove it"));
        }
        use std::os::unix::fs::MetadataExt as _;
        if metadata.mode() & 0o7777 != self.limits.mode {
            fchmod(&file, Mode::from_raw_mode(self.limits.mode))?;
        }
        let torn = torn_tail(&file, metadata.len())?;
        if torn == 0 {
            return Ok(Current { file, size: metadata.len() });
        }
        self.torn_lines += 1;
        if torn == metadata.len() && torn <= MAX_TORN_BYTES {
            // Nothing but a torn line: there is nothing to keep.
            unlinkat(&self.dir, &self.name, AtFlags::empty())?;
        } else if torn <= MAX_TORN_BYTES {
            let size = self.blank_torn_tail(metadata.len(), torn)?;
            return Ok(Current { file, size });
        } else {
            self.rotate()?;
        }
        self.open_current()
    }

    /// Takes out the line that a killed writer left half-written, without making the file shorter: a shipper that
    /// has read the fragment would take a shorter file for a truncated one and ship all of it again. The fragment
    /// becomes white space at the end of the line before it, and a newline follows. Whoever reads the file finds
    /// only whole JSON lines; a shipper that holds the fragment sees it end there (its loss is the torn record
    /// alone, which nobody ever had whole) and the next line begins cleanly.
    fn blank_torn_tail(&self, size: u64, torn: u64) -> io::Result<u64> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, &self.name, flags, Mode::empty())?);
        let start = size.saturating_sub(torn);
        let mut blank = vec![b' '; usize::try_from(torn).unwrap_or(0)];
        blank.push(b'\n');
        // In this order a kill in between leaves a blank line, never a lost one.
        file.write_all_at(&blank, start)?;
        if let Some(newline) = start.checked_sub(1) {
            file.write_all_at(b" ", newline)?;
        }
        Ok(size + 1)
    }

    fn numbered(&self, number: u32) -> String {
        format!("{}.{number}", self.name)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Renames every file up by one, the oldest out; the next write creates the newest. Where a rotation was
    /// interrupted there is a gap in the numbers, and only what is below it moves.
    fn rotate(&mut self) -> io::Result<()> {
        self.current = None;
        let last = self.limits.files.saturating_sub(1);
        if last == 0 {
            remove(&self.dir, &self.name)?;
        } else {
            let mut free = last;
            for number in 1..=last {
                if !self.exists(&self.numbered(number))? {
                    free = number;
                    break;
                }
            }
            // Renaming onto the oldest replaces it: at no time there are more files than allowed.
            for number in (1..free).rev() {
                renameat(&self.dir, self.numbered(number), &self.dir, self.numbered(number + 1))?;
            }
            match renameat(&self.dir, &self.name, &self.dir, self.numbered(1)) {
                // Somebody deleted it: nothing to keep.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.rotations += 1;
        Ok(())
    }

    /// Files above the number that is kept, left by a configuration that kept more.
    fn remove_surplus(&self) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let Some(digits) = name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('.')) else {
                continue;
            };
            let Ok(number) = digits.parse::<u32>() else { continue };
            if (self.limits.files.max(1)..MOST_FILES).contains(&number) && number.to_string() == digits {
                remove(&self.dir, name)?;
            }
        }
        Ok(())
    }

    /// Bytes on their way to the disk are waited for.
    pub fn sync(&self) -> io::Result<()> {
        self.current.as_ref().map_or(Ok(()), |current| current.file.sync_data())
    }
}

fn remove(dir: &OwnedFd, name: &str) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(io::Error::new(io::Error::from(error).kind(), format!("removing {name}: {error}"))),
    }
}

pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn lock_name(name: &str) -> String {
    format!("{name}.lock")
}

/// The lock file stays when its owner goes: a lock on a file that is then unlinked protects nothing.
fn take_lock(dir: &OwnedFd, name: &str, owner: &str) -> Result<File, TakeError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // Between open and flock somebody may have removed the file; and a lock may outlive its owner for a moment, in a
    // child that was forked and has not yet run its program. A few turns settle both.
    for turn in 0..LOCK_TURNS {
        let file = File::from(openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if turn + 1 < LOCK_TURNS => {
                std::thread::sleep(LOCK_PAUSE);
                continue;
            }
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Only for the message: whatever can be read of it.
                let _ = (&file).take(256).read_to_string(&mut holder);
                let holder = holder.trim().to_owned();
                return Err(TakeError::Locked(if holder.is_empty() {
                    "an unnamed process".into()
                } else {
                    holder
                }));
            }
            Err(error) => return Err(error.into()),
        }
        let open = fstat(&file)?;
        match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) if (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino) => {}
            _ => continue,
        }
        // A full disk may refuse the name; the lock holds all the same.
        if file.set_len(0).is_ok() {
            let _ = (&file).write_all(owner.as_bytes());
        }
        return Ok(file);
    }
    Err(TakeError::Io(io::Error::other("the lock file is removed again and again by somebody else")))
}

/// Bytes behind the last newline.
fn torn_tail(mut file: &File, size: u64) -> io::Result<u64> {
    const CHUNK: u64 = 64 << 10;
    let mut end = size;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        chunk.clear();
        file.seek(SeekFrom::Start(start))?;
        file.take(end - start).read_to_end(&mut chunk)?;
        if let Some(at) = chunk.iter().rposition(|&byte| byte == b'\n') {
            return Ok(size - start - at as u64 - 1);
        }
        if size - start > MAX_TORN_BYTES {
            return Ok(size - start);
        }
        end = start;
    }
    Ok(size)
}

/// Appends; on an error the half line at the end is taken back, so that a file at rest holds whole lines.
fn write_whole_lines(current: &mut Current, lines: &[u8]) -> (usize, Option<io::Error>) {
    let mut done = 0;
    let error = loop {
        let Some(rest) = lines.get(done..).filter(|rest| !rest.is_empty()) else { break None };
        match current.file.write(rest) {
            Ok(0) => break Some(io::Error::from(io::ErrorKind::WriteZero)),
            Ok(bytes) => done += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Some(error),
        }
    };
    let whole =
        lines.get(..done).unwrap_or(lines).iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    current.size += whole as u64;
    if whole < done && current.file.set_len(current.size).is_err() {
        // The half line stays; opening the file again finds and blanks it.
        return (whole, error);
    }
    (whole, error)
}

#[cfg(test)]
#[path = "rotate_tests.rs"]
mod tests;
