//! The process's randomness comes from the seed.
//!
//! Hash maps, tokio's choice between branches that are ready, openraft's election timeouts and random ids all begin with the
//! system's `getrandom`. Here it is answered from the seed, so that code that knows nothing of a simulation repeats itself.
#![allow(
    unsafe_code,
    reason = "the system's call can only be replaced by a symbol of its name, which writes to memory that its caller names"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use crate::luck::Luck;

static STATE: AtomicU64 = AtomicU64::new(0);

/// Begins the process's randomness anew. What a thread has drawn from it before stays: call it first, then start a thread.
pub(crate) fn seed(seed: u64) {
    STATE.store(seed, Ordering::Relaxed);
}

/// Answers in place of the system.
///
/// # Safety
/// `buffer` is valid for writes of `len` bytes, as the system's own call demands.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, _flags: u32) -> isize {
    let mut luck = Luck::new(STATE.load(Ordering::Relaxed));
    for at in 0..len {
        // SAFETY: `at` is below `len`, and the caller vouches for that many bytes.
        unsafe { buffer.add(at).write(luck.next() as u8) };
    }
    STATE.store(luck.state(), Ordering::Relaxed);
    len as isize
}
