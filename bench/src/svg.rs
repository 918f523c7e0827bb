//! Text in the charts of this crate.

pub(crate) use underpass_loadtest::results::escape as escaped;

/// Breaks a text between words into lines of at most `columns` characters; a longer word has a line
/// of its own.
pub(crate) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("never empty");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("a bc defg h", 4), ["a bc", "defg", "h"]);
        assert_eq!(wrapped("longer a", 3), ["longer", "a"]);
        let text = ["word"; 100].join(" ");
        let lines = wrapped(&text, 165);
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= 165));
        assert_eq!(lines.join(" "), text);
    }
}
