// A stand-in for NVIDIA's driver library, for tests: one device without kernels, whose memory is the host's. It is
// stricter than the real one. Nothing asynchronous happens before its stream is waited for, so memory that is used again
// too early is seen; copies have to lie in what was allocated; every call needs the context on its own thread. When the
// program ends it writes to FAKE_REPORT what was not given back and which rules were broken.
//
//   FAKE_VERSION, FAKE_DEVICES, FAKE_CAPABILITY (10 * major + minor), FAKE_MEMORY (bytes)
//   FAKE_FAIL=function:n:code    the n-th call of the function (all of them if n is 0) answers with this code
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_READY = 600, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900 };
enum { MOST = 4096 };

// What was handed out and not given back, by kind.
enum Kind { DEVICE_MEMORY, PINNED_MEMORY, POOL, STREAM, EVENT, GRAPH, EXEC, MODULE, CONTEXT, KINDS };
static const char* const KIND_NAMES[KINDS] = {"device memory", "pinned memory", "pool",   "stream", "event",
                                              "graph",         "exec",          "module", "context"};
struct Thing {
    enum Kind kind;
    char* at;
    size_t bytes;
    // Of device memory: whose work may use it, and whether it was given back, which happens in the order of that work.
    void *pool, *stream;
    int given_back;
};
static struct Thing things[MOST];
static int made[KINDS];
static int violations, launches, sticky;
static _Thread_local int entered;

// Work that was asked for.
struct Work {
    enum { COPY, FILL, LAUNCH, FREE, WAIT } what;
    char* to;
    const char* from;
    unsigned char byte;
    size_t bytes;
};
struct List {
    struct Work* work;
    size_t count;
};
// `done` of the queue has happened.
struct Stream {
    struct List queue, captured;
    size_t done;
    int capturing;
};
struct Event {
    struct Stream* stream;
    size_t position;
};

// One call at a time; a call may call another.
static pthread_mutex_t one = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static int take_turn(void) { return pthread_mutex_lock(&one); }
static void leave_turn(int* held) {
    (void)held;
    pthread_mutex_unlock(&one);
}
#define NAMED(name, line) name##line
#define TURN_AT(line) __attribute__((cleanup(leave_turn), unused)) int NAMED(turn_, line) = take_turn()
#define TURN() TURN_AT(__LINE__)

static const char* setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value ? value : otherwise;
}

static void violation(const char* what) {
    violations++;
    fprintf(stderr, "fake driver: %s\n", what);
}

// The code that a call has to answer with before it does anything; `of` counts its calls.
static int fails(const char* function, int* calls) {
    char name[128] = "";
    int nth = 0, code = 0;
    ++*calls;
    if (sscanf(setting("FAKE_FAIL", ""), "%127[^:]:%d:%d", name, &nth, &code) == 3 && !strcmp(name, function) &&
        (nth == 0 || nth == *calls)) {
        if (code >= 700 && code < 720) sticky = code;
        return code;
    }
    return sticky;
}
#define CALL()                                                  \
    TURN();                                                     \
    do {                                                        \
        static int calls;                                       \
        const int code = fails(__func__, &calls);               \
        if (code) return code;                                  \
    } while (0)
#define CALL_IN_CONTEXT()                                       \
    CALL();                                                     \
    do {                                                        \
        if (!entered) {                                         \
            violation(__func__);                                \
            return INVALID_CONTEXT;                             \
        }                                                       \
    } while (0)
// Giving back works even where an error is reported.
#define CALL_TO_GIVE_BACK(kind, at)                             \
    TURN();                                                     \
    do {                                                        \
        static int calls;                                       \
        const int code = fails(__func__, &calls);               \
        const int gone = give_back(kind, at);                   \
        return code ? code : gone;                              \
    } while (0)

static void* hand_out(enum Kind kind, size_t bytes) {
    for (int i = 0; i < MOST; i++) {
        if (things[i].at) continue;
        things[i] = (struct Thing){.kind = kind, .at = aligned_alloc(256, (bytes + 255) / 256 * 256), .bytes = bytes};
        if (things[i].at) memset(things[i].at, 0xcd, bytes);
        made[kind]++;
        return things[i].at;
    }
    return NULL;
}

static struct Thing* find(enum Kind kind, const void* at, size_t bytes) {
    for (int i = 0; i < MOST; i++) {
        struct Thing* thing = &things[i];
        if (thing->at && !thing->given_back && thing->kind == kind && (const char*)at >= thing->at &&
            (const char*)at + bytes <= thing->at + thing->bytes) {
            return thing;
        }
    }
    return NULL;
}

static void vanish(struct Thing* thing) {
    free(thing->at);
    *thing = (struct Thing){0};
}

static int overlap(const struct Thing* thing, const char* at, size_t bytes) {
    return at && at < thing->at + thing->bytes && thing->at < at + bytes;
}

// Whether work that has yet to happen may use the thing. A launch may use everything, but where there are several streams
// not what belongs to another, which is not known of pinned memory.
static int under_way(const struct Thing* thing) {
    int streams = 0, uses = 0, launched = 0;
    for (int i = 0; i < MOST; i++) {
        if (!things[i].at || things[i].kind != STREAM) continue;
        const struct Stream* stream = (struct Stream*)things[i].at;
        streams++;
        for (size_t at = stream->done; at < stream->queue.count; at++) {
            const struct Work* work = &stream->queue.work[at];
            launched |= work->what == LAUNCH;
            uses |= overlap(thing, work->to, work->bytes) || overlap(thing, work->from, work->bytes);
        }
    }
    return uses || (launched && streams == 1);
}

static int give_back(enum Kind kind, void* at) {
    struct Thing* thing = find(kind, at, 0);
    if (!thing || thing->at != at) {
        violation("gave back what was not handed out");
        return INVALID_HANDLE;
    }
    if (kind == PINNED_MEMORY && !sticky && under_way(thing)) violation("memory freed while work is under way");
    vanish(thing);
    return SUCCESS;
}

static size_t in_use(void) {
    size_t bytes = 0;
    for (int i = 0; i < MOST; i++) bytes += things[i].at && things[i].kind == DEVICE_MEMORY ? things[i].bytes : 0;
    return bytes;
}

static size_t memory(void) { return strtoull(setting("FAKE_MEMORY", "1073741824"), NULL, 10); }

static int append(struct List* list, struct Work work) {
    if ((list->count & (list->count - 1)) == 0) {
        list->work = realloc(list->work, (list->count ? 2 * list->count : 1) * sizeof work);
    }
    list->work[list->count++] = work;
    return SUCCESS;
}

static int enqueue(struct Stream* stream, struct Work work) {
    if (!find(STREAM, stream, 0)) return INVALID_HANDLE;
    return append(stream->capturing ? &stream->captured : &stream->queue, work);
}

static void free_now(const char* at) {
    for (int i = 0; i < MOST; i++) {
        if (things[i].at == at && things[i].kind == DEVICE_MEMORY) vanish(&things[i]);
    }
}

static int run_until(struct Stream* stream, size_t position) {
    for (; stream->done < position; stream->done++) {
        const struct Work* work = &stream->queue.work[stream->done];
        if (work->what == COPY) memmove(work->to, work->from, work->bytes);
        if (work->what == FILL) memset(work->to, work->byte, work->bytes);
        if (work->what == FREE) free_now(work->to);
        // For as much of another stream as there was when its event was recorded.
        if (work->what == WAIT && find(STREAM, work->to, 0)) run_until((struct Stream*)work->to, work->bytes);
        launches += work->what == LAUNCH;
    }
    return SUCCESS;
}

__attribute__((destructor)) static void report(void) {
    const char* path = getenv("FAKE_REPORT");
    FILE* file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    int left[KINDS] = {0};
    for (int i = 0; i < MOST; i++) {
        if (things[i].at) left[things[i].kind]++;
    }
    for (int kind = 0; kind < KINDS; kind++) fprintf(file, "%s: %d of %d left\n", KIND_NAMES[kind], left[kind], made[kind]);
    fprintf(file, "violations: %d\nlaunches: %d\n", violations, launches);
    fclose(file);
}

int cuDriverGetVersion(int* version) {
    *version = atoi(setting("FAKE_VERSION", "13000"));
    return SUCCESS;
}
int cuInit(unsigned flags) {
    CALL();
    return flags ? INVALID_VALUE : SUCCESS;
}
int cuGetErrorName(int code, const char** text) {
    *text = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR";
    return SUCCESS;
}
int cuGetErrorString(int code, const char** text) {
    *text = code == 209 ? "no kernel image is available for execution on the device" : "in the driver's words";
    return SUCCESS;
}
int cuDeviceGetCount(int* count) {
    CALL();
    *count = atoi(setting("FAKE_DEVICES", "1"));
    return SUCCESS;
}
int cuDeviceGet(int* device, int index) {
    CALL();
    *device = index;
    return SUCCESS;
}
int cuDeviceGetName(char* name, int length, int device) {
    CALL();
    snprintf(name, length, "Fake %d", device);
    return SUCCESS;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    CALL();
    (void)device;
    *bytes = memory();
    return SUCCESS;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    CALL();
    (void)device;
    const int capability = atoi(setting("FAKE_CAPABILITY", "90"));
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : attribute == 97 ? 227 << 10 : 100;
    return SUCCESS;
}
// A map is as good as its address and sizes.
int cuTensorMapEncodeTiled(uint64_t* map, int type, uint32_t rank, void* address, const uint64_t* sizes, const uint64_t* strides,
                           const uint32_t* box, const uint32_t* steps, int interleave, int swizzle, int promotion, int fill) {
    CALL_IN_CONTEXT();
    (void)promotion, (void)interleave;
    if ((uintptr_t)map % 64 || (uintptr_t)address % 16 || strides[0] % 16 || strides[0] != 2 * sizes[0]) violation("a misaligned tensor map");
    if (type != 9 || rank != 2 || swizzle != 3 || fill != 0) violation("a tensor map of another form");
    if (!sizes[0] || !sizes[1] || box[0] * 2 != 128 || !box[1] || box[1] > 256 || steps[0] != 1 || steps[1] != 1) {
        violation("a tensor map of impossible sizes");
    }
    map[0] = (uint64_t)address;
    return SUCCESS;
}
// A device has one primary context, which lives as long as it is retained.
static struct {
    void* context;
    int retained;
} primary[8];
int cuDevicePrimaryCtxRetain(void** context, int device) {
    CALL();
    if (!primary[device].retained++) primary[device].context = hand_out(CONTEXT, 1);
    *context = primary[device].context;
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    if (!primary[device].retained) {
        violation("released more often than retained");
        return INVALID_CONTEXT;
    }
    if (--primary[device].retained) {
        CALL();
        return SUCCESS;
    }
    CALL_TO_GIVE_BACK(CONTEXT, primary[device].context);
}
int cuCtxSetCurrent(void* context) {
    CALL();
    entered = find(CONTEXT, context, 0) != NULL;
    return entered ? SUCCESS : INVALID_CONTEXT;
}
int cuMemGetInfo_v2(size_t* available, size_t* total) {
    CALL_IN_CONTEXT();
    *total = memory();
    *available = *total - in_use();
    return SUCCESS;
}
struct PoolProps {
    int type, handles, location, device;
    void* security;
    size_t most;
    unsigned char rest[56];
};
int cuMemPoolCreate(void** pool, const struct PoolProps* props) {
    CALL_IN_CONTEXT();
    // Pinned, not exported, on a device, of any size.
    if (props->type != 1 || props->handles || props->location != 1 || props->most) return INVALID_VALUE;
    *pool = hand_out(POOL, 1);
    if (*pool) *(char*)*pool = 0;
    return SUCCESS;
}
// A pool keeps what was given back if it says so; it would be unmapped at every synchronisation otherwise.
int cuMemPoolSetAttribute(void* pool, int attribute, const uint64_t* value) {
    CALL_IN_CONTEXT();
    struct Thing* thing = find(POOL, pool, 0);
    if (!thing || attribute != 4 || *value != UINT64_MAX) return INVALID_VALUE;
    *thing->at = 1;
    return SUCCESS;
}
int cuMemPoolDestroy(void* pool) {
    TURN();
    for (int i = 0; i < MOST; i++) {
        if (things[i].at && things[i].pool == pool && !things[i].given_back) violation("memory outlives its pool");
    }
    CALL_TO_GIVE_BACK(POOL, pool);
}
int cuMemPoolTrimTo(void* pool, size_t keep) {
    CALL_IN_CONTEXT();
    return find(POOL, pool, 0) && !keep ? SUCCESS : INVALID_VALUE;
}
int cuMemAllocFromPoolAsync(uint64_t* at, size_t bytes, void* pool, void* stream) {
    CALL_IN_CONTEXT();
    if (!bytes || !find(POOL, pool, 0) || !find(STREAM, stream, 0)) return INVALID_VALUE;
    if (*(const char*)pool != 1) violation("memory of a pool that keeps nothing");
    if (((struct Stream*)stream)->capturing) violation("memory allocated by a graph");
    if (bytes > memory() - in_use()) return OUT_OF_MEMORY;
    *at = (uint64_t)hand_out(DEVICE_MEMORY, bytes);
    struct Thing* thing = find(DEVICE_MEMORY, (void*)*at, bytes);
    thing->pool = pool, thing->stream = stream;
    return SUCCESS;
}
// Giving back works even where an error is reported, and at once where no work happens any more.
int cuMemFreeAsync(uint64_t at, struct Stream* stream) {
    TURN();
    static int calls;
    const int code = fails(__func__, &calls);
    struct Thing* thing = find(DEVICE_MEMORY, (void*)at, 0);
    if (!thing || (uint64_t)thing->at != at || thing->stream != stream || stream->capturing) {
        violation("gave back what was not handed out");
        return INVALID_HANDLE;
    }
    if (code) {
        vanish(thing);
        return code;
    }
    thing->given_back = 1;
    return enqueue(stream, (struct Work){.what = FREE, .to = thing->at});
}
int cuMemHostAlloc(void** at, size_t bytes, unsigned flags) {
    CALL_IN_CONTEXT();
    (void)flags;
    *at = hand_out(PINNED_MEMORY, bytes);
    return SUCCESS;
}
int cuMemHostGetDevicePointer_v2(uint64_t* on_device, void* at, unsigned flags) {
    CALL_IN_CONTEXT();
    *on_device = (uint64_t)at;
    return !flags && find(PINNED_MEMORY, at, 0) ? SUCCESS : INVALID_VALUE;
}
int cuMemFreeHost(void* at) { CALL_TO_GIVE_BACK(PINNED_MEMORY, at); }

// Device memory that work of `stream` may use, or pinned memory.
static int usable(enum Kind kind, const void* at, size_t bytes, void* stream) {
    const struct Thing* thing = find(kind, at, bytes);
    return thing && (kind != DEVICE_MEMORY || thing->stream == stream);
}

static int copy(enum Kind to_kind, void* to, enum Kind from_kind, const void* from, size_t bytes, void* stream) {
    if (!usable(to_kind, to, bytes, stream) || !usable(from_kind, from, bytes, stream)) {
        violation("a copy outside of what was allocated");
        return sticky = ILLEGAL_ADDRESS;
    }
    return enqueue(stream, (struct Work){COPY, to, from, 0, bytes});
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    CALL_IN_CONTEXT();
    return copy(DEVICE_MEMORY, (void*)to, PINNED_MEMORY, from, bytes, stream);
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    CALL_IN_CONTEXT();
    return copy(PINNED_MEMORY, to, DEVICE_MEMORY, (void*)from, bytes, stream);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    CALL_IN_CONTEXT();
    return copy(DEVICE_MEMORY, (void*)to, DEVICE_MEMORY, (void*)from, bytes, stream);
}
int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, void* stream) {
    CALL_IN_CONTEXT();
    if (!usable(DEVICE_MEMORY, (void*)to, bytes, stream)) {
        violation("filled what was not allocated");
        return sticky = ILLEGAL_ADDRESS;
    }
    return enqueue(stream, (struct Work){FILL, (void*)to, NULL, byte, bytes});
}

int cuStreamCreate(void** stream, unsigned flags) {
    CALL_IN_CONTEXT();
    if (flags != 1) violation("a stream that waits for others");
    *stream = memset(hand_out(STREAM, sizeof(struct Stream)), 0, sizeof(struct Stream));
    return SUCCESS;
}
// What was given back to it is gone with it.
int cuStreamDestroy_v2(struct Stream* stream) {
    TURN();
    for (; find(STREAM, stream, 0) && stream->done < stream->queue.count; stream->done++) {
        if (stream->queue.work[stream->done].what == FREE) free_now(stream->queue.work[stream->done].to);
    }
    CALL_TO_GIVE_BACK(STREAM, stream);
}
int cuStreamSynchronize(struct Stream* stream) {
    CALL_IN_CONTEXT();
    return stream->capturing ? CAPTURE_UNSUPPORTED : run_until(stream, stream->queue.count);
}
int cuStreamQuery(struct Stream* stream) {
    CALL_IN_CONTEXT();
    if (stream->capturing) return CAPTURE_UNSUPPORTED;
    // Somebody asks again and again until everything is done.
    if (stream->done < stream->queue.count) run_until(stream, stream->done + 1);
    return stream->done < stream->queue.count ? NOT_READY : SUCCESS;
}
int cuStreamBeginCapture_v2(struct Stream* stream, int mode) {
    CALL_IN_CONTEXT();
    if (mode != 2) violation("a capture that others notice");
    stream->captured = (struct List){0};
    stream->capturing = 1;
    return SUCCESS;
}
int cuStreamEndCapture(struct Stream* stream, void** graph) {
    TURN();
    stream->capturing = 0;
    *graph = NULL;
    CALL_IN_CONTEXT();
    struct List* list = hand_out(GRAPH, sizeof *list);
    *list = stream->captured;
    *graph = list;
    return SUCCESS;
}
int cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
    CALL_IN_CONTEXT();
    (void)flags;
    struct List* list = hand_out(EXEC, sizeof *list);
    *list = *(struct List*)graph;
    *exec = list;
    return SUCCESS;
}
int cuGraphDestroy(void* graph) { CALL_TO_GIVE_BACK(GRAPH, graph); }
int cuGraphExecDestroy(void* exec) { CALL_TO_GIVE_BACK(EXEC, exec); }
int cuGraphUpload(void* exec, void* stream) {
    CALL_IN_CONTEXT();
    return find(EXEC, exec, 0) && find(STREAM, stream, 0) ? SUCCESS : INVALID_HANDLE;
}
int cuGraphLaunch(void* exec, struct Stream* stream) {
    CALL_IN_CONTEXT();
    const struct List* list = exec;
    for (size_t i = 0; i < list->count; i++) enqueue(stream, list->work[i]);
    return SUCCESS;
}

int cuEventCreate(void** event, unsigned flags) {
    CALL_IN_CONTEXT();
    (void)flags;
    *event = memset(hand_out(EVENT, sizeof(struct Event)), 0, sizeof(struct Event));
    return SUCCESS;
}
int cuEventDestroy_v2(void* event) { CALL_TO_GIVE_BACK(EVENT, event); }
int cuEventRecord(struct Event* event, struct Stream* stream) {
    CALL_IN_CONTEXT();
    *event = (struct Event){stream, stream->queue.count};
    return SUCCESS;
}
int cuStreamWaitEvent(struct Stream* stream, struct Event* event, unsigned flags) {
    CALL_IN_CONTEXT();
    if (flags) return INVALID_VALUE;
    return enqueue(stream, (struct Work){.what = WAIT, .to = (char*)event->stream, .bytes = event->position});
}
// One that was never recorded, or whose stream is gone, has been passed.
int cuEventSynchronize(struct Event* event) {
    CALL_IN_CONTEXT();
    return find(STREAM, event->stream, 0) ? run_until(event->stream, event->position) : SUCCESS;
}
int cuEventElapsedTime_v2(float* milliseconds, struct Event* from, struct Event* to) {
    CALL_IN_CONTEXT();
    *milliseconds = (float)(to->position - from->position);
    return SUCCESS;
}

int cuModuleLoadData(void** module, const void* image) {
    CALL_IN_CONTEXT();
    if ((uint64_t)image % 8 || *(const uint32_t*)image != 0xba55ed50u) return INVALID_IMAGE;
    *module = hand_out(MODULE, 1);
    return SUCCESS;
}
int cuModuleUnload(void* module) { CALL_TO_GIVE_BACK(MODULE, module); }
int cuModuleGetFunction(void** function, void* module, const char* name) {
    CALL_IN_CONTEXT();
    *function = (void*)name;
    return find(MODULE, module, 0) ? SUCCESS : INVALID_HANDLE;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
    CALL_IN_CONTEXT();
    (void)attribute, (void)function;
    *value = 1024;
    return SUCCESS;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
    CALL_IN_CONTEXT();
    (void)function;
    return attribute == 8 && value == (227 << 10) - 1024 ? SUCCESS : INVALID_VALUE;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                   unsigned shared, void* stream, void** params, void** extra) {
    CALL_IN_CONTEXT();
    (void)extra;
    const int fits = function && params && params[0] && x && y && z && y < 65536 && z < 65536 && tx && ty == 1 && tz == 1;
    return fits && shared <= 226 << 10 ? enqueue(stream, (struct Work){.what = LAUNCH}) : INVALID_VALUE;
}
int cuLaunchCooperativeKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                              unsigned shared, void* stream, void** params) {
    CALL_IN_CONTEXT();
    return x * y * z > 100 ? 720 : cuLaunchKernel(function, x, y, z, tx, ty, tz, shared, stream, params, NULL);
}
