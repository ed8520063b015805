//! One server process that cannot outlive the test.
//!
//! **Idea.** A small shell stands between the test and the server, in a process group of its own.
//! Its standard input is a pipe that only the test holds: when the test ends, however it ends, the
//! pipe closes and the shell ends the server. In ordinary life the test itself signals the server
//! and, when it drops the [`Process`], the whole group.
//!
//! **Invariants.** Server and shell have ended when `kill`, `stop` and `drop` return. The server's
//! output goes to its log file only, in append mode, so a restart continues the log.
//!
//! **Limits.** Unix only. Processes that a server starts in groups of their own (PostgreSQL's do so)
//! are left to the server: PostgreSQL's end by themselves when their parent has gone.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to end after a polite signal.
const STOP_WAIT: Duration = Duration::from_secs(60);

/// Runs "$@" beside a watcher that ends it when standard input closes; the signal comes first.
const WATCHDOG: &str = r#"
signal=$1; shift
exec 3<&0
"$@" </dev/null >&2 3<&- &
server=$!
{ read -r _ <&3; kill -s "$signal" "$server"; sleep 2; kill -s KILL "$server"; } >/dev/null 2>&1 &
watcher=$!
echo "$server"
wait "$server"
code=$?
kill -s KILL "$watcher"
wait "$watcher"
exit "$code"
"#;

/// What to start.
pub struct Launch<'a> {
    /// Name in messages.
    pub name: &'a str,
    pub program: &'a Path,
    pub arguments: Vec<String>,
    pub folder: &'a Path,
    pub log: PathBuf,
    /// User and group, when not those of the test.
    pub user: Option<(u32, u32)>,
    /// The signal that ends it when the test is over: `KILL`, unless it has things to clear away.
    pub signal: &'static str,
}

/// A running server.
pub struct Process {
    shell: Child,
    /// Closing it ends the server.
    _alive: ChildStdin,
    server: u32,
    name: String,
    log: PathBuf,
    signal: &'static str,
}

impl Process {
    /// Starts a server.
    ///
    /// # Errors
    /// When the program or its log cannot be opened.
    pub fn start(launch: Launch) -> Result<Process, String> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&launch.log)
            .map_err(|error| format!("{}: {error}", launch.log.display()))?;
        let mut command = Command::new("sh");
        command
            .args(["-c", WATCHDOG, "sh", launch.signal])
            .arg(launch.program)
            .args(&launch.arguments)
            .current_dir(launch.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0);
        if let Some((user, group)) = launch.user {
            command.uid(user).gid(group);
        }
        let mut shell = command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", launch.name))?;
        let alive = shell.stdin.take().expect("piped");
        let mut line = String::new();
        BufReader::new(shell.stdout.take().expect("piped"))
            .read_line(&mut line)
            .map_err(|error| format!("{}: {error}", launch.name))?;
        let server = line
            .trim()
            .parse()
            .map_err(|_| format!("{} did not start: {line:?}", launch.name))?;
        Ok(Process {
            shell,
            _alive: alive,
            server,
            name: launch.name.to_owned(),
            log: launch.log,
            signal: launch.signal,
        })
    }

    /// The server's process id.
    pub fn id(&self) -> u32 {
        self.server
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.shell.try_wait().ok().flatten()?;
        Some(format!("{} ended ({status})", self.name))
    }

    /// Waits until `is_ready` says yes.
    ///
    /// # Errors
    /// With the end of the log, when the server ends before or takes longer than `limit`.
    pub fn wait_ready(
        &mut self,
        limit: Duration,
        mut is_ready: impl FnMut() -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        while !is_ready() {
            let problem = match self.ended() {
                Some(ended) => ended,
                None if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(30));
                    continue;
                }
                None => format!("{} is not ready after {limit:?}", self.name),
            };
            let (log, tail) = (self.log.display(), self.log_tail());
            return Err(format!("{problem}; the end of {log}:\n{tail}"));
        }
        Ok(())
    }

    /// The last lines that it has logged.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// Ends it at once (SIGKILL), as a power cut would.
    pub fn kill(&mut self) {
        self.end("KILL");
    }

    /// Ends it with a signal of its choice for an orderly end.
    pub fn stop(&mut self, signal: &str) {
        self.end(signal);
    }

    /// Holds it still (SIGSTOP): it answers nothing, its connections stay open.
    pub fn pause(&self) {
        signal("STOP", &self.server.to_string());
    }

    /// Lets it go on after [`Process::pause`].
    pub fn go_on(&self) {
        signal("CONT", &self.server.to_string());
    }

    /// Resident memory, where the system tells it.
    pub fn resident_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server)).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kilobytes * 1024)
    }

    fn end(&mut self, with: &str) {
        if self.ended().is_none() {
            signal(with, &self.server.to_string());
            let deadline = Instant::now() + STOP_WAIT;
            while self.ended().is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if self.ended().is_none() {
            signal("KILL", &format!("-{}", self.shell.id()));
            let _ = self.shell.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(self.signal);
    }
}

/// The last lines of a text file.
pub fn tail(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Sends a signal to a process, or to the group behind a minus. One that has gone is no error.
fn signal(name: &str, target: &str) {
    let _ = Command::new("sh")
        .args([
            "-c",
            r#"kill -s "$1" -- "$2" 2>/dev/null"#,
            "sh",
            name,
            target,
        ])
        .status();
}
