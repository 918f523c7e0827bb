//! Changes single fields of a TOML text and leaves all else as a person wrote it: comments, order,
//! spelling. Reads and writes no files.

use toml_edit::{DocumentMut, Item, TableLike, Value};

/// Sets fields of a text, or takes them out. Says in the end what the text is.
#[derive(Default)]
pub(super) struct Edit {
    document: DocumentMut,
}

impl Edit {
    /// # Errors
    /// The text is not TOML.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(document) => Ok(Self { document }),
            Err(error) => Err(not_toml(&error)),
        }
    }

    /// A field of the whole text; `None` takes it out.
    pub(super) fn set(&mut self, field: &str, value: Option<Value>) {
        match value {
            Some(value) => put(self.document.as_table_mut(), field, value),
            None => self.take_out(field),
        }
    }

    /// A field of a section, which is made where it is missing.
    ///
    /// # Errors
    /// The section is no section.
    pub(super) fn set_in(
        &mut self,
        section: &str,
        field: &str,
        value: Value,
    ) -> Result<(), String> {
        let section = self
            .document
            .entry(section)
            .or_insert_with(toml_edit::table)
            .as_table_like_mut()
            .ok_or_else(|| format!("{section} is not a section"))?;
        put(section, field, value);
        Ok(())
    }

    pub(super) fn text(self) -> String {
        self.document.to_string()
    }

    /// What is said above a field that goes is kept: it may be about the whole file.
    fn take_out(&mut self, field: &str) {
        let table = self.document.as_table_mut();
        let next = table
            .iter()
            .skip_while(|(key, _)| *key != field)
            .nth(1)
            .map(|(key, _)| key.to_owned());
        let Some((key, _)) = table.remove_entry(field) else {
            return;
        };
        let above = |decor: &toml_edit::Decor| {
            decor
                .prefix()
                .and_then(|prefix| prefix.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let kept = above(key.leaf_decor());
        if !kept.contains('#') {
            return;
        }
        if let Some(mut key) = next.as_deref().and_then(|next| table.key_mut(next)) {
            let own = above(key.leaf_decor());
            key.leaf_decor_mut().set_prefix(kept + &own);
            return;
        }
        let rest = self
            .document
            .trailing()
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.document.set_trailing(kept + &rest);
    }
}

/// One text field of a section.
///
/// # Errors
/// See [`Edit`].
pub(super) fn set_in(
    text: &str,
    section: &str,
    field: &str,
    value: &str,
) -> Result<String, String> {
    let mut edit = Edit::new(text)?;
    edit.set_in(section, field, value.into())?;
    Ok(edit.text())
}

/// The value alone changes: what stands behind it in its line stays.
fn put(table: &mut dyn TableLike, field: &str, mut value: Value) {
    match table.get_mut(field).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => {
            table.insert(field, Item::Value(value));
        }
    }
}

/// Without the line itself: it may hold a key.
fn not_toml(error: &toml_edit::TomlError) -> String {
    let what: Vec<&str> = error.message().split_whitespace().collect();
    format!("is not TOML: {}", what.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Payroll, ask Ann.\n\n# moved in May\nhost = 'sql01' # the old one\nport = 1433\n\n[limits] # agreed\nflows_max = 4\n";

    #[test]
    fn a_changed_value_leaves_everything_around_it() {
        let changed = edited(|edit| edit.set("host", Some("sql02".into())));
        assert_eq!(changed, TEXT.replace("'sql01'", "\"sql02\""));
        let changed = edited(|edit| edit.set_in("limits", "flows_max", 5.into()).unwrap());
        assert_eq!(changed, TEXT.replace("= 4", "= 5"));
    }

    #[test]
    fn a_new_field_stands_before_the_sections() {
        let changed = edited(|edit| edit.set("bind", Some("127.0.0.1:1".into())));
        assert_eq!(
            changed,
            TEXT.replace("1433\n", "1433\nbind = \"127.0.0.1:1\"\n")
        );
        let changed = set_in("host = \"a\"\n", "limits", "flows_max", "x").unwrap();
        assert_eq!(changed, "host = \"a\"\n\n[limits]\nflows_max = \"x\"\n");
    }

    #[test]
    fn what_stands_above_a_field_that_goes_is_kept() {
        let changed = edited(|edit| edit.set("host", None));
        assert_eq!(
            changed,
            "# Payroll, ask Ann.\n\n# moved in May\nport = 1433\n\n[limits] # agreed\nflows_max = 4\n"
        );
        let mut edit = Edit::new("host = 'a'\n# of old\nbind = 'b'\n# the end\n").unwrap();
        edit.set("bind", None);
        assert_eq!(edit.text(), "host = 'a'\n# of old\n# the end\n");
    }

    #[test]
    fn what_is_not_toml_is_not_repeated() {
        let told = set_in("[listen]\nprimary = c2VjcmV0", "listen", "primary", "x").unwrap_err();
        assert!(
            told.starts_with("is not TOML: ") && !told.contains("c2Vjc"),
            "{told}"
        );
        assert_eq!(
            set_in("limits = 1", "limits", "a", "x").unwrap_err(),
            "limits is not a section"
        );
    }

    fn edited(change: impl FnOnce(&mut Edit)) -> String {
        let mut edit = Edit::new(TEXT).unwrap();
        change(&mut edit);
        edit.text()
    }
}
