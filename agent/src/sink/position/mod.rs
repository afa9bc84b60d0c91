//! How far the log shipper has read: its own position file against the flow log's files.
//!
//! In: the path of a position file (for rsyslog the folder of its state files, or one of them) and the flow log's
//! folder. Out: the bytes that are written and not read, over rotated files. Formats, told by content: Fluentd's `pos_file`,
//! Fluent Bit's database, rsyslog's imfile state.
//! Always: files are known by their inode, as shippers know them; nothing is written, locked for long or waited for;
//! a content that fits no format, or is out of bounds, is an error and never a panic. A position beyond a file's end
//! is another file's that had the inode before: then nothing of the file is read.
//! Not here: what lag leads to (`app`).

mod fluent_bit;
mod fluentd;
mod rsyslog;

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Position files are small: a few hundred bytes a file that is followed.
const MAX_BYTES: u64 = 1 << 20;
/// State files of one folder that are read.
const MAX_FILES: usize = 1000;
/// Positions of one file that are looked at.
const MAX_POSITIONS: usize = 10_000;

/// How far one file has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// As the shipper names it: its mount may be another one than ours.
    pub path: String,
    pub inode: u64,
    /// Bytes.
    pub offset: u64,
}

/// One of the log's files as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogFile {
    pub inode: u64,
    pub size: u64,
}

/// What the position file says of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// Bytes written and not read.
    Bytes(u64),
    /// There is no position file, or it knows nothing of this log: no shipper has begun to read it.
    NoShipper,
}

#[derive(Debug, thiserror::Error)]
pub enum PositionError {
    #[error("cannot be read: {0}: give the agent read access to it")]
    Io(#[from] io::Error),
    #[error(
        "is none of Fluentd's pos_file, Fluent Bit's database and rsyslog's imfile state: {0}: correct flowLogsPositionFilePath"
    )]
    Format(String),
    #[error("the database cannot be read now: {0}")]
    Database(#[from] rusqlite::Error),
}

/// The lag of whoever keeps `position`, behind the log `name` in `dir`.
///
/// # Errors
/// A position file that cannot be read or is none.
pub fn lag(position: &Path, dir: &Path, name: &str) -> Result<Lag, PositionError> {
    let positions = match positions(position) {
        Err(PositionError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Lag::NoShipper);
        }
        other => other?,
    };
    Ok(behind(&positions, &log_files(dir, name)?, name))
}

/// The log's files, newest first. One that vanishes while we look has been rotated: the next look sees it.
fn log_files(dir: &Path, name: &str) -> io::Result<Vec<LogFile>> {
    let mut files = Vec::new();
    for number in 0..=MAX_FILES {
        let path = if number == 0 { dir.join(name) } else { dir.join(format!("{name}.{number}")) };
        match fs::metadata(&path) {
            Ok(meta) => files.push(LogFile { inode: meta.ino(), size: meta.size() }),
            // Between the two steps of a rotation there is no newest file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// Files are read in order: what is newer than the newest file that is known is unread, what is older is read as far as its own position
/// says. One of the older that has none is read and forgotten (rsyslog keeps no state of some), or was missed: it never will be read.
fn behind(positions: &[Position], files: &[LogFile], name: &str) -> Lag {
    let read = |file: &LogFile| {
        let of_file = positions.iter().filter(|position| position.inode == file.inode);
        of_file.map(|position| position.offset).filter(|offset| *offset <= file.size).max()
    };
    let newest_known = files.iter().position(|file| read(file).is_some());
    if newest_known.is_none() {
        let is_ours = |position: &Position| position.path.rsplit('/').next() == Some(name);
        if !positions.iter().any(is_ours) {
            return Lag::NoShipper;
        }
    }
    // Where what it read last is gone, all that there is is unread.
    let begun = newest_known.unwrap_or(files.len());
    let bytes = files.iter().enumerate().map(|(number, file)| match read(file) {
        Some(offset) => file.size - offset.min(file.size),
        None if number < begun => file.size,
        None => 0,
    });
    Lag::Bytes(bytes.fold(0, u64::saturating_add))
}

fn positions(path: &Path) -> Result<Vec<Position>, PositionError> {
    let meta = fs::metadata(path)?;
    if meta.is_dir() {
        return rsyslog_folder(path);
    }
    if !meta.is_file() {
        return Err(PositionError::Format("it is no regular file".to_owned()));
    }
    let head = read_at_most(path, fluent_bit::MAGIC.len() as u64)?;
    if head == fluent_bit::MAGIC {
        return fluent_bit::read(path);
    }
    parse(path, &read_at_most(path, MAX_BYTES + 1)?)
}

/// Of a text file; `path` names the inode where the content does not.
fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Position>, PositionError> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(PositionError::Format(format!("it is larger than {MAX_BYTES} bytes")));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| PositionError::Format("it is not UTF-8".to_owned()))?;
    if text.trim_start().starts_with('{') {
        return rsyslog::parse(path, text).map(|position| vec![position]).map_err(PositionError::Format);
    }
    fluentd::parse(text).map_err(PositionError::Format)
}

/// A file of another name in the folder is another input's or queue's, and none of ours.
fn rsyslog_folder(folder: &Path) -> Result<Vec<Position>, PositionError> {
    let mut positions = Vec::new();
    for entry in fs::read_dir(folder)?.take(MAX_FILES) {
        let path = entry?.path();
        if rsyslog::inode_of(&path).is_none() {
            continue;
        }
        // It may be removed or half written while we look; the next look sees it whole.
        let Ok(bytes) = read_at_most(&path, MAX_BYTES + 1) else { continue };
        if let Ok(mut one) = parse(&path, &bytes) {
            positions.append(&mut one);
        }
    }
    Ok(positions)
}

fn read_at_most(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)?.take(bytes).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests;
