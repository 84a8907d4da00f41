//! Keeping a link to another node: dialled, greeted, used until it breaks, dialled again.

use std::{io, sync::Arc, time::Duration};

use futures::StreamExt;
use http_body::Frame;
use http_body_util::StreamBody;
use parking_lot::Mutex;
use quipu_model::NodeId;
use quipu_proto::peer::v1::Answers;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::ServiceExt;

use super::{
    Host, causes,
    frame::{Messages, StreamError, refusal},
    hello::{check, greet},
    link::Link,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// A machine that died says nothing: it is found out by its not answering a ping, in about the time in which a leader that is
/// awake is replaced. Sleeping groups learn by this that theirs is lost.
const PING_INTERVAL: Duration = Duration::from_millis(500);
const PING_TIMEOUT: Duration = Duration::from_secs(1);
const FRAME_BYTES: u32 = 1 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

pub(super) const PATH: &str = "/quipu.peer.v1.Peer/Link";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// For what must not wait behind records.
    Control,
    Data,
    /// For what a replica lacks of older records.
    Copies,
}

impl Lane {
    pub(super) const ALL: [Self; 3] = [Self::Control, Self::Data, Self::Copies];
}

#[derive(Debug, Default)]
struct Standing {
    control: Option<Arc<Link>>,
    data: Option<Arc<Link>>,
    copies: Option<Arc<Link>>,
    /// Why there is none, as it was last logged.
    trouble: Option<String>,
    /// It was linked to, and has not been found gone since.
    lives: bool,
}

impl Standing {
    fn lane(&mut self, lane: Lane) -> &mut Option<Arc<Link>> {
        match lane {
            Lane::Control => &mut self.control,
            Lane::Data => &mut self.data,
            Lane::Copies => &mut self.copies,
        }
    }

    /// Whether there is what a group needs to go on.
    fn whole(&self) -> bool {
        self.control.is_some() && self.data.is_some()
    }
}

/// Why there is no link.
#[derive(Debug)]
struct Unlinked {
    reason: String,
    /// The machine there says so: the process has ended.
    nobody_listens: bool,
}

impl<S: Into<String>> From<S> for Unlinked {
    fn from(reason: S) -> Self {
        Self {
            reason: reason.into(),
            nobody_listens: false,
        }
    }
}

/// Another node, and the links to it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) address: String,
    pub(super) stop: CancellationToken,
    host: Arc<dyn Host>,
    lane_bytes: usize,
    standing: Mutex<Standing>,
}

impl Peer {
    pub(super) fn new(
        node: NodeId,
        address: String,
        stop: CancellationToken,
        host: Arc<dyn Host>,
        lane_bytes: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            address,
            stop,
            host,
            lane_bytes,
            standing: Mutex::default(),
        })
    }

    /// The lane's link.
    ///
    /// # Errors
    /// Where there is none at this moment.
    pub(super) fn link(&self, lane: Lane) -> Result<Arc<Link>, String> {
        let mut standing = self.standing.lock();
        match standing.lane(lane) {
            Some(link) => Ok(Arc::clone(link)),
            None => Err(match &standing.trouble {
                Some(trouble) => format!("there is no link to it: {trouble}"),
                None => "there is no link to it yet".to_owned(),
            }),
        }
    }

    /// Keeps one lane's link until the peer is no longer wanted.
    pub(super) async fn keep(self: Arc<Self>, lane: Lane) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            never = self.redial(lane) => match never {},
        }
        self.end();
    }

    async fn redial(&self, lane: Lane) -> std::convert::Infallible {
        let mut pause = FIRST_PAUSE;
        loop {
            let began = Instant::now();
            let trouble = match self.dial().await {
                Ok((link, messages)) => {
                    self.raise(lane, &link);
                    let trouble = receive(&link, messages).await;
                    self.lower(lane, &trouble);
                    trouble
                }
                Err(unlinked) => {
                    if unlinked.nobody_listens {
                        self.mourn();
                    }
                    unlinked.reason
                }
            };
            self.complain(trouble);
            if began.elapsed() > 2 * LAST_PAUSE {
                pause = FIRST_PAUSE;
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Ends the links, and lets no more be made. When it returns, the host has heard that they are down.
    pub(super) fn end(&self) {
        self.stop.cancel();
        for lane in Lane::ALL {
            self.lower(lane, "this node no longer keeps it");
        }
    }

    fn raise(&self, lane: Lane, link: &Arc<Link>) {
        let mut standing = self.standing.lock();
        if self.stop.is_cancelled() {
            return;
        }
        *standing.lane(lane) = Some(Arc::clone(link));
        if standing.whole() && lane != Lane::Copies {
            standing.trouble = None;
            standing.lives = true;
            // Under the lock: the host hears of ups and downs in their order.
            self.host.peer_up(self.node, true);
            tracing::info!(node = %self.node, address = %self.address, "linked to a node");
        }
        drop(standing);
        if lane == Lane::Control {
            // What began to be led since the link was in its place was announced on it.
            link.announce(&self.host.led());
        }
    }

    fn lower(&self, lane: Lane, reason: &str) {
        let mut standing = self.standing.lock();
        let stood = standing.whole();
        let link = standing.lane(lane).take();
        if stood && !standing.whole() {
            self.host.peer_up(self.node, false);
        }
        drop(standing);
        if let Some(link) = link {
            link.close(reason);
        }
    }

    /// Tells, once, that a process that was linked to has ended.
    fn mourn(&self) {
        let lived = std::mem::take(&mut self.standing.lock().lives);
        if lived {
            tracing::warn!(node = %self.node, address = %self.address, "the process of a node has ended");
            self.host.peer_gone(self.node);
        }
    }

    fn complain(&self, trouble: String) {
        let mut standing = self.standing.lock();
        if standing.trouble.as_ref() != Some(&trouble) {
            tracing::warn!(node = %self.node, address = %self.address, %trouble, "no link to a node");
            standing.trouble = Some(trouble);
        }
    }

    async fn dial(&self) -> Result<(Arc<Link>, Messages), Unlinked> {
        let channel = self.connect().await?;
        let own = self.host.identity();
        let link = Link::new(self.lane_bytes);
        let body = link.body(greet(&own, self.node));
        let body = StreamBody::new(body.map(|piece| Ok::<_, Status>(Frame::data(piece))));
        let greeting = async {
            let mut messages = Messages::new(open(channel, Body::new(body)).await?);
            let answer: Option<Answers> = messages.next().await?;
            Ok::<_, StreamError>((answer.and_then(|answer| answer.hello), messages))
        };
        let greeted = timeout(HELLO_TIMEOUT, greeting).await;
        let (hello, messages) = greeted
            .map_err(|_| format!("it did not say hello within {HELLO_TIMEOUT:?}"))?
            .map_err(|error| {
                let reason = error.to_string();
                if let StreamError::Refused(_) = error {
                    self.host.refused(self.node, &reason);
                }
                reason
            })?;
        let peer = check(hello, &own)?;
        if peer.node != self.node {
            let (found, wanted) = (peer.node, self.node);
            return Err(format!(
                "node {found} answers at the address of node {wanted}: correct the address"
            )
            .into());
        }
        self.host.admit(&peer)?;
        Ok((link, messages))
    }

    async fn connect(&self) -> Result<Channel, Unlinked> {
        let address = &self.address;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("{address:?} is not an address ({error}): write host:port"))?;
        endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(|error| Unlinked {
                reason: causes(&error),
                nobody_listens: is_refused(&error),
            })
    }
}

/// Whether a connection was refused, as it is where no process listens.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut causes = causes.filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::ConnectionRefused)
}

/// Opens the stream; the answer's body.
async fn open(channel: Channel, body: Body) -> Result<Body, StreamError> {
    let request = http::Request::post(PATH)
        .version(http::Version::HTTP_2)
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(body)
        .map_err(|error| StreamError::Lost(error.to_string()))?;
    let response = channel.oneshot(request).await;
    let response = response.map_err(|error| StreamError::Lost(causes(&error)))?;
    match refusal(response.headers()) {
        Some(refusal) => Err(refusal),
        _ if response.status() != http::StatusCode::OK => Err(StreamError::Lost(format!(
            "it answers with HTTP status {}: is it a broker?",
            response.status()
        ))),
        _ => Ok(response.into_body()),
    }
}

/// Hands out answers until the link breaks; why it did.
async fn receive(link: &Link, mut messages: Messages) -> String {
    loop {
        match messages.next::<Answers>().await {
            Ok(Some(answers)) => {
                if let Err(error) = link.answered(answers) {
                    return error;
                }
            }
            Ok(None) => return "it ended the link".to_owned(),
            Err(error) => return error.to_string(),
        }
    }
}
