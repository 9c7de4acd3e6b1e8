//! The compiled kernels inside of this program, and what the compiler said of them.

/// The image of one kernel file: machine code for several architectures, and PTX for later ones.
#[derive(Debug)]
pub struct Fatbin {
    /// Stem of the file under kernels/, as in [`KernelInfo::file`](crate::backend::cuda::driver::KernelInfo::file).
    pub file: &'static str,
    /// Bytes for the driver library to load.
    pub fatbin: &'static [u8],
    /// Each kernel on each architecture.
    pub resources: &'static [Resources],
}

/// Resources of a kernel on a multiprocessor.
#[derive(Debug)]
pub struct Resources {
    /// Its name.
    pub kernel: &'static str,
    /// As "sm_80".
    pub architecture: &'static str,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread's stack frame, which is slow memory.
    pub stack: u32,
    /// Bytes moved between registers and that memory for want of registers.
    pub spills: u32,
    /// Bytes of machine code.
    pub code: u32,
}

/// The driver library reads the head of an image as whole words.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));
