//! Values of a TOML file, with their places.

use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::place::{Mistakes, Place};

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) place: Place,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Text(String),
    Flag(bool),
    /// In decimal digits.
    Number(String),
    List(Vec<Value>),
    Table(Table),
    /// A date or a time, which no setting has.
    Time(String),
}

/// The keys of a table and their values, in the order of the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(pub(super) Vec<(Key, Value)>);

/// A key and its place.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) place: Place,
}

impl Table {
    /// Parses the text of a file. What is not TOML is a mistake.
    pub(super) fn parse(file: &Arc<Path>, text: &str, mistakes: &mut Mistakes) -> Self {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            mistakes.add(&Place::of(file, text, &error.span().unwrap_or(0..0)), error.message().trim_end());
        }
        Table::of(table.get_ref(), file, text)
    }

    fn of(table: &DeTable<'_>, file: &Arc<Path>, text: &str) -> Self {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let entry = |(key, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| {
            let place = Place::of(file, text, &key.span());
            (Key { name: key.get_ref().to_string(), place }, Value::of(value, file, text))
        };
        Table(entries.into_iter().map(entry).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(key, _)| key.name == name).map(|(_, value)| value)
    }
}

impl Value {
    fn of(value: &toml::Spanned<DeValue<'_>>, file: &Arc<Path>, text: &str) -> Self {
        let place = Place::of(file, text, &value.span());
        let kind = match value.get_ref() {
            DeValue::String(text) => Kind::Text(text.to_string()),
            DeValue::Boolean(flag) => Kind::Flag(*flag),
            // In decimal digits, however it is written. One that is too long is no number that anything accepts.
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(parsed) => Kind::Number(parsed.to_string()),
                Err(_) => Kind::Number(text.get(value.span()).unwrap_or_default().to_owned()),
            },
            DeValue::Float(number) => Kind::Number(number.as_str().to_owned()),
            DeValue::Datetime(time) => Kind::Time(time.to_string()),
            DeValue::Array(values) => Kind::List(values.iter().map(|value| Value::of(value, file, text)).collect()),
            DeValue::Table(table) => Kind::Table(Table::of(table, file, text)),
        };
        Value { place, kind }
    }

    /// What it is, for messages.
    pub(super) fn described(&self) -> &'static str {
        match self.kind {
            Kind::Text(_) => "a string",
            Kind::Flag(_) => "true or false",
            Kind::Number(_) => "a number",
            Kind::List(_) => "a list",
            Kind::Table(_) => "a table",
            Kind::Time(_) => "a date or time",
        }
    }
}

/// Displays the value as TOML in one line.
impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Text(text) => write!(f, "{}", toml::Value::String(text.clone())),
            Kind::Flag(flag) => write!(f, "{flag}"),
            Kind::Number(text) | Kind::Time(text) => f.write_str(text),
            Kind::List(values) => {
                let values: Vec<_> = values.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", values.join(", "))
            }
            Kind::Table(table) => {
                let entries: Vec<_> = table.0.iter().map(|(key, value)| format!("{} = {value}", key.name)).collect();
                write!(f, "{{ {} }}", entries.join(", "))
            }
        }
    }
}

/// The texts in lists.
pub(super) fn texts(lists: &[Value]) -> Vec<String> {
    let values = lists.iter().flat_map(|list| match &list.kind {
        Kind::List(values) => values.as_slice(),
        _ => &[],
    });
    values.filter_map(|value| if let Kind::Text(text) = &value.kind { Some(text.clone()) } else { None }).collect()
}
