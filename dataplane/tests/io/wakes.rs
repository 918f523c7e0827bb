//! What ends a wait: another thread, and the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use underpass_dataplane::io::{Io, Waker};

use crate::driver::{Driver, PATIENCE};

on_every_backend! {
    local:
    a_wake_comes_from_another_thread,
    wakes_are_joined,
    no_wake_is_lost,
    the_deadline_is_kept;
}

fn a_wake_comes_from_another_thread(mut worker: Driver<impl Io>) {
    for _ in 0..100 {
        let waker = worker.io.waker();
        let thread = thread::spawn(move || waker.wake());
        worker.woken();
        thread.join().unwrap();
    }
}

fn wakes_are_joined(mut worker: Driver<impl Io>) {
    let waker = worker.io.waker();
    for _ in 0..3 {
        for _ in 0..1000 {
            waker.wake();
        }
        worker.woken();
        worker.quiet();
    }
}

fn no_wake_is_lost(mut worker: Driver<impl Io>) {
    // The other thread says the next number only when the worker has seen the one before, so each
    // wake meets another moment of the worker's turn.
    const ROUNDS: u32 = 5000;
    let (said, seen) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let thread = thread::spawn({
        let (said, seen, waker) = (said.clone(), seen.clone(), worker.io.waker());
        move || {
            let give_up = Instant::now() + 3 * PATIENCE;
            for round in 1..=ROUNDS {
                said.store(round, Ordering::SeqCst);
                waker.wake();
                while seen.load(Ordering::SeqCst) < round {
                    assert!(Instant::now() < give_up, "round {round} was not seen");
                    thread::yield_now();
                }
            }
        }
    });
    while seen.load(Ordering::SeqCst) < ROUNDS {
        worker.woken();
        seen.store(said.load(Ordering::SeqCst), Ordering::SeqCst);
    }
    thread.join().unwrap();
}

fn the_deadline_is_kept(mut worker: Driver<impl Io>) {
    let mut completions = Vec::new();
    let mut late = Vec::new();
    for ms in [0, 1, 3, 10, 30, 100] {
        for _ in 0..5 {
            let deadline = Instant::now() + Duration::from_millis(ms);
            while Instant::now() < deadline {
                worker.io.wait(Some(deadline), &mut completions).unwrap();
            }
            late.push(deadline.elapsed());
        }
    }
    assert!(completions.is_empty());
    late.sort();
    // The median, so that a busy machine does not decide.
    assert!(late[late.len() / 2] < Duration::from_millis(5), "{late:?}");

    let past = Instant::now();
    worker.io.wait(Some(past), &mut completions).unwrap();
    assert!(past.elapsed() < Duration::from_millis(50));
}
