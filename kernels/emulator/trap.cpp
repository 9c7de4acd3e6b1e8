// What the host's processor refuses a kernel: memory that is not there, the page below a stack, a division by zero. The
// signal ends the thread that did it, as src/backend/cuda/driver/emulator/trap.rs says, instead of the process. Where the
// registers cannot be set (other systems, other processors), the process ends.
#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#define CATCHES
#endif

#ifdef CATCHES
#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

extern "C" {
// Where the running thread goes on: false if no thread of a kernel runs.
struct TrapRegisters {
    uint64_t program, stack, frame, first, second, link;
};
bool emulator_trapped(uint64_t stack, uint64_t program, uint64_t address, bool division, TrapRegisters* registers);
}

namespace {

struct sigaction before[NSIG];

void caught(int signal, siginfo_t* info, void* context) {
    mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
    TrapRegisters registers;
    const uint64_t address = reinterpret_cast<uint64_t>(info->si_addr);
#ifdef __x86_64__
    auto at = [&](int index) -> uint64_t { return machine.gregs[index]; };
    if (emulator_trapped(at(REG_RSP), at(REG_RIP), address, signal == SIGFPE, &registers)) {
        machine.gregs[REG_RIP] = registers.program;
        machine.gregs[REG_RSP] = registers.stack;
        machine.gregs[REG_RBP] = registers.frame;
        machine.gregs[REG_RDI] = registers.first;
        machine.gregs[REG_RSI] = registers.second;
        return;
    }
#else
    if (emulator_trapped(machine.sp, machine.pc, address, signal == SIGFPE, &registers)) {
        machine.pc = registers.program;
        machine.sp = registers.stack;
        machine.regs[29] = registers.frame;
        machine.regs[0] = registers.first;
        machine.regs[1] = registers.second;
        machine.regs[30] = registers.link;
        return;
    }
#endif
    // Not a kernel's: whoever was asked before is asked again, when the instruction is tried again.
    sigaction(signal, &before[signal], nullptr);
}

}  // namespace
#endif

extern "C" void emulator_catch_traps() {
#ifdef CATCHES
    struct sigaction action = {};
    action.sa_sigaction = caught;
    // A stack that overflowed has no room for a handler; Rust gives each of its threads another.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    const int signals[] = {SIGSEGV, SIGBUS, SIGFPE};
    for (int signal : signals) sigaction(signal, &action, &before[signal]);
#endif
}
