//! A backend that threads use in turn, where it has one stream of work.

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::DeviceMemory;
use crate::backend::Backend;

/// A backend, which nobody reaches but in turn.
pub(super) struct Turns<B> {
    backend: B,
    turn: Mutex<()>,
}

/// The backend, until this is dropped.
pub(super) struct Turn<'a, B> {
    backend: &'a B,
    _held: Option<MutexGuard<'a, ()>>,
}

impl<B> Deref for Turn<'_, B> {
    type Target = B;

    fn deref(&self) -> &B {
        self.backend
    }
}

impl<B: Backend> Turns<B> {
    pub(super) fn new(backend: B) -> Turns<B> {
        Turns { backend, turn: Mutex::new(()) }
    }

    /// Waits until nobody else has the backend, if it has one stream of work. A caller that panicked has left nothing behind
    /// that the next would see.
    pub(super) fn take(&self) -> Turn<'_, B> {
        let held = B::ONE_STREAM.then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        Turn { backend: &self.backend, _held: held }
    }

    /// [`Backend::name`], which gives the device no work.
    pub(super) fn describe(&self) -> String {
        self.backend.name()
    }

    /// [`Backend::memory_stats`], which gives the device no work.
    pub(super) fn memory(&self) -> Option<DeviceMemory> {
        self.backend.memory_stats().map(|(allocations, high_water)| DeviceMemory { allocations, high_water })
    }
}
