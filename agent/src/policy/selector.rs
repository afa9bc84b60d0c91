//! Label selectors in Calico's language: the tree, and whether a set of labels satisfies it.
//!
//! In: a tree that the parser or a compiler built. Out: true or false for any [`Lookup`] of labels.
//! What always holds: a missing label makes `==`, `in`, `contains`, `starts with`, `ends with` and `has` false, `!=` and
//! `not in` true (Calico: libcalico-go/lib/selector/parser/ast.go).

use std::sync::Arc;

/// A label's value by its key: effective labels come in layers (own, namespace's, service account's).
pub trait Lookup {
    fn label(&self, key: &str) -> Option<&str>;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// `all()`, and the empty selector.
    All,
    /// `global()`: true of everything here, as in Calico's matcher.
    Global,
    Has(Arc<str>),
    Equals(Arc<str>, Arc<str>),
    NotEquals(Arc<str>, Arc<str>),
    /// Sorted, without doubles; may be empty (nothing is in it).
    In(Arc<str>, Arc<[Arc<str>]>),
    NotIn(Arc<str>, Arc<[Arc<str>]>),
    Contains(Arc<str>, Arc<str>),
    StartsWith(Arc<str>, Arc<str>),
    EndsWith(Arc<str>, Arc<str>),
    Not(Arc<Selector>),
    And(Arc<[Selector]>),
    Or(Arc<[Selector]>),
}

impl Selector {
    pub fn matches(&self, labels: &impl Lookup) -> bool {
        match self {
            Self::All | Self::Global => true,
            Self::Has(key) => labels.label(key).is_some(),
            Self::Equals(key, value) => labels.label(key) == Some(value),
            Self::NotEquals(key, value) => labels.label(key) != Some(value),
            Self::In(key, values) => {
                labels.label(key).is_some_and(|label| values.iter().any(|value| **value == *label))
            }
            Self::NotIn(key, values) => {
                labels.label(key).is_none_or(|label| values.iter().all(|value| **value != *label))
            }
            Self::Contains(key, part) => labels.label(key).is_some_and(|label| label.contains(&**part)),
            Self::StartsWith(key, part) => labels.label(key).is_some_and(|label| label.starts_with(&**part)),
            Self::EndsWith(key, part) => labels.label(key).is_some_and(|label| label.ends_with(&**part)),
            Self::Not(inner) => !inner.matches(labels),
            Self::And(all) => all.iter().all(|one| one.matches(labels)),
            Self::Or(any) => any.iter().any(|one| one.matches(labels)),
        }
    }
}
