//! The laws of [`Store`], for every implementation.

use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::contract::Store;

/// Checks the laws on fresh, empty stores from `open`. Panics at the first broken one.
pub fn store_laws(open: &dyn Fn() -> Arc<dyn Store>) {
    names_come_and_go(&*open());
    appends_are_read_back(&*open());
    replace_is_whole(&*open());
    random_calls_match_a_map(&*open(), 7);
}

fn names_come_and_go(store: &dyn Store) {
    assert!(store.list().unwrap().is_empty(), "a fresh store is empty");
    assert_eq!(store.size("a.b_c-1").unwrap(), None);
    assert!(
        store.read_at("a.b_c-1", 0, 1).is_err(),
        "a missing file cannot be read"
    );
    store.remove("a.b_c-1").unwrap();
    store.replace("b", b"2").unwrap();
    drop(store.append("a.b_c-1").unwrap());
    assert_eq!(store.list().unwrap(), ["a.b_c-1", "b"], "sorted");
    assert_eq!(store.size("a.b_c-1").unwrap(), Some(0), "opening creates");
    store.remove("b").unwrap();
    assert_eq!(store.list().unwrap(), ["a.b_c-1"]);
}

fn appends_are_read_back(store: &dyn Store) {
    let mut file = store.append("log").unwrap();
    assert!(file.is_empty());
    file.append(b"hello ").unwrap();
    file.append(b"world").unwrap();
    file.sync().unwrap();
    assert_eq!((file.len(), store.size("log").unwrap()), (11, Some(11)));
    assert_eq!(store.read_at("log", 6, 3).unwrap(), b"wor");
    assert_eq!(
        store.read_at("log", 6, 100).unwrap(),
        b"world",
        "short at the end"
    );
    assert!(
        store.read_at("log", 99, 1).unwrap().is_empty(),
        "nothing behind the end"
    );
    file.truncate(6).unwrap();
    file.append(b"again").unwrap();
    file.sync().unwrap();
    drop(file);
    assert_eq!(store.read_at("log", 0, 100).unwrap(), b"hello again");
    let mut file = store.append("log").unwrap();
    assert_eq!(file.len(), 11, "opened again, appended to");
    file.append(b"!").unwrap();
    file.sync().unwrap();
    assert_eq!(store.read_at("log", 0, 100).unwrap(), b"hello again!");
}

fn replace_is_whole(store: &dyn Store) {
    for bytes in [&b"long long content"[..], b"short", b""] {
        store.replace("one", bytes).unwrap();
        assert_eq!(store.read_at("one", 0, 100).unwrap(), bytes);
        assert_eq!(store.size("one").unwrap(), Some(bytes.len() as u64));
        assert_eq!(store.list().unwrap(), ["one"], "no temporary file is seen");
    }
}

fn random_calls_match_a_map(store: &dyn Store, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut model = std::collections::BTreeMap::<String, Vec<u8>>::new();
    for step in 0..200 {
        let name = format!("f{}", rng.random_range(0..3));
        let bytes: Vec<u8> = (0..rng.random_range(0..50)).map(|_| rng.random()).collect();
        match rng.random_range(0..4) {
            0 => {
                store.replace(&name, &bytes).unwrap();
                model.insert(name.clone(), bytes);
            }
            1 => {
                store.remove(&name).unwrap();
                model.remove(&name);
            }
            2 => {
                let mut file = store.append(&name).unwrap();
                file.append(&bytes).unwrap();
                model.entry(name.clone()).or_default().extend(bytes);
            }
            _ => {
                let mut file = store.append(&name).unwrap();
                let held = model.entry(name.clone()).or_default();
                let len = rng.random_range(0..=held.len());
                file.truncate(len as u64).unwrap();
                held.truncate(len);
            }
        }
        let names: Vec<String> = model.keys().cloned().collect();
        assert_eq!(store.list().unwrap(), names, "seed {seed}, step {step}");
        for (name, bytes) in &model {
            assert_eq!(
                &store.read_at(name, 0, 10_000).unwrap(),
                bytes,
                "seed {seed}, step {step}"
            );
        }
    }
}
