//! Producers for the tests beside real brokers; they live here, where librdkafka does.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::json;

const ANSWER: Duration = Duration::from_secs(120);

fn producer(brokers: &str, option: &str, value: &str) -> BaseProducer {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set(option, value)
        .create()
        .expect("a producer")
}

fn send(producer: &BaseProducer, record: BaseRecord<'_, str, str>) {
    let sent = producer.send(record).map_err(|(error, _)| error);
    sent.expect("room for a message");
}

/// A producer that finds the leaders of partitions by itself.
pub struct Plain(BaseProducer);

impl Plain {
    /// # Panics
    /// When librdkafka refuses.
    pub fn new(brokers: &str) -> Plain {
        Plain(producer(brokers, "acks", "1"))
    }

    /// Writes `(partition, key, value)`s; they are in the log when this returns.
    ///
    /// # Panics
    /// When the brokers do not take them.
    pub fn write(&self, topic: &str, messages: &[(i32, &str, &str)]) {
        for (partition, key, value) in messages {
            let record = BaseRecord::to(topic).partition(*partition);
            send(&self.0, record.key(*key).payload(*value));
        }
        self.0.flush(ANSWER).expect("the brokers take them");
    }
}

/// A producer of transactions.
pub struct Writer(BaseProducer);

impl Writer {
    /// # Panics
    /// When no broker answers.
    pub fn new(brokers: &str, id: &str) -> Writer {
        let producer = producer(brokers, "transactional.id", id);
        producer.init_transactions(ANSWER).expect("a broker");
        Writer(producer)
    }

    /// Writes rows `{"n":…}` by their keys in a transaction that stays open; they are in the log when
    /// this returns.
    ///
    /// # Panics
    /// When the brokers do not take them.
    pub fn begin(&self, topic: &str, rows: &[(&str, i64)]) {
        self.0.begin_transaction().expect("none is open");
        for (id, n) in rows {
            let value = json!({ "n": n }).to_string();
            send(&self.0, BaseRecord::to(topic).key(*id).payload(&value));
        }
        self.0.flush(ANSWER).expect("the broker takes them");
    }

    /// # Panics
    /// When the brokers refuse.
    pub fn commit(&self) {
        self.0.commit_transaction(ANSWER).expect("it is committed");
    }

    /// # Panics
    /// When the brokers refuse.
    pub fn abort(&self) {
        self.0.abort_transaction(ANSWER).expect("it is aborted");
    }
}
