//! The broker under test: `quipu dev` in a process of its own.

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use quipu_proto::v1::{CreateTopicRequest, admin_client::AdminClient};
use tempfile::TempDir;

use crate::load::{self, Client};

/// A data directory and the broker that may run on it. Dropping it kills the broker and removes the directory.
#[derive(Debug)]
pub struct Broker {
    binary: PathBuf,
    directory: TempDir,
    address: String,
    http: String,
    kafka: String,
    child: Option<Child>,
}

impl Broker {
    /// An empty data directory below `base`; nothing runs yet.
    ///
    /// # Errors
    /// Where the directory can't be created.
    pub fn new(binary: &Path, base: &Path) -> Result<Self> {
        Ok(Self {
            binary: binary.to_owned(),
            directory: tempfile::tempdir_in(base)?,
            address: free_address()?,
            http: free_address()?,
            kafka: free_address()?,
            child: None,
        })
    }

    /// Starts the process, without waiting for it to serve.
    ///
    /// # Errors
    /// Where the binary can't be run.
    pub fn spawn(&mut self) -> Result<()> {
        let log = File::create(self.directory.path().join("log"))?;
        let child = Command::new(&self.binary)
            .arg("dev")
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args(["--grpc-listen", &self.address, "--http-listen", &self.http])
            .args(["--kafka-listen", &self.kafka])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// A running broker on an empty directory, ready to serve.
    ///
    /// # Errors
    /// Where it ends instead of serving.
    pub async fn start(binary: &Path, base: &Path) -> Result<Self> {
        let mut broker = Self::new(binary, base)?;
        broker.spawn()?;
        broker.connect().await?;
        Ok(broker)
    }

    /// Connects, trying again until the broker serves.
    ///
    /// # Errors
    /// Where it has ended.
    pub async fn connect(&mut self) -> Result<Client> {
        loop {
            if let Ok(client) = load::connect(&self.address).await {
                return Ok(client);
            }
            self.must_run()?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Creates a topic, trying again while the broker is coming up.
    ///
    /// # Errors
    /// Where the broker refuses for another reason, or has ended.
    pub async fn create_topic(&mut self, name: &str, partitions: u32) -> Result<()> {
        self.create_topic_with(name, partitions, &[]).await
    }

    /// The same with settings.
    ///
    /// # Errors
    /// As [`Broker::create_topic`].
    pub async fn create_topic_with(
        &mut self,
        name: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        let mut admin = AdminClient::connect(format!("http://{}", self.address)).await?;
        let settings = settings.iter();
        let settings = settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            config: settings.collect(),
            ..CreateTopicRequest::default()
        };
        loop {
            match admin.create_topic(request.clone()).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == tonic::Code::Unavailable => {}
                Err(status) => bail!("creating {name}: {}", status.message()),
            }
            self.must_run()?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Host and port of its gRPC listener.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Host and port of its listener for Kafka clients.
    pub fn kafka_address(&self) -> &str {
        &self.kafka
    }

    /// What `/metrics` says of a metric without labels.
    ///
    /// # Errors
    /// Where it does not answer, or does not name it.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(&self.http)?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let value = answer
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.with_context(|| format!("no {name} among the metrics"))?;
        Ok(value.parse()?)
    }

    /// Its process id.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn pid(&self) -> Result<u32> {
        match &self.child {
            Some(child) => Ok(child.id()),
            None => bail!("the broker does not run"),
        }
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// Where it can't be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn must_run(&mut self) -> Result<()> {
        let ended = match &mut self.child {
            Some(child) => child.try_wait()?,
            None => bail!("the broker does not run"),
        };
        match ended {
            None => Ok(()),
            Some(status) => {
                let log = std::fs::read_to_string(self.directory.path().join("log"))?;
                bail!("the broker ended with {status}: {log}")
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
