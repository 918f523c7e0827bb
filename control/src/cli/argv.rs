//! Refuses secrets among the arguments, before anything is parsed or repeated: everybody on the
//! machine can read arguments, and shells keep them.

use std::ffi::OsString;

use underpass_proto::ConnectionString;
use zeroize::Zeroizing;

use super::{Exit, Failure};
use crate::files::wording::is_like_a_key;

/// What only connection strings and tokens have, in lower case and without spaces.
const SIGNS: [&str; 5] = [
    "sharedaccesskey=",
    "sharedaccesssignature",
    "endpoint=hc://",
    "endpoint=sb://",
    "&sig=",
];

/// Says so where an argument holds a secret.
pub(super) fn refuse_secrets(arguments: &[OsString]) -> Result<(), Failure> {
    let mut what = None;
    for argument in arguments.iter().skip(1) {
        let text = Zeroizing::new(argument.to_string_lossy().into_owned());
        what = what.or_else(|| secret_in(&text));
    }
    let Some(what) = what else { return Ok(()) };
    let error = format!(
        "an argument holds {what}; everybody on this machine could read it, so it is not accepted"
    );
    Err(Failure::new(Exit::Usage, error)
        .hint("put the connection string into a file that only you can read, and name that: `--connection-string-file FILE`; if others use this machine, replace the key"))
}

/// What kind of secret an argument holds, if it does.
fn secret_in(argument: &str) -> Option<&'static str> {
    let folded: Zeroizing<String> = Zeroizing::new(
        argument
            .chars()
            .filter(|letter| !letter.is_whitespace() && !matches!(letter, '"' | '\''))
            .flat_map(char::to_lowercase)
            .collect(),
    );
    // As an argument of its own, or behind the `=` of an option.
    let value = match argument.strip_prefix("--") {
        Some(option) => option.split_once('=').map_or("", |(_, value)| value),
        None => argument,
    };
    if SIGNS.iter().any(|sign| folded.contains(sign)) || value.parse::<ConnectionString>().is_ok() {
        Some("a connection string")
    } else if is_like_a_key(value.trim()) {
        Some("what looks like a key")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "c2VjcmV0LWtleS1mb3ItdGVzdHMtb25seS0wMTIzNDU2Nzg=";

    #[test]
    fn strings_tokens_and_keys_are_seen_wherever_they_stand() {
        for secret in [
            &format!("Endpoint=hc://r/payroll-sql;SharedAccessKey={KEY}"),
            &format!(
                "--connection-string=endpoint = \"sb://r/\";EntityPath=payroll-sql;SHAREDACCESSKEY={KEY}"
            ),
            &format!("--key={KEY}"),
            &format!("SharedAccessKey = {KEY}"),
            KEY,
            "SharedAccessSignature sr=a&sig=b&se=1&skn=manage",
        ] {
            assert!(secret_in(secret).is_some(), "{secret}");
        }
    }

    #[test]
    fn names_paths_and_options_are_let_through() {
        for harmless in [
            "--connection-string-file=/etc/underpass/payroll-sql.connection",
            "payroll-sql",
            "/var/lib/underpass/abcdefghijklmnopqrstuvwxyzabcdefghijk",
            "--log=underpass_dataplane=debug",
            "c2hvcnQ=",
            "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(secret_in(harmless), None, "{harmless}");
        }
    }
}
