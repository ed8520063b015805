//! The collection against a naive one, over random scripts; then its bounds.

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{DeadLetter, LetterBook, LetterId};
use crate::error::DataError;
use crate::limits::{DEAD_LETTERS_BYTES_MAX, DEAD_LETTERS_MAX};
use crate::model::Key;

fn letter(source: &str, code: &str, place: u32, key: Option<u32>) -> DeadLetter {
    let error = DataError::new(code, format!("bad at {place}"));
    let key = key.map(|key| Key::text(&key.to_string()));
    DeadLetter::new(source, place.to_string(), error, b"what came").key(key)
}

/// (id, source, code, key, count, first, last), in the order of last arrival.
type Naive = Vec<(LetterId, String, String, Option<Key>, u64, u64, u64)>;

fn shown(book: &LetterBook) -> Naive {
    let all = book.list(None, None, 0, usize::MAX).into_iter();
    all.map(|listed| {
        let kept = listed.kept;
        let letter = &kept.letter;
        (
            listed.id,
            letter.source.clone(),
            letter.error.code.clone(),
            letter.key.clone(),
            kept.count,
            kept.first_seen,
            kept.last_seen,
        )
    })
    .collect()
}

#[test]
fn it_equals_a_naive_collection_after_every_step() {
    for seed in 0..50 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut book, mut naive) = (LetterBook::default(), Naive::new());
        let (mut seen, mut resolved) = (0, 0);
        for at in 1..400_u64 {
            let source = ["a", "b"][rng.random_range(0..2)];
            let code = ["x", "y", "z"][rng.random_range(0..3)];
            let key = rng.random_bool(0.6).then(|| rng.random_range(0..5));
            match rng.random_range(0..10) {
                0..6 => {
                    let letter = letter(source, code, rng.random_range(0..5), key);
                    let id = letter.id();
                    assert!(book.add(at, Arc::new(letter.clone())).is_empty());
                    seen += 1;
                    let earlier = naive.iter().position(|one| one.0 == id);
                    let earlier = earlier.map(|at| naive.remove(at));
                    let (first, count) = earlier.map_or((at, 0), |one| (one.5, one.4));
                    let error = letter.error.code.clone();
                    naive.push((id, source.into(), error, letter.key, count + 1, first, at));
                }
                6..8 => {
                    let key = Key::text(&rng.random_range(0..5).to_string());
                    let ids = book.of_key(source, &key);
                    resolved += ids.len() as u64;
                    ids.iter().for_each(|id| drop(book.resolve(*id)));
                    naive.retain(|one| one.1 != source || one.3.as_ref() != Some(&key));
                }
                8 => {
                    // A replay: the letter and what came before it for its key.
                    let Some(at) = (!naive.is_empty()).then(|| rng.random_range(0..naive.len()))
                    else {
                        continue;
                    };
                    let (id, source, _, key, ..) = naive[at].clone();
                    let ids = book.through(id);
                    resolved += ids.len() as u64;
                    ids.iter().for_each(|id| drop(book.resolve(*id)));
                    let mut number = 0;
                    naive.retain(|one| {
                        number += 1;
                        let is_older =
                            number - 1 < at && key.is_some() && (&one.1, &one.3) == (&source, &key);
                        one.0 != id && !is_older
                    });
                }
                _ => {
                    // Compaction: everything that is kept, taken back into an empty book.
                    let mut again = LetterBook::default();
                    book.causes()
                        .iter()
                        .for_each(|counts| again.restore_counts(counts));
                    let all = book.list(None, None, 0, usize::MAX);
                    all.into_iter()
                        .for_each(|listed| again.restore(listed.kept));
                    assert_eq!(again.causes(), book.causes(), "seed {seed}");
                    book = again;
                }
            }
            assert_eq!(shown(&book), naive, "seed {seed}, step {at}");
            let total =
                |of: fn(&super::CauseCounts) -> u64| book.causes().iter().map(of).sum::<u64>();
            assert_eq!(total(|cause| cause.seen), seen, "seed {seed}, step {at}");
            assert_eq!(
                total(|cause| cause.resolved),
                resolved,
                "seed {seed}, step {at}"
            );
            assert_eq!(book.has_keys(), naive.iter().any(|one| one.3.is_some()));
        }
        book.retain_sources(|source| source == "a");
        naive.retain(|one| one.1 == "a");
        assert_eq!(shown(&book), naive, "seed {seed}");
        book.retain_sources(|_| false);
        assert_eq!(
            (book.bytes(), book.has_keys()),
            (0, false),
            "seed {seed}: nothing is left"
        );
    }
}

#[test]
fn a_cause_keeps_its_newest_and_counts_the_others() {
    let mut book = LetterBook::default();
    let most = DEAD_LETTERS_MAX as u32;
    let mut dropped = 0;
    for place in 0..most + 500 {
        dropped += book
            .add(u64::from(place), Arc::new(letter("a", "x", place, None)))
            .len();
    }
    book.add(0, Arc::new(letter("a", "y", 0, None)));
    assert_eq!((dropped, book.count("a")), (500, DEAD_LETTERS_MAX + 1));
    let oldest = book.list(Some("a"), Some("x"), 0, 1).swap_remove(0);
    assert_eq!(oldest.kept.letter.position, "500");
    let counts = book.causes().swap_remove(0);
    assert_eq!(
        (counts.seen, counts.kept, counts.dropped),
        (10_500, 10_000, 500)
    );
    // Another cause of the source has room of its own, and pages follow each other.
    let mut after = 0;
    let mut all = Vec::new();
    loop {
        let page = book.list(None, None, after, 999);
        let Some(last) = page.last() else { break };
        after = last.number;
        all.extend(page.into_iter().map(|listed| listed.id));
    }
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), DEAD_LETTERS_MAX + 1);
}

#[test]
fn large_payloads_are_bounded_all_together() {
    let mut book = LetterBook::default();
    book.add(0, Arc::new(letter("small", "x", 0, None)));
    for place in 0..3_000_u32 {
        let error = DataError::new("x", "bad");
        let big = DeadLetter::new("big", place.to_string(), error, &vec![7; 70_000]);
        assert!(!big.is_whole() && big.bytes == 70_000);
        book.add(1, Arc::new(big));
        assert!(book.bytes() <= DEAD_LETTERS_BYTES_MAX);
    }
    // The cause with the most bytes gave way, not the older one.
    assert_eq!(book.count("small"), 1);
    let counts = book.causes().swap_remove(0);
    assert_eq!(counts.kept + counts.dropped, 3_000);
    assert!(counts.kept > 1_500, "{counts:?}");
}

#[test]
fn ids_are_stable_words() {
    // Written down: a changed id would lose what people noted and what the log resolves.
    let id = letter("docs", "wrong-type", 3, Some(7)).id();
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(
        id,
        letter("docs", "wrong-type", 4, Some(7)).id(),
        "the key names it"
    );
    assert_ne!(id, letter("docs", "wrong-type", 3, None).id());
    assert_ne!(id, letter("docs", "null-value", 3, Some(7)).id());
    let error = "d_12".parse::<LetterId>().unwrap_err();
    assert_eq!(error, "\"d_12\" is no id of a dead letter");
    assert!("d_00000000000g".parse::<LetterId>().is_err());
}

#[test]
fn a_column_is_read_off_its_sentence() {
    let column = |detail: &str| DataError::new("x", detail).column().map(str::to_owned);
    assert_eq!(
        column("column \"age\": expected bigint").as_deref(),
        Some("age")
    );
    assert_eq!(column("the line is not UTF-8 at byte 3"), None);
}
