//! Whether a line is straight: one unit at the largest count costs at most one and a half times
//! what it costs at a tenth of it, beyond fixed cost.

use serde::Serialize;

use super::figure::Shape;

/// Cost of a unit at the largest count beside that at a tenth of it, above which growth is not
/// straight.
pub(super) const LIMIT: f64 = 1.5;

/// Share of a sum's fixed cost below which growth is not told from noise.
const NOISE: f64 = 0.1;

/// What was found.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "snake_case", tag = "found")]
pub enum Verdict {
    /// Straight, or better.
    Straight {
        /// Cost of a unit at the largest count, beside that at about a tenth of it; nothing where a
        /// sum does not grow at all.
        ratio: Option<f64>,
    },
    /// Worse than straight.
    Steep {
        /// The same.
        ratio: f64,
    },
    /// It has fewer than two counts, or is not one that is judged.
    NotJudged,
}

/// Judges figures by count, smallest count first.
#[must_use]
pub(super) fn judge(shape: Shape, line: &[(u64, f64)]) -> Verdict {
    let (Some(&first), Some(&last)) = (line.first(), line.last()) else {
        return Verdict::NotJudged;
    };
    let Some(&tenth) = line.iter().rev().find(|(count, _)| count * 8 <= last.0) else {
        return Verdict::NotJudged;
    };
    let ratio = match shape {
        Shape::Told => return Verdict::NotJudged,
        Shape::Each => ratio(last.1, tenth.1),
        Shape::Sum => {
            if last.1 <= first.1 * (1.0 + NOISE) {
                return Verdict::Straight { ratio: None };
            }
            // With two counts alone the fixed cost is not known, so all counts as growing.
            let fixed = if tenth.0 == first.0 { 0.0 } else { first.1 };
            let noise = first.1 * NOISE;
            let each = |(count, sum): (u64, f64)| (sum - fixed).max(noise) / count as f64;
            ratio(each(last), each(tenth))
        }
    };
    if ratio <= LIMIT {
        Verdict::Straight { ratio: Some(ratio) }
    } else {
        Verdict::Steep { ratio }
    }
}

/// What is nothing at both counts does not grow.
fn ratio(last: f64, tenth: f64) -> f64 {
    if last <= 0.0 {
        0.0
    } else if tenth <= 0.0 {
        f64::INFINITY
    } else {
        last / tenth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_straight(shape: Shape, line: &[(u64, f64)]) -> bool {
        match judge(shape, line) {
            Verdict::Straight { .. } => true,
            Verdict::Steep { .. } => false,
            Verdict::NotJudged => panic!("not judged"),
        }
    }

    #[test]
    fn a_cost_that_stays_is_straight_and_one_that_doubles_is_not() {
        assert!(is_straight(
            Shape::Each,
            &[(1, 40.0), (10, 10.0), (100, 14.0)]
        ));
        assert!(!is_straight(
            Shape::Each,
            &[(1, 5.0), (10, 10.0), (100, 20.0)]
        ));
    }

    #[test]
    fn a_sum_is_judged_beyond_its_fixed_cost() {
        assert!(is_straight(
            Shape::Sum,
            &[(1, 100.0), (100, 200.0), (1000, 1100.0)]
        ));
        // Quadratic, under a fixed cost.
        assert!(!is_straight(
            Shape::Sum,
            &[(1, 100.0), (100, 200.0), (1000, 10_100.0)]
        ));
    }

    #[test]
    fn what_is_within_the_noise_of_the_fixed_cost_is_no_growth() {
        assert!(is_straight(
            Shape::Sum,
            &[(1, 100.0), (100, 80.0), (1000, 105.0)]
        ));
        assert!(is_straight(
            Shape::Sum,
            &[(1, 100.0), (100, 99.0), (1000, 180.0)]
        ));
    }

    #[test]
    fn eight_thousand_is_held_against_one_thousand() {
        let line = [(1, 1.0), (100, 1.0), (1000, 10.0), (8000, 14.0)];
        assert_eq!(
            judge(Shape::Each, &line),
            Verdict::Straight { ratio: Some(1.4) }
        );
    }

    #[test]
    fn one_count_is_no_line() {
        assert_eq!(judge(Shape::Each, &[(1, 1.0)]), Verdict::NotJudged);
        assert_eq!(judge(Shape::Each, &[]), Verdict::NotJudged);
        assert_eq!(
            judge(Shape::Told, &[(1, 1.0), (10, 9.0)]),
            Verdict::NotJudged
        );
    }
}
