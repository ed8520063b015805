//! The emulated GPU as a [`Device`]: kernels compiled by the host's C++ compiler, run fiber by fiber.
//!
//! `cuda/emulate/` says what it checks. Device addresses are host addresses, streams run at once, a
//! graph is its list of launches. One launch at a time in the whole process: the machine is global.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use kernels::cuda::device::{Arg, Device, Fault, Graph, Launch, Pinned, Placement, Stage, Stream};
use libloading::{Library, Symbol};

type LaunchFn = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    u32,
    u32,
    *const u32,
    *const *const c_void,
    c_int,
    c_int,
) -> *const c_char;

/// One at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// The compiled machine. Fails the test when there is no C++ compiler: the project needs one anyway.
fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda/emulate/machine.cpp");
        let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("machine-{}.so", std::process::id()));
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let output = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-U_FORTIFY_SOURCE"])
            .args(["-DHEADWATER_EMULATED", "-w", "-o"])
            .args([&out, &source])
            .output()
            .expect("a C++ compiler starts");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{compiler}: {errors}");
        // SAFETY: the library is ours, compiled a moment ago; it has no initialisers.
        let library = unsafe { Library::new(&out) }.expect("the machine loads");
        std::fs::remove_file(&out).expect("our own file");
        library
    })
}

/// How the machine runs: 0 forward, 1 backward, else a seed for shuffling; whether copies land late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    pub order: i32,
    pub is_late: bool,
}

pub struct Emulator {
    pub weather: Weather,
    /// Few, so that persistent kernels have several tiles a block.
    pub multiprocessors: u32,
    allocations: Vec<(u64, usize)>,
    blocks: Vec<Vec<u8>>,
    graphs: Vec<Vec<Launch>>,
}

impl Emulator {
    pub fn new(weather: Weather) -> Self {
        Emulator {
            weather,
            multiprocessors: 2,
            allocations: Vec::new(),
            blocks: Vec::new(),
            graphs: Vec::new(),
        }
    }

    /// Bank conflicts of matrix loads so far, in the whole process.
    pub fn conflicts() -> u64 {
        let _guard = MACHINE.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: the function has this type in machine.cpp.
        unsafe {
            let count: Symbol<unsafe extern "C" fn() -> u64> =
                library().get(b"emulate_conflicts").unwrap();
            count()
        }
    }

    fn run(&self, launch: &Launch) -> Result<(), Fault> {
        // Every argument in a word of its own; the machine reads as many bytes as the type has.
        let maps: Vec<MapWords> = launch.args().iter().map(map_words).collect();
        let words: Vec<u64> = launch.args().iter().map(Arg::word).collect();
        let pointers: Vec<*const c_void> = launch
            .args()
            .iter()
            .zip(words.iter().zip(&maps))
            .map(|(arg, (word, map))| match arg {
                Arg::Map(_) => map.0.as_ptr().cast(),
                _ => (word as *const u64).cast(),
            })
            .collect();
        let name = CString::new(launch.kernel()).unwrap();
        // Blocks of a cluster; whether all of the grid are there at once.
        let meets = match launch.placement() {
            Placement::Alone => [1, 0],
            Placement::Clusters(blocks) => [blocks, 0],
            Placement::Whole => [1, 1],
        };
        let _guard = MACHINE.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: the types are machine.cpp's; all pointers live until it returns; kernels touch memory
        // of `allocate` only, which ends at forbidden pages.
        let message = unsafe {
            let run: Symbol<LaunchFn> = library().get(b"emulate_launch").unwrap();
            let message = run(
                name.as_ptr(),
                launch.grid().as_ptr(),
                launch.threads(),
                launch.shared_bytes(),
                meets.as_ptr(),
                pointers.as_ptr(),
                self.weather.order,
                i32::from(self.weather.is_late),
            );
            if message.is_null() {
                return Ok(());
            }
            CStr::from_ptr(message).to_string_lossy().into_owned()
        };
        Err(Fault::Lost(message))
    }
}

/// As long and as aligned as a tensor map.
#[repr(align(64))]
struct MapWords([u64; 16]);

/// What stands for a tensor map: address, rows, columns, rows and columns of a box, bytes of an element.
fn map_words(arg: &Arg) -> MapWords {
    let Arg::Map(map) = arg else {
        return MapWords([0; 16]);
    };
    let (tensor, rows, columns) = map.parts();
    let sizes = [
        tensor.rows,
        tensor.columns,
        rows,
        columns,
        tensor.kind.bytes(),
    ];
    let [a, b, c, d, e] = sizes.map(|size| size as u64);
    let mut words = [0; 16];
    words[..6].copy_from_slice(&[tensor.address, a, b, c, d, e]);
    MapWords(words)
}

impl Drop for Emulator {
    fn drop(&mut self) {
        for &(address, bytes) in &self.allocations {
            // SAFETY: made by emulate_allocate with these bytes, freed once.
            unsafe {
                let free: Symbol<unsafe extern "C" fn(u64, usize)> =
                    library().get(b"emulate_free").unwrap();
                free(address, bytes);
            }
        }
    }
}

impl Device for Emulator {
    fn describe(&self) -> String {
        format!("emulated, {:?}", self.weather)
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn best_stage(&self) -> Stage {
        Stage::Hopper
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64, Fault> {
        // SAFETY: the function has this type in machine.cpp.
        let address = unsafe {
            let allocate: Symbol<unsafe extern "C" fn(usize) -> u64> =
                library().get(b"emulate_allocate").unwrap();
            allocate(bytes)
        };
        assert!(address != 0, "memory for a test");
        self.allocations.push((address, bytes));
        self.write(address, &vec![0xff; bytes])?;
        Ok(address)
    }

    fn pinned(&mut self, bytes: usize) -> Result<Pinned, Fault> {
        self.blocks.push(vec![0; bytes]);
        Ok(Pinned(self.blocks.len() - 1))
    }

    fn host(&mut self, block: Pinned) -> &mut [u8] {
        &mut self.blocks[block.0]
    }

    fn stream(&mut self, _is_urgent: bool) -> Result<Stream, Fault> {
        Ok(Stream(0))
    }

    fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        // SAFETY: callers write inside what they allocated; its end is guarded.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&mut self, from: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        // SAFETY: as above.
        unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len())
        };
        Ok(())
    }

    fn upload(&mut self, _: Stream, to: u64, from: Pinned, bytes: usize) -> Result<(), Fault> {
        let block = self.blocks[from.0][..bytes].to_vec();
        self.write(to, &block)
    }

    fn download(&mut self, _: Stream, to: Pinned, from: u64, bytes: usize) -> Result<(), Fault> {
        let mut found = vec![0; bytes];
        self.read(from, &mut found)?;
        self.blocks[to.0][..bytes].copy_from_slice(&found);
        Ok(())
    }

    fn launch(&mut self, _: Stream, launch: &Launch) -> Result<(), Fault> {
        self.run(launch)
    }

    fn capture(&mut self, _: Stream, launches: &[Launch], _: bool) -> Result<Graph, Fault> {
        self.graphs.push(launches.to_vec());
        Ok(Graph(self.graphs.len() - 1))
    }

    fn replay(&mut self, _: Stream, graph: Graph) -> Result<(), Fault> {
        let launches = &self.graphs[graph.0];
        launches.iter().try_for_each(|launch| self.run(launch))
    }

    fn is_idle(&mut self, _: Stream) -> Result<bool, Fault> {
        Ok(true)
    }

    fn synchronize(&mut self, _: Stream) -> Result<(), Fault> {
        Ok(())
    }

    fn time(&mut self, stream: Stream, launches: &[Launch]) -> Result<Vec<f32>, Fault> {
        launches
            .iter()
            .try_for_each(|launch| self.launch(stream, launch))?;
        Ok(vec![0.0; launches.len()])
    }

    fn abandon(&mut self) {}
}
