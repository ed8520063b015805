//! A running Headwater, asked over HTTP.

#![allow(dead_code)] // each test uses its part

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::server::{Server, log};

/// Nothing that a test waits for takes so long.
const LONG: Duration = Duration::from_secs(180);

/// A server with its pipeline, in a folder of its own.
pub struct Program {
    folder: tempfile::TempDir,
    pipeline: String,
    server: Option<Server>,
}

impl Program {
    /// Runs a pipeline on an empty folder.
    pub fn start(pipeline: &str) -> Program {
        Program::over(tempfile::tempdir().expect("a folder"), pipeline)
    }

    /// Runs a pipeline on a folder.
    pub fn over(folder: tempfile::TempDir, pipeline: &str) -> Program {
        let server = Server::start(folder.path(), pipeline, &["--workers", "2"]);
        Program {
            folder,
            pipeline: pipeline.to_owned(),
            server: Some(server),
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Runs again on the same folder.
    pub fn restart(&mut self) {
        let path = self.folder.path();
        self.server = Some(Server::start(path, &self.pipeline, &["--workers", "2"]));
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The data folder as a backup has it, in a folder of its own. The server must not run.
    pub fn copied(&self) -> tempfile::TempDir {
        assert!(self.server.is_none(), "kill it first");
        let copy = tempfile::tempdir().expect("a folder");
        let data = self.folder.path().join("data");
        let done = std::process::Command::new("cp")
            .arg("-r")
            .args([&data, copy.path()])
            .status();
        assert!(done.is_ok_and(|status| status.success()), "copying");
        copy
    }

    /// `http://127.0.0.1:port`
    pub fn address(&self) -> String {
        self.url("")
    }

    fn url(&self, path: &str) -> String {
        let server = self.server.as_ref().expect("running");
        format!("{}{path}", server.url)
    }

    /// The rows of a `SELECT`.
    pub fn rows(&self, sql: &str) -> Vec<Vec<Json>> {
        let body = json!({"sql": sql}).to_string();
        let reply = ureq::post(self.url("/v1/sql"))
            .header("content-type", "application/json")
            .send(body);
        let text = reply.and_then(|mut reply| reply.body_mut().read_to_string());
        let text = text.unwrap_or_else(|error| panic!("{sql}: {error}\n{}", self.log()));
        let json: Json = serde_json::from_str(&text).expect("JSON");
        let rows = json["rows"]
            .as_array()
            .unwrap_or_else(|| panic!("{sql}: {text}"));
        let row = |row: &Json| row.as_array().cloned().unwrap_or_default();
        rows.iter().map(row).collect()
    }

    /// A request with a JSON body: status and reply.
    pub fn post(&self, path: &str, body: &Json) -> (u16, Json) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let reply = agent
            .post(self.url(path))
            .header("content-type", "application/json")
            .send(body.to_string());
        let mut reply = reply.unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()));
        let text = reply.body_mut().read_to_string().expect("text");
        (
            reply.status().as_u16(),
            serde_json::from_str(&text).expect("JSON"),
        )
    }

    /// What the command line says when it asks this server: exit code and stdout.
    pub fn command(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_headwater"))
            .args(args)
            .args(["--url", &self.url("")])
            .output()
            .expect("the binary runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    }

    /// Runs another pipeline on the same folder; what changed is made again.
    pub fn replace(&mut self, pipeline: &str) {
        self.server = None;
        pipeline.clone_into(&mut self.pipeline);
        let path = self.folder.path();
        let options = ["--workers", "2", "--replace"];
        self.server = Some(Server::start(path, &self.pipeline, &options));
    }

    /// What a path answers: status and reply.
    pub fn get(&self, path: &str) -> (u16, Json) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let reply = agent.get(self.url(path)).call();
        let mut reply = reply.unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()));
        let text = reply.body_mut().read_to_string().expect("text");
        let json = serde_json::from_str(&text).unwrap_or(Json::String(text));
        (reply.status().as_u16(), json)
    }

    /// Dead letters of a source: position, code, detail.
    pub fn letters(&self, source: &str) -> Vec<[String; 3]> {
        let sql = format!(
            "SELECT position, code, detail FROM headwater.dead_letters WHERE source = '{source}'"
        );
        let text = |json: &Json| json.as_str().unwrap_or_default().to_owned();
        let rows = self.rows(&sql);
        rows.iter()
            .map(|row| [text(&row[0]), text(&row[1]), text(&row[2])])
            .collect()
    }

    /// Waits until a query answers just this.
    pub fn wait_rows(&self, sql: &str, expected: &[Vec<Json>]) {
        let deadline = Instant::now() + LONG;
        loop {
            let found = self.rows(sql);
            if found == expected {
                return;
            }
            if Instant::now() > deadline {
                assert_eq!(found, expected, "{sql}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until something holds.
    pub fn wait(&self, what: &str, mut holds: impl FnMut(&Program) -> bool) {
        let deadline = Instant::now() + LONG;
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the program has said.
    pub fn log(&self) -> String {
        tail(self.folder.path())
    }
}

fn tail(folder: &Path) -> String {
    let text = log(folder);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
