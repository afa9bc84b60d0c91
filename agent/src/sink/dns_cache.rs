//! The file in which names learnt from DNS outlive the agent (`dnsCacheFile`).
//!
//! In: what the cache knows; out: the same at the next start, without what has ended. The file: JSON Lines, a header,
//! then one array a name: client, address, name, end in Unix seconds.
//! Always: written aside, synced and renamed, mode 0600, so that there is a whole one or the one before; a file that is
//! not ours (Felix keeps its own under the same default path) is neither read nor replaced; lines that cannot be read
//! are counted and left out, and no file is too large or too strange to start with.
//! Not here: what is kept and for how long (`flow`), when it is written (`app`).

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::rotate::open_dir;
use crate::model::{KnownDomain, Timestamp};

const VERSION: u32 = 1;
const MAX_FILE_BYTES: u64 = 256 << 20;
const MAX_LINE_BYTES: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum DnsCacheError {
    #[error("{}: {source}: make it possible to write there, or set dnsCacheFile", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is another program's file: set dnsCacheFile to another path", path.display())]
    NotOurs { path: PathBuf },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    flowlogd_dns_cache: u32,
}

/// Client, address, name, end.
type Row = (IpAddr, IpAddr, Box<str>, i64);

/// What a file held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    pub domains: Vec<KnownDomain>,
    /// Lines that could not be read.
    pub refused: u64,
}

/// # Errors
/// A file that is there and cannot be read, or is not ours. None at all is empty.
pub fn read(path: &Path, now: Timestamp) -> Result<Remembered, DnsCacheError> {
    let failed = |source: io::Error| DnsCacheError::Io { path: path.to_owned(), source };
    let Some(file) = open(path).map_err(failed)? else { return Ok(Remembered::default()) };
    let mut reader = BufReader::new(file.take(MAX_FILE_BYTES));
    if !is_ours(&mut reader).map_err(failed)? {
        return Err(DnsCacheError::NotOurs { path: path.to_owned() });
    }
    let mut remembered = Remembered::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(remembered);
        }
        let row = serde_json::from_slice::<Row>(&line).ok().filter(|_| line.len() <= MAX_LINE_BYTES);
        let Some((client, ip, name, end)) = row else {
            remembered.refused += 1;
            continue;
        };
        let expires = Timestamp(end.saturating_mul(1_000_000_000));
        if expires >= now {
            remembered.domains.push(KnownDomain { client, ip, name: name.into(), expires });
        }
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => {
            let file = File::from(file);
            if !file.metadata()?.is_file() {
                return Err(io::Error::other("it is no regular file"));
            }
            Ok(Some(file))
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_ours(reader: &mut BufReader<io::Take<File>>) -> io::Result<bool> {
    let mut header = Vec::new();
    io::Read::by_ref(reader).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut header)?;
    // An empty file is nobody's.
    let header = serde_json::from_slice::<Header>(&header)
        .ok()
        .or(header.is_empty().then_some(Header { flowlogd_dns_cache: VERSION }));
    Ok(header.is_some_and(|header| header.flowlogd_dns_cache == VERSION))
}

/// Replaces the file; says how many names it holds.
///
/// # Errors
/// The file before, if any, is still there.
pub fn write(path: &Path, domains: impl Iterator<Item = KnownDomain>) -> Result<u64, DnsCacheError> {
    let failed = |source: io::Error| DnsCacheError::Io { path: path.to_owned(), source };
    if let Some(file) = open(path).map_err(failed)?
        && !is_ours(&mut BufReader::new(file.take(MAX_FILE_BYTES))).map_err(failed)?
    {
        return Err(DnsCacheError::NotOurs { path: path.to_owned() });
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let name = path.file_name().ok_or_else(|| failed(io::Error::other("it names no file")))?;
    let mut aside = name.to_owned();
    aside.push(".new");
    let dir = open_dir(folder).map_err(failed)?;
    let replaced = (|| {
        match unlinkat(&dir, &aside, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&dir, &aside, flags, Mode::from_raw_mode(0o600))?);
        let mut out = BufWriter::new(file);
        serde_json::to_writer(&mut out, &Header { flowlogd_dns_cache: VERSION })?;
        let mut count = 0;
        for KnownDomain { client, ip, name, expires } in domains {
            out.write_all(b"\n")?;
            let row: Row = (client, ip, (*name).into(), expires.floor_seconds());
            serde_json::to_writer(&mut out, &row)?;
            count += 1;
        }
        out.write_all(b"\n")?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        renameat(&dir, &aside, &dir, name)?;
        Ok(count)
    })();
    replaced.map_err(|source| {
        // The first error is the one to tell.
        let _ = unlinkat(&dir, &aside, AtFlags::empty());
        failed(source)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use proptest::prelude::*;

    use super::*;

    fn domain(n: u8, end: i64) -> KnownDomain {
        KnownDomain {
            client: [10, 0, 0, n].into(),
            ip: [203, 0, 113, n].into(),
            name: format!("host-{n}.example").into(),
            expires: Timestamp(end * 1_000_000_000),
        }
    }

    #[test]
    fn what_has_not_ended_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/cache.txt");
        assert_eq!(read(&path, Timestamp(0)).unwrap(), Remembered::default());
        assert_eq!(write(&path, [domain(1, 10), domain(2, 30)].into_iter()).unwrap(), 2);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = read(&path, Timestamp(20_000_000_000)).unwrap();
        assert_eq!(again, Remembered { domains: vec![domain(2, 30)], refused: 0 });
        write(&path, std::iter::empty()).unwrap();
        assert!(read(&path, Timestamp(0)).unwrap().domains.is_empty());
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("felix-dns-cache.txt");
        let felix = "1\n{\"LHS\":\"example.com\",\"RHS\":\"192.0.2.1\"}\n";
        fs::write(&path, felix).unwrap();
        assert!(matches!(read(&path, Timestamp(0)), Err(DnsCacheError::NotOurs { .. })));
        assert!(matches!(write(&path, std::iter::empty()), Err(DnsCacheError::NotOurs { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), felix);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(read(&link, Timestamp(0)), Err(DnsCacheError::Io { .. })));
        assert!(read(dir.path(), Timestamp(0)).is_err());
    }

    proptest! {
        #[test]
        fn hostile_files_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), header in any::<bool>()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("cache");
            let mut content = Vec::new();
            if header {
                content.extend_from_slice(b"{\"flowlogd_dns_cache\":1}\n");
            }
            content.extend_from_slice(&bytes);
            fs::write(&path, content).unwrap();
            let _ = read(&path, Timestamp(0));
        }
    }
}
