/* Lets one call on files below a directory fail: preloaded, and armed by disk_faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, CUT = 4, OPEN = 8 };

static char below[4096];
static long calls, fails_at;
static int which, error, shortened, lasting;

/* The call number `at` of a kind in `kinds` fails with `code` (0: writes half of what it was given), and with `stays` every
   one after it. at = 0: none fails, they are only counted. */
void faults_arm(const char *dir, long at, int kinds, int code, int stays) {
    snprintf(below, sizeof below, "%s/", dir);
    calls = 0; fails_at = at; which = kinds; error = code ? code : EIO; shortened = !code; lasting = stays;
}

long faults_calls(void) { return calls; }

static int hit(const char *path, int kind) {
    if (!below[0] || !(which & kind) || strncmp(path, below, strlen(below)) != 0) return 0;
    calls++;
    return fails_at && (calls == fails_at || (lasting && calls > fails_at));
}

static int hit_fd(int fd, int kind) {
    char link[64], path[4096];
    if (!below[0] || !(which & kind)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    if (n + 1 < (ssize_t)sizeof path && strcmp(path, "") != 0 && strlen(path) == strlen(below) - 1) strcat(path, "/");
    return hit(path, kind);
}

#define REAL(name) (real ? real : (real = dlsym(RTLD_NEXT, #name)))

#define WRITES(name, off_type)                                                        \
    ssize_t name(int fd, const void *data, size_t size, off_type at) {                \
        static ssize_t (*real)(int, const void *, size_t, off_type);                  \
        if (hit_fd(fd, WRITE)) {                                                      \
            if (shortened && size > 1) return REAL(name)(fd, data, size / 2, at);     \
            errno = error; return -1;                                                 \
        }                                                                             \
        return REAL(name)(fd, data, size, at);                                        \
    }
WRITES(pwrite, off_t)
WRITES(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (hit_fd(fd, WRITE)) {
        if (shortened && size > 1) return REAL(write)(fd, data, size / 2);
        errno = error; return -1;
    }
    return REAL(write)(fd, data, size);
}

#define FD_CALL(name, kind)                                                           \
    int name(int fd) {                                                                \
        static int (*real)(int);                                                      \
        if (hit_fd(fd, kind)) { errno = error; return -1; }                           \
        return REAL(name)(fd);                                                        \
    }
FD_CALL(fsync, SYNC)
FD_CALL(fdatasync, SYNC)

#define CUTS(name, off_type)                                                          \
    int name(int fd, off_type size) {                                                 \
        static int (*real)(int, off_type);                                            \
        if (hit_fd(fd, CUT)) { errno = error; return -1; }                            \
        return REAL(name)(fd, size);                                                  \
    }
CUTS(ftruncate, off_t)
CUTS(ftruncate64, off64_t)

#define OPENS(name)                                                                   \
    int name(const char *path, int flags, ...) {                                      \
        static int (*real)(const char *, int, ...);                                   \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, int); va_end(rest); \
        if (hit(path, OPEN)) { errno = error; return -1; }                            \
        return REAL(name)(path, flags, mode);                                         \
    }
OPENS(open)
OPENS(open64)
