//! Each target with its corpus, and with what chance makes of it. `UNDERPASS_FUZZ_SECONDS` says for
//! how long; the seed is printed, and `UNDERPASS_SEED` repeats a run.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use underpass_fuzz_targets::{ALL, Target};

/// Time for each target where nothing else is said.
const SECONDS_DEFAULT: u64 = 5;

/// The longest input.
const LEN_MAX: usize = 4_096;

#[test]
fn no_target_fails_on_its_corpus_and_on_what_chance_makes_of_it() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("UNDERPASS_SEED").unwrap_or_else(rand::random);
    let seconds = number("UNDERPASS_FUZZ_SECONDS").unwrap_or(SECONDS_DEFAULT);
    println!("UNDERPASS_SEED={seed}");
    let threads = ALL.map(|(name, target)| {
        std::thread::spawn(move || (name, run(name, target, seed, Duration::from_secs(seconds))))
    });
    for thread in threads {
        let (name, done) = thread.join().unwrap();
        println!("{name}: {done} inputs");
        assert!(done > 10, "{name}: {done} inputs");
    }
}

fn run(name: &str, target: Target, seed: u64, time: Duration) -> u64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let corpus = corpus(name);
    let mut done = 0;
    let mut try_one = |input: &[u8]| {
        done += 1;
        if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
            let kept = std::env::temp_dir().join(format!("underpass-fuzz-{name}"));
            fs::write(&kept, input).unwrap();
            panic!("{name}, seed {seed}: the input is in {}", kept.display());
        }
    };
    corpus.iter().for_each(|input| try_one(input));
    let end = Instant::now() + time;
    while Instant::now() < end {
        let input = mutation(&corpus, &mut rng);
        try_one(&input);
    }
    done
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(name);
    let files = fs::read_dir(&folder).unwrap();
    let corpus: Vec<_> = files
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect();
    assert!(!corpus.is_empty(), "{} is empty", folder.display());
    corpus
}

/// One of the corpus with some bytes changed, cut, doubled, or with a part of another in it.
fn mutation(corpus: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut input = corpus[rng.random_range(0..corpus.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=input.len());
        match rng.random_range(0..6) {
            0 => input.insert(at, rng.random()),
            1 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            3 => input.truncate(at),
            4 => {
                let other = &corpus[rng.random_range(0..corpus.len())];
                let from = rng.random_range(0..=other.len());
                input.splice(at..at, other[from..].iter().copied());
            }
            _ => input = [&input[at..], &input[..at]].concat(),
        }
    }
    input.truncate(LEN_MAX);
    input
}
