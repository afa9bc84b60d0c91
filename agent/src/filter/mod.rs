//! The filter language: which flow logs are meant.
//!
//! In: text such as `namespace=shop port=443,8000-8999 not (action=allow or dst.domain=*.example.com)`. Out: a
//! [`Filter`], and whether a record satisfies it. Terms side by side are both needed, values with commas between are
//! alternatives, `or`, `not` (or `!`, `field!=value`) and parentheses combine. `*` in a name stands for anything.
//! A field of an end means either end; `src.` and `dst.` before it mean one of them.
//! Always: a filter sees what the line would say, no more (what the aggregation level or the configuration took out
//! matches nothing); what is absent matches no value, so its negation does; what is printed parses to the same
//! filter; parsing and matching are bounded in time and depth, whatever the text.
//! `observe`, its flags and the agent's own rules (`flowLogsFilters`) all use this one language.
//! Not here: lines of JSON (`wire`), flags (`cli`).

mod field;
mod parse;
mod record;
mod rule;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::model::FlowSide;

pub use field::{Field, Glob, Pattern};
pub use parse::{MOST_TERMS, ParseError};
pub use record::{EndView, PolicyView, ServiceView, Subject, policy_of_line};
pub use rule::{Rule, RuleAction, Rules};

/// Which records are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// The empty text: all of them.
    #[default]
    Any,
    Term(Term),
    Not(Box<Filter>),
    /// Two or more.
    All(Vec<Filter>),
    /// Two or more.
    Either(Vec<Filter>),
}

/// One field, and the values that it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    pub field: Field,
    /// `None`: either end, or a field that belongs to no end.
    pub side: Option<FlowSide>,
    pub values: Vec<Pattern>,
}

impl Filter {
    pub fn matches(&self, record: &impl Subject) -> bool {
        match self {
            Self::Any => true,
            Self::Term(term) => term.values.iter().any(|value| value.matches(term.side, record)),
            Self::Not(inner) => !inner.matches(record),
            Self::All(all) => all.iter().all(|one| one.matches(record)),
            Self::Either(any) => any.iter().any(|one| one.matches(record)),
        }
    }

    /// Both are needed.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Any, one) | (one, Self::Any) => one,
            (Self::All(mut all), Self::All(more)) => {
                all.extend(more);
                Self::All(all)
            }
            (Self::All(mut all), one) => {
                all.push(one);
                Self::All(all)
            }
            (one, Self::All(mut all)) => {
                all.insert(0, one);
                Self::All(all)
            }
            (one, other) => Self::All(vec![one, other]),
        }
    }

    fn is_compound(&self) -> bool {
        matches!(self, Self::All(_) | Self::Either(_))
    }
}

/// As it can be read again.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |f: &mut fmt::Formatter<'_>, one: &Self| {
            if one.is_compound() { write!(f, "({one})") } else { write!(f, "{one}") }
        };
        let (parts, between) = match self {
            Self::Any => return Ok(()),
            Self::Term(term) => return write!(f, "{term}"),
            Self::Not(inner) => {
                f.write_str("not ")?;
                return part(f, inner);
            }
            Self::All(parts) => (parts, " "),
            Self::Either(parts) => (parts, " or "),
        };
        for (n, one) in parts.iter().enumerate() {
            if n > 0 {
                f.write_str(between)?;
            }
            part(f, one)?;
        }
        Ok(())
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Some(FlowSide::Src) => f.write_str("src.")?,
            Some(FlowSide::Dst) => f.write_str("dst.")?,
            None => {}
        }
        write!(f, "{}=", self.field.name())?;
        for (n, value) in self.values.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            parse::write_value(f, &value.to_string())?;
        }
        Ok(())
    }
}
