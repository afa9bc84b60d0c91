//! A set of labels, shared by everything that carries it.

use std::sync::Arc;

/// Labels of a pod, host endpoint or network set, sorted by key. Cloning is cheap (one reference count).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    pub fn new(pairs: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().collect();
        pairs.sort();
        pairs.dedup_by(|a, b| a.0 == b.0);
        Self(pairs.into())
    }

    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|i| &self.0[i].1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.0.iter().map(|(k, v)| (k, v))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same set in memory: the fast way to see that an intersection changes nothing.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The other set has all of these, key and value alike.
    pub fn is_within(&self, other: &Self) -> bool {
        if self.same(other) {
            return true;
        }
        let mut others = other.0.iter();
        self.0.iter().all(|pair| others.find(|other| other.0 >= pair.0).is_some_and(|other| other == pair))
    }

    /// What both sets have, key and value alike. Allocates nothing where the other set changes nothing.
    pub fn intersection(&self, other: &Self) -> Self {
        if self.is_within(other) {
            return self.clone();
        }
        let common: Vec<_> =
            self.0.iter().filter(|pair| other.0.binary_search(pair).is_ok()).cloned().collect();
        Self(common.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels() -> impl Strategy<Value = Labels> {
        prop::collection::btree_map("[a-d]", "[xy]", 0..4)
            .prop_map(|pairs| Labels::new(pairs.into_iter().map(|(k, v)| (k.into(), v.into()))))
    }

    proptest! {
        #[test]
        fn an_intersection_is_what_both_have(a in labels(), b in labels()) {
            let both = Labels::new(a.iter().filter(|(k, v)| b.get(k) == Some(v)).map(|(k, v)| (k.clone(), v.clone())));
            prop_assert_eq!(a.is_within(&b), both == a);
            prop_assert_eq!(a.intersection(&b), both);
        }
    }
}
