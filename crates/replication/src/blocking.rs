//! Work that waits for the disk, away from the threads that must not wait.

use quipu_storage::Store;
use tokio::task::JoinError;

/// Does `f` on a thread that may block; here and now where the store has only this one.
pub(crate) async fn blocking<T: Send + 'static>(
    store: &Store,
    f: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if store.is_single_threaded() {
        return Ok(f());
    }
    tokio::task::spawn_blocking(f).await
}
