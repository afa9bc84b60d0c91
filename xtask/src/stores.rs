//! What stores have to know of a line before the first one comes: types and retention.
//!
//! In: the JSON schemas of a flow's line and of the DNS log's. Out: an index template with its lifecycle policies for Elasticsearch and OpenSearch, a table for
//! ClickHouse, all below `deploy/shippers/`. What always holds: every field of the line has its type in each store, names and
//! types fit what consumers of Calico's indices ask for (keywords, addresses, longs, seconds). Not here: how lines come there.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use crate::dashboards::description::Log;

const DAYS: u64 = 8;

/// The types that stores tell apart.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Integer,
    Boolean,
    Address,
    Seconds,
    /// RFC 3339.
    Instant,
    /// Texts by any names.
    Labels,
    Object(Vec<Column>),
}

/// A column: a name of the line, or of what lies one below it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    name: String,
    of: Type,
    list: bool,
    nullable: bool,
}

/// Every generated file, with its content.
pub fn files() -> anyhow::Result<Vec<(String, String)>> {
    let flows = columns(&Log::Flows.schema())?;
    let dns = columns(&Log::Dns.schema())?;
    let json = |value: Value| serde_json::to_string_pretty(&value).map(|text| text + "\n");
    let at = |name: &str| format!("deploy/shippers/{name}");
    Ok(vec![
        (at("elasticsearch/index-template.json"), json(index_template(Log::Flows, &flows, false))?),
        (at("elasticsearch/index-template-dns.json"), json(index_template(Log::Dns, &dns, false))?),
        (at("elasticsearch/ilm-policy.json"), json(ilm())?),
        (at("opensearch/index-template.json"), json(index_template(Log::Flows, &flows, true))?),
        (at("opensearch/index-template-dns.json"), json(index_template(Log::Dns, &dns, true))?),
        (at("opensearch/ism-policy.json"), json(ism())?),
        (at("clickhouse.sql"), clickhouse(&flows, &dns)),
    ])
}

fn columns(schema: &Value) -> anyhow::Result<Vec<Column>> {
    let mut columns = Vec::new();
    let properties = schema["properties"].as_object().context("the schema has no properties")?;
    for (name, property) in properties {
        match property["properties"].as_object() {
            Some(below) => {
                for (inner, property) in below {
                    columns.push(column(format!("{name}.{inner}"), property)?);
                }
            }
            None => columns.push(column(name.clone(), property)?),
        }
    }
    Ok(columns)
}

fn column(name: String, property: &Value) -> anyhow::Result<Column> {
    let kinds = kinds(property);
    let has = |kind: &str| kinds.iter().any(|of| of == kind);
    let (list, nullable) = (has("array"), has("null"));
    let item = if list { &property["items"] } else { property };
    let inner = if list { self::kinds(item) } else { kinds };
    let of = match inner.iter().find(|kind| !matches!(kind.as_str(), "null" | "array")).map(String::as_str) {
        Some("string") if name.ends_with("_time") => Type::Instant,
        Some("string") if name == "ip" || name.ends_with("_ip") => Type::Address,
        Some("string") => Type::Text,
        Some("object") if item["additionalProperties"].is_object() => Type::Labels,
        Some("object") if item["properties"].is_object() => Type::Object(columns(item)?),
        Some("ipv4" | "ipv6") => Type::Address,
        Some("integer") if name.ends_with("_time") => Type::Seconds,
        Some("integer") => Type::Integer,
        Some("boolean") => Type::Boolean,
        other => bail!("no store's type for the field {name} of type {other:?}"),
    };
    Ok(Column { name, of, list, nullable })
}

/// The types that a schema admits; a string with the format of an address goes by that.
fn kinds(schema: &Value) -> Vec<String> {
    for several in ["anyOf", "oneOf"] {
        if let Some(all) = schema[several].as_array() {
            return all.iter().flat_map(kinds).collect();
        }
    }
    if let Some(format @ ("ipv4" | "ipv6")) = schema["format"].as_str() {
        return vec![format.to_owned()];
    }
    match &schema["type"] {
        Value::String(kind) => vec![kind.clone()],
        Value::Array(kinds) => kinds.iter().filter_map(|kind| kind.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    }
}

/// A data stream; lists need no type of their own there.
fn index_template(log: Log, columns: &[Column], opensearch: bool) -> Value {
    let mut properties = mapping(columns, opensearch);
    properties.insert("@timestamp".to_owned(), json!({"type": "date"}));
    let mut settings = json!({"index": {"number_of_shards": 1, "codec": "best_compression"}});
    if !opensearch {
        settings["index"]["lifecycle"] = json!({"name": "flowlogd-flows"});
    }
    json!({
        "index_patterns": [format!("{}*", log.index())],
        "data_stream": {},
        "priority": 500,
        "template": {
            "settings": settings,
            // What a later version adds is stored and found in _source, and typed by its own template.
            "mappings": {"dynamic": false, "properties": properties},
        },
    })
}

fn mapping(columns: &[Column], opensearch: bool) -> Map<String, Value> {
    let mut properties = Map::new();
    for column in columns {
        let of = match &column.of {
            Type::Text => json!({"type": "keyword"}),
            Type::Integer => json!({"type": "long"}),
            Type::Boolean => json!({"type": "boolean"}),
            Type::Address => json!({"type": "ip"}),
            Type::Seconds => json!({"type": "date", "format": "epoch_second"}),
            Type::Instant => json!({"type": "date"}),
            // Names of labels are without number: no field for each.
            Type::Labels => json!({"type": if opensearch { "flat_object" } else { "flattened" }}),
            Type::Object(inner) => json!({"properties": mapping(inner, opensearch)}),
        };
        match column.name.split_once('.') {
            None => {
                properties.insert(column.name.clone(), of);
            }
            Some((outer, inner)) => {
                let object = properties.entry(outer.to_owned()).or_insert_with(|| json!({"properties": {}}));
                object["properties"][inner] = of;
            }
        }
    }
    properties
}

fn ilm() -> Value {
    json!({"policy": {"phases": {
        "hot": {"actions": {"rollover": {"max_age": "1d", "max_primary_shard_size": "50gb"}}},
        "delete": {"min_age": format!("{DAYS}d"), "actions": {"delete": {}}},
    }}})
}

fn ism() -> Value {
    json!({"policy": {
        "description": "Flow and DNS logs: a new index a day, deleted when it is old.",
        "default_state": "hot",
        "ism_template": [{"index_patterns": [".ds-flowlogd-flows*", ".ds-flowlogd-dns*"], "priority": 500}],
        "states": [
            {"name": "hot",
             "actions": [{"rollover": {"min_index_age": "1d", "min_primary_shard_size": "50gb"}}],
             "transitions": [{"state_name": "delete", "conditions": {"min_index_age": format!("{DAYS}d")}}]},
            {"name": "delete", "actions": [{"delete": {}}], "transitions": []},
        ],
    }})
}

fn clickhouse(flows: &[Column], dns: &[Column]) -> String {
    let mut sql = format!(
        "-- Flow logs and DNS logs in ClickHouse (23.8 or later), kept for {DAYS} days. Generated by `cargo xtask codegen`; edit xtask/src/stores.rs.\n\
         -- In: INSERT INTO flows SETTINGS input_format_import_nested_json = 1, input_format_skip_unknown_fields = 1 FORMAT JSONEachRow\n\
         -- The DNS log: the same INTO dns, with input_format_null_as_default = 1, date_time_input_format = 'best_effort' too.\n"
    );
    table(&mut sql, "flows", flows, "source_namespace, dest_namespace, action, end_time");
    sql.push('\n');
    table(&mut sql, "dns", dns, "end_time");
    sql
}

fn table(sql: &mut String, name: &str, columns: &[Column], order: &str) {
    let _ = write!(sql, "CREATE TABLE IF NOT EXISTS {name}\n(\n");
    let mut nested: Vec<(&str, Vec<String>)> = Vec::new();
    for column in columns {
        let of = clickhouse_type(column);
        match column.name.split_once('.') {
            None => {
                let _ = writeln!(sql, "    {} {of},", column.name);
            }
            Some((outer, inner)) => match nested.iter_mut().find(|(name, _)| *name == outer) {
                Some((_, fields)) => fields.push(format!("{inner} {of}")),
                None => nested.push((outer, vec![format!("{inner} {of}")])),
            },
        }
    }
    for (name, fields) in &nested {
        let _ = writeln!(sql, "    {name} Tuple({}),", fields.join(", "));
    }
    sql.truncate(sql.trim_end_matches(",\n").len());
    let _ = write!(
        sql,
        "\n)\nENGINE = MergeTree\nPARTITION BY toDate(end_time)\nORDER BY ({order})\n\
         TTL toDateTime(end_time) + INTERVAL {DAYS} DAY DELETE\nSETTINGS ttl_only_drop_parts = 1;\n"
    );
}

fn clickhouse_type(column: &Column) -> String {
    let plain = match &column.of {
        Type::Text => "String".to_owned(),
        Type::Integer => "UInt64".to_owned(),
        Type::Boolean => "Bool".to_owned(),
        // IPv4 is kept as a mapped address.
        Type::Address => "IPv6".to_owned(),
        Type::Seconds | Type::Instant => "DateTime('UTC')".to_owned(),
        Type::Labels => "Map(String, String)".to_owned(),
        Type::Object(inner) => {
            let fields = inner.iter().map(|column| format!("{} {}", column.name, clickhouse_type(column)));
            format!("Tuple({})", fields.collect::<Vec<_>>().join(", "))
        }
    };
    match (column.list, column.nullable) {
        (true, _) => format!("Array({plain})"),
        // Neither may be null: without labels a map is empty.
        (false, true) if matches!(column.of, Type::Labels | Type::Object(_)) => plain,
        (false, true) => format!("Nullable({plain})"),
        (false, false) if matches!(column.of, Type::Text) => "LowCardinality(String)".to_owned(),
        (false, false) => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_line_has_a_type() {
        let schema = flowlogd::wire::schema::schema();
        let template = index_template(Log::Flows, &columns(&schema).unwrap(), false);
        let typed = template["template"]["mappings"]["properties"].as_object().unwrap();
        for name in schema["properties"].as_object().unwrap().keys() {
            assert!(typed.contains_key(name), "{name}");
        }
        // As consumers of Calico's index ask for them.
        for (name, of) in [
            ("source_ip", "ip"),
            ("dest_port", "long"),
            ("bytes_in", "long"),
            ("action", "keyword"),
            ("start_time", "date"),
            ("source_type", "keyword"),
            ("policy_mismatch", "boolean"),
            ("process_args", "keyword"),
        ] {
            assert_eq!(typed[name]["type"], of, "{name}");
        }
        assert_eq!(typed["policies"]["properties"]["all_policies"]["type"], "keyword");
        assert_eq!(typed["source_labels"]["properties"]["labels"]["type"], "keyword");
    }

    #[test]
    fn every_field_of_the_dns_log_has_a_type() {
        let schema = Log::Dns.schema();
        let columns = columns(&schema).unwrap();
        let template = index_template(Log::Dns, &columns, false);
        assert_eq!(template["index_patterns"], json!(["flowlogd-dns*"]));
        let typed = &template["template"]["mappings"]["properties"];
        for name in schema["properties"].as_object().unwrap().keys() {
            assert!(typed[name].is_object(), "{name}");
        }
        for (place, of) in [
            ("/end_time/type", "date"),
            ("/client_ip/type", "ip"),
            ("/client_labels/type", "flattened"),
            ("/count/type", "long"),
            ("/latency/properties/max/type", "long"),
            ("/servers/properties/ip/type", "ip"),
            ("/servers/properties/labels/type", "flattened"),
            ("/rrsets/properties/rdata/type", "keyword"),
        ] {
            assert_eq!(typed.pointer(place), Some(&json!(of)), "{place}");
        }
        let sql = clickhouse(&[], &columns);
        assert!(
            sql.contains("rrsets Array(Tuple(") && sql.contains("client_labels Map(String, String)"),
            "{sql}"
        );
    }

    #[test]
    fn a_field_of_a_new_type_is_not_passed_over() {
        assert!(column("x".into(), &json!({"type": "number"})).is_err());
    }
}
