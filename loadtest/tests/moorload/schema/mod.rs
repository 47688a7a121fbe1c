//! Checks a JSON value against the part of JSON Schema that `loadtest/schema/summary.schema.json` uses.
//!
//! A keyword that this checker does not know is an error of the schema, so that no rule is skipped in silence.

use serde_json::{Map, Value};

/// Keywords that explain and check nothing.
const ANNOTATIONS: &[&str] = &["$schema", "$defs", "title", "description"];

/// Returns every fault of `value`, each with the path of the part that is wrong.
pub(crate) fn faults(schema: &Value, value: &Value) -> Vec<String> {
    let mut checker = Checker { root: schema, faults: Vec::new() };
    checker.check(schema, value, "$");
    checker.faults
}

struct Checker<'a> {
    /// Whole schema: `$ref` leads into its `$defs`.
    root: &'a Value,
    faults: Vec<String>,
}

impl Checker<'_> {
    fn fail(&mut self, path: &str, fault: impl std::fmt::Display) {
        self.faults.push(format!("{path}: {fault}"));
    }

    fn check(&mut self, schema: &Value, value: &Value, path: &str) {
        let schema = object(schema);
        for (keyword, rule) in schema {
            match keyword.as_str() {
                "type" if !has_type(value, text(rule)) => self.fail(path, format!("{value} is not {rule}")),
                "const" if value != rule => self.fail(path, format!("{value} is not {rule}")),
                "enum" if !list(rule).contains(value) => {
                    self.fail(path, format!("{value} is not in {rule}"));
                }
                "minimum" if value.is_number() && value.as_f64() < rule.as_f64() => {
                    self.fail(path, format!("{value} is below {rule}"));
                }
                "maximum" if value.is_number() && value.as_f64() > rule.as_f64() => {
                    self.fail(path, format!("{value} is above {rule}"));
                }
                "$ref" => {
                    let target = text(rule).strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
                    self.check(target.unwrap_or_else(|| panic!("{path}: {rule} leads nowhere")), value, path);
                }
                "oneOf" => {
                    let fits = |schema: &&Value| {
                        let mut alone = Checker { root: self.root, faults: Vec::new() };
                        alone.check(schema, value, path);
                        alone.faults.is_empty()
                    };
                    let count = list(rule).iter().filter(fits).count();
                    if count != 1 {
                        self.fail(path, format!("{value} fits {count} of {rule}, not one"));
                    }
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(rule, item, &format!("{path}[{index}]"));
                    }
                }
                "required" => {
                    for name in list(rule).iter().map(text) {
                        if value.as_object().is_some_and(|fields| !fields.contains_key(name)) {
                            self.fail(path, format!("{name} is missing"));
                        }
                    }
                }
                "properties" | "additionalProperties" | "propertyNames" => {
                    self.check_fields(keyword, schema, value, path);
                }
                "type" | "const" | "enum" | "minimum" | "maximum" => {}
                _ if ANNOTATIONS.contains(&keyword.as_str()) => {}
                _ => panic!("{path}: the checker does not know the keyword {keyword:?}"),
            }
        }
    }

    /// Checks the keywords that speak of an object's fields.
    fn check_fields(&mut self, keyword: &str, schema: &Map<String, Value>, value: &Value, path: &str) {
        let rule = &schema[keyword];
        let named = schema.get("properties").map(object);
        for (name, field) in value.as_object().into_iter().flatten() {
            let own = named.and_then(|named| named.get(name));
            let path = format!("{path}.{name}");
            match (keyword, own) {
                ("propertyNames", _) => self.check(rule, &Value::from(name.as_str()), &path),
                ("properties", Some(schema)) => self.check(schema, field, &path),
                ("additionalProperties", None) if *rule == Value::Bool(false) => {
                    self.fail(&path, "no such field");
                }
                ("additionalProperties", None) => self.check(rule, field, &path),
                _ => {}
            }
        }
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => panic!("the checker does not know the type {name:?}"),
    }
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("{value} is not an object of the schema"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is not a list of the schema"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a text of the schema"))
}

#[test]
fn each_keyword_finds_its_fault() {
    use serde_json::json;
    let cases = [
        (json!({ "type": "integer" }), json!(1), json!(1.5)),
        (json!({ "type": "string" }), json!("a"), json!(null)),
        (json!({ "const": 1 }), json!(1), json!(2)),
        (json!({ "enum": ["a", "b"] }), json!("b"), json!("c")),
        (json!({ "type": "number", "minimum": 0, "maximum": 1 }), json!(0.5), json!(-1)),
        (json!({ "type": "number", "minimum": 0, "maximum": 1 }), json!(1), json!(1.1)),
        (json!({ "oneOf": [{ "type": "null" }, { "type": "string" }] }), json!(null), json!(1)),
        (json!({ "oneOf": [{ "type": "number" }, { "type": "integer" }] }), json!(1.5), json!(1)),
        (json!({ "items": { "type": "null" } }), json!([null]), json!([null, 1])),
        (json!({ "required": ["a"] }), json!({ "a": 1 }), json!({ "b": 1 })),
        (json!({ "properties": { "a": { "const": 1 } } }), json!({ "a": 1, "b": 2 }), json!({ "a": 2 })),
        (
            json!({ "properties": { "a": {} }, "additionalProperties": false }),
            json!({ "a": 1 }),
            json!({ "b": 1 }),
        ),
        (json!({ "additionalProperties": { "const": 1 } }), json!({ "a": 1 }), json!({ "a": 2 })),
        (json!({ "propertyNames": { "enum": ["a"] } }), json!({ "a": 1 }), json!({ "b": 1 })),
        (json!({ "$ref": "#/$defs/one", "$defs": { "one": { "const": 1 } } }), json!(1), json!(2)),
    ];
    for (schema, good, bad) in cases {
        assert_eq!(faults(&schema, &good), [""; 0], "{schema}");
        assert_eq!(faults(&schema, &bad).len(), 1, "{schema} against {bad}");
    }
    for unknown in [json!({ "pattern": "a" }), json!({ "type": "word" }), json!({ "$ref": "#/$defs/none" })] {
        assert!(std::panic::catch_unwind(|| faults(&unknown, &json!(1))).is_err(), "{unknown}");
    }
}
