//! Coming back: the log, applied again in its order, gives the same collections at the same times.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::lanes::{self, StagedBatch};
use super::message::{CatalogChange, Message};
use super::program::Program;
use super::sequencer::Sequencer;
use crate::durable::{Replay, Replayed, Stage, Unbound};
use crate::error::WorldError;
use crate::model::{Change, ObjectId, Time, VectorFact};

/// History that an object needs which somebody outside reads (a sink): held from the beginning of the
/// replay, because how far that reader is will be known only later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// The collection that is read.
    pub collection: ObjectId,
    /// Nothing up to this time is needed.
    pub at: Time,
}

/// What replay found, for the crates above.
pub struct Recovered<P: Program> {
    /// Catalog changes in order.
    pub catalog: Vec<CatalogChange<P::Definition>>,
    /// Remembered replies: (source, key, body hash, reply, wall clock).
    pub replies: Vec<(ObjectId, crate::durable::Idempotency, u64)>,
    /// Staged and not bound; prepared by [`super::Engine::resume`].
    pub(super) unbound: Vec<StagedBatch>,
    /// Rows replayed.
    pub rows: u64,
    /// No time above this was published before.
    pub last: Time,
}

/// Applies the log.
pub(super) fn replay<P: Program>(
    sequencer: &mut Sequencer<P>,
    mut replay: Replay,
    inbox: &Receiver<Message<P>>,
    on_catalog: &mut super::OnCatalog<'_, P>,
) -> Result<Recovered<P>, WorldError> {
    let mut recovered = Recovered {
        catalog: Vec::new(),
        replies: Vec::new(),
        unbound: Vec::new(),
        rows: 0,
        last: 0,
    };
    let mut base: Option<Base> = None;
    let mut reserved = 0;
    let mut told = Instant::now();
    while let Some(record) = replay.next() {
        if told.elapsed() > Duration::from_secs(1) {
            told = Instant::now();
            let (done, total) = (replay.bytes_done(), replay.bytes_total());
            tracing::info!(
                done,
                total,
                rows = recovered.rows,
                "replaying the input log"
            );
        }
        match record? {
            Replayed::Since(at) => {
                sequencer.mint.raise(at);
                base = Some(Base {
                    at,
                    ..Base::default()
                });
            }
            Replayed::Ddl(ddl) => {
                if base.as_ref().is_some_and(|base| ddl.at > base.at) {
                    flush(sequencer, &mut base, &mut recovered, inbox);
                }
                sequencer.mint.raise(ddl.at);
                let change: CatalogChange<P::Definition> =
                    bincode::serde::decode_from_slice(&ddl.payload, bincode::config::standard())
                        .map_err(|error| WorldError::Corrupt {
                            path: "input log".to_owned(),
                            offset: 0,
                            detail: format!("a catalog change of time {}: {error}", ddl.at),
                        })?
                        .0;
                let at = base.as_ref().map_or(ddl.at, |base| base.at);
                let pin = on_catalog(&change)?;
                sequencer.install(at, change.clone());
                if let (Some(pin), CatalogChange::Install { id, .. }) = (pin, &change) {
                    sequencer.pin(*id, pin.collection, pin.at.max(at));
                }
                recovered.catalog.push(change);
                if base.is_none() {
                    sequencer.broadcast(ddl.at, Vec::new(), &[], Vec::new(), 0);
                }
            }
            // The last one counts: a clean end takes back what was not used.
            Replayed::Reserve(until) => reserved = until,
            Replayed::Rows(rows) => {
                let base = base.get_or_insert_default();
                let changes = rows.rows.into_iter().map(|row| row.change);
                base.rows.push((rows.source, changes.collect()));
            }
            Replayed::Vectors(facts) => base.get_or_insert_default().facts.extend(facts),
            Replayed::Lanes(lanes) => {
                for lane in lanes {
                    let (shared, id) =
                        (&sequencer.shared, (lane.source, lane.lane.as_str().into()));
                    shared.ingest.replay(
                        lane.source,
                        &lane.lane,
                        lane.sequence,
                        &[],
                        lane.position,
                    );
                    sequencer.lanes.replayed(&id, lane.sequence, 0);
                }
            }
            Replayed::Replies(replies) => recovered.replies.extend(
                replies
                    .into_iter()
                    .map(|reply| (reply.source, reply.idempotency, reply.at_wall)),
            ),
            Replayed::Letters(base) => {
                let letters = &sequencer.shared.dead_letters;
                letters.restore(&base.causes, base.letters);
            }
            Replayed::Forget(names) => {
                let letters = &sequencer.shared.dead_letters;
                letters.forget(|source| !names.iter().any(|name| name == source));
            }
            Replayed::Tick(tick) => {
                flush(sequencer, &mut base, &mut recovered, inbox);
                let stages = tick.stages;
                let batches = stages
                    .into_iter()
                    .map(|s| note(sequencer, &mut recovered, s));
                let batches: Vec<StagedBatch> = batches.collect();
                for batch in &batches {
                    let id = (batch.source, Arc::clone(&batch.lane));
                    sequencer.lanes.replayed(&id, batch.sequence, tick.at);
                }
                apply(sequencer, tick.at, batches, &tick.vectors, inbox);
            }
            Replayed::Unbound(staged) => {
                flush(sequencer, &mut base, &mut recovered, inbox);
                unbound(sequencer, &mut recovered, staged);
            }
        }
    }
    flush(sequencer, &mut base, &mut recovered, inbox);
    sequencer.mint.raise(reserved);
    recovered.last = sequencer.mint.last();
    sequencer.board.set_floor(recovered.last);
    Ok(recovered)
}

/// Stages what one record staged and no tick bound.
fn unbound<P: Program>(
    sequencer: &mut Sequencer<P>,
    recovered: &mut Recovered<P>,
    staged: Unbound,
) {
    let Unbound {
        mut stages,
        is_open,
    } = staged;
    // Nobody takes what a source that was dropped meanwhile had staged; what was open would stay so.
    let is_dropped = |source: ObjectId| {
        let mut changes = recovered.catalog.iter();
        changes.any(|change| matches!(change, CatalogChange::Uninstall { id } if *id == source))
    };
    stages.retain(|stage| !is_dropped(stage.source));
    if stages.is_empty() {
        return;
    }
    let lanes = stages
        .iter()
        .map(|stage| (stage.source, stage.lane.as_str().into()));
    let together = lanes::together(lanes);
    for stage in stages {
        let batch = StagedBatch {
            together: Arc::clone(&together),
            is_open,
            ..note(sequencer, recovered, stage)
        };
        sequencer.shared.ingest.note_staged(&batch);
        sequencer.lanes.stage(batch.clone());
        recovered.unbound.push(batch);
    }
}

/// The state as of one time, collected before it is fed.
#[derive(Default)]
struct Base {
    at: Time,
    rows: Vec<(ObjectId, Vec<Change>)>,
    facts: Vec<VectorFact>,
}

/// Feeds the base, if it is not fed yet: everything in it exists at its time.
fn flush<P: Program>(
    sequencer: &mut Sequencer<P>,
    base: &mut Option<Base>,
    recovered: &mut Recovered<P>,
    inbox: &Receiver<Message<P>>,
) {
    let Some(base) = base.take() else { return };
    let mut batches = Vec::new();
    for (source, changes) in base.rows {
        sequencer
            .shared
            .ingest
            .replay(source, "", 0, &changes, None);
        recovered.rows += changes.len() as u64;
        batches.push(StagedBatch {
            source,
            lane: "".into(),
            sequence: 0,
            bytes: size(&changes),
            changes: Arc::new(changes),
            is_push: false,
            together: Arc::default(),
            is_open: false,
        });
    }
    sequencer.board.raise_sinces(base.at);
    apply(sequencer, base.at, batches, &base.facts, inbox);
}

fn size(changes: &[Change]) -> usize {
    changes.iter().map(Change::staged_bytes).sum()
}

fn note<P: Program>(
    sequencer: &Sequencer<P>,
    recovered: &mut Recovered<P>,
    stage: Stage,
) -> StagedBatch {
    let shared = &sequencer.shared;
    let Stage {
        source,
        lane,
        sequence,
        changes,
        resolved,
        dead_letters,
        position,
        idempotency,
        at_wall,
    } = stage;
    shared.dead_letters.replay(at_wall, &resolved, dead_letters);
    if let Some(idempotency) = idempotency {
        recovered.replies.push((source, idempotency, at_wall));
    }
    shared
        .ingest
        .replay(source, &lane, sequence, &changes, position);
    recovered.rows += changes.len() as u64;
    StagedBatch {
        source,
        lane: lane.as_str().into(),
        sequence,
        bytes: size(&changes),
        changes,
        // The lane is the push lane exactly when its batches were pushes.
        is_push: &*lane == super::sink::PUSH_LANE,
        together: Arc::default(),
        is_open: false,
    }
}

/// Broadcasts one replayed tick, not running ahead of the workers.
fn apply<P: Program>(
    sequencer: &mut Sequencer<P>,
    at: Time,
    batches: Vec<StagedBatch>,
    facts: &[VectorFact],
    inbox: &Receiver<Message<P>>,
) {
    sequencer.mint.raise(at);
    // One that was forgotten since is computed again when it is needed.
    let has_vector = |fact: &&VectorFact| sequencer.shared.preparer.has_vector(fact.at);
    let facts: Vec<VectorFact> = facts.iter().filter(has_vector).copied().collect();
    for fact in &facts {
        sequencer.bound.insert((fact.model, fact.content), fact.at);
    }
    let bytes = batches.iter().map(|batch| batch.bytes).sum();
    sequencer.broadcast(at, batches, &facts, Vec::new(), bytes);
    while !sequencer.replay_has_room() {
        if let Ok(Message::Uppers(uppers)) = inbox.recv_timeout(Duration::from_millis(50)) {
            for (id, upper) in uppers {
                sequencer.board.applied(id, upper);
            }
        }
        sequencer.publish();
    }
}
