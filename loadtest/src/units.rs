//! Sizes and times as people write them, on the command line and in files.

use std::time::Duration;

/// `4096`, `64k`, `10MiB`, `1g`: powers of 1,024.
///
/// # Errors
/// What is wrong with it.
pub fn size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let wrong = || format!("{text:?} is no size: write it like 4096, \"64k\" or \"10MiB\"");
    let number: u64 = digits.trim_end().parse().map_err(|_| wrong())?;
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        unit => return Err(format!("{unit} is no unit of size: use k, m or g")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is too large"))
}

/// `10`, `10s`, `500ms`, `50us`, `2m`, `1h`.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
    let wrong = || format!("{text:?} is no time: write it like 10, \"10s\" or \"500ms\"");
    let number: f64 = digits.trim_end().parse().map_err(|_| wrong())?;
    let scale = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        unit => return Err(format!("{unit} is no unit of time: use us, ms, s, m or h")),
    };
    Duration::try_from_secs_f64(number * scale).map_err(|_| format!("{text} is no time"))
}

/// `0.02`, `2%`.
///
/// # Errors
/// What is wrong with it.
pub fn chance(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let (number, scale) = text
        .strip_suffix('%')
        .map_or((text, 1.0), |number| (number, 0.01));
    let chance = number
        .trim_end()
        .parse::<f64>()
        .ok()
        .map(|number| number * scale);
    chance
        .filter(|chance| (0.0..=1.0).contains(chance))
        .ok_or_else(|| format!("{text:?} is no chance: write it like 2% or 0.02"))
}

/// `500k`, `20m`, `1g`, in bits per second: powers of 1,000.
///
/// # Errors
/// What is wrong with it.
pub fn bit_rate(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let wrong = || format!("{text:?} is no rate: write it like 500k or 20m, in bits per second");
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let scale = match &lower[digits.len()..] {
        "" => 1.0,
        "k" | "kbit" => 1e3,
        "m" | "mbit" => 1e6,
        "g" | "gbit" => 1e9,
        _ => return Err(wrong()),
    };
    Some(number * scale)
        .filter(|rate| (1.0..1e15).contains(rate))
        .map(|rate| rate as u64)
        .ok_or_else(wrong)
}

/// `57 µs`, `1.20 ms`, `3.00 s`.
pub fn show_time(time: Duration) -> String {
    let us = time.as_nanos() as f64 / 1e3;
    match us {
        ..99.95 => format!("{us:.1} µs"),
        ..999.5 => format!("{us:.0} µs"),
        ..999_500.0 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// `4.20 Gbit/s`, `850 kbit/s`: powers of 1,000.
pub fn show_rate(bytes_per_second: f64) -> String {
    let kbit = bytes_per_second * 8e-3;
    match kbit {
        ..999.5 => format!("{kbit:.0} kbit/s"),
        ..999_500.0 => format!("{:.1} Mbit/s", kbit / 1e3),
        _ => format!("{:.2} Gbit/s", kbit / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_with_their_units() {
        assert_eq!(size("17"), Ok(17));
        assert_eq!(size("64k"), Ok(65_536));
        assert_eq!(size("2MiB"), Ok(2 << 20));
        assert_eq!(size("1 g"), Ok(1 << 30));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("50us"), Ok(Duration::from_micros(50)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!((chance("2%"), chance("0.02")), (Ok(0.02), Ok(0.02)));
        assert_eq!(
            (bit_rate("4m"), bit_rate("500kbit")),
            (Ok(4_000_000), Ok(500_000))
        );
        assert!(chance("120%").is_err() && bit_rate("0").is_err() && bit_rate("fast").is_err());
        assert_eq!(show_time(Duration::from_nanos(57_340)), "57.3 µs");
        assert_eq!(show_time(Duration::from_micros(999_600)), "1.00 s");
        assert_eq!(show_rate(525e6), "4.20 Gbit/s");
        assert_eq!(show_rate(1e4), "80 kbit/s");
        for wrong in ["", "k", "5x", "-1", "1e400", "99999999999g"] {
            assert!(
                size(wrong).is_err() && duration(wrong).is_err(),
                "{wrong:?}"
            );
        }
    }
}
