/* Power limits: set by any process, seen by all, through a file that remembers each with its time.
 *
 * A line of SIMULATED_NVML_STATE: host, GPU, CLOCK_MONOTONIC in s, limit in mW, whether it is enforced (1) or
 * was only accepted (0). Lines are added, never changed; without the file every limit is the default.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "simulated.h"

enum { MAX_LIMITS = 256 };

typedef struct { double least_w, most_w, default_w; } Range;
typedef struct { int count; Limit enforced[MAX_LIMITS]; double accepted_w; } History;

static History histories[MAX_GPUS];
static char path[4096];
static off_t read_bytes;
static int read_after_origin;

void find_limits(void) {
    snprintf(path, sizeof path, "%s", setting("STATE", ""));
    read_bytes = -1;
}

static Range range_of(int gpu) {
    Range range;
    char text[256];
    setting_of("LIMITS", "100:1000:1000", gpu, text, sizeof text);
    if (sscanf(text, "%lf:%lf:%lf", &range.least_w, &range.most_w, &range.default_w) != 3) abort();
    return range;
}

static void remember(int gpu, double set_s, double limit_w, int is_enforced) {
    History *own = &histories[gpu];
    own->accepted_w = limit_w;
    if (is_enforced && own->count < MAX_LIMITS)
        own->enforced[own->count++] = (Limit){since_origin_s(set_s), limit_w};
}

/* Read the file again where it has grown, or where times since the origin have become known. */
static void refresh(void) {
    struct stat found = {0};
    char host[256] = "", name[256];
    int gpu, is_enforced, is_after = elapsed_s() > 0;
    double set_s, limit_mw;
    if (*path && stat(path, &found)) found.st_size = 0;
    if (found.st_size == read_bytes && is_after == read_after_origin) return;
    read_bytes = found.st_size;
    read_after_origin = is_after;
    for (int i = 0; i < MAX_GPUS; i++) {
        histories[i].count = 0;
        remember(i, 0, range_of(i).default_w, 1);
    }
    FILE *file = *path ? fopen(path, "r") : NULL;
    if (!file) return;
    gethostname(host, sizeof host - 1);
    while (fscanf(file, "%255s %d %lf %lf %d", name, &gpu, &set_s, &limit_mw, &is_enforced) == 5)
        if (!strcmp(name, host) && gpu < MAX_GPUS) remember(gpu, set_s, limit_mw / 1e3, is_enforced);
    fclose(file);
}

int limits_of(int gpu, const Limit **limits) {
    refresh();
    *limits = histories[gpu].enforced;
    return histories[gpu].count;
}

int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned int *least_mw, unsigned int *most_mw) {
    int gpu = index_of(handle), state = state_of(gpu, "limit");
    Range range = range_of(gpu);
    *least_mw = (unsigned int)(range.least_w * 1e3);
    *most_mw = (unsigned int)(range.most_w * 1e3);
    return state;
}

int nvmlDeviceGetPowerManagementDefaultLimit(void *handle, unsigned int *limit_mw) {
    int gpu = index_of(handle);
    *limit_mw = (unsigned int)(range_of(gpu).default_w * 1e3);
    return state_of(gpu, "limit");
}

int nvmlDeviceGetPowerManagementLimit(void *handle, unsigned int *limit_mw) {
    int gpu = index_of(handle);
    refresh();
    *limit_mw = (unsigned int)(histories[gpu].accepted_w * 1e3 + 0.5);
    return state_of(gpu, "limit");
}

int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned int *limit_mw) {
    const Limit *limits;
    int gpu = index_of(handle), count = limits_of(gpu, &limits);
    *limit_mw = (unsigned int)(limits[count - 1].limit_w * 1e3 + 0.5);
    return state_of(gpu, "limit");
}

int nvmlDeviceSetPowerManagementLimit(void *handle, unsigned int limit_mw) {
    int gpu = index_of(handle), state = state_of(gpu, "limit");
    Range range = range_of(gpu);
    char host[256] = "", line[512];
    if (state == OK) state = state_of(gpu, "setting");
    if (state != OK) return state;
    if (!*path) return NOT_SUPPORTED;
    if (limit_mw < range.least_w * 1e3 || limit_mw > range.most_w * 1e3) return INVALID_ARGUMENT;
    gethostname(host, sizeof host - 1);
    int is_enforced = !has_fault(gpu, "limit_ignored", NULL);
    int length = snprintf(line, sizeof line, "%s %d %.6f %u %d\n", host, gpu, monotonic_s(), limit_mw, is_enforced);
    /* One write to the end of a file: whole lines, whoever else writes. */
    int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0666);
    if (file < 0) return UNKNOWN;
    state = write(file, line, length) == length ? OK : UNKNOWN;
    close(file);
    return state;
}
