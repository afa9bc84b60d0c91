//! Manifest files (`--cluster PATH…`) -> objects.
//!
//! In: files and folders (recursively: `*.yaml`, `*.yml`, `*.json`, in the order of their names; hidden entries are
//! left out), each YAML or JSON, with many documents and with lists. Out: the objects that the agent uses, the kinds
//! that it does not, counted; else an error with file, document, line, field and a remedy.
//! What always holds: of two objects with the same kind and name the last one counts; hostile input (deep nesting,
//! alias bombs, huge files) is an error and never a panic.
//! Which objects are used and when they are valid is deliberately not here: see `decode.rs`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::decode::{Decoded, decode, unreadable};
use crate::config;
use crate::snapshot::{Object, ObjectRef};

/// A file that is larger than this is not read (bytes).
const FILE_LIMIT: u64 = 1 << 30;
/// Nesting of one document (JSON has serde_json's own limit, 128).
const DEPTH_LIMIT: usize = 100;
/// YAML events and nodes of one document: a list of 100,000 pods with all their fields fits.
const NODE_LIMIT: usize = 50_000_000;
/// YAML events that all aliases of a document may stand for: people write a few, bombs millions.
const ALIAS_LIMIT: usize = 50_000;
/// Stack of the thread that parses (bytes): the YAML parser recurses, and at [`DEPTH_LIMIT`] an unoptimized build
/// needs more than the 2 MiB that a thread has by default.
const STACK: usize = 32 << 20;
/// Depth of folders in folders.
const FOLDER_LIMIT: usize = 64;
/// Messages about skipped documents that are kept; beyond it they are only counted.
const MESSAGE_LIMIT: usize = 100;

/// What was read.
#[derive(Debug, Default)]
pub struct Manifests {
    /// In the order in which they were read, each object once.
    pub objects: Vec<Object>,
    /// Configuration objects, in the order in which they were read.
    pub configuration: Vec<config::Resource>,
    /// How many objects there were of each kind that the agent does not use.
    pub unused: BTreeMap<String, u64>,
    /// Not strict: what was wrong with the files and documents that were left out (the first hundred).
    pub skipped: Vec<String>,
    /// Not strict: how many files and documents were left out.
    pub skipped_count: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Exit code 66.
    #[error("{}: no such file or directory: give --cluster a manifest file or a folder of *.yaml, *.yml or *.json files", path.display())]
    NotFound { path: PathBuf },
    /// Exit code 66.
    #[error("{}: cannot be read: {source}: give the agent read access to it, or leave it out of --cluster", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// Exit code 65.
    #[error("{}: {place}: {problem}: correct the document, or take it out of the file", path.display())]
    Malformed {
        path: PathBuf,
        /// Document, line, list item: as far as they are known.
        place: String,
        problem: String,
    },
}

/// All objects of these files and folders. `strict`: the first thing that is wrong is the error; otherwise (in the
/// daemon) it is left out and counted, and only a path that does not exist is an error.
///
/// # Errors
/// See [`ManifestError`].
pub fn load(paths: &[PathBuf], strict: bool) -> Result<Manifests, ManifestError> {
    on_deep_stack(first(paths), || {
        let mut loading = Loading { strict, ..Loading::default() };
        loading.all(paths)?;
        Ok(loading.manifests)
    })
}

/// All objects of these files and folders as they are written, for a recording. The first thing that is wrong is the
/// error.
///
/// # Errors
/// See [`ManifestError`].
pub fn load_as_written(paths: &[PathBuf]) -> Result<Vec<Value>, ManifestError> {
    on_deep_stack(first(paths), || {
        let mut loading = Loading { strict: true, as_read: Some(Vec::new()), ..Loading::default() };
        loading.all(paths)?;
        Ok(loading.as_read.unwrap_or_default())
    })
}

/// All objects of one text that did not come from a file; `name` stands for the file in errors.
///
/// # Errors
/// [`ManifestError::Malformed`].
pub fn parse(name: &Path, text: &str, strict: bool) -> Result<Manifests, ManifestError> {
    on_deep_stack(name, || {
        let mut loading = Loading { strict, ..Loading::default() };
        loading.file(name, text)?;
        Ok(loading.manifests)
    })
}

fn on_deep_stack<T: Send>(
    path: &Path,
    read: impl FnOnce() -> Result<T, ManifestError> + Send,
) -> Result<T, ManifestError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("manifests".to_owned()).stack_size(STACK);
        match thread.spawn_scoped(scope, read).map_err(|source| cannot_read(path, source))?.join() {
            Ok(result) => result,
            // Not ours to swallow: our own bug goes the way of every panic.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// What an error about the thread itself names.
fn first(paths: &[PathBuf]) -> &Path {
    paths.first().map_or(Path::new("-"), PathBuf::as_path)
}

fn cannot_read(path: &Path, source: io::Error) -> ManifestError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ManifestError::NotFound { path },
        _ => ManifestError::Unreadable { path, source },
    }
}

fn is_manifest(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["yaml", "yml", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// The manifests of a folder and the folders in it, sorted. A folder that was seen already (a loop) is left out.
fn list(
    folder: &Path,
    files: &mut Vec<PathBuf>,
    seen: &mut HashSet<PathBuf>,
    depth: usize,
) -> Result<(), ManifestError> {
    let real = fs::canonicalize(folder).map_err(|source| cannot_read(folder, source))?;
    if !seen.insert(real) {
        return Ok(());
    }
    if depth > FOLDER_LIMIT {
        let source = io::Error::other(format!("more than {FOLDER_LIMIT} folders deep"));
        return Err(cannot_read(folder, source));
    }
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| cannot_read(folder, source))? {
        entries.push(entry.map_err(|source| cannot_read(folder, source))?.path());
    }
    entries.sort();
    for path in entries {
        // A mounted ConfigMap keeps its versions in hidden folders and shows the files as links into them.
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        let Ok(meta) = fs::metadata(&path) else {
            if is_manifest(&path) {
                return Err(ManifestError::NotFound { path });
            }
            continue;
        };
        if meta.is_dir() {
            list(&path, files, seen, depth + 1)?;
        } else if is_manifest(&path) {
            files.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, ManifestError> {
    let unreadable = |source| cannot_read(path, source);
    let mut bytes = Vec::new();
    fs::File::open(path)
        .map_err(unreadable)?
        .take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    let malformed = |problem: String| ManifestError::Malformed {
        path: path.to_owned(),
        place: "whole file".to_owned(),
        problem,
    };
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(malformed(format!("is larger than {FILE_LIMIT} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| malformed(format!("is not UTF-8: {error}")))
}

/// Where something was found in a file.
#[derive(Clone, Copy)]
struct Place<'a> {
    path: &'a Path,
    /// Counted from 1; empty documents are not counted.
    document: usize,
    line: Option<u64>,
    /// Index in a list.
    item: Option<usize>,
}

impl Place<'_> {
    fn malformed(self, problem: String) -> ManifestError {
        let mut place = format!("document {}", self.document);
        if let Some(line) = self.line {
            place.push_str(&format!(" (line {line})"));
        }
        if let Some(item) = self.item {
            place.push_str(&format!(", items[{item}]"));
        }
        ManifestError::Malformed { path: self.path.to_owned(), place, problem }
    }
}

#[derive(Default)]
struct Loading {
    strict: bool,
    manifests: Manifests,
    /// Every object as it stands in the files, where it is asked for.
    as_read: Option<Vec<Value>>,
    /// Where each object stands in `manifests.objects`.
    index: HashMap<ObjectRef, usize>,
}

impl Loading {
    fn all(&mut self, paths: &[PathBuf]) -> Result<(), ManifestError> {
        for path in paths {
            let mut files = Vec::new();
            let meta = fs::metadata(path).map_err(|source| cannot_read(path, source))?;
            if meta.is_dir() {
                match list(path, &mut files, &mut HashSet::new(), 0) {
                    Ok(()) => {}
                    Err(error) => self.refuse(error)?,
                }
            } else {
                files.push(path.clone());
            }
            for file in files {
                match read(&file) {
                    Ok(text) => self.file(&file, &text)?,
                    Err(error) => self.refuse(error)?,
                }
            }
        }
        Ok(())
    }

    fn refuse(&mut self, error: ManifestError) -> Result<(), ManifestError> {
        if self.strict {
            return Err(error);
        }
        self.manifests.skipped_count += 1;
        if self.manifests.skipped.len() < MESSAGE_LIMIT {
            self.manifests.skipped.push(error.to_string());
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, text: &str) -> Result<(), ManifestError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let named_json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let looks_json = text.trim_start().starts_with('{');
        // JSON that is not valid may still be YAML's flow style, unless the file says otherwise.
        if named_json || looks_json && self.is_json(text) {
            self.json(path, text)
        } else {
            self.yaml(path, text)
        }
    }

    fn is_json(&self, text: &str) -> bool {
        serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>().all(|one| one.is_ok())
    }

    fn json(&mut self, path: &Path, text: &str) -> Result<(), ManifestError> {
        let mut documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let mut document = 0;
        let mut start = documents.byte_offset();
        let mut line = 1;
        while let Some(read) = documents.next() {
            document += 1;
            // The line on which the document begins: after the white space before it.
            let rest = text.get(start..).unwrap_or_default();
            let blank = rest.len() - rest.trim_start().len();
            line += newlines(rest.get(..blank).unwrap_or_default());
            let place = Place { path, document, line: Some(line), item: None };
            match read {
                Ok(value) => self.document(value, place)?,
                // After a syntax error the rest of the file cannot be read.
                Err(error) => return self.refuse(place.malformed(format!("is not JSON: {error}"))),
            }
            line += newlines(text.get(start + blank..documents.byte_offset()).unwrap_or_default());
            start = documents.byte_offset();
        }
        Ok(())
    }

    fn yaml(&mut self, path: &Path, text: &str) -> Result<(), ManifestError> {
        let mut bytes = text.as_bytes();
        let documents =
            serde_saphyr::read_with_options::<_, serde_saphyr::Spanned<Value>>(&mut bytes, yaml_options());
        for (index, read) in documents.enumerate() {
            let mut place = Place { path, document: index + 1, line: None, item: None };
            match read {
                Ok(spanned) => {
                    place.line = Some(spanned.referenced.line());
                    self.document(spanned.value, place)?;
                }
                Err(error) => {
                    place.line = error.location().map(|location| location.line());
                    let text = error.without_snippet().to_string();
                    let problem = text.lines().next().unwrap_or_default().to_owned();
                    self.refuse(place.malformed(format!("is not YAML: {problem}")))?;
                }
            }
        }
        Ok(())
    }

    /// One document: an object, or a list of them.
    fn document(&mut self, mut value: Value, place: Place<'_>) -> Result<(), ManifestError> {
        let Some(kind) = list_kind(&value) else { return self.object(value, place) };
        let api_version = value.get("apiVersion").cloned();
        let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else { return Ok(()) };
        for (index, mut item) in items.into_iter().enumerate() {
            // The items of a PodList, as the API server writes it, do not say that they are pods.
            if let (Some(kind), Value::Object(item)) = (&kind, &mut item) {
                item.entry("kind").or_insert_with(|| kind.clone().into());
                if let Some(api_version) = &api_version {
                    item.entry("apiVersion").or_insert_with(|| api_version.clone());
                }
            }
            let place = Place { item: Some(index), ..place };
            if list_kind(&item).is_some() {
                self.document(item, place)?;
            } else {
                self.object(item, place)?;
            }
        }
        Ok(())
    }

    fn object(&mut self, value: Value, place: Place<'_>) -> Result<(), ManifestError> {
        if let Some(as_read) = &mut self.as_read {
            as_read.push(value.clone());
        }
        // An error needs the value once more: policies are few and small.
        let kept = (!self.strict).then(|| value.clone());
        match decode(value) {
            Ok(Decoded::Unused { kind }) => {
                *self.manifests.unused.entry(kind).or_insert(0) += 1;
                Ok(())
            }
            Ok(Decoded::Configuration(resource)) => {
                let known = &mut self.manifests.configuration;
                known.retain(|one| one.reference != resource.reference);
                known.push(resource);
                Ok(())
            }
            Ok(Decoded::Object(object)) => {
                self.put(object);
                Ok(())
            }
            Err(error) => {
                if let Some(object) = kept.and_then(|value| unreadable(&value, &error)) {
                    self.put(object);
                }
                self.refuse(place.malformed(error.to_string()))
            }
        }
    }

    fn put(&mut self, object: Object) {
        match self.index.entry(object.reference()) {
            std::collections::hash_map::Entry::Occupied(known) => {
                if let Some(slot) = self.manifests.objects.get_mut(*known.get()) {
                    *slot = object;
                }
            }
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(self.manifests.objects.len());
                self.manifests.objects.push(object);
            }
        }
    }
}

/// Of a list: the kind of its items, where the list says so. `None` of what is no list.
fn list_kind(value: &Value) -> Option<Option<String>> {
    let kind = value.get("kind")?.as_str()?;
    let of = kind.strip_suffix("List")?;
    // An object of a kind that happens to end so has no items beside its kind.
    match value.get("items") {
        Some(Value::Array(_) | Value::Null) => Some((!of.is_empty()).then(|| of.to_owned())),
        None if of.is_empty() => Some(None),
        _ => None,
    }
}

fn newlines(text: &str) -> u64 {
    text.bytes().map(|byte| u64::from(byte == b'\n')).sum()
}

fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        // `yes` and `0755` are strings, as for the API server's own reader of YAML 1.2's core schema.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_LIMIT,
        },
        budget: serde_saphyr::budget! {
            max_recorded_anchor_events: ALIAS_LIMIT,
            max_reader_input_bytes: None,
            max_depth: DEPTH_LIMIT,
            max_nodes: NODE_LIMIT,
            max_events: NODE_LIMIT,
            max_total_scalar_bytes: usize::try_from(FILE_LIMIT).unwrap_or(usize::MAX),
        },
    }
}

#[cfg(test)]
#[path = "manifests_tests.rs"]
mod tests;
