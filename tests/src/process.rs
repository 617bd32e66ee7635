//! A program that runs beside the test: started in a network namespace, its output in a file, ended by its own id.
//!
//! Called by `node.rs`, `capture.rs` and by tests that start an app. Dropping it ends it. Knows nothing of what runs.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::failure::{Context as _, Failure, Outcome};
use crate::poll;

/// What to start.
#[derive(Debug)]
pub struct Launch {
    name: String,
    netns: Option<PathBuf>,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
    life: Life,
    lacking: Option<String>,
}

/// How long a program may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Until its [`Process`] is dropped; a sandbox around it takes care of the rest.
    Owned,
    /// Also not longer than the thread that started it: the kernel ends it then.
    Tied,
    /// It goes on when the caller ends (`make demo KEEP=1`).
    Outlives,
}

impl Launch {
    /// Starts `program`, called `name` in messages, with its output appended to `log`.
    pub fn new(
        name: impl Into<String>,
        program: impl Into<PathBuf>,
        log: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            netns: None,
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            log: log.into(),
            life: Life::Owned,
            lacking: None,
        }
    }

    /// In this network namespace instead of the caller's.
    #[must_use]
    pub fn in_netns(mut self, netns: &Path) -> Self {
        self.netns = Some(netns.to_path_buf());
        self
    }

    /// With these arguments after those it has.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// With this variable; nothing but `PATH` is inherited.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Without this capability (lower case, without `CAP_`), if any.
    #[must_use]
    pub fn lacking(mut self, capability: Option<String>) -> Self {
        self.lacking = capability;
        self
    }

    /// With these variables.
    #[must_use]
    pub fn envs(mut self, settings: &[(String, String)]) -> Self {
        self.env.extend(settings.iter().cloned());
        self
    }

    /// For so long; [`Life::Owned`] unless said.
    #[must_use]
    pub fn for_life(mut self, life: Life) -> Self {
        self.life = life;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the program or its namespace is not there, or the log cannot be written.
    pub fn start(self) -> Outcome<Process> {
        if let Some(folder) = self.log.parent() {
            fs::create_dir_all(folder).context(folder.display())?;
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .context(self.log.display())?;
        let begin = log.metadata()?.len();
        let mut command = self.command();
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = command
            .spawn()
            .context(format_args!("start {}", self.name))?;
        Ok(Process {
            name: self.name,
            child,
            log: self.log,
            begin,
            life: self.life,
        })
    }

    fn command(&self) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some(netns) = &self.netns {
            words.extend([
                "nsenter".to_owned(),
                format!("--net={}", netns.display()),
                "--".to_owned(),
            ]);
        }
        if self.life == Life::Tied {
            words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned));
        }
        if let Some(capability) = &self.lacking {
            let sets = ["--bounding-set", "--inh-caps"].map(|set| format!("{set}=-{capability}"));
            words.extend(
                ["setpriv".to_owned()]
                    .into_iter()
                    .chain(sets)
                    .chain(["--".to_owned()]),
            );
        }
        words.push(self.program.display().to_string());
        words.extend(self.args.iter().cloned());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    begin: u64,
    life: Life,
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it has printed since it was started.
    pub fn log(&self) -> String {
        read_from(&self.log, self.begin).unwrap_or_default()
    }

    /// Waits until it has printed a line that `wanted` accepts, and returns the line.
    ///
    /// # Errors
    /// When the deadline passes or the program ends first; shows what it printed.
    pub fn wait_for_line(
        &mut self,
        deadline: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Outcome<String> {
        let found = poll::until_ok(deadline, || {
            let ended = self.ended();
            let log = self.log();
            match log.lines().find(|line| wanted(line)) {
                Some(line) => Ok(Ok(line.to_owned())),
                None if ended.is_some() => Ok(Err(ended)),
                None => Err("the line is not there"),
            }
        });
        match found {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(status)) => Err(Failure::new(format!(
                "{} ended: {status:?}\n{}",
                self.name,
                self.log()
            ))),
            Err(cause) => Err(Failure::new(format!(
                "{}: {cause}; its log:\n{}",
                self.name,
                self.log()
            ))),
        }
    }

    /// Its status when it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to it alone.
    ///
    /// # Errors
    /// When it has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Outcome {
        let id = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(id), signal).context(format_args!("{signal} to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs at the deadline; shows its log.
    pub fn wait(&mut self, deadline: Duration) -> Outcome<ExitStatus> {
        poll::until_ok(deadline, || self.ended().ok_or("it runs")).map_err(|cause| {
            Failure::new(format!(
                "end of {}: {cause}; its log:\n{}",
                self.name,
                self.log()
            ))
        })
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub fn stop(&mut self, deadline: Duration) -> Outcome<ExitStatus> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(deadline)
    }

    /// Ends it at once (SIGKILL), as a crash would.
    ///
    /// # Errors
    /// When the kernel does not let it go.
    pub fn crash(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait().map(|_status| ()).context("wait for it")
    }

    /// Resident memory in bytes (`VmRSS`, `man 5 proc`).
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> Outcome<u64> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.id())).context("read its status")?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        let kib: u64 = line
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .context("VmRSS")?;
        Ok(kib * 1024)
    }

    /// User and system time that it has used, in seconds (`utime` and `stime`, `man 5 proc`; ticks of 10 ms).
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_seconds(&self) -> Outcome<f64> {
        const TICKS_PER_SECOND: f64 = 100.0;
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.id())).context("read its stat")?;
        let (_, fields) = stat.rsplit_once(") ").context("stat has no name")?;
        let ticks = |field: usize| -> Outcome<f64> {
            fields
                .split(' ')
                .nth(field)
                .context("stat is short")?
                .parse()
                .context("ticks")
        };
        // Fields 14 and 15 of the man page; the third is the first after the name.
        Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.life != Life::Outlives && self.ended().is_none() {
            let _killed = self.crash();
        }
    }
}

fn read_from(path: &Path, begin: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
