//! Kafka's logs with holes: transactions of producers that are aborted or still open, compacted topics,
//! partitions whose leader dies.
//!
//! Offsets that nobody can read (marks of transactions, aborted messages, what compaction took) must not
//! be waited for, be taken for lost, or be read twice.

use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::alone;
use crate::kafka::put;
use crate::kafka_writer::{Plain, Writer};
use crate::program::Program;
use crate::servers::broker::Broker;
use crate::servers::kafka::Kafka;
use crate::servers::{Run, wait_for};

/// An upsert source of `id`, `n` over a topic.
fn source(topic: &str, brokers: &str) -> String {
    format!(
        "CREATE SOURCE {topic} (id TEXT PRIMARY KEY, n BIGINT) FROM KAFKA (BROKERS '{brokers}', TOPIC '{topic}')
             KEY FORMAT TEXT VALUE FORMAT JSON ENVELOPE UPSERT;\n"
    )
}

fn row(id: &str, n: i64) -> Vec<Json> {
    vec![json!(id), json!(n)]
}

#[test]
fn aborted_and_open_transactions_are_not_seen_and_not_waited_for() {
    let _alone = alone();
    let run = Run::new("kafka-transactional");
    let kafka = Kafka::start(&run);
    kafka.create_topic("orders", 1, &[]);
    let (first, second) = (
        Writer::new(&kafka.bootstrap, "first"),
        Writer::new(&kafka.bootstrap, "second"),
    );
    first.begin("orders", &[("a", 1), ("b", 1)]);
    first.commit();
    second.begin("orders", &[("a", 100), ("x", 100)]);
    second.abort();
    let mut program = Program::start(&source("orders", &kafka.bootstrap));
    let all = "SELECT id, n FROM orders ORDER BY id";
    program.wait_rows(all, &[row("a", 1), row("b", 1)]);
    // The end of the log is a mark: who waits for the last offset of an aborted message is not let down.
    let (_, end) = kafka.offsets("orders", 0);
    let at_least = |offset: i64| format!("{all} AS OF AT LEAST offset('orders', 0, {offset})");
    assert_eq!(program.rows(&at_least(end - 1)), [row("a", 1), row("b", 1)]);
    let behind = "SELECT behind FROM headwater.progress WHERE collection = 'orders'";
    program.wait_rows(behind, &[vec![json!(0)]]);

    // An open one holds back what stands behind it, and the source says that it runs.
    first.begin("orders", &[("a", 2)]);
    second.begin("orders", &[("b", 2), ("c", 2)]);
    second.commit();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(program.rows(all), [row("a", 1), row("b", 1)]);
    let state = "SELECT status, error FROM headwater.sources WHERE name = 'orders'";
    assert_eq!(program.rows(state), [[json!("running"), json!(null)]]);
    // Killed in between: nothing of the open one was taken.
    program.kill();
    program.restart();
    first.abort();
    program.wait_rows(all, &[row("a", 1), row("b", 2), row("c", 2)]);

    // Restarts right behind marks, again and again.
    for n in 3..6 {
        first.begin("orders", &[("a", n)]);
        first.commit();
        second.begin("orders", &[("c", -n)]);
        second.abort();
        program.wait_rows(all, &[row("a", n), row("b", 2), row("c", 2)]);
        program.kill();
        program.restart();
    }
    assert_eq!(program.letters("orders"), [[""; 3]; 0]);
}

#[test]
fn a_compacted_topic_gives_the_newest_value_of_each_key() {
    let _alone = alone();
    let run = Run::new("kafka-compacted");
    let settings = [
        ("log.cleaner.backoff.ms", "200"),
        ("log.cleaner.dedupe.buffer.size", "1048577"),
    ];
    let kafka = Kafka::start_with(&run, &settings);
    let options = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("segment.bytes", "1048576"),
        ("segment.ms", "200"),
        ("delete.retention.ms", "100"),
        ("min.compaction.lag.ms", "0"),
    ];
    kafka.create_topic("settings", 1, &options);
    let mut program = Program::start(&source("settings", &kafka.bootstrap));
    for n in 0..200 {
        put(
            &kafka,
            "settings",
            0,
            &format!("k{}", n % 5),
            &json!({ "n": n }),
        );
    }
    kafka.produce("settings", 0, &[(Some(b"k4"), None)]);
    let all = "SELECT id, n FROM settings ORDER BY id";
    let newest = [
        row("k0", 195),
        row("k1", 196),
        row("k2", 197),
        row("k3", 198),
    ];
    program.wait_rows(all, &newest);
    // While the program is away, what it read is compacted, and so is what it has not read.
    program.kill();
    for n in 200..300 {
        put(
            &kafka,
            "settings",
            0,
            &format!("k{}", n % 3),
            &json!({ "n": n }),
        );
    }
    wait_for("Kafka compacts the topic", Duration::from_secs(180), || {
        // A segment is closed by the next message after its time.
        put(&kafka, "settings", 0, "tick", &json!({ "n": 0 }));
        std::thread::sleep(Duration::from_millis(250));
        (kafka.records("settings").len() < 100).then_some(())
    });
    let (first, end) = kafka.offsets("settings", 0);
    let left = kafka.records("settings").len() as i64;
    println!("offsets {first} to {end}, {left} messages");
    assert!(left < end - first, "the log has holes");
    let expected = [
        row("k0", 297),
        row("k1", 298),
        row("k2", 299),
        row("k3", 198),
        row("tick", 0),
    ];
    program.restart();
    program.wait_rows(all, &expected);
    // A source that begins now sees the same.
    let (status, reply) = program.post(
        "/v1/sql",
        &json!({ "sql": source("settings", &kafka.bootstrap)
            .replace("SOURCE settings", "SOURCE again")
            .trim_end_matches(";\n") }),
    );
    assert_eq!(status, 200, "{reply}");
    program.wait_rows("SELECT id, n FROM again ORDER BY id", &expected);
    assert_eq!(program.letters("settings"), [[""; 3]; 0]);
    assert_eq!(program.letters("again"), [[""; 3]; 0]);
}

#[test]
fn when_a_leader_dies_its_follower_is_read() {
    let _alone = alone();
    let run = Run::new("kafka-leaders");
    let kafka = Kafka::start(&run);
    let mut second = Broker::join(&run, &kafka);
    // A partition led by each, with the other one behind it.
    kafka.create_topic_on("rooms", &[&[1, 2], &[2, 1]], &[]);
    let brokers = format!("{},{}", kafka.bootstrap, second.bootstrap);
    let program = Program::start(&source("rooms", &brokers));
    let all = "SELECT id, n FROM rooms ORDER BY id";
    let leader = |wanted: i32| {
        wait_for("the leader", Duration::from_secs(180), || {
            let topics = kafka.topics();
            let topic = topics.iter().find(|topic| topic.name == "rooms")?;
            (topic.leader(1) == Some(wanted)).then_some(())
        });
    };
    leader(2);
    // One that looks for the leader by itself.
    let writer = Plain::new(&brokers);
    let both = |n: i64| {
        let value = json!({ "n": n }).to_string();
        writer.write("rooms", &[(0, "a", &value), (1, "b", &value)]);
    };
    both(1);
    program.wait_rows(all, &[row("a", 1), row("b", 1)]);
    second.kill();
    leader(1);
    both(2);
    program.wait_rows(all, &[row("a", 2), row("b", 2)]);
    second.restart();
    both(3);
    program.wait_rows(all, &[row("a", 3), row("b", 3)]);
    let state = "SELECT status FROM headwater.sources WHERE name = 'rooms'";
    program.wait_rows(state, &[vec![json!("running")]]);
    assert_eq!(program.letters("rooms"), [[""; 3]; 0]);
}
