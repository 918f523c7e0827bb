//! Reads one TOML file field by field and names the line of everything that is wrong with it.
//! A field that nobody asked for is an error, with the name that was probably meant.

use std::ops::RangeInclusive;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Fault;
use super::wording::{FIELD_ECHO_MAX, backticked, bounded, echo, kind, nearest, one_line};

/// The most faults that one file reports: a person mends a few at a time.
const FAULTS_MAX: usize = 8;

/// A file under reading. Collects faults; [`Document::finish`] says whether there were any.
#[derive(Debug)]
pub struct Document<'t> {
    file: &'t str,
    text: &'t str,
    faults: Vec<Fault>,
}

/// One table of a document: the fields not taken yet, and the names that were asked for.
#[derive(Debug)]
pub struct Section<'t> {
    title: String,
    fields: DeTable<'t>,
    asked: Vec<&'static str>,
    line: usize,
}

/// A value and the line it stands on.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Its line, from 1.
    pub line: usize,
}

impl<'t> Document<'t> {
    /// Parses `text`. `file` is its name in faults.
    ///
    /// # Errors
    /// The faults of a text that is not TOML.
    pub fn parse(file: &'t str, text: &'t str) -> Result<(Self, Section<'t>), Vec<Fault>> {
        let mut document = Self {
            file,
            text,
            faults: Vec::new(),
        };
        match DeTable::parse(text) {
            Ok(table) => {
                let fields = table.into_inner();
                Ok((
                    document,
                    Section {
                        title: String::new(),
                        fields,
                        asked: Vec::new(),
                        line: 0,
                    },
                ))
            }
            Err(error) => {
                let line = error.span().map_or(1, |span| document.line(span.start));
                document.fault(
                    line,
                    format!("this is not TOML: {}", one_line(error.message())),
                );
                Err(document.faults)
            }
        }
    }

    /// Notes a fault.
    pub fn fault(&mut self, line: usize, what: impl Into<String>) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault {
                file: self.file.to_owned(),
                line,
                hyco: None,
                what: what.into(),
            });
        }
    }

    /// A field that is a string.
    pub fn string(
        &mut self,
        section: &mut Section<'t>,
        field: &'static str,
        example: &str,
    ) -> Option<Placed<String>> {
        let value = section.take(field)?;
        let line = self.line(value.span().start);
        match value.into_inner() {
            DeValue::String(text) => Some(Placed {
                value: text.into_owned(),
                line,
            }),
            other => {
                let kind = kind(&other);
                self.fault(
                    line,
                    format!(
                        "{} is {kind}; write a text, like `{field} = \"{example}\"`",
                        section.name(field)
                    ),
                );
                None
            }
        }
    }

    /// A field that is a string of a stricter form.
    pub fn parsed<T>(
        &mut self,
        section: &mut Section<'t>,
        field: &'static str,
        example: &str,
    ) -> Option<Placed<T>>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let text = self.string(section, field, example)?;
        self.parse_text(
            &section.name(field),
            &text,
            &format!("{field} = \"{example}\""),
        )
    }

    /// A field that is a list of strings of a stricter form, at least `least` of them. `None` only
    /// where the field is missing.
    pub fn list<T>(
        &mut self,
        section: &mut Section<'t>,
        field: &'static str,
        example: &str,
        least: usize,
    ) -> Option<Placed<Vec<T>>>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let value = section.take(field)?;
        let line = self.line(value.span().start);
        let shape = format!("{field} = [\"{example}\"]");
        let DeValue::Array(items) = value.into_inner() else {
            self.fault(
                line,
                format!("{} is not a list; write `{shape}`", section.name(field)),
            );
            return Some(Placed {
                value: Vec::new(),
                line,
            });
        };
        if items.len() < least {
            let what = format!(
                "{} is empty; write `{shape}`, or leave it out",
                section.name(field)
            );
            self.fault(line, what);
        }
        let mut values = Vec::new();
        for item in items {
            let line = self.line(item.span().start);
            match item.into_inner() {
                DeValue::String(text) => {
                    let text = Placed {
                        value: text.into_owned(),
                        line,
                    };
                    values.extend(
                        self.parse_text(&section.name(field), &text, &shape)
                            .map(|placed| placed.value),
                    );
                }
                other => {
                    let kind = kind(&other);
                    self.fault(
                        line,
                        format!(
                            "an entry of {} is {kind}; write `{shape}`",
                            section.name(field)
                        ),
                    );
                }
            }
        }
        Some(Placed {
            value: values,
            line,
        })
    }

    /// A field that is a whole number within bounds.
    pub fn integer<T>(
        &mut self,
        section: &mut Section<'t>,
        field: &'static str,
        bounds: RangeInclusive<T>,
        example: T,
    ) -> Option<Placed<T>>
    where
        T: TryFrom<i64> + PartialOrd + Copy + std::fmt::Display,
    {
        let value = section.take(field)?;
        let line = self.line(value.span().start);
        let number = match value.get_ref() {
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        let within = number
            .and_then(|number| T::try_from(number).ok())
            .filter(|number| bounds.contains(number));
        if within.is_none() {
            let (least, most) = (bounds.start(), bounds.end());
            let what = format!(
                "{} must be a whole number from {least} to {most}; write, for example, `{field} = {example}`",
                section.name(field)
            );
            self.fault(line, what);
        }
        within.map(|value| Placed { value, line })
    }

    /// A field that is true or false.
    pub fn boolean(
        &mut self,
        section: &mut Section<'t>,
        field: &'static str,
    ) -> Option<Placed<bool>> {
        let value = section.take(field)?;
        let line = self.line(value.span().start);
        match value.into_inner() {
            DeValue::Boolean(value) => Some(Placed { value, line }),
            other => {
                let kind = kind(&other);
                self.fault(
                    line,
                    format!(
                        "{} is {kind}; write `{field} = true` or `{field} = false`",
                        section.name(field)
                    ),
                );
                None
            }
        }
    }

    /// A field that is one of a few words.
    pub fn word<T: Copy>(
        &mut self,
        section: &mut Section<'t>,
        field: &'static str,
        words: &[(&str, T)],
    ) -> Option<Placed<T>> {
        let example = words.first().map_or("", |(word, _)| word);
        let text = self.string(section, field, example)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(Placed {
                value: *value,
                line: text.line,
            });
        }
        let all: Vec<String> = words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        self.fault(
            text.line,
            format!(
                "{} cannot be {}; write one of {}",
                section.name(field),
                echo(&text.value),
                all.join(", ")
            ),
        );
        None
    }

    /// A table within a section: `[field]`.
    pub fn table(&mut self, section: &mut Section<'t>, field: &'static str) -> Option<Section<'t>> {
        let value = section.take(field)?;
        let line = self.line(value.span().start);
        match value.into_inner() {
            DeValue::Table(fields) => Some(Section {
                title: format!("[{field}]"),
                fields,
                asked: Vec::new(),
                line,
            }),
            other => {
                let kind = kind(&other);
                self.fault(
                    line,
                    format!(
                        "{} is {kind}; write it as a section, `[{field}]` on a line of its own",
                        section.name(field)
                    ),
                );
                None
            }
        }
    }

    /// The tables of a list: `[[field]]`.
    pub fn tables(&mut self, section: &mut Section<'t>, field: &'static str) -> Vec<Section<'t>> {
        let Some(value) = section.take(field) else {
            return Vec::new();
        };
        let line = self.line(value.span().start);
        let mut sections = Vec::new();
        if let DeValue::Array(items) = value.into_inner() {
            for item in items {
                let line = self.line(item.span().start);
                let DeValue::Table(fields) = item.into_inner() else {
                    continue;
                };
                sections.push(Section {
                    title: format!("[[{field}]]"),
                    fields,
                    asked: Vec::new(),
                    line,
                });
            }
        }
        if sections.is_empty() {
            self.fault(
                line,
                format!(
                    "{field} must be sections; write `[[{field}]]` on a line of its own for each"
                ),
            );
        }
        sections
    }

    /// Notes that a field is missing.
    pub fn missing(&mut self, section: &Section<'t>, field: &'static str, example: &str) {
        // Only where it is absent: a field that was there and bad has its own fault.
        if !section.had(field) {
            self.fault(
                section.line.max(1),
                format!(
                    "{} is missing; write {field} = {example}",
                    section.name(field)
                ),
            );
        }
    }

    /// Notes that a section is missing.
    pub fn missing_section(
        &mut self,
        section: &Section<'t>,
        field: &'static str,
        title: &str,
        next: &str,
    ) {
        if !section.had(field) {
            self.fault(1, format!("{title} is missing; add it {next}"));
        }
    }

    /// Ends the reading of a section: what was not asked for is not known.
    pub fn end(&mut self, section: Section<'t>) {
        for key in section.fields.keys() {
            if section.asked.contains(&key.get_ref().as_ref()) {
                continue; // Taken and put back as a mark of presence.
            }
            let line = self.line(key.span().start);
            let title = if section.title.is_empty() {
                String::new()
            } else {
                format!(" in {}", section.title)
            };
            let next = match nearest(key.get_ref(), section.asked.iter().copied()) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("known here are {}", backticked(&section.asked)),
            };
            self.fault(
                line,
                format!(
                    "unknown field {}{title}; {next}",
                    bounded(key.get_ref(), FIELD_ECHO_MAX)
                ),
            );
        }
    }

    /// The value, if nothing was wrong.
    ///
    /// # Errors
    /// All that was noted, and that `value` could not be had.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Vec<Fault>> {
        self.faults.sort_by_key(|fault| fault.line);
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ if self.faults.is_empty() => Err(vec![Fault::whole(self.file, "is not complete")]),
            _ => Err(self.faults),
        }
    }

    fn parse_text<T>(&mut self, name: &str, text: &Placed<String>, shape: &str) -> Option<Placed<T>>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        match text.value.parse() {
            Ok(value) => Some(Placed {
                value,
                line: text.line,
            }),
            Err(error) => {
                self.fault(
                    text.line,
                    format!(
                        "{name} cannot be {}: {error}; write, for example, `{shape}`",
                        echo(&text.value)
                    ),
                );
                None
            }
        }
    }

    fn line(&self, offset: usize) -> usize {
        let before = self
            .text
            .as_bytes()
            .get(..offset)
            .unwrap_or(self.text.as_bytes());
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

impl<'t> Section<'t> {
    /// Its line, from 1; 0 for the whole file.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    fn take(&mut self, field: &'static str) -> Option<Spanned<DeValue<'t>>> {
        self.asked.push(field);
        let value = self.fields.get_mut(field)?;
        let span = value.span();
        Some(std::mem::replace(
            value,
            Spanned::new(span, DeValue::Boolean(true)),
        ))
    }

    fn had(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    fn name(&self, field: &str) -> String {
        if self.title.is_empty() {
            field.to_owned()
        } else {
            format!("{field} in {}", self.title)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_named_with_its_line_and_the_field_that_was_meant() {
        let faults = read("host = \"sql01\"\nprot = 1433\n").unwrap_err();
        assert_eq!(
            faults,
            [
                "f.toml:1: port is missing; write port = 1433",
                "f.toml:2: unknown field \"prot\"; did you mean `port`?"
            ]
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_told_what_to_be() {
        let faults = read("host = 5\nport = \"1433\"").unwrap_err();
        assert_eq!(
            faults[0],
            "f.toml:1: host is a number; write a text, like `host = \"sql01\"`"
        );
        assert_eq!(
            faults[1],
            "f.toml:2: port must be a whole number from 1 to 65535; write, for example, `port = 1433`"
        );
    }

    #[test]
    fn a_broken_text_names_its_line() {
        let faults = read("host = \"sql01\"\nport = = 3\n").unwrap_err();
        assert!(
            faults[0].starts_with("f.toml:2: this is not TOML: "),
            "{faults:?}"
        );
    }

    #[test]
    fn a_long_name_is_not_repeated() {
        let secret = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg".repeat(2);
        let faults = read(&format!("{secret} = 1\nhost = \"sql01\"\nport = 1")).unwrap_err();
        assert!(
            !faults[0].contains(&secret) && faults[0].starts_with("f.toml:1: unknown field"),
            "{faults:?}"
        );
    }

    #[test]
    fn a_right_file_is_read_whole() {
        assert_eq!(
            read("port = 1433\nhost = \"sql01\"").unwrap(),
            ("sql01".to_owned(), 1433)
        );
    }

    fn read(text: &str) -> Result<(String, u16), Vec<String>> {
        let read = || {
            let (mut document, mut root) = Document::parse("f.toml", text)?;
            let host = document.string(&mut root, "host", "sql01");
            let port = document.integer(&mut root, "port", 1..=u16::MAX, 1433);
            document.missing(&root, "host", "\"sql01\"");
            document.missing(&root, "port", "1433");
            document.end(root);
            document.finish(host.zip(port).map(|(host, port)| (host.value, port.value)))
        };
        read().map_err(|faults| faults.iter().map(Fault::to_string).collect())
    }
}
