//! How the types of `config` read themselves where a value can be written in more than one shape, and what
//! the JSON Schema says of them.

use std::fmt;
use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::{Admin, OneOrList, Place, Placed, Session, Sessions, Text, UpstreamTls, reader};

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Placed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueLineColumn<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ValueLineColumn<T> {
            type Value = Placed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value with its place")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Placed<T>, A::Error> {
                let missing = || serde::de::Error::custom("a value without its place");
                let value = seq.next_element()?.ok_or_else(missing)?;
                let line = seq.next_element()?.ok_or_else(missing)?;
                let column = seq.next_element()?.ok_or_else(missing)?;
                Ok(Placed {
                    value,
                    place: Place::At { line, column },
                })
            }
        }

        deserializer.deserialize_newtype_struct(reader::PLACED, ValueLineColumn(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Placed<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<T>()
    }
}

impl<'de> Deserialize<'de> for OneOrList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_newtype_struct(reader::ONE_OR_LIST, ListVisitor)
            .map(Self)
    }
}

impl JsonSchema for OneOrList {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OneOrList".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
        })
    }
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = Vec<Text>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Text>, A::Error> {
        let mut texts = Vec::with_capacity(seq.size_hint().unwrap_or(0));
        while let Some(text) = seq.next_element()? {
            texts.push(text);
        }
        Ok(texts)
    }
}

impl<'de> Deserialize<'de> for Sessions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Sessions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from session name to endpoints")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Sessions, A::Error> {
                let mut sessions = Vec::with_capacity(map.size_hint().unwrap_or(0));
                while let Some(entry) = map.next_entry()? {
                    sessions.push(entry);
                }
                Ok(Sessions(sessions))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl JsonSchema for Sessions {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Sessions".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "object",
            "additionalProperties": generator.subschema_for::<Session>(),
        })
    }
}

/// The long form of a session.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields, rename = "SessionInFull")]
struct LongSession {
    /// `IP`, `IP:PORT`, `NAME` or `NAME:PORT`, one or a list; `[]` for a session whose pod is not there yet.
    #[schemars(required, with = "OneOrList")]
    endpoints: Option<OneOrList>,
    /// `auto` (the HTTP version of the request), `h1`, `h2c` or `tls`. Default: `auto`.
    #[schemars(with = "Option<UpstreamProtocol>")]
    protocol: Option<Text>,
    /// With `protocol: tls`.
    tls: Option<Placed<UpstreamTls>>,
}

impl<'de> Deserialize<'de> for Session {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShortOrLong;

        impl<'de> Visitor<'de> for ShortOrLong {
            type Value = Session;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an endpoint, a list of endpoints, or a map")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Session, A::Error> {
                let endpoints = ListVisitor.visit_seq(seq)?;
                Ok(Session {
                    endpoints: Some(OneOrList(endpoints)),
                    ..Session::default()
                })
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                long: D,
            ) -> Result<Session, D::Error> {
                let LongSession {
                    endpoints,
                    protocol,
                    tls,
                } = LongSession::deserialize(long)?;
                Ok(Session {
                    endpoints,
                    protocol,
                    tls,
                })
            }
        }

        deserializer.deserialize_newtype_struct(reader::SHORT_OR_LONG, ShortOrLong)
    }
}

impl JsonSchema for Session {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Session".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Where one session's requests go: an endpoint, a list of them, or the long form.",
            "anyOf": [
                generator.subschema_for::<OneOrList>(),
                generator.subschema_for::<LongSession>(),
            ],
        })
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
#[schemars(deny_unknown_fields, rename = "AdminInFull")]
struct LongAdmin {
    /// IP:PORT, or `off` for none. Default: `127.0.0.1:9901`.
    #[schemars(with = "Option<AddressOrOff>")]
    address: Option<Text>,
}

impl<'de> Deserialize<'de> for Admin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShortOrLong;

        impl<'de> Visitor<'de> for ShortOrLong {
            type Value = Admin;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("off or a map")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Admin, A::Error> {
                Ok(Admin {
                    address: seq.next_element()?,
                })
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                long: D,
            ) -> Result<Admin, D::Error> {
                LongAdmin::deserialize(long).map(|LongAdmin { address }| Admin { address })
            }
        }

        deserializer.deserialize_newtype_struct(reader::TEXT_OR_MAP, ShortOrLong)
    }
}

impl JsonSchema for Admin {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Admin".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [generator.subschema_for::<AddressOrOff>(), generator.subschema_for::<LongAdmin>()]
        })
    }
}

// Words that `plan` reads from text, for the schema only.

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only the schema is wanted")]
pub(super) enum ListenerProtocol {
    Http,
    Https,
    Tcp,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only the schema is wanted")]
pub(super) enum UpstreamProtocol {
    Auto,
    H1,
    H2c,
    Tls,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only the schema is wanted")]
pub(super) enum OnUnavailable {
    Error,
    Baseline,
}

/// Bytes as a number, or text with a unit.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only the schema is wanted")]
pub(super) enum Size {
    Bytes(u64),
    WithUnit(String),
}

/// IP:PORT or `off`, which YAML 1.1 readers, schema checkers among them, take for false.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only the schema is wanted")]
enum AddressOrOff {
    Address(String),
    Off(bool),
}
