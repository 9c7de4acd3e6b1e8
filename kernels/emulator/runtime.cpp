// The one variable that the kernels and the runtime share: who is running on this host thread.
#include "emulator.h"

extern "C" {
thread_local EmulatorContext* emulator_context;

void emulator_set_context(EmulatorContext* context) { emulator_context = context; }
unsigned emulator_context_bytes() { return sizeof(EmulatorContext); }
unsigned emulator_warp_bytes() { return sizeof(EmulatorWarp); }
unsigned emulator_copies_bytes() { return sizeof(EmulatorCopies); }
}
