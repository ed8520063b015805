//! `FROM GENERATE`: deterministic, resumable, bounded.

use std::time::Duration;

use connectors::generate::{Generator, schema};
use engine::model::RowCodec;
use engine::testing::{Recorded, ScriptedSink, SourceRun, source_laws};
use serde_json::json;

#[test]
fn it_keeps_the_laws_of_sources() {
    let make = || connectors::generate(1_500, 0, 7, Some(8));
    let rows = source_laws(&make, Duration::from_millis(400));
    assert_eq!(rows.len(), 1_500);
}

#[test]
fn rows_are_a_function_of_seed_and_index() {
    let (one, two, other) = (
        Generator::new(7, 16),
        Generator::new(7, 16),
        Generator::new(8, 16),
    );
    for index in [0, 1, 99, 100_000, u64::from(u32::MAX)] {
        assert_eq!(one.row(index), two.row(index));
        assert_ne!(one.row(index), other.row(index));
        let norm: f64 = one
            .vector(index)
            .iter()
            .map(|x| f64::from(*x).powi(2))
            .sum();
        assert!((norm - 1.0).abs() < 1e-5, "row {index} has norm² {norm}");
        assert!(one.text(index).len() < 2_048, "TEXT_ROW_BYTES is generous");
    }
    // Texts do not depend on the vectors beside them.
    assert_eq!(one.text(3), Generator::new(7, 0).text(3));
}

#[test]
fn it_resumes_at_its_position_and_its_batches_are_bounded() {
    let sink = ScriptedSink::open();
    let mut resume = Recorded::default();
    resume
        .positions
        .insert(String::new(), json!({ "next": 990 }));
    let run = SourceRun::start(
        connectors::generate(1_200, 0, 7, Some(4_096)),
        &sink,
        resume,
    );
    assert!(sink.wait(|recorded| recorded.rows.len() == 210));
    run.stop();
    let batches = sink.batches();
    assert_eq!(batches[0].changes[0].0.as_str(), "990");
    assert!(
        batches.iter().all(|batch| batch.changes.len() <= 113),
        "2 MB"
    );
    assert_eq!(
        sink.recorded().positions[""],
        json!({ "next": 1_200 }),
        "the position is behind the last row"
    );
    let first = batches[0].changes[0].1.as_ref().expect("a row");
    let codec = RowCodec::new(schema(Some(4_096))).expect("packable");
    assert_eq!(codec.unpack(first), Generator::new(7, 4_096).row(990));
}

#[test]
fn a_stop_is_noticed_while_centres_are_drawn() {
    let sink = ScriptedSink::open();
    let source = connectors::generate(10, 0, 7, Some(8_192));
    let run = SourceRun::start(source, &sink, Recorded::default());
    std::thread::sleep(Duration::from_millis(5));
    run.stop();
}
