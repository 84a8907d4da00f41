//! Writing a message's code.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::schema::{Field, Message, Struct, Versions};

/// What a field holds.
enum Type {
    /// A number or truth value: its Rust type, which is also the name of its reader and writer.
    Plain(&'static str),
    Uuid,
    Text,
    Bytes,
    Array(Box<Type>),
    Struct(String),
}

impl Type {
    fn of(kind: &str) -> Self {
        if let Some(element) = kind.strip_prefix("[]") {
            return Self::Array(Box::new(Self::of(element)));
        }
        match kind {
            "bool" => Self::Plain("bool"),
            "int8" => Self::Plain("i8"),
            "int16" => Self::Plain("i16"),
            "uint16" => Self::Plain("u16"),
            "int32" => Self::Plain("i32"),
            "uint32" => Self::Plain("u32"),
            "int64" => Self::Plain("i64"),
            "float64" => Self::Plain("f64"),
            "uuid" => Self::Uuid,
            "string" => Self::Text,
            "bytes" | "records" => Self::Bytes,
            name => Self::Struct(name.to_owned()),
        }
    }

    fn rust(&self) -> String {
        match self {
            Self::Plain(name) => (*name).to_owned(),
            Self::Uuid => "Uuid".to_owned(),
            Self::Text => "Text".to_owned(),
            Self::Bytes => "Bytes".to_owned(),
            Self::Array(element) => format!("Vec<{}>", element.rust()),
            Self::Struct(name) => name.clone(),
        }
    }

    /// An expression that reads it: where it can be null on the wire, it is an `Option`.
    fn read(&self) -> String {
        match self {
            Self::Plain(name) => format!("r.{name}()?"),
            Self::Uuid => "r.uuid()?".to_owned(),
            Self::Text => "r.text(flexible)?".to_owned(),
            Self::Bytes => "r.bytes(flexible)?".to_owned(),
            Self::Array(element) => {
                format!("r.array(flexible, |r| Ok({}))?", element.read_present())
            }
            Self::Struct(name) => format!("{name}::decode(r, version)?"),
        }
    }

    fn read_present(&self) -> String {
        match self {
            Self::Plain(_) | Self::Uuid | Self::Struct(_) => self.read(),
            Self::Text | Self::Bytes | Self::Array(_) => format!("present({})?", self.read()),
        }
    }

    fn read_nullable(&self) -> String {
        match self {
            Self::Struct(_) => format!(
                "if r.is_present()? {{ Some({}) }} else {{ None }}",
                self.read()
            ),
            _ => self.read(),
        }
    }

    /// Statements that write the value behind the reference `value`.
    fn write(&self, value: &str) -> String {
        match self {
            Self::Plain(name) => format!("w.{name}(*{value});"),
            Self::Uuid => format!("w.uuid({value});"),
            Self::Text => format!("w.text({value}, flexible);"),
            Self::Bytes => format!("w.bytes({value}, flexible);"),
            Self::Array(element) => format!(
                "w.count({value}.len(), flexible); for item in {value} {{ {} }}",
                element.write("item")
            ),
            Self::Struct(_) => format!("{value}.encode(w, version);"),
        }
    }

    fn write_nullable(&self, value: &str) -> String {
        let (before, null) = match self {
            Self::Struct(_) => ("w.i8(1);", "w.i8(-1);"),
            Self::Text => ("", "w.null_text(flexible);"),
            _ => ("", "w.null(flexible);"),
        };
        format!(
            "match {value} {{ Some(value) => {{ {before} {} }} None => {{ {null} }} }}",
            self.write("value")
        )
    }

    fn default(&self, given: Option<&Value>) -> Result<String> {
        let given = match given {
            None => return Ok("Default::default()".to_owned()),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        Ok(match self {
            Self::Text if given == "null" => "None".to_owned(),
            Self::Text => format!("Text::from({given:?})"),
            Self::Plain("bool") => given.parse::<bool>()?.to_string(),
            Self::Plain(name) => format!("{given} as {name}"),
            _ if given == "null" || given.is_empty() => "Default::default()".to_owned(),
            _ => bail!("the default {given:?}"),
        })
    }
}

/// A message's module.
pub(crate) fn message(message: &Message) -> Result<String> {
    let mut valid = message.valid_versions;
    if message.latest_version_unstable {
        valid.last -= 1;
    }
    let context = Emitter {
        valid,
        flexible: message.flexible_versions,
        decodes: message.kind != "response",
        encodes: message.kind != "request",
    };
    let name = &message.name;
    let module = snake(name);
    let mut code = format!("pub(crate) mod {module} {{ use super::prelude::*;\n");
    code += &format!("impl {name} {{\n");
    if let Some(key) = message.api_key {
        code += &format!("pub(crate) const KEY: i16 = {key};\n");
    }
    let flexible_from = match message.flexible_versions {
        Versions { first, last } if first <= last => first,
        _ => i16::MAX,
    };
    code += &format!(
        "pub(crate) const VERSIONS: (i16, i16) = ({}, {});\npub(crate) const FLEXIBLE_FROM: i16 = {flexible_from};\n}}\n",
        valid.first, valid.last
    );
    code += &context.structure(name, &message.fields)?;
    for Struct { name, fields } in &message.common_structs {
        code += &context.structure(name, fields)?;
    }
    Ok(code + "}\n")
}

/// What holds for all structs of a message.
struct Emitter {
    valid: Versions,
    flexible: Versions,
    /// Whether a broker decodes it.
    decodes: bool,
    /// Whether a broker encodes it.
    encodes: bool,
}

impl Emitter {
    fn structure(&self, name: &str, fields: &[Field]) -> Result<String> {
        let fields = &self.present(fields);
        let mut members = String::new();
        let mut defaults = String::new();
        let mut inner = String::new();
        for field in fields {
            let kind = Type::of(&field.kind);
            let member = snake(&field.name);
            let nullable = field.nullable_versions.is_some();
            let rust = kind.rust();
            let rust = if nullable {
                format!("Option<{rust}>")
            } else {
                rust
            };
            members += &format!("pub(crate) {member}: {rust},\n");
            let value = kind
                .default(field.default.as_ref())
                .with_context(|| field.name.clone())?;
            let value = match (nullable, &*value) {
                (true, "None") => "None".to_owned(),
                (true, "Default::default()") if field.default.is_some() => "None".to_owned(),
                (true, value) => format!("Some({value})"),
                (false, value) => value.to_owned(),
            };
            defaults += &format!("{member}: {value},\n");
            if !field.fields.is_empty() {
                inner += &self.structure(element_name(&kind)?, &field.fields)?;
            }
        }
        let test_only = |it: bool| if it { "" } else { "#[cfg(test)]\n" };
        Ok(format!(
            "#[derive(Clone, Debug, PartialEq)]\npub(crate) struct {name} {{\n{members}}}\n\
             impl Default for {name} {{ fn default() -> Self {{ Self {{ {defaults} }} }} }}\n\
             {}impl {name} {{ pub(crate) fn decode(r: &mut Reader, version: i16) -> Result<Self, DecodeError> {{ {} }} }}\n\
             {}impl {name} {{ pub(crate) fn encode(&self, w: &mut Writer, version: i16) {{ {} }} }}\n{inner}",
            test_only(self.decodes),
            self.decode(fields)?,
            test_only(self.encodes),
            self.encode(fields)?,
        ))
    }

    fn decode(&self, fields: &[&Field]) -> Result<String> {
        let mut code = format!(
            "let flexible = {}; let mut message = Self::default();\n",
            self.is_flexible()
        );
        let mut tags = String::new();
        for field in fields {
            let kind = Type::of(&field.kind);
            let member = snake(&field.name);
            let value = match field.nullable_versions {
                None => kind.read_present(),
                Some(nullable) => match self.condition(nullable, field.versions) {
                    None => kind.read_nullable(),
                    Some(condition) => format!(
                        "if {condition} {{ {} }} else {{ Some({}) }}",
                        kind.read_nullable(),
                        kind.read_present()
                    ),
                },
            };
            let read = format!("message.{member} = {value};");
            let read = match field.flexible_versions {
                None => read,
                Some(_) => format!("let flexible = false; {read}"),
            };
            match (field.tagged_versions, field.tag) {
                (Some(_), Some(tag)) => tags += &format!("{tag} => {{ {read} Ok(true) }}\n"),
                _ => code += &format!("{}\n", self.guarded(field, &read)),
            }
        }
        Ok(format!(
            "{code} if flexible {{ r.tags(|r, tag| match tag {{ {tags} _ => Ok(false) }})?; }} Ok(message)"
        ))
    }

    fn encode(&self, fields: &[&Field]) -> Result<String> {
        let mut code = format!("let flexible = {};\n", self.is_flexible());
        let mut tags = String::new();
        for field in fields {
            let kind = Type::of(&field.kind);
            let member = format!("self.{}", snake(&field.name));
            let write = match field.nullable_versions {
                None => kind.write(&format!("(&{member})")),
                Some(_) => kind.write_nullable(&format!("&{member}")),
            };
            let write = match field.flexible_versions {
                None => write,
                Some(_) => format!("let flexible = false; {write}"),
            };
            match (field.tagged_versions, field.tag) {
                (Some(versions), Some(tag)) => {
                    let applies = self
                        .condition(versions, self.valid)
                        .unwrap_or_else(|| "true".to_owned());
                    tags += &format!(
                        "if {applies} && {member} != Self::default().{} {{ tags.put({tag}, |w| {{ {write} }}); }}\n",
                        snake(&field.name)
                    );
                }
                _ => code += &format!("{}\n", self.guarded(field, &write)),
            }
        }
        Ok(format!(
            "{code} if flexible {{ let mut tags = Tags::default(); {tags} w.tags(tags); }}"
        ))
    }

    /// The fields that some valid version has.
    fn present<'a>(&self, fields: &'a [Field]) -> Vec<&'a Field> {
        let has = |field: &&Field| {
            field.versions.first <= self.valid.last && field.versions.last >= self.valid.first
        };
        fields.iter().filter(has).collect()
    }

    fn is_flexible(&self) -> String {
        match self.flexible {
            Versions { first, last } if first > last => "false".to_owned(),
            flexible => self
                .condition(flexible, self.valid)
                .unwrap_or_else(|| "true".to_owned()),
        }
    }

    /// Statements that run only in the versions that have the field.
    fn guarded(&self, field: &Field, statements: &str) -> String {
        match self.condition(field.versions, self.valid) {
            None => format!("{{ {statements} }}"),
            Some(condition) => format!("if {condition} {{ {statements} }}"),
        }
    }

    /// The condition for a version of `of` to be one of `versions`; `None` where all are.
    fn condition(&self, versions: Versions, of: Versions) -> Option<String> {
        let first = of.first.max(self.valid.first);
        let last = of.last.min(self.valid.last);
        match (versions.first > first, versions.last < last) {
            (false, false) => None,
            (true, false) => Some(format!("version >= {}", versions.first)),
            (false, true) => Some(format!("version <= {}", versions.last)),
            (true, true) => Some(format!(
                "({}..={}).contains(&version)",
                versions.first, versions.last
            )),
        }
    }
}

fn element_name(kind: &Type) -> Result<&str> {
    match kind {
        Type::Struct(name) => Ok(name),
        Type::Array(element) => element_name(element),
        _ => bail!("fields of a field that is no struct"),
    }
}

fn snake(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut snake = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let begins_word = letter.is_uppercase()
            && at > 0
            && (!letters[at - 1].is_uppercase()
                || letters.get(at + 1).is_some_and(|next| next.is_lowercase()));
        if begins_word {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    match &*snake {
        "type" | "match" => format!("r#{snake}"),
        _ => snake,
    }
}
