//! Sources and views as differential collections, arranged by key and shared by all readers.
//!
//! A source's rows are upserts ([`super::upsert`]): the old row is retracted exactly. A view maps the
//! arranged rows through its program; each row is good or bad (PROTOCOLS §6.1): good ones are
//! arranged again, bad ones become dead letters that go when the row changes.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::AsCollection;
use differential_dataflow::operators::arrange::TraceAgent;
use differential_dataflow::trace::TraceReader;
use engine::error::DataError;
use engine::model::{DocVersion, Key, ObjectId, Time};
use timely::dataflow::channels::pact::Pipeline as Local;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::{Input, Inspect, Probe};
use timely::dataflow::{InputHandle, ProbeHandle};
use timely::progress::frontier::AntichainRef;
use timely::worker::Worker;

use super::pipeline::Pipeline;
use super::question::ProgramReply;
use super::upsert::{self, Upsert, arrange_upserts};
use crate::sql::RowProgram;

/// The arranged rows of a relation.
pub(super) type Documents = TraceAgent<upsert::Rows>;

/// Feeds upserts.
pub(super) type Upserts =
    InputHandle<Time, timely::container::CapacityContainerBuilder<Vec<Upsert>>>;

/// A rendered source or view.
pub(super) struct Relation {
    pub(super) documents: Documents,
    pub(super) probe: ProbeHandle<Time>,
    /// Sources only.
    pub(super) input: Option<Upserts>,
    pub(super) dataflow: usize,
}

impl Relation {
    /// Nothing before `since` is read again.
    pub(super) fn allow_compaction(&mut self, since: Time) {
        self.documents
            .set_logical_compaction(AntichainRef::new(&[since]));
    }

    /// Batches may merge up to what is complete, whatever can still be read: reads filter by time
    /// themselves, so batch boundaries need not be kept. A batch a tick is a cursor a tick to a reader.
    pub(super) fn allow_merging(&mut self) {
        let upper = self.probe.with_frontier(|frontier| frontier.to_owned());
        self.documents.set_physical_compaction(upper.borrow());
    }
}

/// Renders a source.
pub(super) fn source(worker: &mut Worker, name: &str, at: Time) -> Relation {
    let probe = ProbeHandle::new();
    let dataflow = worker.next_dataflow_index();
    let (mut input, documents) = worker.dataflow_named(name, |scope| {
        let (input, stream) = scope.new_input();
        let arranged = arrange_upserts(stream, name);
        arranged.stream.probe_with(&probe);
        (input, arranged.trace)
    });
    input.advance_to(at);
    Relation {
        documents,
        probe,
        input: Some(input),
        dataflow,
    }
}

/// Renders a view over a relation.
pub(super) fn view(
    worker: &mut Worker,
    pipeline: &Arc<Pipeline>,
    id: ObjectId,
    name: &str,
    from: &mut Relation,
    program: &Arc<RowProgram>,
) -> Relation {
    let probe = ProbeHandle::new();
    let dataflow = worker.next_dataflow_index();
    let program = Arc::clone(program);
    let errors = Arc::clone(pipeline);
    let documents = worker.dataflow_named(name, |scope| {
        let (rows, _button) = from.documents.import_frontier(scope, name);
        let rows = rows
            .as_collection(|key, value| (key.clone(), value.clone()))
            .inner;
        let applied = rows.unary(Local, "Program", |_, _| {
            move |input, output| {
                input.for_each(|time, batch| {
                    let out = apply(&program, std::mem::take(batch));
                    output.session(&time).give_iterator(out.into_iter());
                });
            }
        });
        let good = applied.clone().flat_map_ok();
        applied.inspect(move |((key, result), _, diff)| {
            if let Err(error) = result {
                let (key, error, diff) = (key.clone(), error.clone(), *diff as i64);
                (errors.replies)(ProgramReply::RowError {
                    relation: id,
                    key,
                    error,
                    diff,
                });
            }
        });
        let arranged = good.as_collection().arrange_by_key_named(name);
        arranged.stream.probe_with(&probe);
        arranged.trace
    });
    Relation {
        documents,
        probe,
        input: None,
        dataflow,
    }
}

type Update<T> = ((Key, T), Time, isize);

/// Applies a program to a batch of updates; rows that the filter drops are left out.
fn apply(
    program: &RowProgram,
    batch: Vec<Update<DocVersion>>,
) -> Vec<Update<Result<DocVersion, DataError>>> {
    let rows: Vec<_> = batch
        .iter()
        .map(|((_, value), _, _)| value.row.clone())
        .collect();
    // Volatile functions are refused in views, so any time will do for `now()`.
    let results = program.apply(&rows, 0);
    let paired = batch.into_iter().zip(results);
    paired
        .filter_map(|(((key, value), time, diff), result)| {
            let version = value.version;
            let result = result.transpose()?.map(|row| DocVersion { version, row });
            Some(((key, result), time, diff))
        })
        .collect()
}

/// Keeps the good rows of a stream of results.
trait FlatMapOk<'scope> {
    fn flat_map_ok(self) -> timely::dataflow::StreamVec<'scope, Time, Update<DocVersion>>;
}

impl<'scope> FlatMapOk<'scope>
    for timely::dataflow::StreamVec<'scope, Time, Update<Result<DocVersion, DataError>>>
{
    fn flat_map_ok(self) -> timely::dataflow::StreamVec<'scope, Time, Update<DocVersion>> {
        use timely::dataflow::operators::vec::Map;
        self.flat_map(|((key, result), time, diff)| result.ok().map(|row| ((key, row), time, diff)))
    }
}

/// Shared handles of relations by id.
pub(super) type Relations = Rc<RefCell<std::collections::BTreeMap<ObjectId, Relation>>>;

#[cfg(test)]
mod tests {
    use differential_dataflow::trace::Cursor;
    use engine::model::Row;

    use super::*;

    /// All history can be read, and still a reader has a few cursors, not one a tick.
    #[test]
    fn batches_merge_while_all_history_is_kept() {
        const TICKS: Time = 1_000;
        let (batches, versions) = timely::execute_directly(|worker| {
            let mut relation = source(worker, "one", 0);
            for at in 1..=TICKS {
                let input = relation.input.as_mut().expect("a source");
                let row = Row::from_bytes(&at.to_le_bytes());
                let value = DocVersion { version: at, row };
                input.advance_to(at);
                input.send((Key::text("a"), Some(value), at));
                input.advance_to(at + 1);
                worker.step_while(|| relation.probe.less_than(&(at + 1)));
                relation.allow_merging();
            }
            let mut batches = 0;
            relation.documents.map_batches(|_| batches += 1);
            let (mut cursor, storage) = relation.documents.cursor();
            let mut versions = 0;
            while cursor.get_val(&storage).is_some() {
                versions += 1;
                cursor.step_val(&storage);
            }
            (batches, versions)
        });
        assert_eq!(versions, TICKS, "none is forgotten");
        assert!(batches < 40, "{batches} batches of {TICKS} ticks");
    }
}
