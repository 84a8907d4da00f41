//! Passing over messages that were handled before.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{Envelope, Failure, Handler, Work};

/// A message's id; `None` where it has none.
type IdOf = Box<dyn Fn(&Work) -> Option<Bytes> + Send + Sync>;

/// A handler that handles each message once, as long as its id is among the last so many: what a producer, a relay or a redrive sent
/// twice is passed over. A message without an id is always handled.
///
/// What it remembers is this process's: after a restart, or when a partition went to another member, the records since the last stored
/// offset are handled again. Where that must not be, store the id together with the effect, in one transaction.
#[derive(Debug)]
pub struct Once<H> {
    handler: H,
    id_of: IdBox,
    seen: Mutex<Seen>,
}

struct IdBox(IdOf);

impl std::fmt::Debug for IdBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdOf")
    }
}

impl<H: Handler> Once<H> {
    /// Remembers the last `window` messages by source and id of their [`Envelope`].
    pub fn by_envelope(window: usize, handler: H) -> Self {
        Self::by(window, handler, |work| {
            let envelope = Envelope::from_headers(&work.record.headers).ok()?;
            // Neither may contain a line break and mean something by it.
            Some(format!("{}\n{}", envelope.source, envelope.id).into())
        })
    }

    /// Remembers the last `window` messages by an id that is found so.
    pub fn by(
        window: usize,
        handler: H,
        id_of: impl Fn(&Work) -> Option<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self {
            handler,
            id_of: IdBox(Box::new(id_of)),
            seen: Mutex::new(Seen::new(window)),
        }
    }
}

impl<H: Handler> Handler for Once<H> {
    async fn handle(&self, work: Arc<Work>) -> Result<(), Failure> {
        let Some(id) = (self.id_of.0)(&work) else {
            return self.handler.handle(work).await;
        };
        let begun = self.seen.lock().begin(&id);
        match begun {
            Begun::Before => return Ok(()),
            Begun::Elsewhere => {
                return Err(Failure::transient(
                    "a message with the same id is being worked on",
                ));
            }
            Begun::Now => {}
        }
        let mut turn = Turn {
            seen: &self.seen,
            id,
            handled: false,
        };
        self.handler.handle(work).await?;
        turn.handled = true;
        Ok(())
    }
}

/// Ends even where the handler panics or is given up.
struct Turn<'a> {
    seen: &'a Mutex<Seen>,
    id: Bytes,
    handled: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.seen.lock().end(&self.id, self.handled);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Begun {
    Now,
    /// It was handled already.
    Before,
    /// It is being handled.
    Elsewhere,
}

/// The last so many ids.
#[derive(Debug)]
struct Seen {
    window: usize,
    handled: HashSet<Bytes>,
    order: VecDeque<Bytes>,
    busy: HashSet<Bytes>,
}

impl Seen {
    fn new(window: usize) -> Self {
        Self {
            window,
            handled: HashSet::new(),
            order: VecDeque::new(),
            busy: HashSet::new(),
        }
    }

    fn begin(&mut self, id: &Bytes) -> Begun {
        if self.handled.contains(id) {
            return Begun::Before;
        }
        match self.busy.insert(id.clone()) {
            true => Begun::Now,
            false => Begun::Elsewhere,
        }
    }

    fn end(&mut self, id: &Bytes, handled: bool) {
        self.busy.remove(id);
        if !handled {
            return;
        }
        // A slice of a message would keep all of it in memory.
        let id = Bytes::copy_from_slice(id);
        self.handled.insert(id.clone());
        self.order.push_back(id);
        if self.order.len() > self.window
            && let Some(oldest) = self.order.pop_front()
        {
            self.handled.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Begun, Seen};

    #[test]
    fn an_id_is_handled_once_within_the_window_and_again_after_it_failed() {
        let mut seen = Seen::new(2);
        let ids: [Bytes; 3] = ["a", "b", "c"].map(Bytes::from);
        assert_eq!(seen.begin(&ids[0]), Begun::Now);
        assert_eq!(seen.begin(&ids[0]), Begun::Elsewhere);
        seen.end(&ids[0], false);
        assert_eq!(seen.begin(&ids[0]), Begun::Now);
        seen.end(&ids[0], true);
        assert_eq!(seen.begin(&ids[0]), Begun::Before);
        for id in &ids[1..] {
            assert_eq!(seen.begin(id), Begun::Now);
            seen.end(id, true);
        }
        assert_eq!(seen.begin(&ids[0]), Begun::Now, "two came behind it");
        assert_eq!(seen.begin(&ids[1]), Begun::Before);
    }
}
