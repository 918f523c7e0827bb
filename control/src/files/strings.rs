//! Connection strings as agents and senders are given them: a private file, or a text from
//! elsewhere. No error repeats any part of one.

use std::io::ErrorKind;
use std::path::Path;

use underpass_proto::{ConnectionString, Rule};

use super::pasted::{self, Unclear};
use super::{Fault, disk, private, unreadable};

/// Reads a file that holds one connection string of a rule, and nothing else.
///
/// # Errors
/// What is wrong, without the string: unreadable, others can read it, no connection string, or one
/// of the other rule.
pub fn load(path: &Path, rule: Rule) -> Result<ConnectionString, Fault> {
    let file = path.display().to_string();
    let read = disk::read_bytes(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Fault::whole(
            &file,
            format!(
                "is not there; make it on the relay's machine with `underpass connection string NAME --role {} --out FILE`",
                role(rule)
            ),
        ),
        _ => unreadable(&file, &error),
    })?;
    private::check(&file, path, &read.stamp)?;
    parse_bytes(&file, &read.bytes, rule)
}

/// The same as [`parse`], of bytes: Windows' shells write UTF-16.
///
/// # Errors
/// What is wrong, without the string.
pub fn parse_bytes(from: &str, bytes: &[u8], rule: Rule) -> Result<ConnectionString, Fault> {
    let text = pasted::decoded(bytes).ok_or_else(|| {
        Fault::whole(
            from,
            "is neither UTF-8 nor UTF-16 text; put one connection string there, on one line, and nothing else",
        )
    })?;
    parse(from, &text, rule)
}

/// Reads the text of a connection string of a rule. `from` says where it was found.
///
/// # Errors
/// What is wrong, without the string.
pub fn parse(from: &str, text: &str, rule: Rule) -> Result<ConnectionString, Fault> {
    let text = pasted::found(text).map_err(|unclear| {
        let what = match unclear {
            Unclear::Empty => format!(
                "is empty; put there what `underpass connection string NAME --role {}` printed",
                role(rule)
            ),
            Unclear::Lines => "has more than one line; put one connection string there, on one line, and nothing else".into(),
        };
        Fault::whole(from, what)
    })?;
    let string: ConnectionString = text.parse().map_err(|error| {
        Fault::whole(
            from,
            format!(
                "is not a connection string: {error}; put there what `underpass connection string NAME --role {}` printed",
                role(rule)
            ),
        )
    })?;
    if string.rule != rule {
        return Err(Fault::whole(from, wrong_rule(&string, rule)));
    }
    Ok(string)
}

/// Whom a string of this rule is for, as `--role` names them.
#[must_use]
pub fn role(rule: Rule) -> &'static str {
    match rule {
        Rule::Listen => "on-premises",
        Rule::Send => "application",
    }
}

fn wrong_rule(string: &ConnectionString, wanted: Rule) -> String {
    let (whose, who) = match wanted {
        Rule::Listen => ("an application's", "an agent"),
        Rule::Send => ("an on-premises", "a sender"),
    };
    format!(
        "is {whose} string ({}); {who} needs the one that `underpass connection string {} --role {}` prints",
        string.rule,
        string.name,
        role(wanted)
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const STRING: &str = "Endpoint=hc://relay.example.com/payroll-sql;SharedAccessKeyName=defaultListener;SharedAccessKey=c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";

    #[test]
    fn a_string_file_is_read_and_one_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.connection");
        disk::create(&path, format!("\n{STRING}\n").as_bytes(), disk::SECRET).unwrap();
        assert_eq!(
            load(&path, Rule::Listen).unwrap().name.as_str(),
            "payroll-sql"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let told = load(&path, Rule::Listen).unwrap_err().to_string();
        assert!(
            told.ends_with(&format!(
                "others can read it (mode 640), so it is not used; run `chmod 600 {}`, and replace its keys if somebody may have read them",
                path.display()
            )),
            "{told}"
        );
    }

    #[test]
    fn a_file_that_windows_wrote_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.connection");
        let text = format!("\u{feff}NAME=\"{STRING}\"\r\n");
        let utf_16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for bytes in [text.as_bytes(), &utf_16] {
            disk::replace(&path, bytes, disk::SECRET).unwrap();
            assert_eq!(
                load(&path, Rule::Listen),
                STRING.parse().map_err(|_| unreachable!())
            );
        }
        disk::replace(&path, &utf_16[..utf_16.len() - 1], disk::SECRET).unwrap();
        let told = load(&path, Rule::Listen).unwrap_err().to_string();
        assert!(
            told.contains("is neither UTF-8 nor UTF-16 text") && !told.contains("c2Vj"),
            "{told}"
        );
    }

    #[test]
    fn a_string_that_is_none_is_not_repeated() {
        for text in [
            STRING.replace("hc://", "http://"),
            format!("{STRING}\n{STRING}"),
            STRING.replace("Listener", "Sender"),
        ] {
            let told = parse("stdin", &text, Rule::Listen).unwrap_err().to_string();
            assert!(!told.contains("c2Vjc") && told.contains("string"), "{told}");
        }
    }

    #[test]
    fn each_side_is_told_which_string_it_needs() {
        let told = parse("stdin", STRING, Rule::Send).unwrap_err().to_string();
        assert_eq!(
            told,
            "stdin: is an on-premises string (defaultListener); a sender needs the one that `underpass connection string payroll-sql --role application` prints"
        );
        let told = parse("stdin", " \n", Rule::Send).unwrap_err().to_string();
        assert_eq!(
            told,
            "stdin: is empty; put there what `underpass connection string NAME --role application` printed"
        );
    }
}
