//! A broker process.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{quipu, run};

/// Far more than any start takes, even on a machine that compiles beside it.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// How to start a broker.
#[derive(Debug)]
pub struct Launch {
    data: PathBuf,
    /// The command to run.
    command: &'static str,
    /// Where it listens for gRPC; `None`: anywhere.
    grpc: Option<String>,
    arguments: Vec<String>,
    /// Shell text that runs before the broker, in its process: limits.
    prelude: String,
    log: PathBuf,
}

impl Launch {
    /// `quipu dev` on a data directory; its log goes beside the directory.
    pub fn dev(data: &Path) -> Self {
        Self {
            data: data.to_owned(),
            command: "dev",
            grpc: None,
            arguments: Vec::new(),
            prelude: String::new(),
            log: data.with_extension("log"),
        }
    }

    /// `quipu server`, a node of a cluster that listens where the others expect it.
    pub fn server(data: &Path, node: u64, grpc: &str) -> Self {
        Self {
            command: "server",
            grpc: Some(grpc.to_owned()),
            ..Self::dev(data)
        }
        .argument("--node-id")
        .argument(&node.to_string())
    }

    /// Puts the log elsewhere.
    pub fn log(mut self, path: &Path) -> Self {
        self.log = path.to_owned();
        self
    }

    /// Runs shell text first, in the broker's own process.
    pub fn prelude(mut self, shell: &str) -> Self {
        self.prelude = shell.to_owned();
        self
    }

    /// Adds an argument.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// Where it ends instead; the error holds what it said.
    pub fn start(self) -> Result<Broker> {
        let mut broker = self.spawn()?;
        broker.wait_ready()?;
        Ok(broker)
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// Where the process can't be created.
    pub fn spawn(self) -> Result<Broker> {
        let grpc = match self.grpc {
            Some(grpc) => grpc,
            None => free_address()?,
        };
        let http = free_address()?;
        let kafka = free_address()?;
        let log = File::create(&self.log)?;
        let child = Command::new("sh")
            .arg("-c")
            .arg(format!("{}\nexec \"$0\" \"$@\"", self.prelude))
            .arg(quipu())
            .arg(self.command)
            .arg("--data-dir")
            .arg(&self.data)
            .args(["--grpc-listen", &grpc, "--http-listen", &http])
            .args(["--kafka-listen", &kafka])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Broker {
            child,
            grpc,
            http,
            kafka,
            log: self.log,
        })
    }
}

/// A running broker; dropping it kills it.
#[derive(Debug)]
pub struct Broker {
    child: Child,
    grpc: String,
    http: String,
    kafka: String,
    log: PathBuf,
}

impl Broker {
    /// Waits until it is ready.
    ///
    /// # Errors
    /// Where it ends instead; the error holds what it said.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}: {}", self.log()?);
            }
            ensure!(
                Instant::now() < deadline,
                "it was never ready: {}",
                self.log()?
            );
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Host and port of its gRPC listener.
    pub fn grpc(&self) -> &str {
        &self.grpc
    }

    /// Host and port of its Kafka listener.
    pub fn kafka(&self) -> &str {
        &self.kafka
    }

    /// All that it has said.
    ///
    /// # Errors
    /// Where its log can't be read.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    /// Runs a client command against it.
    ///
    /// # Errors
    /// Where it can't be started.
    pub fn client(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        run(
            Command::new(quipu())
                .args(arguments)
                .env("QUIPU_BROKER", &self.grpc),
            input,
        )
    }

    /// Runs a client command that must succeed, and gives what it printed.
    ///
    /// # Errors
    /// Where it fails.
    pub fn succeed(&self, arguments: &[&str], input: &[u8]) -> Result<String> {
        let output = self.client(arguments, input)?;
        ensure!(
            output.status.success(),
            "quipu {arguments:?} failed with {}: {}; the broker said: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log()?
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Asks it to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        let status = Command::new("kill")
            .arg(self.child.id().to_string())
            .status()?;
        ensure!(status.success(), "it was gone already");
        self.wait()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// Where it does not.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "it never ended: {}", self.log()?);
            thread::sleep(POLL);
        }
    }

    /// Kills it (SIGKILL).
    ///
    /// # Errors
    /// Where it can't be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// The most memory of its own (not pages of mapped files) that it holds now, in bytes.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn anonymous_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"))
            .context("no RssAnon")?;
        let kib = line.split_whitespace().next().context("no number")?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    fn is_ready(&self) -> bool {
        http_get(&self.http, "/readyz").is_ok_and(|answer| is_ok(&answer))
    }

    /// Waits until it is not ready, and says something with `reason` for it.
    ///
    /// # Errors
    /// Where it ends, or never says so.
    pub fn wait_unready(&mut self, reason: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            ensure!(!self.has_ended()?, "it ended: {}", self.log()?);
            let answer = http_get(&self.http, "/readyz").unwrap_or_default();
            if !is_ok(&answer) && answer.contains(reason) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "it says {answer:?}: {}",
                self.log()?
            );
            thread::sleep(POLL);
        }
    }

    /// What `/metrics` says of a metric, all of its lines; 0 where it does not name it.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let answer = http_get(&self.http, "/metrics")?;
        let values = answer.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labelled) => labelled.rsplit_once("} ")?.1,
                None => rest.strip_prefix(' ')?,
            };
            value.parse::<f64>().ok()
        });
        Ok(values.sum())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ok(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 ")
}

fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// An address that nobody listened on a moment ago. Its port is below those that the system gives to outgoing connections, of
/// which a cluster makes many: one of them could have it by the time that a broker listens.
pub(crate) fn free_address() -> Result<String> {
    const PORTS: std::ops::Range<u32> = 20_000..32_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = std::process::id().wrapping_mul(101).wrapping_add(next);
        let port = PORTS.start + place % (PORTS.end - PORTS.start);
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port of {PORTS:?} is free")
}
