/* A simulated NVML (SONAME libnvidia-ml.so.1): the few functions that the meters call, on GPUs that the
 * environment describes. The real nvidia-ml-py loads it, so that everything above the driver is real.
 *
 *   SIMULATED_NVML_ORIGIN    file that holds the CLOCK_MONOTONIC, in s, at which the power programmes begin;
 *                            until it is there, and before that time, counters stand; without it: 0
 *   SIMULATED_NVML_POWER     a programme a GPU, separated by ';': W, or "W,START:W,..." with START in s
 *                            after the origin; default "100"
 *   SIMULATED_NVML_TICK_S    time between steps of the energy counters, in s (default 0.1)
 *   SIMULATED_NVML_FAULTS    "GPU:KIND" or "GPU:KIND@S" separated by ';', from S after the origin on:
 *                            no_counter, no_power, counter_denied, power_denied, lost, mig, still, backwards
 *
 * Built with -DWITHOUT_COUNTER the library lacks the counter's symbol, as drivers of old did.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, GPU_IS_LOST = 15 };
enum { MAX_GPUS = 16, MAX_STEPS = 64 };

typedef struct { double start_s, power_w; } Step;
typedef struct { int steps; Step step[MAX_STEPS]; } Gpu;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Rates;

static Gpu gpus[MAX_GPUS];
static int gpu_count;
static double origin_s, tick_s;

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

/* Time since the origin, 0 before it. */
static double elapsed_s(void) {
    struct timespec now;
    const char *path = setting("SIMULATED_NVML_ORIGIN", "");
    FILE *file = *path && origin_s == 0 ? fopen(path, "r") : NULL;
    if (file && fscanf(file, "%lf", &origin_s) != 1) origin_s = 0;
    if (file) fclose(file);
    clock_gettime(CLOCK_MONOTONIC, &now);
    double now_s = now.tv_sec + now.tv_nsec * 1e-9;
    return (*path && origin_s == 0) || now_s < origin_s ? 0 : now_s - origin_s;
}

static int index_of(const void *gpu) { return (int)((const Gpu *)gpu - gpus); }

static int has_fault(const void *gpu, const char *kind) {
    char text[1024], *rest = text, *entry;
    snprintf(text, sizeof text, "%s", setting("SIMULATED_NVML_FAULTS", ""));
    while ((entry = strsep(&rest, ";"))) {
        int which;
        char found[32];
        double from_s = 0;
        if (sscanf(entry, "%d:%31[a-z_]@%lf", &which, found, &from_s) < 2) continue;
        if (which == index_of(gpu) && !strcmp(found, kind) && elapsed_s() >= from_s) return 1;
    }
    return 0;
}

int nvmlInitWithFlags(unsigned int flags) {
    char text[4096], *rest = text, *programme;
    (void)flags;
    tick_s = atof(setting("SIMULATED_NVML_TICK_S", "0.1"));
    gpu_count = 0;
    snprintf(text, sizeof text, "%s", setting("SIMULATED_NVML_POWER", "100"));
    while ((programme = strsep(&rest, ";")) && gpu_count < MAX_GPUS) {
        Gpu *gpu = &gpus[gpu_count++];
        char *part;
        gpu->steps = 0;
        while ((part = strsep(&programme, ",")) && gpu->steps < MAX_STEPS) {
            Step *step = &gpu->step[gpu->steps++];
            if (sscanf(part, "%lf:%lf", &step->start_s, &step->power_w) != 2) *step = (Step){0, atof(part)};
        }
    }
    return OK;
}

int nvmlShutdown(void) { return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **gpu) {
    if ((int)index >= gpu_count) return INVALID_ARGUMENT;
    *gpu = &gpus[index];
    return OK;
}

int nvmlDeviceGetUUID(void *gpu, char *uuid, unsigned int length) {
    snprintf(uuid, length, "GPU-00000000-0000-0000-0000-%012d", index_of(gpu));
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) {
    for (int i = 0; i < gpu_count; i++) {
        char own[80];
        nvmlDeviceGetUUID(&gpus[i], own, sizeof own);
        if (!strcmp(own, uuid)) return *gpu = &gpus[i], OK;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(void *gpu, unsigned int *index) { return *index = index_of(gpu), OK; }

int nvmlDeviceGetName(void *gpu, char *name, unsigned int length) {
    (void)gpu;
    snprintf(name, length, "Simulated GPU");
    return OK;
}

int nvmlDeviceGetMigMode(void *gpu, unsigned int *current, unsigned int *pending) {
    if (!has_fault(gpu, "mig")) return NOT_SUPPORTED;
    *current = *pending = 1;
    return OK;
}

#ifndef WITHOUT_COUNTER
/* Joules from the origin to `until_s` after it. */
static double energy_j(const Gpu *gpu, double until_s) {
    double joules = 0;
    for (int i = 0; i < gpu->steps; i++) {
        double from_s = i ? gpu->step[i].start_s : 0;
        double to_s = i + 1 < gpu->steps && gpu->step[i + 1].start_s < until_s ? gpu->step[i + 1].start_s : until_s;
        if (i && from_s >= until_s) break;
        joules += gpu->step[i].power_w * (to_s - from_s);
    }
    return joules;
}

int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *energy_mj) {
    double now_s = elapsed_s(), base_j = 1e6 * (index_of(gpu) + 1); /* the driver was loaded long ago */
    long long ticks = (long long)(now_s / tick_s);
    if (has_fault(gpu, "lost")) return GPU_IS_LOST;
    if (has_fault(gpu, "no_counter")) return NOT_SUPPORTED;
    if (has_fault(gpu, "counter_denied")) return NO_PERMISSION;
    if (has_fault(gpu, "backwards")) base_j = 1e3;
    if (has_fault(gpu, "still")) ticks = 0;
    *energy_mj = (unsigned long long)((base_j + energy_j(gpu, ticks * tick_s)) * 1e3);
    return OK;
}
#endif

int nvmlDeviceGetPowerUsage(void *gpu, unsigned int *power_mw) {
    double now_s = elapsed_s(), power_w = ((const Gpu *)gpu)->step[0].power_w;
    if (has_fault(gpu, "lost")) return GPU_IS_LOST;
    if (has_fault(gpu, "no_power")) return NOT_SUPPORTED;
    if (has_fault(gpu, "power_denied")) return NO_PERMISSION;
    for (int i = 1; i < ((const Gpu *)gpu)->steps; i++)
        if (((const Gpu *)gpu)->step[i].start_s <= now_s) power_w = ((const Gpu *)gpu)->step[i].power_w;
    *power_mw = (unsigned int)(power_w * 1e3);
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *gpu, Rates *rates) {
    if (has_fault(gpu, "lost")) return GPU_IS_LOST;
    *rates = (Rates){75, 40};
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *gpu, Memory *memory) {
    if (has_fault(gpu, "lost")) return GPU_IS_LOST;
    *memory = (Memory){80ULL << 30, 60ULL << 30, 20ULL << 30};
    return OK;
}

int nvmlDeviceGetClockInfo(void *gpu, int clock, unsigned int *mhz) {
    if (has_fault(gpu, "lost")) return GPU_IS_LOST;
    return *mhz = clock == 1 ? 1410 : 1593, OK;
}

int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned int *celsius) {
    (void)sensor;
    if (has_fault(gpu, "lost")) return GPU_IS_LOST;
    return *celsius = 55, OK;
}
