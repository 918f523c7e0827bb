//! How quantities are written for people, three or four digits and a unit of a thousand, and how
//! people type lengths of time.

use std::time::Duration;

/// Bytes, like `1.5 MB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut scaled = count as f64;
    let mut unit = 0;
    while scaled >= 1000.0 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}

/// Bits per second, like `1.5 Gbit/s`.
pub(crate) fn rate(bytes: u64, over: Duration) -> String {
    let seconds = over.as_secs_f64().max(f64::EPSILON);
    match bytes as f64 * 8.0 / seconds {
        bits if bits >= 1e9 => format!("{:.1} Gbit/s", bits / 1e9),
        bits if bits >= 1e6 => format!("{:.1} Mbit/s", bits / 1e6),
        bits => format!("{:.0} kbit/s", bits / 1e3),
    }
}

/// Microseconds, as milliseconds.
pub(crate) fn millis(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

/// How long ago, milliseconds, in the largest unit that says something.
pub(crate) fn ago(ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let seconds = ms / 1000;
    let unit = UNITS.iter().find(|(length, _)| seconds >= *length);
    match unit.map(|(length, unit)| (seconds / length, unit)) {
        None => "just now".into(),
        Some((1, unit)) => format!("1 {unit} ago"),
        Some((count, unit)) => format!("{count} {unit}s ago"),
    }
}

/// A length of time as it is typed: a whole number with a unit; without one, seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let end = text
        .find(|digit: char| !digit.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let millis = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let number = number.parse::<u64>().ok().filter(|_| millis > 0);
    number
        .and_then(|number| number.checked_mul(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| "write a whole number and ms, s, m or h, like 30s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_bytes_are_short() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_500), "1.5 kB");
        assert_eq!(bytes(1 << 30), "1.1 GB");
        assert_eq!(bytes(u64::MAX), "18446.7 PB");
    }

    #[test]
    fn rates_are_in_bits() {
        let second = Duration::from_secs(1);
        assert_eq!(rate(0, second), "0 kbit/s");
        assert_eq!(rate(1_000, second), "8 kbit/s");
        assert_eq!(rate(250_000, 2 * second), "1.0 Mbit/s");
        assert_eq!(rate(1 << 30, second), "8.6 Gbit/s");
    }

    #[test]
    fn short_times_keep_their_microseconds() {
        assert_eq!(millis(7), "0.007 ms");
        assert_eq!(millis(12_345), "12.345 ms");
    }

    #[test]
    fn times_past_have_one_unit() {
        assert_eq!(ago(999), "just now");
        assert_eq!(ago(1_000), "1 second ago");
        assert_eq!(ago(119_000), "1 minute ago");
        assert_eq!(ago(2 * 3_600_000), "2 hours ago");
        assert_eq!(ago(3 * 86_400_000 + 5), "3 days ago");
    }

    #[test]
    fn times_are_numbers_with_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in [
            "",
            "s",
            "1.5s",
            "-1s",
            "5 s",
            "5d",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
