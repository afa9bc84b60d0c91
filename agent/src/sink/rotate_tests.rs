//! Tests of rotation: unit cases, and the properties that hold for any sizes, limits, restarts and torn writes.
//!
//! Each works in a directory of its own. What needs a full disk or a file system that cannot be written is in
//! `file_tests.rs`, where the sink's answer to it is.

use super::*;
use proptest::prelude::*;

fn limits(file_bytes: u64, files: u32) -> Limits {
    Limits { file_bytes, files, mode: 0o600 }
}

fn take(dir: &Path, limits: Limits) -> RotatingFile {
    match RotatingFile::take(dir, "flows.log", limits, "pid 1\n") {
        Ok(files) => files,
        Err(error) => panic!("{error:?}"),
    }
}

fn write(files: &mut RotatingFile, lines: &str) {
    let written = files.write_lines(lines.as_bytes());
    assert!(written.error.is_none(), "{:?}", written.error);
    assert_eq!(written.bytes, lines.len());
}

/// Contents from the oldest to the newest, with the file's number.
fn contents(dir: &Path) -> Vec<(u32, String)> {
    let mut all: Vec<(u32, String)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let number = match name.strip_prefix("flows.log")? {
                "" => 0,
                rest => rest.strip_prefix('.')?.parse().ok()?,
            };
            Some((number, std::fs::read_to_string(entry.path()).unwrap()))
        })
        .collect();
    all.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    all
}

fn joined(dir: &Path) -> String {
    contents(dir).into_iter().map(|(_, text)| text).collect()
}

#[test]
fn a_window_larger_than_a_file_is_split_between_lines() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = take(dir.path(), limits(10, 3));
    write(&mut files, "1234\n5678\nabcd\nefgh\nijkl\n");
    assert_eq!(
        contents(dir.path()),
        [(2, "1234\n5678\n".into()), (1, "abcd\nefgh\n".into()), (0, "ijkl\n".into())]
    );
    write(&mut files, "this one line is longer than a file\nxy\n");
    assert_eq!(
        contents(dir.path()),
        [(2, "ijkl\n".into()), (1, "this one line is longer than a file\n".into()), (0, "xy\n".into())]
    );
    assert_eq!(files.rotations, 4);
}

#[test]
fn the_mode_holds_whatever_the_umask_and_for_a_file_that_was_there() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.log");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut files = take(dir.path(), limits(100, 2));
    write(&mut files, "{}\n");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    files.set_limits(Limits { mode: 0o662, ..limits(100, 2) });
    write(&mut files, "{}\n");
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o662);
}

#[test]
fn fewer_files_from_now_on_removes_the_oldest_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    for foreign in ["flows.log.20260101", "flows.log.2.gz", "flows.log.02", "other.log.3"] {
        std::fs::write(dir.path().join(foreign), "x\n").unwrap();
    }
    let mut files = take(dir.path(), limits(4, 5));
    write(&mut files, "aaa\nbbb\nccc\nddd\neee\n");
    files.set_limits(limits(4, 2));
    write(&mut files, "fff\n");
    for foreign in ["flows.log.20260101", "flows.log.2.gz", "flows.log.02", "other.log.3"] {
        std::fs::remove_file(dir.path().join(foreign)).unwrap();
    }
    assert_eq!(contents(dir.path()), [(1, "eee\n".into()), (0, "fff\n".into())]);
    files.set_limits(limits(4, 1));
    write(&mut files, "ggg\n");
    assert_eq!(contents(dir.path()), [(0, "ggg\n".into())]);
}

#[test]
fn a_gap_left_by_an_interrupted_rotation_is_filled_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("flows.log.1", "b\n"), ("flows.log.3", "a\n"), ("flows.log", "c\n")] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let mut files = take(dir.path(), limits(2, 4));
    write(&mut files, "d\n");
    assert_eq!(
        contents(dir.path()),
        [(3, "a\n".into()), (2, "b\n".into()), (1, "c\n".into()), (0, "d\n".into())]
    );
}

#[test]
fn a_file_that_was_deleted_replaced_or_truncated_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.log");
    let mut files = take(dir.path(), limits(1000, 2));
    write(&mut files, "a\n");
    std::fs::remove_file(&path).unwrap();
    write(&mut files, "b\n");
    assert_eq!(joined(dir.path()), "b\n");
    std::fs::rename(&path, dir.path().join("moved")).unwrap();
    std::fs::write(&path, "theirs\n").unwrap();
    write(&mut files, "c\n");
    assert_eq!(joined(dir.path()), "theirs\nc\n");
    std::fs::write(&path, "").unwrap();
    write(&mut files, "d\n");
    assert_eq!(joined(dir.path()), "d\n");
}

#[test]
fn nothing_but_a_regular_file_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.log");
    let elsewhere = dir.path().join("elsewhere");
    std::fs::write(&elsewhere, "precious").unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    let mut files = take(dir.path(), limits(1000, 2));
    let error = files.write_lines(b"a\n").error.unwrap().to_string();
    assert!(error.contains("symbolic link"), "{error}");
    assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "precious");

    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .unwrap();
    let error = files.write_lines(b"a\n").error.unwrap().to_string();
    assert!(error.contains("no regular file"), "{error}");

    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(files.write_lines(b"a\n").error.is_some());
    std::fs::remove_dir(&path).unwrap();
    write(&mut files, "a\n");
}

#[test]
fn the_lock_names_its_holder_and_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let first = take(dir.path(), limits(1000, 2));
    let second = RotatingFile::take(dir.path(), "flows.log", limits(1000, 2), "pid 2\n");
    assert!(matches!(second, Err(TakeError::Locked(holder)) if holder == "pid 1"));
    // Another log in the same directory is another lock.
    assert!(RotatingFile::take(dir.path(), "dns.log", limits(1000, 2), "pid 2\n").is_ok());
    drop(first);
    take(dir.path(), limits(1000, 2));
}

#[test]
fn a_removed_lock_or_directory_is_noticed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("logs/flow");
    let files = take(&dir, limits(1000, 2));
    assert!(files.is_in_place());
    std::fs::remove_file(dir.join("flows.log.lock")).unwrap();
    assert!(!files.is_in_place());
    drop(files);
    let files = take(&dir, limits(1000, 2));
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(!files.is_in_place());
    std::fs::create_dir_all(&dir).unwrap();
    assert!(!files.is_in_place());
}

#[test]
fn a_torn_tail_is_taken_out_without_making_the_file_shorter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows.log");
    std::fs::write(&path, "{\"a\":1}\n{\"b\":2}\n{\"c\":").unwrap();
    let before = std::fs::metadata(&path).unwrap().len();
    let mut files = take(dir.path(), limits(1000, 2));
    write(&mut files, "{\"d\":4}\n");
    let text = std::fs::read_to_string(&path).unwrap();
    // Whoever had read the fragment finds a newline behind it.
    assert_eq!(&text[before as usize..], "\n{\"d\":4}\n");
    let values: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values, [serde_json::json!({"a":1}), serde_json::json!({"b":2}), serde_json::json!({"d":4})]);
    assert_eq!(files.torn_lines, 1);

    // A file of nothing else goes.
    drop(files);
    std::fs::write(&path, "{\"c\":").unwrap();
    let mut files = take(dir.path(), limits(1000, 2));
    write(&mut files, "{\"e\":5}\n");
    assert_eq!(joined(dir.path()), "{\"e\":5}\n");

    // What is no torn line of ours is kept aside as it is.
    drop(files);
    let alien = "x".repeat(MAX_TORN_BYTES as usize + 70_000);
    std::fs::write(&path, &alien).unwrap();
    let mut files = take(dir.path(), limits(1000, 2));
    write(&mut files, "{\"f\":6}\n");
    assert_eq!(contents(dir.path()), [(1, alien), (0, "{\"f\":6}\n".into())]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever the sizes, the limits and the restarts: what the files hold is a suffix of what was written, in
    /// order, line for line; no file exceeds the limit unless one line does; there are never more files than
    /// allowed; and nothing is gone while there was room.
    #[test]
    fn rotation_splits_and_loses_no_line_and_keeps_the_limits(
        windows in prop::collection::vec((prop::collection::vec(0usize..60, 1..12), any::<bool>()), 1..12),
        file_bytes in 1u64..150,
        files in 1u32..6,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut rotating = take(dir.path(), limits(file_bytes, files));
        let mut all = String::new();
        let mut number = 0;
        for (sizes, restart) in windows {
            let mut window = String::new();
            for size in sizes {
                window.push_str(&format!("{number}{}\n", "x".repeat(size)));
                number += 1;
            }
            if restart {
                drop(rotating);
                rotating = take(dir.path(), limits(file_bytes, files));
            }
            write(&mut rotating, &window);
            all.push_str(&window);

            let contents = contents(dir.path());
            prop_assert!(contents.len() <= files as usize);
            for (_, text) in &contents {
                prop_assert!(text.ends_with('\n'));
                prop_assert!(text.len() as u64 <= file_bytes || text.lines().count() == 1);
            }
            let kept = joined(dir.path());
            prop_assert!(all.ends_with(&kept));
            prop_assert!(kept.len() == all.len() || all.as_bytes()[all.len() - kept.len() - 1] == b'\n');
            prop_assert!(kept.len() == all.len() || contents.len() == files as usize);
        }
    }

    /// Killed after any byte: what comes after is whole lines, and only the torn one is gone.
    #[test]
    fn a_write_torn_anywhere_costs_only_its_own_line(lines in prop::collection::vec(0usize..40, 1..8), cut in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows.log");
        let text: String = lines.iter().enumerate().map(|(n, size)| format!("[{n},\"{}\"]\n", "x".repeat(*size))).collect();
        let cut = cut.index(text.len() + 1);
        std::fs::write(&path, &text[..cut]).unwrap();
        let whole = text[..cut].matches('\n').count();
        let mut files = take(dir.path(), limits(100_000, 2));
        write(&mut files, "[-1]\n");
        let read = std::fs::read_to_string(&path).unwrap();
        let numbers: Vec<i64> = read
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()[0].as_i64().unwrap())
            .collect();
        let expected: Vec<i64> = (0..whole as i64).chain([-1]).collect();
        prop_assert_eq!(numbers, expected);
        let torn = cut > 0 && !text[..cut].ends_with('\n');
        prop_assert_eq!(files.torn_lines, u64::from(torn));
    }
}
