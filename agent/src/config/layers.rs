//! All layers of one agent, as they change while it runs.
//!
//! In: the layers of the start (file, environment, flags), then configuration objects of the cluster and new contents
//! of the file. Out: the resolved configuration and what is wrong with the layers, whenever it is asked for.
//! Always: the result depends on the layers that there are, not on the order in which they came, with one exception:
//! where a later content of the file spoils a field, the file's last good value of it holds. (Of an object of the
//! cluster the next lower layer's value holds: agents that start anew must find the same as those that run.)
//! Pure. Not here: reading files, watching the cluster, what acts when (`app`).

use std::collections::BTreeMap;

use super::resolve::{BadValue, Layer, RawEntry, RawLayer, Resolved, resolve};
use super::resource::{Resource, ResourceRef};

#[derive(Clone, Debug)]
pub struct Layers {
    node: String,
    /// File, environment, flags.
    given: Vec<RawLayer>,
    /// Entries of the file's earlier contents that hold because the present one spoils their field.
    last_good: Vec<RawEntry>,
    resources: BTreeMap<Layer, Resource>,
}

impl Layers {
    /// `node` tells which `node.<name>` objects are layers here.
    pub fn new(node: &str, given: Vec<RawLayer>) -> Self {
        Self { node: node.to_owned(), given, last_good: Vec::new(), resources: BTreeMap::new() }
    }

    /// False: it is no layer of this node, or says what it said before.
    pub fn apply(&mut self, resource: Resource) -> bool {
        let Some(layer) = resource.reference.layer(&self.node) else { return false };
        let says_the_same = self.resources.get(&layer).is_some_and(|known| known.spec == resource.spec);
        self.resources.insert(layer, resource);
        !says_the_same
    }

    /// False: there was no such layer.
    pub fn delete(&mut self, reference: &ResourceRef) -> bool {
        reference.layer(&self.node).is_some_and(|layer| self.resources.remove(&layer).is_some())
    }

    /// The file's content is another one now.
    pub fn replace_file(&mut self, file: RawLayer) {
        let spoilt: Vec<String> = resolve(vec![file.clone()])
            .1
            .into_iter()
            .filter(|bad| !bad.unknown_field)
            .map(|bad| bad.field)
            .collect();
        let before = self.given.iter().find(|layer| layer.layer == Layer::File);
        let known = self.last_good.iter().chain(before.into_iter().flat_map(|layer| &layer.entries));
        let mut last_good: Vec<RawEntry> = Vec::new();
        for entry in known.filter(|entry| spoilt.contains(&entry.field)) {
            let alone = RawLayer { layer: Layer::File, entries: vec![entry.clone()] };
            if resolve(vec![alone]).1.is_empty() {
                last_good.retain(|older| older.field != entry.field);
                last_good.push(entry.clone());
            }
        }
        self.last_good = last_good;
        self.given.retain(|layer| layer.layer != Layer::File);
        self.given.push(file);
    }

    /// The object that is this layer.
    pub fn resource(&self, layer: Layer) -> Option<&Resource> {
        self.resources.get(&layer)
    }

    pub fn resolve(&self) -> (Resolved, Vec<BadValue>) {
        let mut layers = self.given.clone();
        for layer in layers.iter_mut().filter(|layer| layer.layer == Layer::File) {
            // Before the present ones: within a layer the last good entry wins.
            layer.entries.splice(0..0, self.last_good.iter().cloned());
        }
        layers.extend(self.resources.iter().map(|(layer, resource)| resource.raw_layer(*layer)));
        resolve(layers)
    }
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
