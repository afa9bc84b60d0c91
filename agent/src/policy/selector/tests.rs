use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Map = BTreeMap<String, String>;

impl Lookup for Map {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

fn labels(text: &str) -> Map {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn matches(selector: &str, of: &str) -> bool {
    parse(selector).unwrap().matches(&labels(of))
}

fn error(selector: &str) -> SelectorError {
    parse(selector).expect_err(selector)
}

#[test]
fn every_operator_says_what_calico_says_of_present_and_missing_labels() {
    for (selector, present, missing) in [
        ("a == 'x1y'", true, false),
        ("a == 'other'", false, false),
        ("a != 'x1y'", false, true),
        ("a != 'other'", true, true),
        ("a in {'z', 'x1y'}", true, false),
        ("a in {}", false, false),
        ("a not in {'z', 'x1y'}", false, true),
        ("a not in {}", true, true),
        ("a contains '1'", true, false),
        ("a contains ''", true, false),
        ("a starts with 'x'", true, false),
        ("a starts with 'y'", false, false),
        ("a ends with 'y'", true, false),
        ("a ends with 'x'", false, false),
        ("has(a)", true, false),
        ("!has(a)", false, true),
        ("all()", true, true),
        ("global()", true, true),
        ("", true, true),
        (" \t", true, true),
    ] {
        assert_eq!(matches(selector, "a=x1y"), present, "{selector} of a=x1y");
        assert_eq!(matches(selector, "b=c"), missing, "{selector} without a");
    }
}

#[test]
fn and_binds_tighter_than_or_and_not_binds_tightest() {
    assert!(matches("has(a) || has(b) && has(c)", "a=1"));
    assert!(!matches("(has(a) || has(b)) && has(c)", "a=1"));
    assert!(!matches("!has(a) && has(b)", "a=1 b=1"));
    assert!(matches("!(has(a) && has(b))", "a=1"));
    assert!(matches("! ! \t!has(a)", "b=1"));
    assert!(matches("!!has(a)", "a=1"));
    assert_eq!(parse("!!has(a)"), parse("has(a)"));
}

#[test]
fn words_of_the_language_are_labels_where_a_label_may_stand() {
    for label in ["in", "has", "all", "global", "contains", "not", "starts", "-x", "9", "a.b/c-d_e", "not-in"]
    {
        assert!(matches(&format!("{label} == 'v'"), &format!("{label}=v")), "{label}");
        assert!(matches(&format!("{label} in{{'v'}}"), &format!("{label}=v")), "{label}");
    }
    for spaced in ["has( a )", "has(\ta)", "all( )", "global(\t)", "a==\"x\"", "a=='x'&&a=='x'||a=='x'"] {
        parse(spaced).unwrap();
    }
    for together in ["a startswith 'x'", "a starts \t with 'x'", "a endswith'x'", "a contains'x'"] {
        assert!(matches(together, "a=x"), "{together}");
    }
    assert!(matches("a notin {'y'}", "a=x"));
    assert!(matches("a not \t in {'y',}", "a=x"));
}

#[test]
fn strings_have_no_escapes_and_may_hold_anything_but_their_quote() {
    assert!(matches("a == \"it's\"", "a=it's"));
    assert!(matches(r"a == 'b\n'", r"a=b\n"));
    assert!(parse("a == 'new\nline \u{1f980}'").is_ok());
    assert!(parse("a == ''").is_ok());
    assert!(parse("a == '\\''").is_err());
}

#[test]
fn what_is_no_selector_is_an_error_that_says_where() {
    for (selector, at) in [
        ("a", 1),
        ("a =", 2),
        ("a = 'b'", 2),
        ("a == b", 5),
        ("a == 'b", 5),
        ("a == 'b' & c == 'd'", 9),
        ("a == 'b' | c == 'd'", 9),
        ("a == 'b' &&", 11),
        ("a == 'b' c == 'd'", 9),
        ("a inx {'b'}", 4),
        ("a in 'b'", 5),
        ("a in {'b' 'c'}", 10),
        ("a in {,}", 6),
        ("a in {'b',,}", 10),
        ("has (a)", 4),
        ("all ()", 4),
        ("has()", 4),
        ("has(a", 5),
        ("all(x)", 4),
        ("a ==\n'b'", 4),
        ("\na == 'b'", 0),
        ("(has(a)", 7),
        ("has(a))", 6),
        ("()", 1),
        ("!", 1),
        ("a ! = 'b'", 2),
        ("ä == 'b'", 0),
        ("a starts 'b'", 2),
        ("a not has(b)", 2),
    ] {
        assert_eq!(error(selector).at, at, "{selector}: {}", error(selector));
    }
    let shown = error("app = 'x'").to_string();
    assert!(shown.starts_with("\"app = 'x'\" is not a selector: at 4: expected `==`"), "{shown}");
}

#[test]
fn labels_are_at_most_512_bytes() {
    assert!(parse(&format!("has({})", "a".repeat(512))).is_ok());
    assert!(parse(&format!("has({})", "a".repeat(513))).is_err());
    assert!(parse(&format!("{} == 'b'", "a".repeat(513))).is_err());
}

/// On a thread with a small stack, as tokio's and the tests' are.
#[test]
fn hostile_text_costs_neither_stack_nor_panic() {
    let small = std::thread::Builder::new().stack_size(1 << 20);
    let run = || {
        let deepest = format!("{}has(a){}", "!(has(b) || ".repeat(100), ")".repeat(100));
        let selector = parse(&deepest).unwrap();
        assert!(selector.matches(&labels("a=1")));
        let prefixed = selector.with_prefix("pcns.");
        assert_eq!(parse(&prefixed.to_string()).unwrap(), prefixed);
        for text in [
            "(".repeat(60_000),
            "!(".repeat(30_000),
            format!("{}has(a){}", "(".repeat(101), ")".repeat(101)),
            "!".repeat(60_000),
            "a in {".repeat(10_000),
            format!("a in {{{}", "'x',".repeat(15_000)),
            "has(a) && ".repeat(6_000),
            "x".repeat(1 << 20),
            "\u{0}".to_owned(),
        ] {
            error(&text);
        }
        assert!(parse(&format!("{}has(a)", "!".repeat(60_000))).is_ok());
        assert!(parse(&format!("{}has(a)", "has(a) && ".repeat(6_000))).is_ok());
    };
    small.spawn(run).unwrap().join().unwrap();
}

/// The question of a tree, answered by the definition: one label at a time, with sets for the values.
fn naive(selector: &Selector, of: &Map) -> bool {
    use Selector as S;
    let value = |key: &str| of.iter().find(|(k, _)| k.as_str() == key).map(|(_, v)| v.clone());
    match selector {
        S::All | S::Global => true,
        S::Has(key) => value(key).is_some(),
        S::Equals(key, v) => value(key) == Some(v.to_string()),
        S::NotEquals(key, v) => !naive(&S::Equals(key.clone(), v.clone()), of),
        S::In(key, vs) => vs.iter().any(|v| naive(&S::Equals(key.clone(), v.clone()), of)),
        S::NotIn(key, vs) => !naive(&S::In(key.clone(), vs.clone()), of),
        S::Contains(key, part) => value(key).is_some_and(|v| v.split(&**part).count() > 1),
        S::StartsWith(key, part) => value(key).is_some_and(|v| v.strip_prefix(&**part).is_some()),
        S::EndsWith(key, part) => value(key).is_some_and(|v| v.strip_suffix(&**part).is_some()),
        S::Not(inner) => !naive(inner, of),
        S::And(terms) => !terms.iter().any(|term| !naive(term, of)),
        S::Or(terms) => !terms.iter().all(|term| !naive(term, of)),
    }
}

fn key() -> impl Strategy<Value = Arc<str>> {
    prop_oneof!["[abc]", "in|has|all|not|starts|global|contains|-|9/x"].prop_map(Arc::from)
}

fn text() -> impl Strategy<Value = Arc<str>> {
    prop_oneof!["[xy]{0,2}", "[xy']{0,3}", "[xy\" \t\n]{0,3}"].prop_map(Arc::from)
}

fn selector() -> impl Strategy<Value = Selector> {
    use Selector as S;
    let set = || prop::collection::vec(text(), 0..3);
    let leaf = prop_oneof![
        Just(S::All),
        Just(S::Global),
        key().prop_map(S::Has),
        (key(), text()).prop_map(|(k, v)| S::Equals(k, v)),
        (key(), text()).prop_map(|(k, v)| S::NotEquals(k, v)),
        (key(), set()).prop_map(|(k, v)| S::is_in(k, v)),
        (key(), set()).prop_map(|(k, v)| S::is_not_in(k, v)),
        (key(), text()).prop_map(|(k, v)| S::Contains(k, v)),
        (key(), text()).prop_map(|(k, v)| S::StartsWith(k, v)),
        (key(), text()).prop_map(|(k, v)| S::EndsWith(k, v)),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| match one {
                // The parser cancels double negation.
                S::Not(inner) => (*inner).clone(),
                other => S::Not(Arc::new(other)),
            }),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|all| S::And(all.into())),
            prop::collection::vec(inner, 2..4).prop_map(|any| S::Or(any.into())),
        ]
    })
}

fn label_map() -> impl Strategy<Value = Map> {
    prop::collection::btree_map("[abc]|in|has|all", "[xy']{0,3}", 0..5)
}

proptest! {
    #[test]
    fn what_is_printed_reads_as_the_same_tree(selector in selector()) {
        prop_assert_eq!(parse(&selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn matching_is_what_the_definition_says(selector in selector(), of in label_map()) {
        prop_assert_eq!(selector.matches(&of), naive(&selector, &of));
    }

    /// Prefixed, a selector asks the same of prefixed labels, and nothing of others.
    #[test]
    fn a_prefix_moves_the_question(selector in selector(), of in label_map()) {
        let moved: Map = of.iter().map(|(k, v)| (format!("pcns.{k}"), v.clone())).collect();
        let prefixed = selector.with_prefix("pcns.");
        prop_assert_eq!(prefixed.matches(&moved), selector.matches(&of));
        prop_assert_eq!(prefixed.matches(&of), selector.matches(&Map::new()));
    }

    #[test]
    fn no_text_panics(text in "[()!&|={}'\", \tabhins.]{0,60}") {
        if let Ok(selector) = parse(&text) {
            prop_assert_eq!(parse(&selector.to_string()).unwrap(), selector);
        }
    }
}
