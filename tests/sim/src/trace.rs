//! What happened, in order: a fingerprint of all of it, and its last lines.

use std::{collections::VecDeque, fmt, fmt::Write as _, io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many lines are kept.
const TAIL: usize = 400;

/// The trace of a run. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    inner: Arc<Mutex<Inner>>,
    start: Instant,
    print: bool,
}

#[derive(Debug)]
struct Inner {
    tail: VecDeque<String>,
    events: u64,
    /// When the last event was.
    at: Duration,
    /// FNV-1a over every line.
    fingerprint: u64,
}

impl Trace {
    /// Begins now; `print` shows every line on standard error as well.
    pub(crate) fn new(print: bool) -> Self {
        let inner = Inner {
            tail: VecDeque::new(),
            events: 0,
            at: Duration::ZERO,
            fingerprint: 0xcbf2_9ce4_8422_2325,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            start: Instant::now(),
            print,
        }
    }

    pub(crate) fn note(&self, event: fmt::Arguments<'_>) {
        let at = self.start.elapsed();
        let mut inner = self.inner.lock();
        let mut line = if inner.tail.len() < TAIL {
            String::new()
        } else {
            inner.tail.pop_front().unwrap_or_default()
        };
        line.clear();
        // Writing to a string does not fail.
        let _ = write!(line, "{:>10.3} {event}", at.as_secs_f64() * 1000.0);
        for byte in line.bytes() {
            inner.fingerprint = (inner.fingerprint ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if self.print {
            eprintln!("{line}");
        }
        inner.events += 1;
        inner.at = at;
        inner.tail.push_back(line);
    }

    /// When the last event was, in simulated time.
    pub(crate) fn at(&self) -> Duration {
        self.inner.lock().at
    }

    pub(crate) fn events(&self) -> u64 {
        self.inner.lock().events
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.inner.lock().fingerprint
    }

    pub(crate) fn tail(&self) -> Vec<String> {
        self.inner.lock().tail.iter().cloned().collect()
    }
}

/// What the code under test logs goes into the trace.
impl io::Write for Trace {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.note(format_args!(
            "log {}",
            String::from_utf8_lossy(line).trim_end()
        ));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

macro_rules! note {
    ($trace:expr, $($arg:tt)*) => { $trace.note(format_args!($($arg)*)) };
}
pub(crate) use note;
