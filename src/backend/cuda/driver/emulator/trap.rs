//! Faults that the host's processor raises in a kernel end its thread like any other (kernels/emulator/trap.cpp).

use std::sync::Once;

use super::fiber;
use super::report::Finding;

/// Registers with which the interrupted thread continues: TrapRegisters of trap.cpp.
#[repr(C)]
struct Registers {
    program: u64,
    stack: u64,
    frame: u64,
    first: u64,
    second: u64,
    link: u64,
}

unsafe extern "C" {
    fn emulator_catch_traps();
}

/// Called once, before the first kernel runs.
pub(super) fn catch() {
    static CAUGHT: Once = Once::new();
    // SAFETY: the handlers change nothing but threads of kernels, and leave all else to those before.
    CAUGHT.call_once(|| unsafe { emulator_catch_traps() });
}

/// Called by the handler of the signal. Writes the registers that end the running thread; false if none runs.
#[unsafe(no_mangle)]
extern "C" fn emulator_trapped(
    stack: u64,
    program: u64,
    address: u64,
    division: bool,
    registers: *mut Registers,
) -> bool {
    let Some((handler, own)) = fiber::interrupted(stack as usize) else { return false };
    let what = move || match (division, own.contains(&address)) {
        (true, _) => "division by zero".to_string(),
        // All of the thread's own memory can be used, but for the page below it.
        (false, true) => "stack overflow".to_string(),
        (false, false) => format!("access to {address:#x}, where there is no memory"),
    };
    // SAFETY: the thread was interrupted in its own code, on its own stack, and goes on with these registers.
    let regs =
        unsafe { handler.setup_trap_handler(move || fiber::set_fault(Finding::interrupted(what(), program as usize))) };
    #[cfg(target_arch = "x86_64")]
    let regs =
        Registers { program: regs.rip, stack: regs.rsp, frame: regs.rbp, first: regs.rdi, second: regs.rsi, link: 0 };
    #[cfg(target_arch = "aarch64")]
    let regs =
        Registers { program: regs.pc, stack: regs.sp, frame: regs.x29, first: regs.x0, second: regs.x1, link: regs.lr };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let regs = {
        drop(regs);
        Registers { program, stack, frame: 0, first: 0, second: 0, link: 0 }
    };
    // SAFETY: the handler's own variable.
    unsafe { registers.write(regs) };
    true
}
