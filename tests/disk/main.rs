//! A disk that is full: pushes are refused, everything else goes on, and space that comes back is
//! enough; nothing acknowledged is lost.
//!
//! The data folder lies on a file system in memory of 12 MiB, so the test needs Linux and root and
//! says so where it has neither. (`tests/service/bad_input.rs` has the same with a failing store, for
//! everybody.)

#[path = "../support/program.rs"]
mod program;
#[path = "../support/server.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;

use program::Program;
use serde_json::{Value as Json, json};

const PIPELINE: &str = "
CREATE SOURCE docs FROM PUSH (id TEXT PRIMARY KEY, body TEXT);
CREATE INDEX found ON docs USING KEYWORD (body);
";

/// A small file system that is gone with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<SmallDisk> {
        std::fs::create_dir_all(at).expect("a folder");
        let is_mounted = run("mount", &["-t", "tmpfs", "-o", "size=12m", "tmpfs"], at);
        is_mounted.then(|| SmallDisk(at.to_owned()))
    }

    fn grow(&self) {
        let is_larger = run("mount", &["-o", "remount,size=64m"], &self.0);
        assert!(is_larger, "the file system grows");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l"], &self.0);
    }
}

fn run(program: &str, arguments: &[&str], at: &Path) -> bool {
    let status = Command::new(program).args(arguments).arg(at).status();
    status.is_ok_and(|status| status.success())
}

/// Pushes one document of 256 KiB: 200 when it is shown, 202 when it is only safe.
fn push(program: &Program, key: usize) -> (u16, Json) {
    let word = format!("word{key} ");
    let body = word.repeat((256 << 10) / word.len());
    let line = json!([{"op": "upsert", "key": format!("d{key}"), "value": {"body": body}}]);
    let path = "/v1/sources/docs/documents?wait=visible&timeout_ms=2000";
    program.post(path, &line)
}

fn ids(program: &Program) -> Vec<String> {
    let rows = program.rows("SELECT id FROM docs");
    rows.iter()
        .filter_map(|row| Some(row[0].as_str()?.to_owned()))
        .collect()
}

#[test]
fn a_full_disk_refuses_pushes_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(&folder.path().join("data")) else {
        println!("not run: needs Linux, and root to mount a small file system");
        return;
    };
    let mut program = Program::over(folder, PIPELINE);
    let (mut acknowledged, mut shown) = (Vec::new(), 0);
    let refused = (0..200).find_map(|key| match push(&program, key) {
        (status @ (200 | 202), _) => {
            acknowledged.push(format!("d{key}"));
            shown += usize::from(status == 200);
            None
        }
        refused => Some(refused),
    });
    let (status, problem) = refused.expect("12 MiB are soon full");
    assert_eq!(
        (status, &problem["code"]),
        (503, &json!("not-durable")),
        "{problem}"
    );
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("No space left on device"), "{problem}");
    assert!(acknowledged.len() >= 8, "{} were taken", acknowledged.len());

    // Questions are answered, and readiness says what is wrong. (The last push may be safe and not
    // shown: its tick has to be written, too.)
    assert!(shown + 1 >= acknowledged.len(), "{shown} were shown");
    let found = ids(&program);
    assert!(acknowledged[..shown].iter().all(|key| found.contains(key)));
    let found = program.rows("SELECT document FROM search(found, 'word3', k => 1)");
    assert!(found[0][0].to_string().contains("d3"), "{found:?}");
    let (status, ready) = program.get("/ready");
    assert_eq!(status, 503, "{ready}");
    let reasons = ready["reasons"].to_string();
    assert!(
        reasons.contains("the input log cannot be written"),
        "{ready}"
    );

    // Space comes back: nobody has to do anything else.
    disk.grow();
    program.wait("ready again", |program| program.get("/ready").0 == 200);
    assert_eq!(push(&program, 900).0, 200);
    acknowledged.push("d900".to_owned());
    program.wait("everything acknowledged is shown", |program| {
        let ids = ids(program);
        acknowledged.iter().all(|key| ids.contains(key))
    });
    program.kill();
    program.restart();
    program.wait("everything acknowledged is there", |program| {
        let ids = ids(program);
        acknowledged.iter().all(|key| ids.contains(key))
    });
    // The file system goes before the folder that it lies in.
    program.kill();
    drop(disk);
}
