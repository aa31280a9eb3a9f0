//! Apps that tell what they were told: `{"app": "orders", "session": "pr-42", "downstream": [...]}`,
//! nested as deep as the calls were.

use serde_json::Value;

/// What one app on the way says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub app: String,
    /// `None`: it received none.
    pub session: Option<String>,
}

/// What every app says that speaks in this body; nothing when it is not such JSON.
pub(super) fn sessions(body: &[u8]) -> Vec<Told> {
    let mut told = Vec::new();
    if let Ok(value) = serde_json::from_slice(body) {
        collect(&value, &mut told);
    }
    told
}

fn collect(value: &Value, told: &mut Vec<Told>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, told)),
        Value::Object(fields) => {
            if let (Some(Value::String(app)), Some(session)) =
                (fields.get("app"), fields.get("session"))
            {
                told.push(Told {
                    app: app.clone(),
                    session: session
                        .as_str()
                        .filter(|session| !session.is_empty())
                        .map(str::to_owned),
                });
            }
            fields.values().for_each(|value| collect(value, told));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_app_that_speaks_is_heard_however_deep() {
        let body = br#"{"app":"web","session":"pr-42","downstream":[
            {"app":"api","session":"","answer":{"app":"db","session":null}},
            {"app":"mail"}, {"session":"pr-1"}, 7]}"#;

        let told: Vec<_> = sessions(body)
            .into_iter()
            .map(|told| (told.app, told.session))
            .collect();

        assert_eq!(
            told,
            [
                ("web".to_owned(), Some("pr-42".to_owned())),
                ("api".to_owned(), None),
                ("db".to_owned(), None),
            ]
        );
    }

    #[test]
    fn what_is_not_json_says_nothing() {
        for body in [&b"hello from web"[..], b"", b"\xff", b"{\"app\":", b"[]"] {
            assert_eq!(sessions(body), []);
        }
    }
}
