//! Changes an allow-list in the text of an `agent.toml` or a `sender.toml`: the one for all
//! connection strings, or that of one `[[connect]]`. All other text stays as it is, comments
//! included.

use underpass_proto::AllowEntry;

use super::wording::one_line;

/// Which list of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum List {
    /// The one for all connection strings.
    ForAll,
    /// That of one `[[connect]]`, counted from 0.
    Connect(usize),
}

/// What became of the text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changed {
    /// The new text.
    pub text: String,
    /// Entries that were put in, or taken out.
    pub done: Vec<AllowEntry>,
    /// Entries for which there was nothing to do: they were there, or were not.
    pub idle: Vec<AllowEntry>,
    /// All entries that stand there now, as they are written.
    pub now: Vec<String>,
}

/// Puts entries in, those that are not there yet, at the end of the list.
///
/// # Errors
/// Why the text cannot be changed.
pub fn add(text: &str, which: List, entries: &[AllowEntry]) -> Result<Changed, String> {
    edit(text, which, entries, |list, entry| {
        if position(list, entry).is_some() {
            return false;
        }
        push(list, &entry.to_string());
        true
    })
}

/// Takes entries out.
///
/// # Errors
/// Why the text cannot be changed.
pub fn remove(text: &str, which: List, entries: &[AllowEntry]) -> Result<Changed, String> {
    edit(text, which, entries, |list, entry| {
        let found = position(list, entry);
        if let Some(index) = found {
            take_out(list, index);
        }
        found.is_some()
    })
}

fn edit(
    text: &str,
    which: List,
    entries: &[AllowEntry],
    mut each: impl FnMut(&mut toml_edit::Array, &AllowEntry) -> bool,
) -> Result<Changed, String> {
    let mut document: toml_edit::DocumentMut = text
        .parse()
        .map_err(|error: toml_edit::TomlError| one_line(error.message()))?;
    let list = list_of(&mut document, which)?;
    let (mut done, mut idle) = (Vec::new(), Vec::new());
    for entry in entries {
        let to = if each(list, entry) {
            &mut done
        } else {
            &mut idle
        };
        to.push(entry.clone());
    }
    let now = list
        .iter()
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect();
    let text = if done.is_empty() {
        text.to_owned()
    } else {
        document.to_string()
    };
    Ok(Changed {
        text,
        done,
        idle,
        now,
    })
}

/// The list, made where it is missing.
fn list_of(
    document: &mut toml_edit::DocumentMut,
    which: List,
) -> Result<&mut toml_edit::Array, String> {
    let table: &mut dyn toml_edit::TableLike = match which {
        List::ForAll => document.as_table_mut(),
        List::Connect(at) => match document.get_mut("connect") {
            Some(toml_edit::Item::ArrayOfTables(tables)) => tables
                .get_mut(at)
                .map(|table| table as &mut dyn toml_edit::TableLike),
            Some(item) => item
                .as_array_mut()
                .and_then(|array| array.get_mut(at)?.as_inline_table_mut())
                .map(|table| table as &mut dyn toml_edit::TableLike),
            None => None,
        }
        .ok_or("[[connect]] is not a list of sections")?,
    };
    if table.get("allow").is_none() {
        table.insert("allow", toml_edit::value(toml_edit::Array::new()));
    }
    let list = table
        .get_mut("allow")
        .and_then(toml_edit::Item::as_array_mut);
    list.ok_or_else(|| "allow is not a list".into())
}

/// Where an entry stands, however it is spelled there.
fn position(list: &toml_edit::Array, entry: &AllowEntry) -> Option<usize> {
    let folded = entry.to_string().to_ascii_lowercase();
    list.iter().position(|value| {
        let written = value
            .as_str()
            .and_then(|text| text.parse::<AllowEntry>().ok());
        written.is_some_and(|written| written.to_string().to_ascii_lowercase() == folded)
    })
}

/// A list with an entry on each line gets one more line; a comment behind the last entry stays
/// behind that.
fn push(list: &mut toml_edit::Array, text: &str) {
    let last_prefix = list.iter().last().map(prefix).unwrap_or_default();
    let Some((_, indent)) = last_prefix.rsplit_once('\n') else {
        return list.push(text);
    };
    let behind_last = take_end(list);
    let (comment, end) = match behind_last.rfind('\n') {
        Some(at) => behind_last.split_at(at),
        None => ("", "\n"),
    };
    let mut value = toml_edit::Value::from(text);
    value.decor_mut().set_prefix(format!("{comment}\n{indent}"));
    list.push_formatted(value);
    list.set_trailing(end);
    list.set_trailing_comma(true);
}

/// Takes an entry out with the comment behind it. What stands behind the entry before is written in
/// front of this one, so the next one inherits that.
fn take_out(list: &mut toml_edit::Array, index: usize) {
    let before = list.get(index).map(prefix).unwrap_or_default();
    let is_last = index + 1 == list.len();
    let end = if is_last {
        take_end(list)
    } else {
        String::new()
    };
    list.remove(index);
    if let Some(next) = list.get_mut(index) {
        next.decor_mut().set_prefix(before);
    } else if let Some((comment, _)) = before.rsplit_once('\n') {
        let line = end.rfind('\n').map_or("\n", |at| &end[at..]);
        list.set_trailing(format!("{comment}{line}"));
        list.set_trailing_comma(!list.is_empty());
    }
}

/// What stands between the last entry and the bracket, which is written elsewhere when there is no
/// comma behind that entry.
fn take_end(list: &mut toml_edit::Array) -> String {
    let trailing = list.trailing().as_str().unwrap_or_default().to_owned();
    let comma = list.trailing_comma();
    let last = list.len().checked_sub(1);
    let Some(last) = last.and_then(|last| list.get_mut(last)).filter(|_| !comma) else {
        return trailing;
    };
    let decor = last.decor_mut();
    let suffix = decor.suffix().and_then(|raw| raw.as_str());
    let suffix = suffix.unwrap_or_default().to_owned();
    decor.set_suffix("");
    suffix + &trailing
}

fn prefix(value: &toml_edit::Value) -> String {
    let raw = value.decor().prefix().and_then(|raw| raw.as_str());
    raw.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(texts: &[&str]) -> Vec<AllowEntry> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_entry_joins_the_others_and_all_else_stays() {
        let text = "# mine\nallow = [\"a:1\"] # those\n\n[[connect]] # first\nstring_file = 'x'\n";
        let changed = add(text, List::ForAll, &entries(&["b.corp:1433", "A:1"])).unwrap();
        assert_eq!(
            changed.text,
            "# mine\nallow = [\"a:1\", \"b.corp:1433\"] # those\n\n[[connect]] # first\nstring_file = 'x'\n"
        );
        assert_eq!(
            (changed.done, changed.idle),
            (entries(&["b.corp:1433"]), entries(&["A:1"]))
        );
        assert_eq!(changed.now, ["a:1", "b.corp:1433"]);
    }

    #[test]
    fn a_list_with_comments_on_its_lines_keeps_them() {
        let text = "allow = [\n    \"a:1\", # payroll\n    \"b:2\", # crm\n]\n";
        let changed = add(text, List::ForAll, &entries(&["c:3"])).unwrap();
        assert_eq!(
            changed.text,
            "allow = [\n    \"a:1\", # payroll\n    \"b:2\", # crm\n    \"c:3\",\n]\n"
        );
        let text = "allow = [\n  \"a:1\",\n  \"b:2\" # crm\n]\n";
        assert_eq!(
            add(text, List::ForAll, &entries(&["c:3"])).unwrap().text,
            "allow = [\n  \"a:1\",\n  \"b:2\", # crm\n  \"c:3\",\n]\n"
        );
        let taken = |entry| {
            remove(&changed.text, List::ForAll, &entries(&[entry]))
                .unwrap()
                .text
        };
        assert_eq!(
            taken("b:2"),
            "allow = [\n    \"a:1\", # payroll\n    \"c:3\",\n]\n"
        );
        assert_eq!(
            taken("c:3"),
            "allow = [\n    \"a:1\", # payroll\n    \"b:2\", # crm\n]\n"
        );
        assert_eq!(
            taken("a:1"),
            "allow = [\n    \"b:2\", # crm\n    \"c:3\",\n]\n"
        );
    }

    #[test]
    fn a_missing_list_is_made_above_the_sections() {
        let text = "workers = 2\n[[connect]]\nstring_file = 'x'\n";
        let changed = add(text, List::ForAll, &entries(&["[fd00::/8]:443"])).unwrap();
        assert_eq!(
            changed.text,
            "workers = 2\nallow = [\"[fd00::/8]:443\"]\n[[connect]]\nstring_file = 'x'\n"
        );
    }

    #[test]
    fn one_connection_string_has_a_list_of_its_own() {
        let text = "allow = ['a:1']\n[[connect]]\nstring_file = 'x'\n\n[[connect]]\nstring_file = 'y' # two\n";
        let changed = add(text, List::Connect(1), &entries(&["b:2"])).unwrap();
        assert_eq!(
            changed.text,
            text.replace("# two\n", "# two\nallow = [\"b:2\"]\n")
        );
        assert_eq!(changed.now, ["b:2"]);
        let inline = "connect = [{ string_file = 'x' }]\n";
        let changed = add(inline, List::Connect(0), &entries(&["b:2"])).unwrap();
        assert_eq!(
            changed.text,
            "connect = [{ string_file = 'x' , allow = [\"b:2\"] }]\n"
        );
        assert_eq!(
            add(inline, List::Connect(1), &entries(&["b:2"])).unwrap_err(),
            "[[connect]] is not a list of sections"
        );
    }

    #[test]
    fn nothing_to_do_leaves_the_text_alone() {
        let text = "allow=['a:1']\n";
        assert_eq!(
            add(text, List::ForAll, &entries(&["a:1"])).unwrap().text,
            text
        );
        assert_eq!(
            remove(text, List::ForAll, &entries(&["b:1"])).unwrap().text,
            text
        );
        assert_eq!(
            remove("", List::ForAll, &entries(&["b:1"])).unwrap().text,
            ""
        );
    }

    #[test]
    fn what_cannot_be_changed_is_told() {
        assert_eq!(
            add("allow = 5", List::ForAll, &entries(&["a:1"])).unwrap_err(),
            "allow is not a list"
        );
        assert!(add("allow = = 5", List::ForAll, &entries(&["a:1"])).is_err());
    }
}
