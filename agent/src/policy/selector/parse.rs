//! Calico's selector language -> the tree.
//!
//! In: text as users write it. Out: a [`Selector`], or where the text stops being one and what could stand there.
//! What always holds: only space and tab are white space; word operators are recognised after a label and nowhere
//! else, so that `in`, `has` or `all` can be labels; `has(`, `all(` and `global(` have no space before the bracket;
//! strings have no escapes; nesting and length are bounded, so that hostile text costs neither stack nor time.
//! Grammar: Calico's libcalico-go/lib/selector (tokenizer.go, parser.go), which this follows sentence by sentence.

use std::sync::Arc;

use winnow::combinator::{alt, cut_err, delimited, fail, opt, preceded, repeat, separated, terminated};
use winnow::error::{ContextError, ErrMode, StrContext, StrContextValue};
use winnow::token::{take_till, take_while};
use winnow::{ModalResult, Parser};

use super::Selector;

/// Bytes of a selector. Calico's API allows 1,024.
pub const LENGTH_LIMIT: usize = 1 << 16;
/// Brackets inside brackets.
pub const DEPTH_LIMIT: usize = 100;
/// Bytes of a label's name.
const LABEL_LIMIT: usize = 512;

/// Where a text stops being a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a selector: at {at}: {problem}")]
pub struct SelectorError {
    /// The selector, shortened.
    text: String,
    /// Counted in bytes from 0.
    pub at: usize,
    problem: String,
}

/// The empty text, and white space alone, select all.
///
/// # Errors
/// See [`SelectorError`].
pub fn parse(text: &str) -> Result<Selector, SelectorError> {
    let shortened = || {
        let mut shortened: String = text.chars().take(200).collect();
        if shortened.len() < text.len() {
            shortened.push('…');
        }
        shortened
    };
    if text.len() > LENGTH_LIMIT {
        let problem = format!("is longer than {LENGTH_LIMIT} bytes");
        return Err(SelectorError { text: shortened(), at: LENGTH_LIMIT, problem });
    }
    whole.parse(text).map_err(|error| {
        let expected = error.inner().to_string();
        let problem = if expected.is_empty() { "unexpected text".to_owned() } else { expected };
        SelectorError { text: shortened(), at: error.offset(), problem }
    })
}

type Input<'a> = &'a str;

fn expected(what: &'static str) -> StrContext {
    StrContext::Expected(StrContextValue::Description(what))
}

fn ws(input: &mut Input<'_>) -> ModalResult<()> {
    take_while(0.., [' ', '\t']).void().parse_next(input)
}

/// The parser, with the white space after it.
fn lexeme<'a, T>(
    parser: impl Parser<Input<'a>, T, ErrMode<ContextError>>,
) -> impl Parser<Input<'a>, T, ErrMode<ContextError>> {
    terminated(parser, ws)
}

fn whole(input: &mut Input<'_>) -> ModalResult<Selector> {
    ws.parse_next(input)?;
    if input.is_empty() {
        return Ok(Selector::All);
    }
    any_of(input, 0)
}

/// One or more, with `||` between them: lowest precedence.
fn any_of(input: &mut Input<'_>, depth: usize) -> ModalResult<Selector> {
    let mut terms = vec![all_of(input, depth)?];
    while opt(lexeme("||")).parse_next(input)?.is_some() {
        terms.push(all_of(input, depth)?);
    }
    Ok(Selector::any(terms))
}

fn all_of(input: &mut Input<'_>, depth: usize) -> ModalResult<Selector> {
    let mut terms = vec![term(input, depth)?];
    while opt(lexeme("&&")).parse_next(input)?.is_some() {
        terms.push(term(input, depth)?);
    }
    Ok(Selector::all(terms))
}

/// `!` binds to one operation; an even number of them cancels out.
fn term(input: &mut Input<'_>, depth: usize) -> ModalResult<Selector> {
    let nots: usize =
        repeat(0.., lexeme('!')).fold(|| 0_usize, |count, _| count.wrapping_add(1)).parse_next(input)?;
    let operation = operation(input, depth)?;
    Ok(if nots % 2 == 1 { Selector::Not(Arc::new(operation)) } else { operation })
}

fn operation(input: &mut Input<'_>, depth: usize) -> ModalResult<Selector> {
    if let Some(inner) = input.strip_prefix('(') {
        if depth >= DEPTH_LIMIT {
            return cut_err(fail.context(expected("no more than 100 brackets inside brackets")))
                .parse_next(input);
        }
        *input = inner;
        ws.parse_next(input)?;
        let nested = any_of(input, depth + 1)?;
        lexeme(cut_err(')'.context(expected("`)`, `&&` or `||`")))).parse_next(input)?;
        return Ok(nested);
    }
    alt((
        call("has(", label).map(Selector::Has),
        call("all(", ()).value(Selector::All),
        call("global(", ()).value(Selector::Global),
        comparison,
    ))
    .context(expected("a label, `has(`, `all()`, `global()` or `(`"))
    .parse_next(input)
}

/// `name(` was read as one word: what follows is its argument.
fn call<'a, T>(
    name: &'static str,
    argument: impl Parser<Input<'a>, T, ErrMode<ContextError>>,
) -> impl Parser<Input<'a>, T, ErrMode<ContextError>> {
    let close = ')'.context(expected("`)`"));
    lexeme(preceded(name, cut_err(delimited(ws, lexeme(argument), close))))
}

fn label(input: &mut Input<'_>) -> ModalResult<Arc<str>> {
    let is_label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    take_while(1.., is_label)
        .verify(|label: &str| label.len() <= LABEL_LIMIT)
        .map(Arc::from)
        .context(expected("a label of letters, digits and `_ . / -`, 512 bytes at most"))
        .parse_next(input)
}

#[derive(Clone, Copy)]
enum Word {
    Equals,
    NotEquals,
    Contains,
    StartsWith,
    EndsWith,
    In,
    NotIn,
}

fn comparison(input: &mut Input<'_>) -> ModalResult<Selector> {
    let key = lexeme(label).parse_next(input)?;
    let word = alt((
        "==".value(Word::Equals),
        "!=".value(Word::NotEquals),
        "contains".value(Word::Contains),
        ("starts", ws, "with").value(Word::StartsWith),
        ("ends", ws, "with").value(Word::EndsWith),
        ("not", ws, "in").value(Word::NotIn),
        "in".value(Word::In),
    ));
    let operator = expected("`==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`");
    let word = lexeme(cut_err(word.context(operator))).parse_next(input)?;
    Ok(match word {
        Word::In => Selector::is_in(key, set(input)?),
        Word::NotIn => Selector::is_not_in(key, set(input)?),
        Word::Equals => Selector::Equals(key, value(input)?),
        Word::NotEquals => Selector::NotEquals(key, value(input)?),
        Word::Contains => Selector::Contains(key, value(input)?),
        Word::StartsWith => Selector::StartsWith(key, value(input)?),
        Word::EndsWith => Selector::EndsWith(key, value(input)?),
    })
}

fn value(input: &mut Input<'_>) -> ModalResult<Arc<str>> {
    lexeme(cut_err(string)).parse_next(input)
}

fn string(input: &mut Input<'_>) -> ModalResult<Arc<str>> {
    let quoted = |quote: char| delimited(quote, take_till(0.., quote), quote);
    alt((quoted('\''), quoted('"'))).map(Arc::from).context(expected("a string in quotes")).parse_next(input)
}

/// May be empty, may end with a comma.
fn set(input: &mut Input<'_>) -> ModalResult<Vec<Arc<str>>> {
    let open = lexeme('{'.context(expected("a set such as {'a', 'b'}")));
    let close = lexeme('}'.context(expected("`,` or `}`")));
    let some = terminated(separated(1.., lexeme(string), lexeme(',')), opt(lexeme(',')));
    cut_err(delimited(open, opt(some).map(Option::unwrap_or_default), close)).parse_next(input)
}
