//! Sums over the GPUs of several processes by NCCL, which is looked for when a run has more than one. Its library is opened here and
//! not by cudarc, which does not try `libnccl.so.2`, the only name in NVIDIA's packages.
//!
//! Every call is non-blocking: while NCCL works on it, the connections of the ranks are watched, because a rank that died would be
//! waited for without end. Tested against a stand-in of the library, and over one rank on an H200; not run on several GPUs yet.

use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUstream};
use libloading::Library;

use super::context::{RawStream, StreamEvent};
use crate::Result;
use crate::backend::Peers;
use crate::backend::cuda::driver::{DevicePtr, Sums};

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
const REMEDY: &str = "several GPUs sum their gradients through NCCL: install it (`pip install nvidia-nccl-cu13`, with that package's \
                      folder nvidia/nccl/lib in LD_LIBRARY_PATH, or the system's package libnccl2), or sum on the host with \
                      --sum-on-host";
/// Longest wait for ranks that are connected and do not come: none does anything else meanwhile.
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_micros(50);

// Of nccl.h. Results are numbers here: a later version may have more of them than an enum.
type Comm = *mut c_void;
const SUCCESS: c_int = 0;
const INVALID_USAGE: c_int = 5;
const IN_PROGRESS: c_int = 7;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;
const UNDEFINED: c_int = c_int::MIN;

/// ncclUniqueId.
#[derive(Clone, Copy)]
#[repr(C)]
struct UniqueId([u8; 128]);

/// ncclConfig_t as of version 2.17, which every later one takes.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    fn non_blocking() -> Config {
        Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21_700,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

/// The functions of the library.
struct Functions {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int,
    all_reduce: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, CUstream) -> c_int,
    async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(Comm) -> c_int,
    words: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    _library: Library,
}

impl Functions {
    fn find() -> std::result::Result<Functions, String> {
        // SAFETY: loading NCCL runs its constructors, which any program that links it does.
        let open = |name: &str| unsafe { Library::new(name) };
        let library = open(NAMES[0]).or_else(|error| open(NAMES[1]).map_err(|_| error)).map_err(|error| {
            let reason = error.source().map_or(String::new(), |reason| format!(" ({reason})"));
            format!("libnccl.so.2 cannot be loaded{reason}: {REMEDY}")
        })?;
        macro_rules! get {
            ($name:literal) => {
                // SAFETY: the types of the fields of `Functions` are those of nccl.h.
                *unsafe { library.get($name) }
                    .map_err(|_| format!("the NCCL found lacks {}: it is older than 2.17; {REMEDY}", $name))?
            };
        }
        Ok(Functions {
            get_unique_id: get!("ncclGetUniqueId"),
            init: get!("ncclCommInitRankConfig"),
            all_reduce: get!("ncclAllReduce"),
            async_error: get!("ncclCommGetAsyncError"),
            abort: get!("ncclCommAbort"),
            words: get!("ncclGetErrorString"),
            last_error: get!("ncclGetLastError"),
            _library: library,
        })
    }

    fn get() -> std::result::Result<&'static Functions, String> {
        static FUNCTIONS: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();
        FUNCTIONS.get_or_init(Functions::find).as_ref().map_err(String::clone)
    }
}

/// The communicator of this rank, and the stream that its sums are in. NCCL takes calls from every thread, one at a time.
pub(super) struct Nccl {
    functions: &'static Functions,
    /// Null before NCCL has made it. Never freed: a thread of NCCL writes it once more when the connection is made or has failed,
    /// whoever has given it up by then.
    comm: &'static AtomicPtr<c_void>,
    stream: RawStream,
    /// The stream whose work writes what is summed.
    compute: Arc<RawStream>,
    /// The place in it after which a sum begins.
    ready: StreamEvent,
}

impl Nccl {
    /// Connects all ranks.
    ///
    /// # Errors
    /// If NCCL is missing, a rank has ended, or they cannot reach each other.
    pub(super) fn join(compute: &Arc<RawStream>, peers: &mut dyn Peers) -> Result<Nccl> {
        let context = &compute.context;
        let functions = Functions::get().map_err(|problem| context.error(problem))?;
        let (stream, ready) = (RawStream::new(context.clone())?, StreamEvent::new(context, false)?);
        let comm: &AtomicPtr<c_void> = Box::leak(Box::default());
        let nccl = Nccl { functions, comm, stream, compute: compute.clone(), ready };
        let mut id = UniqueId([0; 128]);
        if peers.rank() == 0 {
            // SAFETY: writes one id.
            let result = unsafe { (functions.get_unique_id)(&mut id) };
            nccl.settle("making an id", result, peers)?;
        }
        peers.share(&mut id.0)?;
        let number = |n: usize| c_int::try_from(n).map_err(|_| context.error(format!("{n} is no number of a rank")));
        let (count, rank, mut config) = (number(peers.count())?, number(peers.rank())?, Config::non_blocking());
        // SAFETY: the context of the device is this thread's since `RawStream::new`; reads the configuration, writes one handle.
        let result = unsafe { (functions.init)(comm.as_ptr(), count, id, rank, &mut config) };
        nccl.settle("connecting the GPUs", result, peers)?;
        Ok(nccl)
    }

    fn comm(&self) -> Comm {
        self.comm.load(Ordering::Acquire)
    }

    /// Waits until NCCL is done with a call, as long as all ranks are there.
    fn settle(&self, what: &str, mut result: c_int, peers: &dyn Peers) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while result == IN_PROGRESS {
            self.pause(what, peers, deadline)?;
            result = self.state();
        }
        if result == SUCCESS { Ok(()) } else { Err(self.error(what, result)) }
    }

    /// A moment of waiting for the other ranks.
    fn pause(&self, what: &str, peers: &dyn Peers, deadline: Instant) -> Result<()> {
        peers.check()?;
        if Instant::now() > deadline {
            let problem = format!("NCCL, {what}: the other ranks did not come within {} s", PATIENCE.as_secs());
            return Err(self.stream.context.error(problem));
        }
        std::thread::sleep(POLL);
        Ok(())
    }

    /// Result of the last call, or what has failed since.
    fn state(&self) -> c_int {
        let mut state = SUCCESS;
        // SAFETY: a live communicator; writes one number.
        match unsafe { (self.functions.async_error)(self.comm(), &mut state) } {
            SUCCESS => state,
            failed => failed,
        }
    }

    fn error(&self, what: &str, result: c_int) -> crate::Error {
        // SAFETY: null, or a string that ends in 0.
        let text = |text: *const c_char| match text.is_null() {
            true => String::new(),
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        };
        // SAFETY: both return constant strings; the second takes no communicator too.
        let [name, detail] = unsafe { [(self.functions.words)(result), (self.functions.last_error)(null_mut())] };
        let (name, detail) = (text(name), text(detail));
        let detail = if detail.is_empty() { detail } else { format!(" ({})", detail.trim()) };
        let advice = match result {
            INVALID_USAGE => ": start one process for each GPU; two cannot share one, except with --sum-on-host",
            _ => ": NCCL_DEBUG=WARN makes it say more; --sum-on-host does without it",
        };
        self.stream.context.error(format!("NCCL, {what}: {name}{detail}{advice}"))
    }
}

impl Sums for Nccl {
    unsafe fn start(&mut self, values: DevicePtr, len: usize, peers: &dyn Peers) -> Result<()> {
        self.compute.context.bind()?;
        self.ready.record(&self.compute)?;
        // SAFETY: both are alive.
        let waits = unsafe { sys::cuStreamWaitEvent(self.stream.raw, self.ready.raw, 0) };
        self.stream.context.check("waiting for an event", waits)?;
        let address = values.0 as *mut c_void;
        // SAFETY: the caller's promise for the memory; communicator and stream are alive.
        let result =
            unsafe { (self.functions.all_reduce)(address, address, len, FLOAT32, SUM, self.comm(), self.stream.raw) };
        self.settle("starting a sum", result, peers)
    }

    fn finish(&mut self, peers: &dyn Peers) -> Result<()> {
        let (what, deadline) = ("summing", Instant::now() + PATIENCE);
        self.stream.context.bind()?;
        while !self.stream.is_idle()? {
            let state = self.state();
            if state != SUCCESS && state != IN_PROGRESS {
                return Err(self.error(what, state));
            }
            self.pause(what, peers, deadline)?;
        }
        // The host has waited, so whatever work it starts from here on comes after the sums.
        Ok(())
    }
}

impl Drop for Nccl {
    /// Aborts: to take leave of the others, as ncclCommDestroy does, might be to wait for a rank that died.
    fn drop(&mut self) {
        if !self.comm().is_null() {
            self.stream.context.bind_to_drop();
            // SAFETY: a communicator that was made and is not used again.
            let _ = unsafe { (self.functions.abort)(self.comm()) };
        }
        // Kernels that were aborted may still be leaving memory that others are about to free.
        let _ = self.stream.wait();
    }
}
