//! Laws of the tokenizer, held against the `tokenizers` crate on the same text.
//!
//! 1. Ids are equal; so are spans, where those of `tokenizers` never step back; a count is their number.
//! 2. Ids cut at a maximum are the first ones, and the cut is told.
//! 3. Pairs, with kinds of segments, cut by `longest_first`, are equal.
//! 4. What a scratch was used for before changes nothing.
//!
//! Texts: every code point, random ones of a dozen kinds ([`generate`]), and real files. Tokenizers:
//! small ones with every option ([`models`]), and the default model's where it is on this machine.
//! `HEADWATER_SEED` repeats or changes the random ones.
//!
//! ```text
//! HEADWATER_TOKENIZER_STRINGS=1000000 cargo test --release -p headwater-kernels --test tokenizer
//! cargo test --release -p headwater-kernels --test tokenizer -- --ignored --nocapture
//! ```

mod generate;
mod load;
mod models;
mod oracle;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Random strings in all, unless `HEADWATER_TOKENIZER_STRINGS` says otherwise.
const STRINGS: usize = 50_000;

fn strings() -> usize {
    let wanted = std::env::var("HEADWATER_TOKENIZER_STRINGS");
    wanted.ok().and_then(|v| v.parse().ok()).unwrap_or(STRINGS)
}

#[test]
fn random_strings_have_equal_ids_and_spans() {
    let seed = std::env::var("HEADWATER_SEED");
    let seed: u64 = seed.ok().and_then(|v| v.parse().ok()).unwrap_or(20_261_121);
    let all = models::all();
    let each = strings().div_ceil(all.len() + 4);
    println!("seed {seed}, {} tokenizers", all.len());
    let mut done = 0;
    for (i, mut both) in all.into_iter().enumerate() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed + i as u64);
        // The first is the real one, or what stands for it: it gets as many as five others.
        let count = if i == 0 { each * 5 } else { each };
        let generator = generate::Generator::new(&both);
        for _ in 0..count {
            let text = generator.text(&mut rng);
            both.check(&text);
            both.check_cut(&text, rng.random_range(0..40));
        }
        done += count;
        println!("{}: {count} strings", both.name);
    }
    println!("{done} strings, no id differs");
}

#[test]
fn pairs_are_cut_as_longest_first_does() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for mut both in models::all() {
        let generator = generate::Generator::new(&both);
        for _ in 0..150 {
            let first = generator.text(&mut rng);
            let second = generator.text(&mut rng);
            both.check_pair(&first, &second, rng.random_range(3..60));
            both.check_pair(&second, &second, rng.random_range(3..20));
        }
    }
}

/// 256 code points at once: each between spaces, after a letter, between letters, before marks.
/// Planes 4 to 13 and most of 15 and 16 are empty or all alike: one page in 16.
#[test]
fn code_points_have_equal_ids_and_spans() {
    let is_alike = |page: u32| (0x400..0xe00).contains(&page) || page >= 0xe10;
    for mut both in models::some().into_iter().take(3) {
        for page in (0..=0x10ff_u32).filter(|&page| !is_alike(page) || page % 16 == 15) {
            let mut text = String::new();
            for c in (page << 8..(page + 1) << 8).filter_map(char::from_u32) {
                text.extend([
                    ' ', c, ' ', 'a', c, ' ', 'x', c, 'y', ' ', c, '\u{301}', '\u{302e}',
                ]);
            }
            both.check(&text);
        }
    }
}

#[test]
#[ignore = "minutes: every code point in a text of its own, for every tokenizer"]
fn every_code_point_alone_has_equal_ids_and_spans() {
    for mut both in models::all() {
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            for text in [format!("{c}"), format!("a{c}"), format!("x{c}y")] {
                both.check(&text);
            }
        }
        println!("{}: every code point", both.name);
    }
}

#[test]
#[ignore = "minutes: all Markdown and Rust files of the cargo registry"]
fn real_files_have_equal_ids_and_spans() {
    let mut both = models::real().expect("HEADWATER_MODELS has the default model");
    let (mut files, mut bytes, mut tokens) = (0, 0, 0);
    for text in generate::files(&["md", "rs"]) {
        files += 1;
        bytes += text.len();
        // A bounded part at a time: `tokenizers` takes a hundred bytes for each.
        let mut rest = &text[..];
        while !rest.is_empty() {
            let at = rest.floor_char_boundary(100_000);
            let end = rest[at..].find('\n').map_or(rest.len(), |n| at + n + 1);
            tokens += both.check(&rest[..end]);
            rest = &rest[end..];
        }
    }
    println!("{files} files, {bytes} bytes, {tokens} tokens: no id and no span differs");
}

#[test]
fn a_scratch_serves_several_tokenizers() {
    let mut all = models::all();
    let text = "Unable to say naïve 漢字 [MASK] day";
    for _ in 0..2 {
        let mut shared = kernels::tokenizer::Scratch::default();
        for both in &mut all {
            let (mut ids, mut fresh) = (Vec::new(), Vec::new());
            both.ours.encode_into(&mut shared, text, 100, &mut ids);
            let mut scratch = kernels::tokenizer::Scratch::default();
            both.ours.encode_into(&mut scratch, text, 100, &mut fresh);
            assert_eq!(ids, fresh, "{}", both.name);
        }
    }
}

#[test]
fn long_runs_of_one_kind_take_linear_time() {
    let mut both = models::real().unwrap_or_else(|| models::all().remove(0));
    for unit in [
        "a",
        "é",
        "漢",
        "\u{301}",
        "\u{302e}\u{301}",
        "[",
        " ",
        "[CLS",
        "한",
        "\u{200b}",
    ] {
        let text = unit.repeat((4 << 20) / unit.len());
        let started = std::time::Instant::now();
        let tokens = both.ours.count(&mut both.scratch, &text);
        let took = started.elapsed();
        // Quadratic time is many minutes; a busy machine's linear time, some seconds.
        assert!(
            took.as_secs_f64() < 60.0,
            "{unit:?}: {took:?} for {tokens} tokens"
        );
        let cut = text.floor_char_boundary(20_000);
        both.check(&text[..cut]);
    }
}

#[test]
fn a_text_after_the_maximum_is_not_read() {
    let mut both = models::all().remove(0);
    let text = "a b c d ".repeat(4 << 20);
    let mut ids = Vec::new();
    let started = std::time::Instant::now();
    for _ in 0..1000 {
        ids.clear();
        let encoded = both
            .ours
            .encode_into(&mut both.scratch, &text, 16, &mut ids);
        assert!(encoded.is_cut && encoded.tokens == 16 && ids.len() == 16);
    }
    // To read all of it once takes a tenth of a second, whatever the machine does beside.
    assert!(started.elapsed().as_secs_f64() < 20.0);
}
