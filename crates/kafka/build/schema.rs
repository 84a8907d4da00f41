//! Reading a schema.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// A message.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Message {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) api_key: Option<i16>,
    pub(crate) valid_versions: Versions,
    pub(crate) flexible_versions: Versions,
    /// Whether the newest version is not yet fixed.
    #[serde(default)]
    pub(crate) latest_version_unstable: bool,
    pub(crate) fields: Vec<Field>,
    #[serde(default)]
    pub(crate) common_structs: Vec<Struct>,
}

/// A struct that more than one field has.
#[derive(Deserialize)]
pub(crate) struct Struct {
    pub(crate) name: String,
    pub(crate) fields: Vec<Field>,
}

/// A field.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Field {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) versions: Versions,
    pub(crate) nullable_versions: Option<Versions>,
    pub(crate) tagged_versions: Option<Versions>,
    pub(crate) flexible_versions: Option<Versions>,
    pub(crate) tag: Option<u32>,
    pub(crate) default: Option<Value>,
    #[serde(default)]
    pub(crate) fields: Vec<Self>,
}

/// A range of versions: `3`, `3-5`, `3+` or `none`.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Versions {
    pub(crate) first: i16,
    /// Below `first`: none at all.
    pub(crate) last: i16,
}

impl TryFrom<String> for Versions {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let number = |text: &str| text.trim().parse::<i16>().with_context(|| text.to_owned());
        if text == "none" {
            return Ok(Self { first: 0, last: -1 });
        }
        let (first, last) = match (text.strip_suffix('+'), text.split_once('-')) {
            (Some(first), _) => (number(first)?, i16::MAX),
            (None, Some((first, last))) => (number(first)?, number(last)?),
            (None, None) => (number(&text)?, number(&text)?),
        };
        Ok(Self { first, last })
    }
}

/// Reads a schema: JSON with comments of whole lines.
pub(crate) fn read(text: &str) -> Result<Message> {
    let json: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let message: Message = serde_json::from_str(&json)?;
    if !matches!(&*message.kind, "request" | "response" | "header") {
        bail!("a message of type {}", message.kind);
    }
    Ok(message)
}
