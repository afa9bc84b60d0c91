//! The writer when the file that it is to write changes and cannot be had.

use std::fs;

use super::*;

fn logs(window: i64) -> FlowLogs {
    FlowLogs { start: Timestamp(window), end: Timestamp(window + 1), lost_events: 0, records: Vec::new() }
}

fn lines(dir: &std::path::Path, enabled: bool) -> Lines {
    let config = Config {
        flow_logs_file_directory: dir.to_owned(),
        flow_logs_file_enabled: enabled,
        ..Config::default()
    };
    Lines::of(&config, "n1", &Memory::allowed())
}

#[test]
fn a_directory_that_cannot_be_had_leaves_the_old_one_until_it_can() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (root.path().join("first"), root.path().join("second"));
    let metrics = Arc::new(Metrics::default());
    let mut output = Output::open(lines(&first, true), false, metrics, Timestamp(0)).unwrap();
    fs::write(&second, "not a directory").unwrap();
    let wanted = Arc::new(lines(&second, true));
    output.follow(wanted.clone(), Timestamp(1));
    assert!(output.refused.is_some());
    assert_eq!(output.dir, first);
    // The same message again tries again.
    fs::remove_file(&second).unwrap();
    fs::create_dir(&second).unwrap();
    checkpoint::write(&second, std::iter::empty(), Timestamp(0)).unwrap();
    assert_eq!(fs::read_dir(&second).unwrap().count(), 1);
    output.follow(wanted, Timestamp(2));
    assert!(output.refused.is_none());
    assert_eq!(output.dir, second);
    assert!(checkpoint::read_and_remove(&second).unwrap().is_none(), "an old checkpoint is forgotten");
}

#[test]
fn the_file_is_let_go_and_taken_again() {
    let root = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::default());
    let mut output = Output::open(lines(root.path(), true), false, metrics.clone(), Timestamp(0)).unwrap();
    output.follow(Arc::new(lines(root.path(), false)), Timestamp(1));
    assert!(matches!(output.target, Target::Nowhere));
    // Another writer may have it now; while it does, windows are counted as lost, not silently dropped.
    let options = output_options(root.path());
    let other = FileSink::open(&options, Timestamp(1)).unwrap();
    output.follow(Arc::new(lines(root.path(), true)), Timestamp(2));
    assert!(output.refused.as_ref().unwrap().contains("another writer"));
    assert!(output.write(&logs(1), &Live::default(), Timestamp(2)));
    drop(other);
    let wanted = output.lines.clone();
    output.follow(wanted, Timestamp(3));
    assert!(matches!(output.target, Target::File(_)));
}

fn output_options(dir: &std::path::Path) -> FileOptions {
    FileOptions::flow_log(&Config { flow_logs_file_directory: dir.to_owned(), ..Config::default() })
}
