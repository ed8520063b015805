//! A device at work: slots with pinned buffers and streams of their own, a graph a bucket.
//!
//! ```text
//!   slot 0  question   ──▶ [pinned in] ─copy─▶ [graph of the bucket] ─copy─▶ [pinned out]   urgent stream
//!   slot 1  bulk       ──▶ …       packing of one slot's next batch, copies of another's and
//!   slot 2  bulk       ──▶ …       a third's kernels go on at the same time
//! ```
//!
//! Slots share the weights and nothing else, so their kernels may overlap. Everything is allocated and
//! captured when the engine is opened; a batch costs two copies and one launch.
//!
//! Invariants: a slot has one batch at a time; an engine is used by the thread that opened it; after a
//! fault it is dropped, never used again.

use super::arena::Arena;
use super::batch::{BUCKETS, Batch, Bucket, OnDevice};
use super::cluster::Cluster;
use super::device::{Device, Fault, Graph, Launch, Pinned, Stage, Stream};
use super::encoder::{Attention, Model, Output, Precision, Recipe, Residual};
use super::whole::Short;
use crate::weights::Weights;

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Someone waits: before bulk, whenever a slot is free.
    Question,
    /// Everything else.
    Bulk,
}

/// One slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPlan {
    /// Question slots take questions only; bulk slots take what waits, questions first.
    pub class: Class,
    /// The largest batch.
    pub most: Bucket,
}

/// What computes batches: a device, or a test's stand-in. Lives on one thread.
pub trait Engine {
    /// The slots.
    fn slots(&self) -> &[SlotPlan];
    /// Floats that a text becomes.
    fn width(&self) -> usize;
    /// Starts a batch in a free slot that it fits.
    fn begin(&mut self, slot: usize, batch: &mut Batch) -> Result<(), Fault>;
    /// Whether the slot's batch is done; then its results, `width` floats a text, replace `out`'s
    /// content and the slot is free. Does not block.
    fn finish(&mut self, slot: usize, out: &mut Vec<f32>) -> Result<bool, Fault>;
    /// Gives the device up without waiting for it: after a time-out.
    fn abandon(&mut self);
    /// What it runs on, for people.
    fn describe(&self) -> String;
}

/// How an engine is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The kernels; the device's best when absent.
    pub stage: Option<Stage>,
    /// Where residuals are added.
    pub residual: Residual,
    /// What the products multiply.
    pub precision: Precision,
    /// Blocks that share weights.
    pub cluster: Cluster,
    /// How attention is made.
    pub attention: Attention,
    /// How the first slot's questions run.
    pub short: Short,
    /// Slots, questions' first.
    pub slots: Vec<SlotPlan>,
    /// Captured graphs, or a launch after the other.
    pub has_graphs: bool,
    /// Graphs whose launches overlap ([`Launch::can_follow`]): off until a device has shown that it is faster.
    pub overlap: bool,
}

impl Options {
    /// With these kernels.
    pub fn with(self, recipe: Recipe) -> Options {
        Options {
            stage: Some(recipe.stage),
            residual: recipe.residual,
            precision: recipe.precision,
            cluster: recipe.cluster,
            attention: recipe.attention,
            short: recipe.short,
            ..self
        }
    }
}

impl Default for Options {
    /// One question slot of 2,048 tokens, two bulk slots of 8,192: a bulk batch of MiniLM's shape is
    /// meant to take about half a millisecond, which is what a question waits for at most.
    fn default() -> Self {
        let bulk = SlotPlan {
            class: Class::Bulk,
            most: BUCKETS[5],
        };
        Options {
            stage: None,
            residual: Residual::default(),
            precision: Precision::default(),
            cluster: Cluster::default(),
            attention: Attention::default(),
            short: Short::default(),
            slots: vec![
                SlotPlan {
                    class: Class::Question,
                    most: BUCKETS[3],
                },
                bulk,
                bulk,
            ],
            has_graphs: true,
            overlap: false,
        }
    }
}

enum Pass {
    Graph(Graph),
    Launches(Vec<Launch>),
}

struct Slot {
    stream: Stream,
    input: Pinned,
    output: Pinned,
    /// Where the batch's block lies, and what computes it, for every bucket up to the slot's.
    passes: Vec<(OnDevice, Pass)>,
    block: u64,
    results: u64,
    /// Texts of the batch in flight.
    texts: Option<usize>,
}

/// An [`Engine`] over a [`Device`]. Its device memory is one [`Arena`].
pub struct DeviceEngine {
    device: Box<dyn Device>,
    model: Model,
    plans: Vec<SlotPlan>,
    slots: Vec<Slot>,
}

impl DeviceEngine {
    /// Allocates all memory, at once, loads the weights and captures all graphs.
    pub fn open(
        mut device: Box<dyn Device>,
        weights: &Weights,
        output: &Output,
        options: &Options,
    ) -> Result<DeviceEngine, Fault> {
        let stage = options.stage.unwrap_or_else(|| device.best_stage());
        let recipe = Recipe {
            stage,
            residual: options.residual,
            precision: options.precision,
            cluster: options.cluster,
            attention: options.attention,
            short: options.short,
        };
        // Before memory is taken: a device that cannot do it says so, and not that it is full.
        recipe.check(&weights.config)?;
        let buckets: Vec<Bucket> = options.slots.iter().map(|plan| plan.most).collect();
        let mut arena = Arena::new(device.as_mut(), weights, output, recipe, &buckets)?;
        let model = Model::load(device.as_mut(), &mut arena, weights, output, recipe)?;
        let slots = options
            .slots
            .iter()
            .enumerate()
            .map(|(nth, plan)| {
                let device = device.as_mut();
                let is_first = nth == 0;
                open_slot(device, &mut arena, &model, *plan, (is_first, options))
            })
            .collect::<Result<Vec<Slot>, Fault>>()?;
        Ok(DeviceEngine {
            device,
            model,
            plans: options.slots.clone(),
            slots,
        })
    }
}

/// Of all slots only the first runs questions in one launch: two such launches at once, each with a part of the
/// multiprocessors, would wait for the rest for ever.
fn open_slot(
    device: &mut dyn Device,
    arena: &mut Arena,
    model: &Model,
    plan: SlotPlan,
    (is_first, options): (bool, &Options),
) -> Result<Slot, Fault> {
    let stream = device.stream(plan.class == Class::Question)?;
    let buffers = model.buffers(arena, plan.most);
    let block = arena.block(plan.most);
    let input = device.pinned(plan.most.bytes())?;
    let output = device.pinned(buffers.out.bytes())?;
    // What a first replay may read behind the counts is defined, if meaningless.
    device.write(block, &vec![0; plan.most.bytes()])?;
    let mut passes = Vec::new();
    for bucket in BUCKETS.into_iter().filter(|b| b.tokens <= plan.most.tokens) {
        let batch = OnDevice::new(bucket, block);
        let launches = match is_first {
            true => model.forward(&batch, &buffers)?,
            false => model.launches(&batch, &buffers)?,
        };
        let pass = match options.has_graphs {
            true => Pass::Graph(device.capture(stream, &launches, options.overlap)?),
            false => Pass::Launches(launches),
        };
        passes.push((batch, pass));
    }
    Ok(Slot {
        stream,
        input,
        output,
        passes,
        block,
        results: buffers.out.address,
        texts: None,
    })
}

impl Engine for DeviceEngine {
    fn slots(&self) -> &[SlotPlan] {
        &self.plans
    }

    fn width(&self) -> usize {
        self.model.width()
    }

    fn begin(&mut self, slot: usize, batch: &mut Batch) -> Result<(), Fault> {
        let slot = &mut self.slots[slot];
        assert!(slot.texts.is_none(), "a slot has one batch at a time");
        let fits = |(on_device, _): &&(OnDevice, Pass)| {
            batch.tokens() <= on_device.bucket.tokens && batch.texts() <= on_device.bucket.texts
        };
        let Some((on_device, pass)) = slot.passes.iter().find(fits) else {
            return Err(Fault::Shape(format!(
                "{} tokens of {} texts in one slot",
                batch.tokens(),
                batch.texts()
            )));
        };
        let bucket = on_device.bucket;
        batch.write(bucket, self.device.host(slot.input));
        self.device
            .upload(slot.stream, slot.block, slot.input, bucket.bytes())?;
        match pass {
            Pass::Graph(graph) => self.device.replay(slot.stream, *graph)?,
            Pass::Launches(launches) => {
                for launch in launches {
                    self.device.launch(slot.stream, launch)?;
                }
            }
        }
        let bytes = batch.texts() * self.model.width() * 4;
        self.device
            .download(slot.stream, slot.output, slot.results, bytes)?;
        slot.texts = Some(batch.texts());
        Ok(())
    }

    fn finish(&mut self, slot: usize, out: &mut Vec<f32>) -> Result<bool, Fault> {
        let slot = &mut self.slots[slot];
        let Some(texts) = slot.texts else {
            return Ok(false);
        };
        if !self.device.is_idle(slot.stream)? {
            return Ok(false);
        }
        slot.texts = None;
        let bytes = &self.device.host(slot.output)[..texts * self.model.width() * 4];
        let (floats, _) = bytes.as_chunks::<4>();
        out.clear();
        out.extend(floats.iter().map(|b| f32::from_le_bytes(*b)));
        Ok(true)
    }

    fn abandon(&mut self) {
        self.device.abandon();
    }

    fn describe(&self) -> String {
        format!("{}, {}", self.device.describe(), self.model.recipe())
    }
}
