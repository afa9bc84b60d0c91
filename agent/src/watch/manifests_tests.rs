//! Files, folders, documents, lists; and everything that can be wrong with them.

use std::fs;
use std::time::Instant;

use super::*;
use crate::cluster::{self, ObjectName};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\nstatus: {podIP: 10.0.0.1}\n";

fn names(manifests: &Manifests) -> Vec<String> {
    let name = |o: &Object| {
        let Object::Cluster(o) = o else { panic!("{o:?}") };
        let ObjectName { namespace, name } = o.object_name();
        format!("{} {}/{name}", o.kind().name(), namespace.as_deref().unwrap_or("-"))
    };
    manifests.objects.iter().map(name).collect()
}

fn yaml(text: &str) -> Result<Manifests, ManifestError> {
    parse(Path::new("test.yaml"), text, true)
}

fn malformed(result: Result<Manifests, ManifestError>) -> (String, String) {
    match result {
        Err(ManifestError::Malformed { place, problem, .. }) => (place, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_documents_comments_and_empty_ones() {
    let text = format!(
        "# a comment\n---\n---\n{POD}---\n# only a comment\n---\n{}---\nnull\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\n...\n",
        POD.replace("name: a", "name: b")
    );
    let manifests = yaml(&text).unwrap();
    assert_eq!(names(&manifests), ["Pod x/a", "Pod x/b"]);
    assert_eq!(manifests.unused.into_iter().collect::<Vec<_>>(), [("Deployment".to_owned(), 1)]);
    for empty in ["", "\n", "# x", "---\n", "\u{feff}"] {
        assert!(yaml(empty).unwrap().objects.is_empty(), "{empty:?}");
    }
    assert_eq!(names(&yaml(&format!("\u{feff}{POD}")).unwrap()), ["Pod x/a"]);
    assert_eq!(names(&yaml(&POD.replace('\n', "\r\n")).unwrap()), ["Pod x/a"]);
}

#[test]
fn json_of_one_and_of_many_documents() {
    let text = r#"
        {"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"x"}}
        {"apiVersion":"v1","kind":"Pod","metadata":{"name":"b","namespace":"x"}}"#;
    for file in ["a.json", "a.yaml", "a"] {
        assert_eq!(names(&parse(Path::new(file), text, true).unwrap()), ["Pod x/a", "Pod x/b"], "{file}");
    }
    // YAML's flow style is not JSON.
    assert_eq!(names(&yaml("{apiVersion: v1, kind: Node, metadata: {name: n}}").unwrap()), ["Node -/n"]);
    assert!(malformed(parse(Path::new("a.json"), "{apiVersion: v1}", true)).1.contains("not JSON"));
}

#[test]
fn lists_are_unpacked() {
    let manifests = yaml(
        "apiVersion: v1\nkind: List\nitems:\n\
         - {apiVersion: v1, kind: Namespace, metadata: {name: n}}\n\
         - {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Node, metadata: {name: m}}]}\n\
         - {apiVersion: batch/v1, kind: Job}\n\
         ---\n\
         apiVersion: v1\nkind: PodList\nitems: [{metadata: {name: p}}]\n\
         ---\n\
         apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSetList\nitems: [{metadata: {name: g}, spec: {nets: [1.1.1.1]}}]\n\
         ---\n\
         apiVersion: v1\nkind: List\nitems: null\n\
         ---\n\
         apiVersion: v1\nkind: List\n\
         ---\n\
         apiVersion: example.org/v1\nkind: AllowList\nmetadata: {name: no-list}\n",
    )
    .unwrap();
    assert_eq!(names(&manifests), ["Namespace -/n", "Node -/m", "Pod default/p", "GlobalNetworkSet -/g"]);
    assert_eq!(manifests.unused.keys().collect::<Vec<_>>(), ["AllowList", "Job"]);
}

#[test]
fn the_last_of_two_equal_names_counts() {
    let manifests = yaml(&format!("{POD}---\n{}", POD.replace("10.0.0.1", "10.0.0.2"))).unwrap();
    let [Object::Cluster(cluster::Object::Pod(pod))] = &manifests.objects[..] else { panic!() };
    assert_eq!(pod.ips[0].to_string(), "10.0.0.2");
}

#[test]
fn scalars_are_read_as_the_api_server_reads_them() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  creationTimestamp: 2026-01-31T12:00:00Z\n  labels:\n    a: \"true\"\n    b: yes\n    c: 0755\n    d: '1'\n    e: 1_000\n    f: |\n      text\n  annotations: {x: \"y\"}\nstatus: {podIP: fd00::1}\n";
    let manifests = yaml(text).unwrap();
    let [Object::Cluster(cluster::Object::Pod(pod))] = &manifests.objects[..] else { panic!() };
    let labels: Vec<_> = pod.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["a=true", "b=yes", "c=0755", "d=1", "e=1_000", "f=text\n"]);
    assert_eq!(pod.ips[0].to_string(), "fd00::1");
    let (_, problem) = malformed(yaml(&text.replace("\"true\"", "true")));
    assert!(problem.contains("metadata.labels.a") && problem.contains("string"), "{problem}");
}

#[test]
fn anchors_and_aliases_work() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, labels: &l {k: v}}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: b, labels: *l}\n";
    let manifests = yaml(text).unwrap();
    let [Object::Cluster(cluster::Object::Pod(a)), Object::Cluster(cluster::Object::Pod(b))] =
        &manifests.objects[..]
    else {
        panic!()
    };
    assert_eq!(a.labels, b.labels);
}

#[test]
fn errors_say_where() {
    let text = format!("{POD}---\n\n{}", POD.replace("10.0.0.1", "10.0.0"));
    let (place, problem) = malformed(yaml(&text));
    assert_eq!(place, "document 2 (line 7)");
    assert_eq!(problem, "Pod x/a: field `status.podIP`: \"10.0.0\" is not an IP address");
    let (place, _) = malformed(yaml(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: n}}\n- {apiVersion: v1, kind: Node}\n",
    ));
    assert_eq!(place, "document 1 (line 1), items[1]");
    let (place, problem) = malformed(yaml(&format!("{POD}---\nkind: [\n")));
    assert!(place.starts_with("document 2 (line "), "{place}");
    assert!(problem.starts_with("is not YAML: "), "{problem}");
    let json = "{\"apiVersion\":\"v1\",\n\"kind\":\"Node\",\"metadata\":{\"name\":\"n\"}}\n\n{\"apiVersion\":\"v1\",\"kind\":\"Node\"}";
    assert_eq!(malformed(parse(Path::new("a.json"), json, true)).0, "document 2 (line 4)");
    for no_object in ["just text", "- a\n- b\n", "42"] {
        assert!(malformed(yaml(no_object)).1.contains("object of unknown kind"), "{no_object}");
    }
    let duplicate = malformed(yaml("apiVersion: v1\nkind: Pod\nkind: Node\n")).1;
    assert!(duplicate.contains("duplicate"), "{duplicate}");
    let shown = yaml(&text).unwrap_err().to_string();
    assert!(
        shown.starts_with("test.yaml: document 2 (line 7): ") && shown.contains("take it out"),
        "{shown}"
    );
}

#[test]
fn not_strict_leaves_out_and_counts() {
    let text = format!(
        "{POD}---\n{}---\nkind: X\n---\n{}",
        POD.replace("10.0.0.1", "x"),
        POD.replace("name: a", "name: c")
    );
    let manifests = parse(Path::new("t.yaml"), &text, false).unwrap();
    assert_eq!(names(&manifests), ["Pod x/a", "Pod x/c"]);
    assert_eq!((manifests.skipped.len(), manifests.skipped_count), (2, 2));
    assert!(manifests.skipped[0].contains("document 2"), "{:?}", manifests.skipped);
    let many = "kind: X\n---\n".repeat(300);
    let manifests = parse(Path::new("t.yaml"), &many, false).unwrap();
    assert_eq!((manifests.skipped.len(), manifests.skipped_count), (100, 300));
    // After a syntax error nothing more of the file can be read; what came before stays.
    let manifests = parse(Path::new("t.yaml"), &format!("{POD}---\na: [\n---\n{POD}"), false).unwrap();
    assert_eq!((manifests.objects.len(), manifests.skipped_count), (1, 1));
}

#[test]
fn folders_are_read_recursively_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir_all(path.join("sub/deeper")).unwrap();
    fs::create_dir_all(path.join("..data")).unwrap();
    let write = |name: &str, pod: &str| {
        fs::write(path.join(name), POD.replace("name: a", &format!("name: {pod}"))).unwrap()
    };
    write("b.yaml", "b");
    write("a.yml", "a");
    write("sub/deeper/d.YAML", "d");
    write("sub/c.json", "never");
    fs::write(path.join("sub/c.json"), r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"c"}}"#)
        .unwrap();
    write("notes.txt", "text");
    write("..data/hidden.yaml", "hidden");
    write(".hidden.yaml", "hidden");
    std::os::unix::fs::symlink("..", path.join("sub/loop")).unwrap();
    std::os::unix::fs::symlink("..data/hidden.yaml", path.join("linked.yaml")).unwrap();
    let manifests = load(&[path.to_owned()], true).unwrap();
    assert_eq!(names(&manifests), ["Pod x/a", "Pod x/b", "Pod x/hidden", "Node -/c", "Pod x/d"]);
    // A file that is named is read whatever it is called.
    assert_eq!(names(&load(&[path.join("notes.txt")], true).unwrap()), ["Pod x/text"]);
    assert!(load(&[], true).unwrap().objects.is_empty());
}

#[test]
fn what_is_not_there_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nothing");
    for strict in [true, false] {
        let error = load(std::slice::from_ref(&path), strict).unwrap_err();
        assert!(matches!(&error, ManifestError::NotFound { path: p } if *p == path), "{error}");
        assert!(error.to_string().contains("--cluster"));
    }
    fs::write(folder.path().join("bad.yaml"), [0xff, 0xfe, 0x80, b'a', 0xc3]).unwrap();
    let error = load(&[folder.path().to_owned()], true).unwrap_err();
    assert!(matches!(error, ManifestError::Malformed { .. }), "{error}");
    let manifests = load(&[folder.path().to_owned()], false).unwrap();
    assert_eq!(manifests.skipped_count, 1);
}

#[test]
fn hostile_input_is_an_error() {
    let start = Instant::now();
    let depth = 100_000;
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    for text in [
        "[".repeat(depth),
        "{a: ".repeat(depth),
        "- ".repeat(depth),
        (0..5_000).map(|i| format!("{}a:\n", " ".repeat(i % 1000))).collect(),
        bomb,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: 1e999999}\n".to_owned(),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: 99999999999999999999999999999999999999999999}\n"
            .to_owned(),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: .nan}\n".to_owned(),
        "a: *unknown\n".to_owned(),
        "&a a: *a\n".to_owned(),
        "%YAML 9.9\n---\n\0".to_owned(),
        "? {a: b}\n: c\n".to_owned(),
        "\t- x".to_owned(),
    ] {
        malformed(yaml(&text));
    }
    for text in ["[".repeat(depth), "{\"a\":".repeat(depth), "{\"a\":1e999999}".to_owned()] {
        malformed(parse(Path::new("x.json"), &text, true));
    }
    eprintln!("hostile input took {:?}", start.elapsed());
}

/// The parser recurses: the deepest text that is read must be read, from a thread with a small stack too.
#[test]
fn the_deepest_text_is_read() {
    let deepest = |depth: usize| {
        let text = format!("apiVersion: v1\nkind: X\na: {}{}\n", "{a: ".repeat(depth), "}".repeat(depth));
        yaml(&text).map(|manifests| manifests.unused.len()).map_err(|e| e.to_string())
    };
    assert_eq!(deepest(DEPTH_LIMIT - 1), Ok(1));
    assert!(deepest(DEPTH_LIMIT).is_err());
}

proptest::proptest! {
    /// Any text: manifests or an error; and not strict, always manifests.
    #[test]
    fn no_text_panics(text in "[\\[\\]{}:,&*!|>'\"%@#?\\-a-z0-9 \n\t]{0,80}") {
        let strict = yaml(&text);
        let lenient = parse(Path::new("t.yaml"), &text, false).unwrap();
        proptest::prop_assert_eq!(strict.is_ok(), lenient.skipped_count == 0);
        let _ = parse(Path::new("t.json"), &text, true);
    }
}
