//! What many pods have in common, in memory once.
//!
//! In: texts, label sets and port lists of pods as they are applied. Out: the same, in the memory that other pods use for
//! theirs: 100,000 pods of 5,000 workloads have 5,000 label sets, and comparing two of them is cheap.
//! What always holds: what is handed out is equal to what came in; what no pod uses any more is forgotten in the end.

use std::sync::Arc;

use super::{Map, NamedPort};
use crate::model::{Endpoint, Labels};

/// Texts and lists that are kept beyond what pods need.
const MORE: usize = 64;

#[derive(Clone, Default)]
pub(super) struct Shared {
    texts: Map<Arc<str>, ()>,
    labels: Map<Labels, ()>,
    ports: Map<Arc<[NamedPort]>, ()>,
}

impl Shared {
    pub fn text(&mut self, text: Arc<str>) -> Arc<str> {
        known(&mut self.texts, text)
    }

    pub fn labels(&mut self, labels: Labels) -> Labels {
        known(&mut self.labels, labels)
    }

    pub fn ports(&mut self, ports: Vec<NamedPort>) -> Arc<[NamedPort]> {
        known(&mut self.ports, ports.into())
    }

    /// Far more than that many pods can need: see [`Shared::of`].
    pub fn is_beyond(&self, pods: usize) -> bool {
        let most = 2 * pods + MORE;
        self.labels.len() > most || self.texts.len() > 2 * most || self.ports.len() > most
    }

    /// What these endpoints use.
    pub fn of<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Self {
        let mut shared = Self::default();
        for endpoint in endpoints {
            let texts = [&endpoint.namespace, &endpoint.node, &endpoint.policed.service_account];
            for text in texts.into_iter().flatten().chain([&endpoint.name_aggr]) {
                shared.texts.insert(text.clone(), ());
            }
            shared.labels.insert(endpoint.labels.clone(), ());
            shared.ports.insert(endpoint.policed.ports.clone(), ());
        }
        shared
    }

    #[cfg(test)]
    pub fn label_sets(&self) -> usize {
        self.labels.len()
    }
}

fn known<T: Clone + Eq + std::hash::Hash>(map: &mut Map<T, ()>, value: T) -> T {
    if let Some((known, ())) = map.get_key_value(&value) {
        return known.clone();
    }
    map.insert(value.clone(), ());
    value
}
