//! What a broker does with what is not the Kafka protocol, or lies: it closes the connection, says why in its log, and takes no
//! memory for what was only announced.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use quipu_tests::{Broker, Launch, scratch};

/// Requests of which only the head comes.
const ANNOUNCED: usize = 200;
const ANNOUNCED_BYTES: u32 = 1 << 20;
/// What they may make the broker take, in bytes.
const MEMORY_BOUND: u64 = 64 << 20;

fn send(broker: &Broker, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(broker.kafka())?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(bytes)?;
    Ok(stream)
}

#[allow(
    clippy::disallowed_methods,
    reason = "between two looks at another process's log there is nothing to wait on"
)]
fn wait_said(broker: &Broker, words: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let log = broker.log()?;
        let mut lines = log.lines();
        if lines.any(|line| line.contains("a Kafka connection was closed") && line.contains(words))
        {
            return Ok(());
        }
        ensure!(Instant::now() < end, "nothing like {words:?} in:\n{log}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_is_not_the_protocol_is_closed_with_a_line_in_the_log() -> Result<()> {
    let directory = scratch()?;
    let mut broker = Launch::dev(&directory.path().join("data")).start()?;
    let bad: [(&[u8], &str); 6] = [
        (&[0x16, 3, 1, 2, 0, 1, 0, 1], "it speaks TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "it speaks HTTP"),
        (
            &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 9],
            "says that it has 2147483647 bytes",
        ),
        (
            &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9],
            "says that it has -1 bytes",
        ),
        // An unknown key.
        (&[0, 0, 0, 10, 0x7f, 0xff, 0, 0, 0, 0, 0, 1, 0, 0], "32767"),
        // Metadata of more topics than the request has bytes for.
        (
            &[
                0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff,
            ],
            "",
        ),
    ];
    for (bytes, words) in bad {
        let mut stream = send(&broker, bytes)?;
        let mut answer = Vec::new();
        // A reset is an end too.
        let _ = stream.read_to_end(&mut answer);
        ensure!(answer.is_empty(), "{bytes:?} was answered: {answer:?}");
        wait_said(&broker, words)?;
    }
    ensure!(!broker.has_ended()?, "it ended");
    Ok(())
}

#[test]
fn what_is_only_announced_takes_no_memory() -> Result<()> {
    let directory = scratch()?;
    let broker = Launch::dev(&directory.path().join("data")).start()?;
    broker.succeed(&["topic", "create", "orders"], b"")?;
    broker.succeed(&["produce", "orders"], b"before\n")?;
    let before = broker.anonymous_bytes()?;
    let mut head = ANNOUNCED_BYTES.to_be_bytes().to_vec();
    // Produce, in a version that is served.
    head.extend([0, 0, 0, 9, 0, 0, 0, 1]);
    let held: Vec<_> = (0..ANNOUNCED)
        .map(|_| send(&broker, &head))
        .collect::<Result<_>>()?;
    // Whoever comes through another door is served meanwhile.
    broker.succeed(&["produce", "orders"], b"meanwhile\n")?;
    let grown = broker.anonymous_bytes()?.saturating_sub(before);
    ensure!(grown < MEMORY_BOUND, "they made it take {grown} bytes");
    drop(held);
    let read = broker.succeed(&["consume", "orders", "--format", "raw"], b"")?;
    ensure!(read == "before\nmeanwhile\n", "{read:?}");
    Ok(())
}
