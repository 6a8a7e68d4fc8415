//! Pools of threads that share work. The first error stops all threads of a pool.

use std::{
    collections::VecDeque,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use crate::{PointError, Result};

/// A request to stop, which the caller of a long operation may set from another thread.
pub(crate) type Cancel<'a> = Option<&'a AtomicBool>;

pub(crate) fn check_cancel(cancel: Cancel<'_>) -> Result<()> {
    if cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) { Err(PointError::Cancelled) } else { Ok(()) }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `work` with each chunk of `items`, on the given number of threads.
pub(crate) fn each_chunk<T: Sync>(
    threads: usize,
    items: &[T],
    size: usize,
    cancel: Cancel<'_>,
    work: impl Fn(&[T]) -> Result<()> + Sync,
) -> Result<()> {
    let chunks: Vec<&[T]> = items.chunks(size.max(1)).collect();
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<PointError>> = Mutex::new(None);
    let run = || {
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if lock(&failed).is_some() {
                return;
            }
            if let Err(error) = check_cancel(cancel).and_then(|()| work(chunk)) {
                lock(&failed).get_or_insert(error);
                return;
            }
        }
    };
    let threads = threads.clamp(1, 64).min(chunks.len());
    if threads <= 1 {
        run();
    } else {
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(run);
            }
        });
    }
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

struct State<T> {
    tasks: VecDeque<T>,
    running: usize,
    failed: Option<PointError>,
}

/// A stack of tasks, to which running tasks may add more tasks.
pub(crate) struct Tasks<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T: Send> Tasks<T> {
    /// Adds a task. A running task may call this function.
    pub(crate) fn push(&self, task: T) {
        lock(&self.state).tasks.push_back(task);
        self.changed.notify_one();
    }

    fn next(&self) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if state.failed.is_some() {
                return None;
            }
            // The newest task runs first. The waiting tasks then need only the memory of one path through the tree.
            if let Some(task) = state.tasks.pop_back() {
                state.running += 1;
                return Some(task);
            }
            if state.running == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, result: Result<()>) {
        let mut state = lock(&self.state);
        state.running -= 1;
        if let Err(error) = result {
            state.failed.get_or_insert(error);
        }
        if state.failed.is_some() || state.running == 0 {
            self.changed.notify_all();
        }
    }
}

/// Executes the tasks in `first` and all tasks that are added meanwhile.
pub(crate) fn run<T: Send>(
    threads: usize,
    first: Vec<T>,
    cancel: Cancel<'_>,
    work: impl Fn(&Tasks<T>, T) -> Result<()> + Sync,
) -> Result<()> {
    let tasks = Tasks { state: Mutex::new(State { tasks: first.into(), running: 0, failed: None }), changed: Condvar::new() };
    let run = || {
        while let Some(task) = tasks.next() {
            tasks.done(check_cancel(cancel).and_then(|()| work(&tasks, task)));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.clamp(1, 64) {
            scope.spawn(run);
        }
        run();
    });
    tasks.state.into_inner().unwrap_or_else(PoisonError::into_inner).failed.map_or(Ok(()), Err)
}
