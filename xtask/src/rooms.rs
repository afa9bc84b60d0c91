//! The house keeps to its own map: who may import whom, and what a room may not touch.
//!
//! In: the sources of the agent, and the map in its crate documentation (`agent/src/lib.rs`). Out: tests that name each
//! file that breaks the map. What always holds: the map is read, not repeated here, so that it cannot fall behind the
//! code; an arrow that nothing uses is as wrong as one that is missing. Only what ships counts: tests may look
//! anywhere. Deliberately not here: the kernel crate and xtask, which have no rooms.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

type Edges = BTreeMap<String, BTreeSet<String>>;

/// Plain data and pure functions: no tasks, no clock, no files, no locks.
const PURE: [&str; 9] =
    ["model", "filter", "flow", "cluster", "policy", "aggregate", "wire", "pipeline", "snapshot"];
const NOT_IN_PURE: [&str; 9] = [
    "tokio",
    "std::fs",
    "std::thread",
    "std::process",
    "Instant",
    "SystemTime",
    "Mutex",
    "RwLock",
    "unsafe ",
];

/// One file of the agent, without its tests and comments.
struct Source {
    path: PathBuf,
    room: String,
    code: String,
}

fn agent() -> PathBuf {
    crate::workspace::root().join("agent/src")
}

fn sources() -> Vec<Source> {
    let root = agent();
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let inside = path.strip_prefix(&root).unwrap();
            let is_test = inside.components().any(|part| part.as_os_str() == "tests")
                || path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
            if path.extension().is_none_or(|extension| extension != "rs") || is_test {
                continue;
            }
            let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
            let room = first.trim_end_matches(".rs").to_owned();
            let code = shipped(&fs::read_to_string(&path).unwrap());
            sources.push(Source { path: inside.to_owned(), room, code });
        }
    }
    assert!(sources.len() > 50, "the agent's sources are not where they were");
    sources
}

/// What a file ships: its tests stand at its end, by the house's custom.
fn shipped(text: &str) -> String {
    let until = text.find("#[cfg(test)]\nmod ").or_else(|| text.find("#[cfg(test)]\n#[path"));
    let shipped = text.get(..until.unwrap_or(text.len())).unwrap_or(text);
    let lines = shipped.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The rooms named after each `crate::` in the text, one of `use crate::{a, b::c}` included.
fn named_rooms(code: &str) -> BTreeSet<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()
    };
    let mut rooms = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if code.get(..at).unwrap_or_default().ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = code.get(at + "crate::".len()..).unwrap_or_default();
        let Some(group) = rest.strip_prefix('{') else {
            rooms.insert(name(rest));
            continue;
        };
        let mut depth = 1;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || depth == 1 && c == ',' {
                rooms.insert(name(&std::mem::take(&mut item)));
            } else {
                item.push(c);
            }
            if depth == 0 {
                break;
            }
        }
    }
    rooms.remove("");
    rooms
}

/// `a, b -> { c, d }` in the map of the crate documentation; `a -> b -> c` chains.
fn map() -> Edges {
    let text = fs::read_to_string(agent().join("lib.rs")).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("//! "));
    let mut edges = Edges::new();
    let start = lines.skip_while(|line| !line.starts_with("main -> "));
    for line in start.take_while(|line| !line.starts_with("```")) {
        // Several statements stand in a line, three spaces or more apart.
        for statement in line.split("   ").filter(|statement| statement.contains("->")) {
            let sides: Vec<BTreeSet<String>> = statement
                .split("->")
                .map(|side| {
                    side.split([',', '{', '}', ' '])
                        .filter(|name| !name.is_empty())
                        .map(String::from)
                        .collect()
                })
                .collect();
            for pair in sides.windows(2) {
                for from in &pair[0] {
                    edges.entry(from.clone()).or_default().extend(pair[1].iter().cloned());
                }
            }
        }
    }
    assert!(edges.len() > 8, "there is no map in agent/src/lib.rs: {edges:?}");
    edges
}

#[test]
fn rooms_import_what_the_map_says_and_no_more() {
    let map = map();
    let mut used = Edges::new();
    let mut broken = Vec::new();
    for Source { path, room, code } in sources() {
        for other in named_rooms(&code).into_iter().filter(|other| *other != room) {
            if !map.get(&room).is_some_and(|allowed| allowed.contains(&other)) {
                broken.push(format!("{}: {room} -> {other} is not in the map", path.display()));
            }
            used.entry(room.clone()).or_default().insert(other);
        }
    }
    for (from, to) in &map {
        // The binary names the library by its name; the model's arrows lead out of the house.
        if from == "main" || from == "model" {
            continue;
        }
        for to in to.iter().filter(|to| !used.get(from).is_some_and(|used| used.contains(*to))) {
            broken.push(format!("agent/src/lib.rs: nothing uses the arrow {from} -> {to}"));
        }
    }
    assert!(broken.is_empty(), "mend the imports, or the map in agent/src/lib.rs:\n{}", broken.join("\n"));
}

#[test]
fn arrows_lead_down_only() {
    let map = map();
    fn reaches(map: &Edges, from: &str, to: &str) -> bool {
        map.get(from).is_some_and(|next| next.contains(to) || next.iter().any(|next| reaches(map, next, to)))
    }
    // Rooms are taken out from the bottom; what cannot be taken out stands in a circle.
    let mut rest: Edges = map.clone();
    while let Some(bottom) =
        rest.iter().find(|(_, to)| !to.iter().any(|to| rest.contains_key(to))).map(|(room, _)| room.clone())
    {
        rest.remove(&bottom);
    }
    assert!(rest.is_empty(), "these rooms import each other in a circle: {:?}", rest.keys());
    for room in PURE {
        for rim in ["app", "cli", "config", "http", "sink", "source", "telemetry", "watch"] {
            assert!(!reaches(&map, room, rim), "{room} is pure and reaches {rim}");
        }
    }
}

#[test]
fn the_pure_rooms_touch_no_world_and_unsafe_stays_where_it_belongs() {
    let mut broken = Vec::new();
    for Source { path, room, code } in sources() {
        let forbidden: &[&str] = match &*room {
            _ if path.starts_with("source/ebpf")
                || path.ends_with("app/allocator.rs")
                || path.ends_with("source/dns/ring.rs") =>
            {
                &[]
            }
            room if PURE.contains(&room) => &NOT_IN_PURE,
            _ => &["unsafe "],
        };
        broken.extend(
            forbidden
                .iter()
                .filter(|word| code.contains(*word))
                .map(|word| format!("{}: {word}", path.display())),
        );
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_scanner_sees_every_form_of_an_import() {
    let code = shipped(
        "use crate::model::A;\nuse crate::{wire::{x, y}, flow};\n// crate::sink\nlet c = crate::cli::f();\n\
         my_crate::no;\n#[cfg(test)]\nmod tests { use crate::app; }\n",
    );
    let rooms: Vec<String> = named_rooms(&code).into_iter().collect();
    assert_eq!(rooms, ["cli", "flow", "model", "wire"]);
}
