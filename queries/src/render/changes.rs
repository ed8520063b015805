//! What changed in an arrangement between two times, by page: what a sink asks.
//!
//! ```text
//!  batches:  ░░░░░░░░░░░░│▒▒▒▒▒│▒▒│▒      ░ wholly at or before `after`: only looked into for the
//!                      after        at      keys that changed; ▒ read from end to end
//! ```
//!
//! The idea: an arrangement is a few large batches of the past and some small ones of the present, and
//! each says how far its times go. So a reader that keeps up reads what is new, whatever the
//! collection's size; one that is far behind reads more, never more than the arrangement, a page at a
//! time.
//!
//! Invariants: times after `after` are exact, because a hold at `after` keeps compaction behind it; the
//! changes of a key are never split over two pages. Cost: the batches with times after `after`, and one
//! look-up for each key that changed.

use std::collections::BTreeMap;
use std::time::Instant;

use differential_dataflow::trace::cursor::cursor_list;
use differential_dataflow::trace::{BatchReader, Cursor, TraceReader};
use engine::contract::RowChange;
use engine::model::{DocVersion, Key, Row, Time};
use timely::progress::Antichain;

use super::question::ChangesQuestion;
use super::relation::{Documents, Relations};

/// Keys between two looks at the clock.
const KEYS_A_LOOK: u32 = 64;

/// Reads one page on one worker, in bounded steps.
pub(super) struct ChangeReader {
    documents: Option<Documents>,
    worker: usize,
    after: Option<Time>,
    at: Time,
    /// The first key that is not read yet; `None`: none is.
    from: Option<Key>,
    changes: Vec<RowChange>,
    bytes: usize,
    most: usize,
}

impl ChangeReader {
    pub(super) fn new(
        relations: &Relations,
        question: &ChangesQuestion,
        at: Time,
        worker: usize,
    ) -> Self {
        let page = question.page.as_ref();
        let own = page.and_then(|page| page.iter().find(|(other, _)| *other == worker));
        // A worker that the page does not name is through.
        let is_through = page.is_some() && own.is_none();
        let documents = match is_through {
            true => None,
            false => relations
                .borrow()
                .get(&question.collection)
                .map(|relation| relation.documents.clone()),
        };
        ChangeReader {
            documents,
            worker,
            after: question.after,
            at,
            from: own.map(|(_, key)| key.clone()),
            changes: Vec::new(),
            bytes: 0,
            most: question.most,
        }
    }

    /// The page and where the next one begins; `None` to be called again.
    pub(super) fn read(
        &mut self,
        deadline: Instant,
    ) -> Option<(Vec<RowChange>, Option<(usize, Key)>)> {
        let Some(documents) = self.documents.as_mut() else {
            return Some((Vec::new(), None));
        };
        let mut upper = Antichain::new();
        documents.read_upper(&mut upper);
        if upper.less_equal(&self.at) {
            return None;
        }
        let all = documents
            .batches_through(Antichain::new().borrow())
            .expect("a relation's trace is open as long as it is listed");
        let (after, at) = (self.after, self.at);
        let is_new = |upper: &Antichain<Time>| {
            let last = upper.elements().first();
            after.is_none_or(|after| last.is_none_or(|upper| *upper > after + 1))
        };
        let new: Vec<_> = all
            .iter()
            .filter(|batch| is_new(batch.upper()))
            .cloned()
            .collect();
        let (mut new, new_storage) = cursor_list(new);
        let (mut all, all_storage) = cursor_list(all);
        if let Some(from) = &self.from {
            new.seek_key(&new_storage, from);
        }
        let mut steps = 0_u32;
        while let Some(key) = new.get_key(&new_storage) {
            steps += 1;
            if steps.is_multiple_of(KEYS_A_LOOK) && Instant::now() > deadline {
                self.from = Some(key.clone());
                return None;
            }
            if self.bytes >= self.most.max(1) {
                let next = Some((self.worker, key.clone()));
                return Some((std::mem::take(&mut self.changes), next));
            }
            let mut is_changed = false;
            while let Some(_value) = new.get_val(&new_storage) {
                new.map_times(&new_storage, |time, _| {
                    is_changed |= after.is_none_or(|after| *time > after) && *time <= at;
                });
                new.step_val(&new_storage);
            }
            if is_changed {
                let mut history = Vec::new();
                all.seek_key(&all_storage, key);
                while let Some(value) = all.get_val(&all_storage) {
                    all.map_times(&all_storage, |time, diff| {
                        if *time <= at {
                            history.push((*time, value, *diff));
                        }
                    });
                    all.step_val(&all_storage);
                }
                for change in changes(key, history, after, at) {
                    self.bytes += change.bytes();
                    self.changes.push(change);
                }
            }
            new.step_key(&new_storage);
        }
        Some((std::mem::take(&mut self.changes), None))
    }
}

/// One change a time, of a key's updates up to `at`. Values that differ in their version only are no
/// change.
fn changes(
    key: &Key,
    mut history: Vec<(Time, &DocVersion, isize)>,
    after: Option<Time>,
    at: Time,
) -> Vec<RowChange> {
    // Without a beginning the whole past is one insertion.
    let past = after.unwrap_or(at);
    history.sort_by_key(|(time, ..)| *time);
    let mut values: BTreeMap<&DocVersion, isize> = BTreeMap::new();
    let row = |values: &BTreeMap<&DocVersion, isize>| -> Option<Row> {
        let mut live = values.iter().rev().filter(|(_, count)| **count > 0);
        live.next().map(|(value, _)| value.row.clone())
    };
    let split = history.partition_point(|(time, ..)| *time <= past);
    for (_, value, diff) in &history[..split] {
        *values.entry(value).or_default() += diff;
    }
    let mut before = row(&values);
    let mut out = Vec::new();
    if after.is_none() {
        out.extend(before.map(|row| RowChange {
            key: key.clone(),
            at,
            before: None,
            after: Some(row),
        }));
        return out;
    }
    for tick in history[split..].chunk_by(|a, b| a.0 == b.0) {
        for (_, value, diff) in tick {
            *values.entry(value).or_default() += diff;
        }
        let now = row(&values);
        if now != before {
            out.push(RowChange {
                key: key.clone(),
                at: tick[0].0,
                before: before.take(),
                after: now.clone(),
            });
            before = now;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(version: u64, row: &str) -> DocVersion {
        DocVersion {
            version,
            row: Row::from_bytes(row.as_bytes()),
        }
    }

    #[test]
    fn a_key_has_one_change_a_time_and_each_begins_where_the_last_ended() {
        let key = Key::text("k");
        let (a, b, same, c) = (value(1, "a"), value(2, "b"), value(3, "b"), value(4, "c"));
        let history = vec![
            (10, &a, 1),
            (20, &a, -1),
            (20, &b, 1),
            (30, &b, -1),
            (30, &same, 1),
            (40, &same, -1),
            (50, &c, 1),
        ];
        let row = |value: &DocVersion| Some(value.row.clone());
        let change = |at, before, after| RowChange {
            key: key.clone(),
            at,
            before,
            after,
        };
        let all = [
            change(10, None, row(&a)),
            change(20, row(&a), row(&b)),
            change(40, row(&b), None),
            change(50, None, row(&c)),
        ];
        assert_eq!(changes(&key, history.clone(), Some(0), 60), all);
        assert_eq!(changes(&key, history.clone(), Some(10), 60), all[1..]);
        assert_eq!(changes(&key, history.clone(), Some(20), 60), all[2..]);
        let now = [change(60, None, row(&c))];
        assert_eq!(changes(&key, history.clone(), None, 60), now);
        assert_eq!(changes(&key, history[..6].to_vec(), None, 45), []);
        // What compaction moved to the held time counts as before it.
        let compacted = vec![(20, &b, 1), (40, &b, -1)];
        assert_eq!(changes(&key, compacted, Some(20), 60), all[2..3]);
    }
}
