//! Random records that keep the log's rules, and the naive model of what they mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::durable::{
    BaseReply, BoundTick, Ddl, Held, Idempotency, LaneRange, Record, Replayed, Stage, Tick,
    Unbound, is_admitted,
};
use engine::error::{DataError, DeadLetter};
use engine::letters::LetterId;
use engine::model::{
    Change, ContentHash, Key, ModelId, ObjectId, Row, Time, VectorFact, VectorRef,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Makes records.
pub struct Script {
    rng: ChaCha8Rng,
    at: Time,
    step: Time,
    /// Per lane: next sequence to stage, next to bind.
    lanes: BTreeMap<(ObjectId, String), (u64, u64)>,
}

impl Script {
    pub fn new(seed: u64) -> Self {
        Self::with_step(seed, 1_000)
    }

    /// Ticks at most `step` microseconds apart.
    pub fn with_step(seed: u64, step: Time) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Script {
            rng,
            at: 0,
            step,
            lanes: BTreeMap::new(),
        }
    }

    pub fn records(&mut self, count: usize) -> Vec<Record> {
        (0..count).map(|_| self.record()).collect()
    }

    fn record(&mut self) -> Record {
        match self.rng.random_range(0..13) {
            0 => {
                // A tick may bind a part alone here: the log does not mind, its writers do.
                let parts = [1, 2].map(|source| self.stage_of(ObjectId(source)));
                match self.rng.random_bool(0.3) {
                    true => Record::Open(parts.into()),
                    false => Record::Together(parts.into()),
                }
            }
            1..6 => {
                let source = ObjectId(self.rng.random_range(1..3));
                Record::Stage(self.stage_of(source))
            }
            6..10 => Record::Tick(self.tick()),
            10 => {
                let payload = (0..self.rng.random_range(0..20))
                    .map(|_| self.rng.random())
                    .collect();
                Record::Ddl(Ddl {
                    at: self.next_at(),
                    payload,
                })
            }
            11 => Record::Forget(vec![ObjectId(self.rng.random_range(1..3)).to_string()]),
            _ => Record::Reserve(self.at + 5_000_000),
        }
    }

    fn next_at(&mut self) -> Time {
        self.at += self.rng.random_range(1..self.step);
        self.at
    }

    fn stage_of(&mut self, source: ObjectId) -> Stage {
        let lane = ["", "a", "b"][self.rng.random_range(0..3)].to_owned();
        let next = self.lanes.entry((source, lane.clone())).or_insert((1, 1));
        let sequence = next.0;
        next.0 += 1;
        let changes = (0..self.rng.random_range(0..4))
            .map(|_| self.change())
            .collect();
        let rng = &mut self.rng;
        // Few enough places that letters come again and are resolved.
        let error = DataError::new("invalid-json", "no");
        let place = rng.random_range(0..6).to_string();
        let letter = DeadLetter::new(source.to_string(), place, error, &[1, 2, 3]);
        let earlier = rng.random_range(0..6).to_string();
        let earlier = DeadLetter {
            position: earlier,
            ..letter.clone()
        };
        let idempotency = Idempotency {
            key: format!("k{}", rng.random::<u32>()),
            body_hash: [7; 32],
            reply: "{}".to_owned(),
        };
        Stage {
            source,
            lane,
            sequence,
            changes: Arc::new(changes),
            resolved: if rng.random_bool(0.2) {
                vec![earlier.id()]
            } else {
                Vec::new()
            },
            dead_letters: if rng.random_bool(0.4) {
                vec![Arc::new(letter)]
            } else {
                Vec::new()
            },
            position: rng.random_bool(0.5).then(|| sequence.to_string()),
            idempotency: rng.random_bool(0.3).then_some(idempotency),
            at_wall: 0,
        }
    }

    fn change(&mut self) -> Change {
        let rng = &mut self.rng;
        let bytes: Vec<u8> = (0..rng.random_range(0..40)).map(|_| rng.random()).collect();
        Change {
            key: Key::text(&rng.random_range(0..8).to_string()),
            row: rng.random_bool(0.7).then(|| Row::from_bytes(&bytes)),
            version: rng.random_range(0..50), // late and repeated versions too
        }
    }

    fn tick(&mut self) -> Tick {
        let at = self.next_at();
        let mut lanes = Vec::new();
        for ((source, lane), (staged, bound)) in &mut self.lanes {
            let through = self.rng.random_range(*bound - 1..*staged);
            if through >= *bound {
                let (source, lane) = (*source, lane.clone());
                lanes.push(LaneRange {
                    source,
                    lane,
                    from: *bound,
                    through,
                });
                *bound = through + 1;
            }
        }
        let vectors = (0..self.rng.random_range(0..3))
            .map(|_| {
                let content = ContentHash([self.rng.random(); 16]);
                let at = VectorRef(self.rng.random());
                VectorFact {
                    model: ModelId([1; 16]),
                    content,
                    at,
                }
            })
            .collect();
        Tick { at, lanes, vectors }
    }
}

/// What a replay of exactly these records must tell.
pub fn expected_events(records: &[Record]) -> Vec<Replayed> {
    let mut staged: Vec<(Vec<Stage>, bool)> = Vec::new();
    let mut events = Vec::new();
    for record in records {
        match record {
            Record::Stage(stage) => staged.push((vec![stage.clone()], false)),
            Record::Together(parts) => staged.push((parts.clone(), false)),
            Record::Open(parts) => staged.push((parts.clone(), true)),
            Record::Ddl(ddl) => events.push(Replayed::Ddl(ddl.clone())),
            Record::Reserve(until) => events.push(Replayed::Reserve(*until)),
            Record::Forget(names) => events.push(Replayed::Forget(names.clone())),
            Record::Tick(tick) => {
                let mut stages = Vec::new();
                for range in &tick.lanes {
                    let binds = |stage: &Stage| {
                        (stage.source, &stage.lane) == (range.source, &range.lane)
                            && (range.from..=range.through).contains(&stage.sequence)
                    };
                    let all = staged.iter().flat_map(|(stages, _)| stages);
                    stages.extend(all.filter(|stage| binds(stage)).cloned());
                    for (stages, _) in &mut staged {
                        stages.retain(|stage| !binds(stage));
                    }
                    staged.retain(|(stages, _)| !stages.is_empty());
                }
                let vectors = tick.vectors.clone();
                events.push(Replayed::Tick(BoundTick {
                    at: tick.at,
                    stages,
                    vectors,
                }));
            }
            base => panic!("a script has no {base:?}"),
        }
    }
    let staged = staged.into_iter();
    let unbound = staged.map(|(stages, is_open)| Unbound { stages, is_open });
    events.extend(unbound.map(Replayed::Unbound));
    events
}

/// What all events together mean.
#[derive(Debug, Default, PartialEq)]
pub struct State {
    pub rows: BTreeMap<(ObjectId, Key), (Held2, Option<Row>)>,
    pub lanes: BTreeMap<(ObjectId, String), (u64, Option<String>)>,
    pub facts: BTreeMap<(ModelId, ContentHash), VectorRef>,
    pub replies: BTreeMap<String, String>,
    pub letters: Letters,
    pub ddl: Vec<Ddl>,
    pub reserved: Time,
    /// With whether the lane's next one goes on with it.
    pub unbound: Vec<(Stage, bool)>,
}

/// What there is of letters, kept naively.
#[derive(Debug, Default, PartialEq)]
pub struct Letters {
    /// By source and position, oldest last arrival first: (source, position, times).
    pub kept: Vec<(String, String, u64)>,
    /// By source: (seen, resolved).
    pub counts: BTreeMap<String, (u64, u64)>,
}

impl Letters {
    fn add(&mut self, letter: &DeadLetter) {
        let (source, position) = (letter.source.clone(), letter.position.clone());
        self.counts.entry(source.clone()).or_default().0 += 1;
        let is_same =
            |(other, place, _): &(String, String, u64)| (other, place) == (&source, &position);
        let times = match self.kept.iter().position(is_same) {
            Some(at) => self.kept.remove(at).2,
            None => 0,
        };
        self.kept.push((source, position, times + 1));
    }

    fn resolve(&mut self, id: LetterId) {
        let is_named = |(source, position, _): &(String, String, u64)| {
            let error = DataError::new("invalid-json", "no");
            DeadLetter::new(&**source, &**position, error, &[]).id() == id
        };
        if let Some(at) = self.kept.iter().position(is_named) {
            let (source, ..) = self.kept.remove(at);
            self.counts.entry(source).or_default().1 += 1;
        }
    }
}

/// Version and time of a key's last admitted change.
pub type Held2 = (u64, Time);

impl State {
    pub fn of(events: &[Replayed]) -> State {
        let mut state = State::default();
        events.iter().for_each(|event| state.apply(event));
        state
            .unbound
            .sort_by_key(|(s, _)| (s.source, s.lane.clone(), s.sequence));
        state
    }

    fn change(&mut self, source: ObjectId, at: Time, change: &Change) {
        let key = (source, change.key.clone());
        let held = self.rows.get(&key).map(|((version, at), row)| Held {
            version: *version,
            is_live: row.is_some(),
            at: *at,
        });
        if is_admitted(held, change.version, at) {
            self.rows
                .insert(key, ((change.version, at), change.row.clone()));
        }
    }

    fn apply(&mut self, event: &Replayed) {
        match event {
            Replayed::Since(_) => {}
            Replayed::Ddl(ddl) => self.ddl.push(ddl.clone()),
            Replayed::Reserve(until) => self.reserved = *until,
            Replayed::Rows(base) => {
                base.rows
                    .iter()
                    .for_each(|row| self.change(base.source, row.at, &row.change));
            }
            Replayed::Vectors(facts) => {
                self.facts
                    .extend(facts.iter().map(|f| ((f.model, f.content), f.at)));
            }
            Replayed::Lanes(lanes) => self.lanes.extend(
                lanes
                    .iter()
                    .cloned()
                    .map(|l| ((l.source, l.lane), (l.sequence, l.position))),
            ),
            Replayed::Replies(replies) => {
                for BaseReply { idempotency, .. } in replies {
                    self.replies
                        .insert(idempotency.key.clone(), idempotency.reply.clone());
                }
            }
            Replayed::Letters(base) => {
                for counts in &base.causes {
                    let known = (counts.seen, counts.resolved);
                    self.letters.counts.insert(counts.source.clone(), known);
                }
                for kept in &base.letters {
                    let (source, position) = (&kept.letter.source, &kept.letter.position);
                    let kept = (source.clone(), position.clone(), kept.count);
                    self.letters.kept.push(kept);
                }
            }
            Replayed::Forget(names) => {
                let letters = &mut self.letters;
                letters.kept.retain(|(source, ..)| !names.contains(source));
                letters.counts.retain(|source, _| !names.contains(source));
            }
            Replayed::Tick(tick) => self.tick(tick),
            Replayed::Unbound(left) => {
                let stages = left.stages.iter().cloned();
                self.unbound
                    .extend(stages.map(|stage| (stage, left.is_open)));
            }
        }
    }

    fn tick(&mut self, tick: &BoundTick) {
        self.facts
            .extend(tick.vectors.iter().map(|f| ((f.model, f.content), f.at)));
        for stage in &tick.stages {
            for change in stage.changes.iter() {
                self.change(stage.source, tick.at, change);
            }
            let lane = self
                .lanes
                .entry((stage.source, stage.lane.clone()))
                .or_default();
            lane.0 = stage.sequence;
            lane.1 = stage.position.clone().or(lane.1.take());
            if let Some(idempotency) = &stage.idempotency {
                self.replies
                    .insert(idempotency.key.clone(), idempotency.reply.clone());
            }
            stage
                .resolved
                .iter()
                .for_each(|id| self.letters.resolve(*id));
            stage
                .dead_letters
                .iter()
                .for_each(|letter| self.letters.add(letter));
        }
    }
}
