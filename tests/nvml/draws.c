/* Draws: what programs say that a GPU draws, in place of its programme.
 *
 * A line of SIMULATED_NVML_DRAW: host, GPU (its index or UUID), CLOCK_MONOTONIC in s, power in W. From then on the
 * GPU draws so much, until its next line; less than 0 W is what its programme says. The time may lie ahead. A line
 * voids what earlier ones say of the same GPU from its time on: what they planned does not come. Lines are added,
 * never changed.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "simulated.h"

typedef struct { double at_s, power_w; } Draw;
typedef struct { int count, room; Draw *draws; } History;

static History histories[MAX_GPUS];
static char path[4096];
static off_t read_bytes;

void find_draws(void) {
    snprintf(path, sizeof path, "%s", setting("DRAW", ""));
    for (int i = 0; i < MAX_GPUS; i++) histories[i].count = 0;
    read_bytes = 0;
}

static void remember(int gpu, double at_s, double power_w) {
    History *own = &histories[gpu];
    while (own->count && own->draws[own->count - 1].at_s >= at_s) own->count--;
    if (own->count == own->room) {
        own->room = own->room ? 2 * own->room : 64;
        own->draws = realloc(own->draws, own->room * sizeof *own->draws);
        if (!own->draws) abort();
    }
    own->draws[own->count++] = (Draw){at_s, power_w};
}

static int gpu_named(const char *name) {
    char *end;
    long index = strtol(name, &end, 10);
    if (!*end) return index >= 0 && index < MAX_GPUS ? (int)index : -1;
    for (int i = 0; i < MAX_GPUS; i++) {
        char own[80];
        uuid_of(i, own, sizeof own);
        if (!strcmp(own, name)) return i;
    }
    return -1;
}

/* Read what was added to the file since; a line that is not whole yet is left for the next time. */
static void refresh(void) {
    struct stat found;
    char host[256] = "", name[256], gpu[80], line[512];
    double at_s, power_w;
    if (!*path || stat(path, &found) || found.st_size == read_bytes) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    gethostname(host, sizeof host - 1);
    fseeko(file, read_bytes, SEEK_SET);
    while (fgets(line, sizeof line, file) && strchr(line, '\n')) {
        read_bytes = ftello(file);
        if (sscanf(line, "%255s %79s %lf %lf", name, gpu, &at_s, &power_w) != 4 || strcmp(name, host)) continue;
        int index = gpu_named(gpu);
        if (index >= 0) remember(index, at_s, power_w);
    }
    fclose(file);
}

double wanted_w(int gpu, double at_s) {
    const History *own = &histories[gpu];
    double power_w = -1;
    refresh();
    for (int i = 0; i < own->count && since_origin_s(own->draws[i].at_s) <= at_s; i++) power_w = own->draws[i].power_w;
    return power_w < 0 ? unlimited_w(gpu, at_s) : power_w;
}

double wanted_j(int gpu, double from_s, double to_s, double limit_w) {
    const History *own = &histories[gpu];
    double joules = 0, power_w = -1, begin_s = from_s;
    refresh();
    for (int i = 0; i <= own->count && begin_s < to_s; i++) {
        double next_s = i < own->count ? since_origin_s(own->draws[i].at_s) : to_s;
        double end_s = next_s < to_s ? next_s : to_s;
        if (end_s > begin_s) {
            if (power_w < 0) joules += limited_j(gpu, end_s, limit_w) - limited_j(gpu, begin_s, limit_w);
            else joules += (power_w < limit_w ? power_w : limit_w) * (end_s - begin_s);
            begin_s = end_s;
        }
        if (i < own->count) power_w = own->draws[i].power_w;
    }
    return joules;
}
