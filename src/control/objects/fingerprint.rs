//! A short name for what something was made from, to see later that it would be made otherwise today.

use serde::Serialize;
use serde_json::Value;

/// The same for the same content, whatever the order of its keys, and in every release: 16 hexadecimal
/// digits. Against accidents only; who may write the annotation may also forge it.
pub(super) fn of(content: &impl Serialize) -> String {
    let content =
        serde_json::to_value(content).expect("these are trees of maps with text for keys");
    let mut text = String::new();
    write(&content, &mut text);
    // FNV-1a: the hashes of the standard library may differ between its releases.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Writes JSON with its keys in order.
fn write(value: &Value, text: &mut String) {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(key, _)| *key);
            text.push('{');
            for (key, value) in members {
                *text += &Value::from(key.as_str()).to_string();
                write(value, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for item in items {
                write(item, text);
                text.push(',');
            }
            text.push(']');
        }
        scalar => *text += &scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_of_keys_makes_no_difference() {
        struct Backwards;
        impl Serialize for Backwards {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map([("b", json!({"d": 1, "c": [2, 3]})), ("a", json!("x"))])
            }
        }

        assert_eq!(
            of(&Backwards),
            of(&json!({"a": "x", "b": {"c": [2, 3], "d": 1}}))
        );
    }

    #[test]
    fn whatever_else_differs_makes_a_difference() {
        let contents = [
            json!({"a": [1, 2]}),
            json!({"a": [2, 1]}),
            json!({"a": [12]}),
            json!({"a": [[1], 2]}),
            json!({"a": ["1", "2"]}),
            json!({"a": null}),
            json!({}),
            json!({"a": {"b": 1}, "c": 2}),
            json!({"a": {"b": 1, "c": 2}}),
        ];
        let names: std::collections::BTreeSet<_> = contents.iter().map(of).collect();

        assert_eq!(names.len(), contents.len());
    }

    /// A change of this value makes every PR pod anew at the next deploy.
    #[test]
    fn a_release_does_not_change_it() {
        assert_eq!(of(&json!({"a": [1, "x", null, true]})), "134d99ef1cea9cc6");
    }
}
