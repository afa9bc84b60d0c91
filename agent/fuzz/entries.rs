//! What is fuzzed: one entry for each parser of what others write.
//!
//! In: any bytes. Out: nothing; a panic is a finding. An entry also asserts what must hold of what was read: what prints
//! reads as the same, an error names its place. Shared by the fuzz targets (`fuzz_targets/`, one a parser, run by
//! `cargo xtask fuzz`) and by the test that runs every file of `corpus/` through its entry (`tests/corpus.rs`), so that a
//! finding that was mended stays mended. Not here: generated input of known form, which the property tests have.

use std::ffi::OsString;
use std::path::Path;

use flowlogd::config::{environment_layer, flag_layer, parse_file, resolve};
use flowlogd::filter::Filter;
use flowlogd::model::Timestamp;
use flowlogd::policy::selector;
use flowlogd::sink::position;
use flowlogd::source::dns::{Matcher, Streams, take};
use flowlogd::source::ebpf::records::{Clock, Translator, order};
use flowlogd::source::netlink::parse_message;
use flowlogd::watch::{decode, decode_ref, decode_text, manifests, unreadable, unreadable_text};
use flowlogd::wire::recording::{parse_line, write_line};
use flowlogd::wire::view::LineView;
use flowlogd_ebpf::{ConnectionRecord, KernelTuple};
use serde_json::{Value, json};

pub type Entry = fn(&[u8]);

/// By name: that of the target and of its folder in `corpus/`.
#[allow(dead_code, reason = "a target takes its own entry alone")]
pub const ENTRIES: [(&str, Entry); 12] = [
    ("configuration", configuration),
    ("dns", dns),
    ("environment", environment),
    ("filter", filter),
    ("line", line),
    ("manifests", manifests),
    ("netlink", netlink),
    ("policy_object", policy_object),
    ("position", position),
    ("record", record),
    ("recording", recording),
    ("selector", selector),
];

const KINDS: [(&str, &str); 14] = [
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("projectcalico.org/v3", "NetworkPolicy"),
    ("projectcalico.org/v3", "GlobalNetworkPolicy"),
    ("projectcalico.org/v3", "StagedNetworkPolicy"),
    ("projectcalico.org/v3", "StagedGlobalNetworkPolicy"),
    ("projectcalico.org/v3", "StagedKubernetesNetworkPolicy"),
    ("crd.projectcalico.org/v1", "Tier"),
    ("crd.projectcalico.org/v1", "Profile"),
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
];

/// The spec of an object, as JSON, behind a byte that chooses its kind.
pub fn policy_object(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let (api_version, kind) = KINDS[usize::from(*kind) % KINDS.len()];
    let Ok(text) = std::str::from_utf8(rest) else { return };
    // As a watch tells it.
    if let Err(error) = decode_text(api_version, kind, text) {
        unreadable_text(api_version, kind, text, &error);
    }
    let Ok(spec) = serde_json::from_str::<Value>(text) else { return };
    let metadata = json!({"name": "p", "namespace": "n"});
    let object =
        json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec, "status": spec});
    if let Err(error) = decode(object.clone()) {
        assert!(!error.field.is_empty());
        let of_cluster = matches!(kind, "Pod" | "Service" | "EndpointSlice");
        assert_eq!(unreadable(&object, &error).is_none(), of_cluster);
    }
    let _ = decode_ref(spec);
}

/// A selector that prints as text which reads as the same selector.
pub fn selector(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(parsed) = selector::parse(text) else { return };
    let printed = parsed.to_string();
    // What is printed names every bracket, so that it may be longer and deeper than what was read.
    if let Ok(again) = selector::parse(&printed) {
        assert_eq!(again, parsed, "{printed}");
    }
}

/// A filter that prints as text which reads as the same filter.
pub fn filter(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(parsed) = text.parse::<Filter>() else { return };
    let printed = parsed.to_string();
    if let Ok(again) = printed.parse::<Filter>() {
        assert_eq!(again.to_string(), printed);
    }
}

/// Lines of a recording: what was read and is written again reads as the same.
pub fn recording(bytes: &[u8]) {
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let Ok((at, parsed)) = parse_line(line, number) else { continue };
        let mut written = Vec::new();
        write_line(&mut written, at, &parsed);
        let again = parse_line(&written, number);
        assert_eq!(again.ok(), Some((at, parsed)), "{}", String::from_utf8_lossy(&written));
    }
}

/// A line of a flow log, as `observe` and `policy` read it.
pub fn line(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = LineView::parse(text);
}

pub fn manifests(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let name = Path::new("fuzz.yaml");
    let strict = manifests::parse(name, text, true);
    // What one reading takes, the other must take too.
    assert!(strict.is_err() || manifests::parse(name, text, false).is_ok());
}

/// A configuration file, its values checked as a layer.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(layer) = parse_file("fuzz.yaml", text) {
        resolve(vec![layer]);
    }
}

/// Lines `NAME=value`: as the environment, and as flags.
pub fn environment(bytes: &[u8]) {
    use std::os::unix::ffi::OsStrExt as _;
    let pairs = bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b'=')?;
        Some((&line[..at], &line[at + 1..]))
    });
    let pairs: Vec<_> = pairs.collect();
    let os = |bytes: &[u8]| OsString::from(std::ffi::OsStr::from_bytes(bytes));
    let variables: Vec<_> = pairs.iter().map(|(name, value)| (os(name), os(value))).collect();
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let flags: Vec<_> =
        pairs.iter().map(|(name, value)| (lossy(name), lossy(value), "--set".to_owned())).collect();
    resolve(vec![environment_layer(&variables), flag_layer(&flags)]);
}

/// Packets from the network header on, each behind its length (two bytes, big-endian).
pub fn dns(bytes: &[u8]) {
    let (mut matcher, mut streams) = (Matcher::default(), Streams::default());
    let mut rest = bytes;
    let mut at = Timestamp(0);
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (packet, after) = after.split_at(usize::from(u16::from_be_bytes(*length)).min(after.len()));
        at = Timestamp(at.0 + 1_000_000);
        let _ = take(packet, at, &mut matcher, &mut streams);
        rest = after;
    }
    matcher.tell(at, true, |_, _| {});
}

pub fn netlink(bytes: &[u8]) {
    let _ = parse_message(bytes);
}

/// Records of the kernel programs: each 136 bytes as they cross the ring.
pub fn record(bytes: &[u8]) {
    let mut translator = Translator::default();
    let mut out = Vec::new();
    let clock = Clock { offset_ns: i64::MAX / 2 };
    for chunk in bytes.chunks_exact(136) {
        let eight = |at: usize| u64::from_ne_bytes(*chunk[at..].first_chunk().expect("within a record"));
        let tuple = |at: usize| KernelTuple::from_bytes(*chunk[at..].first_chunk().expect("within a record"));
        let record = ConnectionRecord {
            at_ns: eight(0),
            start_ns: eight(8),
            original: tuple(16),
            reply: tuple(56),
            counters: [eight(96), eight(104), eight(112), eight(120)],
            zone: u16::from_ne_bytes([chunk[128], chunk[129]]),
            tcp_state: chunk[130],
            kind: chunk[131],
            flags: u32::from_ne_bytes(*chunk[132..].first_chunk().expect("within a record")),
        };
        let (told, untold) = (out.len(), translator.untold);
        translator.translate(&record, clock, &mut out);
        // Told or counted: nothing is dropped in silence.
        let counted = translator.untold != untold || translator.ended_before > 0;
        assert!(out.len() > told || counted, "{record:?}");
    }
    order(&mut out);
}

/// A shipper's position file, of whichever: its content says which.
pub fn position(bytes: &[u8]) {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder for temporary files");
    }
    FOLDER.with(|folder| {
        // The name is that of rsyslog's state of inode 7, which names the file where its content does not.
        let path = folder.path().join("imfile-state:7");
        std::fs::write(&path, bytes).expect("a temporary file");
        let _ = position::lag(&path, folder.path(), "flows.log");
    });
}
