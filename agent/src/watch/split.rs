//! The items of a list, one by one, while its bytes still come.
//!
//! In: the body of a list answer, in pieces. Out: each item's own text; at the end what stands around the items. Own
//! code, because serde_json cannot stop in the middle of a text and go on when more comes: with it the list of a large
//! cluster's pods (hundreds of megabytes) would have to be in memory before the first pod is decoded and trimmed.
//! What always holds: nothing is kept of an item that was handed out; item and rest are bounded; nothing is checked here
//! beyond brackets and strings: the text of an item and the rest are parsed by serde_json, which finds what is wrong.
//! A body that ends too early leaves a rest that does not parse.

use serde::Deserialize;

/// No object is larger than this (bytes; etcd's own limit is 1.5 MiB).
const ITEM_LIMIT: usize = 16 << 20;
/// What stands around the items.
const REST_LIMIT: usize = 1 << 20;

/// Cuts a list into its items.
#[derive(Debug, Default)]
pub struct Splitter {
    /// The text without the items.
    rest: Vec<u8>,
    item: Vec<u8>,
    /// Open brackets and braces.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Where in `rest` the last string of the outermost object is.
    key: (usize, usize),
    in_items: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an object of the list is larger than {ITEM_LIMIT} bytes, or what is around them than {REST_LIMIT}")]
pub struct TooLarge;

/// What a list says of itself.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub struct ListMeta {
    pub resource_version: String,
    #[serde(rename = "continue")]
    pub more: String,
}

impl Splitter {
    /// Calls `found` with each item that ends in this piece.
    ///
    /// # Errors
    /// An item that is too large.
    pub fn push(&mut self, piece: &[u8], mut found: impl FnMut(&[u8])) -> Result<(), TooLarge> {
        // Bytes of the current item before `at` that are not copied yet begin here.
        let mut begin = if self.depth >= 3 && self.in_items { Some(0) } else { None };
        for (at, &byte) in piece.iter().enumerate() {
            let inside = self.in_items && self.depth >= 3;
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                } else if byte == b'\\' {
                    self.escaped = true;
                } else if byte == b'"' {
                    self.in_string = false;
                    if self.depth == 1 {
                        self.key.1 = self.rest.len();
                    }
                }
            } else {
                match byte {
                    b'"' => {
                        self.in_string = true;
                        if self.depth == 1 {
                            self.key.0 = self.rest.len() + 1;
                        }
                    }
                    b'{' | b'[' => {
                        if self.depth == 1 && byte == b'[' && self.last_key() == b"items" {
                            self.in_items = true;
                        }
                        self.depth += 1;
                        if self.in_items && self.depth == 3 {
                            begin = Some(at);
                            continue;
                        }
                    }
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        if inside && self.depth == 2 {
                            let last = piece.get(begin.take().unwrap_or(at)..=at).unwrap_or_default();
                            if self.item.is_empty() {
                                found(last);
                            } else {
                                self.item.extend_from_slice(last);
                                found(&self.item);
                                self.item.clear();
                            }
                            continue;
                        }
                        if self.in_items && self.depth == 1 {
                            self.in_items = false;
                        }
                    }
                    _ => {}
                }
            }
            // Between the items nothing is kept: commas, and what does not belong there is found to be missing.
            let between =
                self.in_items && self.depth == 2 && matches!(byte, b',' | b' ' | b'\n' | b'\r' | b'\t');
            if !inside && !between {
                if self.rest.len() >= REST_LIMIT {
                    return Err(TooLarge);
                }
                self.rest.push(byte);
            }
        }
        if let Some(begin) = begin {
            self.item.extend_from_slice(piece.get(begin..).unwrap_or_default());
            if self.item.len() > ITEM_LIMIT {
                return Err(TooLarge);
            }
        }
        Ok(())
    }

    fn last_key(&self) -> &[u8] {
        self.rest.get(self.key.0..self.key.1).unwrap_or_default()
    }

    /// What the list says of itself, when all of it came.
    ///
    /// # Errors
    /// The body ended too early, or is no list.
    pub fn finish(self) -> Result<ListMeta, serde_json::Error> {
        #[derive(Deserialize)]
        struct List {
            metadata: ListMeta,
            /// A server that has none writes `null`.
            #[allow(dead_code, reason = "must be there: a text without items is no list")]
            items: Option<serde_json::Value>,
        }
        let list: List = serde_json::from_slice(&self.rest)?;
        Ok(list.metadata)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn split(text: &[u8], piece: usize) -> (Vec<Value>, Result<ListMeta, serde_json::Error>) {
        let mut splitter = Splitter::default();
        let mut items = Vec::new();
        for piece in text.chunks(piece.max(1)) {
            splitter.push(piece, |item| items.push(serde_json::from_slice(item).unwrap())).unwrap();
        }
        (items, splitter.finish())
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            "[a-c\\\\\"{}\\[\\], \n]{0,8}".prop_map(Value::from),
            Just(Value::Null),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("(items|metadata|[a-z\"\\\\]{1,4})", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn items_come_whole_however_the_text_is_cut(
            items in prop::collection::vec(prop::collection::btree_map("(items|[a-c\"])", any_value(), 0..4), 0..6),
            before in any_value(),
            pretty in any::<bool>(),
            piece in 1_usize..40,
        ) {
            let items: Vec<Value> = items.into_iter().map(|map| Value::Object(map.into_iter().collect())).collect();
            let list = json!({"before": before, "metadata": {"resourceVersion": "12"}, "items": items});
            let text = if pretty { serde_json::to_vec_pretty(&list) } else { serde_json::to_vec(&list) }.unwrap();
            let (found, meta) = split(&text, piece);
            prop_assert_eq!(found, items);
            prop_assert_eq!(meta.unwrap(), ListMeta { resource_version: "12".into(), more: String::new() });
            // Cut short anywhere, it is no list.
            let (_, meta) = split(&text[..text.len() - 1], piece);
            prop_assert!(meta.is_err());
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1_usize..9) {
            let mut splitter = Splitter::default();
            for piece in bytes.chunks(piece) {
                splitter.push(piece, |_| {}).unwrap();
            }
            let _ = splitter.finish();
        }
    }

    #[test]
    fn what_does_not_end_is_not_kept_for_ever() {
        let mut splitter = Splitter::default();
        splitter.push(b"{\"items\":[{\"a\":\"", |_| {}).unwrap();
        let piece = vec![b'x'; 1 << 20];
        assert!((0..17).any(|_| splitter.push(&piece, |_| {}) == Err(TooLarge)));
        let mut splitter = Splitter::default();
        splitter.push(b"{\"a\":\"", |_| {}).unwrap();
        assert_eq!(splitter.push(&piece, |_| {}), Err(TooLarge));
    }
}
