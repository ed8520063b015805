//! An encoder on CUDA devices, with the CPU behind it.
//!
//! ```text
//! DEVICE ─▶ devices there are ─▶ each: does it compute what the CPU does? ─▶ GpuEmbedder ─┐
//!             │ none                 │ no                                                 ▼
//!             └─▶ 'auto': the CPU    └─▶ left out, with the reason   texts ─ ids ─▶ kernels::cuda::Service
//!                 'cuda:0': an error                                            devices share its queue
//! ```
//!
//! The idea: a device is trusted after it has embedded a few probes as the CPU does, not before. From then
//! on `kernels::cuda::service` keeps the promise: what a device loses is computed again, at last by the CPU.
//!
//! Invariants: identity, tokens and prompts are the CPU's, so that a lost device re-embeds nothing; no text
//! is lost with a device. Limits: encoders with `PRECISION = 'full'`, which is fp16 on a device, or `'int8'`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::contract::{CallLimits, EmbedError, EmbedFault, Embedder, TokenSpans};
use engine::error::WorldError;
use engine::limits::EMBED_BATCH_TOKENS_MAX;
use engine::model::ModelId;
use kernels::cuda::choose::Wanted;
use kernels::cuda::device::Fault;
use kernels::cuda::driver::Driver;
use kernels::cuda::encoder::{Output, Precision};
use kernels::cuda::engine::{DeviceEngine, Engine, Options};
use kernels::cuda::service::{Opener, Settings, Status, checker};
use kernels::cuda::{Class, Service, Text, devices};
use kernels::{Kernel, Weights};
use metrics::{counter, gauge};

use super::model::{LocalModel, ModelFiles, PretrainedEmbedder};

/// Gauge: devices that work, by `model`.
pub const DEVICES: &str = "headwater_embed_devices";
/// Counter: faults of devices, by `model`.
pub const FAULTS_TOTAL: &str = "headwater_embed_device_faults_total";
/// Counter: texts that the CPU embedded in a device's place, by `model`.
pub const CPU_TEXTS_TOTAL: &str = "headwater_embed_device_cpu_texts_total";

/// Calls under way for each device: one is packed and tokenized while others compute.
const CALLS_PER_DEVICE: usize = 3;
/// How long the driver may take to say which devices there are.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Least cosine of a probe's vector with the CPU's. Halves give 0.9999 and more, bytes on both sides 0.9994 and
/// more (the default model's weights on the emulated device: tests/cuda of the kernels).
fn probe_cosine(kernel: Kernel) -> f64 {
    match kernel {
        Kernel::Int8 => 0.998,
        Kernel::F32 | Kernel::Bf16 => 0.999,
    }
}

/// Lengths of probes; the longest sequence comes with them.
const PROBE_TOKENS: [usize; 6] = [2, 3, 17, 64, 65, 130];

/// What there is: a line a device, with where its kernels come from, or the reason why none is used.
pub fn report() -> Vec<String> {
    devices::report()
}

/// The ways to kernels on this machine, whether it has a device or not.
pub fn kernels() -> String {
    devices::would_be_tried()
}

/// Opens the engine of a device by its number, on a fresh context.
pub type Open = Arc<dyn Fn(usize) -> Result<Box<dyn Engine>, Fault> + Send + Sync>;

/// See the module.
pub struct GpuEmbedder {
    cpu: Arc<PretrainedEmbedder>,
    service: Service,
    /// What each device says of itself, as its probe found it.
    devices: Vec<String>,
    /// What metrics were told.
    told: Mutex<Status>,
}

/// What became of `DEVICE`.
pub enum Placed {
    /// On devices.
    Gpu(GpuEmbedder),
    /// On the CPU, and why.
    Cpu(Arc<PretrainedEmbedder>, String),
}

/// Puts an encoder on the devices that are wanted and there; `'auto'` on the CPU when none is good.
///
/// `kernel` is the CPU's; on a device `Int8` is int8, and the others are fp16. Errors: the files are wrong, or
/// `cuda:N` is wanted and cannot be had. Cost: the weights are read on
/// each device, and some probes embedded on both sides, in all about a second.
pub fn place(files: ModelFiles, wanted: &Wanted, kernel: Kernel) -> Result<Placed, WorldError> {
    let found = devices::devices_within(LIST_TIMEOUT)
        .map(|found| found.iter().map(|facts| facts.ordinal).collect());
    // Once more only where a device wants them; what is wrong with them the CPU's encoder says.
    let has_device = found
        .as_ref()
        .is_ok_and(|found: &Vec<usize>| !found.is_empty());
    let parse = || Weights::parse(&files.config, &files.weights).ok();
    let weights = has_device.then(parse).flatten();
    let pooling = files.pooling;
    let cpu = Arc::new(PretrainedEmbedder::with_kernel(files, kernel)?);
    let precision = match kernel {
        Kernel::Int8 => Precision::Int8,
        Kernel::F32 | Kernel::Bf16 => Precision::Half,
    };
    let open: Open = Arc::new(move |ordinal| {
        let none = || Fault::Unavailable("the weights were not read".to_owned());
        let weights = weights.as_ref().ok_or_else(none)?;
        let device = Box::new(Driver::open(ordinal)?);
        let output = Output::Vector(pooling);
        let options = Options {
            precision,
            ..Options::default()
        };
        let engine = DeviceEngine::open(device, weights, &output, &options)?;
        tracing::info!(device = engine.describe(), "an encoder's device is open");
        Ok(Box::new(engine) as Box<dyn Engine>)
    });
    place_with(cpu, wanted, found, &open, Settings::default())
}

/// [`place`] with devices of one's own, for tests: `found` are their numbers.
pub fn place_with(
    cpu: Arc<PretrainedEmbedder>,
    wanted: &Wanted,
    found: Result<Vec<usize>, Fault>,
    open: &Open,
    settings: Settings,
) -> Result<Placed, WorldError> {
    let mut reasons = Vec::new();
    let numbers = match (wanted, found) {
        (Wanted::Cpu, _) => return Ok(Placed::Cpu(cpu, "DEVICE is 'cpu'".to_owned())),
        (_, Err(fault)) => {
            reasons.push(fault.to_string());
            Vec::new()
        }
        (Wanted::Auto, Ok(found)) if found.is_empty() => {
            reasons.push("there is no CUDA device".to_owned());
            found
        }
        (Wanted::Auto, Ok(found)) => found,
        (Wanted::Cuda(number), Ok(found)) => {
            let count = found.len();
            let there: Vec<usize> = found.into_iter().filter(|n| n == number).collect();
            if there.is_empty() {
                reasons.push(format!(
                    "there is no cuda:{number}: the machine has {count} devices"
                ));
            }
            there
        }
    };
    let mut good = Vec::new();
    for number in numbers {
        match probe(&cpu, number, open, settings) {
            Ok(device) => good.push((number, device)),
            Err(why) => reasons.push(format!("cuda:{number}: {why}")),
        }
    }
    if good.is_empty() {
        let why = reasons.join("; ");
        return match wanted {
            Wanted::Cuda(number) => Err(WorldError::Service {
                service: format!("model '{}'", cpu.name()),
                detail: format!(
                    "DEVICE 'cuda:{number}' cannot be used: {why}; \
                     DEVICE 'auto' takes the CPU where there is none"
                ),
                is_transient: false,
            }),
            _ => Ok(Placed::Cpu(cpu, why)),
        };
    }
    for reason in reasons {
        tracing::warn!(model = cpu.name(), reason, "a device is left out");
    }
    let (numbers, devices): (Vec<usize>, Vec<String>) = good.into_iter().unzip();
    let service = start(&cpu, &numbers, open, settings).map_err(|why| WorldError::Service {
        service: format!("model '{}'", cpu.name()),
        detail: why,
        is_transient: true,
    })?;
    Ok(Placed::Gpu(GpuEmbedder {
        cpu,
        service,
        devices,
        told: Mutex::default(),
    }))
}

fn start(
    cpu: &Arc<PretrainedEmbedder>,
    numbers: &[usize],
    open: &Open,
    settings: Settings,
) -> Result<Service, String> {
    let openers = numbers.iter().map(|&number| -> Opener {
        let open = Arc::clone(open);
        Box::new(move || open(number))
    });
    let fallback = Arc::clone(cpu);
    Service::start(
        openers.collect(),
        checker(cpu.config()),
        Arc::new(move |texts: &[&Text]| {
            let texts = texts.iter();
            texts.map(|text| fallback.encode(&text.ids)).collect()
        }),
        settings,
    )
    .map_err(|e| format!("no thread for a device: {e}"))
}

/// Whether a device computes what the CPU does; what it says of itself.
fn probe(
    cpu: &Arc<PretrainedEmbedder>,
    number: usize,
    open: &Open,
    settings: Settings,
) -> Result<String, String> {
    let device = Arc::new(Mutex::new(String::new()));
    let noted: Open = {
        let (open, device) = (Arc::clone(open), Arc::clone(&device));
        Arc::new(move |number| {
            let engine = open(number)?;
            *device.lock().unwrap_or_else(PoisonError::into_inner) = engine.describe();
            Ok(engine)
        })
    };
    let service = start(cpu, &[number], &noted, settings)?;
    let vocabulary = cpu.config().vocab_size as u32;
    let longest = cpu.max_tokens();
    let lengths = PROBE_TOKENS.iter().copied().chain([longest]);
    // Any ids do: what matters is that both sides are given the same.
    let ids = |length: usize| (0..length as u32).map(|at| (at * 7_919 + 101) % vocabulary);
    let texts: Vec<Text> = lengths
        .map(|length| Text::new(ids(length.min(longest)).collect()))
        .collect();
    let ticket = service.submit(Class::Bulk, texts.clone());
    let vectors = ticket.map_err(|fault| fault.to_string())?.wait()?;
    let status = service.status();
    if status.cpu_texts > 0 {
        let why = match status.reason.is_empty() {
            true => format!("{} of the probes have no finite vector", status.not_finite),
            false => status.reason,
        };
        return Err(why);
    }
    let least = probe_cosine(cpu.kernel());
    for (text, vector) in texts.iter().zip(&vectors) {
        let expected = cpu.encode(&text.ids);
        let pairs = vector.iter().zip(&expected);
        let cosine: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        if !(least..1.001).contains(&cosine) {
            return Err(format!(
                "a probe of {} tokens has cosine {cosine:.4} with the CPU's vector, expected \
                 {least}: the device does not compute what it should",
                text.ids.len()
            ));
        }
    }
    let device = device.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(device.clone())
}

impl GpuEmbedder {
    fn on(&self, class: Class, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let error = |detail: String, fault| EmbedError {
            model: self.name().to_owned(),
            detail,
            fault,
        };
        let ids = texts.iter().map(|text| self.cpu.sequence(text));
        let texts = ids
            .map(|ids| ids.map(Text::new))
            .collect::<Result<Vec<Text>, EmbedError>>()?;
        let ticket = self
            .service
            .submit(class, texts)
            .map_err(|fault| error(fault.to_string(), EmbedFault::Text))?;
        let vectors = ticket.wait().map_err(|why| error(why, EmbedFault::WORLD));
        self.tell();
        vectors
    }

    /// Brings metrics and log to how things stand.
    fn tell(&self) {
        let now = self.service.status();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let model = || self.name().to_owned();
        gauge!(DEVICES, "model" => model()).set(now.devices as f64);
        let more = |now: u64, told: u64| now.saturating_sub(told);
        counter!(FAULTS_TOTAL, "model" => model()).increment(more(now.faults, told.faults));
        counter!(CPU_TEXTS_TOTAL, "model" => model())
            .increment(more(now.cpu_texts, told.cpu_texts));
        match (told.is_degraded, now.is_degraded) {
            (false, true) => tracing::warn!(
                model = model(),
                reason = now.reason,
                "a device rests: the CPU embeds in its place"
            ),
            (true, false) => tracing::info!(model = model(), "all devices work again"),
            _ => {}
        }
        *told = now;
    }
}

impl LocalModel for GpuEmbedder {
    fn token_ids(&self, text: &str) -> Vec<u32> {
        self.cpu.token_ids(text)
    }

    fn operations(&self, tokens: usize) -> Option<f64> {
        self.cpu.operations(tokens)
    }

    fn devices(&self) -> Vec<String> {
        self.devices.clone()
    }
}

impl Embedder for GpuEmbedder {
    fn id(&self) -> ModelId {
        self.cpu.id()
    }

    fn name(&self) -> &str {
        self.cpu.name()
    }

    fn dimensions(&self) -> usize {
        self.cpu.dimensions()
    }

    fn max_tokens(&self) -> usize {
        self.cpu.max_tokens()
    }

    fn special_tokens(&self) -> usize {
        self.cpu.special_tokens()
    }

    fn token_spans(&self, text: &str) -> TokenSpans {
        self.cpu.token_spans(text)
    }

    fn call_limits(&self) -> CallLimits {
        // One more for questions, which the devices take first.
        CallLimits {
            texts: usize::MAX,
            tokens: Some(EMBED_BATCH_TOKENS_MAX),
            calls: Some(1 + CALLS_PER_DEVICE * self.devices.len()),
        }
    }

    fn degraded(&self) -> Option<String> {
        let status = self.service.status();
        status
            .is_degraded
            .then(|| format!("the CPU embeds in a device's place: {}", status.reason))
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.on(Class::Bulk, texts)
    }

    fn embed_questions(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.on(Class::Question, texts)
    }
}
