//! A validator for the part of JSON Schema that our description uses. An unknown keyword fails, so
//! that no rule is written down and silently not checked.

use serde_json::Value as Json;

/// Checks `value` against `schema`; `Err` says where and what.
pub fn check(root: &Json, schema: &Json, value: &Json) -> Result<(), String> {
    let rules = schema.as_object().ok_or("a schema is an object")?;
    for (name, rule) in rules {
        let holds = match name.as_str() {
            "$ref" => {
                let path = rule.as_str().and_then(|r| r.strip_prefix('#')).unwrap();
                check(
                    root,
                    root.pointer(path).ok_or(format!("{rule} leads nowhere"))?,
                    value,
                )
            }
            "type" => check_type(rule, value),
            "enum" => expect(
                rule.as_array().unwrap().contains(value),
                "is none of",
                rule,
                value,
            ),
            "oneOf" => {
                let fits = rule.as_array().unwrap().iter();
                let fits = fits.filter(|one| check(root, one, value).is_ok()).count();
                expect(fits == 1, &format!("fits {fits} of"), rule, value)
            }
            "required" => rule.as_array().unwrap().iter().try_for_each(|name| {
                let is_there = value.get(name.as_str().unwrap()).is_some() || !value.is_object();
                expect(is_there, "lacks", name, value)
            }),
            "properties" => check_properties(root, rule, value),
            "additionalProperties" => check_additional(root, rules, rule, value),
            "items" => value
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
                .try_for_each(|(n, item)| {
                    check(root, rule, item).map_err(|error| format!("[{n}] {error}"))
                }),
            "minItems" => expect(
                length(value) >= rule.as_u64(),
                "is shorter than",
                rule,
                value,
            ),
            "maxItems" => expect(
                value.is_null() || length(value) <= rule.as_u64(),
                "is longer than",
                rule,
                value,
            ),
            "minimum" => expect(value.as_f64() >= rule.as_f64(), "is less than", rule, value),
            "maximum" => expect(value.as_f64() <= rule.as_f64(), "is more than", rule, value),
            "pattern" => {
                // The one pattern in use is kebab case.
                let is_kebab = value.as_str().is_some_and(|text| {
                    text.bytes()
                        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                });
                expect(
                    is_kebab && rule == "^[a-z][a-z0-9-]*$",
                    "does not match",
                    rule,
                    value,
                )
            }
            "description" | "format" | "default" | "minLength" | "maxLength" => Ok(()),
            other => Err(format!("the validator does not know {other}")),
        };
        holds?;
    }
    Ok(())
}

fn length(value: &Json) -> Option<u64> {
    value.as_array().map(|items| items.len() as u64)
}

fn expect(holds: bool, what: &str, rule: &Json, value: &Json) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(format!("{value} {what} {rule}"))
    }
}

fn check_type(rule: &Json, value: &Json) -> Result<(), String> {
    let is = |name: &Json| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    };
    let fits = rule
        .as_array()
        .map_or_else(|| is(rule), |types| types.iter().any(is));
    expect(fits, "is no", rule, value)
}

fn check_properties(root: &Json, rule: &Json, value: &Json) -> Result<(), String> {
    for (name, schema) in rule.as_object().unwrap() {
        if let Some(inner) = value.get(name) {
            check(root, schema, inner).map_err(|error| format!(".{name} {error}"))?;
        }
    }
    Ok(())
}

fn check_additional(
    root: &Json,
    rules: &serde_json::Map<String, Json>,
    rule: &Json,
    value: &Json,
) -> Result<(), String> {
    let known = rules.get("properties").and_then(Json::as_object);
    for (name, inner) in value.as_object().into_iter().flatten() {
        if known.is_some_and(|known| known.contains_key(name)) {
            continue;
        }
        match rule {
            Json::Bool(allowed) => expect(
                *allowed,
                "has an unknown member",
                &Json::from(&**name),
                value,
            )?,
            schema => check(root, schema, inner).map_err(|error| format!(".{name} {error}"))?,
        }
    }
    Ok(())
}

#[test]
fn the_validator_tells_right_from_wrong() {
    use serde_json::json;
    let root = json!({ "n": { "type": "integer", "minimum": 1 } });
    let schema = json!({ "type": "object", "required": ["n"], "additionalProperties": false,
                         "properties": { "n": { "$ref": "#/n" }, "s": { "type": ["string", "null"] } } });
    assert!(check(&root, &schema, &json!({ "n": 1, "s": null })).is_ok());
    for wrong in [
        json!({}),
        json!({ "n": 0 }),
        json!({ "n": 1.5 }),
        json!({ "n": 1, "x": 1 }),
        json!([]),
    ] {
        assert!(check(&root, &schema, &wrong).is_err(), "{wrong}");
    }
}
