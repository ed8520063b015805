//! A failing script made smaller, so that a person can read what is left.
//!
//! Two passes, each trying scripts that are parts of the failing one: the shortest failing prefix, by
//! halving; then, in what is left, stretches of steps are left out while the failure stays: halves first,
//! then quarters, down to single steps, until none can go or the time is up (delta debugging after Zeller
//! and Hildebrandt, 2002, complements only).
//!
//! Any failure counts as the failure: a smaller script may fail for another reason, which is as good a
//! reason to look. What threads do is not repeated exactly; a script that fails now and then is cut less.

use std::time::{Duration, Instant};

/// What shrinking may take, beside the attempt that is running when it is up.
pub const TIME_MAX: Duration = Duration::from_secs(120);

/// The numbers of the steps that are left of `steps`, and the error that they give. `fails` runs the steps
/// of the given numbers.
pub fn shrink(
    steps: usize,
    error: String,
    time_max: Duration,
    fails: &mut dyn FnMut(&[usize]) -> Option<String>,
) -> (Vec<usize>, String) {
    let deadline = Instant::now() + time_max;
    let all: Vec<usize> = (0..steps).collect();
    let (mut good, mut bad, mut error) = (0, steps, error);
    while bad - good > 1 && Instant::now() < deadline {
        let middle = good + (bad - good) / 2;
        match fails(&all[..middle]) {
            None => good = middle,
            Some(smaller) => (bad, error) = (middle, smaller),
        }
    }
    let mut left = all[..bad].to_vec();
    let mut stretch = left.len().div_ceil(2);
    while stretch > 0 {
        let mut from = 0;
        let mut has_shrunk = false;
        while from < left.len() {
            if Instant::now() >= deadline {
                return (left, error);
            }
            let to = (from + stretch).min(left.len());
            let without: Vec<usize> = [&left[..from], &left[to..]].concat();
            match fails(&without) {
                Some(smaller) => {
                    (left, error, has_shrunk) = (without, smaller, true);
                }
                None => from = to,
            }
        }
        stretch = match (stretch, has_shrunk) {
            (1, true) => 1,
            (stretch, _) => stretch / 2,
        };
    }
    (left, error)
}

#[test]
fn only_the_steps_that_matter_are_left() {
    for culprits in [vec![0], vec![299], vec![7, 8], vec![3, 150, 151, 290]] {
        let mut runs = 0;
        let (left, error) = shrink(300, "at first".to_owned(), TIME_MAX, &mut |steps| {
            runs += 1;
            let all = culprits.iter().all(|culprit| steps.contains(culprit));
            all.then(|| format!("{} steps", steps.len()))
        });
        assert_eq!(left, culprits);
        assert_eq!(error, format!("{} steps", culprits.len()));
        assert!(runs < 120, "{runs} runs for {culprits:?}");
    }
}

#[test]
fn the_time_is_bounded_and_what_never_fails_again_is_left_whole() {
    let (left, error) = shrink(300, "once".to_owned(), TIME_MAX, &mut |_| None);
    assert_eq!((left.len(), error.as_str()), (300, "once"));
    let (left, _) = shrink(300, "late".to_owned(), Duration::ZERO, &mut |_| {
        panic!("there is no time")
    });
    assert_eq!(left.len(), 300);
}
