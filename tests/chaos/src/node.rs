//! A broker process and what it stands on.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{disk::Disk, network, proxy::Proxies};

const POLL: Duration = Duration::from_millis(10);
/// How long a broker may take to end when asked.
const STOPPING: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u8,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) disk: Option<Disk>,
    pub(crate) proxies: Option<Proxies>,
    /// In a network namespace of its own.
    pub(crate) isolated: bool,
    /// The directory that everything of this node is in.
    pub(crate) home: PathBuf,
    /// `--voters …` or `--join …`.
    pub(crate) membership: [String; 2],
    /// The library through which its clock can be set.
    pub(crate) clock: Option<PathBuf>,
    pub(crate) process: Option<Child>,
    pub(crate) stopped: bool,
}

impl Node {
    pub(crate) fn data(&self) -> PathBuf {
        match &self.disk {
            Some(disk) => disk.data(),
            None => self.home.join("data"),
        }
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Starts the broker, without waiting for it.
    ///
    /// # Errors
    /// Where the process can't be created.
    pub(crate) fn start(&mut self, quipu: &Path) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = match self.isolated {
            true => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", network::namespace(self.id)));
                command.arg(quipu);
                command
            }
            false => Command::new(quipu),
        };
        if let Some(library) = &self.clock {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", self.clock_path())
                .env("FAKETIME_CACHE_DURATION", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let child = command
            .args(["server", "--node-id", &self.id.to_string(), "--data-dir"])
            .arg(self.data())
            .args(&self.membership)
            .args(["--grpc-listen", &self.grpc.to_string()])
            .args(["--http-listen", &self.http.to_string()])
            .args(["--kafka-listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.process = Some(child);
        self.stopped = false;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().context("it does not run")?;
        let pid = Pid::from_child(process);
        kill_process(pid, signal).with_context(|| format!("signalling node {}", self.id))
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.kill()?;
        process.wait()?;
        self.stopped = false;
        Ok(())
    }

    /// Holds it where it is.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.stopped = true;
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where the system refuses.
    pub(crate) fn go_on(&mut self) -> Result<()> {
        if self.stopped {
            self.signal(Signal::CONT)?;
            self.stopped = false;
        }
        Ok(())
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// Where it does not end in time.
    pub(crate) fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut process = self.process.take().context("it does not run")?;
        let deadline = Instant::now() + STOPPING;
        loop {
            if let Some(status) = process.try_wait()? {
                return Ok(status);
            }
            let late = Instant::now() > deadline;
            if late {
                process.kill()?;
                process.wait()?;
            }
            ensure!(
                !late,
                "node {} did not end within {STOPPING:?} of being asked",
                self.id
            );
            thread::sleep(POLL);
        }
    }

    /// How it ended, if it did so by itself.
    ///
    /// # Errors
    /// Where the system does not say.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(process) = &mut self.process else {
            return Ok(None);
        };
        let status = process.try_wait()?;
        if status.is_some() {
            self.process = None;
        }
        Ok(status)
    }

    /// Sets its clock so many seconds beside the true time.
    ///
    /// # Errors
    /// Where the file that holds it can't be written.
    pub(crate) fn set_clock(&self, seconds: i64) -> Result<()> {
        let text = format!("{seconds:+}\n");
        fs::write(self.clock_path(), text).map_err(Into::into)
    }

    fn clock_path(&self) -> PathBuf {
        self.home.join("clock")
    }

    /// Whether it says that it serves.
    pub(crate) fn is_ready(&self) -> bool {
        let ask = || -> Result<String> {
            let wait = Duration::from_secs(1);
            let mut stream = TcpStream::connect_timeout(&self.http, wait)?;
            stream.set_read_timeout(Some(wait))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        ask().is_ok_and(|answer| answer.ends_with(" 200"))
    }

    /// The lines of its log that say that it panicked.
    ///
    /// # Errors
    /// Where the log can't be read.
    pub(crate) fn panics(&self) -> Result<Vec<String>> {
        let log = fs::read(self.log_path())?;
        let log = String::from_utf8_lossy(&log);
        let panics = log.lines().filter(|line| line.contains("panicked at"));
        Ok(panics.map(str::to_owned).collect())
    }

    /// What it said last.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        log.lines().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What waits for a frozen disk could not end. The disk itself is unmounted after this.
        if let Some(disk) = &mut self.disk {
            let _ = disk.heal();
        }
        let _ = self.kill();
    }
}
