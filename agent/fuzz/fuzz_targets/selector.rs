//! Any text: a selector that prints as text which reads as the same selector, or an error.

#![no_main]

use flowlogd::policy::selector::parse;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(selector) = parse(text) {
        let printed = selector.to_string();
        // What is printed names every bracket, so that it may be longer and deeper than what was read.
        if let Ok(again) = parse(&printed) {
            assert_eq!(again, selector, "{printed}");
        }
    }
});
