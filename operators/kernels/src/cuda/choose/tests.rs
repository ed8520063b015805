//! The order of ways, what each is refused for, and that a refusal leads to the next.

use super::super::image::{hollow_cubin, hollow_ptx};
use super::*;

struct Fake(Result<(u32, u32), String>);

impl Compiler for Fake {
    fn version(&self) -> Result<(u32, u32), String> {
        self.0.clone()
    }

    fn compile(&self, module: &Module, architecture: &str) -> Result<Vec<u8>, String> {
        Ok(hollow_ptx(module, architecture))
    }
}

fn facts(capability: (u32, u32)) -> Facts {
    Facts {
        ordinal: 0,
        name: "A GPU".to_owned(),
        capability,
        driver: (13, 0),
    }
}

/// A driver that takes everything; what was loaded is the images themselves.
fn willing(_: &Origin, images: &Images) -> Result<Images, Fault> {
    Ok(images.clone())
}

/// A driver that refuses the named ways.
fn refusing(names: &[&str]) -> impl FnMut(&Origin, &Images) -> Result<Images, Fault> {
    move |origin, images| match names.contains(&origin.name()) {
        true => Err(Fault::Unavailable(
            "linear: CUDA_ERROR_INVALID_IMAGE".to_owned(),
        )),
        false => Ok(images.clone()),
    }
}

/// A folder of its own, removed at the end.
struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Self {
        let folder = format!("headwater-choose-{name}-{}", std::process::id());
        Home(std::env::temp_dir().join(folder))
    }

    fn put_cubins(&self) -> PathBuf {
        let cubins = self.0.join("cubin");
        sources::copy_to(&cubins).unwrap();
        for module in MODULES {
            let path = cubins.join(format!("{}.cubin", module.name));
            std::fs::write(path, hollow_cubin(&module)).unwrap();
        }
        cubins
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const PTX: &str = "ptx-9.0-nvrtc-13.0";

#[test]
fn the_order_is_cubin_then_cache_then_compiler() {
    let home = Home::new("order");
    let (compiler, none) = (
        Fake(Ok((13, 0))),
        Fake(Err("libnvrtc is not here".to_owned())),
    );
    let with = |compiler, capability| {
        let search = Search::new(Some(&home.0), compiler);
        search.load_first(&facts(capability), willing).unwrap()
    };
    let chosen = with(&compiler, (9, 0));
    assert_eq!(chosen.origin, Origin::Compiled);
    assert_eq!(chosen.loaded.len(), MODULES.len());
    assert!(chosen.loaded[0].1.starts_with(b"// compute_90a\n"));
    assert_eq!(chosen.loaded[0].1.last(), Some(&0));
    // A second start finds them; another chip does not, and gets no Hopper kernels.
    let again = with(&none, (9, 0));
    assert_eq!(again.origin, Origin::Cached(home.0.join(PTX)));
    assert_eq!(again.loaded, chosen.loaded);
    let other = with(&compiler, (8, 9));
    let plain = MODULES.iter().filter(|module| !module.is_hopper);
    assert_eq!(other.loaded.len(), plain.count());
    // Cubins of these sources come first, of others never.
    let cubins = home.put_cubins();
    let first = with(&none, (9, 0));
    assert_eq!(first.origin, Origin::Cubin(cubins.clone()));
    assert_eq!(first.loaded[0].1, hollow_cubin(&MODULES[0]));
    std::fs::write(cubins.join("pool.cu"), "// older").unwrap();
    let cached = with(&none, (9, 0));
    assert_eq!(cached.origin, Origin::Cached(home.0.join(PTX)));
    assert!(cached.not_taken[1].ends_with("was made of other sources"));
    // What is in the program comes before all.
    let cubins = MODULES.map(|module| (module.name, hollow_cubin(&module)));
    let embedded: Vec<(&str, &[u8])> = cubins.iter().map(|(name, b)| (*name, &b[..])).collect();
    let search = |home, compiler| Search {
        embedded: &embedded,
        home,
        compiler,
    };
    let first = search(Some(&home.0), &none).load_first(&facts((9, 0)), willing);
    let first = first.unwrap();
    assert_eq!(
        (first.origin, first.loaded.len()),
        (Origin::Embedded, MODULES.len())
    );
    let other = search(None, &compiler).load_first(&facts((8, 9)), willing);
    let other = other.unwrap();
    assert_eq!(other.origin, Origin::Compiled);
    let why = "in the program: they are for compute capability 9.0";
    assert_eq!(other.not_taken, [why]);
}

#[test]
fn what_the_driver_refuses_leads_to_the_next_way() {
    let home = Home::new("refused");
    let compiler = Fake(Ok((13, 0)));
    let search = Search::new(Some(&home.0), &compiler);
    let hopper = facts((9, 0));
    search.load_first(&hopper, willing).unwrap();
    let cubins = home.put_cubins();
    let refused = "the driver refuses it: linear: CUDA_ERROR_INVALID_IMAGE";
    let cached = search.load_first(&hopper, refusing(&["compiled ahead"]));
    let cached = cached.unwrap();
    assert_eq!(cached.origin, Origin::Cached(home.0.join(PTX)));
    assert_eq!(
        cached.not_taken,
        [
            "in the program: none".to_owned(),
            format!("compiled ahead: {refused}")
        ]
    );
    let compiled = search.load_first(&hopper, refusing(&["compiled ahead", "compiled earlier"]));
    let compiled = compiled.unwrap();
    assert_eq!(compiled.origin, Origin::Compiled);
    assert_eq!(
        compiled.not_taken[2],
        format!("compiled earlier: {refused}")
    );
    let all = ["compiled ahead", "compiled earlier", "compiled now"];
    let none = search.load_first(&hopper, refusing(&all)).unwrap_err();
    assert_eq!(
        none.to_string(),
        format!(
            "no kernels for A GPU: in the program: none; compiled ahead: {refused}; \
             compiled earlier: {refused}; compiled now: {refused}"
        )
    );
    // A cubin that is cut off never reaches the driver, which would read past its end.
    let path = cubins.join("norm.cubin");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..100]).unwrap();
    let cached = search.load_first(&hopper, |origin, images| {
        assert_ne!(origin.name(), "compiled ahead");
        willing(origin, images)
    });
    assert_eq!(
        cached.unwrap().not_taken[1],
        format!(
            "compiled ahead: {}: it is cut off after 100 bytes",
            path.display()
        )
    );
}

#[test]
fn a_fault_that_is_not_the_images_ends_the_search() {
    let compiler = Fake(Ok((13, 0)));
    let mut loads = 0;
    let found = Search::new(None, &compiler).load_first(&facts((9, 0)), |_, _| {
        loads += 1;
        Err::<(), _>(Fault::OutOfMemory("simulated".to_owned()))
    });
    assert_eq!(
        found.unwrap_err(),
        Fault::OutOfMemory("simulated".to_owned())
    );
    assert_eq!(loads, 1);
}

#[test]
fn what_is_missing_is_named() {
    let message = |facts: Facts, compiler: Result<(u32, u32), String>| {
        let compiler = Fake(compiler);
        let chosen = Search::new(None, &compiler).load_first(&facts, willing);
        chosen.unwrap_err().to_string()
    };
    assert_eq!(
        message(facts((7, 5)), Ok((13, 0))),
        "A GPU has compute capability 7.5, the kernels need 8.0"
    );
    let start = "no kernels for A GPU: in the program: none; compiled now:";
    assert_eq!(
        message(facts((8, 0)), Ok((13, 5))),
        format!("{start} NVRTC is 13.5, the kernels are checked with 13.0 and use no other")
    );
    let older = Facts {
        driver: (12, 8),
        ..facts((9, 0))
    };
    assert_eq!(
        message(older, Ok((13, 0))),
        format!("{start} the driver reads CUDA 12.8 at most, PTX of NVRTC 13.0 would not load")
    );
    assert_eq!(
        message(facts((9, 0)), Err("libnvrtc is not here".to_owned())),
        format!("{start} libnvrtc is not here")
    );
}

#[test]
fn a_survey_says_what_would_be_tried_and_does_not_call_a_broken_cubin_good() {
    let home = Home::new("survey");
    let compiler = Fake(Ok((13, 0)));
    let search = Search::new(Some(&home.0), &compiler);
    let cubins = home.put_cubins();
    let ptx = home.0.join(PTX);
    assert_eq!(
        search.survey(&facts((9, 0))),
        [
            "in the program: none".to_owned(),
            format!(
                "compiled ahead: {} modules in {}, whole",
                MODULES.len(),
                cubins.display()
            ),
            format!("compiled earlier: {} does not exist", ptx.display()),
            "compiled now: can be tried".to_owned(),
        ]
    );
    assert!(!ptx.exists(), "a survey compiles nothing");
    let path = cubins.join("linear.cubin");
    std::fs::write(&path, "not a cubin").unwrap();
    assert_eq!(
        search.survey(&facts((9, 0)))[1],
        format!("compiled ahead: {}: it is no ELF file", path.display())
    );
}

#[test]
fn devices_are_named_as_in_statements() {
    assert_eq!(Wanted::parse("AUTO"), Ok(Wanted::Auto));
    assert_eq!(Wanted::parse("cuda:3"), Ok(Wanted::Cuda(3)));
    assert_eq!(
        Wanted::parse("gpu").unwrap_err(),
        "DEVICE is 'gpu', expected 'auto', 'cpu' or 'cuda:0'"
    );
}
