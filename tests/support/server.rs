//! The real server as a child process, for tests that are about the program and not the library.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A running server; it is killed when it goes out of scope.
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:port`
    pub url: String,
}

impl Server {
    /// Runs `pipeline` on `folder/data` at a free port, with its log in `folder/server.log`.
    ///
    /// # Panics
    /// With the log, when the server ends before it listens.
    pub fn start(folder: &Path, pipeline: &str, more: &[&str]) -> Server {
        std::fs::write(folder.join("pipeline.sql"), pipeline).expect("writable");
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_path(folder))
            .expect("a log file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_headwater"))
            .args(["run", "pipeline.sql", "--listen", "127.0.0.1:0"])
            .args(["--data", "data"])
            .args(more)
            .current_dir(folder)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let url = loop {
            let Some(line) = lines.next() else {
                panic!("the server ended: {}", self::log(folder));
            };
            if let Some((_, url)) = line.expect("UTF-8").split_once("listening on ") {
                break url.trim().to_owned();
            }
        };
        // Keep reading, so that the pipe never fills.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, url }
    }

    /// The process id.
    #[allow(dead_code)] // not asked for by all tests
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the servers of a folder have logged.
pub fn log(folder: &Path) -> String {
    std::fs::read_to_string(log_path(folder)).unwrap_or_default()
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("server.log")
}
