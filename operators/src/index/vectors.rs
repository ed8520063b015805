//! The vector leg: a flat head and immutable generations.
//!
//! ```text
//! apply ─append─▶ head ─full─▶ frozen part ─builder thread─▶ generation (rows + graph)
//!                  │ scanned      │ scanned                     │ graph, dead rows by predicate
//!                  └──────────────┴──────── question ───────────┘
//! maintenance: frozen parts → one generation; ≥ 50 % dead → rebuilt; small ones → merged when idle
//! ```
//!
//! A row is visible the moment it is appended (the head is scanned exactly), whatever the builder
//! does. A finished generation is swapped in between activations: the parts that it replaces go,
//! its rows are relinked to the slots that still exist. Nothing that a question can see changes,
//! but the graph's recall.
//!
//! Under a bulk load the builder takes *all* frozen parts at once, so each vector enters a graph
//! about once; merging what small generations are left waits for a quiet moment, unless there are
//! so many that questions suffer.
//!
//! Invariants: each slot with a vector has exactly one row; `slots[row] = NONE` for a row whose
//! slot was released; segments are immutable once frozen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use super::best::Best;
use super::builder::BuilderHandle;
use super::kernel::{Components, Quantization, cosine};
use super::slots::{NONE, NOWHERE, Place, Slots};
use super::usearch::{Graph, GraphError};
use engine::contract::VectorIndex;
use engine::limits::{GENERATION_VECTORS_MAX, GENERATIONS_MAX};

/// Candidates held while searching a graph; recall@10 ≥ 0.95 on the clustered generator at 100 k.
const EXPANSION_SEARCH: usize = 96;
/// A loading rate below which merges may run.
const IDLE_VECTORS_PER_SECOND: f64 = 1_000.0;

/// Rows of vectors, each with the scale that makes its cosine exact.
#[derive(Debug)]
pub(crate) struct Segment {
    components: Components,
    scales: Vec<f32>,
}

impl Segment {
    fn new(quantization: Quantization) -> Self {
        Segment {
            components: Components::new(quantization),
            scales: Vec::new(),
        }
    }

    fn len(&self) -> usize {
        self.scales.len()
    }

    #[inline]
    fn cosine(&self, question: &[f32], row: u32) -> f64 {
        let row = row as usize;
        cosine(self.components.dot(question, row), self.scales[row])
    }

    fn bytes(&self) -> usize {
        self.components.bytes() + self.scales.capacity() * 4
    }
}

struct Part {
    segment: Arc<Segment>,
    slots: Vec<u32>,
    released: usize,
    graph: Option<Box<dyn VectorIndex>>,
    is_in_job: bool,
}

impl Part {
    fn live(&self) -> usize {
        self.slots.len() - self.released
    }
}

/// A row's way through a build: where it was, whose it was.
struct Origin {
    place: Place,
    slot: u32,
}

struct Built {
    segment: Arc<Segment>,
    origins: Vec<Origin>,
    graph: Graph,
}

struct Running {
    inputs: Vec<u32>,
    result: Receiver<Result<Built, GraphError>>,
}

/// What sizes the leg and when it works.
#[derive(Debug, Clone)]
pub(crate) struct VectorConfig {
    pub(crate) dimensions: usize,
    pub(crate) quantization: Quantization,
    pub(crate) head_max: usize,
    pub(crate) builder: BuilderHandle,
}

/// See the module's documentation.
pub(crate) struct VectorLeg {
    config: VectorConfig,
    parts: Vec<Option<Part>>,
    head: u32,
    running: Option<Running>,
    is_cancelled: Arc<AtomicBool>,
    pace: Pace,
    failures: u32,
    retry_at: Option<Instant>,
}

/// How fast vectors arrive.
struct Pace {
    since: Instant,
    appended: usize,
    is_idle: bool,
}

impl Pace {
    fn observe(&mut self) -> bool {
        let elapsed = self.since.elapsed();
        if elapsed >= Duration::from_millis(250) {
            self.is_idle = (self.appended as f64) < IDLE_VECTORS_PER_SECOND * elapsed.as_secs_f64();
            self.since = Instant::now();
            self.appended = 0;
        }
        self.is_idle
    }
}

impl Drop for VectorLeg {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }
}

/// What one call of maintenance did, in vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Upkeep {
    pub(crate) submitted: usize,
    pub(crate) swapped_in: usize,
    pub(crate) failures: u32,
}

impl VectorLeg {
    pub(crate) fn new(config: VectorConfig) -> Self {
        let mut leg = VectorLeg {
            config,
            parts: Vec::new(),
            head: 0,
            running: None,
            is_cancelled: Arc::default(),
            pace: Pace {
                since: Instant::now(),
                appended: 0,
                is_idle: true,
            },
            failures: 0,
            retry_at: None,
        };
        leg.open_head();
        leg
    }

    fn open_head(&mut self) {
        let segment = Arc::new(Segment::new(self.config.quantization));
        self.head = self.insert(Part {
            segment,
            slots: Vec::new(),
            released: 0,
            graph: None,
            is_in_job: false,
        });
    }

    fn insert(&mut self, part: Part) -> u32 {
        let free = self
            .parts
            .iter()
            .position(Option::is_none)
            .unwrap_or_else(|| {
                self.parts.push(None);
                self.parts.len() - 1
            });
        self.parts[free] = Some(part);
        free as u32
    }

    fn part(&self, number: u32) -> &Part {
        self.parts[number as usize]
            .as_ref()
            .expect("places name parts that exist")
    }

    fn part_mut(&mut self, number: u32) -> &mut Part {
        self.parts[number as usize]
            .as_mut()
            .expect("places name parts that exist")
    }

    /// Appends a slot's vector to the head. `None` when it has the wrong length or no finite norm.
    pub(crate) fn append(&mut self, slot: u32, vector: &[f32]) -> Option<Place> {
        if vector.len() != self.config.dimensions {
            return None;
        }
        if self.part(self.head).slots.len() >= self.config.head_max {
            self.open_head();
        }
        let number = self.head;
        let head = self.part_mut(number);
        let segment = Arc::get_mut(&mut head.segment).expect("the head is not shared");
        let scale = segment.components.push(vector)?;
        segment.scales.push(scale);
        head.slots.push(slot);
        let row = (head.slots.len() - 1) as u32;
        self.pace.appended += 1;
        Some(Place { part: number, row })
    }

    /// Unlinks a released slot's row.
    pub(crate) fn release(&mut self, place: Place) {
        if place == NOWHERE {
            return;
        }
        let part = self.part_mut(place.part);
        part.slots[place.row as usize] = NONE;
        part.released += 1;
    }

    /// The cosine of a slot that has a vector.
    pub(crate) fn cosine(&self, question: &[f32], place: Place) -> f64 {
        self.part(place.part).segment.cosine(question, place.row)
    }

    /// The stored vector at a place, as f32.
    pub(crate) fn read(&self, place: Place) -> Vec<f32> {
        let segment = &self.part(place.part).segment;
        let mut out = Vec::with_capacity(self.config.dimensions);
        segment
            .components
            .read(place.row as usize, self.config.dimensions, &mut out);
        out
    }

    /// Scans every visible row.
    pub(crate) fn scan(&self, question: &[f32], visible: &dyn Fn(u32) -> bool, best: &mut Best) {
        for part in self.parts.iter().flatten() {
            scan_part(part, question, visible, best);
        }
    }

    /// Walks the graphs and scans what has none.
    pub(crate) fn search(
        &self,
        question: &[f32],
        wanted: usize,
        visible: &dyn Fn(u32) -> bool,
        best: &mut Best,
    ) {
        for part in self.parts.iter().flatten() {
            let found = part.graph.as_ref().map(|graph| {
                graph.search(question, wanted, &|row| {
                    let slot = part.slots[row as usize];
                    slot != NONE && visible(slot)
                })
            });
            match found {
                Some(Ok(rows)) => rows.into_iter().for_each(|row| {
                    best.push(part.segment.cosine(question, row), part.slots[row as usize]);
                }),
                // A graph that fails is as good as none.
                Some(Err(error)) => {
                    tracing::error!(%error, "graph search failed: scanning instead");
                    scan_part(part, question, visible, best);
                }
                None => scan_part(part, question, visible, best),
            }
        }
    }

    /// One round of maintenance; never blocks. Cost: linear in the rows of a swapped generation.
    pub(crate) fn maintain(&mut self, slots: &mut Slots) -> Upkeep {
        let mut upkeep = Upkeep::default();
        if let Some(running) = &self.running {
            match running.result.try_recv() {
                Err(TryRecvError::Empty) => return upkeep,
                Ok(Ok(built)) => {
                    upkeep.swapped_in = built.origins.len();
                    self.failures = 0;
                    self.swap(built, slots);
                }
                Ok(Err(error)) => self.fail(&error.to_string()),
                Err(TryRecvError::Disconnected) => self.fail("the builder dropped the job"),
            }
        }
        upkeep.failures = self.failures;
        self.drop_empty_parts();
        let is_idle = self.pace.observe();
        if self.retry_at.is_none_or(|at| Instant::now() >= at)
            && let Some(inputs) = self.choose(is_idle)
        {
            upkeep.submitted = self.submit(inputs);
        }
        upkeep
    }

    fn fail(&mut self, error: &str) {
        let inputs = self
            .running
            .take()
            .map(|running| running.inputs)
            .unwrap_or_default();
        for input in inputs {
            self.part_mut(input).is_in_job = false;
        }
        self.failures += 1;
        let wait = Duration::from_secs(1 << self.failures.min(6));
        self.retry_at = Some(Instant::now() + wait);
        tracing::error!(
            error,
            failures = self.failures,
            "building a generation failed"
        );
    }

    fn drop_empty_parts(&mut self) {
        for (number, entry) in self.parts.iter_mut().enumerate() {
            let is_gone = entry
                .as_ref()
                .is_some_and(|part| part.live() == 0 && !part.slots.is_empty() && !part.is_in_job);
            if is_gone && number as u32 != self.head {
                *entry = None;
            }
        }
        let head = self.part(self.head);
        if head.live() == 0 && head.slots.len() >= self.config.head_max {
            let emptied = self.head;
            self.parts[emptied as usize] = None;
            self.open_head();
        }
    }

    /// Which parts to build into one generation, if any.
    fn choose(&self, is_idle: bool) -> Option<Vec<u32>> {
        let numbered = |wanted: &dyn Fn(&Part) -> bool| {
            let mut chosen: Vec<(usize, u32)> = self
                .parts
                .iter()
                .enumerate()
                .filter_map(|(number, part)| Some((number as u32, part.as_ref()?)))
                .filter(|(number, part)| {
                    let is_open = *number == self.head && part.slots.len() < self.config.head_max;
                    !is_open && !part.is_in_job && wanted(part)
                })
                .map(|(number, part)| (part.live(), number))
                .collect();
            chosen.sort_unstable();
            chosen
        };
        // Rows that are scanned for want of a graph come first.
        let frozen = numbered(&|part| part.graph.is_none());
        if !frozen.is_empty() {
            return Some(up_to_a_generation(&frozen));
        }
        let decayed = numbered(&|part| part.released * 2 >= part.slots.len());
        if let Some((_, number)) = decayed.last() {
            return Some(vec![*number]);
        }
        let generations = numbered(&|part| part.live() < GENERATION_VECTORS_MAX);
        if is_idle || generations.len() > GENERATIONS_MAX {
            mergeable(&generations)
        } else {
            None
        }
    }

    fn submit(&mut self, inputs: Vec<u32>) -> usize {
        if inputs.contains(&self.head) {
            self.open_head();
        }
        let mut origins = Vec::new();
        let mut segments = Vec::new();
        for number in &inputs {
            let part = self.part_mut(*number);
            part.is_in_job = true;
            segments.push((*number, part.segment.clone()));
            let rows = part
                .slots
                .iter()
                .enumerate()
                .filter(|(_, slot)| **slot != NONE);
            origins.extend(rows.map(|(row, slot)| Origin {
                place: Place {
                    part: *number,
                    row: row as u32,
                },
                slot: *slot,
            }));
        }
        let count = origins.len();
        let (sender, result) = crossbeam_channel::bounded(1);
        self.running = Some(Running { inputs, result });
        self.retry_at = None;
        let (dimensions, quantization) = (self.config.dimensions, self.config.quantization);
        let is_cancelled = self.is_cancelled.clone();
        self.config.builder.clone().submit(Box::new(move || {
            let span = tracing::debug_span!("rebuild", rows = count, parts = segments.len());
            let _entered = span.enter();
            let built = build(dimensions, quantization, &segments, origins, &is_cancelled);
            // The shard may be gone; then nobody wants the result.
            let _ = sender.send(built);
        }));
        count
    }

    fn swap(&mut self, built: Built, slots: &mut Slots) {
        let inputs = self
            .running
            .take()
            .map(|running| running.inputs)
            .unwrap_or_default();
        let part = self.insert(Part {
            segment: built.segment,
            slots: Vec::new(),
            released: 0,
            graph: Some(Box::new(built.graph)),
            is_in_job: false,
        });
        let mut linked = Vec::with_capacity(built.origins.len());
        let mut released = 0;
        for (row, origin) in built.origins.iter().enumerate() {
            // A slot released meanwhile lies nowhere, or, reused, somewhere else.
            if slots.place(origin.slot) == origin.place {
                slots.set_place(
                    origin.slot,
                    Place {
                        part,
                        row: row as u32,
                    },
                );
                linked.push(origin.slot);
            } else {
                linked.push(NONE);
                released += 1;
            }
        }
        let entry = self.part_mut(part);
        entry.slots = linked;
        entry.released = released;
        for input in inputs {
            self.parts[input as usize] = None;
        }
    }

    pub(crate) fn sizes(&self) -> LegSizes {
        let mut sizes = LegSizes::default();
        for part in self.parts.iter().flatten() {
            sizes.bytes += part.segment.bytes() + part.slots.capacity() * 4;
            sizes.rows += part.slots.len();
            sizes.released += part.released;
            match &part.graph {
                Some(graph) => {
                    sizes.generations += 1;
                    sizes.bytes += graph.bytes();
                }
                None => sizes.scanned += part.slots.len(),
            }
        }
        sizes
    }
}

/// Rows and memory of the leg.
#[derive(Debug, Default)]
pub(crate) struct LegSizes {
    pub(crate) rows: usize,
    pub(crate) released: usize,
    pub(crate) scanned: usize,
    pub(crate) generations: usize,
    pub(crate) bytes: usize,
}

fn scan_part(part: &Part, question: &[f32], visible: &dyn Fn(u32) -> bool, best: &mut Best) {
    for (row, slot) in part.slots.iter().enumerate() {
        if *slot != NONE && visible(*slot) {
            best.push(part.segment.cosine(question, row as u32), *slot);
        }
    }
}

/// The smallest parts that fit one generation, at least one.
fn up_to_a_generation(parts: &[(usize, u32)]) -> Vec<u32> {
    let mut total = 0;
    parts
        .iter()
        .enumerate()
        .take_while(|(i, (live, _))| {
            total += live;
            *i == 0 || total <= GENERATION_VECTORS_MAX
        })
        .map(|(_, (_, number))| *number)
        .collect()
}

/// The longest run of smallest generations in which none is larger than all smaller ones together:
/// merging it at least doubles every member, so a vector is merged O(log n) times.
fn mergeable(generations: &[(usize, u32)]) -> Option<Vec<u32>> {
    let mut sum = 0;
    let mut longest = 0;
    for (i, (live, _)) in generations.iter().enumerate() {
        let is_dominated = i > 0 && sum >= *live;
        sum += live;
        if is_dominated && sum <= GENERATION_VECTORS_MAX {
            longest = i + 1;
        }
    }
    (longest >= 2).then(|| {
        generations[..longest]
            .iter()
            .map(|(_, number)| *number)
            .collect()
    })
}

/// Copies the live rows together and builds their graph: the builder thread's whole work.
fn build(
    dimensions: usize,
    quantization: Quantization,
    segments: &[(u32, Arc<Segment>)],
    origins: Vec<Origin>,
    is_cancelled: &AtomicBool,
) -> Result<Built, GraphError> {
    let segment = match segments {
        [(_, only)] if only.len() == origins.len() => only.clone(),
        _ => {
            let mut joined = Segment::new(quantization);
            joined.components.reserve(origins.len() * dimensions);
            joined.scales.reserve_exact(origins.len());
            for origin in &origins {
                let (_, from) = segments
                    .iter()
                    .find(|(number, _)| *number == origin.place.part)
                    .expect("each origin is in one of the inputs");
                let row = origin.place.row as usize;
                joined
                    .components
                    .push_row(&from.components, row, dimensions);
                joined.scales.push(from.scales[row]);
            }
            Arc::new(joined)
        }
    };
    let graph = Graph::build(
        dimensions,
        quantization,
        EXPANSION_SEARCH,
        origins.len(),
        |row, out| segment.components.read(row, dimensions, out),
        || is_cancelled.load(Ordering::Relaxed),
    )?;
    Ok(Built {
        segment,
        origins,
        graph,
    })
}
