//! Label selectors in Calico's language: the tree, and whether a set of labels satisfies it.
//!
//! In: a tree that the parser or a compiler built. Out: true or false for any [`Lookup`] of labels.
//! What always holds: a missing label makes `==`, `in`, `contains`, `starts with`, `ends with` and `has` false, `!=` and
//! `not in` true (Calico: libcalico-go/lib/selector/parser/ast.go). The tree's depth is bounded by the parser's limit
//! and what compilers put around it, so that walking and dropping it may recurse.

mod parse;

use std::fmt;
use std::sync::Arc;

pub use parse::{SelectorError, parse};

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
    /// All of these. One alone stands for itself.
    pub fn all(mut terms: Vec<Self>) -> Self {
        match terms.pop() {
            None => Self::All,
            Some(only) if terms.is_empty() => only,
            Some(last) => {
                terms.push(last);
                Self::And(terms.into())
            }
        }
    }

    /// Any of these (at least one). One alone stands for itself.
    pub fn any(mut terms: Vec<Self>) -> Self {
        match terms.pop() {
            None => Self::Not(Arc::new(Self::All)),
            Some(only) if terms.is_empty() => only,
            Some(last) => {
                terms.push(last);
                Self::Or(terms.into())
            }
        }
    }

    pub fn is_in(key: Arc<str>, mut values: Vec<Arc<str>>) -> Self {
        values.sort();
        values.dedup();
        Self::In(key, values.into())
    }

    pub fn is_not_in(key: Arc<str>, mut values: Vec<Arc<str>>) -> Self {
        values.sort();
        values.dedup();
        Self::NotIn(key, values.into())
    }

    /// The same tree with each leaf as `change` makes it.
    pub fn map_leaves(&self, change: &impl Fn(&Self) -> Self) -> Self {
        let each = |terms: &[Self]| terms.iter().map(|term| term.map_leaves(change)).collect();
        match self {
            Self::Not(inner) => Self::Not(Arc::new(inner.map_leaves(change))),
            Self::And(terms) => Self::And(each(terms)),
            Self::Or(terms) => Self::Or(each(terms)),
            leaf => change(leaf),
        }
    }

    /// The same question of the labels whose names begin with `prefix`.
    pub fn with_prefix(&self, prefix: &str) -> Self {
        let p = |key: &Arc<str>| -> Arc<str> { format!("{prefix}{key}").into() };
        self.map_leaves(&|leaf| match leaf.clone() {
            Self::Has(key) => Self::Has(p(&key)),
            Self::Equals(key, value) => Self::Equals(p(&key), value),
            Self::NotEquals(key, value) => Self::NotEquals(p(&key), value),
            Self::In(key, values) => Self::In(p(&key), values),
            Self::NotIn(key, values) => Self::NotIn(p(&key), values),
            Self::Contains(key, part) => Self::Contains(p(&key), part),
            Self::StartsWith(key, part) => Self::StartsWith(p(&key), part),
            Self::EndsWith(key, part) => Self::EndsWith(p(&key), part),
            other @ (Self::All | Self::Global | Self::Not(_) | Self::And(_) | Self::Or(_)) => other,
        })
    }

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

/// A string in the language. There are no escapes: what holds both kinds of quotes cannot be written, and only
/// compilers can make such a value.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

/// As Calico prints it: a conjunction or disjunction stands in brackets.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn joined(f: &mut fmt::Formatter<'_>, terms: &[Selector], by: &str) -> fmt::Result {
            f.write_str("(")?;
            for (index, term) in terms.iter().enumerate() {
                let before = if index == 0 { "" } else { by };
                write!(f, "{before}{term}")?;
            }
            f.write_str(")")
        }
        fn set(f: &mut fmt::Formatter<'_>, key: &str, word: &str, values: &[Arc<str>]) -> fmt::Result {
            write!(f, "{key} {word} {{")?;
            for (index, value) in values.iter().enumerate() {
                let before = if index == 0 { "" } else { ", " };
                write!(f, "{before}{}", Quoted(value))?;
            }
            f.write_str("}")
        }
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(key) => write!(f, "has({key})"),
            Self::Equals(key, value) => write!(f, "{key} == {}", Quoted(value)),
            Self::NotEquals(key, value) => write!(f, "{key} != {}", Quoted(value)),
            Self::In(key, values) => set(f, key, "in", values),
            Self::NotIn(key, values) => set(f, key, "not in", values),
            Self::Contains(key, part) => write!(f, "{key} contains {}", Quoted(part)),
            Self::StartsWith(key, part) => write!(f, "{key} starts with {}", Quoted(part)),
            Self::EndsWith(key, part) => write!(f, "{key} ends with {}", Quoted(part)),
            Self::Not(inner) => write!(f, "!{inner}"),
            Self::And(terms) => joined(f, terms, " && "),
            Self::Or(terms) => joined(f, terms, " || "),
        }
    }
}

#[cfg(test)]
mod tests;
