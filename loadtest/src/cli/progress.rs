//! A bar and a live line for each group, on a terminal; nothing elsewhere.

use std::time::Duration;

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};
use underpass_loadtest::scenario::{GroupProgress, Progress, Scenario};
use underpass_loadtest::units::show_rate;

/// Rates are over this many seconds, so that they can be read.
const RATE_SECONDS: f64 = 1.0;

/// What is on the screen.
pub(crate) struct Bars {
    all: MultiProgress,
    bars: Vec<Bar>,
}

struct Bar {
    bar: ProgressBar,
    duration: Duration,
    /// What the rates are compared with, and the rates.
    before: (f64, GroupProgress),
    rates: String,
}

impl Bars {
    pub(crate) fn new(scenario: &Scenario) -> Bars {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{prefix} {bar:24} {percent:>3} %  {wide_msg}")
            .expect("the template is well-formed");
        let width = (scenario.groups.iter()).map(|group| group.name.len()).max();
        let bars = (scenario.groups.iter())
            .map(|group| {
                let duration = group.duration.unwrap_or(scenario.duration);
                let len = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
                let bar = all.add(ProgressBar::new(len).with_style(style.clone()));
                bar.set_prefix(format!(
                    "{:<width$}",
                    group.name,
                    width = width.unwrap_or(0)
                ));
                Bar {
                    bar,
                    duration,
                    before: Default::default(),
                    rates: String::new(),
                }
            })
            .collect();
        Bars { all, bars }
    }

    pub(crate) fn show(&mut self, progress: &Progress) {
        for (bar, group) in self.bars.iter_mut().zip(&progress.groups) {
            bar.show(progress.seconds, *group);
        }
    }

    pub(crate) fn end(&self) {
        let _ = self.all.clear(); // A screen that is gone needs no clearing.
    }
}

impl Bar {
    fn show(&mut self, seconds: f64, now: GroupProgress) {
        let (since, before) = self.before;
        if seconds - since >= RATE_SECONDS || self.rates.is_empty() {
            let time = (seconds - since).max(0.001);
            let moved = (now.up + now.down).saturating_sub(before.up + before.down);
            let calls = now.right.saturating_sub(before.right) as f64 / time;
            let rate = show_rate(moved as f64 / time);
            self.rates = format!("{calls:.0} calls/s  {rate}");
            self.before = (seconds, now);
        }
        let at = Duration::from_secs_f64(seconds).min(self.duration);
        self.bar
            .set_position(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
        self.bar.set_message(format!(
            "{}  {} live, {} calls, {} bad, {}",
            self.rates,
            now.live,
            now.right,
            now.bad,
            BinaryBytes(now.up + now.down)
        ));
    }
}
