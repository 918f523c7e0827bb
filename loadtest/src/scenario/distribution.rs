//! A distribution of times that can be merged and written to a file without loss: an HDR histogram
//! with three significant digits.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Times are told apart from this on, nanoseconds: less than a system call takes.
const TIME_MIN_NS: u64 = 100;

/// Longer times count as this, nanoseconds: a day, which no scenario exceeds.
const TIME_MAX_NS: u64 = 24 * 3600 * 1_000_000_000;

/// Significant digits: a permille is finer than any figure here repeats.
const DIGITS: u8 = 3;

/// More in one bucket of a file than any run can count; so sums do not overflow.
const COUNT_MAX: u64 = u64::MAX >> 24;

/// Times, counted. In JSON: the usual percentiles in microseconds, and every bucket, so that it can
/// be read back and merged.
#[derive(Clone, PartialEq, Debug)]
pub struct Distribution {
    histogram: Histogram<u64>,
}

#[derive(Serialize)]
struct Written<'a> {
    count: u64,
    min_us: f64,
    mean_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    buckets_ns: &'a [(u64, u64)],
}

/// The percentiles are made anew from the buckets.
#[derive(Deserialize)]
struct Read {
    buckets_ns: Vec<(u64, u64)>,
}

impl Default for Distribution {
    fn default() -> Distribution {
        Distribution {
            histogram: Histogram::new_with_bounds(TIME_MIN_NS, TIME_MAX_NS, DIGITS)
                .expect("bounds and digits are in the permitted range"),
        }
    }
}

impl Distribution {
    /// Counts one time.
    pub fn record(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(TIME_MAX_NS);
        self.histogram.saturating_record(ns);
    }

    /// Takes in all of another one.
    pub fn add(&mut self, other: &Distribution) {
        self.histogram
            .add(&other.histogram)
            .expect("all distributions have the same bounds");
    }

    /// Forgets everything, and keeps its memory.
    pub fn clear(&mut self) {
        self.histogram.reset();
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The time that this share of all did not exceed: `at(0.99)` is the 99th percentile. `None`
    /// where nothing was counted.
    pub fn at(&self, quantile: f64) -> Option<Duration> {
        self.some(self.histogram.value_at_quantile(quantile))
    }

    /// The longest.
    pub fn max(&self) -> Option<Duration> {
        self.some(self.histogram.max())
    }

    /// The shortest.
    pub fn min(&self) -> Option<Duration> {
        self.some(self.histogram.min())
    }

    /// The mean.
    pub fn mean(&self) -> Option<Duration> {
        self.some(self.histogram.mean() as u64)
    }

    fn some(&self, ns: u64) -> Option<Duration> {
        (self.count() > 0).then(|| Duration::from_nanos(ns))
    }

    fn buckets(&self) -> Vec<(u64, u64)> {
        self.histogram
            .iter_recorded()
            .map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
            .collect()
    }
}

/// A small distribution for one entry of a series: times to a percent, in as little memory as they
/// need.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sketch {
    /// Times in nanoseconds, ascending, and how often each came.
    buckets: Vec<(u64, u64)>,
}

#[derive(Serialize)]
struct WrittenSketch<'a> {
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
    buckets_ns: &'a [(u64, u64)],
}

impl Sketch {
    /// What was recorded, in fewer words.
    pub(crate) fn of(distribution: &Distribution) -> Sketch {
        let mut sketch = Sketch::default();
        for (ns, count) in distribution.buckets() {
            sketch.push(coarse(ns), count);
        }
        sketch
    }

    /// How many times were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|&(_, count)| count).sum()
    }

    /// The time that this share of all did not exceed. `None` where nothing was counted.
    pub fn at(&self, quantile: f64) -> Option<Duration> {
        let wanted = (self.count() as f64 * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.buckets.iter().find_map(|&(ns, count)| {
            seen += count;
            (seen >= wanted).then(|| Duration::from_nanos(ns))
        })
    }

    /// The longest.
    pub fn max(&self) -> Option<Duration> {
        self.buckets.last().map(|&(ns, _)| Duration::from_nanos(ns))
    }

    /// Takes in all of another one.
    pub(crate) fn add(&mut self, other: &Sketch) {
        let mut all = [self.buckets.as_slice(), &other.buckets].concat();
        all.sort_unstable();
        self.buckets.clear();
        for (ns, count) in all {
            self.push(ns, count);
        }
    }

    /// At the end; times ascend.
    fn push(&mut self, ns: u64, count: u64) {
        match self.buckets.last_mut() {
            Some((last, sum)) if *last == ns => *sum = sum.saturating_add(count),
            _ => self.buckets.push((ns, count)),
        }
    }
}

/// The upper end of the bucket: seven significant bits.
fn coarse(ns: u64) -> u64 {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(7);
    ((ns >> shift) << shift) | ((1 << shift) - 1)
}

impl Serialize for Sketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        WrittenSketch {
            p50_us: us(self.at(0.5)),
            p99_us: us(self.at(0.99)),
            max_us: us(self.max()),
            buckets_ns: &self.buckets,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sketch, D::Error> {
        let Read { mut buckets_ns } = Read::deserialize(deserializer)?;
        buckets_ns.sort_unstable();
        let mut sketch = Sketch::default();
        for (ns, count) in buckets_ns {
            if count > COUNT_MAX {
                return Err(D::Error::custom(format!("{count} times in one bucket")));
            }
            sketch.push(ns, count);
        }
        Ok(sketch)
    }
}

fn us(time: Option<Duration>) -> f64 {
    time.map_or(0.0, |time| time.as_nanos() as f64 / 1e3)
}

impl Serialize for Distribution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written {
            count: self.count(),
            min_us: us(self.min()),
            mean_us: us(self.mean()),
            p50_us: us(self.at(0.5)),
            p90_us: us(self.at(0.9)),
            p99_us: us(self.at(0.99)),
            p999_us: us(self.at(0.999)),
            max_us: us(self.max()),
            buckets_ns: &self.buckets(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Distribution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Distribution, D::Error> {
        let Read { buckets_ns } = Read::deserialize(deserializer)?;
        let mut distribution = Distribution::default();
        for (ns, count) in buckets_ns {
            if count > COUNT_MAX || distribution.count() > COUNT_MAX {
                return Err(D::Error::custom(format!("{count} times in one bucket")));
            }
            distribution.histogram.saturating_record_n(ns, count);
        }
        Ok(distribution)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_to_a_permille() {
        let mut all = Distribution::default();
        for ms in 1..=1000 {
            all.record(Duration::from_millis(ms));
        }
        for (quantile, expected) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0)] {
            let got = all.at(quantile).expect("recorded").as_secs_f64() * 1e3;
            assert!((got / expected - 1.0).abs() < 0.001, "{quantile}: {got}");
        }
        assert_eq!(all.count(), 1000);
        assert_eq!(Distribution::default().at(0.5), None);
    }

    #[test]
    fn a_sketch_is_right_to_two_percent_and_merges() {
        let (mut odd, mut even) = (Distribution::default(), Distribution::default());
        for us in 1..=10_000 {
            let part = if us % 2 == 1 { &mut odd } else { &mut even };
            part.record(Duration::from_micros(us));
        }
        let mut sketch = Sketch::of(&odd);
        sketch.add(&Sketch::of(&even));
        assert_eq!(sketch.count(), 10_000);
        for (quantile, expected) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let got = sketch.at(quantile).expect("recorded").as_secs_f64() * 1e6;
            assert!((got / expected - 1.0).abs() < 0.02, "{quantile}: {got}");
        }
        let written = serde_json::to_string(&sketch).expect("is written");
        assert_eq!(serde_json::from_str::<Sketch>(&written).ok(), Some(sketch));
        assert_eq!(Sketch::default().at(0.5), None);
    }

    #[test]
    fn what_was_written_is_read_back_and_merges() {
        let (mut one, mut two, mut both) = Default::default();
        for us in 1..500 {
            let part: &mut Distribution = if us % 3 == 0 { &mut one } else { &mut two };
            part.record(Duration::from_micros(us * us));
            Distribution::record(&mut both, Duration::from_micros(us * us));
        }
        let written = serde_json::to_string(&one).expect("is written");
        let mut back: Distribution = serde_json::from_str(&written).expect("is read");
        assert_eq!(back, one);
        back.add(&two);
        assert_eq!(back, both);
    }
}
