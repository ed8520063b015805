//! A CUDA device through the driver's own interface, by cudarc's thin bindings.
//!
//! The library is opened when it is there; nothing is linked. A context belongs to one [`Driver`],
//! which is used by one thread; it is this one's alone (not the process's primary one), so that a
//! context that was lost can be thrown away and a fresh one made beside it.
//!
//! Invariants: `unsafe` calls get only handles that this struct made and has not given up, and sizes
//! that were checked here; launches come from this module's siblings, which checked their tensors.
//! After [`Device::abandon`] the context is leaked, not destroyed: a kernel that never ends would make
//! destroying it wait for ever. Limits: Linux and Windows with a driver of CUDA 12.5 or newer.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::choose::{Facts, Images, Origin, Search, home};
use super::device::{
    Arg, Device, Fault, Graph, Kind, Launch, Map, Pinned, Placement, Stage, Stream, Tensor,
};
use super::devices::{devices, fault, refused};
use super::nvrtc::Nvrtc;
use super::sources;

/// Shared memory that a block may ask for without being allowed to.
const SHARED_BY_DEFAULT: u32 = 48 * 1024;

struct Block {
    memory: *mut u8,
    bytes: usize,
    /// The stream whose copy may still touch it.
    busy: Option<usize>,
}

/// One device's context and all that lives in it.
pub struct Driver {
    facts: Facts,
    description: String,
    not_taken: Vec<String>,
    multiprocessors: u32,
    /// Clusters of two and of four blocks that fit at once.
    clusters: [u32; 2],
    context: sys::CUcontext,
    functions: HashMap<&'static str, sys::CUfunction>,
    streams: Vec<sys::CUstream>,
    blocks: Vec<Block>,
    graphs: Vec<sys::CUgraphExec>,
    is_abandoned: bool,
}

impl Driver {
    /// Makes a fresh context on a device, with the first kernels that the driver takes
    /// ([`Search::load_first`]).
    pub fn open(ordinal: usize) -> Result<Driver, Fault> {
        let all = devices()?;
        let count = all.len();
        let facts = all.into_iter().nth(ordinal).ok_or_else(|| {
            Fault::Unavailable(format!(
                "there is no cuda:{ordinal}: the machine has {count} devices"
            ))
        })?;
        let home = home();
        let search = Search::new(home.as_deref(), &Nvrtc);
        // A context a way: what a refused image may have left in one goes with it.
        let chosen = search.load_first(&facts, |origin, images| {
            Driver::with(facts.clone(), origin, images)
        })?;
        let mut driver = chosen.loaded;
        driver.not_taken = chosen.not_taken;
        Ok(driver)
    }

    /// Ways to kernels that were not taken, and why.
    pub fn not_taken(&self) -> &[String] {
        &self.not_taken
    }

    fn with(facts: Facts, origin: &Origin, images: &Images) -> Result<Driver, Fault> {
        let device = result::device::get(facts.ordinal as i32).map_err(fault)?;
        let count = Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: the device was given by the driver.
        let multiprocessors =
            unsafe { result::device::get_attribute(device, count) }.map_err(fault)? as u32;
        // SAFETY: no parameters, no flags, a device of the driver's.
        let context =
            unsafe { result::ctx::create_v4(std::ptr::null_mut(), 0, device) }.map_err(fault)?;
        let description = format!(
            "cuda:{} {}, {multiprocessors} multiprocessors, driver {}.{}, {}",
            facts.ordinal,
            facts.name,
            facts.driver.0,
            facts.driver.1,
            origin.describe()
        );
        // From here on a failure drops the driver, and with it the context.
        let mut driver = Driver {
            facts,
            description,
            not_taken: Vec::new(),
            multiprocessors,
            clusters: [multiprocessors / 2, multiprocessors / 4],
            context,
            functions: HashMap::new(),
            streams: Vec::new(),
            blocks: Vec::new(),
            graphs: Vec::new(),
            is_abandoned: false,
        };
        driver.enter()?;
        for (module, image) in images {
            driver.load(module, image)?;
        }
        for (i, blocks) in [2, 4].into_iter().enumerate() {
            if let Some(clusters) = driver.count_clusters(blocks) {
                driver.clusters[i] = clusters;
            }
        }
        Ok(driver)
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), Fault> {
        // SAFETY: the context lives until this is dropped.
        unsafe { result::ctx::set_current(self.context) }.map_err(fault)
    }

    fn load(&mut self, module: &sources::Module, image: &[u8]) -> Result<(), Fault> {
        let refused = |error| refused(module.name, error);
        // SAFETY: the image passed `image`'s check: a whole cubin, whose header says its length, or PTX
        // with a 0 behind it.
        let handle =
            unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(refused)?;
        for &kernel in module.kernels {
            let name = CString::new(kernel).expect("a name without zeros");
            // SAFETY: the module was just loaded and stays until the context goes.
            let function =
                unsafe { result::module::get_function(handle, name) }.map_err(refused)?;
            // Now, and not when a graph is captured; and with all of a multiprocessor's memory as shared memory, whose
            // share changes only when it is empty: a kernel that wants less would hold up one that wants more.
            let share =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // SAFETY: the function is of a loaded module.
            unsafe {
                sys::cuFuncLoad(function).result().map_err(refused)?;
                result::function::set_function_attribute(function, share, 100).map_err(refused)?;
            }
            self.functions.insert(kernel, function);
        }
        Ok(())
    }

    /// How many clusters of the largest kernel there are room for at once; `None` where there are none.
    fn count_clusters(&self, blocks: u32) -> Option<u32> {
        let function = *self.functions.get(match blocks {
            2 => "feed_hopper_384_by2",
            _ => "feed_hopper_384_by4",
        })?;
        let shared_bytes = super::feed::SHARED_BYTES;
        let mut attributes = attributes(Placement::Clusters(blocks), false);
        let sizes = ([blocks, 1, 1], 384, shared_bytes);
        let config = config(sizes, std::ptr::null_mut(), &mut attributes);
        allow_shared(function, shared_bytes).ok()?;
        let mut count = 0;
        // SAFETY: the function is of a loaded module; the configuration lives until the call returns.
        unsafe { sys::cuOccupancyMaxActiveClusters(&mut count, function, &config) }
            .result()
            .ok()?;
        u32::try_from(count).ok()
    }

    fn stream_of(&self, stream: Stream) -> sys::CUstream {
        self.streams[stream.0]
    }

    fn queue(&self, stream: sys::CUstream, launch: &Launch, follows: bool) -> Result<(), Fault> {
        let Some(&function) = self.functions.get(launch.kernel) else {
            return Err(Fault::Unavailable(format!(
                "{} is not loaded",
                launch.kernel
            )));
        };
        if launch.shared_bytes > SHARED_BY_DEFAULT {
            allow_shared(function, launch.shared_bytes)?;
        }
        // Values first, all of them, so that their addresses stay.
        let maps = launch
            .args
            .iter()
            .map(encode)
            .collect::<Result<Vec<_>, Fault>>()?;
        let words: Vec<u64> = launch.args.iter().map(Arg::word).collect();
        let mut pointers: Vec<*mut c_void> = words
            .iter()
            .zip(&maps)
            .map(|(word, map)| match map {
                Some(map) => (map as *const sys::CUtensorMap).cast_mut().cast(),
                None => (word as *const u64).cast_mut().cast(),
            })
            .collect();
        let mut attributes = attributes(launch.placement, follows);
        let sizes = (launch.grid, launch.threads, launch.shared_bytes);
        let config = config(sizes, stream, &mut attributes);
        // SAFETY: launches are made only beside the kernels, with arguments in the kernel's order and
        // tensors that were checked against each other; the driver copies the arguments and the attributes
        // before it returns; a 4-byte argument is the low half of its little-endian word.
        unsafe {
            sys::cuLaunchKernelEx(
                &config,
                function,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(fault)
    }

    fn event(&self) -> Result<sys::CUevent, Fault> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(fault)
    }

    /// Times launches with an event between each two.
    fn timed(&self, stream: sys::CUstream, launches: &[Launch]) -> Result<Vec<f32>, Fault> {
        let events = (0..=launches.len())
            .map(|_| self.event())
            .collect::<Result<Vec<_>, Fault>>()?;
        let run = || -> Result<Vec<f32>, Fault> {
            // SAFETY: events and stream are of this context and live.
            unsafe {
                result::event::record(events[0], stream).map_err(fault)?;
                for (launch, &event) in launches.iter().zip(&events[1..]) {
                    self.queue(stream, launch, false)?;
                    result::event::record(event, stream).map_err(fault)?;
                }
                result::stream::synchronize(stream).map_err(fault)?;
                events
                    .windows(2)
                    .map(|pair| result::event::elapsed(pair[0], pair[1]).map_err(fault))
                    .collect()
            }
        };
        let times = run();
        for event in events {
            // SAFETY: made above, used no more; a failure leaves it to the context's end.
            let _ = unsafe { result::event::destroy(event) };
        }
        times
    }
}

/// Lets a kernel's blocks have so much dynamic shared memory.
fn allow_shared(function: sys::CUfunction, bytes: u32) -> Result<(), Fault> {
    let name = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: the function is of a loaded module.
    unsafe { result::function::set_function_attribute(function, name, bytes as i32) }.map_err(fault)
}

/// A launch of (grid, threads, bytes of shared memory). It points to the attributes, which must live as long.
fn config(
    ([x, y, z], threads, shared_bytes): ([u32; 3], u32, u32),
    stream: sys::CUstream,
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

/// What the driver is told of a launch whose blocks meet, and of one that may begin beside the end of the one before.
fn attributes(placement: Placement, follows: bool) -> Vec<sys::CUlaunchAttribute> {
    use sys::CUlaunchAttributeID::{
        CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION as CLUSTER, CU_LAUNCH_ATTRIBUTE_COOPERATIVE as WHOLE,
        CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as FOLLOWS,
    };
    let attribute = |id, value| sys::CUlaunchAttribute {
        id,
        pad: [0; 4],
        value,
    };
    let nothing = sys::CUlaunchAttributeValue { pad: [0; 64] };
    let mut attributes = Vec::new();
    match placement {
        Placement::Alone => {}
        Placement::Clusters(blocks) => {
            let mut value = nothing;
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                x: blocks,
                y: 1,
                z: 1,
            };
            attributes.push(attribute(CLUSTER, value));
        }
        Placement::Whole => {
            let mut value = nothing;
            value.cooperative = 1;
            attributes.push(attribute(WHOLE, value));
        }
    }
    if follows {
        let mut value = nothing;
        value.programmaticStreamSerializationAllowed = 1;
        attributes.push(attribute(FOLLOWS, value));
    }
    attributes
}

/// The copy engine's own form of a map: two dimensions, 128-byte swizzle, zeros outside.
fn encode(arg: &Arg) -> Result<Option<sys::CUtensorMap>, Fault> {
    let Arg::Map(Map {
        tensor,
        box_rows,
        box_columns,
    }) = arg
    else {
        return Ok(None);
    };
    let Tensor {
        address,
        rows,
        columns,
        kind,
    } = *tensor;
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // Innermost first. Strides are of all dimensions but the innermost, in bytes.
    let sizes = [columns as u64, rows as u64];
    let strides = [(columns * kind.bytes()) as u64];
    let boxes = [*box_columns as u32, *box_rows as u32];
    let steps = [1u32, 1];
    let elements = match kind {
        Kind::Byte => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        _ => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    };
    // SAFETY: writes the map; reads two, one, two and two numbers; nothing is kept.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            elements,
            2,
            address as *mut c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(fault)?;
    Ok(Some(map))
}

impl Device for Driver {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn clusters_at_once(&self, blocks: u32) -> u32 {
        match blocks {
            2 => self.clusters[0],
            4 => self.clusters[1],
            _ => self.multiprocessors / blocks,
        }
    }

    fn best_stage(&self) -> Stage {
        match self.facts.capability {
            (9, 0) => Stage::Hopper,
            _ => Stage::TensorCore,
        }
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64, Fault> {
        self.enter()?;
        // SAFETY: the context is current; it frees the memory at its end.
        unsafe { result::malloc_sync(bytes.max(1)) }.map_err(fault)
    }

    fn pinned(&mut self, bytes: usize) -> Result<Pinned, Fault> {
        self.enter()?;
        // Flags 0: cached memory. Write-combined memory must not be read, and results are.
        // SAFETY: the context is current; it frees the memory at its end.
        let memory = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(fault)?
            .cast::<u8>();
        // SAFETY: that many bytes were just allocated.
        unsafe { memory.write_bytes(0, bytes) };
        self.blocks.push(Block {
            memory,
            bytes,
            busy: None,
        });
        Ok(Pinned(self.blocks.len() - 1))
    }

    fn host(&mut self, block: Pinned) -> &mut [u8] {
        let block = &self.blocks[block.0];
        assert!(block.busy.is_none(), "no copy may be under way");
        // SAFETY: allocated with this length, initialised, alive as long as `self`; no copy touches it,
        // and the borrow of `self` keeps another from being started.
        unsafe { std::slice::from_raw_parts_mut(block.memory, block.bytes) }
    }

    fn stream(&mut self, is_urgent: bool) -> Result<Stream, Fault> {
        self.enter()?;
        let (least, greatest) = result::stream::get_priority_range().map_err(fault)?;
        let priority = if is_urgent { greatest } else { least };
        let kind = result::stream::StreamKind::NonBlocking;
        let stream = result::stream::create_with_priority(kind, priority).map_err(fault)?;
        self.streams.push(stream);
        Ok(Stream(self.streams.len() - 1))
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: the caller writes into memory of `allocate`; the copy from pageable memory has left
        // `bytes` when it returns.
        unsafe { result::memcpy_htod_sync(to, bytes) }.map_err(fault)?;
        // The copy may still be on its way on the device, and our streams do not wait for the default one.
        result::ctx::synchronize().map_err(fault)
    }

    fn read(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.enter()?;
        result::ctx::synchronize().map_err(fault)?;
        // SAFETY: the caller reads memory of `allocate`; nothing else runs.
        unsafe { result::memcpy_dtoh_sync(bytes, from) }.map_err(fault)
    }

    fn upload(&mut self, stream: Stream, to: u64, from: Pinned, bytes: usize) -> Result<(), Fault> {
        self.enter()?;
        let handle = self.stream_of(stream);
        let block = &mut self.blocks[from.0];
        assert!(bytes <= block.bytes, "the block is as long");
        block.busy = Some(stream.0);
        // SAFETY: the block stays and, being busy, is not lent out until the stream is idle.
        unsafe {
            result::memcpy_htod_async(to, std::slice::from_raw_parts(block.memory, bytes), handle)
        }
        .map_err(fault)
    }

    fn download(
        &mut self,
        stream: Stream,
        to: Pinned,
        from: u64,
        bytes: usize,
    ) -> Result<(), Fault> {
        self.enter()?;
        let handle = self.stream_of(stream);
        let block = &mut self.blocks[to.0];
        assert!(bytes <= block.bytes, "the block is as long");
        block.busy = Some(stream.0);
        // SAFETY: as above.
        unsafe {
            let room = std::slice::from_raw_parts_mut(block.memory, bytes);
            result::memcpy_dtoh_async(room, from, handle)
        }
        .map_err(fault)
    }

    fn launch(&mut self, stream: Stream, launch: &Launch) -> Result<(), Fault> {
        self.enter()?;
        self.queue(self.stream_of(stream), launch, false)
    }

    fn capture(
        &mut self,
        stream: Stream,
        launches: &[Launch],
        overlap: bool,
    ) -> Result<Graph, Fault> {
        self.enter()?;
        let handle = self.stream_of(stream);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of this context; the capture is ended below on every path.
        unsafe { result::stream::begin_capture(handle, mode) }.map_err(fault)?;
        // The first has no launch before it, in its graph.
        let overlap = overlap && self.facts.capability.0 >= 9;
        let queued = launches.iter().enumerate().try_for_each(|(nth, launch)| {
            let follows = overlap && nth > 0 && launch.can_follow();
            self.queue(handle, launch, follows)
        });
        // SAFETY: the capture was begun on this thread.
        let graph = unsafe { result::stream::end_capture(handle) }.map_err(fault);
        queued?;
        let graph = graph?;
        // SAFETY: the graph was just captured; its executable form does not need it.
        let executable = unsafe {
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            made
        }
        .map_err(fault)?;
        // SAFETY: both live; what a first launch would copy is copied now.
        unsafe { result::graph::upload(executable, handle) }.map_err(fault)?;
        self.graphs.push(executable);
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, stream: Stream, graph: Graph) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: made by `capture`, kept until the end.
        unsafe { result::graph::launch(self.graphs[graph.0], self.stream_of(stream)) }
            .map_err(fault)
    }

    fn is_idle(&mut self, stream: Stream) -> Result<bool, Fault> {
        self.enter()?;
        // SAFETY: a stream of this context.
        match unsafe { sys::cuStreamQuery(self.stream_of(stream)) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => {
                other.result().map_err(fault)?;
                self.free_blocks(stream);
                Ok(true)
            }
        }
    }

    fn synchronize(&mut self, stream: Stream) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: a stream of this context.
        unsafe { result::stream::synchronize(self.stream_of(stream)) }.map_err(fault)?;
        self.free_blocks(stream);
        Ok(())
    }

    fn time(&mut self, stream: Stream, launches: &[Launch]) -> Result<Vec<f32>, Fault> {
        self.enter()?;
        self.timed(self.stream_of(stream), launches)
    }

    fn abandon(&mut self) {
        self.is_abandoned = true;
    }
}

impl Driver {
    fn free_blocks(&mut self, stream: Stream) {
        for block in &mut self.blocks {
            if block.busy == Some(stream.0) {
                block.busy = None;
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.is_abandoned {
            return;
        }
        // Errors of a lost context change nothing: it goes.
        let _ = self.enter();
        for &graph in &self.graphs {
            // SAFETY: made by `capture`, used no more.
            let _ = unsafe { result::graph::exec_destroy(graph) };
        }
        for block in &self.blocks {
            // SAFETY: made by `pinned`. Destroying the context below would free it too, but only after
            // waiting for its copies, which this does as well.
            let _ = unsafe { result::free_host(block.memory.cast()) };
        }
        // SAFETY: our own context, used no more; with it go its memory, streams and modules.
        let _ = unsafe { sys::cuCtxDestroy_v2(self.context) };
    }
}
