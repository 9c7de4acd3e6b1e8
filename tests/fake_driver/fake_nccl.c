// A stand-in for NCCL, for tests over the fake driver: it connects one rank and sums nothing, but is as slow and as strict as the
// real one. Nothing is called while a call is in progress; a sum is work of its stream. When the program ends it writes to
// FAKE_NCCL_REPORT how many communicators were not aborted, how many sums there were and which rules were broken.
//
//   FAKE_NCCL=stuck    no call ever ends
//   FAKE_NCCL=failed   the second sum ends with an error
//   FAKE_NCCL=shared   two ranks have the same GPU
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
struct Id {
    char bytes[128];
};
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking, cluster, least, most;
    const char* net;
    int split;
};
struct Comm {
    int polls, result;
};
static int alive, sums, violations;

static int is(const char* setting) {
    const char* value = getenv("FAKE_NCCL");
    return value && !strcmp(value, setting);
}

static int slow(struct Comm* comm, int polls, int result) {
    comm->polls = is("stuck") ? 1 << 30 : polls;
    comm->result = result;
    return IN_PROGRESS;
}

__attribute__((destructor)) static void report(void) {
    const char* path = getenv("FAKE_NCCL_REPORT");
    FILE* file = path ? fopen(path, "w") : NULL;
    if (!file) return;
    fprintf(file, "alive: %d\nsums: %d\nviolations: %d\n", alive, sums, violations);
    fclose(file);
}

int ncclGetUniqueId(struct Id* id) {
    memset(id->bytes, 0xa5, sizeof id->bytes);
    return SUCCESS;
}
int ncclCommInitRankConfig(struct Comm** comm, int count, struct Id id, int rank, const struct Config* config) {
    const int fits = config->size == sizeof *config && config->magic == 0xcafebeef && config->version == 21700;
    if (!fits || config->blocking || config->cluster != INT32_MIN || config->most != INT32_MIN) return INVALID_ARGUMENT;
    if ((unsigned char)id.bytes[127] != 0xa5 || rank || count != 1) return INVALID_ARGUMENT;
    alive++;
    *comm = calloc(1, sizeof **comm);
    return slow(*comm, 3, is("shared") ? INVALID_USAGE : SUCCESS);
}
int ncclCommGetAsyncError(struct Comm* comm, int* error) {
    *error = comm->polls ? IN_PROGRESS : comm->result;
    comm->polls -= comm->polls > 0;
    return SUCCESS;
}
int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, struct Comm* comm, void* stream) {
    if (from != to || !count || type != 7 || op != 0) return INVALID_ARGUMENT;
    violations += comm->polls > 0;
    sums++;
    void* cuda = dlopen("libcuda.so", RTLD_NOW);
    int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**) =
        cuda ? (int (*)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**))dlsym(
                   cuda, "cuLaunchKernel")
             : NULL;
    void* params[] = {to};
    if (!launch || launch(to, 1, 1, 1, 32, 1, 1, 0, stream, params, NULL)) return INVALID_ARGUMENT;
    return slow(comm, 2, is("failed") && sums == 2 ? REMOTE_ERROR : SUCCESS);
}
int ncclCommAbort(struct Comm* comm) {
    alive--;
    free(comm);
    return SUCCESS;
}
const char* ncclGetErrorString(int result) { return result == REMOTE_ERROR ? "remote process exited" : "invalid"; }
const char* ncclGetLastError(struct Comm* comm) {
    (void)comm;
    return "in NCCL's words";
}
