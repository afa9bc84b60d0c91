//! Text becomes a filter.
//!
//! ```text
//! filter = both { "or" both }        both = part { ["and"] part }
//! part   = ("not" | "!") part | "(" filter ")" | term
//! term   = ["src." | "dst."] field ("=" | ":" | "!=") value { "," value }
//! value  = text without spaces, commas, parentheses and quotes, or "text with \\" and \\\\ escaped"
//! ```
//! By hand, though parsers are there: a grammar of four rules whose errors must name the column, and what may stand
//! there. Always: an error for what is too long, too deep or has too many terms; never a panic.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::model::FlowSide;

use super::{Field, Filter, Pattern, Term};

/// Bytes of a filter's text.
const LONGEST: usize = 16 << 10;

/// Parentheses and negations inside each other.
const DEEPEST: usize = 32;

/// Values of all terms.
pub const MOST_TERMS: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("filter, column {column}: {message}")]
pub struct ParseError {
    /// Of characters, from 1.
    pub column: usize,
    pub message: String,
}

impl FromStr for Filter {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser { text, at: 0, depth: 0, terms: 0 };
        if text.len() > LONGEST {
            return Err(parser.error(format!("longer than {LONGEST} bytes")));
        }
        parser.skip_spaces();
        if parser.rest().is_empty() {
            return Ok(Self::Any);
        }
        let filter = parser.filter()?;
        match parser.rest().chars().next() {
            None => Ok(filter),
            Some(')') => Err(parser.error("a parenthesis is closed that was not opened".into())),
            Some(c) => Err(parser.error(format!("{c:?} is not expected here"))),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Byte, always between characters.
    at: usize,
    depth: usize,
    terms: usize,
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '.'
}

/// May stand in a value without quotes.
fn is_plain(c: char) -> bool {
    !c.is_whitespace() && !c.is_control() && !",()\"".contains(c)
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn error(&self, message: String) -> ParseError {
        let before = self.text.get(..self.at).unwrap_or_default();
        ParseError { column: before.chars().count() + 1, message }
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, text: &str) -> bool {
        let is = self.rest().starts_with(text);
        if is {
            self.at += text.len();
        }
        is
    }

    fn take_while(&mut self, test: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !test(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// A word of the language: not the name of a field.
    fn take_keyword(&mut self, keyword: &str) -> bool {
        let rest = self.rest();
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let word = rest.get(..end).unwrap_or_default();
        if !word.eq_ignore_ascii_case(keyword) {
            return false;
        }
        self.at += end;
        self.skip_spaces();
        true
    }

    fn filter(&mut self) -> Result<Filter, ParseError> {
        let mut any = vec![self.both()?];
        while self.take_keyword("or") {
            any.push(self.both()?);
        }
        Ok(if any.len() == 1 { any.remove(0) } else { Filter::Either(any) })
    }

    fn both(&mut self) -> Result<Filter, ParseError> {
        let mut all = vec![self.part()?];
        loop {
            let after_and = self.take_keyword("and");
            let ends = {
                let mut ahead = Self { ..*self };
                ahead.rest().is_empty() || ahead.rest().starts_with(')') || ahead.take_keyword("or")
            };
            if ends && !after_and {
                break;
            }
            all.push(self.part()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Filter::All(all) })
    }

    fn part(&mut self) -> Result<Filter, ParseError> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(
                self.error(format!("more than {DEEPEST} parentheses and negations inside each other"))
            );
        }
        let part = if self.take("!") {
            self.skip_spaces();
            Filter::Not(Box::new(self.part()?))
        } else if self.take_keyword("not") {
            Filter::Not(Box::new(self.part()?))
        } else if self.take("(") {
            self.skip_spaces();
            let inner = self.filter()?;
            if !self.take(")") {
                return Err(self.error("a closing parenthesis is missing".into()));
            }
            self.skip_spaces();
            inner
        } else {
            self.term()?
        };
        self.depth -= 1;
        Ok(part)
    }

    fn term(&mut self) -> Result<Filter, ParseError> {
        let start = self.at;
        let word = self.take_while(is_word);
        let (side, name) = match word.split_once('.') {
            Some(("src" | "source", name)) => (Some(FlowSide::Src), name),
            Some(("dst" | "dest", name)) => (Some(FlowSide::Dst), name),
            _ => (None, word),
        };
        let Some(field) = Field::by_name(name) else {
            self.at = start;
            let names: Vec<&str> = Field::ALL.iter().map(|field| field.name()).collect();
            let found = if word.is_empty() { "nothing of that kind".to_owned() } else { format!("{word:?}") };
            return Err(self.error(format!(
                "expected is FIELD=VALUE with one of the fields {}; found is {found}",
                names.join(", ")
            )));
        };
        if side.is_some() && !field.is_of_end() {
            self.at = start;
            return Err(self.error(format!("{name} belongs to no end: leave src. or dst. out")));
        }
        let negated = if self.take("!=") {
            true
        } else if self.take("=") || self.take(":") {
            false
        } else {
            return Err(self.error(format!("after {word}, =, != or : is missing")));
        };
        let mut values = Vec::new();
        loop {
            self.terms += 1;
            if self.terms > MOST_TERMS {
                return Err(self.error(format!("more than {MOST_TERMS} values")));
            }
            let at = self.at;
            let text = self.value()?;
            let value = Pattern::parse(field, &text).map_err(|message| {
                self.at = at;
                self.error(format!("{name}: {message}"))
            })?;
            values.push(value);
            if !self.take(",") {
                break;
            }
        }
        self.skip_spaces();
        let term = Filter::Term(Term { field, side, values });
        Ok(if negated { Filter::Not(Box::new(term)) } else { term })
    }

    fn value(&mut self) -> Result<String, ParseError> {
        if !self.take("\"") {
            return Ok(self.take_while(is_plain).to_owned());
        }
        let start = self.at;
        let mut text = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += at + 1;
                    return Ok(text);
                }
                '\\' => match chars.next() {
                    Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                    _ => {
                        self.at += at;
                        return Err(
                            self.error("a backslash stands only before a quote or a backslash".into())
                        );
                    }
                },
                c => text.push(c),
            }
        }
        self.at = start;
        Err(self.error("a closing quote is missing".into()))
    }
}

/// In quotes where it must be.
pub(super) fn write_value(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    if !text.is_empty() && text.chars().all(is_plain) {
        return f.write_str(text);
    }
    f.write_str("\"")?;
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            f.write_str("\\")?;
        }
        write!(f, "{c}")?;
    }
    f.write_str("\"")
}
