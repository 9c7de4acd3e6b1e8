// Headers of the system that emulator.h needs, apart because the checked build puts all else into a namespace.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
