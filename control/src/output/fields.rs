//! How the fields of a log line are written. Whatever is in a value, it stays within its line and
//! changes nothing on a terminal.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use underpass_proto::printable::Escaping;

/// Most bytes of one value, before it is escaped: a list of faults fits, an endless text does not
/// fill the disk.
const VALUE_MAX: usize = 8 * 1024;

/// Like the subscriber's own, with values escaped and cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

/// One line, field by field.
struct Line<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn value(&mut self, field: &Field, value: &dyn Debug) -> fmt::Result {
        if !std::mem::replace(&mut self.is_first, false) {
            self.writer.write_char(' ')?;
        }
        if field.name() != "message" {
            let name = field.name().trim_start_matches("r#");
            if self.writer.has_ansi_escapes() {
                write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?;
            } else {
                write!(self.writer, "{name}=")?;
            }
        }
        let mut escaping = Escaping {
            out: &mut self.writer,
            kept: &[],
        };
        let mut cut = Cut {
            out: &mut escaping,
            left: VALUE_MAX,
        };
        match write!(cut, "{value:?}") {
            Err(_) if cut.left == 0 => self.writer.write_char('…'),
            result => result,
        }
    }
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.result.is_ok() {
            self.result = self.value(field, value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }
}

/// Takes so many bytes and fails then.
struct Cut<'a, W> {
    out: &'a mut W,
    left: usize,
}

impl<W: Write> Write for Cut<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let taken = text.floor_char_boundary(self.left);
        self.out.write_str(&text[..taken])?;
        if taken < text.len() {
            self.left = 0;
            return Err(fmt::Error);
        }
        self.left -= taken;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[test]
    fn no_value_of_a_field_ends_its_line_or_reaches_the_terminal() {
        let nasty = "bye\n2026-01-01T00:00:00Z  INFO registered\x1b[2J\r\u{9b}31m\u{202e}\u{2028}";
        for ansi in [false, true] {
            let lines = logged(ansi, || {
                tracing::info!(why = %nasty, text = nasty, debug = ?Some(nasty), "{nasty}");
                tracing::warn!(hyco = %"payroll-sql", count = 3, "flows \"failed\"");
            });
            let [first, second] = &lines[..] else {
                panic!("{lines:?}");
            };
            assert_eq!(first.matches("bye").count(), 4, "{first}");
            assert!(!first.contains("\x1b[2J"), "{first}");
            let shown = first.replace("\x1b[", "");
            assert!(
                !shown.contains(underpass_proto::printable::is_control),
                "{first}"
            );
            if !ansi {
                assert_eq!(second, " WARN flows \"failed\" hyco=payroll-sql count=3");
            }
        }
    }

    #[test]
    fn a_value_without_end_is_cut() {
        let lines = logged(
            false,
            || tracing::info!(why = %"ä".repeat(1 << 20), after = 1, "long"),
        );
        assert_eq!(lines.len(), 1);
        assert!(lines[0].ends_with("ä… after=1"));
        assert!(lines[0].len() < VALUE_MAX + 100);
    }

    fn logged(ansi: bool, log: impl FnOnce()) -> Vec<String> {
        let written = Written::default();
        let subscriber = tracing_subscriber::fmt()
            .with_target(false)
            .without_time()
            .with_ansi(ansi)
            .fmt_fields(Fields)
            .with_writer(written.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let text = written.0.lock().unwrap().clone();
        let text = String::from_utf8(text).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl<'a> MakeWriter<'a> for Written {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
