//! An encoder on devices that are simulated: what `DEVICE` chooses, and that bad weather loses no text.
//! The kernels themselves are tested in `operators/kernels`, on an emulated GPU and on a real one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use engine::contract::Embedder;
use engine::testing::embedder_laws;
use kernels::cuda::batch::{BUCKETS, Batch};
use kernels::cuda::choose::Wanted;
use kernels::cuda::device::Fault;
use kernels::cuda::engine::{Class, Engine, SlotPlan};
use kernels::cuda::service::Settings;
use operators::embed::gpu::{GpuEmbedder, Open, Placed, place_with};
use operators::embed::model::ModelFiles;
use operators::embed::weights::{DEFAULT_MODEL, pull};
use operators::embed::{Kernel, LocalModel, PretrainedEmbedder};

fn cpu() -> Arc<PretrainedEmbedder> {
    static MODEL: std::sync::OnceLock<Arc<PretrainedEmbedder>> = std::sync::OnceLock::new();
    let make = || {
        let folder = pull(DEFAULT_MODEL, &|_| {}).unwrap();
        Arc::new(PretrainedEmbedder::new(ModelFiles::read(&folder).unwrap()).unwrap())
    };
    MODEL.get_or_init(make).clone()
}

/// A device that asks the CPU, and what is wrong with it.
struct Device {
    plans: Vec<SlotPlan>,
    flights: Vec<Option<Vec<f32>>>,
    /// Batches until it is lost.
    left: Option<usize>,
    is_wrong: bool,
}

impl Engine for Device {
    fn slots(&self) -> &[SlotPlan] {
        &self.plans
    }

    fn width(&self) -> usize {
        384
    }

    fn begin(&mut self, slot: usize, batch: &mut Batch) -> Result<(), Fault> {
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| Fault::Lost("simulated".to_owned()))?;
        }
        let most = self.plans[slot].most;
        let mut block = vec![0; most.bytes()];
        batch.write(most, &mut block);
        let int = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().unwrap()) as usize;
        let ids_at = 16 + (4 * (most.texts + 1)).next_multiple_of(16);
        let mut results = Vec::new();
        for text in 0..int(4) {
            let (from, to) = (int(16 + 4 * text), int(20 + 4 * text));
            let ids: Vec<u32> = (from..to).map(|at| int(ids_at + 4 * at) as u32).collect();
            let mut vector = cpu().encode(&ids);
            if self.is_wrong {
                vector.reverse();
            }
            results.extend(vector);
        }
        self.flights[slot] = Some(results);
        Ok(())
    }

    fn finish(&mut self, slot: usize, out: &mut Vec<f32>) -> Result<bool, Fault> {
        let Some(results) = self.flights[slot].take() else {
            return Ok(false);
        };
        *out = results;
        Ok(true)
    }

    fn abandon(&mut self) {}

    fn describe(&self) -> String {
        "a simulated device".to_owned()
    }
}

/// Opens devices that are `is_wrong`, or lost after so many batches each.
fn open(is_wrong: bool, left: Option<usize>, opened: &Arc<AtomicUsize>) -> Open {
    let opened = Arc::clone(opened);
    Arc::new(move |_| {
        opened.fetch_add(1, Ordering::Relaxed);
        let plan = |class, bucket: usize| SlotPlan {
            class,
            most: BUCKETS[bucket],
        };
        let plans = vec![plan(Class::Question, 3), plan(Class::Bulk, 4)];
        Ok(Box::new(Device {
            flights: vec![None; plans.len()],
            plans,
            left,
            is_wrong,
        }))
    })
}

fn placed(wanted: &str, found: Result<Vec<usize>, Fault>, open: &Open) -> Result<Placed, String> {
    let settings = Settings {
        rest: Duration::from_millis(50),
        ..Settings::default()
    };
    let wanted = Wanted::parse(wanted).unwrap();
    place_with(cpu(), &wanted, found, open, settings).map_err(|e| e.to_string())
}

fn on_gpu(placed: Result<Placed, String>) -> GpuEmbedder {
    match placed.unwrap() {
        Placed::Gpu(model) => model,
        Placed::Cpu(_, why) => panic!("on the CPU: {why}"),
    }
}

fn why_cpu(placed: Result<Placed, String>) -> String {
    match placed.unwrap() {
        Placed::Gpu(_) => panic!("on a device"),
        Placed::Cpu(_, why) => why,
    }
}

#[test]
fn a_good_device_is_used_and_keeps_the_laws() {
    let opened = Arc::default();
    let model = on_gpu(placed("auto", Ok(vec![0, 1]), &open(false, None, &opened)));
    embedder_laws(&model);
    let cpu = cpu();
    assert_eq!((model.id(), model.degraded()), (cpu.id(), None));
    assert_eq!(model.call_limits().calls, Some(7));
    let texts = ["a question", "another one"];
    assert_eq!(model.embed_questions(&texts), cpu.embed(&texts));
    assert_eq!(model.token_ids("a question"), cpu.token_ids("a question"));
    assert_eq!(model.devices(), ["a simulated device"; 2]);
    assert!(cpu.devices().is_empty());
    // Two were probed, and two more opened to stay.
    assert_eq!(opened.load(Ordering::Relaxed), 4);
    assert!(!model.embed(&["x"]).unwrap()[0].is_empty());
}

/// A device rounds to bytes in its own way: its vectors are of the class, not the CPU's own.
#[test]
fn a_device_may_round_to_bytes_in_its_own_way() {
    let folder = pull(DEFAULT_MODEL, &|_| {}).unwrap();
    let files = ModelFiles::read(&folder).unwrap();
    let int8 = Arc::new(PretrainedEmbedder::with_kernel(files, Kernel::Int8).unwrap());
    // This one does not round at all.
    let device = open(false, None, &Arc::default());
    let settings = Settings::default();
    let placed = place_with(
        Arc::clone(&int8),
        &Wanted::Auto,
        Ok(vec![0]),
        &device,
        settings,
    );
    let model = on_gpu(placed.map_err(|e| e.to_string()));
    assert_eq!(model.id(), int8.id());
    assert_eq!(model.embed(&["a text"]), cpu().embed(&["a text"]));
    assert_ne!(model.embed(&["a text"]), int8.embed(&["a text"]));
}

#[test]
fn a_device_that_computes_something_else_is_left_out() {
    let opened = Arc::default();
    let wrong = open(true, None, &opened);
    let why = why_cpu(placed("auto", Ok(vec![0]), &wrong));
    assert!(
        why.starts_with("cuda:0: a probe of 2 tokens has cosine ")
            && why.ends_with("expected 0.999: the device does not compute what it should"),
        "{why}"
    );
    let error = placed("cuda:0", Ok(vec![0]), &wrong).err().unwrap();
    assert!(
        error.contains("DEVICE 'cuda:0' cannot be used: cuda:0: a probe"),
        "{error}"
    );
}

#[test]
fn a_device_that_never_opens_is_left_out() {
    let is_over = Arc::new(AtomicBool::new(false));
    let hangs: Open = {
        let is_over = Arc::clone(&is_over);
        Arc::new(move |_| {
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(Fault::Unavailable("late".to_owned()))
        })
    };
    let settings = Settings {
        open_timeout: Duration::from_millis(100),
        ..Settings::default()
    };
    let placed = place_with(cpu(), &Wanted::Auto, Ok(vec![0]), &hangs, settings);
    assert_eq!(
        why_cpu(placed.map_err(|e| e.to_string())),
        "cuda:0: device 0: the device did not answer within 100 ms"
    );
    is_over.store(true, Ordering::Relaxed);
}

#[test]
fn without_a_device_auto_is_the_cpu_and_a_number_an_error() {
    let opened = Arc::default();
    let none = open(false, None, &opened);
    let fault = || Fault::Unavailable("there is no CUDA driver".to_owned());
    assert!(why_cpu(placed("auto", Err(fault()), &none)).contains("there is no CUDA driver"));
    assert_eq!(
        why_cpu(placed("auto", Ok(vec![]), &none)),
        "there is no CUDA device"
    );
    assert_eq!(
        why_cpu(placed("cpu", Ok(vec![0]), &none)),
        "DEVICE is 'cpu'"
    );
    assert_eq!(
        placed("cuda:3", Ok(vec![0, 1]), &none).err().unwrap(),
        "model 'sentence-transformers/all-MiniLM-L6-v2': DEVICE 'cuda:3' cannot be used: there is no \
         cuda:3: the machine has 2 devices; DEVICE 'auto' takes the CPU where there is none"
    );
    assert_eq!(
        opened.load(Ordering::Relaxed),
        0,
        "nothing was opened for it"
    );
}

#[test]
fn a_lost_device_loses_no_text_and_is_said() {
    let opened: Arc<AtomicUsize> = Arc::default();
    // Good for the probes' batch, then lost again and again.
    let model = on_gpu(placed(
        "cuda:0",
        Ok(vec![0]),
        &open(false, Some(1), &opened),
    ));
    let texts: Vec<String> = (0..300).map(|n| format!("text number {n}")).collect();
    let slices: Vec<&str> = texts.iter().map(String::as_str).collect();
    let (mut was_degraded, cpu) = (false, cpu());
    for part in slices.chunks(20) {
        assert_eq!(model.embed(part), cpu.embed(part));
        was_degraded |= model.degraded().is_some();
    }
    assert!(was_degraded || opened.load(Ordering::Relaxed) > 2);
}
