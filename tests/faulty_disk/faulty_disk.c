// A disk with faults, for LD_PRELOAD: a folder that behaves as a mount of its own, files whose last bytes cannot be
// brought to disk, and a rename that takes its time.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int within(const char *path, const char *folder) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && path[length] == '/';
}

// FAULT_MOUNT: the folder is a mount. FAULT_SLOW: a rename to this path waits a second.
int rename(const char *from, const char *to) {
    int (*original)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    const char *mount = getenv("FAULT_MOUNT"), *slow = getenv("FAULT_SLOW");
    if (mount && (strcmp(from, mount) == 0 || strcmp(to, mount) == 0)) {
        errno = EBUSY;
        return -1;
    }
    if (mount && within(from, mount) != within(to, mount)) {
        errno = EXDEV;
        return -1;
    }
    if (slow && strcmp(to, slow) == 0) {
        // To its end, though a signal comes.
        struct timespec left = {1, 0};
        while (nanosleep(&left, &left) != 0 && errno == EINTR) {
        }
    }
    return original(from, to);
}

// FAULT_SYNC: what is in this folder does not reach the disk.
int fsync(int file) {
    int (*original)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    const char *folder = getenv("FAULT_SYNC");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (folder && length > 0 && (path[length] = 0, within(path, folder))) {
        errno = ENOSPC;
        return -1;
    }
    return original(file);
}
