//! Positions of real shippers' formats against real files: whole, rotated, gone, and hostile.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rusqlite::Connection;

use super::*;

struct Log {
    dir: tempfile::TempDir,
}

impl Log {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn append(&self, bytes: usize) {
        use std::io::Write as _;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.path("flows.log")).unwrap();
        file.write_all(&vec![b'x'; bytes.saturating_sub(1)]).unwrap();
        file.write_all(b"\n").unwrap();
    }

    fn rotate(&self) {
        for number in (1..9).rev() {
            let _ = fs::rename(
                self.path(&format!("flows.log.{number}")),
                self.path(&format!("flows.log.{}", number + 1)),
            );
        }
        fs::rename(self.path("flows.log"), self.path("flows.log.1")).unwrap();
    }

    fn inode(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().ino()
    }

    fn lag(&self, position: &str) -> Result<Lag, PositionError> {
        lag(&self.path(position), self.dir.path(), "flows.log")
    }

    fn bytes(&self, position: &str) -> u64 {
        match self.lag(position).unwrap() {
            Lag::Bytes(bytes) => bytes,
            Lag::NoShipper => panic!("there is one"),
        }
    }
}

fn fluentd(entries: &[(&str, u64, u64)]) -> String {
    entries.iter().map(|(path, offset, inode)| format!("{path}\t{offset:016x}\t{inode:016x}\n")).collect()
}

#[test]
fn fluentds_file_is_read_over_rotations() {
    let log = Log::new();
    assert_eq!(log.lag("pos").unwrap(), Lag::NoShipper);
    log.append(1000);
    let write = |entries: &[(&str, u64, u64)]| fs::write(log.path("pos"), fluentd(entries)).unwrap();
    let first = log.inode("flows.log");
    write(&[("/var/log/other.log", 5, 99), ("/elsewhere/flows.log", 400, first)]);
    assert_eq!(log.bytes("pos"), 600, "known by its inode, whatever the shipper's path");
    log.rotate();
    assert_eq!(log.bytes("pos"), 600, "between the two steps of a rotation");
    log.append(300);
    assert_eq!(log.bytes("pos"), 900);
    log.rotate();
    log.append(50);
    assert_eq!(log.bytes("pos"), 950);
    let newest = log.inode("flows.log");
    write(&[("/elsewhere/flows.log", 50, newest)]);
    assert_eq!(log.bytes("pos"), 0, "older files are read when a newer one is");
    // follow_inodes: the old one is still read while the new one is already begun.
    write(&[("/elsewhere/flows.log", 900, first), ("/elsewhere/flows.log", 10, newest)]);
    assert_eq!(log.bytes("pos"), 100 + 40, "what lies between was missed, and will not be read");
    // Watched no more: no position.
    write(&[("/elsewhere/flows.log", u64::MAX, newest)]);
    assert_eq!(log.lag("pos").unwrap(), Lag::NoShipper);
    // The file that it read last is gone: everything is unread.
    write(&[("/elsewhere/flows.log", 10, 1)]);
    assert_eq!(log.bytes("pos"), 1350);
    // The inode was another file's: beyond the end.
    write(&[("/elsewhere/flows.log", 5000, newest)]);
    assert_eq!(log.bytes("pos"), 1350);
    write(&[("/var/log/other.log", 5, 99)]);
    assert_eq!(log.lag("pos").unwrap(), Lag::NoShipper);
    fs::write(log.path("pos"), "").unwrap();
    assert_eq!(log.lag("pos").unwrap(), Lag::NoShipper);
}

#[test]
fn fluent_bits_database_is_read_while_it_is_written() {
    let log = Log::new();
    log.append(1000);
    // As in_tail makes it, in WAL mode.
    let database = Connection::open(log.path("tail.db")).unwrap();
    database
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; \
             CREATE TABLE IF NOT EXISTS in_tail_files (id INTEGER PRIMARY KEY, name TEXT NOT NULL, offset INTEGER, \
             inode INTEGER, created INTEGER, rotated INTEGER DEFAULT 0);",
        )
        .unwrap();
    assert_eq!(log.lag("tail.db").unwrap(), Lag::NoShipper);
    let insert = "INSERT INTO in_tail_files (name, offset, inode, created) VALUES (?1, ?2, ?3, 1)";
    let inode = |name: &str| log.inode(name).cast_signed();
    database.execute(insert, ("/logs/flows.log", 250, inode("flows.log"))).unwrap();
    assert!(fs::metadata(log.path("tail.db-wal")).unwrap().len() > 0, "the position is in the log alone");
    assert_eq!(log.bytes("tail.db"), 750);
    log.rotate();
    log.append(40);
    assert_eq!(log.bytes("tail.db"), 790);
    database.execute("UPDATE in_tail_files SET offset = 1000, rotated = 1", ()).unwrap();
    database.execute(insert, ("/logs/flows.log", 30, inode("flows.log"))).unwrap();
    assert_eq!(log.bytes("tail.db"), 10);
    // In the middle of a transaction of the shipper's.
    database
        .execute_batch("BEGIN IMMEDIATE; UPDATE in_tail_files SET offset = 40 WHERE rotated = 0;")
        .unwrap();
    assert_eq!(log.bytes("tail.db"), 10);
    database.execute_batch("COMMIT").unwrap();
    assert_eq!(log.bytes("tail.db"), 0);
    // db.locking: an error that says so, not a wrong number.
    database.execute_batch("PRAGMA locking_mode=EXCLUSIVE; UPDATE in_tail_files SET offset = 39;").unwrap();
    assert!(matches!(log.lag("tail.db"), Ok(Lag::Bytes(_)) | Err(PositionError::Database(_))));
    drop(database);
    assert!(!log.path("tail.db-wal").exists());
    assert!(matches!(log.lag("tail.db"), Ok(Lag::Bytes(_))));
}

#[test]
fn a_database_that_would_compute_for_ever_is_an_error() {
    let log = Log::new();
    log.append(10);
    let database = Connection::open(log.path("view.db")).unwrap();
    database
        .execute_batch(
            "CREATE VIEW in_tail_files AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) \
             SELECT 'flows.log' AS name, n AS offset, n AS inode FROM c WHERE n < 0;",
        )
        .unwrap();
    assert!(matches!(log.lag("view.db"), Err(PositionError::Format(_))));
    let database = Connection::open(log.path("types.db")).unwrap();
    database
        .execute_batch("CREATE TABLE in_tail_files (name, offset, inode); INSERT INTO in_tail_files VALUES (x'ff', 'a', -1.5);")
        .unwrap();
    assert!(matches!(log.lag("types.db"), Err(PositionError::Database(_))));
    let whole = fs::read(log.path("types.db")).unwrap();
    fs::write(log.path("torn.db"), &whole[..whole.len() / 2]).unwrap();
    assert!(log.lag("torn.db").is_err());
}

#[test]
fn rsyslogs_state_is_read_from_its_folder() {
    let log = Log::new();
    fs::create_dir(log.path("work")).unwrap();
    assert_eq!(log.lag("work").unwrap(), Lag::NoShipper);
    log.append(1000);
    let state = |inode: u64, offset: u64| {
        // As rsyslog 8.2302 writes it.
        let text = format!(
            "{{ \"filename\": \"\\/var\\/log\\/flows.log\", \"prev_was_nl\": 0, \"curr_offs\": {offset}, \"strt_offs\": {offset} }}"
        );
        fs::write(log.path("work").join(format!("imfile-state:{inode}")), text).unwrap();
    };
    let first = log.inode("flows.log");
    state(first, 100);
    fs::write(log.path("work/imfile-state:7:abc"), "{ \"filename\": \"x\", \"curr_offs\": 3").unwrap();
    fs::write(log.path("work/queue.qi"), "<OPB:1:queue:1:").unwrap();
    assert_eq!(log.bytes("work"), 900);
    log.rotate();
    log.append(20);
    assert_eq!(log.bytes("work"), 920);
    state(first, 1000);
    assert_eq!(log.bytes("work"), 20);
    state(log.inode("flows.log"), 20);
    assert_eq!(log.bytes("work"), 0);
    // One state file named directly.
    assert_eq!(log.bytes(&format!("work/imfile-state:{first}")), 20);
}

#[test]
fn rsyslog_itself_writes_such_a_state() {
    if Command::new("rsyslogd").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        println!("SKIPPED rsyslog's own state file: rsyslogd is not installed (Debian's rsyslog brings it)");
        return;
    }
    let log = Log::new();
    fs::create_dir(log.path("work")).unwrap();
    log.append(500);
    let path = |name: &str| log.path(name).display().to_string();
    let text = format!(
        "module(load=\"imfile\" mode=\"inotify\")\nglobal(workDirectory=\"{}\")\n\
         input(type=\"imfile\" file=\"{}\" tag=\"flows\" persistStateInterval=\"1\")\n\
         action(type=\"omfile\" file=\"{}\")\n",
        path("work"),
        path("flows.log"),
        path("out")
    );
    fs::write(log.path("conf"), text).unwrap();
    let rsyslog = Command::new("rsyslogd")
        .args(["-n", "-f", &path("conf"), "-i", &path("pid")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let rsyslog = Running(rsyslog);
    let deadline = Instant::now() + Duration::from_secs(60);
    let caught_up = || {
        while log.lag("work").unwrap() != Lag::Bytes(0) {
            assert!(Instant::now() < deadline, "rsyslog reads nothing: {:?}", log.lag("work"));
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    caught_up();
    log.rotate();
    log.append(70);
    log.append(80);
    caught_up();
    assert_eq!(fs::read_to_string(log.path("out")).unwrap().lines().count(), 3);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&rsyslog.0),
        rustix::process::Signal::STOP,
    )
    .unwrap();
    log.append(1000);
    assert_eq!(log.bytes("work"), 1000, "while it stands still it lags");
}

/// Ended with the test, however the test ends.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_no_position_is_an_error() {
    let log = Log::new();
    log.append(10);
    for text in ["{", "{}", "{\"filename\": 1, \"curr_offs\": 1}", "a b c", "a\tx\ty\n", "a\t1\n", "a\t+1\t1"]
    {
        fs::write(log.path("pos"), text).unwrap();
        assert!(matches!(log.lag("pos"), Err(PositionError::Format(_))), "{text:?}");
    }
    fs::write(log.path("imfile-state:5"), "{\"filename\": \"x\", \"curr_offs\": -1}").unwrap();
    assert!(log.lag("imfile-state:5").is_err());
}

#[test]
fn a_file_without_position_between_two_that_have_one_is_not_lag() {
    let files: Vec<LogFile> = (1..=4).map(|inode| LogFile { inode, size: 100 }).collect();
    let known = |inode, offset| Position { path: "/x/flows.log".into(), inode, offset };
    // Newest first: 1 is not begun, 2 is half read, nothing is known of 3, of 4 all.
    let positions = [known(2, 50), known(4, 100)];
    assert_eq!(behind(&positions, &files, "flows.log"), Lag::Bytes(100 + 50));
}

proptest! {
    /// Whatever stands there: an answer or an error.
    #[test]
    fn hostile_text_is_read_or_refused(text in "\\PC{0,60}|([a-z/]{1,8}\t[0-9a-f]{1,17}\t[0-9a-f]{1,17}\n){0,4}") {
        let _ = parse(Path::new("imfile-state:1"), text.as_bytes());
        let _ = parse(Path::new("pos"), text.as_bytes());
    }

    #[test]
    fn hostile_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(Path::new("imfile-state:1"), &bytes);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tail.db");
        fs::write(&path, [fluent_bit::MAGIC, &bytes].concat()).unwrap();
        let _ = positions(&path);
    }

    /// Lag is no more than what there is, none at the ends, and does not wrap.
    #[test]
    fn lag_is_within_what_there_is(
        sizes in prop::collection::vec(prop_oneof![0..1000_u64, Just(u64::MAX)], 0..5),
        read in prop::collection::vec((0..6_u64, any::<u64>(), any::<bool>()), 0..6),
    ) {
        let files: Vec<LogFile> = (0..).zip(&sizes).map(|(inode, size)| LogFile { inode, size: *size }).collect();
        let positions: Vec<Position> = read
            .into_iter()
            .map(|(inode, offset, small)| {
                let offset = if small { offset % 1000 } else { offset };
                Position { path: "/x/flows.log".into(), inode, offset }
            })
            .collect();
        let total = sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size));
        match behind(&positions, &files, "flows.log") {
            Lag::Bytes(bytes) => prop_assert!(bytes <= total),
            Lag::NoShipper => prop_assert!(positions.is_empty()),
        }
        let all_read: Vec<Position> =
            files.iter().map(|f| Position { path: String::new(), inode: f.inode, offset: f.size }).collect();
        if !files.is_empty() {
            prop_assert_eq!(behind(&all_read, &files, "flows.log"), Lag::Bytes(0));
        }
    }
}
