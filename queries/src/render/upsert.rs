//! Upserts made into a collection, arranged by key.
//!
//! ```text
//! (key, row or none, T) ─▶ live rows by key ─▶ −old +new at T ─▶ one batch of the arrangement
//! ```
//!
//! The idea: the old row that a change takes back is kept beside the arrangement, in a table of the live
//! rows, so that a change costs one look-up, however many versions of its key the arrangement still
//! holds (a row that changes all the time under a long retention) and however many batches it has. The
//! table shares the rows' bytes with the arrangement. (Differential's own `arrange_from_upsert` asks the
//! arrangement: it walks all versions of each changed key.)
//!
//! Invariants: rows come to the worker that owns their key, in the order of their times, at most one
//! change a key and time; the collection at T is what the changes through T leave of each key; a
//! change to an equal value is none. Limits: total order of times; a key and two words of memory a live
//! row beside the arrangement.

use std::collections::hash_map::Entry;

use ahash::AHashMap;
use differential_dataflow::consolidation::consolidate_updates;
use differential_dataflow::operators::arrange::{Arranged, TraceAgent, TraceWriter};
use differential_dataflow::trace::implementations::{ValBuilder, ValSpine};
use differential_dataflow::trace::{Builder, Description, Trace};
use engine::model::{DocVersion, Key, Time};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline as Local;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;
use timely::progress::Antichain;
use timely::progress::frontier::AntichainRef;

/// A change of a key: its new value, or none.
pub(super) type Upsert = (Key, Option<DocVersion>, Time);

/// The arranged rows.
pub(super) type Rows = ValSpine<Key, DocVersion, Time, isize>;

type Update = ((Key, DocVersion), Time, isize);

/// Arranges upserts. Cost a change: a look-up in a table, and its share of sorting the batch.
pub(super) fn arrange_upserts<'scope>(
    stream: StreamVec<'scope, Time, Upsert>,
    name: &str,
) -> Arranged<'scope, TraceAgent<Rows>> {
    let mut reader = None;
    let found = &mut reader;
    let scope = stream.scope();
    let batches = stream.unary_frontier(Local, name, move |_capability, info| {
        let activator = scope.activator_for(std::rc::Rc::clone(&info.address));
        let trace = Rows::new(info.clone(), None, Some(activator));
        let (agent, writer) = TraceAgent::new(trace, info, None);
        *found = Some(agent);
        let mut upserts = Upserts::new(writer);
        move |(input, frontier), output| {
            input.for_each(|capability, batch| {
                upserts
                    .capability
                    .get_or_insert_with(|| capability.retain(0));
                match upserts.waiting.is_empty() {
                    true => std::mem::swap(&mut upserts.waiting, batch),
                    false => upserts.waiting.append(batch),
                }
            });
            if upserts.lower.borrow() != frontier.frontier()
                && let Some((capability, batch)) = upserts.advance(frontier.frontier())
            {
                output.session(&capability).give(batch);
            }
            upserts.writer.exert();
        }
    });
    Arranged {
        stream: batches,
        trace: reader.expect("the operator was just built"),
    }
}

/// The state of the operator.
struct Upserts {
    writer: TraceWriter<Rows>,
    /// The value that each key has after everything that was arranged.
    live: AHashMap<Key, DocVersion>,
    /// Changes at times that may still get more, in the order of time.
    waiting: Vec<Upsert>,
    /// For the first of them.
    capability: Option<Capability<Time>>,
    /// Everything before it is arranged.
    lower: Antichain<Time>,
}

impl Upserts {
    fn new(writer: TraceWriter<Rows>) -> Self {
        Upserts {
            writer,
            live: AHashMap::new(),
            waiting: Vec::new(),
            capability: None,
            lower: Antichain::from_elem(0),
        }
    }

    /// Arranges what is complete before `frontier`; the batch, when there is any.
    fn advance(
        &mut self,
        frontier: AntichainRef<'_, Time>,
    ) -> Option<(
        Capability<Time>,
        <Rows as differential_dataflow::trace::TraceReader>::Batch,
    )> {
        let complete = self
            .waiting
            .partition_point(|(_, _, time)| !frontier.less_equal(time));
        let lower = std::mem::replace(&mut self.lower, frontier.to_owned());
        if complete == 0 {
            self.writer.seal(self.lower.clone());
            return None;
        }
        let capability = self.capability.take().expect("kept while changes wait");
        let mut updates = Vec::with_capacity(2 * complete);
        for change in self.waiting.drain(..complete) {
            apply(&mut self.live, change, &mut updates);
        }
        let next = self.waiting.first();
        self.capability = next.map(|(_, _, time)| capability.delayed(time));
        consolidate_updates(&mut updates);
        let count = updates.len();
        let mut builder =
            ValBuilder::<Key, DocVersion, Time, isize>::with_capacity(count, count, count);
        builder.push(&mut updates);
        let since = Antichain::from_elem(0);
        let batch = builder.done(Description::new(lower, self.lower.clone(), since));
        self.writer.insert(batch.clone(), Some(*capability.time()));
        Some((capability, batch))
    }
}

/// Applies a change to the live rows, and notes what that takes from and gives to the collection.
fn apply(live: &mut AHashMap<Key, DocVersion>, change: Upsert, updates: &mut Vec<Update>) {
    let (key, value, time) = change;
    let old = match (live.entry(key.clone()), value) {
        (Entry::Occupied(entry), None) => Some(entry.remove()),
        (Entry::Vacant(_), None) => None,
        (Entry::Occupied(entry), Some(new)) if *entry.get() == new => None,
        (Entry::Occupied(mut entry), Some(new)) => {
            updates.push(((key.clone(), new.clone()), time, 1));
            Some(entry.insert(new))
        }
        (Entry::Vacant(entry), Some(new)) => {
            updates.push(((key.clone(), new.clone()), time, 1));
            entry.insert(new);
            None
        }
    };
    if let Some(old) = old {
        updates.push(((key, old), time, -1));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use differential_dataflow::operators::arrange::upsert::arrange_from_upsert;
    use differential_dataflow::trace::TraceReader;
    use engine::model::Row;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use timely::dataflow::InputHandle;
    use timely::dataflow::operators::Input;

    use super::*;

    /// What a collection gained and lost.
    type Seen = Arc<Mutex<Vec<Update>>>;

    fn random_change(random: &mut ChaCha8Rng, time: Time) -> Upsert {
        let key = Key::text(&format!("k{}", random.random_range(0..12)));
        let row = Row::from_bytes(&[random.random_range(0..3_u8)]);
        let version = random.random_range(0..3);
        let value = random.random_bool(0.7);
        (key, value.then_some(DocVersion { version, row }), time)
    }

    /// Rounds of changes: `(time, at most one change a key)`, and whether the dataflow runs after.
    fn script(seed: u64) -> Vec<(Time, Vec<Upsert>, bool)> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut time = 0;
        let mut rounds = Vec::new();
        for _ in 0..60 {
            time += random.random_range(1..4);
            let mut changes = BTreeMap::new();
            for _ in 0..random.random_range(0..10) {
                let change = random_change(&mut random, time);
                changes.insert(change.0.clone(), change);
            }
            rounds.push((time, changes.into_values().collect(), random.random()));
        }
        rounds
    }

    /// Runs a script through ours and through differential's; both results, consolidated.
    fn run(rounds: Vec<(Time, Vec<Upsert>, bool)>) -> (Vec<Update>, Vec<Update>) {
        let (ours, theirs) = (Seen::default(), Seen::default());
        let seen = (Arc::clone(&ours), Arc::clone(&theirs));
        timely::execute_directly(move |worker| {
            let mut input = InputHandle::new();
            let (ours, theirs) = seen;
            let (probe, mut trace) = worker.dataflow(|scope| {
                let stream = scope.input_from(&mut input);
                let arranged = arrange_upserts(stream.clone(), "ours");
                let trace = arranged.trace.clone();
                let changes = arranged.as_collection(|key, value| (key.clone(), value.clone()));
                let changes = changes.inspect_batch(move |_, batch| {
                    ours.lock().expect("one thread").extend_from_slice(batch);
                });
                let same = arrange_from_upsert::<
                    ValBuilder<Key, DocVersion, Time, isize>,
                    Rows,
                    Key,
                    DocVersion,
                >(stream, "theirs");
                let same = same.as_collection(|key, value| (key.clone(), value.clone()));
                let same = same.inspect_batch(move |_, batch| {
                    theirs.lock().expect("one thread").extend_from_slice(batch);
                });
                let (probe, _) = changes.concat(same).probe();
                (probe, trace)
            });
            for (time, changes, is_run) in rounds {
                input.advance_to(time);
                changes.into_iter().for_each(|change| input.send(change));
                input.advance_to(time + 1);
                if is_run {
                    worker.step_while(|| probe.less_than(input.time()));
                    // A reader that lets versions merge changes nothing for those to come.
                    let read = [time];
                    trace.set_logical_compaction(AntichainRef::new(&read));
                    trace.set_physical_compaction(AntichainRef::new(&read));
                }
            }
            input.close();
        });
        let consolidated = |seen: &Seen| {
            let mut updates = seen.lock().expect("one thread").clone();
            consolidate_updates(&mut updates);
            updates
        };
        (consolidated(&ours), consolidated(&theirs))
    }

    /// What the rows are after each round, by the changes alone.
    fn recomputed(rounds: &[(Time, Vec<Upsert>, bool)]) -> Vec<Update> {
        let mut rows: BTreeMap<Key, DocVersion> = BTreeMap::new();
        let mut updates = Vec::new();
        for (time, changes, _) in rounds {
            let before = rows.clone();
            for (key, value, _) in changes {
                match value {
                    Some(value) => drop(rows.insert(key.clone(), value.clone())),
                    None => drop(rows.remove(key)),
                }
            }
            updates.extend(before.into_iter().map(|row| (row, *time, -1)));
            updates.extend(rows.clone().into_iter().map(|row| (row, *time, 1)));
        }
        consolidate_updates(&mut updates);
        updates
    }

    #[test]
    fn the_collection_is_what_the_changes_leave_at_every_time() {
        for seed in 0..60 {
            let rounds = script(seed);
            let expected = recomputed(&rounds);
            let (ours, theirs) = run(rounds);
            assert_eq!(ours, expected, "seed {seed}");
            assert_eq!(ours, theirs, "seed {seed}");
        }
    }
}
