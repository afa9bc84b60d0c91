//! Tests of the file sink's answers to a world that fails: conservation (given = written + waiting + dropped),
//! order, whole lines, recovery by itself.
//!
//! Faults are real ones: a removed directory, a file in its place, a full tmpfs, a read-only mount. Mounts are made
//! by the test run again in a mount namespace of its own; where that is not allowed it is skipped, loudly.

use std::process::Command;

use super::*;

fn options(dir: &Path) -> FileOptions {
    FileOptions {
        dir: dir.to_owned(),
        name: "flows.log".into(),
        mode: 0o600,
        max_file_bytes: 1_000_000,
        max_files: 3,
        buffer_bytes: 10_000,
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000_000_000)
}

fn window(number: u64, lines: u64, width: usize) -> Vec<u8> {
    (0..lines)
        .flat_map(|line| format!("[{number},{line},\"{}\"]\n", "x".repeat(width)).into_bytes())
        .collect()
}

fn read(dir: &Path) -> String {
    let mut text = String::new();
    for name in ["flows.log.2", "flows.log.1", "flows.log"] {
        text.push_str(&std::fs::read_to_string(dir.join(name)).unwrap_or_default());
    }
    text
}

/// (window, line) of every line there is; each must be whole.
fn lines(dir: &Path) -> Vec<(u64, u64)> {
    read(dir)
        .lines()
        .map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            (value[0].as_u64().unwrap(), value[1].as_u64().unwrap())
        })
        .collect()
}

/// Everything given is written, waiting, or counted as dropped.
fn assert_conserved(stats: SinkStats, records: u64, bytes: u64) {
    assert_eq!(stats.written_records + stats.buffered_records + stats.dropped_records, records, "{stats:?}");
    assert_eq!(stats.written_bytes + stats.buffered_bytes + stats.dropped_bytes, bytes, "{stats:?}");
}

#[test]
fn windows_are_written_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = FileSink::open(&options(dir.path()), at(0)).unwrap();
    sink.write_window(window(0, 2, 3), 2, at(1));
    sink.write_window(Vec::new(), 0, at(2));
    sink.write_window(b"[1,0]".to_vec(), 1, at(3));
    assert_eq!(lines(dir.path()), [(0, 0), (0, 1), (1, 0)]);
    let stats = sink.close(at(4));
    assert_eq!((stats.written_windows, stats.written_records, stats.failing), (2, 3, false));
    assert_eq!(stats.written_bytes as usize, read(dir.path()).len());
}

#[test]
fn a_second_writer_is_told_who_the_first_is() {
    let dir = tempfile::tempdir().unwrap();
    let _first = FileSink::open(&options(dir.path()), at(0)).unwrap();
    let error = match FileSink::open(&options(dir.path()), at(0)) {
        Err(error @ SinkError::Locked { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("two writers"),
    };
    assert!(error.contains(&format!("pid {} ", std::process::id())), "{error}");
    assert!(error.contains("flowLogsFileDirectory"), "{error}");
}

#[test]
fn what_cannot_become_right_by_itself_is_an_error_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    for path in [dir.path().join("file"), dir.path().join("file/below")] {
        assert!(matches!(FileSink::open(&options(&path), at(0)), Err(SinkError::Open { .. })), "{path:?}");
    }
    let log = dir.path().join("flows.log");
    std::os::unix::fs::symlink("/dev/null", &log).unwrap();
    assert!(matches!(FileSink::open(&options(dir.path()), at(0)), Err(SinkError::Open { .. })));
    std::fs::remove_file(&log).unwrap();
    let lock = dir.path().join("flows.log.lock");
    std::fs::remove_file(&lock).unwrap();
    std::os::unix::fs::symlink(&log, &lock).unwrap();
    assert!(matches!(FileSink::open(&options(dir.path()), at(0)), Err(SinkError::Open { .. })));
    assert!(!log.exists(), "the lock's link was not followed");
}

#[test]
fn a_removed_directory_is_made_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("flow");
    let mut sink = FileSink::open(&options(&dir), at(0)).unwrap();
    sink.write_window(window(0, 1, 1), 1, at(1));
    std::fs::remove_dir_all(&dir).unwrap();
    sink.write_window(window(1, 1, 1), 1, at(2));
    assert_eq!(lines(&dir), [(1, 0)]);
    assert_eq!(sink.stats().faults, 0);
    assert!(
        matches!(FileSink::open(&options(&dir), at(0)), Err(SinkError::Locked { .. })),
        "locked there too"
    );
}

/// A file stands where the directory was: writing fails until it goes.
#[test]
fn while_writing_fails_the_newest_windows_are_kept_and_the_rest_is_counted() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("flow");
    let mut sink = FileSink::open(&FileOptions { buffer_bytes: 250, ..options(&dir) }, at(0)).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::write(&dir, "in the way").unwrap();
    let one = window(0, 1, 90).len() as u64;
    for number in 0..5 {
        sink.write_window(window(number, 1, 90), 1, at(number as i64));
        assert_conserved(sink.stats(), number + 1, (number + 1) * one);
        assert!(sink.stats().buffered_bytes <= 250);
    }
    let stats = sink.stats();
    assert_eq!((stats.buffered_windows, stats.dropped_windows, stats.faults, stats.failing), (2, 3, 1, true));
    std::fs::remove_file(&dir).unwrap();
    sink.retry(at(5));
    sink.retry(at(40));
    assert_eq!(lines(&dir), [(3, 0), (4, 0)]);
    let stats = sink.stats();
    assert_conserved(stats, 5, 5 * one);
    assert_eq!((stats.failing, stats.faults, stats.buffered_bytes), (false, 1, 0));
}

#[test]
fn one_window_larger_than_the_buffer_keeps_its_first_whole_lines() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("flow");
    let mut sink = FileSink::open(&FileOptions { buffer_bytes: 250, ..options(&dir) }, at(0)).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::write(&dir, "in the way").unwrap();
    let big = window(7, 10, 90);
    let bytes = big.len() as u64;
    sink.write_window(big, 10, at(1));
    assert_conserved(sink.stats(), 10, bytes);
    assert_eq!(sink.stats().buffered_records, 2);
    let small = window(8, 1, 300);
    let bytes = bytes + small.len() as u64;
    sink.write_window(small, 1, at(2));
    assert_conserved(sink.stats(), 11, bytes);
    assert_eq!(sink.stats().buffered_records, 0, "the older window gave way, the newer does not fit");
    std::fs::remove_file(&dir).unwrap();
    sink.write_window(window(9, 1, 1), 1, at(100));
    assert_eq!(lines(&dir), [(9, 0)]);
}

#[test]
fn retries_back_off_and_a_clock_that_steps_back_does_not_stop_them() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("flow");
    let mut sink = FileSink::open(&options(&dir), at(1000)).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::write(&dir, "in the way").unwrap();
    sink.write_window(window(0, 1, 1), 1, at(1000));
    // Tried at 1000, 1001, 1003, 1007, 1015 ..., never more than 30 s apart.
    for second in 1001..1200 {
        sink.retry(at(second));
    }
    std::fs::remove_file(&dir).unwrap();
    let failed = sink.fault.as_ref().unwrap().last_try;
    assert_eq!(sink.fault.as_ref().unwrap().backoff, LONGEST_BACKOFF);
    sink.retry(failed.plus(Duration::from_secs(29)));
    assert!(sink.stats().failing, "not yet time");
    sink.retry(at(10));
    assert!(!sink.stats().failing, "an hour ago is no reason to wait an hour");
    assert_eq!(lines(&dir), [(0, 0)]);
}

#[test]
fn a_window_without_lines_is_a_time_to_retry_too() {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("logs");
    let mut sink = FileSink::open(&options(&inner), at(0)).unwrap();
    std::fs::remove_dir_all(&inner).unwrap();
    std::fs::write(&inner, "in the way").unwrap();
    sink.write_window(window(1, 2, 10), 2, at(1));
    assert!(sink.stats().failing);
    std::fs::remove_file(&inner).unwrap();
    sink.write_window(Vec::new(), 0, at(10));
    assert!(!sink.stats().failing);
    assert_eq!(lines(&inner).len(), 2);
}

#[test]
fn a_lock_that_another_writer_took_meanwhile_is_a_fault_not_two_writers() {
    let dir = tempfile::tempdir().unwrap();
    let mut sink = FileSink::open(&options(dir.path()), at(0)).unwrap();
    std::fs::remove_file(dir.path().join("flows.log.lock")).unwrap();
    let mut thief = FileSink::open(&options(dir.path()), at(0)).unwrap();
    thief.write_window(window(0, 1, 1), 1, at(1));
    sink.write_window(window(1, 1, 1), 1, at(1));
    assert_eq!(lines(dir.path()), [(0, 0)]);
    assert!(sink.stats().failing);
    thief.close(at(2));
    assert!(FileSink::open(&options(dir.path()), at(2)).is_err(), "locked until it is dropped");
    drop(thief);
    sink.retry(at(3));
    assert_eq!(lines(dir.path()), [(0, 0), (1, 0)]);
}

#[test]
fn options_change_live() {
    let parent = tempfile::tempdir().unwrap();
    let (here, there) = (parent.path().join("here"), parent.path().join("there"));
    let mut sink = FileSink::open(&options(&here), at(0)).unwrap();
    sink.write_window(window(0, 4, 10), 4, at(1));
    sink.reconfigure(&FileOptions { max_file_bytes: 40, max_files: 2, ..options(&here) }).unwrap();
    sink.write_window(window(1, 2, 10), 2, at(2));
    assert_eq!(lines(&here), [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]);
    assert_eq!(sink.stats().rotations, 1);

    let taken = FileSink::open(&options(&there), at(0)).unwrap();
    assert!(matches!(sink.reconfigure(&options(&there)), Err(SinkError::Locked { .. })));
    sink.write_window(window(2, 1, 0), 1, at(3));
    assert_eq!(*lines(&here).last().unwrap(), (2, 0), "the old directory stays in use");
    drop(taken);
    sink.reconfigure(&options(&there)).unwrap();
    sink.write_window(window(3, 1, 0), 1, at(4));
    assert_eq!(lines(&there), [(3, 0)]);
    assert!(FileSink::open(&options(&here), at(0)).is_ok(), "the old directory is let go");
    assert!(sink.stats().rotations >= 1, "counts outlive the directory");
}

/// Runs the test of that name again in a mount namespace of its own, where it may mount what it likes. `None`: this
/// is that inner run. `Some`: the outer one, which is over.
fn in_a_mount_namespace(test: &str) -> Option<()> {
    const INNER: &str = "FLOWLOGD_TEST_IN_MOUNT_NAMESPACE";
    if std::env::var_os(INNER).is_some() {
        return None;
    }
    let allowed = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !allowed {
        eprintln!(
            "SKIPPED: {test} needs unshare(1), mount(8) and the right to mount in a namespace of its own"
        );
        return Some(());
    }
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args([&format!("sink::file::tests::{test}"), "--exact", "--nocapture"])
        .env(INNER, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(())
}

fn mount(arguments: &[&str], dir: &Path) {
    let output = Command::new("mount").args(arguments).arg(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_full_disk_tears_no_line_and_recovers() {
    if in_a_mount_namespace("a_full_disk_tears_no_line_and_recovers").is_some() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    mount(&["-t", "tmpfs", "-o", "size=64k", "none"], dir.path());
    let mut sink =
        FileSink::open(&FileOptions { buffer_bytes: 30_000, ..options(dir.path()) }, at(0)).unwrap();
    let ballast = dir.path().join("ballast");
    std::fs::write(&ballast, vec![0; 30_000]).unwrap();
    let (mut records, mut bytes) = (0, 0);
    for number in 0..12 {
        // Lines that end nowhere near a page's end.
        let lines = window(number, 10, 777);
        bytes += lines.len() as u64;
        records += 10;
        sink.write_window(lines, 10, at(number as i64 * 60));
        assert_conserved(sink.stats(), records, bytes);
        let text = read(dir.path());
        assert!(text.is_empty() || text.ends_with('\n'), "a torn line is in the file");
    }
    let stats = sink.stats();
    assert!(stats.failing && stats.dropped_windows > 0 && stats.buffered_bytes > 0, "{stats:?}");
    assert_eq!(stats.faults, 1);
    let before = lines(dir.path());
    assert_eq!(before.len() as u64, stats.written_records);
    std::fs::remove_file(&ballast).unwrap();
    sink.retry(at(10_000));
    let stats = sink.close(at(10_000));
    assert_conserved(stats, records, bytes);
    assert_eq!((stats.failing, stats.buffered_windows), (false, 0));
    let after = lines(dir.path());
    assert_eq!(after.len() as u64, stats.written_records);
    assert_eq!(*after.last().unwrap(), (11, 9), "the newest are those that were kept");
    assert!(after.is_sorted(), "in order, each once");
}

#[test]
fn a_read_only_file_system_is_waited_for_also_at_the_start() {
    if in_a_mount_namespace("a_read_only_file_system_is_waited_for_also_at_the_start").is_some() {
        return;
    }
    let mounted = tempfile::tempdir().unwrap();
    mount(&["-t", "tmpfs", "-o", "size=1m", "none"], mounted.path());
    mount(&["-o", "remount,ro"], mounted.path());
    let dir = mounted.path().join("flow");
    let mut sink = FileSink::open(&options(&dir), at(0)).unwrap();
    sink.write_window(window(0, 1, 1), 1, at(10));
    assert!(sink.stats().failing);
    mount(&["-o", "remount,rw"], mounted.path());
    sink.retry(at(100));
    assert_eq!(lines(&dir), [(0, 0)]);

    // A writable descriptor keeps a file system from being remounted: this is how it happens on an I/O error.
    drop(sink);
    let mut sink = FileSink::open(&options(&dir), at(200)).unwrap();
    let lazily = Command::new("umount").arg("-l").arg(mounted.path()).output().unwrap();
    assert!(lazily.status.success());
    sink.write_window(window(1, 1, 1), 1, at(201));
    assert_eq!(lines(&dir), [(1, 0)], "the directory under the mount point is another one, and is used");
}
