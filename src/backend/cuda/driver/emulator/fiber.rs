//! A thread of a kernel: a coroutine on a stack of its own. Its context lies at the upper end of that stack, and both are
//! used again for the next block.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ops::Range;
use std::ptr;

use corosensei::stack::{DefaultStack, Stack, StackPointer};
use corosensei::trap::CoroutineTrapHandler;
use corosensei::{Coroutine, CoroutineResult, Yielder};

use super::report::Finding;

/// Bytes of a thread's stack: kernels keep tiles of accumulators there.
const STACK: usize = 128 << 10;
/// Stacks begin at different lines of the caches: their upper ends are where all threads work, a page or more apart.
const COLOURS: usize = 192;
const LINE: usize = 64;

/// Threads of a warp.
pub(super) const WARP: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Index3 {
    pub x: u32,
    pub y: u32,
    pub z: u32,
}

/// The start of a kernel in the host's code, and the params it takes.
pub(super) type Entry = unsafe extern "C" fn(*const u8);

/// State of a thread: EmulatorContext of emulator.h, followed by fields of the runtime.
#[repr(C)]
pub(super) struct Context {
    pub thread: Index3,
    pub block: Index3,
    pub block_size: Index3,
    pub grid_size: Index3,
    pub phase: u32,
    pub lane: u32,
    pub shared: *mut u8,
    pub shared_bytes: u64,
    pub warp: *mut u8,
    copies: *mut u8,
    stack: *const u8,
    stack_bytes: u64,
    pub checked: u64,
    spins: u64,
    pub cluster: *const *mut u8,
    pub rank: u32,
    pub cluster_size: u32,
    pub eager: u64,
    // The runtime's own.
    pub entry: Entry,
    pub params: *const u8,
    /// The block's place in the grid, counted along x first.
    pub number: u32,
    state: State,
    pub place: Place,
    yielder: *const Yielder<(), ()>,
    trap: Option<CoroutineTrapHandler<()>>,
    /// The `RefCell<Watch>` of a checked launch.
    pub watch: *const c_void,
}

/// Bytes of the context that emulator.h knows.
const SHARED_CONTEXT: usize = std::mem::offset_of!(Context, entry);

/// EmulatorWait of emulator.h, and what only the runtime sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// At an exchange of the warp's.
    Warp,
    /// At the warp's barrier.
    WarpBarrier,
    Block,
    /// At the barrier of the blocks of a cluster.
    Cluster,
    Spin,
    /// It did what no kernel may.
    Fault,
    Done,
}

/// Where a thread stopped.
#[derive(Clone, Copy)]
pub(super) struct Place {
    what: *const c_char,
    file: *const c_char,
    line: c_int,
}

impl Place {
    pub(super) const START: Place = Place { what: ptr::null(), file: ptr::null(), line: 0 };

    /// Whether two threads that wait in these places wait for each other.
    pub(super) fn meets(self, other: Place) -> bool {
        (self.what, self.line) == (other.what, other.line)
    }

    pub(super) fn describe(self) -> String {
        if self.what.is_null() {
            return "its start".into();
        }
        // SAFETY: both are string literals of a kernel.
        let (what, file) = unsafe { (CStr::from_ptr(self.what), CStr::from_ptr(self.file)) };
        format!("{} at {}:{}", what.to_string_lossy(), file.to_string_lossy(), self.line)
    }
}

thread_local! {
    /// The thread that runs on this thread of the host.
    static CURRENT: Cell<*mut Context> = const { Cell::new(ptr::null_mut()) };
    /// The fault of a thread whose state is `Fault`.
    static FAULT: RefCell<Option<Finding>> = const { RefCell::new(None) };
}

unsafe extern "C" {
    fn emulator_set_context(context: *mut c_void);
    fn emulator_context_bytes() -> c_uint;
    fn emulator_warp_bytes() -> c_uint;
    fn emulator_copies_bytes() -> c_uint;
    fn emulator_reset_warp(warp: *mut u8);
    fn emulator_reset_copies(copies: *mut u8);
    fn emulator_reset_boxes();
    fn emulator_boxes_under_way() -> c_uint;
}

/// Forgets copies of boxes that a launch left on this thread of the host.
pub(super) fn reset_boxes() {
    // SAFETY: sets a number of this thread's.
    unsafe { emulator_reset_boxes() }
}

/// Copies of boxes that the running cluster has begun and nobody has waited for.
pub(super) fn boxes_under_way() -> u32 {
    // SAFETY: only returns a number of this thread's.
    unsafe { emulator_boxes_under_way() }
}

/// Called by kernels: the place of the running block in the grid.
#[unsafe(no_mangle)]
extern "C" fn emulator_block_number() -> c_uint {
    // SAFETY: only coroutines call this; the context of the one that runs lives.
    unsafe { (*CURRENT.get()).number }
}

/// Bytes of what the lanes of a warp share.
pub(super) fn warp_bytes() -> usize {
    // SAFETY: only returns a constant.
    unsafe { emulator_warp_bytes() as usize }
}

/// Readies a warp for the start of a block.
///
/// # Safety
/// `warp` points to `warp_bytes` bytes.
pub(super) unsafe fn reset_warp(warp: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { emulator_reset_warp(warp) }
}

/// Called by kernels: stops the running thread.
#[unsafe(no_mangle)]
extern "C" fn emulator_wait(wait: c_int, what: *const c_char, file: *const c_char, line: c_int) {
    let state = match wait {
        0 => State::Warp,
        1 => State::Block,
        2 => State::Spin,
        3 => State::WarpBarrier,
        _ => State::Cluster,
    };
    let context = CURRENT.get();
    // SAFETY: only coroutines call this; `resume` has named the context of the one that runs, which holds its yielder.
    unsafe {
        (*context).state = state;
        (*context).place = Place { what, file, line };
        (*context).spins = 0;
        (*(*context).yielder).suspend(());
    }
}

/// Called by kernels: stops the running thread for ever.
#[unsafe(no_mangle)]
extern "C" fn emulator_fault(what: *const c_char) {
    // SAFETY: a string literal.
    let what = unsafe { CStr::from_ptr(what) }.to_string_lossy();
    fault(Finding::here(what.into_owned()));
}

/// The same, of something that the compiler knows the place of.
#[unsafe(no_mangle)]
extern "C" fn emulator_fault_at(what: *const c_char, file: *const c_char, line: c_uint) {
    // SAFETY: string literals.
    let (what, file) = unsafe { (CStr::from_ptr(what).to_string_lossy(), CStr::from_ptr(file).to_string_lossy()) };
    fault(Finding::at(what.into_owned(), format!("{file}:{line}")));
}

/// Stops the running thread for ever.
pub(super) fn fault(finding: Finding) {
    FAULT.set(Some(finding));
    let context = CURRENT.get();
    loop {
        // SAFETY: as in `emulator_wait`.
        unsafe {
            (*context).state = State::Fault;
            (*(*context).yielder).suspend(());
        }
    }
}

/// Records the fault of the thread that a trap just ended.
pub(super) fn set_fault(finding: Finding) {
    FAULT.set(Some(finding));
    // SAFETY: it ends in its own stack, above which the context lies.
    unsafe { (*CURRENT.get()).state = State::Fault };
}

/// The thread that was interrupted while its stack pointer was `stack`: how to end it, and its own memory.
pub(super) fn interrupted(stack: usize) -> Option<(CoroutineTrapHandler<()>, Range<u64>)> {
    // SAFETY: a context lives as long as its fiber, which outlives the block it runs in.
    let context = unsafe { CURRENT.get().as_ref() }?;
    let handler = context.trap.filter(|handler| handler.stack_ptr_in_bounds(stack))?;
    let start = context.stack as u64;
    Some((handler, start..start + context.stack_bytes))
}

/// The thread that runs, for what kernels call.
pub(super) fn current() -> *mut Context {
    CURRENT.get()
}

/// Takes the fault of the last thread that faulted.
pub(super) fn take_fault() -> Finding {
    FAULT.take().unwrap_or_else(|| Finding::at("fault".into(), String::new()))
}

/// A stack without its upper end, where the context is.
struct ThreadStack {
    whole: DefaultStack,
    base: StackPointer,
}

// SAFETY: the lower part of a stack that keeps the rules.
unsafe impl Stack for ThreadStack {
    fn base(&self) -> StackPointer {
        self.base
    }

    fn limit(&self) -> StackPointer {
        self.whole.limit()
    }
}

/// A coroutine that runs one kernel after the other; what to run stands in its context.
pub(super) struct Fiber {
    coroutine: Option<Coroutine<(), (), (), ThreadStack>>,
    context: *mut Context,
}

impl Fiber {
    /// `index` only spreads stacks over the caches.
    pub(super) fn new(index: usize) -> Result<Fiber, String> {
        // SAFETY: both only return a constant.
        let (known, copies_bytes) = unsafe { (emulator_context_bytes() as usize, emulator_copies_bytes() as usize) };
        assert_eq!(known, SHARED_CONTEXT, "the layout of emulator.h");
        let upper = (size_of::<Context>().next_multiple_of(LINE) + copies_bytes).next_multiple_of(LINE);
        let whole = DefaultStack::new(STACK + upper + COLOURS * LINE);
        let whole = whole.map_err(|error| format!("no memory for a thread's stack: {error}"))?;
        let end = whole.base().get() / LINE * LINE - index * 5 % COLOURS * LINE;
        let start = end - upper;
        let context = start as *mut Context;
        let stack = whole.limit().get();
        let copies = (start + size_of::<Context>().next_multiple_of(LINE)) as *mut u8;
        let no_kernel: Entry = nothing;
        // SAFETY: the upper end of a stack that nobody else uses, aligned, with room for both.
        unsafe {
            context.write(Context {
                thread: Index3::default(),
                block: Index3::default(),
                block_size: Index3::default(),
                grid_size: Index3::default(),
                phase: 0,
                lane: 0,
                shared: ptr::null_mut(),
                shared_bytes: 0,
                warp: ptr::null_mut(),
                copies,
                stack: stack as *const u8,
                stack_bytes: (whole.base().get() - stack) as u64,
                checked: 0,
                spins: 0,
                cluster: ptr::null(),
                rank: 0,
                cluster_size: 1,
                eager: 0,
                entry: no_kernel,
                params: ptr::null(),
                number: 0,
                state: State::Done,
                place: Place::START,
                yielder: ptr::null(),
                trap: None,
                watch: ptr::null(),
            });
        }
        let base = StackPointer::new(start).ok_or("a stack at address 0")?;
        let mut fiber = Fiber { coroutine: None, context };
        fiber.begin(ThreadStack { whole, base });
        Ok(fiber)
    }

    /// State of the suspended thread.
    pub(super) fn context(&mut self) -> &mut Context {
        // SAFETY: lies in the stack that this fiber owns, and its thread stands still.
        unsafe { &mut *self.context }
    }

    pub(super) fn place(&self) -> Place {
        // SAFETY: as above.
        unsafe { (*self.context).place }
    }

    /// Readies the context, whose other fields the caller sets, for the start of a kernel.
    pub(super) fn start(&mut self) {
        let context = self.context();
        (context.phase, context.spins) = (0, 0);
        (context.state, context.place) = (State::Ready, Place::START);
        // SAFETY: lies in the stack, written nowhere else.
        unsafe { emulator_reset_copies((*self.context).copies) };
    }

    /// Lets the thread run until it stops, and says why it did.
    #[inline(always)]
    pub(super) fn resume(&mut self) -> State {
        let Some(coroutine) = &mut self.coroutine else { return State::Done };
        CURRENT.set(self.context);
        // SAFETY: the context lives as long as the fiber.
        unsafe { emulator_set_context(self.context.cast()) };
        match coroutine.resume(()) {
            // SAFETY: as in `context`.
            CoroutineResult::Yield(()) => unsafe { (*self.context).state },
            // Kernels run in an endless loop, which only a trap ends.
            CoroutineResult::Return(()) => State::Fault,
        }
    }

    /// Gives up what the thread was doing, if it had not ended.
    pub(super) fn abandon(&mut self) {
        if self.context().state == State::Done {
            return;
        }
        self.context().state = State::Done;
        if let Some(stack) = self.take_stack() {
            self.begin(stack);
        }
    }

    fn begin(&mut self, stack: ThreadStack) {
        let coroutine = coroutine(stack, self.context);
        self.context().trap = Some(coroutine.trap_handler());
        self.coroutine = Some(coroutine);
    }

    fn take_stack(&mut self) -> Option<ThreadStack> {
        let mut coroutine = self.coroutine.take()?;
        if !coroutine.done() {
            // SAFETY: a kernel's frames own nothing that has to be dropped.
            unsafe { coroutine.force_reset() };
        }
        Some(coroutine.into_stack())
    }
}

impl Drop for Fiber {
    fn drop(&mut self) {
        self.take_stack();
    }
}

/// Runs whatever the context names, each time it is resumed after an end.
fn coroutine(stack: ThreadStack, context: *mut Context) -> Coroutine<(), (), (), ThreadStack> {
    let context = context as usize;
    Coroutine::with_stack(stack, move |yielder, ()| {
        let context = context as *mut Context;
        loop {
            // SAFETY: the context lies above this stack; who sets `entry` and `params` promises that they go together.
            unsafe {
                (*context).yielder = yielder;
                ((*context).entry)((*context).params);
                (*context).state = State::Done;
            }
            yielder.suspend(());
        }
    })
}

unsafe extern "C" fn nothing(_: *const u8) {}
