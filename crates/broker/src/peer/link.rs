//! One stream to another node while it stands: what is queued for it, and who waits for which answer.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, stream};
use parking_lot::{Mutex, MutexGuard};
use quipu_model::{LeaderEpoch, PartitionKey};
use quipu_proto::peer::v1::{
    Answer, Answers, Cancel, Hello, Led, Request, Requests, answer, request::Kind,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};

use super::{LANE_BYTES, LANE_CALLS, TARGET_BYTES, convert::to_group, frame::encode_requests};

/// How long a heartbeat waits for those of other groups.
const LINGER: Duration = Duration::from_millis(10);
/// How many groups led are told in one message.
const LED_PER_MESSAGE: usize = 8192;

/// A request's share of what may be queued and unanswered, held until it was sent and answered.
pub(super) type Room = Arc<OwnedSemaphorePermit>;

#[derive(Debug)]
struct Queued {
    request: Request,
    cost: usize,
    /// A cancellation takes none.
    room: Option<Room>,
}

/// An open call.
#[derive(Debug)]
struct Slot {
    answers: mpsc::UnboundedSender<answer::Kind>,
    /// Requests so far, those among them that the socket took, and those that were answered.
    queued: u64,
    sent: u64,
    answered: u64,
    /// What the peer calls it, once it may have heard of it.
    number: Option<u64>,
    /// Since when an answer is due.
    due_since: Instant,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Queued>,
    /// Until when the queue may wait for more; `None`: it goes at once.
    patience: Option<Instant>,
    led: HashMap<PartitionKey, LeaderEpoch>,
    calls: HashMap<u64, Slot>,
    last_call: u64,
    /// The calls that the peer may have heard of, by their numbers on the wire.
    numbers: HashMap<u64, u64>,
    last_number: u64,
    /// When the socket last took something.
    moved_at: Instant,
    broken: Option<Arc<str>>,
}

#[derive(Debug)]
pub(super) struct Link {
    state: Mutex<State>,
    wake: Notify,
    /// How many bytes of requests may be queued or unanswered.
    lane_bytes: usize,
    room: Arc<Semaphore>,
}

/// Whether a request may wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// For [`LINGER`].
    Lingers,
    AtOnce,
}

/// A message on its way to the socket.
#[derive(Debug, Default)]
struct Outgoing {
    pieces: VecDeque<Bytes>,
    /// Whose requests are in it, one for each.
    calls: Vec<u64>,
    rooms: Vec<Room>,
}

impl Link {
    pub(super) fn new(lane_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                patience: None,
                led: HashMap::new(),
                calls: HashMap::new(),
                last_call: 0,
                numbers: HashMap::new(),
                last_number: 0,
                moved_at: Instant::now(),
                broken: None,
            }),
            wake: Notify::new(),
            lane_bytes,
            room: Arc::new(Semaphore::new(lane_bytes)),
        })
    }

    /// Ends the link: every open call is told `reason`.
    pub(super) fn close(&self, reason: &str) {
        let mut state = self.state.lock();
        state.broken.get_or_insert_with(|| reason.into());
        state.calls.clear();
        state.queue.clear();
        drop(state);
        self.room.close();
        self.wake.notify_one();
    }

    fn why_broken(&self) -> String {
        let state = self.state.lock();
        let broken = state.broken.as_deref();
        format!("the link broke: {}", broken.unwrap_or("it was given up"))
    }

    /// Waits until so many bytes may be queued; for more than the lane holds, until it holds nothing.
    ///
    /// # Errors
    /// Where the link is broken, or no lane could hold as many.
    pub(super) async fn room(&self, cost: usize) -> Result<Room, String> {
        let permits = u32::try_from(cost.min(self.lane_bytes))
            .ok()
            .filter(|_| cost <= LANE_BYTES)
            .ok_or_else(|| {
                format!("a request of {cost} bytes, where a link holds {LANE_BYTES} at most")
            })?;
        let permit = Arc::clone(&self.room).acquire_many_owned(permits).await;
        permit.map(Arc::new).map_err(|_| self.why_broken())
    }

    /// Tells the other node of groups that this one leads.
    pub(super) fn announce(&self, led: &[(PartitionKey, LeaderEpoch)]) {
        let mut state = self.state.lock();
        for (key, epoch) in led {
            let newest = state.led.entry(*key).or_insert(*epoch);
            *newest = (*newest).max(*epoch);
        }
        state.patience = None;
        drop(state);
        self.wake.notify_one();
    }

    /// Opens a call, of which the peer hears with its first request.
    ///
    /// # Errors
    /// Where the link is broken, or carries too many calls.
    pub(super) fn call(self: &Arc<Self>) -> Result<Call, String> {
        let (sender, answers) = mpsc::unbounded_channel();
        let mut state = self.state.lock();
        if state.broken.is_some() {
            drop(state);
            return Err(self.why_broken());
        }
        if state.calls.len() >= LANE_CALLS {
            return Err(format!("{LANE_CALLS} calls are open on the link"));
        }
        state.last_call += 1;
        let id = state.last_call;
        let slot = Slot {
            answers: sender,
            queued: 0,
            sent: 0,
            answered: 0,
            number: None,
            due_since: Instant::now(),
        };
        state.calls.insert(id, slot);
        drop(state);
        Ok(Call {
            link: Arc::clone(self),
            id,
            answers,
        })
    }

    fn queue(&self, mut state: MutexGuard<'_, State>, queued: Queued, haste: Haste) {
        state.patience = match haste {
            Haste::AtOnce => None,
            Haste::Lingers if state.queue.is_empty() && state.led.is_empty() => {
                Some(Instant::now() + LINGER)
            }
            Haste::Lingers => state.patience,
        };
        state.queue.push_back(queued);
        drop(state);
        self.wake.notify_one();
    }

    /// The body of the stream: `hello`, then what is queued.
    pub(super) fn body(self: &Arc<Self>, hello: Hello) -> impl Stream<Item = Bytes> + use<> {
        let first = Requests {
            hello: Some(hello),
            ..Requests::default()
        };
        let current = Outgoing {
            pieces: encode_requests(&first),
            ..Outgoing::default()
        };
        stream::unfold((Arc::clone(self), current), |(link, mut current)| async {
            if current.pieces.is_empty() {
                link.took(&std::mem::take(&mut current.calls));
                // Its rooms are free before the next message is waited for.
                drop(current);
                current = link.outgoing().await?;
            }
            let piece = current.pieces.pop_front()?;
            link.state.lock().moved_at = Instant::now();
            Some((piece, (link, current)))
        })
    }

    /// What is queued, as soon as anything is that need not wait; `None` once the link is broken.
    async fn outgoing(&self) -> Option<Outgoing> {
        loop {
            let patience = {
                let mut state = self.state.lock();
                if state.broken.is_some() {
                    return None;
                }
                let idle = state.queue.is_empty() && state.led.is_empty();
                let patience = state.patience.filter(|until| *until > Instant::now());
                if !idle && patience.is_none() {
                    let message = state.take();
                    if !message.pieces.is_empty() {
                        return Some(message);
                    }
                    continue;
                }
                patience.filter(|_| !idle)
            };
            match patience {
                None => self.wake.notified().await,
                Some(until) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    /// The socket took a message whole.
    fn took(&self, calls: &[u64]) {
        let now = Instant::now();
        let mut state = self.state.lock();
        for call in calls {
            if let Some(slot) = state.calls.get_mut(call) {
                if slot.sent <= slot.answered {
                    slot.due_since = now;
                }
                slot.sent += 1;
            }
        }
    }

    /// Hands answers to whoever waits for them.
    ///
    /// # Errors
    /// Where they answer what was not asked.
    pub(super) fn answered(&self, message: Answers) -> Result<(), String> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let state = &mut *state;
        for Answer { call, kind } in message.answers {
            if call > state.last_number {
                return Err(format!("it answered call {call}, which was not made"));
            }
            // Whoever made a call may have given it up meanwhile.
            let Some(id) = state.numbers.get(&call) else {
                continue;
            };
            if let Entry::Occupied(mut slot) = state.calls.entry(*id) {
                let kind = kind.unwrap_or_else(|| answer::Kind::Failed(UNKNOWN_ANSWER.to_owned()));
                if matches!(kind, answer::Kind::Append(_)) {
                    let slot = slot.get_mut();
                    if slot.answered == slot.queued {
                        return Err(format!("it answered call {call} more often than asked"));
                    }
                    slot.answered += 1;
                    slot.due_since = now;
                    // A call that was dropped is no longer in the table.
                    drop(slot.answers.send(kind));
                } else {
                    drop(slot.remove().answers.send(kind));
                    state.numbers.remove(&call);
                }
            }
        }
        Ok(())
    }
}

const UNKNOWN_ANSWER: &str =
    "the answer is of a kind that this version does not know: upgrade this node";

impl State {
    /// A call's number on the wire: given when its first request goes out, since there numbers must go up, and who opened a call
    /// first need not be first to send. `None`: the call is over.
    fn number(&mut self, id: u64) -> Option<u64> {
        let slot = self.calls.get_mut(&id)?;
        if slot.number.is_none() {
            self.last_number += 1;
            slot.number = Some(self.last_number);
            self.numbers.insert(self.last_number, id);
        }
        slot.number
    }

    fn take(&mut self) -> Outgoing {
        let mut message = Requests::default();
        let mut outgoing = Outgoing::default();
        let mut bytes = 0;
        while let Some(next) = self.queue.front() {
            if bytes > 0 && bytes + next.cost > TARGET_BYTES {
                break;
            }
            let Some(mut next) = self.queue.pop_front() else {
                break;
            };
            // A cancellation has its call's number already.
            if !matches!(next.request.kind, Some(Kind::Cancel(_))) {
                let id = next.request.call;
                let Some(number) = self.number(id) else {
                    // Given up, or over.
                    continue;
                };
                next.request.call = number;
                outgoing.calls.push(id);
            }
            bytes += next.cost;
            outgoing.rooms.extend(next.room);
            message.requests.push(next.request);
        }
        let told: Vec<_> = self.led.keys().take(LED_PER_MESSAGE).copied().collect();
        for key in told {
            message.led.extend(self.led.remove(&key).map(|epoch| Led {
                group: Some(to_group(key)),
                leader_epoch: epoch.get(),
            }));
        }
        if self.queue.is_empty() && self.led.is_empty() {
            self.patience = None;
        }
        if !message.requests.is_empty() || !message.led.is_empty() {
            outgoing.pieces = encode_requests(&message);
        }
        outgoing
    }
}

/// A call as the one who made it sees it. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct Call {
    link: Arc<Link>,
    id: u64,
    answers: mpsc::UnboundedReceiver<answer::Kind>,
}

impl Call {
    /// Queues the call's next request, in whose `call` field this call's id is filled in. A call that the peer ended, or
    /// whose link broke, takes no more: its answers tell.
    pub(super) fn send(&self, mut request: Request, cost: usize, room: Room, haste: Haste) {
        request.call = self.id;
        let mut state = self.link.state.lock();
        let Some(slot) = state.calls.get_mut(&self.id) else {
            return;
        };
        if !matches!(request.kind, Some(Kind::End(_))) {
            if slot.queued == slot.answered {
                slot.due_since = Instant::now();
            }
            slot.queued += 1;
        }
        let room = Some(room);
        let queued = Queued {
            request,
            cost,
            room,
        };
        self.link.queue(state, queued, haste);
    }

    /// The next answer.
    ///
    /// # Errors
    /// Where the link broke.
    pub(super) async fn answer(&mut self) -> Result<answer::Kind, String> {
        let answer = self.answers.recv().await;
        answer.ok_or_else(|| self.link.why_broken())
    }

    /// Until when the peer must have answered next, if it takes `timeout` at most; `None` where it owes nothing. As long as
    /// requests queue up before a socket that moves, it cannot answer.
    pub(super) fn deadline(&self, timeout: Duration) -> Option<Instant> {
        let state = self.link.state.lock();
        let slot = state.calls.get(&self.id)?;
        let since = if slot.answered >= slot.queued {
            return None;
        } else if slot.sent > slot.answered {
            slot.due_since
        } else {
            slot.due_since.max(state.moved_at)
        };
        Some(since + timeout)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.link.state.lock();
        let Some(slot) = state.calls.remove(&self.id) else {
            return;
        };
        if let Some(number) = slot.number {
            state.numbers.remove(&number);
            let request = Request {
                call: number,
                kind: Some(Kind::Cancel(Cancel {})),
                ..Request::default()
            };
            let queued = Queued {
                request,
                cost: super::REQUEST_COST,
                room: None,
            };
            // It frees the peer of what it holds; behind what was queued before, so that it meets what it ends.
            self.link.queue(state, queued, Haste::AtOnce);
        }
    }
}
