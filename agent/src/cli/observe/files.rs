//! Lines out of files and stdin: rotated files in the order in which they were written, and what comes after.
//!
//! In: paths as a shell gives them (`flows.log*`), in any order. Out: whole lines, oldest file first. Always: a line
//! is bounded ([`LONGEST`]); one that is longer or no UTF-8 is left out and counted, with its place; a file that is
//! rotated while it is followed is read to its end, and those between it and the new one too. Files beside the log
//! that are none (its lock) are passed over. Compressed files are not read.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Bytes of a line.
pub const LONGEST: usize = 4 << 20;

/// A base name, and its files from the oldest to the one that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub base: PathBuf,
    pub files: Vec<PathBuf>,
}

/// Sorts paths into logs: by number, the higher the older; what has another suffix (a date) by its time.
pub fn order(paths: &[PathBuf]) -> Vec<Log> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut logs: Vec<Log> = Vec::new();
    let several = paths.len() > 1;
    for path in paths {
        let name = text(path);
        if several && (name.ends_with(".lock") || name.ends_with(".checkpoint")) {
            continue;
        }
        let numbered =
            name.rsplit_once('.').filter(|(_, number)| is_number(number)).map(|(base, _)| base.to_owned());
        // flows.log-20260101, as logrotate names with dateext.
        let dated = name
            .rsplit_once('-')
            .filter(|(base, date)| is_number(date) && paths.iter().any(|other| other.as_os_str() == *base));
        let base =
            numbered.or_else(|| dated.map(|(base, _)| base.to_owned())).map_or(path.clone(), PathBuf::from);
        match logs.iter_mut().find(|log| log.base == base) {
            Some(log) => log.files.push(path.clone()),
            None => logs.push(Log { base, files: vec![path.clone()] }),
        }
    }
    for log in &mut logs {
        let base = log.base.clone();
        let age = |path: &PathBuf| {
            let number = text(path).rsplit_once('.').and_then(|(_, number)| number.parse::<u64>().ok());
            let time =
                fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            // Dated files are older than numbered ones would be; the base is the newest.
            let place = if *path == base { 2 } else { u8::from(number.is_some()) };
            (place, std::cmp::Reverse(number), time, text(path))
        };
        log.files.sort_by_cached_key(age);
        log.files.dedup();
    }
    logs
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lines that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    pub lines: u64,
    /// Where the first of them is, and why.
    pub first: Option<String>,
}

impl Skipped {
    pub fn count(&mut self, place: impl FnOnce() -> String) {
        self.lines += 1;
        if self.first.is_none() {
            self.first = Some(place());
        }
    }
}

/// What is done with a line; it is told the line's place, for a message. `false`: no more of them.
pub type Take<'t> = dyn FnMut(&str, &dyn Fn() -> String, &mut Skipped) -> io::Result<bool> + 't;

/// Device and inode.
type Identity = (u64, u64);

type OpenFile = (Lines<BufReader<File>>, Identity);

/// One file that is read line by line.
pub struct Lines<R> {
    reader: R,
    name: String,
    number: u64,
    /// Of a line that is not whole yet.
    part: Vec<u8>,
    /// The rest of the line that is being read is left out.
    too_long: bool,
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R, name: String) -> Self {
        Self { reader, name, number: 0, part: Vec::new(), too_long: false }
    }

    /// Gives whole lines to `take` until there are no more, or it says `false`. `last`: what has no newline is a line too.
    pub fn read(&mut self, last: bool, skipped: &mut Skipped, take: &mut Take<'_>) -> io::Result<bool> {
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if buffer.is_empty() {
                if last && (!self.part.is_empty() || self.too_long) {
                    return self.line(skipped, take);
                }
                return Ok(true);
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let (part, used) = match end {
                Some(end) => (buffer.get(..end).unwrap_or_default(), end + 1),
                None => (buffer, buffer.len()),
            };
            if self.too_long || self.part.len() + part.len() > LONGEST {
                self.too_long = true;
                self.part = Vec::new();
            } else {
                self.part.extend_from_slice(part);
            }
            self.reader.consume(used);
            if end.is_some() && !self.line(skipped, take)? {
                return Ok(false);
            }
        }
    }

    fn line(&mut self, skipped: &mut Skipped, take: &mut Take<'_>) -> io::Result<bool> {
        self.number += 1;
        let (name, number) = (&self.name, self.number);
        let place = || format!("{name} line {number}");
        let more = if std::mem::take(&mut self.too_long) {
            skipped.count(|| format!("{}: longer than {LONGEST} bytes", place()));
            Ok(true)
        } else {
            match std::str::from_utf8(&self.part) {
                Ok(line) if line.trim().is_empty() => Ok(true),
                Ok(line) => take(line, &place, skipped),
                Err(_) => {
                    skipped.count(|| format!("{}: not UTF-8", place()));
                    Ok(true)
                }
            }
        };
        self.part.clear();
        more
    }
}

/// The newest file of a log, followed over its rotations.
pub struct Follow {
    base: PathBuf,
    /// Not there while the base does not exist.
    open: Option<OpenFile>,
}

fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

fn open(path: &Path) -> io::Result<OpenFile> {
    let file = File::open(path)?;
    let identity = identity(&file.metadata()?);
    Ok((Lines::new(BufReader::new(file), path.display().to_string()), identity))
}

impl Follow {
    /// From the beginning of the file that is there now.
    pub fn new(base: PathBuf) -> Self {
        let open = open(&base).ok();
        Self { base, open }
    }

    /// Gives what has come since the last call; `false` if `take` wants no more.
    pub fn read(&mut self, skipped: &mut Skipped, take: &mut Take<'_>) -> io::Result<bool> {
        loop {
            let now = fs::metadata(&self.base).ok().map(|metadata| identity(&metadata));
            let Some((lines, is)) = &mut self.open else {
                match open(&self.base) {
                    Ok(opened) => self.open = Some(opened),
                    Err(_) => return Ok(true),
                }
                continue;
            };
            let rotated = now != Some(*is);
            // Read after it was looked at: what was written before the rotation is in the file by now.
            if !lines.read(rotated, skipped, take)? {
                return Ok(false);
            }
            if !rotated {
                return Ok(true);
            }
            // Files that were rotated since are between this one and the new one.
            let mut between = VecDeque::new();
            let mut found = false;
            for number in 1.. {
                let path = PathBuf::from(format!("{}.{number}", self.base.display()));
                match fs::metadata(&path) {
                    Ok(metadata) if identity(&metadata) == *is => {
                        found = true;
                        break;
                    }
                    Ok(_) => between.push_front(path),
                    Err(_) => break,
                }
            }
            for path in between.into_iter().filter(|_| found) {
                if let Ok((mut lines, _)) = open(&path)
                    && !lines.read(true, skipped, take)?
                {
                    return Ok(false);
                }
            }
            self.open = open(&self.base).ok();
            if self.open.is_none() {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn rotated_files_are_read_from_the_oldest() {
        let paths: Vec<PathBuf> = [
            "a/flows.log",
            "a/flows.log.1",
            "a/flows.log.10",
            "a/flows.log.2",
            "a/flows.log.lock",
            "b/flows.log",
        ]
        .map(PathBuf::from)
        .to_vec();
        let logs = order(&paths);
        assert_eq!(logs.len(), 2);
        let names: Vec<String> = logs[0].files.iter().map(|path| path.display().to_string()).collect();
        assert_eq!(names, ["a/flows.log.10", "a/flows.log.2", "a/flows.log.1", "a/flows.log"]);
    }

    #[test]
    fn dated_files_are_read_by_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for (n, name) in ["flows.log-20260102", "flows.log-20260101", "flows.log"].into_iter().enumerate() {
            let path = dir.path().join(name);
            let file = File::create(&path).unwrap();
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100 - n as u64);
            file.set_modified(time).unwrap();
            paths.push(path);
        }
        let files = &order(&paths)[0].files;
        assert_eq!(files, &[paths[1].clone(), paths[0].clone(), paths[2].clone()]);
    }

    fn all(follow: &mut Follow) -> Vec<String> {
        let mut lines = Vec::new();
        follow
            .read(&mut Skipped::default(), &mut |line, _, _| {
                lines.push(line.to_owned());
                Ok(true)
            })
            .unwrap();
        lines
    }

    #[test]
    fn a_followed_log_is_read_over_several_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("flows.log");
        let rotated = |n: u32| dir.path().join(format!("flows.log.{n}"));
        let write = |text: &str| {
            File::options()
                .append(true)
                .create(true)
                .open(&base)
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
        };
        let rotate = || {
            for n in (1..4).rev() {
                let _ = fs::rename(rotated(n), rotated(n + 1));
            }
            fs::rename(&base, rotated(1)).unwrap();
        };
        let mut follow = Follow::new(base.clone());
        assert!(all(&mut follow).is_empty());
        write("one\ntw");
        assert_eq!(all(&mut follow), ["one"]);
        write("o\n");
        rotate();
        write("three\n");
        rotate();
        write("four\n");
        rotate();
        assert_eq!(all(&mut follow), ["two", "three", "four"]);
        write("five\n");
        assert_eq!(all(&mut follow), ["five"]);
    }

    #[test]
    fn what_is_no_line_is_counted_with_its_place() {
        let mut input = b"good\n\xff\xfe\n".to_vec();
        input.extend(vec![b'x'; LONGEST + 1]);
        input.extend(b"\n\nlast");
        let mut lines = Lines::new(&*input, "f".into());
        let (mut skipped, mut got) = (Skipped::default(), Vec::new());
        lines
            .read(true, &mut skipped, &mut |line, place, _| {
                got.push((line.to_owned(), place()));
                Ok(true)
            })
            .unwrap();
        assert_eq!(
            got,
            [("good".to_owned(), "f line 1".to_owned()), ("last".to_owned(), "f line 5".to_owned())]
        );
        assert_eq!(skipped, Skipped { lines: 2, first: Some("f line 2: not UTF-8".into()) });
    }
}
