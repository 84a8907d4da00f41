//! A small TCP proxy that delays or stalls what goes through it: the kernel may have no netem.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;
/// Chunks on their way in one direction of a connection: more is held back, as a full pipe does.
const MOST_CHUNKS: usize = 256;

/// What the proxies of a node do to what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing passes that is not let in: open connections are closed.
    Closed,
    /// Everything is late by this much, and by up to half as much again.
    Delay(Duration),
    /// Connections are taken and nothing moves on them.
    Stall,
}

/// The proxies of one node: one towards each other node.
#[derive(Debug)]
pub(crate) struct Proxies {
    mode: watch::Sender<Mode>,
}

impl Proxies {
    /// Starts them, in a thread that lives in the namespace at `path`. `routes`: from which port to which peer.
    ///
    /// # Errors
    /// Where the namespace can't be entered or a port is taken.
    pub(crate) fn start(path: &str, routes: Vec<(u16, SocketAddr)>) -> Result<Self> {
        let (mode, modes) = watch::channel(Mode::Closed);
        let (report, started) = std::sync::mpsc::channel();
        let namespace = std::fs::File::open(path).with_context(|| path.to_owned())?;
        thread::spawn(move || {
            let listening = enter(&namespace).and_then(|runtime| {
                let listen = routes.into_iter().map(|(port, to)| {
                    let at = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
                    Ok((runtime.block_on(TcpListener::bind(at))?, to))
                });
                let listeners = listen.collect::<Result<Vec<_>>>()?;
                Ok((runtime, listeners))
            });
            let (runtime, listeners) = match listening {
                Ok(listening) => listening,
                Err(error) => return drop(report.send(Err(error))),
            };
            for (listener, to) in listeners {
                runtime.spawn(serve(listener, to, modes.clone()));
            }
            drop(report.send(Ok(())));
            // Until the proxies' owner is gone.
            let mut modes = modes;
            runtime.block_on(async move { while modes.changed().await.is_ok() {} });
        });
        started.recv().context("the proxies' thread ended")??;
        Ok(Self { mode })
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

fn enter(namespace: &std::fs::File) -> Result<tokio::runtime::Runtime> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime)
}

async fn serve(listener: TcpListener, to: SocketAddr, modes: watch::Receiver<Mode>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let mut modes = modes.clone();
        tokio::spawn(async move {
            let closed = modes.clone();
            tokio::select! {
                _ = modes.wait_for(|mode| *mode == Mode::Closed) => {}
                // A connection that breaks is closed on both sides.
                _ = join(client, to, closed) => {}
            }
        });
    }
}

async fn join(client: TcpStream, to: SocketAddr, modes: watch::Receiver<Mode>) -> Result<()> {
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        ended = carry(from_client, to_server, modes.clone()) => ended,
        ended = carry(from_server, to_client, modes) => ended,
    }
}

async fn carry(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
) -> Result<()> {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Arc<[u8]>)>(MOST_CHUNKS);
    let delays = modes.clone();
    let reading = async move {
        let mut chunk = vec![0; CHUNK];
        loop {
            let len = from.read(&mut chunk).await?;
            if len == 0 {
                return anyhow::Ok(());
            }
            let due = Instant::now() + late(*delays.borrow());
            sender.send((due, chunk[..len].into())).await?;
        }
    };
    let writing = async move {
        while let Some((due, chunk)) = chunks.recv().await {
            modes.wait_for(|mode| *mode != Mode::Stall).await?;
            sleep_until(due).await;
            to.write_all(&chunk).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(reading, writing).map(drop)
}

fn late(mode: Mode) -> Duration {
    match mode {
        Mode::Delay(delay) => delay.mul_f64(1.0 + rand::random::<f64>() / 2.0),
        Mode::Closed | Mode::Stall => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, io::Write, net, time::Duration, time::Instant};

    use super::{Mode, Proxies};

    /// Entering a namespace takes rights, also the one that the test is in: without them there is nothing to try.
    #[test]
    fn what_passes_is_late() {
        let server = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let free = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let routes = vec![(port, server.local_addr().unwrap())];
        let Ok(proxies) = Proxies::start("/proc/self/ns/net", routes) else {
            return;
        };
        let delay = Duration::from_millis(50);
        proxies.set(Mode::Delay(delay));
        let began = Instant::now();
        let mut client = net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.write_all(b"knot").unwrap();
        let (mut peer, _) = server.accept().unwrap();
        let mut read = [0; 4];
        peer.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"knot");
        assert!(began.elapsed() >= delay);
        proxies.set(Mode::Closed);
        assert_eq!(client.read(&mut read).unwrap(), 0, "it was closed");
    }
}
