//! The law of sinks, in process: random changes, crashes that lose unsynced bytes, a world that goes away
//! and comes back, compaction of the log meanwhile. The world keeps what was committed and the progress
//! together, as a broker's transaction does. Whatever happens, it gets every change of a key at a time
//! once and in order, each beginning where the last one ended, and comes to the collection.

use std::sync::Arc;
use std::time::Duration;

use engine::runtime::VirtualClock;
use engine::testing::MemoryStore;
use queries::api::Backend;
use rand::prelude::*;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value as Json, json};

use crate::rig::{eventually, together};
use world::{Defect, Outside, Rig, lock};

mod world;

fn lines(random: &mut ChaCha8Rng) -> Vec<Json> {
    let count = random.random_range(1..6);
    let one = |random: &mut ChaCha8Rng| {
        let id = format!("d{}", random.random_range(0..10));
        match random.random_bool(0.3) {
            true => json!({"op": "delete", "key": id}),
            false => {
                let body = format!("body {}", random.random_range(0..3));
                json!({"id": id, "grp": random.random_range(0..4), "body": body})
            }
        }
    };
    (0..count).map(|_| one(random)).collect()
}

#[test]
fn the_world_gets_every_change_once_over_crashes() {
    let _together = together();
    for (seed, workers) in [
        (1, 1),
        (2, 2),
        (3, 4),
        (4, 1),
        (5, 2),
        (rand::rng().random(), 2),
    ] {
        println!("seed {seed}, {workers} workers");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let clock = VirtualClock::new(1_800_000_000_000_000);
        let mut rig = Rig::over(MemoryStore::new(), clock, Outside::default(), workers);
        for step in 0..120 {
            rig.push("docs", &lines(&mut random));
            match random.random_range(0..12) {
                0 => rig = rig.crash(random.random(), workers),
                1 => lock(&rig.outside).is_away = true,
                2 | 3 => lock(&rig.outside).is_away = false,
                // Beyond every retention: only a sink's hold keeps what it has not written.
                4 => rig.clock.advance(100_000_000),
                5 => std::thread::sleep(Duration::from_millis(10)),
                _ => {}
            }
            if step % 40 == 39 {
                lock(&rig.outside).is_away = false;
                rig.check(&format!("seed {seed}, step {step}"));
            }
        }
        let pages = lock(&rig.outside).topics["whole"].pages;
        assert!(pages > 2, "{pages} pages are no test of them");
        rig.service.stop();
    }
}

#[test]
fn the_log_is_not_folded_beyond_what_a_sink_has_written() {
    let _together = together();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let clock = VirtualClock::new(1_800_000_000_000_000);
    let mut rig = Rig::over(MemoryStore::new(), clock, Outside::default(), 2);
    rig.push("docs", &lines(&mut random));
    rig.check("begin");
    rig.fill("a");
    for _ in 0..20 {
        rig.push("docs", &lines(&mut random));
    }
    rig.check("before it goes away");
    lock(&rig.outside).is_away = true;
    let written = |rig: &Rig| {
        let world = lock(&rig.outside);
        world
            .topics
            .values()
            .filter_map(|topic| topic.progress.map(|(_, at)| at))
            .min()
    };
    let progress = written(&rig).expect("something is written");
    for _ in 0..20 {
        rig.push("docs", &lines(&mut random));
        rig.clock.advance(10_000_000);
    }
    rig.fill("b");
    for _ in 0..20 {
        rig.push("docs", &lines(&mut random));
        rig.clock.advance(10_000_000);
        std::thread::sleep(Duration::from_millis(5));
    }
    // Twice: what the sink had not seen is kept by its hold, and after a restart by the replay.
    for what in ["away", "away over a restart"] {
        let folded = rig.compact();
        assert!(
            folded.is_none_or(|at| at <= progress),
            "{what}: folded through {folded:?}, written through {progress}"
        );
        assert_eq!(written(&rig), Some(progress));
        rig = rig.crash(11, 2);
        rig.push("docs", &lines(&mut random));
        rig.clock.advance(100_000_000);
        std::thread::sleep(Duration::from_millis(50));
    }
    lock(&rig.outside).is_away = false;
    rig.check("back");
    // Then there is nothing that keeps the log.
    for _ in 0..3 {
        rig.clock.advance(100_000_000);
        rig.push("docs", &lines(&mut random));
        rig.check("after");
    }
    let folded = rig.compact().expect("two segments are through");
    assert!(folded > progress, "{folded} {progress}");
    rig = rig.crash(12, 2);
    rig.push("docs", &lines(&mut random));
    rig.check("from a base");
    rig.service.stop();
}

#[test]
fn a_copy_of_the_data_folder_is_told_apart_over_any_starts() {
    let _together = together();
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let clock = VirtualClock::new(1_800_000_000_000_000);
    let mut rig = Rig::over(MemoryStore::new(), clock, Outside::default(), 2);
    rig.push("docs", &lines(&mut random));
    rig.check("begin");
    let mut copy = rig.store.after_crash(3);
    // The original goes on; its times are beyond the copy's by far, and then the copy's are beyond its.
    rig = rig.crash(4, 2);
    rig.push("docs", &lines(&mut random));
    rig.check("the original");
    rig.service.stop();
    for _ in 0..3 {
        rig.clock.advance(100_000_000);
        let other = Rig::over(copy, rig.clock.clone(), Arc::clone(&rig.outside), 2);
        other.wait_failed("was written by a start that this data folder does not know");
        other.push("docs", &lines(&mut random));
        other.service.stop();
        copy = other.store.after_crash(5);
    }
    rig = rig.crash(6, 2);
    rig.push("docs", &lines(&mut random));
    rig.check("the original goes on");
    rig.service.stop();
}

#[test]
fn a_sink_with_a_defect_says_so_keeps_its_history_and_goes_on_after_a_restart() {
    let _together = together();
    let mut random = ChaCha8Rng::seed_from_u64(10);
    let clock = VirtualClock::new(1_800_000_000_000_000);
    let mut rig = Rig::over(MemoryStore::new(), clock, Outside::default(), 2);
    for (defect, why) in [
        (Defect::Ends, "it ended by itself: a defect"),
        (Defect::Panics, "a defect; the log has the panic"),
    ] {
        rig.push("docs", &lines(&mut random));
        rig.push("docs", &[json!({"id": "d0", "grp": 0, "body": why})]);
        // A push may be taken before it can be seen, and an empty topic is an empty collection's.
        let outside = &rig.outside;
        eventually("something is written", || {
            lock(outside).topics["whole"].progress.is_some()
        });
        rig.check(why);
        {
            // The session in progress ends when the world is away, and then there is the defect.
            let mut world = lock(&rig.outside);
            (world.defect, world.is_away) = (Some(defect), true);
        }
        for _ in 0..5 {
            rig.push("docs", &lines(&mut random));
            rig.clock.advance(100_000_000);
        }
        rig.wait_failed(why);
        for _ in 0..5 {
            rig.push("docs", &lines(&mut random));
            rig.clock.advance(100_000_000);
            std::thread::sleep(Duration::from_millis(5));
        }
        {
            let mut world = lock(&rig.outside);
            (world.defect, world.is_away) = (None, false);
        }
        // From what was there when it failed, not from the progress that a restart would hold.
        let progress = lock(&rig.outside).topics["whole"].progress.expect("some").1;
        let published = rig.service.engine().published();
        let docs = rig
            .service
            .pipeline_ref()
            .by_name("docs")
            .expect("declared");
        let since = published.collections[&docs.object().id].since;
        assert!(since <= progress, "{why}: {since} {progress}");
        rig = rig.crash(11, 2);
        rig.check(why);
    }
    rig.service.stop();
}

#[test]
fn a_sink_says_farewell_when_its_drop_is_durable_and_holds_no_history_any_more() {
    let _together = together();
    let mut random = ChaCha8Rng::seed_from_u64(12);
    let clock = VirtualClock::new(1_800_000_000_000_000);
    let rig = Rig::over(MemoryStore::new(), clock, Outside::default(), 2);
    rig.push("docs", &[json!({"id": "d0", "grp": 0, "body": "begin"})]);
    rig.check("begin");
    lock(&rig.outside).is_away = true;
    let text = "DROP SINK whole; DROP SINK part".to_owned();
    let (_, problem) = rig.runtime.block_on(rig.service.sql(text, Vec::new()));
    assert_eq!(problem, None);
    let docs = rig
        .service
        .pipeline_ref()
        .by_name("docs")
        .expect("declared");
    let since = |rig: &Rig| {
        let published = rig.service.engine().published();
        published.collections[&docs.object().id].since
    };
    let before = since(&rig);
    eventually("the history goes", || {
        rig.clock.advance(100_000_000);
        rig.push("docs", &lines(&mut random));
        since(&rig) > before + 100_000_000
    });
    rig.service.stop();
    // The power is lost just behind the farewell: the sink is gone for good, and made anew.
    let ids = |rig: &Rig| lock(&rig.outside).topics["part"].ids.len();
    assert_eq!(ids(&rig), 1);
    let left = lock(&rig.outside).left.take().expect("both said farewell");
    lock(&rig.outside).is_away = false;
    let again = Rig::over(left, rig.clock.clone(), Arc::clone(&rig.outside), 2);
    eventually("they run again", || ids(&again) == 2);
    again.service.stop();
}
