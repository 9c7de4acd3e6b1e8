// A stand-in for NVIDIA's driver library, for tests: one device without kernels, whose memory is the host's. It is
// stricter than the real one. Nothing asynchronous happens before it is waited for, so memory that is used again too early
// is seen; copies have to lie in what was allocated; every call needs the context on its own thread. When the program
// ends it writes to FAKE_REPORT what was not given back and which rules were broken.
//
//   FAKE_VERSION, FAKE_DEVICES, FAKE_CAPABILITY (10 * major + minor), FAKE_MEMORY (bytes)
//   FAKE_FAIL=function:n:code    the n-th call of the function (all of them if n is 0) answers with this code
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
       INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_READY = 600, ILLEGAL_ADDRESS = 700, CAPTURE_UNSUPPORTED = 900 };
enum { MOST = 4096 };

// What was handed out and not given back, by kind.
enum Kind { DEVICE_MEMORY, PINNED_MEMORY, STREAM, EVENT, GRAPH, EXEC, MODULE, CONTEXT, KINDS };
static const char* const KIND_NAMES[KINDS] = {"device memory", "pinned memory", "stream", "event",
                                              "graph",         "exec",          "module", "context"};
struct Thing {
    enum Kind kind;
    char* at;
    size_t bytes;
};
static struct Thing things[MOST];
static int made[KINDS];
static int violations, launches, sticky;
static _Thread_local int entered;

// Work that was asked for; `done` of it has happened.
struct Work {
    enum { COPY, FILL, LAUNCH } what;
    char* to;
    const char* from;
    unsigned char byte;
    size_t bytes;
};
struct List {
    struct Work* work;
    size_t count;
};
static struct List queue, captured;
static size_t done;
static int capturing;
struct Event {
    size_t position;
};

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
    do {                                                        \
        static int calls;                                       \
        const int code = fails(__func__, &calls);               \
        if (code) return code;                                  \
    } while (0)
#define CALL_IN_CONTEXT()                                       \
    do {                                                        \
        CALL();                                                 \
        if (!entered) {                                         \
            violation(__func__);                                \
            return INVALID_CONTEXT;                             \
        }                                                       \
    } while (0)
// Giving back works even where an error is reported.
#define CALL_TO_GIVE_BACK(kind, at)                             \
    do {                                                        \
        static int calls;                                       \
        const int code = fails(__func__, &calls);               \
        const int gone = give_back(kind, at);                   \
        return code ? code : gone;                              \
    } while (0)

static void* hand_out(enum Kind kind, size_t bytes) {
    for (int i = 0; i < MOST; i++) {
        if (things[i].at) continue;
        things[i] = (struct Thing){kind, aligned_alloc(256, (bytes + 255) / 256 * 256), bytes};
        if (things[i].at) memset(things[i].at, 0xcd, bytes);
        made[kind]++;
        return things[i].at;
    }
    return NULL;
}

static struct Thing* find(enum Kind kind, const void* at, size_t bytes) {
    for (int i = 0; i < MOST; i++) {
        struct Thing* thing = &things[i];
        if (thing->at && thing->kind == kind && (const char*)at >= thing->at &&
            (const char*)at + bytes <= thing->at + thing->bytes) {
            return thing;
        }
    }
    return NULL;
}

static int give_back(enum Kind kind, void* at) {
    struct Thing* thing = find(kind, at, 0);
    if (!thing || thing->at != at) {
        violation("gave back what was not handed out");
        return INVALID_HANDLE;
    }
    if (kind == DEVICE_MEMORY || kind == PINNED_MEMORY) {
        if (done < queue.count && !sticky) violation("memory freed while work is under way");
    }
    free(thing->at);
    thing->at = NULL;
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

static int enqueue(struct Work work) { return append(capturing ? &captured : &queue, work); }

static int run_until(size_t position) {
    for (; done < position; done++) {
        const struct Work* work = &queue.work[done];
        if (work->what == COPY) memmove(work->to, work->from, work->bytes);
        if (work->what == FILL) memset(work->to, work->byte, work->bytes);
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
int cuDevicePrimaryCtxRetain(void** context, int device) {
    CALL();
    (void)device;
    *context = hand_out(CONTEXT, 1);
    return SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    for (int i = 0; i < MOST; i++) {
        if (things[i].at && things[i].kind == CONTEXT) CALL_TO_GIVE_BACK(CONTEXT, things[i].at);
    }
    violation("released more often than retained");
    return INVALID_CONTEXT;
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
int cuMemAlloc_v2(uint64_t* at, size_t bytes) {
    CALL_IN_CONTEXT();
    if (!bytes) return INVALID_VALUE;
    if (bytes > memory() - in_use()) return OUT_OF_MEMORY;
    *at = (uint64_t)hand_out(DEVICE_MEMORY, bytes);
    return SUCCESS;
}
int cuMemFree_v2(uint64_t at) { CALL_TO_GIVE_BACK(DEVICE_MEMORY, (void*)at); }
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

static int copy(enum Kind to_kind, void* to, enum Kind from_kind, const void* from, size_t bytes) {
    if (!find(to_kind, to, bytes) || !find(from_kind, from, bytes)) {
        violation("a copy outside of what was allocated");
        return sticky = ILLEGAL_ADDRESS;
    }
    return enqueue((struct Work){COPY, to, from, 0, bytes});
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    CALL_IN_CONTEXT();
    (void)stream;
    return copy(DEVICE_MEMORY, (void*)to, PINNED_MEMORY, from, bytes);
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    CALL_IN_CONTEXT();
    (void)stream;
    return copy(PINNED_MEMORY, to, DEVICE_MEMORY, (void*)from, bytes);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    CALL_IN_CONTEXT();
    (void)stream;
    return copy(DEVICE_MEMORY, (void*)to, DEVICE_MEMORY, (void*)from, bytes);
}
int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t bytes, void* stream) {
    CALL_IN_CONTEXT();
    (void)stream;
    if (!find(DEVICE_MEMORY, (void*)to, bytes)) {
        violation("filled what was not allocated");
        return sticky = ILLEGAL_ADDRESS;
    }
    return enqueue((struct Work){FILL, (void*)to, NULL, byte, bytes});
}

int cuStreamCreate(void** stream, unsigned flags) {
    CALL_IN_CONTEXT();
    if (flags != 1) violation("a stream that waits for others");
    *stream = hand_out(STREAM, 1);
    return SUCCESS;
}
int cuStreamDestroy_v2(void* stream) { CALL_TO_GIVE_BACK(STREAM, stream); }
int cuStreamSynchronize(void* stream) {
    CALL_IN_CONTEXT();
    (void)stream;
    return capturing ? CAPTURE_UNSUPPORTED : run_until(queue.count);
}
int cuStreamQuery(void* stream) {
    CALL_IN_CONTEXT();
    (void)stream;
    if (capturing) return CAPTURE_UNSUPPORTED;
    // Somebody asks again and again until everything is done.
    if (done < queue.count) run_until(done + 1);
    return done < queue.count ? NOT_READY : SUCCESS;
}
int cuStreamBeginCapture_v2(void* stream, int mode) {
    CALL_IN_CONTEXT();
    (void)stream, (void)mode;
    captured = (struct List){0};
    capturing = 1;
    return SUCCESS;
}
int cuStreamEndCapture(void* stream, void** graph) {
    (void)stream;
    capturing = 0;
    *graph = NULL;
    CALL_IN_CONTEXT();
    struct List* list = hand_out(GRAPH, sizeof captured);
    *list = captured;
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
    (void)stream;
    return find(EXEC, exec, 0) ? SUCCESS : INVALID_HANDLE;
}
int cuGraphLaunch(void* exec, void* stream) {
    CALL_IN_CONTEXT();
    (void)stream;
    const struct List* list = exec;
    for (size_t i = 0; i < list->count; i++) enqueue(list->work[i]);
    return SUCCESS;
}

int cuEventCreate(void** event, unsigned flags) {
    CALL_IN_CONTEXT();
    (void)flags;
    *event = memset(hand_out(EVENT, sizeof(struct Event)), 0, sizeof(struct Event));
    return SUCCESS;
}
int cuEventDestroy_v2(void* event) { CALL_TO_GIVE_BACK(EVENT, event); }
int cuEventRecord(void* event, void* stream) {
    CALL_IN_CONTEXT();
    (void)stream;
    ((struct Event*)event)->position = queue.count;
    return SUCCESS;
}
int cuEventSynchronize(void* event) {
    CALL_IN_CONTEXT();
    return run_until(((struct Event*)event)->position);
}
int cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    CALL_IN_CONTEXT();
    *milliseconds = (float)(((struct Event*)to)->position - ((struct Event*)from)->position);
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
    (void)stream, (void)extra;
    const int fits = function && params && params[0] && x && y && z && y < 65536 && z < 65536 && tx && ty == 1 && tz == 1;
    return fits && shared <= 226 << 10 ? enqueue((struct Work){.what = LAUNCH}) : INVALID_VALUE;
}
int cuLaunchCooperativeKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                              unsigned shared, void* stream, void** params) {
    CALL_IN_CONTEXT();
    return x * y * z > 100 ? 720 : cuLaunchKernel(function, x, y, z, tx, ty, tz, shared, stream, params, NULL);
}
